//! A front for a small company's legacy applications: one axum app, configured by a TOML file, one mount per backend.
//!
//! ```sh
//! cargo run --release --example gateway -- gateway.toml
//! ```
//!
//! ```toml
//! listen = "127.0.0.1:3000"         # HTTP/1.1, and HTTP/2 with prior knowledge, on one port
//! threads = 1                       # worker threads; absent: tokio's default. 1 means the current-thread runtime
//! header_read_timeout_ms = 30000    # how long a client may take for a request head; absent: 30 s
//!
//! [[mount]]
//! prefix = "/mydir"                 # a directory; "/" takes everything
//! backend = "http://127.0.0.1:8000" # http://, https://, or unix:/run/app.sock
//! ca_file = "ca.pem"                # trust this CA, and no other, for an https backend; absent: the platform's
//! http2 = true                      # HTTP/2 to the backend: prior knowledge on http, ALPN on https; default: false
//! strip_prefix = true               # default: false
//! host = "backend"                  # or "preserve"; absent: the crate's default
//! forwarded = true                  # X-Forwarded-For/-Host/-Proto; default: true
//! remote_user = true                # Remote-User from the signed-in user; default: false
//! basic_password = "s3cret"         # Basic with the signed-in user's name and this password; absent: none
//! trace_redirects = true            # default: false
//! connect_timeout_ms = 5000         # absent: the crate's defaults, for all three
//! header_timeout_ms = 60000
//! body_idle_timeout_ms = 300000
//! ```
//!
//! `test_sign_in = true` believes whoever the client says it is. It's for test beds.

#![allow(clippy::print_stdout)]

use std::{env, fs, net::SocketAddr, process::ExitCode, time::Duration};

use axum::{
    Router,
    extract::{Extension, Request},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION, uri::Scheme},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use serde::Deserialize;
