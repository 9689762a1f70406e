"""run.py [GROUP...]: runs tests/kerberos, and the examples `gateway` and `kerberos`, in a Kerberos realm.

Each module of tests/kerberos is a group: a process with its own environment, because the library reads accounts and caches
from there. The groups `gateway` and `example` send requests with curl. Prints a line per case, and `N passed, N failed` at
the end.
"""

import json, os, re, subprocess, sys, tempfile, threading, time

sys.dont_write_bytecode = True

from realm import Failed, Realm, dies_with_parent, end_on_signals

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Each with what differs from the realm's environment.
GROUPS = {
    "own": {},
    "delegated": {},
    "on_behalf": {},
    "jobs": {"KRB5_CLIENT_KTNAME": "{KIT_JOBS_KEYTAB}", "KRB5CCNAME": "DIR:{KIT_DIR}/jobs"},
    "bare": {"KRB5_CLIENT_KTNAME": "FILE:{KIT_DIR}/none", "KRB5CCNAME": "MEMORY:none"},
    "stampede": {},
    "owners": {},
    "expiring": {"KRB5_CONFIG": "{KIT_SHORT_CONFIG}"},
    "outage": {},
}

# Groups in which no request may arrive as the front's own account.
OF_USERS = {"bare", "delegated", "on_behalf", "owners", "example"}

# Seconds after which a group is killed.
LIMIT = 120

SERVICE = "HTTP@backend.kit.test"
FRONT = "HTTP/localhost@KIT.TEST"

GATEWAY = """
listen = "127.0.0.1:0"
test_sign_in = true
{mounts}
"""

MOUNT = """
[[mount]]
prefix = "/{prefix}"
backend = "http://127.0.0.1:{port}"
strip_prefix = true
host = "backend"
negotiate = "{service}"
negotiate_as_user = {as_user}
"""


class Results:
    """Counts and prints the cases."""

    def __init__(self):
        self.passed, self.failed = 0, []

    def add(self, name, failure=None):
        print("%s %s%s" % ("FAIL" if failure else "PASS", name, ": " + failure if failure else ""), flush=True)
        if failure:
            self.failed.append(name)
        else:
            self.passed += 1


def build():
    """Returns the paths of test and examples, built with all features, as the earlier steps of .ci/run build them."""
    paths = {}
    for command in (["test", "--no-run", "--test", "kerberos"],
                    ["build", "--example", "gateway", "--example", "kerberos"]):
        command = ["cargo", *command, "--quiet", "--all-features", "--message-format=json-render-diagnostics"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit("it doesn't build")
        for message in map(json.loads, done.stdout.splitlines()):
            if message.get("executable"):
                paths[message["target"]["kind"][0], message["target"]["name"]] = message["executable"]
    return paths["test", "kerberos"], paths["example", "gateway"], paths["example", "kerberos"]


def run_group(results, group, test, realm):
    env = {**realm.env, **{name: value.format(**realm.env) for name, value in GROUPS[group].items()}}
    if env["KRB5CCNAME"].startswith("DIR:"):
        os.makedirs(env["KRB5CCNAME"].removeprefix("DIR:"), mode=0o700)
    process = subprocess.Popen([test, group + "::", "--test-threads=1"], env=env, cwd=ROOT, text=True,
                               preexec_fn=dies_with_parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    watchdog = threading.Timer(LIMIT, process.kill)
    watchdog.start()
    out = process.communicate()[0]
    watchdog.cancel()
    cases = re.findall(r"(?m)^test (\S+) \.\.\. (ok|FAILED)$", out)
    for name, status in cases:
        results.add(name, None if status == "ok" else "see below")
    if process.returncode or not cases:
        print(out)
        if process.returncode != 101 or not cases:
            results.add(group + "::", "ended with %s" % process.returncode)


class Accesses:
    """The lines that Apache's access log gets from now on."""

    def __init__(self, realm):
        self.path = realm.env["KIT_ACCESS_LOG"]
        self.start = os.path.getsize(self.path)

    def having(self, *texts):
        with open(self.path) as log:
            log.seek(self.start)
            return [line for line in log if any(text in line for text in texts)]


class Server:
    """An example as a process. `url` is the URL that it prints, and `lines` its output."""

    def __init__(self, command, env):
        self.process = subprocess.Popen(command, env=env, cwd=ROOT, text=True, preexec_fn=dies_with_parent,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.lines, self.url = [], None
        watchdog = threading.Timer(30, self.process.kill)
        watchdog.start()
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"http://[^/\s]*:\d+", line):
                self.url = found[0]
                break
        watchdog.cancel()
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True).start()

    def __enter__(self):
        if self.url is None:
            raise Failed("%s prints no URL: %s" % (self.process.args[0], "".join(self.lines)))
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def logs(self, text):
        """Returns whether the output has this text within a second."""
        for _ in range(100):
            if any(text in line for line in self.lines):
                return True
            time.sleep(0.01)
        return False


class Response:
    def __init__(self, text):
        head, _, self.body = text.replace("\r\n", "\n").partition("\n\n")
        # curl prints interim responses, and the 401 of a sign-in, before the final response.
        while self.body.startswith("HTTP/"):
            head, _, self.body = self.body.partition("\n\n")
        lines = head.split("\n")
        self.status = int(lines[0].split()[1]) if lines[0] else 0
        self.fields = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:] if ":" in line]

    def all(self, name):
        return [value for key, value in self.fields if key.lower() == name]

    def line(self, name):
        found = re.search(r"(?m)^%s=(.*)$" % name, self.body)
        return found[1] if found else None

    def __str__(self):
        return "%d %s %r" % (self.status, self.fields, self.body[:200])


