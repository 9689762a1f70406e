//! A front for a small company's legacy applications: one server, configured by a TOML file, one mount per backend.
//!
//! ```sh
//! cargo run --release --example gateway -- gateway.toml
//! cargo run --release --example gateway --features tls-ring -- gateway.toml    # with https backends
//! cargo run --release --example gateway --features dns -- gateway.toml         # with backends by DNS records
//! cargo run --release --example gateway --features negotiate -- gateway.toml   # with Kerberos
//! cargo run --release --example gateway --features assertion,tls-ring -- gateway.toml # with assertions, too
//! ```
//!
//! ```toml
//! listen = "127.0.0.1:3000"         # HTTP/1.1, and HTTP/2 with prior knowledge, on one port
//! threads = 1                       # worker threads; absent: tokio's default. 1 means the current-thread runtime
//! header_read_timeout_ms = 30000    # how long a client may take for a request head, first octet included; absent: 30 s
//! max_header_bytes = 65536          # limit of the request heads of HTTP/1.1 and HTTP/2; beyond: 431. Absent: 64 KiB
//! trusted_proxies = ["10.0.0.0/8", "unix"] # peers whose X-Forwarded-* are trusted; absent: none
//! forwarded_proto = "https"         # how clients reach this front, for X-Forwarded-Proto; absent: http. Also per
//!                                   # mount
//! assertion_key = "key.pem"         # signs the mounts' assertions; its public half is at /front/jwks.json, also below
//!                                   # a mount at "/". Absent: none
//!
//! [[mount]]
//! prefix = "/mydir"                 # a directory; "/" takes everything. The longest prefix wins
//! backend = "http://127.0.0.1:8000" # http://, https://, or unix:/run/app.sock
//! backends = ["http://127.0.0.1:8001", "http://127.0.0.1:8002"] # several, in place of `backend`; their keys: below
//! ca_file = "ca.pem"                # trust this CA, and no other, for an https backend; absent: the platform's
//! http2 = true                      # HTTP/2 to the backend: prior knowledge on http, ALPN on https; default: false
//! strip_prefix = true               # default: false
//! host = "backend"                  # or "preserve"; absent: the crate's default
//! forwarded = true                  # X-Forwarded-For/-Host/-Proto; default: true
//! remote_user = true                # Remote-User from the signed-in user; default: false
//! remote_groups_header = "Remote-Groups" # the user's groups, separated by commas, with remote_user; absent: none
//! assertion = true                  # X-JWT-Assertion, a signed assertion of the signed-in user; default: false
//! basic_password = "s3cret"         # Basic with the signed-in user's name and this password; absent: none
//! bearer = "token"                  # this bearer token with every request, in place of Basic; absent: none
//! negotiate = "HTTP@backend.example" # Kerberos to this service, as the gateway's own account; absent: none
//! negotiate_as_user = true          # as the signed-in user (S4U2Proxy) and not as the account; default: false
//! hide_cookies = ["id"]             # cookies of the front's own that the backend doesn't get; absent: none
//! allow_upgrades = ["tcp"]          # protocols besides websocket that clients may switch to; absent: none
//! trace_redirects = true            # default: false
//! connect_timeout_ms = 5000         # absent: the crate's defaults, for all three
//! header_timeout_ms = 60000
//! body_idle_timeout_ms = 300000
//! ```
//!
//! A mount with several backends has these keys, too:
//!
//! ```toml
//! balance = "least"                 # the fewest requests in flight; or "round-robin", "hash-user", "hash-path"
//! weights = [1, 2]                  # as many as backends, 1 or more each; absent: all 1
//! sticky = "cookie"                 # a session stays at its backend, by a cookie named `backend`; absent: none
//! sticky_key = "0123456789abcdef"   # signs that cookie: 16 bytes or more, the same in every replica
//! check = "/healthz"                # the path of a health check, at the backend itself; absent: none
//! check_interval_ms = 5000          # absent: 5 s
//! eject = false                     # keeps backends that fail; default: true, they're taken out for a while
//! retry = "unsent"                  # or "none", or "idempotent"; default: "unsent"
//! max_requests = 10                 # at each backend at a time, the others wait in one queue; absent: no limit
//! queue_timeout_ms = 1000           # how long they wait; beyond: 503. Absent: 1 s
//! drain_timeout_ms = 30000          # how long a removed backend's tunnels stay open; absent: 30 s
//! slow_start_ms = 10000             # in which a backend that comes back gets its share by and by; absent: 10 s
//! ```
//!
//! With `discover = "dns"` beside `backend = "http://name:port"`, each address of the name is a backend. With the
//! feature `dns`, it's looked up again when its time to live is over, at `dns_server = "127.0.0.1:53"` if there is one,
//! and without it, every 30 seconds by the system.
//!
//! `GET /front/backends` shows the state of each backend as JSON: put it behind the sign-in, because it has their
//! addresses. With `test_sign_in`, `POST /front/backends` with `{"mount": "/mydir", "backends": ["http://…"]}` replaces
//! the backends of a mount while requests are under way.
//!
//! An assertion is a JWT (`ES256` or `EdDSA`) whose issuer is `http://` and the value of `listen`, and whose audience
//! is the value of `backend`, or the first of `backends`. Both are taken from this file, because a request could name
//! any host. The key is made by
//! `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem`.
//!
//! The gateway has no sign-in of its own. `test_sign_in = true` takes the user's name and groups from the request
//! without a check, for test beds. Without it no user is signed in, and `remote_user`, `assertion`, `basic_password`
//! and `negotiate_as_user` send none: put a middleware that inserts a `RemoteUser` in its place, in `Front::answer`.
//!
//! `config` reads the file, `mounts` is the table of the mounts, and `serve` accepts connections and ends them. On
//! SIGTERM and Ctrl-C, tunnels and idle connections are closed at once, and requests may finish for 10 seconds.

