//! Composition: the proxy's upstream side among tower's layers, and layers of the application's own.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::Request,
    http::{HeaderValue, Response, StatusCode},
    routing::get as route,
};
use tokio::sync::mpsc::unbounded_channel;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, layer::layer_fn, service_fn, util::option_layer};
use tower_reverse_proxy::{
    BasicAuthLayer, BoxUpstream, Client, Error, ErrorKind, Phase, RemoteUser, RemoteUserLayer, ReverseProxy,
    ReverseProxyLayer, TraceRedirectLayer, Upstream,
};

use crate::support::{PATIENCE, front, get, mirror, recording, within};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A layer that counts how often it's applied, and adds its name to `X-Seen`.
#[derive(Clone)]
struct Counting {
    name: &'static str,
    applied: Arc<AtomicUsize>,
}

impl Counting {
    fn new(name: &'static str) -> Self {
        Self { name, applied: Arc::default() }
    }
}

impl<S> Layer<S> for Counting {
    type Service = Named<S>;

    fn layer(&self, inner: S) -> Named<S> {
        self.applied.fetch_add(1, Ordering::SeqCst);
        Named { inner, name: self.name }
    }
}

#[derive(Clone)]
struct Named<S> {
    inner: S,
    name: &'static str,
}

impl<S: Service<Request>> Service<Request> for Named<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> S::Future {
        request.headers_mut().append("x-seen", HeaderValue::from_static(self.name));
        self.inner.call(request)
    }
}

#[tokio::test]
async fn each_upstream_layer_is_applied_once_and_the_last_one_sees_the_request_first() {
    let origin = mirror().await;
    for layer in [ReverseProxyLayer::new(&origin), ReverseProxyLayer::with_upstream(Upstream::new(&origin))] {
        let layers = ["1", "2", "3"].map(Counting::new);
        let [first, second, third] = layers.clone();
        let applied = || layers.each_ref().map(|layer| layer.applied.load(Ordering::SeqCst));
        // Options between the layers and after them don't apply the layers again.
        let layer = layer.upstream_layer(first).prefix("/mydir").header_timeout(PATIENCE);
        let layer = layer.upstream_layer(second).via(None).upstream_layer(third).hide_cookies(["id"]);
        assert_eq!(applied(), [1, 1, 1]);
        let routes = Router::new().route("/a", route(async || "")).route("/b", route(async || "").post(async || ""));
        let addr = front(routes.fallback(async || "").layer(layer)).await;
        for _ in 0..2 {
            let mirrored = get(addr, "/mydir/x", "X-Seen: client\r\n").await.mirrored();
            assert_eq!(mirrored.all("x-seen"), ["client", "3", "2", "1"]);
            assert_eq!(get(addr, "/a", "").await.status(), 200);
        }
        assert_eq!(applied(), [1, 1, 1]);
    }
}

#[tokio::test]
async fn option_layer_turns_an_identity_layer_on_and_off() {
    let origin = mirror().await;
    for (is_on, sent) in [(true, Some("alice")), (false, None)] {
        let option = is_on.then(RemoteUserLayer::new);
        let alone = ReverseProxyLayer::new(&origin).upstream_layer(option_layer(option.clone()));
        let built = ReverseProxyLayer::new(&origin).upstream_layer(ServiceBuilder::new().option_layer(option));
        for app in [Router::new().layer(alone), Router::new().layer(built)] {
            let app = app.layer(Extension(RemoteUser::from("alice")));
            assert_eq!(get(front(app).await, "/x", "").await.mirrored().field("remote-user"), sent);
        }
    }
}

#[tokio::test]
async fn identity_layers_in_the_wrong_order_fail_closed() {
    #[derive(Clone)]
    struct Session(&'static str);

    let (origin, mut requests) = recording(OK).await;
    let (failed, mut failures) = unbounded_channel();
    let user = RemoteUserLayer::from_extension(|session: &Session| Some(session.0));
    let basic = BasicAuthLayer::remote_user("s3cret");
    let layer = || {
        let failed = failed.clone();
        ReverseProxyLayer::new(&origin).on_error(move |failure| {
            failed.send(failure.error().clone()).unwrap();
            failure.status()
        })
    };
    let app = |router: Router| router.layer(Extension(Session("alice")));
    // The credentials are made before the user is known.
    let one_by_one = Router::new().layer(layer().upstream_layer(user.clone()).upstream_layer(basic.clone()));
    let built = ServiceBuilder::new().layer(basic.clone()).layer(user.clone());
    for wrong in [one_by_one, Router::new().layer(layer().upstream_layer(built))] {
        assert_eq!(get(front(app(wrong)).await, "/x", "").await.status(), 500);
        let error = failures.try_recv().unwrap();
        assert_eq!((error.kind(), error.status().as_u16(), error.is_client()), (ErrorKind::Rejected, 500, false));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("RemoteUserLayer") && source.contains("BasicAuthLayer"), "{source}");
    }
    assert!(requests.try_recv().is_err(), "nothing is forwarded");

    let one_by_one = Router::new().layer(layer().upstream_layer(basic.clone()).upstream_layer(user.clone()));
    let built = ServiceBuilder::new().layer(user).layer(basic);
    for right in [one_by_one, Router::new().layer(layer().upstream_layer(built))] {
        assert_eq!(get(front(app(right)).await, "/x", "").await.status(), 200);
        let request = within(requests.recv()).await.unwrap();
        assert_eq!(request.field("remote-user"), Some("alice"));
        assert_eq!(request.field("authorization"), Some("Basic YWxpY2U6czNjcmV0"));
    }
}

