//! A target per request: which backend gets a request, and how many pools there are.

use std::{
    collections::HashMap,
    future::pending,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Extensions, StatusCode, Uri},
    middleware::{Next, from_fn},
    response::Response,
    routing::any,
};
use futures_util::future::join_all;
use http_body_util::BodyExt;
use tokio::{
    io::{DuplexStream, duplex},
    net::TcpListener,
    runtime::Builder,
    sync::{Notify, Semaphore},
    time::{Instant, advance, sleep, timeout},
};
use tower::{Service, ServiceExt, layer::layer_fn, service_fn};
use tower_reverse_proxy::{
    Backend, Backends, BoxUpstream, Client, ClientBuilder, Error, ErrorKind, HostPolicy, RetryPolicy, ReverseProxy,
    ReverseProxyLayer, Target, Targets,
    balance::{Check, Member, MemberStatus},
    client::is_public,
    targets::TargetService,
};

use crate::support::{
    PATIENCE, Pipe, Wire, ask, client, front, front_on, get, mirror, others_run, refusing, tasks_left, within,
};

/// Backends in memory, one for each host name.
#[derive(Clone)]
struct Tenants {
    /// The origin of each connection that was made.
    connects: Arc<Mutex<Vec<String>>>,
    open: Arc<AtomicUsize>,
    /// How many requests came over a connection of another tenant.
    crossed: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    /// The second halves of responses to `/held`.
    halves: Arc<Semaphore>,
}

impl Tenants {
    fn new() -> Self {
        let count = Arc::<AtomicUsize>::default;
        Self {
            connects: Arc::default(),
            open: count(),
            crossed: count(),
            requests: count(),
            halves: Arc::new(Semaphore::new(0)),
        }
    }

    fn targets(&self) -> Targets {
        let this = self.clone();
        Targets::new().client(move |client| this.client(client))
    }

    fn client(&self, client: ClientBuilder) -> ClientBuilder {
        let this = self.clone();
        client.connector(service_fn(move |origin: Uri| {
            let (ours, theirs) = duplex(64 * 1024);
            this.connects.lock().unwrap().push(origin.to_string());
            tokio::spawn(this.clone().talk(origin, Wire::new(theirs)));
            async { Ok::<_, io::Error>(Pipe::new(ours)) }
        }))
    }