def curl(env, url, *arguments, ccache=None):
    """Sends a request, with the tickets of this cache."""
    env = {name: value for name, value in env.items() if name not in ("KRB5_CLIENT_KTNAME", "KRB5_KTNAME")}
    env["KRB5CCNAME"] = ccache or "MEMORY:none"
    done = subprocess.run(["curl", "--silent", "--include", "--max-time", "20", "--noproxy", "*", *arguments, url], env=env,
                          stdout=subprocess.PIPE, text=True)
    return Response(done.stdout)


def check(results, name, response, status, **lines):
    """Compares the response with a status and with lines of Apache's script."""
    got = {key: response.line(key) for key in lines}
    good = response.status == status and got == lines
    results.add(name, None if good else "wanted %d and %s, got %s" % (status, lines, response))


def run_gateway(results, gateway, realm):
    mounts = "".join(MOUNT.format(prefix=prefix, port=realm.backend_port, service=service, as_user=as_user)
                     for prefix, service, as_user in (
                         ("own", SERVICE, "false"), ("user", SERVICE, "true"), ("other", "HTTP@other.kit.test", "true")))
    config = realm.path("gateway.toml")
    with open(config, "w") as file:
        file.write(GATEWAY.format(mounts=mounts))
    with Server([gateway, config], realm.env) as server:
        def get(path, *arguments):
            return curl(realm.env, server.url + path, *arguments)

        def alice(path):
            return get(path, "-H", "X-Test-User: alice")

        def case(name, response, status, **lines):
            check(results, "gateway: " + name, response, status, **lines)

        accesses = Accesses(realm)
        case("its own account", get("/own/krb/x"), 200, user=FRONT, scheme="Negotiate")
        case("its own account for a signed-in user", alice("/own/krb/x"), 200, user=FRONT)
        case("its own account, with a body", get("/own/krb/x", "-d", "abc"), 200, user=FRONT, body="3")
        case("its own account, for HTTP/2 clients", get("/own/krb/x", "--http2-prior-knowledge"), 200, user=FRONT)
        case("Host picks no service", get("/own/krb/x", "-H", "Host: other.kit.test"), 200, user=FRONT)
        for user in ("alice", "bob"):
            for location in ("krb", "krb-conn"):
                response = get("/user/%s/x" % location, "-H", "X-Test-User: " + user)
                case("as %s at /%s/" % (user, location), response, 200, user=user + "@KIT.TEST")
        case("nobody gets the backend's 401", get("/user/krb/x"), 401)
        named = alice("/user/krb/x")
        results.add("gateway: the backend's proof stays in front", str(named) if named.all("www-authenticate") else None)
        for user in ("carol", "dave", "zed", "alice%40EVIL", "HTTP%2Flocalhost"):
            case("%s is refused" % user, get("/user/krb/refused", "-H", "X-Test-User: " + user), 403)
        case("a service that it may not delegate to", alice("/other/krb-other/gateway"), 403)
        is_logged = server.logs("KDC can't fulfill requested option")
        results.add("gateway: the KDC's reason is in the log", None if is_logged else "".join(server.lines))
        seen = accesses.having("/krb/refused", "/krb-other/gateway")
        results.add("gateway: nothing of refused users reaches the backend", "".join(seen))
        leaks = [line for line in server.lines if "YII" in line]
        results.add("gateway: no token in the log", "".join(leaks))
    code = server.process.returncode
    results.add("gateway: SIGTERM ends it with 0", "it ended with %s" % code if code else None)


