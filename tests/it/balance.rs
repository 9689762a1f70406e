//! Several backends: the choice of one for each request, and the life of the set.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, http::StatusCode, routing::get as route};
use tokio::{
    net::TcpStream,
    sync::{
        Semaphore,
        mpsc::{UnboundedSender, unbounded_channel},
    },
    time::{Instant, sleep, timeout},
};
use tower::{Service, ServiceExt, layer::layer_fn, service_fn};
use tower_reverse_proxy::{
    Backends, BoxUpstream, Error, ErrorKind, Retry, RetryPolicy, ReverseProxyLayer, Upstream,
    balance::{BackendsBuilder, Balance, Eject, Member, MemberStatus, State},
};

#[cfg(feature = "http2")]
use crate::support::http2_backends::Http2;
use crate::support::{Dice, PATIENCE, Wire, ask, backend, client, front, get, named, others_run, refusing, within};

const OFFER: &[u8] = b"GET /app/chat HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ACCEPT: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A backend whose responses to `/app/held` begin at once, and end when the semaphore has a permit. It echoes after an
/// upgrade, and responds to everything else with its name.
async fn holding(name: &'static str) -> (String, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    let held = permits.clone();
    let origin = backend(move |wire| talk(wire, name, held.clone())).await;
    (origin, permits)
}

async fn talk(mut wire: Wire<TcpStream>, name: &'static str, held: Arc<Semaphore>) {
    while let Some(request) = wire.message().await {
        let line = request.start_line();
        if line.starts_with("GET /app/chat") {
            wire.send(ACCEPT).await;
            wire.closed().await;
            return;
        }
        wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", name.len()).as_bytes()).await;
        if line.starts_with("GET /app/held") {
            held.acquire().await.unwrap().forget();
        }
        wire.send(name.as_bytes()).await;
    }
}

async fn app(backends: &Backends) -> SocketAddr {
    front(Router::new().layer(ReverseProxyLayer::balanced(backends).prefix("/app"))).await
}

