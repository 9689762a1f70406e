//! The `tracing` events of the proxy: one per failure, tunnel and redirect, without secrets.
//!
//! A binary of its own, because its subscriber is global. A thread's subscriber misses events whose callsite another
//! thread registered first.
#![allow(clippy::expect_used, clippy::unwrap_used)] // a missing value fails the test

#[allow(dead_code, unused_imports)] // the other binary uses all of it
#[path = "it/support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt, mem,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    http::{Request, Response, StatusCode},
};
use futures_util::StreamExt as _;
use tokio::{io::AsyncWriteExt, net::TcpListener, sync::Notify};
use tower::{Layer as _, ServiceExt, service_fn};
use tower_reverse_proxy::{
    Backends, BasicAuthLayer, BearerLayer, Forwarded, RemoteUser, RemoteUserLayer, Retry, RetryPolicy,
    ReverseProxyLayer, TraceRedirectLayer, Tunnels, Upstream,
    authorize::Token,
    balance::{Balance, Check, Member},
};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    layer::{Context, SubscriberExt},
};

use self::support::{
    PATIENCE, answering, ask, backend, client, closing, front, get, in_two_parts, mirror, refusing, silent, within,
};

const SHORT: Duration = Duration::from_millis(150);

type Fields = BTreeMap<&'static str, String>;

/// The events of this crate, each as its fields.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<Fields>>>);

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Visitor(Fields);
        impl Visit for Visitor {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0.insert(field.name(), format!("{value:?}"));
            }

            fn record_str(&mut self, field: &Field, value: &str) {
                self.0.insert(field.name(), value.to_owned());
            }
        }
        let mut visitor = Visitor(BTreeMap::new());
        event.record(&mut visitor);
        let metadata = event.metadata();
        visitor.0.insert("level", metadata.level().to_string());
        // `target` is the name of a field, too.
        visitor.0.insert("event_target", metadata.target().to_owned());
        self.0.lock().unwrap().push(visitor.0);
    }
}

/// Exclusive access to the events of the process.
struct Turn {
    events: Events,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

impl Turn {
    async fn take() -> Self {
        static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        static EVENTS: LazyLock<Events> = LazyLock::new(|| {
            let events = Events::default();
            let ours = Targets::new().with_target("tower_reverse_proxy", Level::TRACE);
            let subscriber = tracing_subscriber::registry().with(events.clone().with_filter(ours));
            tracing::subscriber::set_global_default(subscriber).unwrap();
            events
        });
        let turn = Self { _alone: TURN.lock().await, events: EVENTS.clone() };
        turn.events();
        turn
    }

    /// The events since the last time.
    fn events(&self) -> Vec<Fields> {
        mem::take(&mut *self.events.0.lock().unwrap())
    }