    async fn talk(self, origin: Uri, mut wire: Wire<DuplexStream>) {
        self.open.fetch_add(1, Ordering::SeqCst);
        let (host, authority) = (origin.host().unwrap(), origin.authority().unwrap());
        while let Some(request) = wire.message().await {
            self.requests.fetch_add(1, Ordering::SeqCst);
            if request.field("x-tenant").is_some_and(|tenant| host != format!("{tenant}.example")) {
                self.crossed.fetch_add(1, Ordering::SeqCst);
            }
            match request.start_line().split(' ').nth(1).unwrap() {
                "/held" => {
                    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab").await;
                    self.halves.acquire().await.unwrap().forget();
                    wire.send(b"cd").await;
                }
                "/upgrade" => {
                    let switch =
                        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
                    wire.send(switch).await;
                    wire.closed().await;
                    break;
                }
                "/moved" => {
                    let moved = format!(
                        "HTTP/1.1 302 Found\r\nLocation: http://{authority}/there\r\n\
                         Content-Location: http://t9.example/\r\nSet-Cookie: a=1; Domain={host}; Path=/\r\nContent-Length: 0\r\n\r\n"
                    );
                    wire.send(moved.as_bytes()).await;
                }
                _ => {
                    let body = format!("{authority} gets {}", request.head);
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    wire.send((head + &body).as_bytes()).await;
                }
            }
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn connects(&self) -> Vec<String> {
        self.connects.lock().unwrap().clone()
    }
}

fn tenant(number: usize) -> Backend {
    format!("http://t{number}.example").parse().unwrap()
}

fn request(target: &str) -> Request {
    Request::get(target).header("host", "front.example").body(Body::empty()).unwrap()
}

fn of_tenant(number: usize) -> Request {
    let request = Request::get("/x").header("host", "front.example").header("x-tenant", format!("t{number}"));
    request.body(Body::empty()).unwrap()
}

async fn text(response: Response) -> String {
    let body = within(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// The kind of a failure, and its first cause.
fn failure(extensions: &Extensions) -> (ErrorKind, String) {
    let error = extensions.get::<Error>().expect("a failure");
    (error.kind(), std::error::Error::source(error).map(ToString::to_string).unwrap_or_default())
}

/// A front whose middleware gives each request this target.
fn choosing(target: impl Into<Target>) -> impl Fn(Router) -> Router {
    let target = target.into();
    move |app| {
        let target = target.clone();
        app.layer(from_fn(move |mut request: Request, next: Next| {
            request.extensions_mut().insert(target.clone());
            next.run(request)
        }))
    }
}

// ---- Which backend gets a request ----

#[tokio::test]
async fn a_middleware_chooses_the_backend_of_a_request() {
    let [a, b]: [Backend; 2] = [mirror().await, mirror().await].map(|url| url.parse().unwrap());
    let hosts = [a.clone(), b.clone()].map(|backend| backend.authority().to_string());
    let choose = move |mut request: Request, next: Next| {
        let (a, b) = (a.clone(), b.clone());
        async move {
            // As a look-up in a database, it waits.
            sleep(Duration::from_millis(1)).await;
            let backend = if request.uri().path().starts_with("/app/a") { a } else { b };
            request.extensions_mut().insert(Target::to(backend));
            next.run(request).await
        }
    };
    let targets = Targets::new().host(HostPolicy::Backend);
    let app = Router::new().layer(ReverseProxyLayer::to(targets.clone()).prefix("/app")).layer(from_fn(choose));
    let addr = front(app).await;
    for _ in 0..3 {
        for (path, host) in [("/app/a?x", &hosts[0]), ("/app/b?x", &hosts[1])] {
            let mirrored = get(addr, path, "").await.mirrored();
            assert_eq!(mirrored.start_line(), format!("GET {path} HTTP/1.1"));
            assert_eq!(mirrored.field("host"), Some(&**host));
        }
    }
    assert_eq!(targets.pools(), 2);
}

#[derive(Clone)]
struct App {
    proxy: ReverseProxy<TargetService>,
}

#[tokio::test]
async fn a_handler_forwards_to_a_backend() {
    async fn handler(State(app): State<App>, request: Request) -> Result<Response, StatusCode> {
        let tenants: Backend = "http://example".parse().unwrap();
        let tenant = request.uri().path().trim_start_matches("/t/").to_owned();
        let backend = tenants.subdomain(&tenant).map_err(|_| StatusCode::NOT_FOUND)?;
        Ok(app.proxy.forward_to(backend, request).await)
    }

    let tenants = Tenants::new();
    let proxy = ReverseProxyLayer::to(tenants.targets()).into_service();
    let addr = front(Router::new().route("/t/{*tenant}", any(handler)).with_state(App { proxy })).await;
    let upload = "POST /t/t1 HTTP/1.1\r\nHost: front.example\r\nContent-Length: 2\r\n\r\nhi";
    let answer = ask(addr, upload).await;
    assert!(answer.text().starts_with("t1.example gets POST /t/t1 HTTP/1.1\r\n"), "{answer:?}");
    for path in ["/t/a.b", "/t/a@b", "/t/a:80", "/t/a%2eb", "/t/-a"] {
        assert_eq!(get(addr, path, "").await.status(), 404, "{path}");
    }
    assert_eq!(tenants.connects(), ["http://t1.example/"]);
}

#[tokio::test]
async fn a_request_without_a_target_is_refused_and_nothing_is_connected_to() {
    let tenants = Tenants::new();
    let inner = Router::new().fallback(async || "inner");
    let layer = ReverseProxyLayer::to(tenants.targets()).prefix("/app");
    let addr = front(inner.clone().layer(layer.clone())).await;
    let answer = get(addr, "/app/x", "").await;
    assert_eq!((answer.status(), &*answer.text()), (500, "Internal Server Error"));
    assert_eq!(get(addr, "/elsewhere", "").await.text(), "inner");

    let response = inner.layer(layer).oneshot(request("/app/x")).await.unwrap();
    let (kind, cause) = failure(response.extensions());
    assert_eq!(kind, ErrorKind::NoTarget);
    assert!(cause.contains("`tower_reverse_proxy::Target`"), "{cause}");
    assert!(!response.extensions().get::<Error>().unwrap().is_client());
    assert_eq!(tenants.connects(), [""; 0]);
}

#[tokio::test]
async fn a_client_cannot_choose_the_target() {
    let tenants = Tenants::new();
    let app = Router::new().layer(ReverseProxyLayer::to(tenants.targets()));
    let (unchosen, chosen) = (front(app.clone()).await, front(choosing(tenant(1))(app)).await);
    let requests = [
        "GET http://t2.example/x HTTP/1.1\r\nHost: t2.example\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: t2.example\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: t2.example:80\r\nX-Forwarded-Host: t2.example\r\nForwarded: host=t2.example\r\n\r\n",
        "GET /http://t2.example/ HTTP/1.1\r\nHost: front.example\r\nTarget: http://t2.example\r\n\
         X-Original-URL: http://t2.example/\r\nDestination: http://t2.example/\r\n\r\n",
        "GET //t2.example/x HTTP/1.1\r\nHost: front.example\r\n\r\n",
        "GET /x@t2.example HTTP/1.1\r\nHost: front.example\r\nTe: t2.example\r\n\r\n",
        "GET /x?url=http://t2.example/ HTTP/1.1\r\nHost: front.example\r\nReferer: http://t2.example/\r\n\r\n",
    ];
    for request in requests {
        assert_eq!(ask(unchosen, request).await.status(), 500, "{request}");
        let answer = ask(chosen, request).await;
        assert!(answer.text().starts_with("t1.example gets "), "{request}: {answer:?}");
    }
    assert!(tenants.connects().iter().all(|origin| origin == "http://t1.example/"), "{:?}", tenants.connects());
}

#[tokio::test]
async fn a_request_that_passes_goes_to_the_wrapped_service() {
    let tenants = Tenants::new();
    let layer = ReverseProxyLayer::to(tenants.targets()).prefix("/app");
    let app = Router::new().route("/app/x", any(async |body: String| format!("inner got {body}"))).layer(layer.clone());
    let addr = front(choosing(Target::pass())(app)).await;
    let upload = "POST /app/x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(ask(addr, upload).await.text(), "inner got hi");

    // A service has nothing inside.
    let mut passed = request("/app/x");
    passed.extensions_mut().insert(Target::pass());
    let response = layer.into_service().oneshot(passed).await.unwrap();
    let (kind, cause) = failure(response.extensions());
    assert_eq!(kind, ErrorKind::NoTarget);
    assert!(cause.contains("Target::pass()"), "{cause}");
    assert_eq!(tenants.connects(), [""; 0]);
}

#[tokio::test]
async fn a_function_selects_the_target_of_requests_that_have_none() {
    let tenants = Tenants::new();
    let by_host =
        ReverseProxyLayer::to(tenants.targets()).select(|head| match head.headers.get("host")?.to_str().ok()? {
            "one.example" => Some(Target::to(tenant(1))),
            "two.example" => Some(Target::to(tenant(2))),
            "own.example" => Some(Target::pass()),
            _ => None,
        });
    let inner = Router::new().fallback(async || "inner");
    let app = || inner.clone().layer(by_host.clone());
    let (selecting, chosen) = (front(app()).await, front(choosing(tenant(3))(app())).await);
    let handed_on = front(choosing(Target::pass())(app())).await;
    // The outer proxy's choice isn't the inner one's.
    let elsewhere = ReverseProxyLayer::to(tenants.targets()).select(|_| Some(Target::pass()));
    let nested = front(app().layer(elsewhere)).await;
    let get = |addr: SocketAddr, host: &'static str| async move {
        let answer = ask(addr, format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        (answer.status(), answer.text().split(' ').next().unwrap().to_owned())
    };
    for (host, status, answer) in [
        ("one.example", 200, "t1.example"),
        ("two.example", 200, "t2.example"),
        ("own.example", 200, "inner"),
        ("other.example", 500, "Internal"),
    ] {
        assert_eq!(get(selecting, host).await, (status, answer.to_owned()), "{host}");
        assert_eq!(get(nested, host).await, (status, answer.to_owned()), "{host}");
        assert_eq!(get(chosen, host).await, (200, "t3.example".to_owned()), "{host}");
        assert_eq!(get(handed_on, host).await, (200, "inner".to_owned()), "{host}");
    }
}

#[tokio::test]
async fn host_references_and_cookies_follow_the_target() {
    let tenants = Tenants::new();
    for (targets, host) in [
        (tenants.targets(), "front.example"),
        (tenants.targets().host(HostPolicy::Backend), "t1.example:8000"),
        (tenants.targets().host("fixed.example"), "fixed.example"),
    ] {
        let backend: Backend = "http://T1.example:8000".parse().unwrap();
        let addr = front(choosing(backend)(Router::new().layer(ReverseProxyLayer::to(targets)))).await;
        let answer = get(addr, "/x", "").await.text();
        assert!(answer.to_lowercase().contains(&format!("\r\nhost: {host}\r\n")), "{answer}");
        let moved = get(addr, "/moved", "").await;
        assert_eq!(moved.field("location"), Some("/there"), "{host}");
        // Another tenant's origin stays.
        assert_eq!(moved.field("content-location"), Some("http://t9.example/"));
        assert_eq!(moved.field("set-cookie"), Some("a=1; Path=/"));
    }
    let backend: Backend = "http://t1.example:8000".parse().unwrap();
    let layer = ReverseProxyLayer::to(tenants.targets().map_location(false));
    let addr = front(choosing(backend)(Router::new().layer(layer))).await;
    assert_eq!(get(addr, "/moved", "").await.field("location"), Some("http://t1.example:8000/there"));
}

// ---- What may be a target ----

#[tokio::test]
async fn a_backend_that_is_not_allowed_is_no_target() {
    let tenants = Tenants::new();
    let allows = |backend: &Backend| backend.authority().host() != "t2.example";
    let proxy = ReverseProxyLayer::to(tenants.targets().allow(allows)).into_service();
    assert!(proxy.forward_to(tenant(1), request("/x")).await.status().is_success());
    for (backend, shown) in [("http://t2.example", "http://t2.example"), ("http://T2.EXAMPLE:80", "http://t2.example")]
    {
        let response = proxy.forward_to(backend.parse::<Backend>().unwrap(), request("/x")).await;
        let (kind, cause) = failure(response.extensions());
        assert_eq!((response.status().as_u16(), kind), (500, ErrorKind::NoTarget), "{backend}");
        assert!(cause.contains(&format!("{shown} isn't one")), "{cause}");
    }
    assert_eq!(tenants.connects(), ["http://t1.example/"]);
}

#[tokio::test]
#[cfg(unix)]
async fn a_unix_socket_is_a_target_only_if_it_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let backend: Backend = format!("unix:{}", path.display()).parse().unwrap();
    let refusing = [Targets::new(), Targets::new().allow(|_| true), Targets::new().allow_address(|_| true)];
    for targets in refusing {
        let response = ReverseProxyLayer::to(targets).into_service().forward_to(&backend, request("/x")).await;
        let (kind, cause) = failure(response.extensions());
        assert_eq!(kind, ErrorKind::NoTarget);
        assert!(cause.contains("Unix socket"), "{cause}");
        assert!(timeout(Duration::ZERO, listener.accept()).await.is_err(), "it has connected");
    }
    let served = tokio::spawn(async move { axum::serve(listener, Router::new().fallback(async || "socket")).await });
    let proxy = ReverseProxyLayer::to(Targets::new().allow_unix_sockets(true).allow_address(is_public)).into_service();
    assert_eq!(text(proxy.forward_to(&backend, request("/x")).await).await, "socket");
    served.abort();
}

#[tokio::test]
async fn an_address_that_is_not_allowed_is_not_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let proxy = ReverseProxyLayer::to(Targets::new().allow_address(is_public)).into_service();
    // The last ones are numbers to the resolver.
    for host in ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost", "127.1", "2130706433", "0x7f000001"] {
        let backend: Backend = format!("http://{host}:{port}").parse().unwrap();
        let response = within(proxy.forward_to(backend, request("/x"))).await;
        assert_eq!((response.status().as_u16(), failure(response.extensions()).0), (502, ErrorKind::Connect), "{host}");
        assert!(timeout(Duration::ZERO, listener.accept()).await.is_err(), "{host}: it has connected");
    }
    // A set has a filter of its own, also for its checks.
    let set = Backends::builder([format!("http://127.0.0.1:{port}"), format!("http://localhost:{port}")])
        .client(|client| client.allow_address(is_public))
        .check(Check::get("/healthz").interval(Duration::from_millis(10)))
        .build()
        .unwrap();
    let proxy = ReverseProxyLayer::to(Targets::new()).into_service();
    for _ in 0..5 {
        let response = within(proxy.forward_to(&set, request("/x"))).await;
        assert_eq!((response.status().as_u16(), failure(response.extensions()).0), (502, ErrorKind::Connect));
        sleep(Duration::from_millis(10)).await;
    }
    assert!(timeout(Duration::ZERO, listener.accept()).await.is_err(), "it has connected");
}

/// A front that takes the tenant from the request's `Host`, as the one label before `.front.example`.
async fn front_of_hosts(targets: Targets) -> SocketAddr {
    let tenants: Backend = "http://example".parse().unwrap();
    let by_host = move |parts: &axum::http::request::Parts| {
        let host = parts.headers.get("host")?.to_str().ok()?;
        let tenant = tenants.subdomain(host.strip_suffix(".front.example")?).ok()?;
        Some(Target::to(tenant))
    };
    let proxy = ReverseProxyLayer::to(targets).select(by_host);
    front(Router::new().route("/own", any(|| async { "own" })).layer(proxy.prefix("/app").strip_prefix())).await
}

#[tokio::test]
async fn clients_that_name_thousands_of_hosts_harm_no_other_and_leave_nothing() {
    const CAPACITY: usize = 32;
    let tenants = Tenants::new();
    let targets = tenants.targets().capacity(CAPACITY).idle(Duration::from_secs(1));
    let addr = front_of_hosts(targets.clone()).await;
    let ask_host = |path: &str, host: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    // A good client has a response under way.
    let mut good = client(addr).await;
    good.send(ask_host("/app/held", "good.front.example").as_bytes()).await;
    good.head().await.unwrap();
    // Names, one after the other: pools of unused ones give way.
    let attackers = (0..8).map(|attacker| {
        let targets = targets.clone();
        tokio::spawn(async move {
            let mut wire = client(addr).await;
            for number in 0..500 {
                let host = format!("a{attacker}-{number}.front.example");
                wire.send(format!("GET /app/x HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
                assert_eq!(wire.message().await.unwrap().status(), 200);
                assert!(targets.pools() <= CAPACITY, "{}", targets.pools());
            }
        })
    });
    for attacker in join_all(attackers).await {
        attacker.unwrap();
    }
    // What is no label is no target.
    for host in [
        "a.b.front.example",
        "a@b.front.example",
        "-a.front.example",
        ".front.example",
        "evil.example",
        "a:1.front.example",
    ] {
        let status = ask(addr, ask_host("/app/x", host)).await.status();
        assert!([400, 500].contains(&status), "{host}: {status}");
    }
    // As many as there are pools, each with a response that it doesn't read to its end.
    let mut held = Vec::new();
    for number in 0..CAPACITY - 1 {
        let mut wire = client(addr).await;
        wire.send(ask_host("/app/held", &format!("h{number}.front.example")).as_bytes()).await;
        assert_eq!(wire.head().await.unwrap().split(' ').nth(1), Some("200"));
        held.push(wire);
    }
    for number in 0..20 {
        let response = ask(addr, ask_host("/app/x", &format!("n{number}.front.example"))).await;
        assert_eq!((response.status(), response.field("retry-after")), (503, Some("1")));
    }
    assert_eq!(targets.pools(), CAPACITY);
    // The tenants that have a pool, and the application's own routes, are served.
    assert_eq!(ask(addr, ask_host("/app/x", "good.front.example")).await.status(), 200);
    assert_eq!(ask(addr, ask_host("/own", "front.example")).await.text(), "own");
    drop(held);
    tenants.halves.add_permits(CAPACITY);
    assert_eq!(good.bytes(2).await, b"ab");
    assert_eq!(good.bytes(2).await, b"cd");
    let gone = async {
        while targets.pools() > 0 || tenants.open.load(Ordering::SeqCst) > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    within(gone).await;
    assert_eq!(tenants.crossed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_target_that_is_the_front_itself_is_a_loop() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let itself: Backend = format!("http://{addr}").parse().unwrap();
    let proxy = ReverseProxyLayer::to(Targets::new()).select(move |_| Some(Target::to(itself.clone())));
    front_on(listener, Router::new().layer(proxy));
    assert_eq!(get(addr, "/x", "").await.status(), 508);
}

#[tokio::test]
async fn a_client_that_cannot_be_built_fails_the_request() {
    let proxy = ReverseProxyLayer::to(Targets::new().client(|client| client.max_connections(0))).into_service();
    let response = proxy.forward_to(tenant(1), request("/x")).await;
    let (kind, cause) = failure(response.extensions());
    assert_eq!((response.status().as_u16(), kind), (500, ErrorKind::NoTarget));
    assert!(cause.contains("write `None`"), "{cause}");
}

// ---- Pools ----

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_goes_over_a_connection_of_another_tenant() {
    let tenants = Tenants::new();
    let targets = tenants.targets().capacity(40);
    let proxy = ReverseProxyLayer::to(targets.clone()).into_service();
    // More tenants than pools, so that pools go while others are used.
    let clients = (0..8).map(|client| {
        let proxy = proxy.clone();
        tokio::spawn(async move {
            for turn in 0..300 {
                let number = (client * 7 + turn * 13) % 60;
                let response = within(proxy.forward_to(tenant(number), of_tenant(number))).await;
                assert!(text(response).await.starts_with(&format!("t{number}.example gets ")));
            }
        })
    });
    for client in join_all(clients).await {
        client.unwrap();
    }
    assert_eq!(tenants.crossed.load(Ordering::SeqCst), 0);
    assert_eq!(tenants.requests.load(Ordering::SeqCst), 2400);
    assert!((2..=40).contains(&targets.pools()), "{}", targets.pools());
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_origins_leave_no_more_pools_than_the_capacity_and_none_after_the_idle_time() {
    let tenants = Tenants::new();
    let targets = tenants.targets();
    let proxy = ReverseProxyLayer::to(targets.clone()).into_service();
    for number in 0..10_000 {
        let response = proxy.forward_to(tenant(number), of_tenant(number)).await;
        assert!(text(response).await.starts_with(&format!("t{number}.example gets ")));
        assert_eq!(targets.pools(), (number + 1).min(1024));
    }
    others_run().await;
    assert!(tenants.open.load(Ordering::SeqCst) <= 1024);
    // The latest ones are kept.
    let before = tenants.connects().len();
    text(proxy.forward_to(tenant(9_999 - 1023), of_tenant(9_999 - 1023)).await).await;
    assert_eq!((tenants.connects().len(), targets.pools()), (before, 1024));
    sleep(Duration::from_secs(301)).await;
    assert_eq!(targets.pools(), 0);
    assert_eq!((tenants.open.load(Ordering::SeqCst), tenants.crossed.load(Ordering::SeqCst)), (0, 0));
    tasks_left(0).await;
}

#[tokio::test(start_paused = true)]
async fn an_unused_pool_goes_after_the_idle_time_and_a_used_one_stays() {
    let tenants = Tenants::new();
    let targets = tenants.targets().idle(Duration::from_secs(10));
    let proxy = ReverseProxyLayer::to(targets.clone()).into_service();
    let held = proxy.forward_to(tenant(1), request("/held")).await;
    text(proxy.forward_to(tenant(2), request("/x")).await).await;
    sleep(Duration::from_secs(6)).await;
    text(proxy.forward_to(tenant(3), request("/x")).await).await;
    sleep(Duration::from_millis(3_900)).await;
    assert_eq!(targets.pools(), 3);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(targets.pools(), 2, "the second one has been unused for 10 s");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(targets.pools(), 1, "the body of the first one hasn't ended");
    tenants.halves.add_permits(1);
    assert_eq!(text(held).await, "abcd");
    sleep(Duration::from_millis(9_900)).await;
    assert_eq!(targets.pools(), 1);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(targets.pools(), 0);
    tasks_left(0).await;
}

#[tokio::test(start_paused = true)]
async fn without_an_idle_time_unused_pools_stay() {
    let tenants = Tenants::new();
    let targets = tenants.targets().idle(None).capacity(2);
    let proxy = ReverseProxyLayer::to(targets.clone()).into_service();
    for number in 1..=3 {
        text(proxy.forward_to(tenant(number), request("/x")).await).await;
    }
    sleep(Duration::from_secs(100_000)).await;
    assert_eq!(targets.pools(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_set_full_of_used_pools_is_overloaded_until_one_is_free() {
    let tenants = Tenants::new();
    let targets = tenants.targets().capacity(2);
    let proxy = ReverseProxyLayer::to(targets.clone()).into_service();
    let first = proxy.forward_to(tenant(1), request("/held")).await;
    let second = proxy.forward_to(tenant(2), request("/held")).await;
    let response = proxy.forward_to(tenant(3), request("/x")).await;
    let (kind, cause) = failure(response.extensions());
    assert_eq!((response.status().as_u16(), kind), (503, ErrorKind::Overloaded));
    assert!(cause.contains("capacity"), "{cause}");
    // The origins that have a pool are served.
    assert_eq!(proxy.forward_to(tenant(2), request("/x")).await.status(), 200);

    // A client that leaves frees its pool, and so does the end of a body whose end isn't polled.
    drop(first);
    assert_eq!(proxy.forward_to(tenant(3), request("/x")).await.status(), 200);
    tenants.halves.add_permits(2);
    let mut body = second.into_body();
    for half in ["ab", "cd"] {
        assert_eq!(within(body.frame()).await.unwrap().unwrap().into_data().unwrap(), half);
    }
    assert_eq!(proxy.forward_to(tenant(4), request("/held")).await.status(), 200);
    assert_eq!(targets.pools(), 2);
}

#[tokio::test]
async fn a_tunnel_keeps_its_pool() {
    let tenants = Tenants::new();
    let targets = tenants.targets().capacity(1);
    let layer = ReverseProxyLayer::to(targets.clone()).select(|head| {
        let number = if head.uri.path() == "/upgrade" { 1 } else { 2 };
        Some(Target::to(tenant(number)))
    });
    let addr = front(Router::new().layer(layer)).await;
    let mut tunnel = client(addr).await;
    tunnel
        .send(
            b"GET /upgrade HTTP/1.1\r\nHost: front.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        .await;
    assert!(tunnel.head().await.unwrap().starts_with("HTTP/1.1 101 "));
    assert_eq!(get(addr, "/x", "").await.status(), 503);
    drop(tunnel);
    let freed = async {
        while get(addr, "/x", "").await.status() == 503 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    within(freed).await;
    assert!(get(addr, "/x", "").await.text().starts_with("t2.example"));
}

#[tokio::test]
async fn everything_that_names_an_origin_has_its_pool() {
    let tenants = Tenants::new();
    let targets = tenants.targets();
    let one = ReverseProxyLayer::to(targets.clone()).prefix("/one").into_service();
    let other = ReverseProxyLayer::to(targets.clone()).upstream_layer(layer_fn(BoxUpstream::new)).into_service();
    for spelling in ["http://t1.example", "http://T1.example:80", "http://t1.EXAMPLE/"] {
        let backend: Backend = spelling.parse().unwrap();
        assert_eq!(one.forward_to(&backend, request("/one")).await.status(), 200);
        // The connection is back when the body has ended.
        text(one.forward_to(&backend, request("/one")).await).await;
        text(other.forward_to(&backend, request("/x")).await).await;
    }
    assert_eq!(targets.pools(), 1);
    assert!(tenants.connects().iter().all(|origin| origin == "http://t1.example/"));
    assert!(tenants.connects().len() < 6, "{:?}", tenants.connects());
    // Another scheme or port is another origin.
    text(one.forward_to("http://t1.example:8080".parse::<Backend>().unwrap(), request("/one")).await).await;
    assert_eq!(targets.pools(), 2);
}

#[tokio::test]
async fn a_layer_is_applied_once_per_target() {
    let tenants = Tenants::new();
    let applied = Arc::new(AtomicUsize::new(0));
    let count = applied.clone();
    let layer = layer_fn(move |client: Client| {
        count.fetch_add(1, Ordering::SeqCst);
        tower::limit::ConcurrencyLimit::new(client, 1)
    });
    let targets = tenants.targets();
    let proxy = ReverseProxyLayer::to(targets.clone()).upstream_layer(layer).into_service();
    for _ in 0..5 {
        for number in 1..=3 {
            text(proxy.clone().forward_to(tenant(number), of_tenant(number)).await).await;
        }
    }
    assert_eq!(applied.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_option_that_is_set_on_a_clone_does_not_change_the_set() {
    let tenants = Tenants::new();
    let lax = tenants.targets();
    let strict = lax.clone().allow(|_| false);
    let [lax_proxy, strict_proxy] =
        [&lax, &strict].map(|targets| ReverseProxyLayer::to(targets.clone()).into_service());
    assert_eq!(lax_proxy.forward_to(tenant(1), request("/x")).await.status(), 200);
    assert_eq!(strict_proxy.forward_to(tenant(1), request("/x")).await.status(), 500);
    assert_eq!((lax.pools(), strict.pools()), (1, 0));
}

#[test]
#[should_panic(expected = "write 1 or more")]
fn a_capacity_of_nothing_is_refused() {
    let _ = Targets::new().capacity(0);
}

// ---- Several backends as a target ----

#[tokio::test]
async fn a_set_of_backends_is_a_target() {
    let tenants = Tenants::new();
    let set = |numbers: [usize; 2]| {
        let in_memory = tenants.clone();
        let members = numbers.map(|number| format!("http://t{number}.example"));
        Backends::builder(members).client(move |client| in_memory.client(client)).build().unwrap()
    };
    let (first, second) = (set([1, 2]), set([3, 4]));
    let targets = Targets::new();
    let layer = ReverseProxyLayer::to(targets.clone()).upstream_layer(layer_fn(BoxUpstream::new));
    let (proxy, other) = (layer.into_service(), ReverseProxyLayer::to(targets.clone()).into_service());
    let mut used = HashMap::<String, usize>::new();
    for turn in 0..40 {
        let backends = if turn % 2 == 0 { &first } else { &second };
        let shown = text(proxy.forward_to(backends, request("/x")).await).await;
        *used.entry(shown.split(' ').next().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(used.len(), 4, "{used:?}");
    let of_first = used["t1.example"] + used["t2.example"];
    assert_eq!((of_first, used.values().sum::<usize>()), (20, 40), "{used:?}");
    // Another proxy shares load and connections.
    text(other.forward_to(&first, request("/x")).await).await;
    assert_eq!(first.status().iter().map(MemberStatus::requests).sum::<u64>(), 21);
    assert_eq!((targets.pools(), tenants.connects().len()), (2, 4));

    // A later set has its members.
    first.set(["http://t5.example"]).unwrap();
    assert!(text(proxy.forward_to(&first, request("/x")).await).await.starts_with("t5.example gets "));
    let moved = proxy.forward_to(&first, request("/moved")).await;
    assert_eq!(moved.headers()["location"], "/there");
}

#[tokio::test]
async fn a_request_to_a_set_goes_to_another_member_if_nothing_was_sent() {
    let tenants = Tenants::new();
    let in_memory = tenants.clone();
    let members = [refusing().await, "http://t1.example".to_owned()];
    let backends = Backends::builder(members)
        .client(move |client| match format!("{client:?}").contains("t1.example") {
            true => in_memory.client(client),
            false => client,
        })
        .build()
        .unwrap();
    let proxy = ReverseProxyLayer::to(Targets::new()).into_service();
    for _ in 0..10 {
        let upload = Request::post("/x").header("host", "front.example").body(Body::from("hi")).unwrap();
        assert_eq!(within(proxy.forward_to(&backends, upload)).await.status(), 200);
    }
    let once = ReverseProxyLayer::to(Targets::new().retry(RetryPolicy::none())).into_service();
    let down = Backends::new([refusing().await]);
    assert_eq!(within(once.forward_to(&down, request("/x"))).await.status(), 502);
}

#[tokio::test]
async fn a_set_of_named_members_is_no_target() {
    let named = Backends::new([Member::named("a")]);
    let response = ReverseProxyLayer::to(Targets::new()).into_service().forward_to(&named, request("/x")).await;
    let (kind, cause) = failure(response.extensions());
    assert_eq!(kind, ErrorKind::NoTarget);
    assert!(cause.contains("named"), "{cause}");
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_unused_goes_after_the_idle_time() {
    let tenants = Tenants::new();
    let in_memory = tenants.clone();
    let backends = Backends::builder(["http://t1.example", "http://t2.example"])
        .client(move |client| in_memory.client(client))
        .build()
        .unwrap();
    let targets = Targets::new().idle(Duration::from_secs(10)).capacity(1);
    let proxy = ReverseProxyLayer::to(targets.clone()).into_service();
    let held = proxy.forward_to(&backends, request("/held")).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!((targets.pools(), proxy.forward_to(tenant(3), request("/x")).await.status().as_u16()), (1, 503));
    tenants.halves.add_permits(1);
    assert_eq!(text(held).await, "abcd");
    sleep(Duration::from_millis(10_100)).await;
    assert_eq!(targets.pools(), 0);
}

// ---- Cancellation, shutdown, and the lock ----

/// Counts how many of it exist.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_choice_that_is_dropped_leaks_nothing() {
    let (tenants, alive, begun) = (Tenants::new(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let targets = tenants.targets();
    let choose = {
        let (alive, begun) = (alive.clone(), begun.clone());
        move |request: Request, next: Next| {
            let (alive, begun) = (Alive::new(&alive), begun.clone());
            async move {
                begun.notify_one();
                pending::<()>().await;
                drop(alive);
                next.run(request).await
            }
        }
    };
    let addr = front(Router::new().layer(ReverseProxyLayer::to(targets.clone())).layer(from_fn(choose))).await;
    let mut waiting = client(addr).await;
    waiting.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    within(begun.notified()).await;
    assert_eq!(alive.load(Ordering::SeqCst), 1);
    drop(waiting);
    let gone = async {
        while alive.load(Ordering::SeqCst) > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    within(gone).await;
    assert_eq!((targets.pools(), tenants.connects().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_at_any_point_frees_its_pool() {
    let tenants = Tenants::new();
    let targets = tenants.targets().capacity(1).idle(Duration::from_secs(10));
    let proxy = ReverseProxyLayer::to(targets.clone()).into_service();
    for polls in 0..12 {
        let mut exchange = Box::pin(proxy.forward_to(tenant(polls), request("/held")));
        for _ in 0..polls {
            if let Ok(response) = timeout(Duration::ZERO, &mut exchange).await {
                drop(response);
                break;
            }
            others_run().await;
        }
        drop(exchange);
        // It takes the place of the one before.
        let next = within(proxy.forward_to(tenant(100 + polls), request("/x"))).await;
        assert_eq!(next.status(), 200, "after {polls} polls");
        text(next).await;
    }
    sleep(Duration::from_millis(10_100)).await;
    assert_eq!(targets.pools(), 0);
    // Backends that wait to send the second half.
    tenants.halves.add_permits(100);
    tasks_left(0).await;
}

/// A service that uses the targets in each of its functions.
struct Curious<S> {
    inner: S,
    targets: Targets,
}

impl<S: Clone> Clone for Curious<S> {
    fn clone(&self) -> Self {
        assert!(self.targets.pools() < 10);
        Self { inner: self.inner.clone(), targets: self.targets.clone() }
    }
}

impl<S> Drop for Curious<S> {
    fn drop(&mut self) {
        assert!(self.targets.pools() < 10);
    }
}

impl<S: Service<Request>> Service<Request> for Curious<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> S::Future {
        assert!(self.targets.pools() < 10);
        self.inner.call(request)
    }
}

/// With the lock held, each of these would wait for ever.
#[tokio::test(start_paused = true)]
async fn code_of_the_application_runs_outside_of_the_lock() {
    let tenants = Tenants::new();
    let slot = Arc::new(Mutex::new(None::<Targets>));
    let look = {
        let slot = slot.clone();
        move || {
            let targets = slot.lock().unwrap().clone();
            assert!(targets.is_some_and(|targets| targets.pools() < 10));
        }
    };
    let (on_client, on_allow, on_layer) = (look.clone(), look.clone(), slot.clone());
    let in_memory = tenants.clone();
    let targets = Targets::new()
        .capacity(2)
        .idle(Duration::from_secs(10))
        .client(move |client| {
            on_client();
            in_memory.client(client)
        })
        .allow(move |_| {
            on_allow();
            true
        });
    *slot.lock().unwrap() = Some(targets.clone());
    let layer = layer_fn(move |inner: Client| {
        let targets = on_layer.lock().unwrap().clone().unwrap();
        assert!(targets.pools() < 10);
        Curious { inner, targets }
    });
    let proxy = ReverseProxyLayer::to(targets.clone()).upstream_layer(layer).into_service();
    for number in 0..5 {
        text(within(proxy.forward_to(tenant(number), of_tenant(number))).await).await;
    }
    // A second proxy, whose services are dropped for one of a third.
    for _ in 0..3 {
        let proxy = ReverseProxyLayer::to(targets.clone());
        let service = proxy.upstream_layer(layer_fn(move |inner: Client| inner)).into_service();
        text(within(service.forward_to(tenant(4), of_tenant(4))).await).await;
    }
    sleep(Duration::from_secs(11)).await;
    assert_eq!(targets.pools(), 0);
    // The services hold the targets, and are in none of them any more.
    *slot.lock().unwrap() = None;
}

#[test]
fn idle_pools_go_after_their_runtime_was_shut_down() {
    let tenants = Tenants::new();
    let targets = tenants.targets().idle(Duration::from_secs(10));
    let proxy = ReverseProxyLayer::to(targets.clone()).into_service();
    let runtime = || Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime().block_on(async { text(proxy.forward_to(tenant(1), of_tenant(1)).await).await });
    assert_eq!(targets.pools(), 1);
    runtime().block_on(async {
        text(proxy.forward_to(tenant(2), of_tenant(2)).await).await;
        // Clocks of two runtimes differ.
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(targets.pools(), 0);
    });
}

#[tokio::test(start_paused = true)]
async fn the_sweeper_ends_with_the_targets() {
    let tenants = Tenants::new();
    let targets = tenants.targets();
    let proxy = ReverseProxyLayer::to(targets.clone()).into_service();
    text(proxy.forward_to(tenant(1), of_tenant(1)).await).await;
    let before = Instant::now();
    drop((proxy, targets));
    tasks_left(0).await;
    assert!(before.elapsed() < Duration::from_secs(60));
    advance(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_comes_back_from_a_full_set() {
    let tenants = Tenants::new();
    let back = Arc::new(Mutex::new(None));
    let proxy = ReverseProxyLayer::to(tenants.targets().capacity(1)).map_upstream(|service| {
        let back = back.clone();
        service_fn(move |request: Request| {
            let (service, back) = (service.clone(), back.clone());
            async move {
                let outcome = service.oneshot(request).await;
                outcome.inspect_err(|error| {
                    let mut error = error.downcast_ref::<Error>().unwrap().clone();
                    *back.lock().unwrap() = error.take_request();
                })
            }
        })
    });
    let proxy = proxy.into_service();
    let send = |number: usize| {
        let mut request = request("/held");
        request.extensions_mut().insert(Target::to(tenant(number)));
        within(proxy.clone().oneshot(request))
    };
    let held = send(1).await.unwrap();
    assert_eq!(send(2).await.unwrap().status(), 503);
    let unsent = back.lock().unwrap().take().expect("the request");
    let target = format!("{:?}", unsent.extensions().get::<Target>().unwrap());
    assert_eq!(target, "Target::to(http://t2.example)");
    drop(held);
    timeout(PATIENCE, async {}).await.unwrap();
}
