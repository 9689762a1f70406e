"""realm.py run -- COMMAND...: runs a command in a Kerberos realm of its own, and exits with the command's code.

A realm is slapd, a KDC that keeps its principals there, and Apache with mod_auth_gssapi. They listen on free ports of
loopback, and keep everything in one temporary folder, which is removed at the end, also after a failure and on SIGTERM.
Realms run beside each other and need no root. The principals are in LDAP, because the KDC's own database has no constrained
delegation.

Users: alice and bob; carol, for whom the KDC permits no delegation; dave, who is locked; erin, for tests that lock a user.
A password is the user's name and "pw".
Services: HTTP/localhost is the front. It may act for users at HTTP/backend.kit.test, and not at HTTP/other.kit.test.
front-one and front-two are further accounts of the front.

The environment of the command:
KRB5_CONFIG KRB5_CLIENT_KTNAME KRB5_KTNAME KRB5CCNAME KRB5RCACHENAME   the front's account, with a cache in memory
KIT_DIR             the folder
KIT_BACKEND_PORT    Apache; APACHE_CONF describes its locations
KIT_STALE_PORT      Apache, with a short keep-alive time
KIT_WS_PORT         a port for a test's backend: Apache passes /krb-ws/ to it, with the user in X-Remote-User
KIT_KDC_PID KIT_KDC_PORT KIT_KDC_LOG KIT_ACCESS_LOG KIT_ERROR_LOG
KIT_FRONT_KEYTAB KIT_JOBS_KEYTAB
KIT_SHORT_CONFIG    a value for KRB5_CONFIG: tickets are valid for 8 s
KIT_CCACHE_ALICE KIT_CCACHE_BOB KIT_CCACHE_CAROL   ticket caches; carol's ticket isn't forwardable
KIT_KADMIN          a program that runs its arguments as a command of kadmin
"""

import ctypes, glob, gzip, os, pwd, re, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.parse

REALM = "KIT.TEST"
FRONT, BACKEND, OTHER = ("HTTP/%s" % host for host in ("localhost", "backend.kit.test", "other.kit.test"))
PEOPLE = ("alice", "bob", "carol", "dave", "erin")
JOBS = ("front-one", "front-two")
APACHE_MODULES = "/usr/lib/apache2/modules"

KRB5_CONF = """
[libdefaults]
default_realm = {realm}
# Neither names nor ports come from the network.
dns_lookup_kdc = false
dns_lookup_realm = false
dns_canonicalize_hostname = false
qualify_shortname = ""
rdns = false
# TCP at once: otherwise the library tries UDP first.
udp_preference_limit = 1
forwardable = true
{lifetime}

[realms]
{realm} = {{
  kdc = 127.0.0.1:{kdc_port}
}}

[domain_realm]
localhost = {realm}
.kit.test = {realm}
"""

KDC_CONF = """
[kdcdefaults]
kdc_listen = 127.0.0.1:{kdc_port}
kdc_tcp_listen = 127.0.0.1:{kdc_port}

[realms]
{realm} = {{
  database_module = ldap
  key_stash_file = {dir}/stash
  max_life = 10h
  supported_enctypes = aes256-cts-hmac-sha1-96:normal
}}

[dbmodules]
ldap = {{
  db_library = kldap
  ldap_kerberos_container_dn = cn=krb,dc=kit,dc=test
  ldap_kdc_dn = cn=admin,dc=kit,dc=test
  ldap_kadmind_dn = cn=admin,dc=kit,dc=test
  ldap_service_password_file = {dir}/service.pw
  ldap_servers = {ldapi}
}}

[logging]
kdc = FILE:{dir}/kdc.log
admin_server = FILE:{dir}/kadmin.log
default = FILE:{dir}/krb5.log
"""