def run_example(results, example, realm):
    def get(path, *arguments, person=None, negotiate=True):
        sign_in = ["--negotiate", "-u", ":"] if negotiate else []
        ccache = realm.env["KIT_CCACHE_" + person.upper()] if person else None
        return curl(realm.env, server.url + path, *sign_in, *arguments, ccache=ccache)

    def case(name, response, status, **lines):
        check(results, "example: " + name, response, status, **lines)

    forwards = ("--delegation", "always")
    backend = "http://127.0.0.1:%d" % realm.backend_port
    # It doesn't strip the prefix: Apache gets /legacy/krb/x.
    with Server([example, backend, SERVICE], realm.env) as server, tempfile.TemporaryDirectory() as folder:
        for person in ("alice", "bob"):
            name = person + "@KIT.TEST"
            case("%s, on behalf" % person, get("/legacy/krb/x", person=person), 200, user=name)
            case("%s, with a forwarded ticket" % person, get("/legacy/krb/x", *forwards, person=person), 200, user=name)
            page = get("/", person=person)
            is_good = page.status == 200 and page.body == "You are %s.\n" % name
            results.add("example: its own page for %s" % person, None if is_good else str(page))
        case("carol, for whom the front may not act", get("/legacy/krb/x", person="carol"), 403)
        case("carol, whose ticket can't be forwarded", get("/legacy/krb/x", *forwards, person="carol"), 403)
        first = get("/", negotiate=False)
        is_good = first.status == 401 and first.all("www-authenticate") == ["Negotiate"] and not first.all("set-cookie")
        results.add("example: the challenge", None if is_good else str(first))

        response = get("/legacy/krb/sets-a-cookie", person="alice")
        names = sorted(cookie.partition("=")[0] for cookie in response.all("set-cookie"))
        results.add("example: the first response has the cookies of both", None if names == ["app", "front"] else str(response))

        jar = os.path.join(folder, "jar")
        for how, arguments in (("on behalf", ()), ("with a forwarded ticket", forwards)):
            get("/", "--cookie-jar", jar, *arguments, person="alice")
            for _ in range(2):
                response = get("/legacy/krb-conn/x", "--cookie", jar, negotiate=False)
                case("a session without tickets, " + how, response, 200, user="alice@KIT.TEST")
        for cookie in ("AAAAAAAAAAAAAAAAAAAAAA", "", "x", "0" * 5000):
            response = get("/legacy/krb/x", "-H", "Cookie: front=" + cookie, negotiate=False)
            case("an unknown session of %d octets" % len(cookie), response, 401)
        garbage = {"!": 400, "": 400, "YWJj": 401, "TlRMTVNTUAABAAAAB4IIogAAAAAAAAAAAAAAAAAAAAAKAO5CAAAADw==": 401,
                   "YII" + "A" * 3001: 401, "oYG3MIG0oAMKAQChCwYJKoZIhvcS": 401}
        for token, status in garbage.items():
            response = get("/legacy/krb/x", "-H", "Authorization: Negotiate " + token, negotiate=False)
            case("a token that is none (%.8s)" % token, response, status)
        case("Basic is no sign-in", get("/", "-u", "alice:alicepw", negotiate=False), 401)

        outcomes = []

        def sign_in(person):
            outcomes.append((person, get("/legacy/krb/x", person=person).line("user")))

        threads = [threading.Thread(target=sign_in, args=(person,)) for person in ("alice", "bob", None) * 8]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wrong = [(person, user) for person, user in outcomes if user != (person and person + "@KIT.TEST")]
        results.add("example: 24 sign-ins at once", str(wrong) if wrong or len(outcomes) < 24 else None)
        wrong = [line for line in server.lines if "panicked" in line or "YII" in line]
        results.add("example: no panic, no token in the log", "".join(wrong))


def check_replays(results, realm):
    """Checks, over all groups, that mod_auth_gssapi has received no token twice."""
    with open(realm.env["KIT_ERROR_LOG"]) as log:
        replays = [line for line in log if "replay" in line]
    results.add("all: no token was sent twice", "".join(replays))


def main():
    groups = sys.argv[1:] or [*GROUPS, "gateway", "example"]
    if unknown := set(groups) - {*GROUPS, "gateway", "example"}:
        sys.exit("no such group: %s" % " ".join(unknown))
    end_on_signals()
    test, gateway, example = build()
    results, started = Results(), time.monotonic()
    try:
        with Realm() as realm:
            for group in groups:
                began = time.monotonic()
                if group in OF_USERS:
                    # The lines of the previous group, because Apache logs a request after its response.
                    time.sleep(0.5)
                accesses = Accesses(realm)
                if group == "gateway":
                    run_gateway(results, gateway, realm)
                elif group == "example":
                    run_example(results, example, realm)
                else:
                    run_group(results, group, test, realm)
                if group in OF_USERS:
                    own = accesses.having(" %s " % FRONT)
                    results.add("%s: no request is the front's own" % group, "".join(own[:3]))
                print("--- %s: %.1f s" % (group, time.monotonic() - began), flush=True)
            check_replays(results, realm)
    except Failed as error:
        results.add("realm", str(error))
    print("in %.0f s after building" % (time.monotonic() - started))
    for name in results.failed:
        print("failed: " + name)
    print("%d passed, %d failed" % (results.passed, len(results.failed)))
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
