"""run.py: real servers behind the example `gateway` come, go and die under load, and their clients notice nothing of it.

    gunicorn    three servers are restarted one after the other: drained, ended, started, put back. No request fails.
                Then one is killed, and only the requests under way on it fail.
    uvicorn     the same with WebSockets, which stay open until the drain closes those of the drained server.
    websockets  a thousand of them are spread over three servers; one server dies, and new ones avoid it.
    dnsmasq     the addresses of a name are the servers: one more, one less, sixty, IPv6 only, none (NXDOMAIN), and no
                name server.

gunicorn, uvicorn and websockets are installed into target/rolling. The variable GATEWAY is the path of another gateway,
which is built with the feature `dns`. usage: run.py [PART...]
"""

import asyncio, collections, json, os, resource, shutil, signal, socket, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
VENV = os.path.join(ROOT, "target", "rolling")
GATEWAY = os.environ.get("GATEWAY", os.path.join(ROOT, "target", "debug", "examples", "gateway"))
# How long the load of a rolling restart lasts at least, and how long anything may take.
SECONDS, PATIENCE = 20, 20
failures = 0


def check(name, passed, figure):
    global failures
    failures += not passed
    print("%s %s: %s" % ("PASS" if passed else "FAIL", name, figure), flush=True)


def install():
    python = os.path.join(VENV, "bin", "python")
    if not os.path.exists(python) or subprocess.run([python, "-c", "import gunicorn, uvicorn, websockets"]).returncode:
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        packages = ["gunicorn>=22", "uvicorn>=0.30", "websockets>=13"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)


# ---- Processes ----


def free_port(address="127.0.0.1"):
    with socket.create_server((address, 0)) as listener:
        return listener.getsockname()[1]


async def listens(port):
    until = time.monotonic() + PATIENCE
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            return writer.close()
        except OSError:
            if time.monotonic() > until:
                raise RuntimeError("nothing listens on port %d" % port)
            await asyncio.sleep(0.02)


class Server:
    """A server of one kind on a port of its own, which keeps it over restarts."""

    def __init__(self, kind):
        self.kind, self.port, self.process = kind, free_port(), None
        self.url = "http://127.0.0.1:%d" % self.port

    async def start(self):
        options = {
            "gunicorn": ["-b", "127.0.0.1:%d" % self.port, "-k", "gthread", "--threads", "16", "--log-level", "error", "apps:wsgi"],
            "uvicorn": ["--port", str(self.port), "--log-level", "error", "apps:asgi"],
        }
        self.process = subprocess.Popen([os.path.join(VENV, "bin", self.kind), *options[self.kind]], cwd=HERE,
                                        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, start_new_session=True)
        await listens(self.port)

    async def end(self, number=signal.SIGTERM):
        if self.process.poll() is not None:
            return
        # Its workers, too.
        os.killpg(self.process.pid, number)
        until = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            if time.monotonic() > until:
                raise RuntimeError("%s doesn't end" % self.kind)
            await asyncio.sleep(0.02)


class Gateway:
    """The example, with one mount."""

    def __init__(self, directory, mount):
        self.port = free_port()
        path = os.path.join(directory, "gateway.toml")
        with open(path, "w") as file:
            file.write('listen = "127.0.0.1:%d"\ntest_sign_in = true\n[[mount]]\nprefix = "/app"\n%s\n' % (self.port, mount))
        self.log = open(os.path.join(directory, "gateway.log"), "w+")
        self.process = subprocess.Popen([GATEWAY, path], stdout=self.log, stderr=self.log)

    async def status(self):
        """The state of each member by its URL."""
        return {row["backend"]: row for row in json.loads(await request(self.port, "GET", "/front/backends"))}

    async def replace(self, urls):
        await request(self.port, "POST", "/front/backends", json.dumps({"mount": "/app", "backends": urls}).encode())

    async def drain(self, server, servers):
        """Removes a server from the set, and waits until its last exchange has ended."""
        await self.replace([other.url for other in servers if other is not server])
        while server.url in await self.status():
            await asyncio.sleep(0.05)

    async def is_idle(self):
        """Waits until nothing is in flight."""
        until = time.monotonic() + PATIENCE
        while any(row["in_flight"] for row in (await self.status()).values()):
            if time.monotonic() > until:
                raise RuntimeError("in flight: %s" % await self.status())
            await asyncio.sleep(0.02)

    def end(self):
        self.process.kill()
        self.process.wait()


# ---- Clients ----


class Failed(Exception):
    pass