    /// The one event since the last time.
    #[track_caller]
    fn event(&self) -> Fields {
        let mut events = self.events();
        assert_eq!(events.len(), 1, "one event: {events:?}");
        events.remove(0)
    }
}

const OFFER: &str = "GET /chat?key=s3cret HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nCookie: session=s3cret\r\n\r\n";
const ACCEPT: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// A backend that switches protocols and echoes, 5 bytes at a time. It sends `bye` at the client's end, and nothing at
/// its own.
async fn echo() -> String {
    backend(|mut wire| async move {
        if wire.head().await.is_none() {
            return;
        }
        wire.send(ACCEPT).await;
        loop {
            match &*wire.bytes(5).await {
                b"" => return wire.send(b"bye").await,
                b"leave" => return,
                b"reset" => return wire.stream.set_zero_linger().unwrap(),
                bytes => wire.send(bytes).await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn each_ended_tunnel_is_one_event() {
    let turn = Turn::take().await;
    let echo = echo().await;
    let (idle, old) = (Tunnels::new().idle_timeout(SHORT), Tunnels::new().max_age(SHORT));
    // The client sends 5 bytes with its upgrade request, gets them back, and then ends the tunnel in one of these ways.
    // With the total of bytes up and down.
    for (last, tunnels, up, down, ended_by) in [
        ("end", Tunnels::new(), 5, 8, "client"),
        ("abort", Tunnels::new(), 5, 5, "client"),
        ("leave", Tunnels::new(), 10, 5, "backend"),
        ("reset", Tunnels::new(), 10, 5, "backend"),
        ("wait", idle, 5, 5, "idle timeout"),
        ("wait", old, 5, 5, "maximum age"),
        ("stop", Tunnels::new(), 5, 5, "shutdown"),
    ] {
        let layer = ReverseProxyLayer::new(&echo).tunnels(tunnels.clone());
        let mut wire = client(front(Router::new().layer(layer)).await).await;
        wire.send(format!("{OFFER}early").as_bytes()).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101 "));
        assert_eq!(wire.bytes(5).await, b"early");
        match last {
            "end" => {
                wire.stream.shutdown().await.unwrap();
                assert_eq!(wire.bytes(3).await, b"bye");
            }
            "abort" => {
                wire.stream.set_zero_linger().unwrap();
                drop(wire);
            }
            "stop" => tunnels.shut_down(),
            "wait" => assert!(wire.closed().await),
            last => {
                wire.send(last.as_bytes()).await;
                // The backend ends first.
                assert!(wire.closed().await);
                drop(wire);
            }
        }
        within(tunnels.wait()).await;
        let event = turn.event();
        let is = |name, value: &str| assert_eq!(event[name], value, "{last}: {event:?}");
        is("event_target", "tower_reverse_proxy::tunnel");
        is("level", "INFO");
        is("message", "a tunnel has ended");
        is("ended_by", ended_by);
        is("up", &up.to_string());
        is("down", &down.to_string());
        assert_eq!(event.contains_key("error"), ["abort", "reset"].contains(&last), "{event:?}");
        let age: u128 = event["age_ms"].parse().unwrap();
        assert!(last != "wait" || age >= SHORT.as_millis(), "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_leaves_its_set_and_comes_back_is_two_events() {
    let turn = Turn::take().await;
    let is_well = Arc::new(AtomicBool::new(false));
    let backends = Backends::try_new([Member::named("bad"), Member::named("good")]).unwrap();
    let balance = {
        let is_well = is_well.clone();
        Balance::new(&backends, move |member: &Member| {
            let (is_well, is_bad) = (is_well.clone(), member.name() == "bad");
            service_fn(move |_: Request<Body>| {
                let fails = is_bad && !is_well.load(Ordering::SeqCst);
                let status = if fails { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
                let response = Response::builder().status(status).body(Body::empty());
                async move { Ok::<_, Infallible>(response.unwrap()) }
            })
        })
    };
    let ask = async |method: &str| {
        let request = Request::builder().method(method).uri("/?key=s3cret").body(Body::empty()).unwrap();
        balance.clone().oneshot(request).await.unwrap().status()
    };
    let mut events = Vec::new();
    for _ in 0..1_000 {
        ask("POST").await;
        events = turn.events();
        if !events.is_empty() {
            break;
        }
        // No debt is left.
        tokio::time::advance(Duration::from_secs(70)).await;
    }
    let [event] = &events[..] else { panic!("{events:?}") };
    let is = |name, value: &str| assert_eq!(event[name], value, "{event:?}");
    is("event_target", "tower_reverse_proxy");
    is("level", "WARN");
    is("message", "a member is taken out of its set");
    is("member", "bad");
    is("state", "ejected");
    is("reason", "faults in a row");
    is_well.store(true, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(ask("GET").await, 200);
    let event = turn.event();
    let is = |name, value: &str| assert_eq!(event[name], value, "{event:?}");
    is("level", "INFO");
    is("message", "a member is back in its set");
    is("member", "bad");
}

#[tokio::test]
async fn the_event_of_failed_checks_has_the_cause() {
    let turn = Turn::take().await;
    for (origin, cause) in [
        (answering("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await, "the status is 404"),
        (refusing().await, "refused"),
        (silent().await, "no response within"),
    ] {
        let check = Check::get("/healthz").interval(Duration::from_millis(20)).timeout(SHORT);
        let backends = Backends::builder([origin]).check(check).build().unwrap();
        // A mount begins the checks.
        let layer = ReverseProxyLayer::balanced(&backends);
        let out = async {
            loop {
                if let Some(event) = turn.events().pop() {
                    break event;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let event = within(out).await;
        assert_eq!((&*event["state"], &*event["reason"]), ("down", "failed checks"), "{event:?}");
        assert!(event["cause"].contains(cause), "{event:?}");
        drop(layer);
    }
}

#[tokio::test]
async fn a_source_that_fails_is_one_warning_until_it_is_well_again() {
    const ONE: &str = "http://10.0.0.1:8000";
    let turn = Turn::take().await;
    let backends = Backends::new([ONE]);
    for (failure, cause) in [
        (Err("SERVFAIL"), "SERVFAIL"),
        (Ok(vec![]), "the source has no members"),
        (Ok(vec![Member::new(ONE).weight(0)]), "the weight of \"http://10.0.0.1:8000\" is 0: write 1 or more"),
        (Ok(vec![Member::new(ONE), Member::new(ONE)]), "\"http://10.0.0.1:8000\" is listed twice"),
    ] {
        let well = || Ok(vec![Member::new(ONE)]);
        let answers = [well(), failure.clone(), failure, well(), well()];
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        let mut ended = Some(ended);
        let source = futures_util::stream::iter(answers).chain(futures_util::stream::poll_fn(move |_| {
            ended.take();
            std::task::Poll::Ready(None)
        }));
        let _follow = backends.follow(source);
        assert!(within(end).await.is_err(), "the source has ended");
        let events = turn.events();
        let [failed, back] = &events[..] else { panic!("{events:?}") };
        assert_eq!(
            (&*failed["level"], &*failed["message"]),
            ("WARN", "a source of backends fails; the last ones stay")
        );
        assert!(failed["cause"].starts_with(cause), "{failed:?}");
        assert_eq!((&*back["level"], &*back["message"]), ("INFO", "a source of backends is well again"));
    }
}

/// The cause of a cut has no address.
#[tokio::test]
async fn the_event_of_a_failure_names_the_member() {
    let turn = Turn::take().await;
    for (origin, kind) in [
        (refusing().await, "Connect"),
        (closing("").await, "ConnectionClosed"),
        (closing("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart").await, "ResponseBody"),
        (
            closing("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n").await,
            "UnexpectedUpgrade",
        ),
        (silent().await, "HeaderTimeout"),
        (in_two_parts(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"").await.0, "ResponseBodyTimeout"),
    ] {
        let layer = ReverseProxyLayer::balanced([&*origin]).retry(RetryPolicy::none());
        // A busy machine may be late with the others.
        let limit = if kind.ends_with("Timeout") { SHORT } else { PATIENCE };
        let layer = layer.header_timeout(limit).body_idle_timeout(limit);
        get(front(Router::new().layer(layer)).await, "/x", "").await;
        let event = turn.event();
        assert_eq!((&*event["kind"], &*event["member"]), (kind, &*origin), "{event:?}");
    }
    let refusing = refusing().await;
    let layer = ReverseProxyLayer::balanced([&*refusing]).retry(RetryPolicy::unsent().attempts(2));
    get(front(Router::new().layer(layer)).await, "/x", "").await;
    let events = turn.events();
    let retried = events.iter().find(|event| event["message"].contains("is sent again"));
    assert_eq!(retried.map(|event| &*event["member"]), Some(&*refusing), "{events:?}");
    // Without a balancer, there is none.
    get(front(Router::new().layer(ReverseProxyLayer::new(closing("").await))).await, "/x", "").await;
    assert!(!turn.event().contains_key("member"));
}

#[tokio::test]
async fn a_missing_peer_address_is_reported_once() {
    let turn = Turn::take().await;
    let layer = ReverseProxyLayer::new(mirror().await);
    let serve = async |layer: ReverseProxyLayer| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        // The layer wraps two routes, and is cloned with each request.
        let app = Router::new().route("/a", axum::routing::get(|| async {})).fallback(|| async {}).layer(layer);
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        addr
    };
    let addr = serve(layer.clone()).await;
    for target in ["/a", "/b", "/a"] {
        assert_eq!(get(addr, target, "").await.mirrored().field("x-forwarded-for"), None);
    }
    let event = turn.event();
    assert_eq!((&*event["level"], &*event["event_target"]), ("WARN", "tower_reverse_proxy"));
    assert!(event["message"].contains("into_make_service_with_connect_info::<SocketAddr>()"), "{event:?}");

    let addr = serve(layer.clone().forwarded(Forwarded::new().x_forwarded(false))).await;
    assert_eq!(get(addr, "/a", "").await.status(), 200);
    let addr = serve(layer.clone().forwarded(Forwarded::new().trust_unix_peers(true))).await;
    assert_eq!(get(addr, "/a", "").await.status(), 200);
    let addr = front(Router::new().layer(layer)).await;
    assert_eq!(get(addr, "/a", "").await.status(), 200);
    assert_eq!(turn.events(), []);
}

#[tokio::test]
async fn each_removed_identity_claim_is_one_event() {
    let turn = Turn::take().await;
    let layer = ReverseProxyLayer::new(mirror().await);
    let claims = "Remote-User: s3cret\r\nRemote-Groups: s3cret\r\nremote-groups: s3cret\r\nX-WEBAUTH-USER: s3cret\r\nAccept: a\r\n";
    let addr = front(Router::new().layer(layer.clone())).await;
    assert_eq!(get(addr, "/x", claims).await.status(), 200);
    let events = turn.events();
    let mut headers: Vec<_> = events.iter().map(|event| &*event["header"]).collect();
    headers.sort_unstable();
    assert_eq!(headers, ["remote-groups", "remote-user", "x-webauth-user"]);
    for event in &events {
        assert_eq!((&*event["level"], &*event["event_target"]), ("DEBUG", "tower_reverse_proxy"));
        assert!(!format!("{event:?}").contains("s3cret"), "{event:?}");
    }
    let addr = front(Router::new().layer(layer.keep_identity_claims(true))).await;
    assert_eq!(get(addr, "/x", claims).await.status(), 200);
    assert_eq!(turn.events(), []);
}

#[tokio::test]
async fn the_event_of_a_half_closed_tunnel_names_the_timeout() {
    let turn = Turn::take().await;
    // The backend ignores the client's end.
    let origin = backend(|mut wire| async move {
        wire.head().await;
        wire.send(ACCEPT).await;
        std::future::pending::<()>().await;
    })
    .await;
    let tunnels = Tunnels::new();
    let layer = ReverseProxyLayer::new(origin).tunnels(tunnels.clone().half_closed_timeout(SHORT));
    let mut wire = client(front(Router::new().layer(layer)).await).await;
    wire.send(OFFER.as_bytes()).await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101 "));
    wire.stream.shutdown().await.unwrap();
    assert!(wire.closed().await);
    within(tunnels.wait()).await;
    let event = turn.event();
    assert_eq!((&*event["message"], &*event["ended_by"]), ("a tunnel has ended", "half-closed timeout"));
}

#[tokio::test]
async fn a_tunnel_that_never_opened_has_no_event() {
    let turn = Turn::take().await;
    let tunnels = Tunnels::new();
    let origin = backend(|mut wire| async move {
        wire.head().await;
        wire.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    })
    .await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(origin).tunnels(tunnels.clone()))).await;
    assert_eq!(ask(addr, OFFER).await.status(), 403);
    within(tunnels.wait()).await;
    assert_eq!(turn.events(), []);
}

#[tokio::test]
async fn early_hints_are_traced_and_not_forwarded() {
    const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
    let turn = Turn::take().await;
    let origin = backend(|mut wire| async move {
        while let Some(head) = wire.head().await {
            wire.send(HINTS).await;
            if head.contains("100-continue") {
                wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await;
            }
            if head.starts_with("POST") {
                assert_eq!(wire.bytes(5).await, b"hello");
            }
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(origin))).await;
    for (request, body) in [
        ("GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n", ""),
        ("POST /x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 5\r\n\r\nhello", ""),
        ("POST /x HTTP/1.1\r\nHost: front.example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", "hello"),
    ] {
        let mut wire = client(addr).await;
        wire.send(request.as_bytes()).await;
        if !body.is_empty() {
            assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 100 "), "{request}");
            wire.send(body.as_bytes()).await;
        }
        let head = wire.head().await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("link"), "{request}: {head}");
        assert_eq!(wire.bytes(2).await, b"ok");
        let event = turn.event();
        assert_eq!((&*event["event_target"], &*event["level"]), ("tower_reverse_proxy", "DEBUG"), "{request}");
        assert_eq!(event["status"], "103", "{request}");
    }
}

/// Faults of a backend: what it sends at first, what it sends when the client has the head, and the status and the
/// event.
const FAULTS: &[(&[u8], &[u8], u16, &str)] = &[
    (b"", b"", 502, "WARN ResponseHead ConnectionClosed"),
    (b"HTTP/1.1 200 OK\r\nSet-Cookie: s3cret\x01\r\n\r\n", b"", 502, "WARN ResponseHead InvalidResponse"),
    (b"s3cret\r\n\r\n", b"", 502, "WARN ResponseHead InvalidResponse"),
    (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: s3cret\r\nConnection: upgrade\r\n\r\n",
        b"",
        502,
        "WARN ResponseHead UnexpectedUpgrade",
    ),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\ns3cret", b"", 200, "WARN ResponseBody ResponseBody"),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ns3cret\r\n",
        b"s3cret",
        200,
        "WARN ResponseBody ResponseBody",
    ),
];

/// A failure of a backend or a client. Everything that can be a secret contains `s3cret`.
struct Case {
    origin: String,
    /// Lets the backend send the rest of a response with the status 200.
    go: Arc<Notify>,
    request: String,
    status: u16,
    /// The level, phase and kind of the event.
    event: &'static str,
}

async fn failures() -> Vec<Case> {
    let case = |origin, request: &str, status, event| Case {
        origin,
        go: Arc::default(),
        request: request.into(),
        status,
        event,
    };
    let get = "GET /x?key=s3cret HTTP/1.1\r\nHost: front.example\r\nAuthorization: Bearer s3cret\r\n\
        Cookie: session=s3cret\r\nProxy-Authorization: Basic s3cret\r\n\r\n";
    let mut failures = vec![
        case(refusing().await, get, 502, "WARN Connect Connect"),
        case(silent().await, get, 504, "WARN ResponseHead HeaderTimeout"),
    ];
    for &(first, rest, status, event) in FAULTS {
        if status == 200 {
            let (origin, go) = in_two_parts(first, rest).await;
            failures.push(Case { go, ..case(origin, get, status, event) });
        } else {
            failures.push(case(closing(first).await, get, status, event));
        }
    }
    let post = "POST /x?key=s3cret HTTP/1.1\r\nHost: front.example\r\nCookie: session=s3cret\r\nTransfer-Encoding:";
    for (request, status, event) in [
        (get.replace("/x", "/../x"), 400, "DEBUG Request InvalidTarget"),
        (get.replace("front.example", "s3cret:s3cret@front"), 400, "DEBUG Request InvalidHost"),
        (get.replace("GET", "TRACE"), 501, "DEBUG Request UnsupportedMethod"),
        (get.replace("Cookie", "Via: 1.1 front.example\r\nCookie"), 508, "DEBUG Request LoopDetected"),
        (format!("{post} s3cret, chunked\r\n\r\n0\r\n\r\n"), 501, "DEBUG Request UnsupportedTransferCoding"),
        (format!("{post} chunked\r\n\r\n6\r\ns3cret\r\ns3cret\r\n"), 400, "DEBUG RequestBody RequestBody"),
        (format!("{post} chunked\r\n\r\n6\r\ns3cret\r\n"), 408, "DEBUG RequestBody RequestBodyTimeout"),
    ] {
        failures.push(case(mirror().await, &request, status, event));
    }
    failures
}

#[tokio::test]
async fn each_failure_is_one_event_with_a_level_by_its_origin() {
    let turn = Turn::take().await;
    for Case { origin, go, request, status, event: expected } in failures().await {
        let layer = ReverseProxyLayer::new(&origin).via("front.example").header_timeout(SHORT).body_idle_timeout(SHORT);
        let mut wire = client(front(Router::new().layer(layer)).await).await;
        wire.send(request.as_bytes()).await;
        if status == 200 {
            assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"), "{expected}: {request}");
            go.notify_one();
            wire.bytes(usize::MAX).await;
        } else {
            assert_eq!(wire.message().await.unwrap().status(), status, "{expected}: {request}");
        }
        let event = turn.event();
        assert_eq!(event["event_target"], "tower_reverse_proxy");
        let seen = format!("{} {} {}", event["level"], event["phase"], event["kind"]);
        assert_eq!(seen, expected, "{request}: {event:?}");
    }
}

#[tokio::test]
async fn the_event_of_a_failure_has_the_whole_chain_of_causes() {
    let turn = Turn::take().await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(refusing().await))).await;
    assert_eq!(get(addr, "/x", "").await.status(), 502);
    let event = turn.event();
    assert_eq!(event["message"], "the backend can't be reached");
    assert!(event["cause"].contains("refused"), "{event:?}");
}

#[tokio::test]
async fn a_request_without_a_target_is_a_warning_that_names_the_extension() {
    let turn = Turn::take().await;
    let addr = front(Router::new().layer(ReverseProxyLayer::to(tower_reverse_proxy::Targets::new()))).await;
    assert_eq!(get(addr, "/x", "").await.status(), 500);
    let event = turn.event();
    assert_eq!(
        (&*event["level"], &*event["kind"], &*event["message"]),
        ("WARN", "NoTarget", "the request has no target")
    );
    assert!(event["cause"].contains("`tower_reverse_proxy::Target`"), "{event:?}");
}

#[tokio::test]
async fn events_and_errors_show_no_secrets() {
    let turn = Turn::take().await;
    let shown = Arc::new(Mutex::new(String::new()));
    let tunnels = Tunnels::new();
    let mut cases = Vec::new();
    for Case { origin, go, request, .. } in failures().await {
        go.notify_one();
        cases.push((origin, request));
    }
    let redirect = "HTTP/1.1 302 Found\r\nLocation: http://s3cret:s3cret@a/?s3cret#s3cret\r\nSet-Cookie: s3cret\r\n\
        Content-Length: 0\r\n\r\n";
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </?s3cret>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let get = "GET /x?s3cret HTTP/1.1\r\nHost: front.example\r\nCookie: s3cret\r\nAuthorization: s3cret\r\n\r\n";
    for response in [redirect, hints] {
        cases.push((answering(response).await, get.to_owned()));
    }
    cases.push((echo().await, OFFER.to_owned()));
    let count = cases.len();
    for (origin, request) in cases {
        let errors = shown.clone();
        let layer = ReverseProxyLayer::new(&origin)
            .via("front.example")
            .header_timeout(SHORT)
            .body_idle_timeout(SHORT)
            .tunnels(tunnels.clone().idle_timeout(SHORT))
            .on_error(move |error| {
                let cause = std::error::Error::source(error.error());
                *errors.lock().unwrap() += &format!("{error} {error:?} {error:#?} {cause:?}\n");
                error.status()
            })
            .upstream_layer(BasicAuthLayer::new("service", "s3cret"))
            .upstream_layer(TraceRedirectLayer::new());
        *shown.lock().unwrap() += &format!("{layer:?} {tunnels:?}");
        let mut wire = client(front(Router::new().layer(layer)).await).await;
        wire.send(request.as_bytes()).await;
        let _ = wire.message().await;
    }
    within(tunnels.wait()).await;
    let events = turn.events();
    assert_eq!(events.len(), count, "{events:?}");
    assert!(shown.lock().unwrap().contains("HeaderTimeout"));
    // In plain text, and encoded as in Basic: `service:s3cret`.
    for text in [format!("{events:?}"), shown.lock().unwrap().clone()] {
        assert!(!text.contains("s3cret") && !text.contains("c2VydmljZTpzM2NyZXQ"), "{text}");
    }
}

#[tokio::test]
async fn a_failure_of_a_nested_proxy_is_one_event() {
    let turn = Turn::take().await;
    let nested = async |origin: String| {
        let outer = ReverseProxyLayer::with_upstream(ReverseProxyLayer::new(origin).into_service());
        let mut wire = client(front(Router::new().layer(outer)).await).await;
        wire.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
        wire
    };
    let mut wire = nested(closing("").await).await;
    assert_eq!(wire.message().await.unwrap().status(), 502);
    assert_eq!(turn.event()["kind"], "ConnectionClosed");
    let (origin, go) = in_two_parts(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart", b"").await;
    let mut wire = nested(origin).await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
    go.notify_one();
    assert_eq!(wire.bytes(usize::MAX).await, b"part");
    assert_eq!(turn.event()["kind"], "ResponseBody");
}

#[tokio::test]
async fn each_redirect_is_one_event_with_the_unmapped_location() {
    let turn = Turn::take().await;
    let origin = answering(
        "HTTP/1.1 302 Found\r\nLocation: http://front.example/mydir/login?token=s3cret#f\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    for (layer, target, location) in [
        (TraceRedirectLayer::new(), "/mydir/x?…", "\"http://front.example/mydir/login?…\""),
        (
            TraceRedirectLayer::new().show_query(true),
            "/mydir/x?key=s3cret",
            "\"http://front.example/mydir/login?token=s3cret#f\"",
        ),
    ] {
        let addr = front(Router::new().layer(ReverseProxyLayer::new(&origin).upstream_layer(layer))).await;
        for _ in 0..2 {
            let answer = get(addr, "/mydir/x?key=s3cret", "").await;
            assert_eq!(answer.field("location"), Some("/mydir/login?token=s3cret#f"), "mapped for the client");
            let event = turn.event();
            assert_eq!((&*event["event_target"], &*event["level"]), ("tower_reverse_proxy::redirect", "INFO"));
            assert_eq!((&*event["method"], &*event["status"]), ("GET", "302"));
            assert_eq!((&*event["target"], &*event["location"]), (target, location));
        }
    }
}

#[tokio::test]
async fn other_responses_are_no_redirect_events() {
    let turn = Turn::take().await;
    for (response, traced) in [
        ("200 OK\r\nLocation: /x", false),
        ("201 Created\r\nLocation: /x", false),
        ("304 Not Modified", false),
        ("300 Multiple Choices", false),
        ("301 Moved Permanently\r\nLocation: /x", true),
        ("308 Permanent Redirect\r\nLocation: \u{e9}", true),
        ("404 Not Found\r\nLocation: /x", false),
    ] {
        let origin = answering(format!("HTTP/1.1 {response}\r\nContent-Length: 0\r\n\r\n")).await;
        let proxy = ReverseProxyLayer::new(&origin).upstream_layer(TraceRedirectLayer::new());
        get(front(Router::new().layer(proxy)).await, "/x", "").await;
        assert_eq!(turn.events().len(), usize::from(traced), "{response}");
    }
}

#[tokio::test]
async fn an_unrepresentable_user_name_is_reported() {
    let turn = Turn::take().await;
    let layer = ReverseProxyLayer::new(refusing().await);
    let user = Router::new().layer(layer.clone().upstream_layer(RemoteUserLayer::new()));
    let basic = Router::new().layer(layer.upstream_layer(BasicAuthLayer::remote_user("s3cret")));
    for (app, name) in [(user, "a\nb"), (basic, "a:b")] {
        let app = app.layer(Extension(RemoteUser::from(name)));
        assert_eq!(get(front(app).await, "/x", "").await.status(), 403);
        // The event with the name, and the event of the failure.
        let events = turn.events();
        let [event, failure] = &events[..] else { panic!("two events: {events:?}") };
        assert_eq!((&*event["level"], event["user"].clone()), ("ERROR", format!("{name:?}")));
        assert_eq!((&*failure["level"], &*failure["kind"]), ("DEBUG", "UnrepresentableUser"));
    }
}

#[tokio::test]
async fn a_user_whom_the_application_maps_to_no_name_is_reported() {
    let turn = Turn::take().await;
    let layer = RemoteUserLayer::new().map(|_| None);
    let app = Router::new().layer(ReverseProxyLayer::new(refusing().await).upstream_layer(layer));
    assert_eq!(get(front(app.layer(Extension(RemoteUser::from("alice")))).await, "/x", "").await.status(), 403);
    let events = turn.events();
    let [event, failure] = &events[..] else { panic!("two events: {events:?}") };
    assert_eq!((&*event["level"], &*event["user"], &*event["header"]), ("ERROR", "\"alice\"", "remote-user"));
    assert!(event["message"].contains("`map`"), "{event:?}");
    assert_eq!((&*failure["level"], &*failure["kind"]), ("DEBUG", "UnrepresentableUser"));
}

/// The layer is an ordinary one: around another client, a URI may have the client's own credentials.
#[tokio::test]
async fn a_refusal_of_credentials_names_the_backend_without_the_userinfo_of_its_uri() {
    let turn = Turn::take().await;
    let refuses = service_fn(|_: Request<Body>| async {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        Ok::<_, tower_reverse_proxy::Error>(response)
    });
    for uri in ["http://user:s3cret@backend.example:8000/x", "http://s3cret@backend.example:8000/x"] {
        let service = BasicAuthLayer::new("front", "s3cret").layer(refuses);
        service.oneshot(Request::get(uri).body(Body::empty()).unwrap()).await.unwrap_err();
        let events = turn.events();
        let [event] = &events[..] else { panic!("one event: {events:?}") };
        assert_eq!(event["backend"], "backend.example:8000");
        assert!(!format!("{events:?}").contains("s3cret"), "{events:?}");
    }
}

#[tokio::test]
async fn a_refusal_of_credentials_is_reported_with_the_schemes_and_without_a_token() {
    let turn = Turn::take().await;
    let challenges =
        "WWW-Authenticate: Negotiate s3cret, Basic realm=\"s3cret\"\r\nWWW-Authenticate: Bearer s3cret\r\n";
    let origin = answering(format!("HTTP/1.1 401 Unauthorized\r\n{challenges}Content-Length: 6\r\n\r\ns3cret")).await;
    let user = BasicAuthLayer::remote_user("s3cret");
    for (layer, level, message) in [
        (BasicAuthLayer::new("front", "s3cret"), "ERROR", "the backend refuses the front's credentials"),
        (user.clone(), "WARN", "the backend refuses a user's credentials"),
    ] {
        let app = Router::new().layer(ReverseProxyLayer::new(&*origin).upstream_layer(layer));
        get(front(app.layer(Extension(RemoteUser::from("alice")))).await, "/x", "").await;
        let events = turn.events();
        let [event, failure] = &events[..] else { panic!("two events: {events:?}") };
        assert_eq!(
            (&*event["level"], &*event["message"], &*event["schemes"]),
            (level, message, "Negotiate, Basic, Bearer")
        );
        assert_eq!(Some(&*event["backend"]), origin.strip_prefix("http://"));
        assert_eq!((&*failure["level"], &*failure["kind"]), ("WARN", "CredentialsRefused"));
        assert!(!format!("{events:?}").contains("s3cret"), "{events:?}");
    }
    // The backend's own sign-in is no event: without a user, and where its challenges pass.
    let anonymous = Router::new().layer(ReverseProxyLayer::new(&*origin).upstream_layer(user.clone()));
    let passing = Router::new().layer(ReverseProxyLayer::new(&*origin).upstream_layer(user.pass_challenges(true)));
    for app in [anonymous, passing.layer(Extension(RemoteUser::from("alice")))] {
        assert_eq!(get(front(app).await, "/x", "").await.status(), 401);
        assert_eq!(turn.events(), []);
    }
}

#[tokio::test]
async fn a_failed_fetch_of_a_token_is_reported_once_for_all_requests() {
    let turn = Turn::take().await;
    let fetch = async || Err::<Token, _>(std::io::Error::other("the server for tokens is down"));
    let app =
        Router::new().layer(ReverseProxyLayer::new(refusing().await).upstream_layer(BearerLayer::refreshing(fetch)));
    let addr = front(app).await;
    for _ in 0..3 {
        assert_eq!(get(addr, "/x", "").await.status(), 502);
    }
    let events = turn.events();
    let (fetches, failures): (Vec<_>, _) =
        events.iter().partition(|event| event["message"] == "a bearer token can't be fetched");
    // A second one only if the requests took more than a second.
    assert!((1..=3).contains(&fetches.len()) && fetches.len() + failures.len() == events.len(), "{events:?}");
    assert_eq!((&*fetches[0]["level"], &*fetches[0]["cause"]), ("WARN", "the server for tokens is down"));
    let failures: Vec<_> = failures.iter().map(|failure| (&*failure["kind"], &*failure["cause"])).collect();
    assert_eq!(failures, [("CredentialsMissing", "the server for tokens is down"); 3]);
}

#[tokio::test]
async fn a_value_that_a_field_cannot_represent_is_reported_without_the_value() {
    #[derive(Clone)]
    struct Groups(Vec<String>);
    let turn = Turn::take().await;
    let layer = RemoteUserLayer::new().also_list("Remote-Groups", ',', |groups: &Groups| groups.0.clone());
    let app = Router::new().layer(ReverseProxyLayer::new(refusing().await).upstream_layer(layer));
    for (group, reason) in [("s3cret,x", "separator"), ("s3cret\n", "control characters")] {
        let app = app.clone().layer(Extension(Groups(vec![group.into()]))).layer(Extension(RemoteUser::from("alice")));
        assert_eq!(get(front(app).await, "/x", "").await.status(), 403);
        let events = turn.events();
        let [event, failure] = &events[..] else { panic!("two events: {events:?}") };
        assert_eq!((&*event["level"], &*event["header"]), ("ERROR", "remote-groups"));
        assert!(event["reason"].contains(reason), "{event:?}");
        assert_eq!((&*failure["level"], &*failure["kind"]), ("DEBUG", "UnrepresentableUser"));
        assert!(!format!("{events:?}").contains("s3cret"), "{events:?}");
    }
}

#[tokio::test]
async fn a_missing_extension_is_one_warning_for_each_layer_that_names_the_type() {
    #[derive(Clone)]
    struct Session;
    #[derive(Clone)]
    struct Groups;
    let turn = Turn::take().await;
    let origin = mirror().await;
    let sync = || RemoteUserLayer::from_extension(|_: &Session| Some("alice"));
    let lookup = RemoteUserLayer::from_extension_async(|_: Session| async { Ok::<_, Infallible>(Some("alice")) });
    let groups = sync().also("Remote-Groups", |_: &Groups| Some("staff".into()));
    for (layer, session, missing) in [
        (sync(), false, "Session"),
        (sync().required(true), false, "Session"),
        (lookup, false, "Session"),
        (groups, true, "Groups"),
    ] {
        let mut app = Router::new().layer(ReverseProxyLayer::new(&origin).upstream_layer(layer));
        if session {
            app = app.layer(Extension(Session));
        }
        let addr = front(app).await;
        for _ in 0..3 {
            get(addr, "/x", "").await;
        }
        let mut events = turn.events();
        events.retain(|event| event.get("kind").is_none_or(|kind| kind != "SignInRequired"));
        let [event] = &events[..] else { panic!("one event: {events:?}") };
        assert_eq!(event["level"], "WARN");
        let named = format!(
            "a_missing_extension_is_one_warning_for_each_layer_that_names_the_type::{{{{closure}}}}::{missing}"
        );
        assert!(event["extension"].ends_with(&named), "{event:?}");
    }
    // The application's own `RemoteUser` is missing without a user.
    let app = Router::new().layer(ReverseProxyLayer::new(&origin).upstream_layer(RemoteUserLayer::new()));
    get(front(app).await, "/x", "").await;
    assert_eq!(turn.events().len(), 0);
}

#[tokio::test]
async fn a_missing_extension_of_bearer_tokens_is_one_warning() {
    #[derive(Clone)]
    struct Tokens;
    let turn = Turn::take().await;
    let layer = BearerLayer::from_extension(|_: &Tokens| Some("s3cret".into()));
    let addr = front(Router::new().layer(ReverseProxyLayer::new(mirror().await).upstream_layer(layer))).await;
    for _ in 0..3 {
        get(addr, "/x", "").await;
    }
    let event = turn.event();
    assert!(event["level"] == "WARN" && event["extension"].ends_with("::Tokens"), "{event:?}");
}

#[cfg(all(feature = "assertion", feature = "tls-ring"))]
#[tokio::test]
async fn a_missing_extension_of_an_assertions_claims_is_one_warning() {
    use tower_reverse_proxy::{AssertionKeys, AssertionLayer};

    #[derive(Clone)]
    struct Profile;
    let turn = Turn::take().await;
    let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let layer = AssertionLayer::new(keys, "https://front.example").claims(|_: &Profile, _| {});
    let app = Router::new().layer(ReverseProxyLayer::new(mirror().await).upstream_layer(layer));
    let [anonymous, alice] = [front(app.clone()).await, front(app.layer(Extension(RemoteUser::from("alice")))).await];
    get(anonymous, "/x", "").await;
    assert_eq!(turn.events().len(), 0);
    for _ in 0..3 {
        get(alice, "/x", "").await;
    }
    let events = turn.events();
    let [event] = &events[..] else { panic!("one event: {events:?}") };
    assert_eq!(event["level"], "WARN");
    assert!(event["extension"].ends_with("::Profile") && !format!("{events:?}").contains("eyJ"), "{events:?}");
}

#[tokio::test]
async fn a_failed_lookup_is_one_warning_with_its_error() {
    #[derive(Clone)]
    struct Session;
    let turn = Turn::take().await;
    let layer =
        RemoteUserLayer::from_extension_async(|_: Session| async { Err::<Option<String>, _>("the store is down") });
    let app =
        Router::new().layer(ReverseProxyLayer::new(refusing().await).upstream_layer(layer)).layer(Extension(Session));
    assert_eq!(get(front(app).await, "/x", "").await.status(), 503);
    let event = turn.event();
    assert_eq!((&*event["level"], &*event["kind"]), ("WARN", "IdentityUnknown"));
    assert_eq!(event["cause"], "the store is down");
}

#[tokio::test]
async fn each_attempt_that_is_followed_by_another_is_one_event() {
    let turn = Turn::take().await;
    let answers = Arc::new(Mutex::new(vec![OK_IN_FULL, UNAVAILABLE, ""]));
    let origin = backend(move |mut wire| {
        let answer = answers.lock().unwrap().pop().unwrap();
        async move {
            wire.message().await;
            wire.send(answer.as_bytes()).await;
        }
    })
    .await;
    let retry = Retry::new(Upstream::new(origin), RetryPolicy::idempotent());
    let addr = front(Router::new().layer(ReverseProxyLayer::with_upstream(retry))).await;
    assert_eq!(get(addr, "/x", "").await.status(), 200);
    let [cut, unavailable] = turn.events().try_into().expect("two events");
    assert_eq!((&*cut["level"], &*unavailable["level"]), ("WARN", "WARN"));
    assert_eq!(cut["message"], "an attempt failed, and the request is sent again");
    let cause = "the backend closed the connection before its response head was complete: ";
    assert!(cut["cause"].starts_with(cause), "{cut:?}");
    assert_eq!(unavailable["message"], "a backend is unavailable, and the request is sent again");
    assert_eq!(unavailable["status"], "503");
}

const OK_IN_FULL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