#[tokio::test]
async fn a_layer_of_the_application_rejects_like_the_proxy() {
    let (origin, mut requests) = recording(OK).await;
    for (status, grpc_status, is_client) in [
        (StatusCode::UNAUTHORIZED, "16", true),
        (StatusCode::FORBIDDEN, "7", true),
        (StatusCode::TOO_MANY_REQUESTS, "14", true),
        (StatusCode::SERVICE_UNAVAILABLE, "14", false),
    ] {
        let gate = layer_fn(move |client: Client| {
            service_fn(move |request: Request| {
                let client = client.clone();
                async move {
                    match request.uri().path() {
                        "/open" => client.oneshot(request).await,
                        _ => Err(Error::rejected(status, "over quota")),
                    }
                }
            })
        });
        let plain = front(Router::new().layer(ReverseProxyLayer::new(&origin).upstream_layer(gate))).await;
        let answer = get(plain, "/x", "").await;
        assert_eq!((answer.status(), &*answer.text()), (status.as_u16(), status.canonical_reason().unwrap()));
        let grpc = get(plain, "/x", "Content-Type: application/grpc\r\n").await;
        assert_eq!((grpc.status(), grpc.field("grpc-status")), (200, Some(grpc_status)), "{status}");

        let (failed, mut failures) = unbounded_channel();
        let paged = ReverseProxyLayer::new(&origin).upstream_layer(gate).on_error(move |failure| {
            failed.send(failure.error().clone()).unwrap();
            (failure.status(), "the application's page")
        });
        let paged = front(Router::new().layer(paged)).await;
        assert_eq!(get(paged, "/open", "").await.status(), 200);
        assert_eq!(within(requests.recv()).await.unwrap().start_line(), "GET /open HTTP/1.1");
        let answer = get(paged, "/x", "").await;
        assert_eq!((answer.status(), &*answer.text()), (status.as_u16(), "the application's page"));
        let error = failures.try_recv().unwrap();
        assert_eq!((error.kind(), error.phase()), (ErrorKind::Rejected, Phase::Request));
        assert_eq!((error.status(), error.is_client(), error.is_unsent()), (status, is_client, false));
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "over quota");
        assert!(failures.try_recv().is_err(), "the hook is called once");
    }
    assert!(requests.try_recv().is_err(), "rejected requests aren't forwarded");
}

#[tokio::test]
async fn a_boxed_proxy_fits_in_a_struct() {
    struct App {
        layer: ReverseProxyLayer<BoxUpstream>,
        service: ReverseProxy<BoxUpstream>,
    }

    let origin = mirror().await;
    let memory = service_fn(async |_: Request| Ok::<_, Infallible>(Response::new(Body::from("in memory"))));
    for (app, is_mirror) in [
        App {
            layer: ReverseProxyLayer::new(&origin).upstream_layer(TraceRedirectLayer::new()).prefix("/mydir").boxed(),
            service: ReverseProxy::new(&origin).boxed(),
        },
        App {
            layer: ReverseProxyLayer::with_upstream(memory).boxed().prefix("/mydir"),
            service: ReverseProxy::with_upstream(memory).boxed(),
        },
    ]
    .into_iter()
    .zip([true, false])
    {
        let addr = front(Router::new().fallback_service(app.service).layer(app.layer)).await;
        for target in ["/mydir/x", "/y"] {
            let answer = get(addr, target, "").await;
            if is_mirror {
                assert_eq!(answer.mirrored().start_line(), format!("GET {target} HTTP/1.1"));
            } else {
                assert_eq!(answer.text(), "in memory");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_behind_a_buffer_fits_around_the_client() {
    let client = service_fn(async |_: Request| Ok::<_, Infallible>(Response::new(Body::empty())));
    let upstream = Upstream::with_client("http://backend.example".parse().unwrap(), client);
    let limit = ServiceBuilder::new().buffer(8).rate_limit(2, Duration::from_secs(3600));
    let proxy = ReverseProxyLayer::with_upstream(upstream).upstream_layer(limit).into_service();
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
        let Ok(response) = proxy.clone().oneshot(request).await;
        statuses.push(response.status().as_u16());
    }
    // The third request waits for the limit until the header timeout.
    assert_eq!(statuses, [200, 200, 504]);
}