SLAPD_CONF = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include {dir}/kerberos.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {dir}/slapd.pid
database mdb
directory {dir}/ldap
suffix dc=kit,dc=test
rootdn cn=admin,dc=kit,dc=test
rootpw adminpw
dbnosync
index objectClass,krbPrincipalName eq
"""

ROOT_LDIF = """
dn: dc=kit,dc=test
objectClass: dcObject
objectClass: organization
o: kit
dc: kit
"""

DELEGATION_LDIF = """
dn: krbPrincipalName=%(front)s@%(realm)s,cn=%(realm)s,cn=krb,dc=kit,dc=test
changetype: modify
add: krbAllowedToDelegateTo
krbAllowedToDelegateTo: %(backend)s@%(realm)s
""" % {"front": FRONT, "backend": BACKEND, "realm": REALM}

# One process, so that all threads share the state of a connection.
APACHE_CONF = """
{user}
{modules}
ServerRoot {dir}
ServerName backend.kit.test
DefaultRuntimeDir {dir}
PidFile {dir}/apache.pid
Listen 127.0.0.1:{backend_port}
Listen 127.0.0.1:{stale_port}
StartServers 1
ServerLimit 1
ThreadsPerChild 64
MaxRequestWorkers 64
KeepAliveTimeout 30
MaxKeepAliveRequests 0
LimitRequestFieldSize 16380
ErrorLog {dir}/error.log
LogLevel warn auth_gssapi:info
# The connection's other end, the user, the status.
LogFormat "%p %{{c}}a %{{remote}}p %u %>s %m %U" short
CustomLog {dir}/access.log short
DocumentRoot {dir}/www
LuaScope thread

# The script responds to every path, so that each test uses a path of its own.
<Location />
  SetHandler lua-script
  Require all granted
  AuthMerging Off
</Location>
RequestHeader set X-Kit-Connection "expr=%{{REMOTE_PORT}}"
AliasMatch ^/(?!krb-ws/) {dir}/www/whoami.lua

<LocationMatch ^(/legacy)?/krb/>
  Ticket backend HTTP@backend.kit.test valid-user
  GssapiDelegCcacheDir {dir}/ccaches
</LocationMatch>
# The acceptor's name is derived from Host.
<LocationMatch ^(/legacy)?/krb-host/>
  Ticket backend {{HOSTNAME}} valid-user
</LocationMatch>
# The first ticket signs the connection in: later requests need none, and have the same user.
<LocationMatch ^(/legacy)?/krb-conn/>
  Ticket backend HTTP@backend.kit.test valid-user
  GssapiConnectionBound On
  GssapiSignalPersistentAuth On
</LocationMatch>
# Responses without a proof of the backend's identity.
<LocationMatch ^(/legacy)?/krb-mute/>
  Ticket backend HTTP@backend.kit.test valid-user
  Header always unset WWW-Authenticate
</LocationMatch>
# 401 for every user except alice.
<LocationMatch ^(/legacy)?/krb-alice/>
  Ticket backend HTTP@backend.kit.test user alice@{realm}
</LocationMatch>
<LocationMatch ^(/legacy)?/krb-other/>
  Ticket other HTTP@other.kit.test valid-user
</LocationMatch>
# 404 for users who are signed in.
<LocationMatch ^(/legacy)?/krb-404/>
  Ticket backend HTTP@backend.kit.test valid-user
</LocationMatch>
<Location /krb-ws/>
  Ticket backend HTTP@backend.kit.test valid-user
  SetHandler none
  RequestHeader set X-Remote-User "expr=%{{REMOTE_USER}}"
  ProxyPass http://127.0.0.1:{ws_port}/ upgrade=websocket retry=0
</Location>

<VirtualHost 127.0.0.1:{backend_port}>
</VirtualHost>
<VirtualHost 127.0.0.1:{stale_port}>
  KeepAliveTimeout 20ms
  MaxKeepAliveRequests 5
</VirtualHost>
"""

# Replaces each line `Ticket KEYTAB ACCEPTOR REQUIREMENT` of it.
TICKET = r"""
  AuthType GSSAPI
  AuthName kit
  GssapiCredStore keytab:{dir}/\1.keytab
  GssapiAcceptorName \2
  Require \3
