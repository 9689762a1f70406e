//! Every way of mounting the proxy in an application, and the path that each side sees.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::Body,
    error_handling::HandleErrorLayer,
    extract::{Request, State},
    response::Response,
    routing::{any, any_service, get, post},
};
use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::Full;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::mpsc};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, load_shed::LoadShedLayer, service_fn,
    timeout::TimeoutLayer, util::MapRequestLayer,
};
use tower_http::{
    catch_panic::CatchPanicLayer, limit::RequestBodyLimitLayer, request_id::MakeRequestUuid,
    request_id::SetRequestIdLayer, timeout::TimeoutLayer as StatusTimeoutLayer, trace::TraceLayer,
    validate_request::ValidateRequestHeaderLayer,
};
use tower_reverse_proxy::{
    Backend, BasicAuthLayer, BearerLayer, Client, Error, RemoteUserLayer, ReverseProxy, ReverseProxyLayer,
    TraceRedirectLayer, Upstream,
};

use crate::support::{self, answering, ask, backend, client, front, get as ask_get, mirror, within};

/// Requests each target, and compares the target that the mirror received or the application's own response.
async fn expect(app: Router, cases: &[(&str, &str)]) {
    let addr = front(app).await;
    for (target, seen) in cases {
        let answer = ask_get(addr, target, "").await;
        let got = match answer.field("x-backend") {
            Some(_) => answer.mirrored().start_line().split(' ').nth(1).unwrap().to_owned(),
            None => format!("{} {}", answer.status(), answer.text()),
        };
        assert_eq!(got, *seen, "{target}");
    }
}

