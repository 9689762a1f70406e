"""assertion.py: a backend with PyJWT verifies the assertions of the example `assertion`, through rotations under load.

PyJWT and its cryptography (OpenSSL) are independent of what signs. They are installed into target/assertion; if they can't be,
this fails. usage: assertion.py [--seconds N], the time of the load.
"""

import argparse, base64, http.client, http.server, itertools, json, os, re, subprocess, sys, threading, time, urllib.error, \
    urllib.parse, urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.path.join(ROOT, "target", "assertion")
VENV = os.path.join(TARGET, "venv")
JWKS = "/.well-known/jwks.json"

if os.path.realpath(sys.prefix) != os.path.realpath(VENV):
    python = os.path.join(VENV, "bin", "python")
    if not os.path.exists(python) or subprocess.run([python, "-c", "import jwt, cryptography"]).returncode:
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "pyjwt>=2.10", "cryptography>=42"], check=True)
    os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

REQUIRED = ["iss", "sub", "aud", "exp", "nbf", "iat"]
results = {"passed": 0, "failed": 0}


def check(name, passed, detail=""):
    results["passed" if passed else "failed"] += 1
    print("%s %s%s" % ("PASS" if passed else "FAIL", name, "" if passed else ": %s" % (detail,)), flush=True)


# ---- The two servers ----


class Backend(http.server.ThreadingHTTPServer):
    """Calls `answer` with each request's path and field lines; it returns status and text."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self):
                status, text = answer(self.path, self.headers)
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.origin = "http://127.0.0.1:%d" % self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Front:
    """The example, with these variables in its environment."""

    def __init__(self, binary, backend, **environment):
        environment = {name.upper(): str(value) for name, value in environment.items()}
        self.process = subprocess.Popen([binary, backend], env={**os.environ, **environment}, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)
        watchdog = threading.Timer(30, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if not found:
            sys.exit("the example doesn't start: " + line)
        self.origin = found[0]
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def get(self, path, method="GET", **fields):
        fields = {name.replace("_", "-"): value for name, value in fields.items()}
        request = urllib.request.Request(self.origin + path, method=method, headers=fields)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def token(self, path="/app/x?user=alice", **options):
        """The assertion that the backend of `echo` gets."""
        status, _, text = self.get(path, **options)
        assert status == 200, (status, text)
        return text


def echo(_, fields):
    """A backend that answers with the assertions that it got."""
    return 200, "\n".join(fields.get_all("x-jwt-assertion", []))


def write_key(name, key, form=serialization.PrivateFormat.PKCS8, encryption=serialization.NoEncryption()):
    path = os.path.join(TARGET, name + ".pem")
    with open(path, "wb") as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    return path


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# ---- What a verifier accepts and refuses ----


def accepted_and_refused(binary):
    backend = Backend(echo)
    for algorithm, generate in [("ES256", lambda: ec.generate_private_key(ec.SECP256R1())),
                                ("EdDSA", ed25519.Ed25519PrivateKey.generate)]:
        key = generate()
        path = write_key(algorithm, key)
        with Front(binary, backend.origin, assertion_key=path) as front, \
                Front(binary, backend.origin, lifetime=2, per_request=1) as other:
            token = front.token()
            client = jwt.PyJWKClient(front.origin + JWKS)
            verifying = client.get_signing_key_from_jwt(token)

            def decode(token, key=verifying.key, audience="app", issuer=front.origin, algorithms=[algorithm]):
                return jwt.decode(token, key, algorithms=algorithms, audience=audience, issuer=issuer,
                                  options={"require": REQUIRED})

            def refuses(name, error, token=token, **options):
                try:
                    check("%s: %s is refused" % (algorithm, name), False, decode(token, **options))
                except error as refused:
                    check("%s: %s is refused" % (algorithm, name), True, refused)

            try:
                claims = decode(token)
                check("%s: the assertion is accepted" % algorithm, claims["sub"] == "alice", claims)
            except jwt.PyJWTError as error:
                check("%s: the assertion is accepted" % algorithm, False, repr(error))
                continue
            check("%s: the published key is that of the file" % algorithm, verifying.key == key.public_key())
            check("%s: the key's id is its thumbprint" % algorithm, verifying.key_id == thumbprint(key), verifying.key_id)

            header, payload, signature = token.split(".")
            forged = encode(json.dumps({**claims, "sub": "admin"}).encode())
            refuses("another audience", jwt.InvalidAudienceError, audience="wiki")
            refuses("another issuer", jwt.InvalidIssuerError, issuer="https://evil.example")
            refuses("a tampered payload", jwt.InvalidSignatureError, token=".".join([header, forged, signature]))
            refuses("a missing signature", jwt.InvalidSignatureError, token="%s.%s." % (header, payload))
            none = encode(json.dumps({"alg": "none", "typ": "JWT", "kid": verifying.key_id}).encode())
            refuses("`alg: none`", jwt.InvalidAlgorithmError, token="%s.%s." % (none, forged))
            hmac = encode(json.dumps({"alg": "HS256", "typ": "JWT", "kid": verifying.key_id}).encode())
            refuses("`alg: HS256`", jwt.InvalidAlgorithmError, token="%s.%s.%s" % (hmac, forged, encode(b"x" * 32)))
            mine = jwt.encode({**claims, "sub": "admin"}, generate(), algorithm, headers={"kid": verifying.key_id})
            refuses("a foreign key with our key's id", jwt.InvalidSignatureError, token=mine)
            theirs = other.token()
            refuses("another front's assertion", jwt.PyJWTError, token=theirs)
            try:
                client.get_signing_key_from_jwt(theirs)
                check("%s: another front's key isn't published" % algorithm, False)
            except jwt.PyJWKClientError:
                check("%s: another front's key isn't published" % algorithm, True)
    expired(binary, backend)
    bound(binary, backend)
    owned(binary, backend)
    route(binary, backend)


def thumbprint(key):
    """RFC 7638, from PyJWT's own JWK of the key."""
    from hashlib import sha256
    from jwt.algorithms import ECAlgorithm, OKPAlgorithm

    of = OKPAlgorithm if isinstance(key, ed25519.Ed25519PrivateKey) else ECAlgorithm
    jwk = of.to_jwk(key.public_key(), as_dict=True)
    members = {name: jwk[name] for name in ["crv", "kty", "x", "y"] if name in jwk}
    return encode(sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).digest())


