#!/usr/bin/env python3
"""Three replicas of the example `gateway` behind HAProxy, which share nothing but their configuration.

    cargo build --example gateway && examples/replicas/run.py

It starts three members, three replicas and HAProxy on loopback, and shows that a session and a path have the same member
through each replica, also after a replica and a member have ended. Exit code 0: they have; 1: they haven't. Without
HAProxy, it prints SKIP and exits with 0. The variable GATEWAY is the path of another gateway.
"""
import collections, http.client, http.server, os, pathlib, secrets, shutil, socket, subprocess, sys, tempfile, threading, time

HERE = pathlib.Path(__file__).resolve().parent
TARGET = HERE.parent.parent / "target"
SESSIONS = 30


class Member(http.server.ThreadingHTTPServer):
    """A backend that answers with its name."""

    daemon_threads = True

    def __init__(self, name):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                body = name.encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.sockets = set()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def process_request(self, request, address):
        self.sockets.add(request)
        super().process_request(request, address)

    def handle_error(self, *_):
        """A replica that was killed resets its connections."""

    def end(self):
        self.shutdown()
        self.server_close()
        for each in self.sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def free_ports(count):
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def wait_for(port):
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


def get(port, path, cookie=None):
    """Returns the status, the member, the replica, and the cookie that was set."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
    response = connection.getresponse()
    member = response.read().decode()
    connection.close()
    made = response.getheader("Set-Cookie")
    return response.status, member, response.getheader("X-Replica"), made and made.split(";")[0]


class Account:
    """What was right, and what wasn't."""

    def __init__(self):
        self.failed = False

    def check(self, holds, what):
        print("PASS" if holds else "FAIL", what, flush=True)
        self.failed |= not holds


def main():
    haproxy = shutil.which("haproxy")
    if not haproxy:
        print("SKIP: haproxy isn't installed (apt-get install haproxy)")
        return 0
    found = [TARGET / profile / "examples" / "gateway" for profile in ("release", "debug")]
    gateway = os.environ.get("GATEWAY") or next((str(path) for path in found if path.exists()), None)
    if not gateway:
        sys.exit("no gateway: cargo build --example gateway")
    members = {name: Member(name) for name in ("a", "b", "c")}
    urls = ", ".join(f'"http://127.0.0.1:{member.server_address[1]}"' for member in members.values())
    front, *ports = free_ports(4)
    key = secrets.token_hex(32)
    processes, account = [], Account()
    with tempfile.TemporaryDirectory() as directory:
        try:
            for number, port in enumerate(ports, 1):
                config = pathlib.Path(directory, f"{number}.toml")
                text = (HERE / "gateway.toml").read_text()
                for name, value in {"port": str(port), "members": urls, "key": key}.items():
                    text = text.replace("{%s}" % name, value)
                config.write_text(text)
                processes.append(subprocess.Popen([gateway, str(config)], stdout=subprocess.DEVNULL))
            replicas = dict(enumerate(processes, 1))
            environment = os.environ | {"HAPROXY_PORT": str(front)} | {f"REPLICA_{n}": str(p) for n, p in enumerate(ports, 1)}
            processes.append(subprocess.Popen([haproxy, "-db", "-q", "-f", str(HERE / "haproxy.cfg")], env=environment))
            for port in [*ports, front]:
                wait_for(port)
            show(front, members, replicas, account)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return 1 if account.failed else 0


def show(front, members, replicas, account):
    sessions = {}
    for _ in range(SESSIONS):
        status, member, _, cookie = get(front, "/app/x")
        if status == 200 and cookie:
            sessions[cookie, len(sessions)] = member
    account.check(len(sessions) == SESSIONS, f"{len(sessions)} of {SESSIONS} sessions have a cookie")
    spread = collections.Counter(sessions.values())
    account.check(len(spread) == 3, f"they are spread over the members: {dict(spread)}")

    def follow(what, of_members):
        through, strays, new = set(), 0, 0
        for (cookie, _), member in sessions.items():
            if member not in of_members:
                continue
            for _ in range(6):
                status, at, replica, made = get(front, "/app/x", cookie)
                through.add(replica)
                strays += (status, at) != (200, member)
                new += made is not None
        account.check(strays == 0 and new == 0, f"{what}: {strays} strays, {new} new cookies, through {sorted(through)}")
        return through

    account.check(len(follow("a session has one member through each replica", members)) == 3, "all three replicas were used")
    paths = {f"/files/{number}": {get(front, f"/files/{number}")[1] for _ in range(6)} for number in range(SESSIONS)}
    used = collections.Counter(member for at in paths.values() for member in at)
    account.check(all(len(at) == 1 for at in paths.values()) and len(used) == 3, f"a path has one member: {dict(used)}")

    replicas[1].kill()
    replicas[1].wait()
    account.check(len(follow("a replica has ended", members)) == 2, "the other two replicas were used")

    members["a"].end()
    time.sleep(2)
    follow("a member has ended, and the sessions of the others stay", {"b", "c"})
    moved = collections.Counter()
    for (cookie, _), member in sessions.items():
        if member == "a":
            status, at, _, made = get(front, "/app/x", cookie)
            # The new cookie leads to the new member, through another replica, too.
            again = get(front, "/app/x", made)[1] if made else None
            moved[status == 200 and at in ("b", "c") and again == at] += 1
    account.check(moved[False] == 0 and moved[True] > 0, f"its {moved.total()} sessions have moved, each with a new cookie")


if __name__ == "__main__":
    sys.exit(main())
