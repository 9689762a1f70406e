//! Signing in to the backend: what is sent, and what of the response reaches the client.

use std::{
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, Response, StatusCode},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, layer::layer_fn, service_fn, util::option_layer};
use tower_reverse_proxy::{
    AuthorizationLayer, BoxUpstream, Client, Error, ErrorKind, Owner, Phase, RemoteUserLayer, ReverseProxyLayer,
    Upstream,
    authorize::{Ask, Authorization, CredentialSource, Credentials, Proof},
};

use crate::support::{answering, ask, backend, client, front, get, mirror, ok, others_run, recording, within};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SECRET: &str = "c2VjcmV0";

/// A source whose credentials are those of a closure.
#[derive(Clone, Copy)]
struct Fixed(fn(&Ask<'_>) -> Option<Credentials>);

impl CredentialSource for Fixed {
    type Proof = ();
    type Future = Ready<Result<Option<Credentials>, Error>>;

    fn credentials(&self, ask: &Ask<'_>) -> Self::Future {
        ready(Ok((self.0)(ask)))
    }
}

fn value() -> HeaderValue {
    HeaderValue::from_static("ApiKey c2VjcmV0")
}

const FRONT: Fixed = Fixed(|_| Some(Credentials::of_front(value())));
const USER: Fixed = Fixed(|_| Some(Credentials::of_user(value())));
const ABSENT: Fixed = Fixed(|_| None);

fn layer(source: Fixed) -> AuthorizationLayer<Fixed> {
    AuthorizationLayer::with_source(source)
}

/// A front with this layer before the backend, whose failures are pages with the kind and the phase.
async fn app<C: CredentialSource>(origin: &str, layer: AuthorizationLayer<C>) -> std::net::SocketAddr {
    let proxy = ReverseProxyLayer::new(origin)
        .allow_upgrade("tcp")
        .on_error(|error| (error.status(), format!("{:?} in {:?}", error.kind(), error.phase())))
        .upstream_layer(layer);
    front(Router::new().layer(proxy)).await
}

/// The fields about credentials that a backend answers with.
const CHALLENGES: &str = "WWW-Authenticate: Negotiate oYG3MIG0, Basic realm=\"a, b\"\r\nWWW-Authenticate: NTLM\r\n\
    www-authenticate: negotiate oRQwEqADCgEB\r\nWWW-Authenticate: NTLM TlRMTVNTUAAC\r\n\
    Persistent-Auth: true\r\nProxy-Support: Session-Based-Authentication\r\n";

#[tokio::test]
async fn a_refusal_of_the_backend_becomes_502_or_403() {
    let response = format!("HTTP/1.1 401 Unauthorized\r\n{CHALLENGES}Content-Length: 6\r\n\r\nsecret");
    let origin = answering(response).await;
    for (layer, status) in [
        (layer(FRONT), 502),
        (layer(USER), 403),
        (layer(FRONT).refused_as(StatusCode::NOT_FOUND), 404),
        (layer(USER).refused_as(StatusCode::SERVICE_UNAVAILABLE), 503),
        (layer(USER).required(true), 403),
    ] {
        let answer = get(app(&origin, layer).await, "/x", "").await;
        let page = "CredentialsRefused in ResponseHead";
        assert_eq!((answer.status(), &*answer.text()), (status, page));
        for name in ["www-authenticate", "persistent-auth", "proxy-support"] {
            assert!(answer.all(name).is_empty(), "{name}: {}", answer.head);
        }
    }
}

#[tokio::test]
async fn without_credentials_the_challenges_of_the_backend_pass() {
    let (origin, mut requests) =
        recording("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic, Negotiate\r\nContent-Length: 2\r\n\r\nno")
            .await;
    let answer = get(app(&origin, layer(ABSENT)).await, "/x", "Authorization: Basic YTpi\r\n").await;
    assert_eq!((answer.status(), &*answer.text()), (401, "no"));
    assert_eq!(answer.field("www-authenticate"), Some("Basic, Negotiate"));
    assert_eq!(within(requests.recv()).await.unwrap().field("authorization"), None);

    let answer = get(app(&origin, layer(ABSENT).required(true)).await, "/x", "").await;
    assert_eq!((answer.status(), &*answer.text()), (403, "SignInRequired in Request"));
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
}

#[tokio::test]
async fn the_challenges_that_answer_credentials_never_reach_the_client() {
    for (status, body) in [
        ("200 OK", "Content-Length: 2\r\n\r\nok"),
        ("404 Not Found", "Content-Length: 2\r\n\r\nok"),
        ("302 Found", "Location: /y\r\nContent-Length: 0\r\n\r\n"),
        ("304 Not Modified", "ETag: \"1\"\r\n\r\n"),
        ("500 Internal Server Error", "Content-Length: 0\r\n\r\n"),
        ("101 Switching Protocols", "Connection: upgrade\r\nUpgrade: tcp\r\n\r\n"),
    ] {
        let origin = answering(format!("HTTP/1.1 {status}\r\n{CHALLENGES}X-Ok: 1\r\n{body}")).await;
        let offer = if status.starts_with("101") { "Connection: upgrade\r\nUpgrade: tcp\r\n" } else { "" };
        for (layer, kept) in [
            (layer(FRONT), &[][..]),
            (layer(USER), &[]),
            (layer(USER).pass_challenges(true), &["Basic realm=\"a, b\"", "NTLM"]),
        ] {
            let mut wire = client(app(&origin, layer).await).await;
            wire.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{offer}\r\n").as_bytes()).await;
            let head = within(wire.head()).await.unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
            assert!(head.to_lowercase().contains("x-ok: 1"), "{head}");
            let lower = head.to_lowercase();
            assert!(!lower.contains("persistent-auth") && !lower.contains("proxy-support"), "{head}");
            let challenges: Vec<_> = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .filter(|(name, _)| name.eq_ignore_ascii_case("www-authenticate"))
                .map(|(_, value)| value)
                .collect();
            assert_eq!(challenges, kept, "{status}");
        }
    }
}

#[tokio::test]
async fn a_401_passes_with_the_challenges_that_are_not_the_fronts() {
    let cases: [(&str, &[&str]); 4] = [
        ("WWW-Authenticate: Basic realm=\"b\"\r\n", &["Basic realm=\"b\""]),
        ("WWW-Authenticate: Negotiate\r\nWWW-Authenticate: Basic\r\n", &["Negotiate", "Basic"]),
        ("WWW-Authenticate: Negotiate oYG3, Basic\r\n", &["Basic"]),
        ("WWW-Authenticate: Negotiate oYG3\r\n", &[]),
    ];
    for (lines, kept) in cases {
        let origin = answering(format!("HTTP/1.1 401 Unauthorized\r\n{lines}Content-Length: 2\r\n\r\nno")).await;
        let answer = get(app(&origin, layer(USER).pass_challenges(true)).await, "/x", "").await;
        assert_eq!((answer.status(), &*answer.text()), (401, "no"));
        assert_eq!(answer.all("www-authenticate"), kept);
    }
}

#[tokio::test]
async fn the_clients_authorization_is_replaced_or_removed_in_every_spelling() {
    let (origin, mut requests) = recording(OK).await;
    for (source, sent) in [(FRONT, &["ApiKey c2VjcmV0"][..]), (ABSENT, &[])] {
        let addr = app(&origin, layer(source)).await;
        for fields in [
            "",
            "Authorization: Basic YTpi\r\n",
            "AUTHORIZATION: Basic YTpi\r\nauthorization: Bearer x\r\naUtHoRiZaTiOn: Negotiate oYG3\r\n",
            "Authorization: Basic YTpi\r\nConnection: authorization\r\n",
        ] {
            assert_eq!(get(addr, "/x", fields).await.status(), 200);
            assert_eq!(within(requests.recv()).await.unwrap().all("authorization"), sent, "{fields}");
        }
        let request = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization, X-Ok\r\n\r\n\
            0\r\nAuthorization: Basic YTpi\r\nAUTHORIZATION: Basic YTpi\r\nX-Ok: 1\r\n\r\n";
        assert_eq!(ask(addr, request).await.status(), 200);
        let got = within(requests.recv()).await.unwrap();
        assert_eq!((got.all("authorization"), got.field("trailer")), (sent.to_vec(), Some("X-Ok")));
        assert_eq!(got.trailers.to_lowercase(), "x-ok: 1\r\n");
    }
}

/// What an inner service sees of a request: its `Authorization` and its owner.
async fn seen(source: Fixed, outer: Option<Owner>) -> (Option<HeaderValue>, Option<Owner>) {
    let inner = service_fn(async |request: Request| {
        let mut response = Response::new(Body::empty());
        let authorization = request.headers().get("authorization").cloned();
        response.extensions_mut().insert((authorization, request.extensions().get::<Owner>().cloned()));
        Ok::<_, BoxError>(response)
    });
    let mut request = Request::new(Body::empty());
    if let Some(owner) = outer {
        request.extensions_mut().insert(owner);
    }
    let mut response = within(layer(source).layer(inner).oneshot(request)).await.unwrap();
    response.extensions_mut().remove().unwrap()
}

#[tokio::test]
async fn the_owner_of_the_credentials_replaces_a_foreign_one() {
    const PRINCIPAL: Fixed = Fixed(|_| {
        let token = HeaderValue::from_static("Negotiate oYG3");
        Some(Credentials::of_front(token).owner(Owner::Principal("front@A".into())))
    });
    let foreign = || Some(Owner::Principal("mallory@A".into()));
    for outer in [None, foreign()] {
        let (authorization, owner) = seen(PRINCIPAL, outer.clone()).await;
        assert_eq!(
            (authorization.unwrap(), owner),
            ("Negotiate oYG3".parse().unwrap(), Some(Owner::Principal("front@A".into())))
        );
        let (authorization, owner) = seen(USER, outer.clone()).await;
        assert!(authorization.unwrap().is_sensitive());
        assert_eq!(owner, None);
        assert_eq!(seen(ABSENT, outer).await, (None, None));
    }
}

#[tokio::test]
async fn without_a_proxy_around_it_the_layer_removes_the_announcement_of_credentials_as_trailers() {
    for (announced, left) in [("X-Sum, AUTHORIZATION, X-Ok", Some("X-Sum, X-Ok")), ("authorization", None)] {
        let inner = service_fn(async |request: Request| {
            let mut response = Response::new(Body::empty());
            response.headers_mut().extend(request.headers().clone());
            Ok::<_, BoxError>(response)
        });
        let mut request = Request::new(Body::empty());
        request.headers_mut().insert("authorization", HeaderValue::from_static("Basic YTpi"));
        request.headers_mut().insert("trailer", HeaderValue::from_static(announced));
        let response = within(layer(ABSENT).layer(inner).oneshot(request)).await.unwrap();
        assert_eq!(response.headers().get("trailer").map(HeaderValue::as_bytes), left.map(str::as_bytes));
        assert_eq!(response.headers().get("authorization"), None);
    }
}

/// A proof that a response repeats a nonce; it isn't ready at once.
#[derive(Clone)]
struct Nonce(Arc<AtomicUsize>);

struct Repeats(String);

impl CredentialSource for Nonce {
    type Proof = Repeats;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Option<Credentials<Repeats>>, Error>> + Send>>;

    fn credentials(&self, _: &Ask<'_>) -> Self::Future {
        let nonce = self.0.fetch_add(1, Ordering::SeqCst).to_string();
        Box::pin(async move {
            tokio::task::yield_now().await;
            let value = HeaderValue::try_from(format!("Nonce {nonce}")).unwrap();
            Ok(Some(Credentials::of_front(value).proof(Repeats(nonce))))
        })
    }
}

impl Proof for Repeats {
    fn verify(self, response: &HeaderMap) -> Result<(), Error> {
        match response.get("www-authenticate") {
            Some(value) if *value == format!("Nonce {}", self.0) => Ok(()),
            _ => Err(Error::rejected(StatusCode::BAD_GATEWAY, "another nonce")),
        }
    }
}

#[tokio::test]
async fn each_response_is_verified_with_the_proof_of_its_own_request() {
    for status in ["200 OK", "304 Not Modified", "404 Not Found"] {
        // It repeats every nonce but the second one.
        let origin = backend(move |mut wire| async move {
            while let Some(request) = wire.message().await {
                let nonce = request.field("authorization").unwrap().replace('1', "7");
                let length = if status.starts_with('3') { "" } else { "Content-Length: 0\r\n" };
                wire.send(format!("HTTP/1.1 {status}\r\nWWW-Authenticate: {nonce}\r\n{length}\r\n").as_bytes()).await;
            }
        })
        .await;
        let addr = app(&origin, AuthorizationLayer::with_source(Nonce(Arc::default()))).await;
        let number = status[..3].parse().unwrap();
        for expected in [number, 502, number] {
            let answer = get(addr, "/x", "").await;
            assert_eq!((answer.status(), answer.field("www-authenticate")), (expected, None));
        }
    }
}

#[tokio::test]
async fn each_attempt_below_a_retry_layer_has_its_own_credentials() {
    let (origin, mut requests) = recording("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    let twice = layer_fn(|inner: Authorization<Nonce, Client>| {
        service_fn(move |request: Request| {
            let inner = inner.clone();
            async move {
                let (parts, _) = request.into_parts();
                drop(inner.clone().oneshot(Request::from_parts(parts.clone(), Body::empty())).await);
                inner.oneshot(Request::from_parts(parts, Body::empty())).await
            }
        })
    });
    let proxy = ReverseProxyLayer::new(origin)
        .upstream_layer(AuthorizationLayer::with_source(Nonce(Arc::default())))
        .upstream_layer(twice);
    get(front(Router::new().layer(proxy)).await, "/x", "").await;
    for nonce in ["Nonce 0", "Nonce 1"] {
        assert_eq!(within(requests.recv()).await.unwrap().field("authorization"), Some(nonce));
    }
}

#[tokio::test]
async fn a_source_learns_of_a_refusal_once() {
    const REPORTS: Fixed = Fixed(|ask| {
        Some(Credentials::of_front(HeaderValue::from_static(if ask.was_refused() {
            "Key refused"
        } else {
            "Key first"
        })))
    });
    let origin = backend(|mut wire| async move {
        while let Some(request) = wire.message().await {
            let status = if request.start_line().contains("/no") { "401 Unauthorized" } else { "200 OK" };
            let key = request.field("authorization").unwrap();
            wire.send(format!("HTTP/1.1 {status}\r\nX-Key: {key}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
        }
    })
    .await;
    for layer in [layer(REPORTS), layer(REPORTS).pass_challenges(true)] {
        let addr = app(&origin, layer).await;
        for (target, key) in [("/a", "Key first"), ("/no", ""), ("/b", "Key refused"), ("/c", "Key first")] {
            let answer = get(addr, target, "").await;
            assert_eq!(answer.field("x-key").filter(|_| !key.is_empty()).unwrap_or_default(), key, "{target}");
        }
    }
}

#[tokio::test]
async fn the_source_sees_the_configured_backend_and_no_host_of_the_client() {
    const BACKEND: Fixed = Fixed(|ask| {
        let authority = ask.backend().map_or("none", |authority| authority.as_str());
        Some(Credentials::of_front(HeaderValue::from_str(authority).unwrap()))
    });
    let origin = mirror().await;
    let addr = app(&origin, layer(BACKEND)).await;
    for request in [
        "GET /x HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        "GET http://evil.example/x HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    ] {
        let mirrored = ask(addr, request).await.mirrored();
        assert_eq!(mirrored.field("authorization"), origin.strip_prefix("http://"));
        assert_eq!(mirrored.field("host"), Some("evil.example"));
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_that_never_arrive_are_504_after_the_deadline() {
    #[derive(Clone)]
    struct Never;

    impl CredentialSource for Never {
        type Proof = ();
        type Future = std::future::Pending<Result<Option<Credentials>, Error>>;

        fn credentials(&self, _: &Ask<'_>) -> Self::Future {
            std::future::pending()
        }
    }

    let inner = || service_fn(async |_: Request| -> Result<Response<Body>, Error> { panic!("nothing is sent") });
    for (layer, seconds) in [
        (AuthorizationLayer::with_source(Never), 10),
        (AuthorizationLayer::with_source(Never).deadline(Duration::from_secs(2)), 2),
    ] {
        let start = tokio::time::Instant::now();
        let error = layer.layer(inner()).oneshot(Request::default()).await.unwrap_err();
        assert_eq!((error.kind(), error.phase()), (ErrorKind::CredentialsTimeout, Phase::Connect));
        assert_eq!((error.status().as_u16(), error.is_timeout(), error.is_unsent()), (504, true, true));
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(&format!("{seconds}s, the layer's `deadline`")), "{cause}");
        assert_eq!(start.elapsed().as_secs(), seconds);
    }
    let endless = AuthorizationLayer::with_source(Never).deadline(None).layer(inner());
    tokio::time::timeout(Duration::from_secs(1_000_000), endless.oneshot(Request::default())).await.unwrap_err();
}

#[tokio::test]
async fn a_refusal_that_arrives_during_the_upload_ends_it() {
    let origin = backend(|mut wire| async move {
        wire.head().await.unwrap();
        wire.send(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 1000000\r\n\r\nsecret")
            .await;
        // The rest of the body never comes. The proxy closes the connection.
        while !wire.bytes(1).await.is_empty() {}
    })
    .await;
    for (source, status) in [(FRONT, 502), (USER, 403)] {
        for framing in ["Content-Length: 100000000", "Transfer-Encoding: chunked"] {
            let mut wire = client(app(&origin, layer(source)).await).await;
            wire.send(format!("POST /x HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n").as_bytes()).await;
            let answer = within(wire.message()).await.unwrap();
            let page = "CredentialsRefused in ResponseHead";
            assert_eq!((answer.status(), &*answer.text(), answer.field("www-authenticate")), (status, page, None));
        }
    }
}

#[tokio::test]
async fn a_refusal_has_a_cause_that_names_the_schemes_only() {
    let respond = service_fn(async |_: Request| {
        let response = Response::builder().status(401).header("www-authenticate", "Basic realm=\"c2VjcmV0\"");
        let response = response.header("www-authenticate", "Negotiate c2VjcmV0, Bearer error=\"c2VjcmV0\"");
        Ok::<_, Error>(response.body(Body::from(SECRET)).unwrap())
    });
    let error = layer(FRONT).layer(respond).oneshot(Request::default()).await.unwrap_err();
    assert_eq!((error.kind(), error.is_client(), error.is_unsent()), (ErrorKind::CredentialsRefused, false, false));
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.ends_with("Basic, Negotiate, Bearer"), "{source}");
    assert!(!format!("{error:?} {error} {source}").contains(SECRET), "{error:?}");
}

#[tokio::test]
async fn an_authorization_layer_fits_around_every_upstream() {
    let (origin, mut requests) = recording(OK).await;
    let optional = |is_on: bool| option_layer(is_on.then(|| layer(FRONT)));
    let boxed = Upstream::new(&*origin).boxed().layer(layer(FRONT));
    let service = ServiceBuilder::new().layer(layer(FRONT)).service(BoxUpstream::new(Upstream::new(&*origin)));
    let members = tower::discover::ServiceList::new(
        [Upstream::new(&*origin), Upstream::new(&*origin)].map(|upstream| tower::load::Constant::new(upstream, 1)),
    );
    let balanced =
        ServiceBuilder::new().layer(layer(FRONT)).buffer(8).service(tower::balance::p2c::Balance::new(members));
    for (app, sent) in [
        (Router::new().layer(ReverseProxyLayer::new(&*origin).upstream_layer(optional(true))), true),
        (Router::new().layer(ReverseProxyLayer::new(&*origin).upstream_layer(optional(false))), false),
        (Router::new().layer(ReverseProxyLayer::with_upstream(boxed)), true),
        (Router::new().layer(ReverseProxyLayer::with_upstream(service)), true),
        (Router::new().layer(ReverseProxyLayer::with_upstream(balanced)), true),
    ] {
        assert_eq!(get(front(app).await, "/x", "").await.status(), 200);
        let authorization = within(requests.recv()).await.unwrap().field("authorization").map(str::to_owned);
        assert_eq!(authorization.is_some(), sent);
    }
}

#[test]
fn debug_output_of_no_type_shows_credentials() {
    let layer = layer(FRONT);
    let mut service = layer.layer(ok().map_err(BoxError::from));
    let credentials = Credentials::of_user(value()).owner(Owner::Principal("alice@A".into()));
    let shown = format!("{layer:?} {service:?} {credentials:?} {:?}", service.call(Request::default()));
    assert!(!shown.contains(SECRET) && shown.contains("AuthorizationLayer") && shown.contains("alice@A"), "{shown}");
}

#[test]
fn an_invalid_status_for_a_refusal_panics_with_what_to_write() {
    for status in [StatusCode::UNAUTHORIZED, StatusCode::OK, StatusCode::FOUND, StatusCode::SWITCHING_PROTOCOLS] {
        let panic = std::panic::catch_unwind(|| layer(FRONT).refused_as(status)).unwrap_err();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains("write one of 4xx or 5xx other than 401"), "{message}");
    }
}

/// A service that has to be ready when it's called, as tower requires it.
struct Strict {
    is_ready: bool,
    calls: Arc<AtomicUsize>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { is_ready: false, calls: self.calls.clone() }
    }
}

impl Service<Request> for Strict {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Ready<Result<Response<Body>, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        assert!(self.is_ready, "the service is called before it's ready");
        self.is_ready = false;
        self.calls.fetch_add(1, Ordering::SeqCst);
        ready(Ok(Response::new(Body::empty())))
    }
}

#[tokio::test]
async fn the_service_that_is_ready_gets_the_request() {
    let strict = Strict { is_ready: false, calls: Arc::default() };
    let calls = strict.calls.clone();
    let mut service = AuthorizationLayer::with_source(Nonce(Arc::default())).layer(strict);
    for count in 1..=3 {
        let response = within(service.ready()).await.unwrap().call(Request::default());
        // A proof fails here, after the call.
        assert_eq!(within(response).await.unwrap_err().kind(), ErrorKind::Rejected);
        assert_eq!(calls.load(Ordering::SeqCst), count);
    }
}

#[tokio::test]
async fn a_request_that_is_cancelled_while_its_credentials_are_awaited_sends_nothing() {
    let strict = Strict { is_ready: false, calls: Arc::default() };
    let calls = strict.calls.clone();
    let mut service = AuthorizationLayer::with_source(Nonce(Arc::default())).layer(strict);
    let mut response = Box::pin(within(service.ready()).await.unwrap().call(Request::default()));
    assert!(futures_util::poll!(response.as_mut()).is_pending());
    drop(response);
    others_run().await;
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_user_layer_behind_any_source_that_read_another_user_refuses_the_request() {
    const OF_USER: Fixed = Fixed(|ask| ask.user().map(|_| Credentials::of_user(value())));
    let respond = service_fn(async |_: Request| Ok::<_, Error>(Response::new(Body::empty())));
    let user = RemoteUserLayer::from_extension(|name: &&'static str| Some(*name));
    for (source, kind) in [(OF_USER, Some(ErrorKind::Rejected)), (USER, None)] {
        let mut request = Request::default();
        request.extensions_mut().insert("alice");
        let service = ServiceBuilder::new().layer(layer(source)).layer(user.clone()).service(respond);
        let outcome = within(service.oneshot(request)).await;
        assert_eq!(
            outcome.as_ref().err().map(|error| (error.kind(), error.status().as_u16())),
            kind.map(|kind| (kind, 500))
        );
    }
}