"""

MODULES = ("mpm_event authn_core authz_core authz_host authz_user auth_gssapi alias headers setenvif lua proxy "
           "proxy_http proxy_wstunnel")

# Responds with the user and the connection of the request, one per line. Of Authorization, it shows the scheme only.
WHOAMI = """
function handle(r)
  r.content_type = "text/plain"
  if r.uri:match("^/krb%-404/") then r.status = 404 end
  if r.uri:match("/sets%-a%-cookie$") then r.headers_out["Set-Cookie"] = "app=1; Path=/" end
  local authorization = r.headers_in["Authorization"] or ""
  r:puts("user=", r.user or "", "\\n")
  r:puts("connection=", r.headers_in["X-Kit-Connection"] or "", "\\n")
  r:puts("method=", r.method, "\\n")
  r:puts("scheme=", authorization:match("^%S*"), "\\n")
  r:puts("host=", r.headers_in["Host"] or "", "\\n")
  local body = r.method ~= "GET" and r:requestbody() or ""
  r:puts("body=", #body, "\\n")
  return apache2.OK
end
"""


class Failed(Exception):
    pass


def free_ports(count):
    """Returns free ports. If another program takes one before the server does, `Realm` tries again with others."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def dies_with_parent():
    """In a child: it gets SIGTERM when this process ends, also if this process is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Realm:
    """`with Realm() as realm:` starts a realm; `realm.env` is the environment that the head describes."""

    def __enter__(self):
        for attempt in range(3):
            self.servers = []
            # Not in TMPDIR, which Apache's workers may have no access to, and whose path may be too long for a socket's.
            self.dir = tempfile.mkdtemp(prefix="kit-realm-", dir="/tmp")
            try:
                self.start()
                return self
            except BaseException as error:
                reason = "%s\n%s" % (error, self.last_words())
                self.stop()
                if not isinstance(error, Failed) or attempt == 2:
                    raise Failed("the realm doesn't start: " + reason) if isinstance(error, Exception) else error

    def __exit__(self, *_):
        self.stop()

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def write(self, name, text, mode=0o644):
        with open(self.path(name), "w") as file:
            file.write(text)
        os.chmod(self.path(name), mode)

    def start(self):
        # Apache's workers aren't root, and read their keytabs in it.
        os.chmod(self.dir, 0o711)
        self.root = os.getuid() == 0
        self.www = pwd.getpwnam("www-data") if self.root else None
        self.kdc_port, self.backend_port, self.stale_port, self.ws_port = free_ports(4)
        self.ldapi = "ldapi://" + urllib.parse.quote(self.path("ldapi"), safe="")
        values = {**vars(self), "realm": REALM}
        self.write("krb5.conf", KRB5_CONF.format(lifetime="", **values))
        self.write("short.conf", KRB5_CONF.format(lifetime="ticket_lifetime = 8s", **values))
        self.write("kdc.conf", KDC_CONF.format(**values))
        self.base = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("KRB5", "KIT_", "LDAP"))},
            "KRB5_CONFIG": self.path("krb5.conf"), "KRB5RCACHENAME": "file2:" + self.path("rcache"),
            "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin",
        }
        self.admin = {**self.base, "KRB5_KDC_PROFILE": self.path("kdc.conf")}
        self.start_slapd(values)
        self.create_database()
        self.start_kdc()
        self.start_apache(values)
        for person in ("alice", "bob", "carol"):
            self.call("kinit", "-c", self.path(person + ".ccache"), "-F" if person == "carol" else "-f", person,
                      input=person + "pw\n", env=self.base)
        self.env = self.environment()

    def start_slapd(self, values):
        schema = "/usr/share/doc/krb5-kdc-ldap/kerberos.schema.gz"
        if not os.path.exists(schema):
            raise Failed("%s is missing: dpkg is set to install no documentation" % schema)
        with gzip.open(schema, "rt") as text:
            self.write("kerberos.schema", text.read())
        os.mkdir(self.path("ldap"), 0o700)
        self.write("slapd.conf", SLAPD_CONF.format(**values), 0o600)
        # A copy, because Ubuntu's AppArmor profile for the original path permits no other folders.
        shutil.copy("/usr/sbin/slapd", self.path("slapd"))
        self.spawn("slapd", self.path("slapd"), "-f", self.path("slapd.conf"), "-h", self.ldapi, "-d", "0", env=self.base)
        self.wait("slapd", lambda: connects(self.path("ldapi")))
        self.call(*self.ldap("ldapadd"), input=ROOT_LDIF, env=self.base)

    def ldap(self, program):
        return program, "-x", "-H", self.ldapi, "-D", "cn=admin,dc=kit,dc=test", "-w", "adminpw"

    def create_database(self):
        util = ("kdb5_ldap_util", "-D", "cn=admin,dc=kit,dc=test", "-w", "adminpw")
        self.call(*util, "stashsrvpw", "-f", self.path("service.pw"), "cn=admin,dc=kit,dc=test", input="adminpw\nadminpw\n",
                  env=self.admin)
        self.call(*util, "-H", self.ldapi, "create", "-r", REALM, "-s", "-P", "master", "-subtrees", "dc=kit,dc=test",
                  env=self.admin)
        services = (FRONT, BACKEND, OTHER)
        # -norandkey, because a new key would make earlier keytabs and tickets invalid.
        self.kadmin(
            *("addprinc -pw %spw %s" % (person, person) for person in PEOPLE),
            *("addprinc -randkey " + service for service in services + JOBS),
            "modprinc +ok_to_auth_as_delegate " + FRONT,
            "modprinc -allow_forwardable carol",
            "modprinc -allow_tix dave",
            "ktadd -norandkey -k %s %s" % (self.path("front.keytab"), FRONT),
            "ktadd -norandkey -k %s %s" % (self.path("jobs.keytab"), " ".join(JOBS)),
            "ktadd -norandkey -k %s %s" % (self.path("backend.keytab"), BACKEND),
            "ktadd -norandkey -k %s %s" % (self.path("other.keytab"), OTHER),
        )
        self.call(*self.ldap("ldapmodify"), input=DELEGATION_LDIF, env=self.base)
        self.write("kadmin", "#!/bin/sh\nKRB5_CONFIG=%s KRB5_KDC_PROFILE=%s exec kadmin.local -r %s \"$@\"\n" % (
            self.admin["KRB5_CONFIG"], self.admin["KRB5_KDC_PROFILE"], REALM), 0o755)

    def kadmin(self, *commands):
        """Runs all commands in one process. Its code is 0 also after an error, so the messages are checked."""
        out = self.call("kadmin.local", "-r", REALM, input="\n".join(commands) + "\n", env=self.admin)
        wrong = [line for line in out.splitlines() if " while " in line]
        if wrong:
            raise Failed("kadmin.local: " + "; ".join(wrong))

    def start_kdc(self):
        self.kdc = self.spawn("krb5kdc", "krb5kdc", "-n", "-r", REALM, env=self.admin)
        self.wait("krb5kdc", lambda: connects(("127.0.0.1", self.kdc_port)))

    def start_apache(self, values):
        for name in ("www", "ccaches"):
            os.mkdir(self.path(name))
        self.write("www/whoami.lua", WHOAMI)
        if self.root:
            for name in ("backend.keytab", "other.keytab", "ccaches"):
                os.chown(self.path(name), self.www.pw_uid, self.www.pw_gid)
        modules = "\n".join("LoadModule %s_module %s/mod_%s.so" % (name, APACHE_MODULES, name) for name in MODULES.split())
        user = "User www-data\nGroup www-data" if self.root else ""
        text = APACHE_CONF.format(user=user, modules=modules, **values)
        self.write("apache.conf", re.sub(r"(?m)^  Ticket (\S+) (\S+) (.+)$", TICKET.strip("\n").format(**values), text))
        self.apache = self.spawn("apache2", "apache2", "-d", self.dir, "-f", self.path("apache.conf"), "-DFOREGROUND",
                                 env={**self.base, "KRB5RCACHENAME": "file2:" + self.path("ccaches", "rcache")})
        self.wait("apache2", lambda: connects(("127.0.0.1", self.backend_port)))

    def environment(self):
        keytab = "FILE:" + self.path("front.keytab")
        env = {
            **self.base,
            "KRB5_CLIENT_KTNAME": keytab, "KRB5_KTNAME": keytab, "KRB5CCNAME": "MEMORY:front",
            "KIT_DIR": self.dir, "KIT_KADMIN": self.path("kadmin"), "KIT_KDC_PID": str(self.kdc.pid),
            "KIT_KDC_LOG": self.path("kdc.log"), "KIT_ACCESS_LOG": self.path("access.log"),
            "KIT_ERROR_LOG": self.path("error.log"), "KIT_FRONT_KEYTAB": keytab,
            "KIT_JOBS_KEYTAB": "FILE:" + self.path("jobs.keytab"), "KIT_SHORT_CONFIG": self.path("short.conf"),
        }
        for name in ("kdc", "backend", "stale", "ws"):
            env["KIT_%s_PORT" % name.upper()] = str(getattr(self, name + "_port"))
        for ccache in glob.glob(self.path("*.ccache")):
            person = os.path.basename(ccache).removesuffix(".ccache")
            env["KIT_CCACHE_" + person.upper()] = "FILE:" + ccache
        return env

    def call(self, *command, env, input=None):
        done = subprocess.run(command, env=env, input=input, stdin=None if input else subprocess.DEVNULL, timeout=30,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Failed("%s: %s" % (" ".join(command), done.stdout.strip()))
        return done.stdout

    def spawn(self, name, *command, env):
        """Starts a server in the foreground: the id of a child isn't reused before the child has been waited for."""
        with open(self.path(name + ".out"), "w") as out:
            server = subprocess.Popen(command, env=env, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=out,
                                      stderr=subprocess.STDOUT, preexec_fn=dies_with_parent, start_new_session=True)
        self.servers.append((name, server))
        return server

    def wait(self, name, is_there):
        server = dict(self.servers)[name]
        end = time.monotonic() + 15
        while not is_there():
            if server.poll() is not None:
                raise Failed("%s ended with %d" % (name, server.returncode))
            if time.monotonic() > end:
                raise Failed("%s doesn't answer" % name)
            time.sleep(0.01)

    def last_words(self):
        words = []
        for name in ("slapd.out", "krb5kdc.out", "kdc.log", "apache2.out", "error.log"):
            if os.path.exists(self.path(name)):
                with open(self.path(name), errors="replace") as log:
                    words += ["%s: %s" % (name, line.rstrip()) for line in log.readlines()[-5:]]
        return "\n".join(words)

    def stop(self):
        for _, server in reversed(self.servers):
            if server.poll() is None:
                # A test may have left it stopped.
                server.send_signal(signal.SIGCONT)
                server.terminate()
                try:
                    server.wait(5)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()
        self.servers = []
        shutil.rmtree(self.dir, ignore_errors=True)


def connects(address):
    kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(kind) as attempt:
        return attempt.connect_ex(address) == 0


def end_on_signals():
    """SIGTERM and SIGHUP raise, as Ctrl-C does, so that every `with` is left."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def main():
    if sys.argv[1:3] != ["run", "--"] or len(sys.argv) < 4:
        sys.exit("usage: realm.py run -- COMMAND...")
    end_on_signals()
    try:
        with Realm() as realm:
            return subprocess.run(sys.argv[3:], env=realm.env, preexec_fn=dies_with_parent).returncode
    except Failed as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
