//! Bad input: a wrong set is an error that contains what to write, and a wrong member or source harms nothing else.
//!
//! Members that fail are in `health`, sources in `discover`, and forged cookies in `sticky`.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use axum::{Router, routing::get as route};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tower_reverse_proxy::{
    Backends, RetryPolicy, ReverseProxyLayer,
    balance::{Check, Eject, Member, MemberStatus, Pick, Sticky},
};

use crate::support::{
    PATIENCE, Wire, answering, ask, backend, client, closing, front, get, named, others_run, refusing, silent, within,
};

const ONE: &str = "http://10.0.0.1:8000";
const TWO: &str = "http://10.0.0.2:8000";

fn names(backends: &Backends) -> Vec<String> {
    backends.status().iter().map(|member| member.backend().to_owned()).collect()
}

/// The text of a panic.
fn panic_of<T>(f: impl FnOnce() -> T) -> String {
    let panicked = catch_unwind(AssertUnwindSafe(f)).err().expect("a panic");
    *panicked.downcast::<String>().expect("a text")
}

/// The text of the error for a set. It's the same at start, in place of a running set, and from a source; and a running
/// set stays as it is.
async fn refusal(members: impl Fn() -> Vec<Member>) -> String {
    let error = Backends::try_new(members()).unwrap_err().to_string();
    assert_eq!(ReverseProxyLayer::try_balanced(members()).unwrap_err().to_string(), error);
    assert_eq!(panic_of(|| Backends::new(members())), error);
    assert_eq!(panic_of(|| ReverseProxyLayer::balanced(members())), error);
    let backends = Backends::new([ONE]);
    assert_eq!(backends.set(members()).unwrap_err().to_string(), error);
    let _follow = backends.follow(futures_util::stream::iter([Ok::<_, Infallible>(members())]));
    others_run().await;
    assert_eq!(names(&backends), [ONE]);
    error
}

#[tokio::test(start_paused = true)]
async fn a_set_without_backends_is_refused() {
    assert_eq!(refusal(Vec::new).await, "there are no backends: write at least one");
}

#[tokio::test(start_paused = true)]
async fn a_weight_of_nothing_is_refused() {
    let error = refusal(|| vec![Member::new(ONE), Member::new(TWO).weight(0)]).await;
    assert_eq!(error, format!("the weight of {TWO:?} is 0: write 1 or more, or leave the member out"));
}