def expired(binary, backend):
    with Front(binary, backend.origin, lifetime=2) as front:
        token = front.token()
        key = jwt.PyJWKClient(front.origin + JWKS).get_signing_key_from_jwt(token).key
        options = dict(algorithms=["ES256"], audience="app", issuer=front.origin)
        check("an assertion is accepted during its life", jwt.decode(token, key, **options)["sub"] == "alice")
        time.sleep(3.5)
        try:
            check("an expired assertion is refused", False, jwt.decode(token, key, **options))
        except jwt.ExpiredSignatureError:
            check("an expired assertion is refused", True)
        check("another one is sent by then", jwt.decode(front.token(), key, **options)["sub"] == "alice")


def bound(binary, backend):
    with Front(binary, backend.origin, per_request=1) as front:
        key = None
        ids = set()
        for method, path in [("GET", "/app/a%20b?user=alice&x=s3cret"), ("POST", "/app/?user=alice")] * 2:
            token = front.token(path, method=method)
            key = key or jwt.PyJWKClient(front.origin + JWKS).get_signing_key_from_jwt(token).key
            claims = jwt.decode(token, key, algorithms=["ES256"], audience="app", options={"require": REQUIRED + ["jti"]})
            url = backend.origin + path.split("?")[0]
            check("a bound assertion names %s %s" % (method, url), (claims["htm"], claims["htu"]) == (method, url), claims)
            ids.add(claims["jti"])
        check("each bound assertion has an id of its own", len(ids) == 4, ids)