use tokio::net::TcpListener;
use tower::{Service, util::option_layer};
use tower_reverse_proxy::{
    Backend, BasicAuthLayer, ClientAddr, HostPolicy, Prefix, RemoteUser, RemoteUserLayer, ReverseProxyLayer, Tls,
    TraceRedirectLayer, Tunnels,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    listen: SocketAddr,
    threads: Option<usize>,
    #[serde(default)]
    test_sign_in: bool,
    header_read_timeout_ms: Option<u64>,
    #[serde(default, rename = "mount")]
    mounts: Vec<Mount>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mount {
    prefix: String,
    backend: Option<String>,
    #[serde(default)]
    http2: bool,
    #[serde(default)]
    strip_prefix: bool,
    host: Option<Host>,
    forwarded: Option<bool>,
    #[serde(default)]
    remote_user: bool,
    basic_password: Option<String>,
    #[serde(default)]
    trace_redirects: bool,
    connect_timeout_ms: Option<u64>,
    header_timeout_ms: Option<u64>,
    body_idle_timeout_ms: Option<u64>,
    ca_file: Option<String>,
    // Known, but not supported yet.
    backends: Option<Vec<String>>,
    negotiate: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Host {
    Backend,
    Preserve,
}

/// What is wrong, in one line.
type Wrong = String;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("gateway: {}", wrong.replace('\n', " "));
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Wrong> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [path] = &args[..] else { return Err("usage: gateway CONFIG.toml".into()) };
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let config: Config = toml::from_str(&text).map_err(|error| format!("{path}: {error}"))?;
    let mut runtime = match config.threads {
        Some(0) => return Err(format!("{path}: threads = 0: write 1 or more, or leave it out")),
        Some(1) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if let Some(threads) = config.threads {
        runtime.worker_threads(threads);
    }
    let runtime = runtime.enable_all().build().map_err(|error| error.to_string())?;
    let tunnels = Tunnels::new();
    let app = app(&config, &tunnels).map_err(|wrong| format!("{path}: {wrong}"))?;
    runtime.block_on(serve(app, &config, &tunnels))
}

/// The gateway's own routes, with every mount in front of them.
fn app(config: &Config, tunnels: &Tunnels) -> Result<Router, Wrong> {
    let mut app = Router::new()
        .route("/front/health", get(|| async { "front ok" }))
        .route("/front/whoami", get(whoami))
        .fallback(|| async { (StatusCode::NOT_FOUND, "front 404") });
    // The layer that comes last is asked first: a directory in a directory goes before the outer one.
    let mut mounts: Vec<&Mount> = config.mounts.iter().collect();
    mounts.sort_by_key(|mount| mount.prefix.len());
    if let Some(pair) = mounts.windows(2).find(|pair| pair[0].prefix == pair[1].prefix) {
        return Err(format!("mount {:?}: two mounts have this prefix: write each prefix once", pair[0].prefix));
    }
    for mount in mounts {
        app = mounted(app, mount, tunnels).map_err(|wrong| format!("mount {:?}: {wrong}", mount.prefix))?;
    }
    // Outermost: who is signed in is known before a mount is asked.
    Ok(if config.test_sign_in { app.layer(from_fn(test_sign_in)) } else { app })
}

/// Puts one mount in front of the app.
fn mounted(app: Router, mount: &Mount, tunnels: &Tunnels) -> Result<Router, Wrong> {
    for (key, used) in [("backends", mount.backends.is_some()), ("negotiate", mount.negotiate.is_some())] {
        if used {
            return Err(format!("`{key}` is not supported yet: leave it out"));
        }
    }
    let Some(backend) = &mount.backend else { return Err("no backend: write backend = \"http://…\"".into()) };
    let backend = Backend::try_from(backend).map_err(|error| error.to_string())?;
    let prefix = Prefix::try_from(&mount.prefix).map_err(|error| error.to_string())?;
    let tls = tls(mount, &backend)?;
    let mut proxy = ReverseProxyLayer::try_new(backend)
        .map_err(|error| error.to_string())?
        .prefix(prefix)
        .http2(mount.http2)
        .tunnels(tunnels.clone())
        // This server speaks plaintext only.
        .forwarded_proto(Scheme::HTTP)
        .x_forwarded(mount.forwarded.unwrap_or(true));
    if mount.strip_prefix {
        proxy = proxy.strip_prefix();
    }
    proxy = match mount.host {
        Some(Host::Backend) => proxy.host(HostPolicy::Backend),
        Some(Host::Preserve) => proxy.host(HostPolicy::Preserve),
        None => proxy,
    };
    if let Some(tls) = tls {
        proxy = proxy.tls(tls);
    }
    if let Some(ms) = mount.connect_timeout_ms {
        proxy = proxy.connect_timeout(Duration::from_millis(ms));
    }
    if let Some(ms) = mount.header_timeout_ms {
        proxy = proxy.header_timeout(Duration::from_millis(ms));
    }
    if let Some(ms) = mount.body_idle_timeout_ms {
        proxy = proxy.body_idle_timeout(Duration::from_millis(ms));
    }

    let remote_user = RemoteUserLayer::new();
    let basic = match &mount.basic_password {
        Some(password) if password.contains(char::is_control) => {
            return Err("basic_password: write one without control characters".into());
        }
        password => password.as_deref().map(BasicAuthLayer::remote_user),
    };
    let trace = option_layer(mount.trace_redirects.then(TraceRedirectLayer::new));
    Ok(match (mount.remote_user, basic) {
        (false, None) => app.layer(proxy.upstream_layer(trace)),
        (true, None) => app.layer(proxy.upstream_layer(remote_user).upstream_layer(trace)),
        (false, Some(basic)) => app.layer(proxy.upstream_layer(basic).upstream_layer(trace)),
        (true, Some(basic)) => app.layer(proxy.upstream_layer(remote_user).upstream_layer(basic).upstream_layer(trace)),
    })
}

/// Whom an `https` backend's certificate has to come from; `None` for a backend without TLS.
fn tls(mount: &Mount, backend: &Backend) -> Result<Option<Tls>, Wrong> {
    match (&mount.ca_file, *backend.scheme() == Scheme::HTTPS) {
        (None, false) => Ok(None),
        (None, true) => Tls::new().map(Some).map_err(|error| error.to_string()),
        (Some(_), false) => Err(format!("ca_file: {backend} is spoken to without TLS: write an https:// backend")),
        (Some(path), true) => {
            let pem = fs::read(path).map_err(|error| format!("ca_file {path:?}: {error}"))?;
            Tls::with_ca(pem).map(Some).map_err(|error| format!("ca_file {path:?}: {error}"))
        }
    }
}

async fn whoami(user: Option<Extension<RemoteUser>>) -> String {
    user.map(|Extension(user)| user.to_string()).unwrap_or_default()
}

/// Signs in whoever the request says: `X-Test-User`, else Basic credentials with the password `front-secret`.
async fn test_sign_in(mut request: Request, next: Next) -> Response {
    match test_user(request.headers()) {
        Ok(Some(user)) => drop(request.extensions_mut().insert(RemoteUser::from(user))),
        Ok(None) => {}
        Err(wrong) => return (StatusCode::BAD_REQUEST, wrong).into_response(),
    }
    request.headers_mut().remove("x-test-user");
    next.run(request).await
}

fn test_user(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    if let Some(value) = headers.get("x-test-user") {
        let name = percent_encoding::percent_decode(value.as_bytes()).decode_utf8();
        return name.map(|name| Some(name.into_owned())).map_err(|_| "X-Test-User isn't UTF-8");
    }
    let basic = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Basic "));
    let decoded = basic.and_then(|encoded| BASE64_STANDARD.decode(encoded).ok());
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(text.and_then(|text| text.strip_suffix(":front-secret").map(str::to_owned)))
}

/// Serves with what a front on the internet needs and `axum::serve` doesn't have: a timeout for request heads.
async fn serve(app: Router, config: &Config, tunnels: &Tunnels) -> Result<(), Wrong> {
    let listener = TcpListener::bind(config.listen).await.map_err(|error| format!("{}: {error}", config.listen))?;
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(config.header_read_timeout_ms.unwrap_or(30_000)));
    // WebSockets of HTTP/2 clients come as extended CONNECT.
    server.http2().timer(TokioTimer::new()).enable_connect_protocol();
    let open = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop_signal());
    println!("listening on http://{}", listener.local_addr().map_err(|error| error.to_string())?);

    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Mostly: no descriptors left. Some connection will end.
                    tracing::warn!("can't accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let _ = stream.set_nodelay(true);
        let app = app.clone();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(ClientAddr::from(peer));
            app.clone().call(request)
        });
        let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let connection = open.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, "connection: {error}");
            }
        });
    }

    drop(listener);
    // What is under way may end; what doesn't end is cut. A WebSocket has no end of its own: it's told.
    let draining = async {
        open.shutdown().await;
        tunnels.shut_down();
        tunnels.wait().await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), draining).await;
    Ok(())
}

async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt => return,
        }
    }
    let _ = interrupt.await;
}