async def response(reader):
    """Reads a response. Returns its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, fields = head.split("\r\n", 1)
    fields = {line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip() for line in fields.splitlines() if ":" in line}
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(fields.get("content-length", 0)))
    if status.split()[1][0] != "2":
        raise Failed(status)
    return body


async def exchange(connection, method, target, body=b""):
    reader, writer = connection
    writer.write(b"%s %s HTTP/1.1\r\nHost: front.example\r\nContent-Length: %d\r\n\r\n%s"
                 % (method.encode(), target.encode(), len(body), body))
    try:
        return await asyncio.wait_for(response(reader), PATIENCE)
    except (OSError, EOFError) as error:
        raise Failed("the connection is cut: %r" % error)


async def request(port, method, target, body=b""):
    connection = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await exchange(connection, method, target, body)
    finally:
        connection[1].close()


class Load:
    """Twelve clients, every second of which sends POSTs, and one that downloads slowly."""

    def __init__(self, port, slow=False):
        self.port, self.failed, self.answered, self.by = port, [], 0, collections.Counter()
        self.stops = asyncio.Event()
        self.tasks = [asyncio.create_task(self.client(number)) for number in range(12)]
        if slow:
            self.tasks.append(asyncio.create_task(self.downloads()))

    async def client(self, number):
        connection = await asyncio.open_connection("127.0.0.1", self.port)
        while not self.stops.is_set():
            method, body = ("POST", b"order" * 100) if number % 2 else ("GET", b"")
            try:
                pid, length = (await exchange(connection, method, "/app/x", body)).split()
                if int(length) != len(body):
                    raise Failed("%s octets arrived" % length)
                self.answered += 1
                self.by[int(pid)] += 1
            except Failed as error:
                self.failed.append("%s: %s" % (method, error))
                connection = await asyncio.open_connection("127.0.0.1", self.port)
            await asyncio.sleep(0.05)

    async def downloads(self):
        while not self.stops.is_set():
            try:
                pieces = await request(self.port, "GET", "/app/slow")
                if len(pieces) != 80:
                    raise Failed("%d octets arrived" % len(pieces))
                self.answered += 1
            except (Failed, OSError, EOFError) as error:
                self.failed.append("download: %s" % error)

    async def end(self):
        self.stops.set()
        await asyncio.gather(*self.tasks)


class WebSocket:
    """A client of a WebSocket whose first message is the process's id."""

    async def open(self, port):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        self.writer.write(b"GET /app/chat HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                          b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise Failed(head.split(b"\r\n")[0].decode())
        self.pid = int(await self.receive())
        return self

    async def receive(self):
        """The next message; None at the end."""
        try:
            kind, length = await asyncio.wait_for(self.reader.readexactly(2), PATIENCE)
            payload = await self.reader.readexactly(length)
        except (OSError, EOFError):
            return None
        return None if kind == 0x88 else payload

    async def echoes(self):
        # The mask is 0.
        self.writer.write(b"\x81\x82\0\0\0\0hi")
        return await self.receive() == b"hi"

    def close(self):
        self.writer.close()


# ---- Parts ----


async def started(kind):
    servers = [Server(kind) for _ in range(3)]
    await asyncio.gather(*(server.start() for server in servers))
    return servers


def several(servers):
    return "slow_start_ms = 0\nbackends = %s" % json.dumps([server.url for server in servers])


async def killed_under_posts(name, gateway, servers):
    """The control: a server that isn't drained costs the requests under way on it, and the load sees that."""
    posts = [asyncio.create_task(request(gateway.port, "POST", "/app/x?2", b"order")) for _ in range(9)]
    await asyncio.sleep(0.5)
    under_way = (await gateway.status())[servers[0].url]["in_flight"]
    await servers[0].end(signal.SIGKILL)
    outcomes = await asyncio.gather(*posts, return_exceptions=True)
    failed = sum(isinstance(outcome, Exception) for outcome in outcomes)
    check(name + ".killed", 0 < failed == under_way, "%d of 9 POSTs failed, %d were under way on the killed one" % (
        failed, under_way))


async def gunicorn(directory):
    servers = await started("gunicorn")
    gateway = Gateway(directory, several(servers))
    try:
        await listens(gateway.port)
        began, load, restarts = time.monotonic(), Load(gateway.port, slow=True), 0
        while time.monotonic() - began < SECONDS or restarts < 3:
            server = servers[restarts % 3]
            await gateway.drain(server, servers)
            await server.end()
            await asyncio.sleep(0.2)
            await server.start()
            await gateway.replace([server.url for server in servers])
            await asyncio.sleep(1)
            restarts += 1
        await load.end()
        check("gunicorn.rolling", not load.failed and len(load.by) >= restarts,
              "%d restarts in %.0f s, %d of %d requests failed %s; %d processes answered" % (
                  restarts, time.monotonic() - began, len(load.failed), load.answered + len(load.failed), load.failed[:3],
                  len(load.by)))
        await killed_under_posts("gunicorn", gateway, servers)
    finally:
        gateway.end()
        for server in servers:
            await server.end(signal.SIGKILL)


async def uvicorn(directory):
    servers = await started("uvicorn")
    gateway = Gateway(directory, several(servers) + "\ndrain_timeout_ms = 2500")
    try:
        await listens(gateway.port)
        load, began, early, late, cut = Load(gateway.port), time.monotonic(), 0, 0, 0
        open_ones = [await WebSocket().open(gateway.port) for _ in range(12)]
        for server in servers:
            pid = server.process.pid
            theirs = [each for each in open_ones if each.pid == pid]
            others = [each for each in open_ones if each.pid != pid]
            drain = asyncio.create_task(gateway.drain(server, servers))
            await asyncio.sleep(0.7)
            # Long before the drain timeout.
            early += sum(not alive for alive in await asyncio.gather(*(each.echoes() for each in theirs)))
            await drain
            late += sum(end is not None for end in await asyncio.gather(*(each.receive() for each in theirs)))
            cut += sum(not alive for alive in await asyncio.gather(*(each.echoes() for each in others)))
            # The clients connect again, while the server is away.
            open_ones = others + [await WebSocket().open(gateway.port) for _ in theirs]
            cut += sum(each.pid == pid for each in open_ones)
            await server.end()
            await server.start()
            await gateway.replace([server.url for server in servers])
            await asyncio.sleep(1)
        await load.end()
        for each in open_ones:
            each.close()
        await gateway.is_idle()
        check("uvicorn.rolling", not load.failed, "%d of %d requests failed in %.0f s %s" % (
            len(load.failed), load.answered + len(load.failed), time.monotonic() - began, load.failed[:3]))
        check("uvicorn.websockets", not early + late + cut, "%d closed before the drain timeout, %d open after it, %d of "
              "other servers cut or at the drained one" % (early, late, cut))
        await killed_under_posts("uvicorn", gateway, servers)
    finally:
        gateway.end()
        for server in servers:
            await server.end(signal.SIGKILL)


async def websockets(directory):
    servers = await started("uvicorn")
    gateway = Gateway(directory, several(servers))
    try:
        await listens(gateway.port)
        began, all_of_them = time.monotonic(), []
        while len(all_of_them) < 1000:
            all_of_them += await asyncio.gather(*(WebSocket().open(gateway.port) for _ in range(50)))
        counts = collections.Counter(each.pid for each in all_of_them)
        held = [row["in_flight"] for row in (await gateway.status()).values()]
        spread = [counts[server.process.pid] for server in servers]
        check("websockets.spread", all(300 <= count <= 366 for count in spread) and held == spread,
              "%s in %.1f s, in flight %s" % (spread, time.monotonic() - began, held))
        dead = servers[1].process.pid
        await servers[1].end(signal.SIGKILL)
        ended = await asyncio.gather(*(each.receive() for each in all_of_them if each.pid == dead))
        rest = [each for each in all_of_them if each.pid != dead]
        new = await asyncio.gather(*(WebSocket().open(gateway.port) for _ in range(100)))
        alive = sum(await asyncio.gather(*(each.echoes() for each in rest + new)))
        held = [row["in_flight"] for row in (await gateway.status()).values()]
        check("websockets.gone", not any(ended) and all(each.pid != dead for each in new) and alive == len(rest) + 100
              and sum(held) == alive and held[1] == 0,
              "%d of the dead server ended; %d of %d others are alive; in flight %s" % (len(ended), alive, len(rest) + 100, held))
        for each in rest + new:
            each.close()
        await gateway.is_idle()
    finally:
        gateway.end()
        for server in servers:
            await server.end(signal.SIGKILL)


async def dnsmasq(directory):
    program = shutil.which("dnsmasq") or shutil.which("dnsmasq", path="/usr/sbin:/usr/local/sbin")
    if not program:
        return check("dnsmasq", False, "it isn't installed: dnsmasq-base")

    async def talk(reader, writer):
        name = writer.get_extra_info("sockname")[0].encode()
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name))
        except (EOFError, OSError):
            writer.close()

    port, dns, hosts = free_port(), free_port(), os.path.join(directory, "hosts")
    listeners = [await asyncio.start_server(talk, address, port) for address in ("0.0.0.0", "::1")]

    def write(addresses):
        with open(hosts + ".new", "w") as file:
            file.writelines("%s app.test\n" % address for address in addresses)
        os.replace(hosts + ".new", hosts)

    write(["127.0.0.2", "127.0.0.3"])
    server = subprocess.Popen([program, "--no-daemon", "--conf-file=/dev/null", "--port=%d" % dns, "--listen-address=127.0.0.1",
                               "--bind-interfaces", "--no-resolv", "--no-hosts", "--local=/test/", "--addn-hosts=" + hosts,
                               "--user=", "--group="], stderr=subprocess.DEVNULL)
    gateway = None
    try:
        await listens(dns)
        gateway = Gateway(directory, 'backend = "http://app.test:%d"\ndiscover = "dns"\ndns_server = "127.0.0.1:%d"\n'
                          'slow_start_ms = 0' % (port, dns))
        await listens(gateway.port)

        async def becomes(addresses):
            """Waits until these are the members, and all of them respond; returns how many requests failed on the way."""
            until, failed, expected = time.monotonic() + PATIENCE, 0, set(addresses)
            while time.monotonic() < until:
                try:
                    rows = await gateway.status()
                    found = {url.split(" at ")[-1].rsplit(":", 1)[0].strip("[]") for url in rows}
                    responding = {(await request(gateway.port, "GET", "/app/x")).decode() for _ in range(4 * len(rows))}
                    if found == expected and responding == expected:
                        return failed
                except Failed:
                    failed += 1
                await asyncio.sleep(0.2)
            raise RuntimeError("%s aren't the members: %s" % (addresses, sorted(rows)))

        await becomes(["127.0.0.2", "127.0.0.3"])
        many = ["127.0.1.%d" % number for number in range(1, 61)]
        for name, addresses in [("added", ["127.0.0.2", "127.0.0.3", "127.0.0.4"]), ("removed", ["127.0.0.4"]), ("many", many),
                                ("ipv6", ["::1"])]:
            write(addresses)
            server.send_signal(signal.SIGHUP)
            began = time.monotonic()
            failed = await becomes(addresses)
            check("dnsmasq." + name, failed == 0, "%d members after %.1f s, %d requests failed" % (
                len(addresses), time.monotonic() - began, failed))
        write([])
        server.send_signal(signal.SIGHUP)
        # The time to live is 0, so that the name is queried every 5 s.
        await asyncio.sleep(6)
        check("dnsmasq.nxdomain", await becomes(["::1"]) == 0, "the last set stays")
        server.kill()
        await asyncio.sleep(6)
        check("dnsmasq.gone", await becomes(["::1"]) == 0, "the last set stays")
    finally:
        server.kill()
        server.wait()
        if gateway:
            gateway.end()
        for listener in listeners:
            listener.close()