def owned(binary, backend):
    """The client's own field, which `urllib` doesn't send in such forms."""
    with Front(binary, backend.origin) as front:
        for query, count in [("", 0), ("?user=alice", 1)]:
            connection = http.client.HTTPConnection(front.origin[7:], timeout=30)
            connection.putrequest("GET", "/app/x" + query)
            for name in ["X-JWT-Assertion", "x-jwt-assertion", "X_JWT_Assertion", "X.JWT.Assertion"]:
                connection.putheader(name, "forged")
            connection.putheader("Connection", "X-JWT-Assertion")
            connection.endheaders()
            text = connection.getresponse().read().decode()
            check("the client's own assertion is removed%s" % (" for a user" if count else ""),
                  "forged" not in text and text.count("eyJ") == 2 * count, text)


def route(binary, backend):
    with Front(binary, backend.origin, max_age=7) as front:
        status, fields, text = front.get(JWKS)
        check("the keys are a JWK Set", (status, fields["content-type"]) == (200, "application/jwk-set+json"), fields)
        check("they may be cached for the age that is configured", fields["cache-control"] == "public, max-age=7", fields)
        members = set(json.loads(text)["keys"][0])
        check("no private half is published", members == {"kty", "crv", "x", "y", "kid", "use", "alg"}, members)
        check("HEAD has the fields of GET", front.get(JWKS, "HEAD")[1]["content-length"] == str(len(text)))
        check("a current copy is 304", front.get(JWKS, If_None_Match=fields["etag"])[0] == 304)
        status, fields, _ = front.get(JWKS, "POST")
        check("another method is 405", (status, fields["allow"]) == (405, "GET, HEAD"), status)


def bad_keys(binary):
    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PrivateFormat
    encrypted = serialization.BestAvailableEncryption(b"secret")
    for path, hint in [
        (write_key("encrypted", key, encryption=encrypted), "encrypted"),
        (write_key("encrypted-sec1", key, form.TraditionalOpenSSL, encrypted), "encrypted"),
        (write_key("sec1", key, form.TraditionalOpenSSL), "openssl pkcs8 -topk8"),
        (write_key("rsa", rsa.generate_private_key(65537, 2048)), "an RSA key"),
        (write_key("pkcs1", rsa.generate_private_key(65537, 2048), form.TraditionalOpenSSL), "an RSA key"),
        (write_key("p384", ec.generate_private_key(ec.SECP384R1())), "P-384"),
        (os.path.join(ROOT, "Cargo.toml"), "it isn't PEM"),
    ]:
        run = subprocess.run([binary], env={**os.environ, "ASSERTION_KEY": path}, capture_output=True, text=True, timeout=30)
        text = run.stdout + run.stderr
        check("the key %s is refused with what to write" % os.path.basename(path), run.returncode != 0 and hint in text, text)


# ---- Rotations under load ----

MAX_AGE, LIFETIME, ROTATE_EVERY = 2, 4, 8


class Verifier:
    """A backend with one copy of the keys, which it fetches again when its age is MAX_AGE, and for nothing else."""

    def __init__(self, origin):
        self.issuer = origin
        self.client = jwt.PyJWKClient(origin + JWKS, cache_jwk_set=True, lifespan=MAX_AGE)
        self.lock = threading.Lock()

    def verify(self, token):
        kid = jwt.get_unverified_header(token)["kid"]
        with self.lock:
            keys = [key for key in self.client.get_signing_keys() if key.key_id == kid]
        if not keys:
            raise LookupError("unknown kid " + kid)
        claims = jwt.decode(token, keys[0].key, algorithms=["ES256"], audience="app", issuer=self.issuer,
                            options={"require": REQUIRED})
        return claims, kid