#[tokio::test]
async fn a_layer_with_a_prefix_coexists_with_own_routes() {
    let app = Router::new()
        .route("/", get(async || "home"))
        .route("/own/{x}", get(async || "own"))
        .layer(ReverseProxyLayer::new(mirror().await).prefix("/mydir"));
    expect(
        app,
        &[
            ("/", "200 home"),
            ("/own/x", "200 own"),
            ("/other", "404 "),
            ("/mydir", "/mydir"),
            ("/mydir/", "/mydir/"),
            ("/mydir?q", "/mydir?q"),
            ("/mydir/a%2fb//c?x=/../", "/mydir/a%2fb//c?x=/../"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_prefix_matches_whole_segments() {
    let app = Router::new().layer(ReverseProxyLayer::new(mirror().await).prefix("/my/dir"));
    expect(
        app,
        &[
            ("/my/dir", "/my/dir"),
            ("/my/dirx", "404 "),
            ("/my", "404 "),
            ("/MY/dir", "404 "),
            ("/m%79/dir", "404 "),
            ("//my/dir", "404 "),
            ("/x/my/dir", "404 "),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_layer_wraps_a_fallback_that_was_set_before_it() {
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/mydir");
    let before = Router::new().fallback(async || "none").layer(proxy.clone());
    expect(before, &[("/mydir/x", "/mydir/x"), ("/other", "200 none"), ("/mydirx", "200 none")]).await;

    // As with any axum layer.
    let after = Router::new().layer(proxy).fallback(async || "none");
    expect(after, &[("/mydir/x", "200 none"), ("/other", "200 none")]).await;
}

#[tokio::test]
async fn a_route_below_the_prefix_is_shadowed_by_the_layer() {
    let app = Router::new()
        .route("/mydir/own", get(async || "own"))
        .layer(ReverseProxyLayer::new(mirror().await).prefix("/mydir"))
        .route("/mydir/later", get(async || "later"));
    expect(app, &[("/mydir/own", "/mydir/own"), ("/mydir/later", "200 later")]).await;
}

#[tokio::test]
async fn the_prefix_of_a_layer_in_a_nested_router_is_relative_to_the_nest() {
    let inner = Router::new()
        .route("/", get(async || "inner"))
        // `nest` drops a default fallback with its layers. Without a fallback of its own, the layer sees routes only.
        .fallback(async || "none")
        .layer(ReverseProxyLayer::new(mirror().await).prefix("/mydir"));
    expect(
        Router::new().nest("/outer", inner),
        &[
            ("/outer", "200 inner"),
            ("/outer/mydir", "/outer/mydir"),
            ("/outer/mydir/", "/outer/mydir/"),
            ("/outer/mydir/x?q", "/outer/mydir/x?q"),
            ("/outer/mydirx", "200 none"),
            ("/mydir/x", "404 "),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_nested_router_without_a_fallback_passes_only_its_routes_to_the_layer() {
    let inner = Router::new()
        .route("/own", get(async || "own"))
        .route("/mydir/{*rest}", any(async || "never"))
        .layer(ReverseProxyLayer::new(mirror().await).prefix("/mydir"));
    let app = Router::new().nest("/outer", inner);
    expect(app, &[("/outer/mydir/x", "/outer/mydir/x"), ("/outer/mydir", "404 "), ("/outer/own", "200 own")]).await;
}

#[tokio::test]
async fn a_nested_proxy_distinguishes_the_bare_prefix_from_its_directory() {
    let proxy = ReverseProxy::new(mirror().await);
    let cases = [
        ("/mydir", "/mydir"),
        ("/mydir/", "/mydir/"),
        ("/mydir/x", "/mydir/x"),
        ("/mydir/x/", "/mydir/x/"),
        ("/mydir?q", "/mydir?q"),
        ("/mydir/?q", "/mydir/?q"),
        ("/mydir//x", "/mydir//x"),
        ("/mydirx", "404 "),
    ];
    expect(Router::new().nest_service("/mydir", proxy), &cases).await;
}

/// A captured parameter can be a dot segment, which must not lead out of the nest.
#[tokio::test]
async fn captured_nest_parameters_do_not_escape_the_prefix() {
    let nested = Router::new().nest_service("/apps/{tenant}", ReverseProxy::new(mirror().await));
    let refused = "400 Bad Request";
    expect(
        nested,
        &[
            ("/apps/one/x", "/apps/one/x"),
            ("/apps/one/a/../x", "/apps/one/a/../x"),
            ("/apps/../admin", refused),
            ("/apps/%2e%2e/admin", refused),
            ("/apps/.%2E/admin", refused),
            ("/apps/x%2f..%2f../admin", refused),
            ("/apps/..;a/admin", refused),
            ("/apps/./admin", refused),
            ("/apps/one/../../admin", refused),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_path_rewritten_inside_a_nest_is_forwarded() {
    fn rewrite(mut request: Request) -> Request {
        let target = request.uri().to_string().replacen("/old/", "/new/", 1).replacen("?a", "?b", 1);
        *request.uri_mut() = target.parse().unwrap();
        request
    }

    let inner = Router::new().fallback_service(ReverseProxy::new(mirror().await)).layer(MapRequestLayer::new(rewrite));
    expect(
        Router::new().nest("/mydir", inner),
        &[
            ("/mydir/old/x", "/mydir/new/x"),
            ("/mydir/old/x?a=1", "/mydir/new/x?b=1"),
            ("/mydir/x?a=1", "/mydir/x?b=1"),
            ("/mydir/x", "/mydir/x"),
            ("/mydir", "/mydir"),
        ],
    )
    .await;
}

/// Without `/mydir/`, which axum's `nest` leaves to the outer router.
#[tokio::test]
async fn as_the_fallback_of_a_nested_router_the_proxy_forwards_the_full_path() {
    let nested = Router::new().fallback_service(ReverseProxy::new(mirror().await));
    let app = Router::new().nest("/mydir", nested);
    expect(app, &[("/mydir", "/mydir"), ("/mydir/x?q", "/mydir/x?q"), ("/mydir/", "404 ")]).await;
}

#[tokio::test]
async fn nested_nests_forward_the_full_path() {
    let proxy = ReverseProxy::new(mirror().await);
    let inner = Router::new().nest_service("/b", proxy.clone());
    let app = Router::new().nest("/a", inner).nest("/{tenant}", Router::new().nest_service("/c", proxy));
    expect(
        app,
        &[
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/a/b/x?q", "/a/b/x?q"),
            ("/a/x", "404 "),
            ("/one/c/x", "/one/c/x"),
            ("/o%6ee/c", "/o%6ee/c"),
        ],
    )
    .await;
}

#[tokio::test]
async fn as_a_fallback_the_proxy_gets_unrouted_requests() {
    let app = Router::new()
        .route("/new", get(async || "new"))
        .route("/", get(async || "home"))
        .fallback_service(ReverseProxy::new(mirror().await));
    expect(app, &[("/", "200 home"), ("/new", "200 new"), ("/new/", "/new/"), ("/old?q", "/old?q"), ("//", "//")])
        .await;
}

#[tokio::test]
async fn as_a_route_the_proxy_forwards_the_wildcard_match() {
    let proxy = ReverseProxy::new(mirror().await);
    let app = Router::new().route_service("/files/{*rest}", proxy.clone()).route("/any", any_service(proxy));
    expect(app, &[("/files/a/b%20c?q", "/files/a/b%20c?q"), ("/files/", "404 "), ("/any?q", "/any?q")]).await;
}

#[tokio::test]
async fn a_handler_with_state_calls_the_proxy() {
    #[derive(Clone)]
    struct App {
        proxy: ReverseProxy,
        closed: bool,
    }

    async fn handler(State(app): State<App>, request: Request) -> Result<Response, StatusCode> {
        if app.closed || request.uri().path().starts_with("/secret") {
            return Err(StatusCode::FORBIDDEN);
        }
        let Ok(response) = app.proxy.oneshot(request).await;
        Ok(response)
    }

    let state = App { proxy: ReverseProxy::new(mirror().await), closed: false };
    let app = Router::new().fallback(handler).with_state(state);
    expect(app, &[("/x?q", "/x?q"), ("/secret/x", "403 ")]).await;
}

#[tokio::test]
async fn hyper_serves_the_proxy_without_axum() {
    let proxy = ReverseProxy::new(mirror().await);
    // The inner service has another body type than axum's.
    let own = service_fn(async |_| Ok::<_, Infallible>(Response::new(Full::from(Bytes::from_static(b"own")))));
    let layered = ServiceBuilder::new().layer(ReverseProxyLayer::new(mirror().await).prefix("/mydir")).service(own);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for alone in [true, false, false] {
            let io = TokioIo::new(listener.accept().await.unwrap().0);
            let server = auto::Builder::new(TokioExecutor::new());
            let (proxy, layered) = (TowerToHyperService::new(proxy.clone()), TowerToHyperService::new(layered.clone()));
            tokio::spawn(async move {
                if alone {
                    server.serve_connection(io, proxy).await
                } else {
                    server.serve_connection(io, layered).await
                }
            });
        }
    });
    let post = |target: &str| format!("POST {target} HTTP/1.1\r\nHost: front.example\r\nContent-Length: 2\r\n\r\nhi");
    let alone = ask(addr, post("/x")).await.mirrored();
    assert_eq!((alone.start_line(), &*alone.text()), ("POST /x HTTP/1.1", "hi"));
    let below = ask(addr, post("/mydir/x")).await.mirrored();
    assert_eq!((below.start_line(), &*below.text()), ("POST /mydir/x HTTP/1.1", "hi"));
    assert_eq!(ask(addr, post("/x")).await.text(), "own");
}

#[tokio::test]
async fn several_backends_each_have_their_own_prefix() {
    let [a, b, rest] = ["a", "b", "r"].map(|name| format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}"));
    let app = Router::new()
        .route("/own", get(async || "own"))
        .nest_service("/b", ReverseProxy::new(answering(b).await))
        .fallback_service(ReverseProxy::new(answering(rest).await))
        .layer(ReverseProxyLayer::new(answering(a).await).prefix("/a"));
    expect(app, &[("/a/x", "200 a"), ("/b/x", "200 b"), ("/c/x", "200 r"), ("/own", "200 own")]).await;
}

#[tokio::test]
async fn of_two_overlapping_prefixes_the_outer_layer_matches_first() {
    let [outer, inner] = ["o", "i"].map(|name| format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}"));
    let wide = ReverseProxyLayer::new(answering(outer).await).prefix("/dir");
    let narrow = ReverseProxyLayer::new(answering(inner).await).prefix("/dir/sub");

    let narrow_outside = Router::new().layer(wide.clone()).layer(narrow.clone());
    expect(narrow_outside, &[("/dir/x", "200 o"), ("/dir/sub/x", "200 i"), ("/dir/subx", "200 o")]).await;
    let wide_outside = Router::new().layer(narrow).layer(wide);
    expect(wide_outside, &[("/dir/x", "200 o"), ("/dir/sub/x", "200 o")]).await;
}

#[tokio::test]
async fn a_request_outside_the_prefix_of_a_service_is_refused() {
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/mydir").into_service();
    let app = Router::new().fallback_service(proxy);
    expect(app, &[("/mydir/x", "/mydir/x"), ("/x", "400 Bad Request")]).await;
}

/// axum's routes add no Content-Length to a response to HEAD or a 304 without one.
#[tokio::test]
async fn method_routers_add_no_content_length_to_a_bodiless_response() {
    for (method, response) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nETag: \"x\"\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nETag: \"x\"\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"),
    ] {
        let url = answering(response).await;
        let own = get(async || "own");
        let app = Router::new()
            .route("/service", any_service(ReverseProxy::new(&url)))
            .route("/layer", own.layer(ReverseProxyLayer::new(&url)))
            .nest_service("/nest", ReverseProxy::new(&url))
            .fallback_service(ReverseProxy::new(&url));
        let addr = front(app).await;
        for target in ["/service", "/layer", "/nest", "/other"] {
            let request = format!("{method} {target} HTTP/1.1\r\nHost: front.example\r\n\r\n");
            let answer = ask(addr, request).await;
            assert_eq!(answer.field("etag"), Some("\"x\""), "{method} {target}");
            assert_eq!(answer.field("content-length"), None, "{method} {target}");
        }
    }
}

/// hyper's HTTP/1 server drops the Content-Length of a 304, so only HEAD is tested.
#[tokio::test]
async fn content_length_of_a_response_to_head_is_forwarded() {
    let url = answering("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await;
    let app = Router::new()
        .route("/layer", any(async || "own").layer(ReverseProxyLayer::new(&url)))
        .fallback_service(ReverseProxy::new(&url));
    let addr = front(app).await;
    for target in ["/layer", "/other"] {
        let answer = ask(addr, format!("HEAD {target} HTTP/1.1\r\nHost: front.example\r\n\r\n")).await;
        assert_eq!(answer.field("content-length"), Some("1234"), "{target}");
    }
}

#[test]
fn a_client_can_be_given_as_any_type_of_origin_or_as_a_builder() {
    const ORIGIN: &str = "http://127.0.0.1:8000";
    let text = String::from(ORIGIN);
    let backend: Backend = text.parse().unwrap();
    let client = Client::builder(backend.clone()).build().unwrap();
    let uri = Uri::from_static(ORIGIN);
    let built = || Client::builder(&text).pool_max_idle(1);
    let _: [ReverseProxyLayer; 7] = [
        ReverseProxyLayer::new(ORIGIN),
        ReverseProxyLayer::new(&text),
        ReverseProxyLayer::new(text.clone()).prefix(String::from("/mydir")),
        ReverseProxyLayer::new(uri.clone()),
        ReverseProxyLayer::new(backend.clone()),
        ReverseProxyLayer::new(built()),
        ReverseProxyLayer::new(client.clone()),
    ];
    let _: [ReverseProxy; 7] = [
        ReverseProxy::new(ORIGIN),
        ReverseProxy::new(&text),
        ReverseProxy::new(text.clone()),
        ReverseProxy::new(uri.clone()),
        ReverseProxy::new(backend.clone()),
        ReverseProxy::new(built()),
        ReverseProxy::new(client.clone()),
    ];
    for upstream in [
        Upstream::new(ORIGIN),
        Upstream::new(&text),
        Upstream::new(text.clone()),
        Upstream::new(uri),
        Upstream::new(backend),
        Upstream::new(built()),
        Upstream::new(client),
    ] {
        assert_eq!(upstream.backend().to_string(), ORIGIN);
    }
}

#[test]
fn try_new_returns_errors_with_what_to_write() {
    for (error, hint) in [
        (ReverseProxyLayer::try_new("127.0.0.1:8000").unwrap_err(), "write for example \"http://127.0.0.1:8000\""),
        (ReverseProxy::try_new("http://b/mydir").unwrap_err(), "write \"http://b\""),
        (Upstream::try_new(Client::builder("http://b").max_connections(0)).unwrap_err(), "write `None` for no limit"),
    ] {
        assert!(error.to_string().contains(hint), "{error}");
    }
}

#[test]
fn invalid_configuration_panics_with_what_to_write() {
    type Make = fn();
    let cases: &[(Make, &str, &str)] = &[
        (
            || drop(ReverseProxyLayer::new("127.0.0.1:8000")),
            "127.0.0.1:8000",
            "write for example \"http://127.0.0.1:8000\"",
        ),
        (|| drop(ReverseProxyLayer::new("http://b/mydir")), "http://b/mydir", "write \"http://b\""),
        (|| drop(ReverseProxyLayer::new(Uri::from_static("/mydir"))), "/mydir", "write for example"),
        (|| drop(ReverseProxy::new("ftp://b")), "ftp://b", "`http://`"),
        (|| drop(ReverseProxyLayer::new("http://b").prefix("mydir")), "mydir", "write \"/mydir\""),
        (|| drop(ReverseProxyLayer::new("http://b").prefix("/mydir/")), "/mydir/", "write \"/mydir\""),
        (|| drop(ReverseProxyLayer::new("http://b").prefix("/mydir/{*x}")), "/mydir/{*x}", "write \"/mydir\""),
        (|| drop(ReverseProxyLayer::new("http://b").prefix("")), "\"\"", "write \"/mydir\""),
        (|| drop(ReverseProxyLayer::new("http://b").replace_prefix("a/../b")), "a/../b", "write \"/b\""),
        (|| drop(ReverseProxyLayer::new("http://b").via("a b")), "a b", "write a token"),
        (|| drop(BasicAuthLayer::new("a:s3cret", "s3cret")), "Basic credentials", "colon"),
    ];
    for (make, named, hint) in cases {
        let panic = catch_unwind(AssertUnwindSafe(make)).expect_err(named);
        let literal = || panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = panic.downcast_ref::<String>().cloned().or_else(literal).unwrap_or_default();
        assert!(message.contains(named) && message.contains(hint), "{named}: {message}");
        assert!(!message.contains("s3cret"), "{message}");
    }
}

#[tokio::test]
async fn a_concurrency_limit_is_shared_by_all_routes() {
    let (asked, mut got) = mpsc::unbounded_channel();
    let url = backend(move |mut wire| {
        let asked = asked.clone();
        async move {
            wire.message().await;
            asked.send(()).unwrap();
            std::future::pending::<()>().await;
        }
    })
    .await;
    let proxy =
        ReverseProxyLayer::new(url).upstream_layer(ConcurrencyLimitLayer::new(1)).upstream_layer(LoadShedLayer::new());
    let app = Router::new().route("/a", get(async || "")).route("/b", get(async || "")).layer(proxy);
    let addr = front(app).await;
    let mut first = client(addr).await;
    first.send(b"GET /a HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    within(got.recv()).await.unwrap();
    assert_eq!(ask_get(addr, "/b", "").await.status(), 503);
}

#[tokio::test]
async fn the_layer_composes_with_tower_http_layers() {
    let own = Router::new().route("/", get(async || "home")).route("/panic", get(async || -> String { panic!("own") }));
    let stack = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(async |_: BoxError| StatusCode::SERVICE_UNAVAILABLE))
        .load_shed()
        .concurrency_limit(64)
        .layer(TimeoutLayer::new(Duration::from_secs(60)))
        .layer(TraceLayer::new_for_http())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(CatchPanicLayer::new())
        .layer(StatusTimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(60)))
        .layer(ValidateRequestHeaderLayer::accept("text/html"))
        .layer(axum::middleware::from_fn(async |request: Request, next: axum::middleware::Next| {
            next.run(request).await
        }))
        .map_request(|request: Request<_>| request)
        .map_response(|response: Response<_>| response)
        .layer(RequestBodyLimitLayer::new(1024))
        .layer(
            ReverseProxyLayer::new(mirror().await)
                .prefix("/mydir")
                .upstream_layer(TraceRedirectLayer::new())
                .upstream_layer(BasicAuthLayer::remote_user("s3cret"))
                .upstream_layer(RemoteUserLayer::new()),
        );
    let addr = front(own.layer(stack)).await;
    let mirrored = ask_get(addr, "/mydir/x", "").await.mirrored();
    assert_eq!(mirrored.start_line(), "GET /mydir/x HTTP/1.1");
    assert!(mirrored.field("x-request-id").is_some());
    assert_eq!(ask_get(addr, "/", "").await.text(), "home");
    assert_eq!(ask_get(addr, "/panic", "").await.status(), 500);
}

#[tokio::test]
async fn a_body_over_an_outer_limit_is_413_and_never_complete_at_the_backend() {
    let (seen, mut chunks) = mpsc::unbounded_channel();
    let url = backend(move |mut wire| {
        let seen = seen.clone();
        async move {
            wire.head().await.unwrap();
            for _ in 0..2 {
                seen.send(wire.chunk().await).unwrap();
            }
        }
    })
    .await;
    let app = Router::new()
        .route("/", post(async || ""))
        .layer(ReverseProxyLayer::new(url).prefix("/mydir"))
        .layer(RequestBodyLimitLayer::new(64));
    let mut wire = client(front(app).await).await;
    let chunk = format!("{:x}\r\n{}\r\n", 40, "x".repeat(40));
    let head = "POST /mydir/x HTTP/1.1\r\nHost: front.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    wire.send(format!("{head}{chunk}").as_bytes()).await;
    assert_eq!(within(chunks.recv()).await.unwrap().unwrap(), [b'x'; 40]);
    wire.send(format!("{chunk}0\r\n\r\n").as_bytes()).await;
    assert_eq!(wire.message().await.unwrap().status(), 413);
    assert_eq!(within(chunks.recv()).await.unwrap(), None, "the upload is cut");
}

/// A service that counts its clones.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Clone for Counted {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl Service<Request> for Counted {
    type Response = Response;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        std::future::ready(Ok(Response::default()))
    }
}

#[tokio::test]
async fn cloning_the_middleware_does_not_clone_the_inner_service() {
    let clones = Arc::new(AtomicUsize::new(0));
    let layer = |prefix: &str| ReverseProxyLayer::with_upstream(support::ok()).prefix(prefix);
    let service = layer("/b").layer(layer("/a").layer(Counted(clones.clone())));
    let mut clone = service.clone();
    assert_eq!(clones.load(Ordering::Relaxed), 0);
    // One clone of the inner service per clone that is called, however often.
    for _ in 0..2 {
        clone.ready().await.unwrap().call(Request::new(Body::empty())).await.unwrap();
        assert_eq!(clones.load(Ordering::Relaxed), 1);
    }
    // `into_inner` returns the original.
    drop(clone);
    service.into_inner().into_inner();
    assert_eq!(clones.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn changes_to_the_inner_service_hold_for_later_clones() {
    let mut service = ReverseProxyLayer::with_upstream(support::ok()).prefix("/mydir").layer(Counted(Arc::default()));
    let before = service.get_ref().0.clone();
    service.ready().await.unwrap();
    let after = Arc::new(AtomicUsize::new(0));
    service.get_mut().0 = after.clone();
    let mut clone = service.clone();
    clone.ready().await.unwrap().call(Request::new(Body::empty())).await.unwrap();
    assert_eq!((before.load(Ordering::Relaxed), after.load(Ordering::Relaxed)), (1, 1));
    assert!(Arc::ptr_eq(&clone.get_ref().0, &after));
}

#[tokio::test]
async fn further_layers_cause_no_further_clones_of_the_app() {
    let clones_with = async |layers: usize| {
        let clones = Arc::new(AtomicUsize::new(0));
        let mut app = Router::new().route_service("/own", Counted(clones.clone()));
        for number in 0..layers {
            app = app.layer(ReverseProxyLayer::with_upstream(support::ok()).prefix(format!("/mydir{number}")));
        }
        let before = clones.load(Ordering::Relaxed);
        let request = Request::get("/own").body(Body::empty()).unwrap();
        assert_eq!(app.oneshot(request).await.unwrap().status(), 200);
        clones.load(Ordering::Relaxed) - before
    };
    assert_eq!(clones_with(50).await, clones_with(1).await);
}

#[test]
fn public_types_are_send_sync_and_clone() {
    fn shared<T: Send + Sync + Clone + 'static>() {}
    fn sent<T: Send>(_: T) {}

    shared::<ReverseProxyLayer>();
    shared::<ReverseProxy>();
    shared::<Upstream<Client>>();
    shared::<Client>();
    shared::<Backend>();
    shared::<Error>();
    shared::<RemoteUserLayer>();
    shared::<BasicAuthLayer>();
    shared::<BearerLayer>();
    shared::<TraceRedirectLayer>();
    shared::<tower_reverse_proxy::ReverseProxyService<axum::routing::Route>>();

    let request = || Request::new(Body::empty());
    let mut proxy = ReverseProxy::with_upstream(support::ok());
    sent(proxy.call(request()));
    sent(ReverseProxyLayer::with_upstream(support::ok()).layer(support::ok()).call(request()));
    sent(TraceRedirectLayer::new().layer(support::ok()).call(request()));
    sent(RemoteUserLayer::new().layer(support::ok().map_err(BoxError::from)).call(request()));
    sent(BasicAuthLayer::new("a", "b").layer(support::ok().map_err(BoxError::from)).call(request()));
}