#[tokio::test(start_paused = true)]
async fn two_backends_of_one_origin_are_refused_however_they_are_written() {
    let address = ([10, 0, 0, 1], 8000).into();
    for (one, other, origin) in [
        (Member::new(ONE), Member::new("HTTP://10.0.0.1:8000/"), ONE),
        (Member::new("http://App.example"), Member::new("http://app.example:80"), "http://app.example"),
        (Member::new("http://[::1]:80"), Member::new("http://[::1]").weight(2), "http://[::1]"),
        (Member::new(ONE), Member::new(ONE).backup(), ONE),
        (
            Member::new("http://app.example:80").at(address),
            Member::new("http://APP.example").at(address),
            "http://app.example at 10.0.0.1:8000",
        ),
        #[cfg(unix)]
        (Member::new("unix:/run/app.sock"), Member::new("unix:///run/app.sock"), "unix:/run/app.sock"),
    ] {
        let error = refusal(|| vec![one.clone(), Member::new(TWO), other.clone()]).await;
        assert_eq!(error, format!("{origin:?} is listed twice: write it once, with a weight of 2 if it's meant so"));
    }
    // These are two servers.
    assert!(Backends::try_new([Member::new("http://app.example"), Member::new("http://app.example:81")]).is_ok());
    assert!(Backends::try_new([Member::new(ONE), Member::new(ONE).at(address)]).is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_invalid_origin_is_refused() {
    for (wrong, hint) in [
        ("10.0.0.1:8000", "write for example \"http://127.0.0.1:8000\""),
        ("http://10.0.0.1:8000/app", "write \"http://10.0.0.1:8000\""),
        ("http://user:s3cret@10.0.0.1", "BasicAuthLayer"),
        ("ftp://10.0.0.1", "http"),
        ("http://", "http://"),
        ("", "http://"),
    ] {
        let error = refusal(|| vec![Member::new(TWO), Member::new(wrong)]).await;
        assert!(error.contains(hint) && !error.contains("s3cret"), "{wrong}: {error}");
    }
}

#[test]
fn a_check_without_a_path_is_refused() {
    for path in ["", "healthz", "http://10.0.0.1:8000/healthz", "/health z", "*", "/health\r\nX: 1", "/healthz#a"] {
        let error = Backends::builder([ONE]).check(Check::get(path)).build().unwrap_err().to_string();
        assert!(
            error.contains(&format!("{path:?}")) && error.contains("write for example \"/healthz\""),
            "{path:?}: {error}"
        );
    }
}

#[test]
fn a_check_without_time_is_refused() {
    let check = Check::get("/healthz").timeout(Duration::ZERO);
    let error = Backends::builder([ONE]).check(check).build().unwrap_err().to_string();
    assert!(error.starts_with("a check with a timeout of 0 never succeeds: write the longest time"), "{error}");
}

#[test]
fn a_sticky_key_under_16_bytes_is_refused() {
    for key in ["", "s3cret", "15-bytes-s3cret"] {
        let error = Sticky::cookie("backend", key).unwrap_err().to_string();
        assert!(error.contains("needs 16 bytes or more") && error.contains("`openssl rand -hex 32`"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
    assert!(Sticky::cookie("backend", "16-bytes-s3cret!").is_ok());
    for name in ["", "my backend", "a=b", "a;b", "__Host-backend"] {
        let error = Sticky::cookie(name, "0123456789abcdef").unwrap_err().to_string();
        assert!(error.contains(&format!("{name:?}: write letters, digits")), "{error}");
    }
}

#[test]
fn a_limit_of_nothing_is_refused() {
    let error = Backends::builder([ONE]).max_requests(0).build().unwrap_err().to_string();
    assert_eq!(error, "invalid maximum of 0 requests: write 1 or more, or `None` for no limit");
    let error = Backends::builder([ONE]).client(|client| client.max_connections(0)).build().unwrap_err().to_string();
    assert!(error.contains("write `None`"), "{error}");
}

#[tokio::test]
async fn the_largest_weights_and_times_are_weights_and_times_as_others() {
    let (a, b) = (named("a").await, named("b").await);
    for pick in [Pick::LeastRequests, Pick::RoundRobin, Pick::hash_by_path()] {
        let members = [&a, &b].map(|origin| Member::new(origin).weight(u32::MAX));
        let backends = Backends::builder(members)
            .pick(pick.clone())
            .max_requests(u32::MAX)
            .queue_timeout(Duration::MAX)
            .slow_start(Duration::MAX)
            .drain_timeout(Duration::MAX)
            .eject(Eject::default().faults(u32::MAX).backoff(Duration::MAX).max_backoff(Duration::MAX))
            .seed(1)
            .build()
            .unwrap();
        let addr = front(Router::new().layer(ReverseProxyLayer::balanced(&backends).prefix("/app"))).await;
        let mut seen = std::collections::BTreeMap::<String, usize>::new();
        for number in 0..60 {
            // With a body, because the latency of other requests is compared, and a busy machine has many.
            let request = format!("POST /app/{number} HTTP/1.1\r\nHost: front.example\r\nContent-Length: 1\r\n\r\nx");
            *seen.entry(ask(addr, request).await.text()).or_default() += 1;
        }
        assert!(seen.len() == 2 && seen.values().all(|count| (15..=45).contains(count)), "{pick:?}: {seen:?}");
        // One that is added begins with nearly no share.
        backends.set([Member::new(&a), Member::new(&b), Member::new(refusing().await).weight(u32::MAX)]).unwrap();
        assert_eq!(get(addr, "/app/x", "").await.status(), 200);
    }
}

const GET: &[u8] = b"GET /bad/x HTTP/1.1\r\nHost: front.example\r\n\r\n";

/// Sends these bytes in response to each request, and then nothing, while the connection stays open.
async fn stalling(response: &'static str) -> String {
    backend(move |mut wire| async move {
        wire.message().await;
        wire.send(response.as_bytes()).await;
        wire.closed().await;
    })
    .await
}

/// What the client gets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gets {
    /// A whole response with this status.
    Whole(u16),
    /// A response that is cut, or 502 if the failure has arrived together with the head.
    Cut,
}

/// What a member does with a request, what the client gets, and what counts against the member.
struct Case {
    what: &'static str,
    origin: String,
    response: Gets,
    is_fault: bool,
}

async fn cases() -> Vec<Case> {
    use Gets::{Cut, Whole};
    let case = |what, origin, response, is_fault| Case { what, origin, response, is_fault };
    let closing =
        async |what, bytes: &'static str, response, is_fault| case(what, closing(bytes).await, response, is_fault);
    let status = async |line: &'static str, is_fault| {
        let status = line[..3].parse().unwrap();
        let bytes = format!("HTTP/1.1 {line}\r\nContent-Length: 4\r\n\r\nbusy");
        case(line, answering(bytes).await, Whole(status), is_fault)
    };
    vec![
        case("it refuses", refusing().await, Whole(502), true),
        case("it hangs", silent().await, Whole(504), true),
        case("it hangs in its head", stalling("HTTP/1.1 200 OK\r\nContent-").await, Whole(504), true),
        case("it hangs in its body", stalling("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await, Cut, true),
        closing("it closes", "", Whole(502), true).await,
        closing("it closes in its head", "HTTP/1.1 200 OK\r\nContent-Le", Whole(502), true).await,
        closing("it answers garbage", "SSH-2.0-OpenSSH_9.2\r\n\r\n", Whole(502), true).await,
        closing("it answers zeros", "\0\0\0\0\0\0\0\0\r\n\r\n", Whole(502), true).await,
        closing("its length is too large", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", Cut, true).await,
        closing("its length is no number", "HTTP/1.1 200 OK\r\nContent-Length: 4x\r\n\r\nhalf", Whole(502), true).await,
        closing(
            "it has two lengths",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 2\r\n\r\nhalf",
            Whole(502),
            true,
        )
        .await,
        closing(
            "it has a length and chunks",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n\r\n",
            Whole(502),
            true,
        )
        .await,
        closing(
            "its chunks are wrong",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nx\r\n",
            Cut,
            true,
        )
        .await,
        closing("its chunks are cut", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", Cut, true)
            .await,
        // The client's response is whole, and the connection isn't used again.
        closing(
            "its length is too small",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhalf, and more",
            Whole(200),
            false,
        )
        .await,
        closing(
            "it switches to a protocol that wasn't offered",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n",
            Whole(502),
            true,
        )
        .await,
        status("502 Bad Gateway", true).await,
        status("503 Service Unavailable", true).await,
        status("504 Gateway Timeout", true).await,
        // One URL may provoke these everywhere.
        status("500 Internal Server Error", false).await,
        status("501 Not Implemented", false).await,
        status("505 HTTP Version Not Supported", false).await,
        // The limit is usually the client's.
        status("429 Too Many Requests", false).await,
        status("404 Not Found", false).await,
    ]
}

fn faults(backends: &Backends) -> u64 {
    backends.status().iter().map(MemberStatus::faults).sum()
}

async fn faults_become(backends: &Backends, count: u64, what: &str) {
    let counted = async {
        while faults(backends) != count {
            sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(timeout(PATIENCE, counted).await.is_ok(), "{what}: {} and not {count}", faults(backends));
}

#[tokio::test]
async fn a_bad_member_gets_its_faults_and_harms_neither_routes_nor_other_mounts() {
    let good = named("good").await;
    for Case { what, origin, response, is_fault } in cases().await {
        let backends = Backends::builder([origin]).eject(Eject::never()).build().unwrap();
        // A busy machine may be late with the others.
        let limit = if what.starts_with("it hangs") { Duration::from_millis(200) } else { PATIENCE };
        let bad = ReverseProxyLayer::balanced(&backends)
            .prefix("/bad")
            .retry(RetryPolicy::none())
            .header_timeout(limit)
            .body_idle_timeout(limit);
        let other = ReverseProxyLayer::balanced([good.clone()]).prefix("/good");
        let addr = front(Router::new().route("/own", route(|| async { "own" })).layer(bad).layer(other)).await;
        let mut wires = Vec::<Wire<TcpStream>>::new();
        for _ in 0..3 {
            let mut wire = client(addr).await;
            wire.send(GET).await;
            wires.push(wire);
            assert_eq!(get(addr, "/own", "").await.text(), "own", "{what}");
            assert_eq!(get(addr, "/good/x", "").await.text(), "good", "{what}");
        }
        for wire in &mut wires {
            within(wire.message()).await.expect("a response");
        }
        let got = ask(addr, GET).await;
        let is_as_expected = match response {
            Gets::Whole(status) => got.complete && got.status() == status,
            Gets::Cut => !got.complete || got.status() == 502,
        };
        assert!(is_as_expected, "{what}: {got:?} and not {response:?}");
        faults_become(&backends, if is_fault { 4 } else { 0 }, what).await;
        assert_eq!(backends.status()[0].requests(), 4, "{what}");
        assert_eq!(get(addr, "/own", "").await.text(), "own", "{what}");
        assert_eq!(get(addr, "/good/x", "").await.text(), "good", "{what}");
    }
}

#[tokio::test]
async fn a_bad_client_is_no_fault_of_the_member() {
    let backends = Backends::builder([silent().await]).eject(Eject::never()).build().unwrap();
    let proxy = ReverseProxyLayer::balanced(&backends).prefix("/bad").body_idle_timeout(Duration::from_millis(100));
    let addr = front(Router::new().layer(proxy)).await;
    for (fields, body, status) in [
        // Its body is shorter than its length.
        ("Content-Length: 9", "half", Some(408)),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\nx\r\n", Some(400)),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n", Some(408)),
    ] {
        let mut wire = client(addr).await;
        let head = format!("POST /bad/x HTTP/1.1\r\nHost: front.example\r\n{fields}\r\n\r\n{body}");
        wire.send(head.as_bytes()).await;
        let response = within(wire.message()).await;
        assert_eq!(response.map(|response| response.status()), status, "{fields} {body:?}");
    }
    // It leaves.
    let mut wire = client(addr).await;
    wire.send(b"POST /bad/x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 9\r\n\r\nhalf").await;
    while backends.status()[0].requests() < 4 {
        sleep(Duration::from_millis(1)).await;
    }
    drop(wire);
    let ended = async {
        while backends.status()[0].in_flight() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    within(ended).await;
    assert_eq!(faults(&backends), 0);
}
