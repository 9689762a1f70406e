"""examples.py: builds the examples, starts each one, and sends it requests that its page would be opened with.

Examples that end by themselves are held against what they print.
"""

import os, re, ssl, subprocess, sys, threading, time, urllib.error, urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# (path, status, text of the response). `gateway` and `kubernetes` have tests of their own, and the steps `kerberos` and
# `replicas` run the examples of these names.
EXAMPLES = {
    "assertion": [
        ("/.well-known/jwks.json", 200, '"crv":"P-256"'),
        ("/app/x?user=alice", 200, "the backend has verified that alice gets /app/x"),
        ("/app/x", 401, "no assertion"),
    ],
    "balanced": [("/mydir/x", 200, "gets GET /mydir/x"), ("/status", 200, " up: 0 faults")],
    # Without a certificate.
    "client_certificate": [("/", 200, "the app's own page"), ("/legacy/x", 403, "")],
    "connector": [("/", 200, "home"), ("/billing/x", 200, "the billing service gets GET /billing/x")],
    "error_page": [("/down/", 502, "help@front.example")],
    "graceful_shutdown": [("/", 200, "home"), ("/mydir/", 200, "Graceful shutdown")],
    "grpc": [("/", 200, "the app's own page"), ("/x.Y/Z", 200, "")],
    "headers": [("/mydir/x", 200, "x-api-key: s3cret")],
    "hello": [("/", 200, "the app: home"), ("/mydir/page?x", 200, "the backend: /mydir/page?x")],
    "https_backend": [("/legacy/x", 200, "over TLS, gets GET /legacy/x")],
    "hyper_server": [("/any/thing", 200, "x-forwarded-for: 127.0.0.1")],
    "limits": [("/rate/", 200, "gets GET /rate/"), ("/concurrency/", 200, "gets GET /concurrency/")],
    "mock_upstream": [("/", 200, "home"), ("/legacy/x", 200, "gets GET /legacy/x")],
    "nested": [
        ("/mydir/a", 200, "gets GET /mydir/a"),
        ("/team", 200, "the team's own page"),
        ("/team/wiki/a", 200, "gets GET /team/wiki/a"),
        ("/docs/a", 200, "gets GET /a"),
    ],
    "per_request_target": [("/t/bob/x", 200, "Bob's backend gets GET /t/bob/x"), ("/t/carol/x", 404, "")],
    "quickstart": [("/", 200, "One site out of two"), ("/mydir/", 200, "legacy site"), ("/down/page", 502, "on_error")],
    "signed_in": [("/legacy/x", 200, "password")],
    "strangler": [("/orders/7", 200, "the new page of order 7"), ("/any/thing", 200, "gets GET /any/thing")],
    "timeouts_per_route": [("/api/x", 200, "gets GET /api/x"), ("/api/slow", 504, "Gateway Timeout")],
    "trace": [("/", 200, "home"), ("/mydir/", 200, "traceparent: 00-")],
    "unix_socket": [("/mydir/x", 200, "gets GET /mydir/x")],
    "websocket": [("/", 200, "Chat")],
}

# What the examples print that end by themselves, and after a `!`, what they don't.
ENDING = {
    "rolling_deploy": ["has ended its requests", "answered by v1", "answered by v2", "!failed", "!is stopped"],
}

# An example's own CA signs it.
ANY_CERTIFICATE = ssl._create_unverified_context()


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10, context=ANY_CERTIFICATE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def check(name, binary):
    process = subprocess.Popen([binary], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    lines = []
    try:
        url = None
        for line in process.stdout:
            lines.append(line)
            if url := re.search(r"https?://127\.0\.0\.1:\d+", line):
                break
        if url is None:
            return ["it prints no URL: " + "".join(lines)]
        # From here on, a full pipe would stop it.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        failures = []
        for path, status, text in EXAMPLES[name]:
            got = get(url[0] + path)
            if got[0] != status or text not in got[1]:
                failures.append("%s: wanted %d and %r, got %d and %r" % (path, status, text, *got))
        return failures
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def check_ending(name, binary):
    try:
        process = subprocess.run([binary], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                 timeout=60)
    except subprocess.TimeoutExpired:
        return ["it doesn't end"]
    output = process.stdout
    wrong = [text for text in ENDING[name] if (text.lstrip("!") in output) == text.startswith("!")]
    return ["wanted %s, got %d: %s" % (wrong, process.returncode, output)] if wrong or process.returncode else []


def main():
    subprocess.run(["cargo", "build", "--quiet", "--examples", "--all-features"], cwd=ROOT, check=True)
    directory = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "debug", "examples")
    files = {name.removesuffix(".rs") for name in os.listdir(os.path.join(ROOT, "examples"))} - {"README.md", "shared"}
    failed = ["%s isn't checked: add it to .ci/examples.py" % name for name in sorted(files - set(EXAMPLES) - set(ENDING) - {"gateway", "kerberos", "kubernetes", "replicas"})]
    with open(os.path.join(ROOT, "examples", "README.md")) as index:
        index = index.read()
    failed += ["%s isn't in examples/README.md" % name for name in sorted(files) if "(%s" % name not in index]
    for name in [*EXAMPLES, *ENDING]:
        started = time.monotonic()
        failures = (check if name in EXAMPLES else check_ending)(name, os.path.join(directory, name))
        print("%-20s %s (%.1f s)" % (name, "FAILED" if failures else "ok", time.monotonic() - started), flush=True)
        failed += ["%s: %s" % (name, failure) for failure in failures]
    print("\n".join(failed))
    return 1 if failed else 0


sys.exit(main())