def load(binary, seconds):
    failures, kids, least_left, tokens = [], {}, [LIFETIME], itertools.count()
    late = []
    verifiers = []
    turn = itertools.count()

    def answer(path, fields):
        try:
            [token] = fields.get_all("x-jwt-assertion")
            claims, kid = verifiers[next(turn) % len(verifiers)].verify(token)
            if claims["sub"] != urllib.parse.parse_qs(path.partition("?")[2])["user"][0]:
                raise ValueError("another user: %s for %s" % (claims["sub"], path))
            now = time.time()
            kids.setdefault(kid, [now, now])[1] = now
            least_left[0] = min(least_left[0], claims["exp"] - now)
            if next(tokens) % 20 == 0:
                late.append((claims["exp"] - 0.4, token))
            return 200, "ok"
        except Exception as error:
            failures.append(repr(error))
            return 401, repr(error)

    backend = Backend(answer)
    end = time.monotonic() + seconds
    with Front(binary, backend.origin, max_age=MAX_AGE, lifetime=LIFETIME, rotate_every=ROTATE_EVERY) as front:
        first = json.loads(front.get(JWKS)[2])["keys"][0]["kid"]
        verifiers += [Verifier(front.origin) for _ in range(4)]
        requests, statuses = itertools.count(), {}

        def client(number):
            connection = http.client.HTTPConnection(front.origin[7:], timeout=30)
            while time.monotonic() < end:
                count = next(requests)
                # Half of the requests are of few users, whose assertions are cached.
                user = "user %d" % (count % 7 if count % 2 else count)
                try:
                    connection.request("GET", "/app/x?" + urllib.parse.urlencode({"user": user}))
                    response = connection.getresponse()
                    response.read()
                    statuses[response.status] = statuses.get(response.status, 0) + 1
                except Exception as error:
                    failures.append("client: %r" % error)
                    return
                # The copies of the keys have to age; this is no benchmark.
                time.sleep(0.01)

        def at_the_end_of_their_lives():
            # Each sampled assertion once more, with a fresh copy of the keys, shortly before it expires.
            done = 0
            while time.monotonic() < end:
                if done == len(late):
                    time.sleep(0.05)
                    continue
                when, token = late[done]
                done += 1
                time.sleep(max(0, when - time.time()))
                try:
                    Verifier(front.origin).verify(token)
                    verified_late.append(token)
                except jwt.ExpiredSignatureError:
                    # This thread came too late.
                    pass
                except Exception as error:
                    failures.append("late: %r" % error)

        verified_late = []
        threads = [threading.Thread(target=client, args=[number]) for number in range(4)]
        threads.append(threading.Thread(target=at_the_end_of_their_lives))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = [key["kid"] for key in json.loads(front.get(JWKS)[2])["keys"]]

    print("%s responses, %d keys signed, %.1f s left at least, %d verified at the end of their lives"
          % (statuses, len(kids), least_left[0], len(verified_late)))
    check("every assertion under load is accepted", not failures and set(statuses) == {200}, failures[:3])
    check("thousands of assertions", next(tokens) > 20 * seconds, statuses)
    check("keys took turns", len(kids) >= seconds // ROTATE_EVERY - 1, len(kids))
    check("an assertion is valid for half its life at least", least_left[0] > LIFETIME / 2 - 0.5, least_left)
    check("assertions are accepted until the end of their lives", len(verified_late) > seconds, len(verified_late))
    # It signs until 2 * MAX_AGE after the rotation, and is published for LIFETIME and 60 s more.
    retired = ROTATE_EVERY + 2 * MAX_AGE + LIFETIME + 60
    if seconds > retired + 2:
        check("the first key is retired", first not in last and first in kids, last)
    check("the last key is published", list(kids)[-1] in last, last)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=82)
    arguments = parser.parse_args()
    os.makedirs(TARGET, exist_ok=True)
    subprocess.run(["cargo", "build", "--quiet", "--example", "assertion", "--features", "assertion,tls-ring"], cwd=ROOT, check=True)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    binary = os.path.join(target, "debug", "examples", "assertion")
    print("PyJWT %s" % jwt.__version__)
    accepted_and_refused(binary)
    bad_keys(binary)
    load(binary, arguments.seconds)
    print("%(passed)d passed, %(failed)d failed" % results)
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