#![allow(clippy::print_stdout)]

#[cfg_attr(not(feature = "assertion"), path = "no_assertion.rs")]
mod assertion;
mod backends;
mod config;
#[cfg_attr(not(feature = "dns"), path = "no_dns.rs")]
mod dns;
mod mounts;
#[cfg_attr(not(all(unix, feature = "negotiate")), path = "no_negotiate.rs")]
mod negotiate;
mod serve;
mod sign_in;
#[cfg_attr(not(feature = "tls-ring"), path = "no_tls.rs")]
mod tls;

use std::{env, io::IsTerminal, process::ExitCode, sync::Arc};

use axum::{
    Router,
    extract::Extension,
    http::{Request, StatusCode},
    response::Response,
    routing::get,
};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tower::ServiceExt;
use tower_reverse_proxy::{RemoteUser, Tunnels};

use self::{assertion::Assertions, config::Config, mounts::Table};

/// The text of an error, in one line.
type Wrong = String;

fn main() -> ExitCode {
    ExitCode::from(start(&env::args().skip(1).collect::<Vec<_>>()))
}

/// Runs with these arguments; returns the exit code.
pub(crate) fn start(arguments: &[String]) -> u8 {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let outcome = match arguments {
        [path] => run(path),
        _ => Err("usage: gateway CONFIG.toml".into()),
    };
    match outcome {
        Ok(()) => 0,
        Err(wrong) => {
            eprintln!("gateway: {}", wrong.replace('\n', " "));
            2
        }
    }
}

/// Serves the configured mounts until SIGTERM or Ctrl-C.
fn run(path: &str) -> Result<(), Wrong> {
    let config = Config::read(path)?;
    let mut runtime = match config.threads {
        Some(1) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if let Some(threads) = config.threads {
        runtime.worker_threads(threads);
    }
    let runtime = runtime.enable_all().build().map_err(|error| error.to_string())?;
    let outcome = runtime.block_on(async {
        let tunnels = Tunnels::new();
        // Here, because the checks of backends begin with their mounts.
        let front = Front::new(&config, &tunnels).await.map_err(|wrong| format!("{path}: {wrong}"))?;
        let listener = TcpListener::bind(config.listen).await.map_err(|error| format!("{}: {error}", config.listen))?;
        println!("listening on http://{}", listener.local_addr().map_err(|error| error.to_string())?);
        serve::serve(listener, Arc::new(front), config.limits, &tunnels, serve::stop_signal()).await;
        Ok(())
    });
    // Dropping the runtime would wait for name look-ups, which can't be cancelled.
    runtime.shutdown_background();
    outcome
}

fn own_routes() -> Router {
    Router::new()
        .route("/front/health", get(|| async { "front ok" }))
        .route("/front/whoami", get(whoami))
        .fallback(|| async { (StatusCode::NOT_FOUND, "front 404") })
}

async fn whoami(user: Option<Extension<RemoteUser>>) -> String {
    user.map(|Extension(user)| user.to_string()).unwrap_or_default()
}

/// The mounts, and the gateway's own routes behind them, of which the one of the keys is before them.
struct Front {
    own: Router,
    assertions: Assertions,
    mounts: Table<mounts::Proxy>,
    test_sign_in: bool,
}

impl Front {
    async fn new(config: &Config, tunnels: &Tunnels) -> Result<Self, Wrong> {
        let assertions = Assertions::new(config)?;
        let (mounts, sets) = mounts::table(config, tunnels, &assertions).await?;
        let own = sets.add_route(assertions.add_route(own_routes()), config.test_sign_in);
        Ok(Self { own, assertions, mounts, test_sign_in: config.test_sign_in })
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Response {
        // Before the mounts, because they send the user to their backends.
        if self.test_sign_in
            && let Err(refusal) = sign_in::sign_in(&mut request)
        {
            return refusal;
        }
        let path = request.uri().path();
        let mount = if self.assertions.owns(path) { None } else { self.mounts.find(path) };
        let Ok(response) = match mount {
            Some(proxy) => proxy(request).await,
            None => self.own.clone().oneshot(request).await,
        };
        response
    }
}
