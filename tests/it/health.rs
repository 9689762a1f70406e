//! Members of a set that refuse, hang, close, answer garbage or fail at once: when they are taken out, and how they
//! come back without an error for a client.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, http::StatusCode, response::IntoResponse, routing::get as route};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{
    Backends, Retry, RetryPolicy, ReverseProxyLayer, Upstream,
    balance::{BackendsBuilder, Balance, Check, Eject, Member, MemberStatus, NoneHealthy, Pick, State, Verdict},
};

use crate::support::{Message, PATIENCE, Wire, ask, client, elsewhere, front, get, recording, within};

#[cfg(feature = "http2")]
use tokio::io::AsyncWriteExt;

#[cfg(feature = "http2")]
use crate::support::http2_backends::{Http2, greet, read_frame};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";
const BROKEN: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
const GARBAGE: &[u8] = b"SSH-2.0-OpenSSH_9.2\r\n\r\n";
const CUT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";

/// What a backend does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    /// Sends these bytes.
    Responds(&'static [u8]),
    /// Sends these bytes, and closes.
    Breaks(&'static [u8]),
    Hangs,
}

/// A backend whose mood the test changes.
#[derive(Clone)]
struct Moody {
    origin: String,
    mood: Arc<Mutex<Mood>>,
    requests: Arc<AtomicUsize>,
    checks: Arc<AtomicUsize>,
}

impl Moody {
    async fn new(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, mood)
    }

    fn on(listener: TcpListener, mood: Mood) -> Self {
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let this = Self { origin, mood: Arc::new(Mutex::new(mood)), requests: Arc::default(), checks: Arc::default() };
        let serving = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().talk(Wire::new(stream)));
            }
        });
        this
    }

    async fn talk(self, mut wire: Wire<TcpStream>) {
        while let Some(request) = wire.message().await {
            if request.start_line().contains("/held") {
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nheld").await;
                wire.closed().await;
                return;
            }
            let counter = if request.start_line().contains("/healthz") { &self.checks } else { &self.requests };
            counter.fetch_add(1, Ordering::SeqCst);
            let mood = *self.mood.lock().unwrap();
            match mood {
                Mood::Responds(bytes) => wire.send(bytes).await,
                Mood::Breaks(bytes) => return wire.send(bytes).await,
                Mood::Hangs => {
                    wire.closed().await;
                    return;
                }
            }
        }
    }

    fn becomes(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn checks(&self) -> usize {
        self.checks.load(Ordering::SeqCst)
    }
}

async fn well() -> Moody {
    Moody::new(Mood::Responds(OK)).await
}

fn builder(members: &[&Moody]) -> BackendsBuilder {
    Backends::builder(members.iter().map(|member| Member::new(&*member.origin)))
}

/// A mount without retries, which would hide the failures.
type Balanced = ReverseProxyLayer<Retry<Balance<Upstream>>>;

/// A set whose only free member is `bad`, so that it gets the requests until it's out: all others hold responses of the
/// wires.
struct Set {
    backends: Backends,
    addr: SocketAddr,
    _held: Vec<Wire<TcpStream>>,
}

async fn set_of(bad: &str, good: &Moody, eject: Eject) -> Set {
    set_behind(bad, good, eject, |layer| layer).await
}

async fn set_behind(bad: &str, good: &Moody, eject: Eject, options: impl FnOnce(Balanced) -> Balanced) -> Set {
    let backends = builder(&[good]).eject(eject).slow_start(Duration::ZERO).build().unwrap();
    let proxy = options(ReverseProxyLayer::balanced(&backends).retry(RetryPolicy::none()).prefix("/app"));
    let addr = front(Router::new().layer(proxy)).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut wire = client(addr).await;
        wire.send(b"GET /app/held HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
        wire.head().await.unwrap();
        held.push(wire);
    }
    backends.set([bad, &good.origin]).unwrap();
    Set { backends, addr, _held: held }
}

/// The origin of a backend that refuses connects until its socket listens.
fn refusing() -> (String, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    (format!("http://{}", socket.local_addr().unwrap()), socket)
}