/// Begins a request whose response a [`holding`] backend holds, and reads its head.
async fn hold(front: SocketAddr) -> Wire<TcpStream> {
    let mut wire = client(front).await;
    wire.send(b"GET /app/held HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    wire.head().await.expect("a response");
    wire
}

/// Opens a tunnel.
async fn tunnel(front: SocketAddr) -> Wire<TcpStream> {
    let mut wire = client(front).await;
    wire.send(OFFER).await;
    assert_eq!(wire.message().await.expect("a response").status(), 101);
    wire
}

/// A seeded set whose new members get their full share at once, so that a test has one outcome.
fn seeded<M: Into<Member>>(members: impl IntoIterator<Item = M>) -> Backends {
    Backends::builder(members).seed(1).slow_start(Duration::ZERO).build().unwrap()
}

/// How many of the responses each backend has sent.
async fn counts(front: SocketAddr, requests: usize) -> BTreeMap<String, usize> {
    counts_of(b"GET /app/ HTTP/1.1\r\nHost: front.example\r\n\r\n", front, requests).await
}

/// The same for requests with a body, whose latency the balancer doesn't compare: on a busy machine, one backend may
/// seem to be slower than the others.
async fn shares(front: SocketAddr, requests: usize) -> BTreeMap<String, usize> {
    counts_of(POST.as_bytes(), front, requests).await
}

async fn counts_of(request: &[u8], front: SocketAddr, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mut wire = client(front).await;
    for _ in 0..requests {
        wire.send(request).await;
        let response = wire.message().await.expect("a response");
        *counts.entry(response.text()).or_default() += 1;
    }
    counts
}

fn in_flight(backends: &Backends) -> Vec<u32> {
    backends.status().iter().map(MemberStatus::in_flight).collect()
}

async fn in_flight_becomes(backends: &Backends, expected: &[u32]) {
    let becomes = async {
        while in_flight(backends) != expected {
            sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(timeout(PATIENCE, becomes).await.is_ok(), "{:?} and not {expected:?}", in_flight(backends));
}

#[tokio::test]
async fn idle_backends_get_equal_shares() {
    let backends = seeded([named("a").await, named("b").await, named("c").await]);
    let counts = shares(app(&backends).await, 300).await;
    assert!(counts.len() == 3 && counts.values().all(|count| (75..125).contains(count)), "{counts:?}");
    let status: Vec<_> = backends.status().iter().map(MemberStatus::requests).collect();
    assert_eq!(status.iter().sum::<u64>(), 300);
}

#[tokio::test]
async fn shares_are_in_proportion_to_the_weights() {
    let members = [Member::new(named("a").await).weight(3), Member::new(named("b").await)];
    let counts = shares(app(&seeded(members)).await, 400).await;
    assert!((270..330).contains(&counts["a"]), "{counts:?}");
}

#[tokio::test]
async fn a_request_counts_until_the_end_of_its_response() {
    let (a, held) = holding("a").await;
    let backends = seeded([a, named("b").await]);
    let front = app(&backends).await;
    // Requests go there until one of them is held.
    let mut wire = client(front).await;
    loop {
        wire.send(b"GET /app/held HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
        wire.head().await.unwrap();
        if in_flight(&backends) == [1, 0] {
            break;
        }
        assert_eq!(wire.bytes(1).await, b"b");
    }
    assert_eq!(counts(front, 50).await, [("b".to_owned(), 50)].into());
    held.add_permits(1);
    assert_eq!(wire.bytes(1).await, b"a");
    in_flight_becomes(&backends, &[0, 0]).await;
    assert!(counts(front, 50).await["a"] > 10);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let (a, _held) = holding("a").await;
    let backends = seeded([a]);
    let front = app(&backends).await;
    let wire = hold(front).await;
    assert_eq!(in_flight(&backends), [1]);
    drop(wire);
    in_flight_becomes(&backends, &[0]).await;
    assert_eq!(backends.status()[0].faults(), 0);
}

#[tokio::test]
async fn a_tunnel_counts_until_it_ends() {
    let (a, _held) = holding("a").await;
    let backends = seeded([a]);
    let tunnel = tunnel(app(&backends).await).await;
    assert_eq!(in_flight(&backends), [1]);
    drop(tunnel);
    in_flight_becomes(&backends, &[0]).await;
}

#[tokio::test]
async fn a_tunnel_counts_until_the_backend_ends_its_side() {
    let url = backend(|mut wire| async move {
        wire.head().await;
        wire.send(ACCEPT).await;
        wire.bytes(1).await;
    })
    .await;
    let backends = Backends::new([url]);
    let mut tunnel = tunnel(app(&backends).await).await;
    assert_eq!(in_flight(&backends), [1]);
    tunnel.send(b"x").await;
    // The client's side stays open.
    in_flight_becomes(&backends, &[0]).await;
    assert!(tunnel.closed().await);
}

#[tokio::test]
async fn the_length_of_a_response_is_kept() {
    let front = app(&seeded([named("name").await])).await;
    let response = get(front, "/app/", "").await;
    assert_eq!((response.field("content-length"), response.field("transfer-encoding")), (Some("4"), None));
    let response = ask(front, "HEAD /app/ HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_backend_that_refuses_connections_gets_few_requests() {
    let backends = seeded([named("a").await, refusing().await, named("c").await]);
    let front = app(&backends).await;
    for _ in 0..300 {
        assert_eq!(get(front, "/app/", "").await.status(), 200);
    }
    let faults = backends.status()[1].faults();
    assert!((1..5).contains(&faults), "{faults}");
}

#[tokio::test]
async fn a_removed_backend_gets_nothing_new_and_ends_what_it_has() {
    let (a, held) = holding("a").await;
    let backends = seeded([a.clone()]);
    let front = app(&backends).await;
    let mut wire = hold(front).await;
    let b = named("b").await;
    backends.set([b.clone()]).unwrap();
    let states: Vec<_> = backends.status().iter().map(|status| (status.backend().to_owned(), status.state())).collect();
    assert_eq!(states, [(b.clone(), State::Up), (a, State::Draining)]);
    assert_eq!(counts(front, 20).await, [("b".to_owned(), 20)].into());
    held.add_permits(1);
    assert_eq!(wire.bytes(1).await, b"a");
    in_flight_becomes(&backends, &[0]).await;
    assert_eq!(backends.status()[0].backend(), b);
}

#[tokio::test]
async fn a_backend_that_the_set_drains_gets_requests_only_if_no_other_is_healthy() {
    let (a, held) = holding("a").await;
    let b = named("b").await;
    let backends = seeded([Member::new(&a), Member::new(&b).draining()]);
    let front = app(&backends).await;
    let mut wire = hold(front).await;
    backends.set([Member::new(&a).draining(), Member::new(&b)]).unwrap();
    assert_eq!(backends.status()[0].state(), State::Draining);
    assert_eq!(counts(front, 20).await, [("b".to_owned(), 20)].into());
    held.add_permits(1);
    assert_eq!(wire.bytes(1).await, b"a");
    in_flight_becomes(&backends, &[0, 0]).await;
    assert_eq!(backends.status()[0].state(), State::Draining, "it stays until a set is without it");
    backends.set([Member::new(&a).draining()]).unwrap();
    assert_eq!(get(front, "/app/", "").await.text(), "a");
}

#[tokio::test]
async fn a_backend_in_both_sets_keeps_its_connections_and_counts() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let a = backend(move |wire| {
        count.fetch_add(1, Ordering::SeqCst);
        talk(wire, "a", Arc::new(Semaphore::new(0)))
    })
    .await;
    let backends = seeded([a.clone()]);
    let front = app(&backends).await;
    counts(front, 5).await;
    backends.set([Member::new(a.clone()).weight(7), Member::new(named("b").await).weight(1)]).unwrap();
    while backends.status()[0].requests() == 5 {
        counts(front, 1).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    assert_eq!(backends.status()[0].weight(), 7);
}

#[tokio::test]
async fn a_drain_ends_with_the_last_exchange() {
    let (a, held) = holding("a").await;
    let backends = seeded([a.clone(), named("b").await]);
    let front = app(&backends).await;
    let mut wire = client(front).await;
    while in_flight(&backends) != [1, 0] {
        wire = hold(front).await;
    }
    let mut drained = Box::pin(backends.drain(&a));
    assert_eq!(counts(front, 20).await, [("b".to_owned(), 20)].into());
    assert!(timeout(Duration::from_millis(50), &mut drained).await.is_err());
    held.add_permits(1);
    wire.bytes(1).await;
    assert!(within(drained).await);
    assert_eq!(backends.status().len(), 1);
    assert!(!within(backends.drain(&a)).await, "it's gone");
}

#[tokio::test]
async fn a_member_is_drained_by_the_name_that_its_status_shows() {
    let at = |port| Member::new("http://app.example").at(([127, 0, 0, 1], port).into());
    for members in [vec![at(1), at(2)], vec![Member::named("blue"), Member::named("green")]] {
        let backends = Backends::new(members);
        let names: Vec<_> = backends.status().iter().map(|status| status.backend().to_owned()).collect();
        for unknown in ["", "http://app.example", "red"] {
            assert!(!within(backends.drain(unknown)).await, "{unknown}");
        }
        assert!(within(backends.drain(&names[0])).await);
        assert_eq!(backends.status().len(), 1);
        assert_eq!(backends.status()[0].backend(), names[1]);
    }
    // Or as an origin that is written otherwise.
    let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    assert!(within(backends.drain("HTTP://10.0.0.1:8000/")).await);
}

#[tokio::test]
async fn a_backend_that_returns_while_it_drains_gets_requests_again() {
    let (a, held) = holding("a").await;
    let backends = seeded([a.clone()]);
    let front = app(&backends).await;
    let mut wire = hold(front).await;
    let drained = backends.drain(&a);
    assert_eq!(get(front, "/app/", "").await.status(), 503);
    backends.set([a]).unwrap();
    assert!(within(drained).await, "it's no longer draining");
    assert_eq!(in_flight(&backends), [1]);
    assert_eq!(get(front, "/app/", "").await.text(), "a");
    held.add_permits(1);
    wire.bytes(1).await;
    in_flight_becomes(&backends, &[0]).await;
}

#[tokio::test]
async fn mounts_of_one_set_share_its_load() {
    let (a, _held) = holding("a").await;
    let backends = seeded([a, named("b").await]);
    let (one, other) = (app(&backends).await, app(&backends).await);
    let mut open = Vec::new();
    while in_flight(&backends)[0] == 0 {
        open.push(hold(one).await);
    }
    assert_eq!(counts(other, 20).await, [("b".to_owned(), 20)].into());
}

#[tokio::test]
async fn an_upstream_layer_is_applied_once_per_backend() {
    let applied = Arc::new(AtomicUsize::new(0));
    let count = applied.clone();
    let layer = layer_fn(move |inner| {
        count.fetch_add(1, Ordering::SeqCst);
        inner
    });
    let (a, b) = (named("a").await, named("b").await);
    let backends = seeded([a.clone(), b.clone()]);
    let proxy = ReverseProxyLayer::balanced(&backends).prefix("/app").upstream_layer(layer);
    let other = proxy.clone().upstream_layer(layer_fn(|inner| inner));
    assert_eq!(applied.load(Ordering::SeqCst), 2);
    backends.set([a, b, named("c").await]).unwrap();
    // The second mount applies it, too.
    assert_eq!(applied.load(Ordering::SeqCst), 4);
    let front = front(Router::new().layer(proxy)).await;
    assert_eq!(counts(front, 100).await.len(), 3);
    drop(other);
}

#[tokio::test]
async fn any_services_can_be_balanced() {
    let service = |name: &'static str| Router::new().route("/app/", route(move || async move { name }));
    let front = front(
        Router::new()
            .layer(ReverseProxyLayer::with_upstream(Balance::over([service("a"), service("b")])).prefix("/app")),
    )
    .await;
    assert_eq!(counts(front, 100).await.len(), 2);
}

#[tokio::test]
async fn a_later_set_over_services_has_no_other_members_than_these() {
    let service = |name: &'static str| Router::new().route("/app/", route(move || async move { name }));
    let balance = Balance::over([service("a"), service("b")]);
    let backends = balance.backends().clone();
    let front = front(Router::new().layer(ReverseProxyLayer::with_upstream(balance).prefix("/app"))).await;
    for unknown in ["2", "blue", "01", "+1", ""] {
        let error = backends.set([Member::named("0"), Member::named(unknown)]).unwrap_err();
        assert!(
            error.to_string().contains(&format!("no service {unknown:?}: write names from \"0\" to \"1\"")),
            "{error}"
        );
        assert_eq!(counts(front, 40).await.len(), 2);
    }
    backends.set([Member::named("1").weight(3)]).unwrap();
    assert_eq!(counts(front, 10).await, [("b".to_owned(), 10)].into());
}

/// A balancer in memory whose members respond with this status and their names, and stay in the set.
fn responding(status: StatusCode, members: [Member; 2]) -> Balance<BoxUpstream> {
    let backends = Backends::builder(members).eject(Eject::never()).build().unwrap();
    Balance::new(&backends, move |member: &Member| {
        let name = member.name().to_owned();
        BoxUpstream::new(Router::new().fallback(async move || (status, name)))
    })
}

/// A balancer of balancers, with retries around it.
async fn nested(sets: [Balance<BoxUpstream>; 2]) -> SocketAddr {
    let balance = Balance::over(sets.map(BoxUpstream::new));
    let proxy = ReverseProxyLayer::with_upstream(Retry::new(balance, RetryPolicy::idempotent())).prefix("/app");
    front(Router::new().layer(proxy)).await
}

#[tokio::test]
async fn a_set_inside_of_another_one_whose_members_all_fail_ends_no_retry() {
    let spare = |names: [&str; 2]| [Member::named(names[0]), Member::named(names[1]).backup()];
    // The backup of the first one isn't used, because its other member counts as healthy.
    let failing = responding(StatusCode::SERVICE_UNAVAILABLE, spare(["a", "b"]));
    let front = nested([failing, responding(StatusCode::OK, spare(["c", "d"]))]).await;
    for _ in 0..20 {
        assert_eq!(get(front, "/app/", "").await.text(), "c");
    }
}

#[tokio::test]
async fn a_set_inside_of_another_one_that_has_a_member_left_begins_no_retry() {
    let sets = [["a", "b"], ["c", "d"]];
    let sets = sets.map(|names| responding(StatusCode::SERVICE_UNAVAILABLE, names.map(Member::named)));
    let front = nested(sets).await;
    let response = get(front, "/app/", "").await;
    // The response of the second one, and not a failure in place of it.
    assert_eq!(response.status(), 503);
    assert!(["a", "b", "c", "d"].contains(&response.text().as_str()), "{response:?}");
}

#[tokio::test]
async fn a_request_that_is_unsent_by_a_set_inside_of_another_one_goes_to_the_next_set() {
    let upstream =
        |members| Balance::new(&seeded(members), |member: &Member| Upstream::new(member.client().unwrap().clone()));
    let refuses = upstream([Member::new(refusing().await), Member::new(refusing().await).backup()]);
    let answers = upstream([Member::new(named("c").await), Member::new(named("d").await).backup()]);
    let balance = Balance::over([refuses, answers]);
    let proxy = ReverseProxyLayer::with_upstream(Retry::new(balance, RetryPolicy::unsent())).prefix("/app");
    let front = front(Router::new().layer(proxy)).await;
    for _ in 0..10 {
        assert_eq!(ask(front, POST).await.text(), "c");
    }
}

#[tokio::test]
async fn members_are_chosen_before_they_are_ready() {
    // A member that isn't ready delays its own requests only.
    let never = tower::limit::ConcurrencyLimit::new(
        service_fn(|_: Request| async { Ok::<_, Error>(axum::response::Response::new(Body::empty())) }),
        0,
    );
    let mut balance = Balance::over([never]);
    within(std::future::poll_fn(|cx| balance.poll_ready(cx))).await.unwrap();
    assert!(timeout(Duration::from_millis(20), balance.call(Request::default())).await.is_err());
    assert_eq!(balance.backends().status()[0].in_flight(), 0);
}

#[tokio::test]
async fn an_empty_set_responds_with_503() {
    let a = named("a").await;
    let backends = seeded([a.clone()]);
    let front = app(&backends).await;
    assert!(within(backends.drain(&a)).await);
    let response = get(front, "/app/", "").await;
    assert_eq!((response.status(), response.field("retry-after")), (503, Some("1")));
    backends.set([a]).unwrap();
    assert_eq!(get(front, "/app/", "").await.text(), "a");
}

#[tokio::test]
async fn a_named_set_has_no_addresses_to_forward_to() {
    let error = ReverseProxyLayer::try_balanced([Member::named("blue")]).unwrap_err();
    assert!(error.to_string().contains("Balance::new"), "{error}");
    let service = ReverseProxyLayer::balanced(["http://127.0.0.1:1"]).into_service();
    let request = Request::get("/").header("host", "front.example").body(Body::empty()).unwrap();
    assert_eq!(within(service.oneshot(request)).await.unwrap().status(), 502);
}

#[tokio::test]
async fn a_request_of_which_nothing_was_sent_goes_to_another_backend() {
    for count in [1, 3] {
        let mut members = vec![named("a").await];
        for _ in 0..count {
            members.push(refusing().await);
        }
        let balance = Balance::new(&seeded(members), |member: &Member| Upstream::new(member.client().unwrap().clone()));
        let proxy = ReverseProxyLayer::with_upstream(Retry::new(balance, RetryPolicy::unsent())).prefix("/app");
        let front = front(Router::new().layer(proxy)).await;
        let mut failed = 0;
        for _ in 0..50 {
            failed += u32::from(ask(front, POST).await.status() != 200);
        }
        // Three attempts: with three that refuse, one more than the attempts may be needed once.
        assert!(failed <= count / 2, "{count}: {failed}");
    }
}

const POST: &str = "POST /app/ HTTP/1.1\r\nHost: front.example\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test]
async fn the_tunnels_of_a_removed_backend_are_closed_after_the_drain_timeout() {
    let ((a, _), b) = (holding("a").await, named("b").await);
    let backends = Backends::builder([a.clone()]).drain_timeout(Duration::from_millis(200)).build().unwrap();
    let mut tunnel = tunnel(app(&backends).await).await;
    let begin = Instant::now();
    let drained = backends.drain(&a);
    backends.set([b.clone()]).unwrap();
    assert!(within(tunnel.closed()).await);
    assert!(begin.elapsed() >= Duration::from_millis(200), "{:?}", begin.elapsed());
    assert!(within(drained).await);
    assert_eq!(backends.status().len(), 1);
}

#[tokio::test]
async fn the_tunnels_of_a_backend_that_returns_stay_open() {
    let (a, _held) = holding("a").await;
    let backends = Backends::builder([a.clone()]).drain_timeout(Duration::from_millis(100)).build().unwrap();
    let front = app(&backends).await;
    let mut tunnel = tunnel(front).await;
    drop(backends.drain(&a));
    backends.set([a.clone()]).unwrap();
    assert!(timeout(Duration::from_millis(300), tunnel.closed()).await.is_err());
    // And is closed once it's removed for good.
    drop(backends.drain(&a));
    assert!(within(tunnel.closed()).await);
    in_flight_becomes(&backends, &[]).await;
}

#[tokio::test]
async fn a_tunnel_holds_its_place() {
    let (a, _held) = holding("a").await;
    let limited = Backends::builder([a]).max_requests(1).queue_timeout(Duration::from_millis(50));
    let backends = limited.build().unwrap();
    let front = app(&backends).await;
    let tunnel = tunnel(front).await;
    let refused = get(front, "/app/", "").await;
    assert_eq!((refused.status(), refused.field("retry-after")), (503, Some("1")));
    drop(tunnel);
    in_flight_becomes(&backends, &[0]).await;
    assert_eq!(get(front, "/app/", "").await.text(), "a");
}

/// A balancer in memory whose members respond with their names, each when its semaphore has a permit.
fn gated(backends: &Backends, gates: &BTreeMap<String, Arc<Semaphore>>) -> Balance<BoxUpstream> {
    let gates = gates.clone();
    Balance::new(backends, move |member: &Member| {
        let (name, gate) = (member.name().to_owned(), gates[member.name()].clone());
        BoxUpstream::new(service_fn(move |_: Request| {
            let (name, gate) = (name.clone(), gate.clone());
            async move {
                gate.acquire().await.unwrap().forget();
                Ok::<_, Error>(axum::response::Response::new(Body::from(name)))
            }
        }))
    })
}

fn gates(names: &[&str]) -> BTreeMap<String, Arc<Semaphore>> {
    names.iter().map(|&name| (name.to_owned(), Arc::new(Semaphore::new(0)))).collect()
}

/// Begins requests in order. Each returns its number and the name of its member, or the failure.
async fn begin(
    balance: &Balance<BoxUpstream>,
    numbers: std::ops::Range<usize>,
    done: &UnboundedSender<(usize, Result<String, ErrorKind>)>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let mut tasks = Vec::new();
    for number in numbers {
        let (balance, done) = (balance.clone(), done.clone());
        tasks.push(tokio::spawn(async move {
            let outcome = match balance.oneshot(Request::default()).await {
                Ok(response) => {
                    let body = axum::body::to_bytes(Body::new(response.into_body()), 100).await.unwrap();
                    Ok(String::from_utf8(body.to_vec()).unwrap())
                }
                Err(error) => Err(error.downcast_ref::<Error>().unwrap().kind()),
            };
            done.send((number, outcome)).unwrap();
        }));
        others_run().await;
    }
    tasks
}

fn limited(names: &[&str], requests: u32) -> BackendsBuilder {
    Backends::builder(names.iter().map(|&name| Member::named(name))).max_requests(requests)
}

#[tokio::test(start_paused = true)]
async fn requests_wait_in_order_for_the_first_member_with_room() {
    let backends = limited(&["a", "b"], 1).queue_timeout(None).build().unwrap();
    let gates = gates(&["a", "b"]);
    let balance = gated(&backends, &gates);
    let (done, mut outcomes) = unbounded_channel();
    begin(&balance, 0..6, &done).await;
    assert_eq!(in_flight(&backends), [1, 1]);
    gates["b"].add_permits(1);
    let first = within(outcomes.recv()).await.unwrap();
    assert!(first.0 < 2 && first.1 == Ok("b".to_owned()), "{first:?}");
    for number in 2..6 {
        others_run().await;
        assert_eq!(in_flight(&backends), [1, 1]);
        gates["b"].add_permits(1);
        assert_eq!(within(outcomes.recv()).await.unwrap(), (number, Ok("b".to_owned())));
    }
    others_run().await;
    assert_eq!(in_flight(&backends), [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_too_long_fails_and_leaves_the_queue() {
    let backends = limited(&["a"], 1).build().unwrap();
    let gates = gates(&["a"]);
    let balance = gated(&backends, &gates);
    let (done, mut outcomes) = unbounded_channel();
    begin(&balance, 0..2, &done).await;
    sleep(Duration::from_millis(900)).await;
    begin(&balance, 2..3, &done).await;
    sleep(Duration::from_millis(90)).await;
    assert!(outcomes.try_recv().is_err());
    sleep(Duration::from_millis(20)).await;
    assert_eq!(outcomes.try_recv().unwrap(), (1, Err(ErrorKind::Overloaded)));
    gates["a"].add_permits(2);
    assert_eq!(within(outcomes.recv()).await.unwrap(), (0, Ok("a".to_owned())));
    assert_eq!(within(outcomes.recv()).await.unwrap(), (2, Ok("a".to_owned())));
    others_run().await;
    assert_eq!(in_flight(&backends), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_leaves_the_queue() {
    let backends = limited(&["a"], 1).build().unwrap();
    let gates = gates(&["a"]);
    let balance = gated(&backends, &gates);
    let (done, mut outcomes) = unbounded_channel();
    let tasks = begin(&balance, 0..4, &done).await;
    tasks[1].abort();
    others_run().await;
    gates["a"].add_permits(1);
    assert_eq!(within(outcomes.recv()).await.unwrap().0, 0);
    others_run().await;
    // It has the place, and gives it back.
    tasks[2].abort();
    others_run().await;
    gates["a"].add_permits(1);
    assert_eq!(within(outcomes.recv()).await.unwrap().0, 3);
    others_run().await;
    assert_eq!(in_flight(&backends), [0]);
}

#[tokio::test(start_paused = true)]
async fn few_requests_wait() {
    for (places, waiting) in [(1, 100), (60, 120)] {
        let backends = limited(&["a"], places).build().unwrap();
        let balance = gated(&backends, &gates(&["a"]));
        let (done, mut outcomes) = unbounded_channel();
        let most = places as usize + waiting;
        begin(&balance, 0..most, &done).await;
        assert!(outcomes.try_recv().is_err());
        begin(&balance, most..most + 1, &done).await;
        assert_eq!(outcomes.try_recv().unwrap(), (most, Err(ErrorKind::Overloaded)), "{places}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_added_serves_the_queue() {
    let backends = limited(&["a"], 1).build().unwrap();
    let gates = gates(&["a", "b"]);
    let balance = gated(&backends, &gates);
    let (done, mut outcomes) = unbounded_channel();
    begin(&balance, 0..2, &done).await;
    gates["b"].add_permits(1);
    backends.set(["a", "b"].map(Member::named)).unwrap();
    assert_eq!(within(outcomes.recv()).await.unwrap(), (1, Ok("b".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_removed_takes_no_request_of_the_queue() {
    let backends = limited(&["a", "b"], 1).build().unwrap();
    let gates = gates(&["a", "b"]);
    let balance = gated(&backends, &gates);
    let (done, mut outcomes) = unbounded_channel();
    begin(&balance, 0..3, &done).await;
    backends.set([Member::named("b")]).unwrap();
    gates["a"].add_permits(1);
    assert_eq!(within(outcomes.recv()).await.unwrap().1, Ok("a".to_owned()));
    others_run().await;
    assert_eq!(in_flight(&backends), [1], "a is gone");
    assert!(outcomes.try_recv().is_err());
    gates["b"].add_permits(2);
    for _ in 0..2 {
        assert_eq!(within(outcomes.recv()).await.unwrap().1, Ok("b".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_in_the_queue_fails_at_once_when_the_last_member_goes() {
    for is_drained in [false, true] {
        let backends = limited(&["a"], 1).queue_timeout(None).build().unwrap();
        let gates = gates(&["a", "b"]);
        let balance = gated(&backends, &gates);
        let (done, mut outcomes) = unbounded_channel();
        begin(&balance, 0..3, &done).await;
        if is_drained {
            drop(backends.drain("a"));
        } else {
            backends.set([Member::named("b")]).unwrap();
            drop(backends.drain("b"));
        }
        // With another set there is a member for a moment, which may get one of them.
        others_run().await;
        gates["b"].add_permits(2);
        for _ in 0..2 {
            let (number, outcome) = within(outcomes.recv()).await.unwrap();
            let expected = if outcome.is_ok() { Ok("b".to_owned()) } else { Err(ErrorKind::Connect) };
            assert!(number > 0 && outcome == expected, "{outcome:?}");
        }
        gates["a"].add_permits(1);
        assert_eq!(within(outcomes.recv()).await.unwrap(), (0, Ok("a".to_owned())));
    }
}

#[tokio::test]
async fn the_idle_connections_of_a_removed_backend_are_closed() {
    let (open, held) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, permits) = (open.clone(), held.clone());
    let a = backend(move |wire| {
        let (count, permits) = (count.clone(), permits.clone());
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            talk(wire, "a", permits).await;
            count.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let backends = seeded([a]);
    let front = app(&backends).await;
    let mut wire = hold(front).await;
    get(front, "/app/", "").await;
    assert_eq!(open.load(Ordering::SeqCst), 2);
    backends.set([named("b").await]).unwrap();
    let becomes = async |expected| {
        while open.load(Ordering::SeqCst) != expected {
            sleep(Duration::from_millis(1)).await;
        }
    };
    // Long before the idle timeout of the pool.
    assert!(timeout(Duration::from_secs(20), becomes(1)).await.is_ok(), "the idle one is open");
    held.add_permits(1);
    wire.bytes(1).await;
    assert!(timeout(Duration::from_secs(20), becomes(0)).await.is_ok(), "the last one is open");
}

#[cfg(feature = "http2")]
#[tokio::test]
async fn the_unused_http2_connections_of_a_removed_backend_are_closed() {
    let held = Arc::new(Semaphore::new(0));
    let permits = held.clone();
    // One stream a connection, so that two requests at once need two.
    let (a, server, mut ended) = Http2::serve(1, move |request: hyper::Request<hyper::body::Incoming>| {
        let permits = permits.clone();
        async move {
            if request.uri().path() == "/app/held" {
                permits.acquire().await.unwrap().forget();
            }
            axum::response::Response::new(Body::from("a"))
        }
    })
    .await;
    let builder = Backends::builder([a]).client(|client| client.http2(true).pool_idle_timeout(None));
    let backends = builder.build().unwrap();
    let front = app(&backends).await;
    let mut wire = client(front).await;
    wire.send(b"GET /app/held HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    in_flight_becomes(&backends, &[1]).await;
    get(front, "/app/", "").await;
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
    backends.set([named("b").await]).unwrap();
    within(ended.recv()).await.expect("the one without a stream is closed");
    assert!(ended.try_recv().is_err());
    held.add_permits(1);
    assert_eq!(wire.message().await.unwrap().text(), "a");
    within(ended.recv()).await.expect("the last one is closed");
}

/// A lost permit or a lost wake-up leaves a request waiting, because the queue has no timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_is_left_in_the_queue_while_the_set_changes() {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let backends = limited(&NAMES, 1).queue_timeout(None).slow_start(Duration::ZERO).build().unwrap();
    let at_once: Arc<BTreeMap<&str, AtomicUsize>> = Arc::new(NAMES.map(|name| (name, AtomicUsize::new(0))).into());
    let counts = at_once.clone();
    let balance = Balance::new(&backends, move |member: &Member| {
        let name = *NAMES.iter().find(|&&name| name == member.name()).unwrap();
        let counts = counts.clone();
        BoxUpstream::new(service_fn(move |_: Request| {
            let counts = counts.clone();
            async move {
                static SEED: AtomicU64 = AtomicU64::new(0);
                let _busy = Busy::new(counts, name);
                Dice::new(SEED.fetch_add(1, Ordering::Relaxed)).pause().await;
                Ok::<_, Error>(axum::response::Response::new(Body::empty()))
            }
        }))
    });
    let mut dice = Dice::new(1);
    for round in 0..300 {
        let requests = (0..24).map(|number| {
            let (balance, mut dice) = (balance.clone(), Dice::new(round * 24 + number));
            tokio::spawn(async move {
                dice.pause().await;
                // Some leave, at any point.
                let patience = if dice.roll(4) == 0 { Duration::from_micros(dice.roll(400) as u64) } else { PATIENCE };
                match timeout(patience, balance.oneshot(Request::default())).await {
                    Ok(Ok(response)) => assert_eq!(response.status(), 200),
                    Ok(Err(error)) => {
                        let error = error.downcast_ref::<Error>().unwrap();
                        assert_eq!(error.kind(), ErrorKind::Connect, "the set was empty for a moment");
                    }
                    Err(_) => assert_ne!(patience, PATIENCE, "a request waits for ever"),
                }
            })
        });
        let requests: Vec<_> = requests.collect();
        // The last change stays until all of them have ended.
        for _ in 0..dice.roll(4) {
            let first = dice.roll(3);
            match dice.roll(4) {
                0 => drop(backends.drain(NAMES[first])),
                1 => NAMES.iter().for_each(|name| drop(backends.drain(name))),
                _ => {
                    let last = first + 1 + dice.roll(3 - first);
                    backends.set(NAMES[first..last].iter().map(|&name| Member::named(name))).unwrap();
                }
            }
            dice.pause().await;
        }
        for request in requests {
            within(request).await.unwrap();
        }
    }
    backends.set(NAMES.map(Member::named)).unwrap();
    in_flight_becomes(&backends, &[0; 3]).await;
}

/// Counts the requests that are at a member at once. Each has the one permit.
struct Busy {
    counts: Arc<BTreeMap<&'static str, AtomicUsize>>,
    name: &'static str,
}

impl Busy {
    fn new(counts: Arc<BTreeMap<&'static str, AtomicUsize>>, name: &'static str) -> Self {
        let at_once = counts[name].fetch_add(1, Ordering::SeqCst) + 1;
        assert_eq!(at_once, 1, "the requests at {name}");
        Self { counts, name }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.counts[self.name].fetch_sub(1, Ordering::SeqCst);
    }
}