PARTS = {"gunicorn": gunicorn, "uvicorn": uvicorn, "websockets": websockets, "dnsmasq": dnsmasq}


async def part(name):
    began, before = time.monotonic(), failures
    with tempfile.TemporaryDirectory() as directory:
        try:
            await PARTS[name](directory)
        except Exception as error:
            check(name, False, "%s: %s" % (type(error).__name__, error))
        log = os.path.join(directory, "gateway.log")
        if failures > before and os.path.exists(log):
            with open(log) as lines:
                print("".join([line for line in lines if " INFO " not in line][-20:]))
    print("--- %s: %.0f s" % (name, time.monotonic() - began), flush=True)


async def main(names):
    # The servers end with it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    # Most of the time of `dnsmasq` is a wait.
    beside = [asyncio.create_task(part("dnsmasq"))] if "dnsmasq" in names else []
    for name in names:
        if name != "dnsmasq":
            await part(name)
    await asyncio.gather(*beside)


if __name__ == "__main__":
    install()
    if "GATEWAY" not in os.environ:
        subprocess.run(["cargo", "build", "--quiet", "--example", "gateway", "--features", "dns"], cwd=ROOT, check=True)
    # Each WebSocket takes two descriptors of the gateway's, and one of the clients'.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 8192) if limit > 0 else 8192, limit))
    asyncio.run(main(sys.argv[1:] or list(PARTS)))
    sys.exit(1 if failures else 0)