/// A front with a local route, and the set at `/app`.
async fn balanced(backends: &Backends) -> SocketAddr {
    let proxy = ReverseProxyLayer::balanced(backends).retry(RetryPolicy::none()).prefix("/app");
    front(Router::new().route("/own", route(|| async { "own" })).layer(proxy)).await
}

/// Sends a `POST`, which no trial uses.
async fn post(addr: SocketAddr) -> Message {
    ask(addr, "POST /app/x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 0\r\n\r\n").await
}

/// Sends so many `POST`s, one after the other, and returns how many got something else than a whole 200.
async fn failed_posts(addr: SocketAddr, count: usize) -> usize {
    let mut failed = 0;
    for _ in 0..count {
        let response = post(addr).await;
        failed += usize::from(response.status() != 200 || !response.complete);
    }
    failed
}

fn status_of(backends: &Backends, member: &Moody) -> MemberStatus {
    status_at(backends, &member.origin)
}

fn status_at(backends: &Backends, origin: &str) -> MemberStatus {
    backends.status().into_iter().find(|row| row.backend() == origin).expect("the member is listed")
}

/// Waits until a member is in this state. `between` runs between two looks.
async fn reaches(backends: &Backends, member: &Moody, state: State, between: impl AsyncFn()) {
    let reached = async {
        while status_of(backends, member).state() != state {
            between().await;
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("it's never {state}: {:?}", backends.status()));
}

/// A long time out, so that nothing comes back during a test.
fn for_long() -> Eject {
    Eject::default().backoff(PATIENCE).max_backoff(PATIENCE)
}

/// A short time out.
fn briefly() -> Eject {
    Eject::default().backoff(Duration::from_millis(50)).max_backoff(Duration::from_millis(100))
}

#[tokio::test]
async fn a_member_is_out_after_five_faults_in_a_row_whatever_they_are() {
    for mood in [
        Mood::Responds(UNAVAILABLE),
        Mood::Responds(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
        Mood::Responds(b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n"),
        Mood::Responds(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 14\r\nContent-Length: 0\r\n\r\n",
        ),
        Mood::Breaks(GARBAGE),
        Mood::Breaks(b""),
        Mood::Breaks(CUT),
    ] {
        let (bad, good) = (Moody::new(mood).await, well().await);
        let Set { backends, addr, _held } = set_of(&bad.origin, &good, for_long()).await;
        reaches(&backends, &bad, State::Ejected, async || drop(post(addr).await)).await;
        assert_eq!((bad.requests(), status_of(&backends, &bad).faults()), (5, 5), "{mood:?}");
        assert_eq!((failed_posts(addr, 20).await, bad.requests()), (0, 5), "{mood:?}");
        assert_eq!(status_of(&backends, &good).state(), State::Up, "{mood:?}");
    }
}

#[tokio::test]
async fn a_member_that_exceeds_the_header_timeout_is_out_after_five_times() {
    let (bad, good) = (Moody::new(Mood::Hangs).await, well().await);
    let timeout = |layer: ReverseProxyLayer<_>| layer.header_timeout(Duration::from_millis(50));
    let Set { backends, addr, _held } = set_behind(&bad.origin, &good, for_long(), timeout).await;
    reaches(&backends, &bad, State::Ejected, async || drop(post(addr).await)).await;
    assert_eq!(bad.requests(), 5);
    assert_eq!((failed_posts(addr, 20).await, bad.requests()), (0, 5));
}

/// Sends a request to the hung member, and leaves after a while.
async fn leave_after(addr: SocketAddr, time: Duration) {
    let mut wire = client(addr).await;
    wire.send(b"POST /app/x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 0\r\n\r\n").await;
    let _ = timeout(time, wire.closed()).await;
}

#[tokio::test]
async fn clients_that_leave_late_are_evidence_of_a_hang_and_those_that_leave_early_are_not() {
    let hung = Moody::new(Mood::Hangs).await;
    let other = Moody::new(Mood::Hangs).await;
    let backends = builder(&[&hung, &other]).eject(for_long()).build().unwrap();
    let addr = balanced(&backends).await;
    for (time, faults) in [(Duration::from_millis(300), 0..=0), (Duration::from_millis(1_100), 3..=4)] {
        let mut leaving = tokio::task::JoinSet::new();
        for _ in 0..6 {
            leaving.spawn(leave_after(addr, time));
        }
        within(leaving.join_all()).await;
        let in_flight = async {
            while backends.status().iter().any(|row| row.in_flight() > 0) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        within(in_flight).await;
        let counted: u64 = backends.status().iter().map(MemberStatus::faults).sum();
        // Three halves each are two faults each. Four and two halves are two and one.
        assert!(faults.contains(&counted), "{time:?}: {:?}", backends.status());
        assert!(backends.status().iter().all(|row| row.state() == State::Up), "{:?}", backends.status());
    }
}

#[tokio::test]
async fn errors_that_every_member_answers_with_take_none_out() {
    let members = [Moody::new(Mood::Responds(BROKEN)).await, Moody::new(Mood::Responds(BROKEN)).await];
    let backends = builder(&[&members[0], &members[1]]).eject(for_long()).build().unwrap();
    let addr = balanced(&backends).await;
    assert_eq!(failed_posts(addr, 60).await, 60);
    for member in &members {
        assert_eq!((status_of(&backends, member).state(), status_of(&backends, member).faults()), (State::Up, 0));
        assert!(member.requests() >= 10);
    }
}

#[tokio::test]
async fn a_member_that_alone_answers_with_errors_is_out() {
    let (bad, good) = (Moody::new(Mood::Responds(BROKEN)).await, well().await);
    let backends = builder(&[&bad, &good]).eject(for_long()).build().unwrap();
    let addr = balanced(&backends).await;
    reaches(&backends, &bad, State::Ejected, async || drop(post(addr).await)).await;
    assert_eq!((bad.requests(), failed_posts(addr, 20).await, bad.requests()), (20, 0, 20));
}

#[tokio::test]
async fn half_of_the_members_are_out_at_most_and_a_single_one_never_is() {
    let bad = Moody::new(Mood::Responds(UNAVAILABLE)).await;
    let backends = builder(&[&bad]).eject(for_long()).build().unwrap();
    let addr = balanced(&backends).await;
    assert_eq!((failed_posts(addr, 20).await, bad.requests()), (20, 20));
    assert_eq!(status_of(&backends, &bad).state(), State::Up);

    let members = [well().await, well().await, well().await];
    let backends = builder(&members.iter().collect::<Vec<_>>()).eject(for_long()).build().unwrap();
    let addr = balanced(&backends).await;
    failed_posts(addr, 90).await;
    for member in &members {
        member.becomes(Mood::Responds(UNAVAILABLE));
    }
    failed_posts(addr, 90).await;
    let out = backends.status().iter().filter(|row| row.state() != State::Up).count();
    assert!(out <= 1, "{:?}", backends.status());
}

#[tokio::test]
async fn no_client_pays_for_the_trials_of_a_member_that_is_out() {
    for mood in [Mood::Responds(UNAVAILABLE), Mood::Breaks(GARBAGE), Mood::Breaks(b""), Mood::Hangs] {
        let (bad, good) = (Moody::new(Mood::Responds(UNAVAILABLE)).await, well().await);
        let Set { backends, addr, _held } = set_of(&bad.origin, &good, briefly()).await;
        reaches(&backends, &bad, State::Ejected, async || drop(post(addr).await)).await;
        bad.becomes(mood);
        let before = bad.requests();
        let trials = async {
            while bad.requests() < before + 3 {
                let response = get(addr, "/app/x", "").await;
                assert_eq!((response.status(), response.text().as_str()), (200, "ok"), "{mood:?}");
                sleep(Duration::from_millis(5)).await;
            }
        };
        within(trials).await;
        assert_eq!(status_of(&backends, &bad).state(), State::Ejected, "{mood:?}");
    }
}

#[tokio::test]
async fn a_trial_that_succeeds_is_the_clients_response_and_brings_the_member_back() {
    let (bad, good) = (Moody::new(Mood::Responds(UNAVAILABLE)).await, well().await);
    let Set { backends, addr, _held } = set_of(&bad.origin, &good, briefly()).await;
    reaches(&backends, &bad, State::Ejected, async || drop(post(addr).await)).await;
    bad.becomes(Mood::Responds(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback"));
    let begun = bad.requests();
    reaches(&backends, &bad, State::Up, async || {
        assert_eq!(get(addr, "/app/x", "").await.status(), 200);
    })
    .await;
    assert_eq!(bad.requests(), begun + 1);
    assert_eq!(failed_posts(addr, 5).await, 0);
    assert_eq!(bad.requests(), begun + 6, "it isn't avoided for the faults of before");
}

#[tokio::test]
async fn requests_with_a_body_or_another_method_are_no_trials() {
    let (bad, good) = (Moody::new(Mood::Responds(UNAVAILABLE)).await, well().await);
    let Set { backends, addr, _held } = set_of(&bad.origin, &good, briefly()).await;
    reaches(&backends, &bad, State::Ejected, async || drop(post(addr).await)).await;
    let before = bad.requests();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(failed_posts(addr, 20).await, 0);
    let with_body = "GET /app/x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(ask(addr, with_body).await.status(), 200);
    assert_eq!(bad.requests(), before);
}

#[tokio::test]
async fn a_member_that_refuses_connects_is_down_and_comes_back_by_a_connect_of_its_own() {
    let ((gone, socket), good) = (refusing(), well().await);
    let Set { backends, addr, _held } = set_of(&gone, &good, briefly()).await;
    let goes_down = async {
        while status_at(&backends, &gone).state() != State::Down {
            post(addr).await;
        }
    };
    within(goes_down).await;
    assert_eq!(status_at(&backends, &gone).faults(), 2);
    assert_eq!(failed_posts(addr, 20).await, 0);
    // The listener is there again.
    let back = Moody::on(socket.listen(64).unwrap(), Mood::Responds(OK));
    reaches(&backends, &back, State::Up, async || assert_eq!(post(addr).await.status(), 200)).await;
}

#[tokio::test]
async fn all_members_are_tried_when_none_is_left_and_the_first_that_answers_is_up() {
    let ((one, socket), (other, _reserved)) = (refusing(), refusing());
    let backends = Backends::builder([one, other]).eject(for_long()).build().unwrap();
    let addr = balanced(&backends).await;
    let all_down = async {
        while backends.status().iter().any(|row| row.state() != State::Down) {
            post(addr).await;
        }
    };
    within(all_down).await;
    let begun = Instant::now();
    assert_eq!(post(addr).await.status(), 502);
    assert!(begun.elapsed() < Duration::from_secs(1));
    let back = Moody::on(socket.listen(64).unwrap(), Mood::Responds(OK));
    reaches(&backends, &back, State::Up, async || drop(post(addr).await)).await;
    assert_eq!(failed_posts(addr, 10).await, 0);
}

#[tokio::test]
async fn with_unavailable_a_set_without_a_healthy_member_answers_503_at_once() {
    let ((one, _reserved), (other, _too)) = (refusing(), refusing());
    let builder = Backends::builder([one, other]).eject(for_long()).none_healthy(NoneHealthy::Unavailable);
    let backends = builder.build().unwrap();
    let addr = balanced(&backends).await;
    let all_down = async {
        while backends.status().iter().any(|row| row.state() != State::Down) {
            post(addr).await;
        }
    };
    within(all_down).await;
    let requests = || backends.status().iter().map(MemberStatus::requests).sum::<u64>();
    let before = requests();
    let response = post(addr).await;
    assert_eq!((response.status(), response.field("retry-after")), (503, Some("1")));
    assert_eq!(requests(), before);
}

#[tokio::test]
async fn a_recent_failure_counts_as_load_although_no_member_is_ever_out() {
    let (bad, good) = (Moody::new(Mood::Responds(UNAVAILABLE)).await, well().await);
    let backends = builder(&[&bad, &good]).eject(Eject::never()).build().unwrap();
    let addr = balanced(&backends).await;
    assert!(failed_posts(addr, 100).await <= 20);
    let row = status_of(&backends, &bad);
    assert_eq!((row.state(), row.faults()), (State::Up, bad.requests() as u64));
    assert!(row.faults() > 0);
}

#[tokio::test]
async fn local_routes_answer_while_every_member_hangs() {
    let members = [Moody::new(Mood::Hangs).await, Moody::new(Mood::Hangs).await];
    let backends = builder(&[&members[0], &members[1]]).build().unwrap();
    let addr = balanced(&backends).await;
    let mut hanging = Vec::new();
    for _ in 0..20 {
        let mut wire = client(addr).await;
        wire.send(b"GET /app/x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
        hanging.push(wire);
    }
    assert_eq!(get(addr, "/own", "").await.text(), "own");
}

#[tokio::test(start_paused = true)]
async fn where_no_request_may_be_a_trial_a_member_comes_back_later_and_one_fault_is_enough() {
    let (is_well, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let backends = Backends::builder([Member::named("bad"), Member::named("good")]).slow_start(Duration::ZERO);
    let backends = backends.build().unwrap();
    let balance = {
        let (is_well, requests) = (is_well.clone(), requests.clone());
        Balance::new(&backends, move |member: &Member| {
            let (is_well, requests, is_bad) = (is_well.clone(), requests.clone(), member.name() == "bad");
            service_fn(move |_: Request| {
                requests.fetch_add(usize::from(is_bad), Ordering::SeqCst);
                let fails = is_bad && !is_well.load(Ordering::SeqCst);
                let status = if fails { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
                async move { Ok::<_, Infallible>((status, "").into_response()) }
            })
        })
    };
    let post = async || {
        let request = Request::post("/x").body(Body::empty()).unwrap();
        balance.clone().oneshot(request).await.unwrap();
        // No debt is left.
        tokio::time::advance(Duration::from_secs(70)).await;
    };
    let state = || backends.status()[0].state();
    let until = async |wanted: State| {
        for _ in 0..1_000 {
            if state() == wanted {
                return;
            }
            post().await;
        }
        panic!("it's never {wanted}");
    };
    until(State::Ejected).await;
    assert_eq!(requests.load(Ordering::SeqCst), 5);
    for _ in 0..20 {
        let before = requests.load(Ordering::SeqCst);
        post().await;
        let is_tried = requests.load(Ordering::SeqCst) > before;
        assert!(!is_tried || state() == State::Ejected, "one fault is enough");
    }
    assert!(requests.load(Ordering::SeqCst) > 6, "it comes back");
    is_well.store(true, Ordering::SeqCst);
    until(State::Up).await;
    for _ in 0..20 {
        post().await;
    }
    assert_eq!(state(), State::Up);
    assert!(requests.load(Ordering::SeqCst) > 7);
}

// ---- Checks ----

/// A check that decides fast.
fn check() -> Check {
    Check::get("/healthz").interval(Duration::from_millis(20)).timeout(Duration::from_millis(500))
}

/// Waits until a member has been checked so often from now on.
async fn checked(member: &Moody, times: usize) {
    let before = member.checks();
    let checked = async {
        while member.checks() < before + times {
            sleep(Duration::from_millis(5)).await;
        }
    };
    within(checked).await;
}

#[tokio::test]
async fn a_member_whose_checks_fail_gets_no_request_until_two_succeed() {
    let (sick, good) = (well().await, well().await);
    let backends = builder(&[&sick, &good]).check(check()).slow_start(Duration::ZERO).build().unwrap();
    let addr = balanced(&backends).await;
    checked(&sick, 3).await;
    assert_eq!((failed_posts(addr, 30).await, status_of(&backends, &sick).state()), (0, State::Up));
    for mood in [Mood::Responds(UNAVAILABLE), Mood::Breaks(GARBAGE), Mood::Hangs] {
        sick.becomes(mood);
        reaches(&backends, &sick, State::Down, async || {}).await;
        let before = sick.requests();
        assert_eq!((failed_posts(addr, 30).await, sick.requests()), (0, before), "{mood:?}");
        sick.becomes(Mood::Responds(OK));
        reaches(&backends, &sick, State::Up, async || {}).await;
        assert_eq!(failed_posts(addr, 60).await, 0, "{mood:?}");
        assert!(sick.requests() > before, "{mood:?}");
    }
    let requests: u64 = backends.status().iter().map(MemberStatus::requests).sum();
    assert_eq!(requests, (sick.requests() + good.requests()) as u64, "checks don't count");
}

#[tokio::test]
async fn a_check_is_a_get_of_its_path_with_the_members_host_over_a_connection_of_its_own() {
    let (origin, mut requests) = recording("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let other = well().await;
    let backends = Backends::builder([&origin, &other.origin])
        .client(|client| client.max_connections(1))
        .check(Check::get("/healthz?full=1").interval(Duration::from_millis(20)))
        .build()
        .unwrap();
    let request = within(requests.recv()).await.unwrap();
    let host = origin.trim_start_matches("http://");
    assert_eq!(request.head, format!("GET /healthz?full=1 HTTP/1.1\r\nhost: {host}\r\n\r\n"));
    drop(backends);
}

#[tokio::test]
async fn checks_go_on_while_all_connections_of_the_pool_are_taken() {
    let member = well().await;
    let backends = builder(&[&member]).client(|client| client.max_connections(1)).check(check()).build().unwrap();
    let addr = balanced(&backends).await;
    let mut held = client(addr).await;
    held.send(b"GET /app/held HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    held.head().await.unwrap();
    checked(&member, 5).await;
    assert_eq!(status_of(&backends, &member).state(), State::Up);
}

#[tokio::test]
async fn with_a_check_it_alone_brings_an_ejected_member_back() {
    let (bad, good) = (well().await, well().await);
    // Its checks fail although its responses are faults no longer.
    let healthy = Arc::new(AtomicUsize::new(1));
    let judge = {
        let healthy = healthy.clone();
        move |_: &_| if healthy.load(Ordering::SeqCst) == 1 { Verdict::Up } else { Verdict::Down }
    };
    let builder = builder(&[&bad, &good]).check(check().judge(judge)).eject(briefly());
    let backends = builder.none_healthy(NoneHealthy::Unavailable).build().unwrap();
    let addr = balanced(&backends).await;
    checked(&bad, 1).await;
    healthy.store(0, Ordering::SeqCst);
    let all_down = async {
        while backends.status().iter().any(|row| row.state() == State::Up) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    within(all_down).await;
    let before = bad.requests() + good.requests();
    sleep(Duration::from_millis(200)).await;
    for _ in 0..10 {
        assert_eq!(get(addr, "/app/x", "").await.status(), 503);
    }
    assert_eq!(bad.requests() + good.requests(), before);
    healthy.store(1, Ordering::SeqCst);
    reaches(&backends, &bad, State::Up, async || {}).await;
}

#[tokio::test]
async fn a_verdict_drains_a_member() {
    let (leaving, good) = (well().await, well().await);
    let judge = |response: &axum::http::response::Parts| match response.headers.contains_key("x-leaving") {
        true => Verdict::Drain,
        false => Verdict::Up,
    };
    let backends = builder(&[&leaving, &good]).check(check().judge(judge)).build().unwrap();
    let addr = balanced(&backends).await;
    leaving.becomes(Mood::Responds(b"HTTP/1.1 200 OK\r\nX-Leaving: 1\r\nContent-Length: 2\r\n\r\nok"));
    reaches(&backends, &leaving, State::Draining, async || {}).await;
    let before = leaving.requests();
    assert_eq!((failed_posts(addr, 20).await, leaving.requests()), (0, before));
    leaving.becomes(Mood::Responds(OK));
    reaches(&backends, &leaving, State::Up, async || {}).await;
}

/// The capacity that a member announces, as a percentage.
fn announced(response: &axum::http::response::Parts) -> Verdict {
    let percent = response.headers.get("x-capacity").and_then(|value| value.to_str().ok()?.parse().ok());
    percent.map_or(Verdict::Up, Verdict::Weight)
}

#[tokio::test]
async fn a_verdict_reduces_the_weight_of_a_member_however_requests_are_picked() {
    // Of the turns and of the requests, a member with a quarter of its weight gets a fifth; of the keys, a quarter of its
    // own half.
    for (pick, expected) in [(Pick::LeastRequests, 55..106), (Pick::RoundRobin, 78..83), (Pick::hash_by_path(), 25..76)]
    {
        let (reduced, whole) = (well().await, well().await);
        let backends = builder(&[&reduced, &whole]).pick(pick.clone()).seed(1).check(check().judge(announced));
        let backends = backends.build().unwrap();
        let addr = balanced(&backends).await;
        reduced.becomes(Mood::Responds(b"HTTP/1.1 200 OK\r\nX-Capacity: 25\r\nContent-Length: 2\r\n\r\nok"));
        let percent = || status_of(&backends, &reduced).weight_percent();
        let announced = async {
            while percent() != 25 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        within(announced).await;
        let mut wire = client(addr).await;
        for number in 0..400 {
            let request = format!("POST /app/{number} HTTP/1.1\r\nHost: front.example\r\nContent-Length: 0\r\n\r\n");
            wire.send(request.as_bytes()).await;
            assert_eq!(within(wire.message()).await.unwrap().status(), 200);
        }
        assert!(expected.contains(&reduced.requests()), "{pick:?}: {} of 400", reduced.requests());
        assert_eq!(reduced.requests() + whole.requests(), 400);
        assert_eq!((percent(), status_of(&backends, &reduced).weight()), (25, 1));
        // More than everything is everything, and nothing is a drain.
        reduced.becomes(Mood::Responds(b"HTTP/1.1 200 OK\r\nX-Capacity: 250\r\nContent-Length: 2\r\n\r\nok"));
        let announced = async {
            while percent() != 100 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        within(announced).await;
        reduced.becomes(Mood::Responds(b"HTTP/1.1 200 OK\r\nX-Capacity: 0\r\nContent-Length: 2\r\n\r\nok"));
        reaches(&backends, &reduced, State::Draining, async || {}).await;
    }
}

#[tokio::test]
async fn a_verdict_that_panics_is_a_failed_check() {
    let (one, other) = (well().await, well().await);
    let judge = |_: &_| -> Verdict { panic!("the application's mistake") };
    let backends = builder(&[&one, &other]).check(check().judge(judge)).build().unwrap();
    reaches(&backends, &one, State::Down, async || {}).await;
    checked(&one, 3).await;
}

#[tokio::test]
async fn an_added_member_gets_its_first_request_after_its_first_check() {
    let (old, new) = (well().await, Moody::new(Mood::Hangs).await);
    let backends = builder(&[&old]).check(check()).slow_start(Duration::ZERO).build().unwrap();
    let addr = balanced(&backends).await;
    backends.set([&*old.origin, &*new.origin]).unwrap();
    assert_eq!(status_of(&backends, &new).state(), State::Checking);
    assert_eq!((failed_posts(addr, 20).await, new.requests()), (0, 0));
    new.becomes(Mood::Responds(OK));
    reaches(&backends, &new, State::Up, async || {}).await;
    assert_eq!(failed_posts(addr, 60).await, 0);
    assert!(new.requests() > 0);
}

#[tokio::test]
async fn checks_end_with_the_set_and_with_the_member() {
    let (kept, removed) = (well().await, well().await);
    let backends = builder(&[&kept, &removed]).check(check()).build().unwrap();
    checked(&removed, 1).await;
    backends.set([&*kept.origin]).unwrap();
    sleep(Duration::from_millis(100)).await;
    let before = removed.checks();
    checked(&kept, 5).await;
    assert_eq!(removed.checks(), before);
    drop(backends);
    sleep(Duration::from_millis(100)).await;
    let before = kept.checks();
    sleep(Duration::from_millis(200)).await;
    assert_eq!(kept.checks(), before);
}

#[test]
fn a_check_of_a_set_that_is_built_without_a_runtime_begins_with_the_first_request() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let member = elsewhere(well());
    let backends = builder(&[&member]).check(check()).build().unwrap();
    for _ in 0..2 {
        // The next runtime has checks of its own, because the task ends with its runtime.
        runtime().block_on(async {
            let before = member.checks();
            let addr = balanced(&backends).await;
            assert_eq!(post(addr).await.status(), 200);
            let checked = async {
                while member.checks() < before + 2 {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            within(checked).await;
        });
    }
}

#[test]
fn an_invalid_check_names_what_to_write() {
    for (path, hint) in [("healthz", "\"/healthz\""), ("", "\"/healthz\""), ("/a b", "\"/healthz\"")] {
        let error = Backends::builder(["http://10.0.0.1:8000"]).check(Check::get(path)).build().unwrap_err();
        assert!(error.to_string().contains(hint), "{error}");
    }
    let error = Backends::builder([Member::named("blue")]).check(Check::get("/healthz")).build().unwrap_err();
    assert!(error.to_string().contains("no address"), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_member_on_a_unix_socket_is_checked_there() {
    let path = std::env::temp_dir().join(format!("tower-reverse-proxy-check-{}.sock", std::process::id()));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let good = well().await;
    let backends = Backends::builder([format!("unix:{}", path.display()), good.origin.clone()]).check(check());
    let backends = backends.build().unwrap();
    let (stream, _) = within(listener.accept()).await.unwrap();
    let mut wire = Wire::new(stream);
    let request = within(wire.message()).await.unwrap();
    assert_eq!(request.head, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
    wire.send(OK).await;
    drop(listener);
    std::fs::remove_file(path).unwrap();
    let is_down = async {
        while backends.status()[0].state() != State::Down {
            sleep(Duration::from_millis(5)).await;
        }
    };
    within(is_down).await;
}

#[cfg(feature = "http2")]
#[tokio::test]
async fn a_member_that_speaks_http2_is_checked_and_connected_to_by_it() {
    let (healthz, others) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = (healthz.clone(), others.clone());
    let (origin, _backend, _ended) = Http2::serve(100, move |request| {
        let counter = if request.uri().path() == "/healthz" { &count.0 } else { &count.1 };
        counter.fetch_add(1, Ordering::SeqCst);
        assert_eq!(request.version(), axum::http::Version::HTTP_2);
        async { "ok".into_response() }
    })
    .await;
    let (gone, _reserved) = refusing();
    // By checks.
    let backends = Backends::builder([&origin, &gone]).client(|client| client.http2(true)).check(check());
    let backends = backends.build().unwrap();
    let is_checked = async {
        while healthz.load(Ordering::SeqCst) < 5 || status_at(&backends, &gone).state() != State::Down {
            sleep(Duration::from_millis(5)).await;
        }
    };
    within(is_checked).await;
    assert_eq!((status_at(&backends, &origin).state(), others.load(Ordering::SeqCst)), (State::Up, 0));
}

#[cfg(feature = "http2")]
#[tokio::test]
async fn a_member_that_speaks_http2_comes_back_by_a_connect_of_its_own() {
    let ((gone, socket), (other, _reserved)) = (refusing(), refusing());
    let backends = Backends::builder([&gone, &other]).client(|client| client.http2(true));
    let backends = backends.eject(briefly()).none_healthy(NoneHealthy::Unavailable).build().unwrap();
    let addr = balanced(&backends).await;
    let all_down = async {
        while backends.status().iter().any(|row| row.state() != State::Down) {
            post(addr).await;
        }
    };
    within(all_down).await;
    let listener = socket.listen(64).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                greet(&mut stream, &[]).await;
                while let Some(frame) = read_frame(&mut stream).await {
                    let _ = stream.write_all(&frame.acknowledgement()).await;
                }
            });
        }
    });
    let is_up = async {
        while status_at(&backends, &gone).state() != State::Up {
            assert_eq!(post(addr).await.status(), 503);
            sleep(Duration::from_millis(5)).await;
        }
    };
    // The last request may have been sent to the member that is back, which doesn't respond.
    let _ = timeout(Duration::from_secs(10), is_up).await;
    assert_eq!(status_at(&backends, &gone).state(), State::Up);
}
