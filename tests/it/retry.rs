//! Retries over the wire: what reaches the backends, and what the client gets.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::Router;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tower_reverse_proxy::{
    Backends, BasicAuthLayer, Retry, RetryPolicy, ReverseProxyLayer, Upstream, balance::MemberStatus, retry::Hedge,
};

use crate::support::{
    Message, Wire, answering, ask, backend, client, front, mirror, others_run, refusing, silent, within,
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

/// What a backend does with a request.
#[derive(Clone, Copy, Debug)]
enum Does {
    /// Reads it, and responds.
    Answers(&'static [u8]),
    /// Reads its head only, responds, and closes.
    AnswersEarly(&'static [u8]),
    /// Reads it, and closes.
    Closes,
    /// Reads this much of its body, and closes.
    ClosesAfter(usize),
}

/// A backend that does one thing after the other, each on a connection of its own. It reports the requests, and how
/// much of an incomplete one it has read.
async fn script<const N: usize>(steps: [Does; N]) -> (String, UnboundedReceiver<Message>) {
    let (seen, requests) = unbounded_channel();
    let next = Arc::new(AtomicUsize::new(0));
    let origin = backend(move |wire| {
        let step = steps.get(next.fetch_add(1, Ordering::SeqCst)).copied();
        let seen = seen.clone();
        async move { take(step.expect("a connection more than there are steps"), wire, &seen).await }
    })
    .await;
    (origin, requests)
}

async fn take(step: Does, mut wire: Wire<TcpStream>, seen: &tokio::sync::mpsc::UnboundedSender<Message>) {
    let message = match step {
        Does::AnswersEarly(_) | Does::ClosesAfter(_) => {
            let head = wire.head().await.expect("a request");
            let body = if let Does::ClosesAfter(size) = step { wire.bytes(size).await } else { Vec::new() };
            Message { head, body, trailers: String::new(), complete: false }
        }
        _ => wire.message().await.expect("a request"),
    };
    seen.send(message).unwrap();
    if let Does::Answers(answer) | Does::AnswersEarly(answer) = step {
        wire.send(answer).await;
    }
    if let Does::AnswersEarly(_) = step {
        // A close would reset the connection, and the response might be lost.
        wire.bytes(usize::MAX).await;
    }
}

async fn mounted(origin: &str, policy: RetryPolicy) -> SocketAddr {
    front(Router::new().layer(ReverseProxyLayer::with_upstream(Retry::new(Upstream::new(origin), policy)))).await
}

fn bare(method: &str) -> String {
    format!("{method} /x?y HTTP/1.1\r\nHost: front.example\r\n\r\n")
}

fn with_body(method: &str) -> String {
    format!("{method} /x?y HTTP/1.1\r\nHost: front.example\r\nContent-Length: 5\r\n\r\nhello")
}

#[tokio::test]
async fn an_idempotent_request_is_sent_again_after_a_cut_and_a_503() {
    for first in [Does::Closes, Does::Answers(UNAVAILABLE)] {
        for request in [bare("GET"), bare("DELETE"), with_body("PUT"), with_body("GET")] {
            let (origin, mut requests) = script([first, Does::Answers(OK)]).await;
            let response = ask(mounted(&origin, RetryPolicy::idempotent()).await, &request).await;
            assert_eq!((response.status(), &*response.text()), (200, "ok"), "{request}");
            let (one, two) = (requests.recv().await.unwrap(), requests.recv().await.unwrap());
            assert_eq!((&one.head, &one.body), (&two.head, &two.body), "{request}");
            assert_eq!(two.body.is_empty(), !request.ends_with("hello"));
        }
    }
}

#[tokio::test]
async fn a_post_is_never_sent_twice() {
    for (first, status) in [(Does::Closes, 502), (Does::Answers(UNAVAILABLE), 503)] {
        for request in [bare("POST"), with_body("POST"), bare("PATCH")] {
            let (origin, mut requests) = script([first]).await;
            let response = ask(mounted(&origin, RetryPolicy::idempotent()).await, &request).await;
            assert_eq!(response.status(), status, "{request}");
            requests.recv().await.unwrap();
            assert!(requests.try_recv().is_err(), "{request}");
        }
    }
}

/// By default, nothing is sent again that may have been processed.
#[tokio::test]
async fn a_get_is_sent_once_if_only_unsent_requests_are_sent_again() {
    for policy in [RetryPolicy::unsent(), RetryPolicy::none()] {
        let (origin, _requests) = script([Does::Answers(UNAVAILABLE)]).await;
        let response = ask(mounted(&origin, policy).await, bare("GET")).await;
        assert_eq!((response.status(), &*response.text()), (503, "busy"));
    }
}

#[tokio::test]
async fn a_single_backend_that_is_down_ends_in_502() {
    let origin = refusing().await;
    for policy in [RetryPolicy::unsent(), RetryPolicy::idempotent()] {
        let addr = mounted(&origin, policy).await;
        for request in [bare("GET"), with_body("POST"), with_body("PUT")] {
            assert_eq!(ask(addr, request).await.status(), 502);
        }
    }
}

#[tokio::test]
async fn the_trailers_of_a_request_are_sent_again() {
    let upload = "PUT /x HTTP/1.1\r\nHost: front.example\r\nTransfer-Encoding: chunked\r\nTrailer: x-checksum\r\n\r\n\
                  3\r\nhel\r\n2\r\nlo\r\n0\r\nX-Checksum: 7\r\n\r\n";
    let (origin, mut requests) = script([Does::Closes, Does::Answers(UNAVAILABLE), Does::Answers(OK)]).await;
    assert_eq!(ask(mounted(&origin, RetryPolicy::idempotent()).await, upload).await.status(), 200);
    for _ in 0..3 {
        let request = requests.recv().await.unwrap();
        assert!(request.complete);
        assert_eq!((&*request.body, &*request.trailers.to_ascii_lowercase()), (&b"hello"[..], "x-checksum: 7\r\n"));
    }
}

/// The backend responds before it has the body, which the client sends later. The next attempt gets all of it.
#[tokio::test]
async fn an_upload_with_an_early_503_is_sent_again_whole() {
    let (origin, mut requests) = script([Does::AnswersEarly(UNAVAILABLE), Does::Answers(OK)]).await;
    let mut wire = client(mounted(&origin, RetryPolicy::idempotent()).await).await;
    wire.send(b"PUT /x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 10\r\n\r\nhello").await;
    within(requests.recv()).await.unwrap();
    others_run().await;
    wire.send(b"world").await;
    assert_eq!(wire.message().await.unwrap().status(), 200);
    let second = within(requests.recv()).await.unwrap();
    assert_eq!((&*second.body, second.complete), (&b"helloworld"[..], true));
}

#[tokio::test]
async fn an_upload_that_is_cut_after_half_of_20_mib_is_sent_once() {
    const HALF: usize = 10 << 20;
    for method in ["POST", "PUT"] {
        let (origin, mut requests) = script([Does::ClosesAfter(HALF)]).await;
        let mut wire = client(mounted(&origin, RetryPolicy::idempotent()).await).await;
        let head = format!("{method} /x HTTP/1.1\r\nHost: front.example\r\nContent-Length: {}\r\n\r\n", 2 * HALF);
        let upload = [head.as_bytes(), &vec![b'x'; 2 * HALF]].concat();
        // The front stops reading when the backend is gone.
        let (read, mut write) = tokio::io::split(wire.stream);
        let sending = tokio::spawn(async move {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, &upload).await;
            write
        });
        wire = Wire::new(read.unsplit(within(sending).await.unwrap()));
        assert_eq!(wire.message().await.unwrap().status(), 502, "{method}");
        assert_eq!(requests.recv().await.unwrap().body.len(), HALF);
        assert!(requests.try_recv().is_err(), "{method}");
    }
}

/// An upgrade fails over while nothing of it was sent, and never afterwards: it may have opened a tunnel.
#[tokio::test]
async fn an_upgrade_is_not_sent_again_once_it_was_sent() {
    let offer = "GET /x HTTP/1.1\r\nHost: front.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for (first, status) in [(Does::Closes, 502), (Does::Answers(UNAVAILABLE), 503)] {
        let (origin, mut requests) = script([first]).await;
        assert_eq!(ask(mounted(&origin, RetryPolicy::idempotent()).await, offer).await.status(), status);
        requests.recv().await.unwrap();
        assert!(requests.try_recv().is_err());
    }
}

/// A response that isn't complete is dropped, so that its connection is free for the next attempt.
#[tokio::test]
async fn a_retry_needs_no_second_connection() {
    let endless = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 100000\r\n\r\nbusy";
    let (origin, _requests) = script([Does::AnswersEarly(endless), Does::Answers(OK)]).await;
    let upstream = Upstream::new(tower_reverse_proxy::Client::builder(&*origin).max_connections(1));
    let retry = Retry::new(upstream, RetryPolicy::idempotent());
    let addr = front(Router::new().layer(ReverseProxyLayer::with_upstream(retry))).await;
    assert_eq!(ask(addr, bare("GET")).await.status(), 200);
}

// ---- Several backends ----

/// Two backends that refuse connections and one that doesn't.
async fn two_of_three_refusing(last: String) -> Backends {
    Backends::new([refusing().await, refusing().await, last])
}

async fn balanced(backends: &Backends, policy: RetryPolicy) -> SocketAddr {
    front(Router::new().layer(ReverseProxyLayer::balanced(backends).retry(policy))).await
}

fn requests(backends: &Backends) -> Vec<u64> {
    backends.status().iter().map(MemberStatus::requests).collect()
}

#[tokio::test]
async fn requests_fail_over_to_the_backend_that_can_be_reached() {
    let chunked = "POST /x?y HTTP/1.1\r\nHost: front.example\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
    for request in [bare("GET"), with_body("POST"), with_body("PUT"), chunked.to_owned()] {
        // A new set each time, because one learns which backends are down.
        for _ in 0..3 {
            let backends = two_of_three_refusing(mirror().await).await;
            let addr =
                front(Router::new().layer(
                    ReverseProxyLayer::balanced(&backends).upstream_layer(BasicAuthLayer::new("front", "s3cret")),
                ))
                .await;
            let mirrored = ask(addr, &request).await.mirrored();
            assert_eq!(mirrored.start_line().split(' ').nth(1), Some("/x?y"));
            assert_eq!(
                mirrored.text(),
                if request.ends_with("\r\n\r\n") && !request.contains("hel") { "" } else { "hello" }
            );
            // The layer has seen up to three attempts.
            assert_eq!(mirrored.all("authorization").len(), 1);
            assert_eq!(mirrored.field("host"), Some("front.example"));
        }
    }
}

#[tokio::test]
async fn an_upgrade_fails_over_while_nothing_of_it_was_sent() {
    let accept = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let echo = backend(move |mut wire| async move {
        wire.head().await.unwrap();
        wire.send(accept).await;
        let bytes = wire.bytes(5).await;
        wire.send(&bytes).await;
    })
    .await;
    let addr = balanced(&two_of_three_refusing(echo).await, RetryPolicy::default()).await;
    let mut wire = client(addr).await;
    wire.send(
        b"GET /x HTTP/1.1\r\nHost: front.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101 "));
    wire.send(b"hello").await;
    assert_eq!(wire.bytes(5).await, b"hello");
}

#[tokio::test]
async fn a_request_is_sent_once_to_each_backend_at_most() {
    for policy in [RetryPolicy::unsent().attempts(9), RetryPolicy::idempotent().attempts(9)] {
        for request in [bare("GET"), with_body("POST"), with_body("PUT")] {
            let backends = Backends::new([refusing().await, refusing().await, refusing().await]);
            assert_eq!(ask(balanced(&backends, policy.clone()).await, request).await.status(), 502);
            assert_eq!(requests(&backends), [1, 1, 1]);
        }
    }
    let busy = || answering(UNAVAILABLE);
    let backends = Backends::new([busy().await, busy().await, busy().await]);
    let response = ask(balanced(&backends, RetryPolicy::idempotent().attempts(9)).await, with_body("PUT")).await;
    assert_eq!((response.status(), &*response.text()), (503, "busy"));
    assert_eq!(requests(&backends), [1, 1, 1]);
    // Without retries, one backend gets it.
    let backends = Backends::new([busy().await, refusing().await]);
    let addr = balanced(&backends, RetryPolicy::none()).await;
    assert!([502, 503].contains(&ask(addr, bare("GET")).await.status()));
    assert_eq!(requests(&backends).iter().sum::<u64>(), 1);
}

#[tokio::test]
async fn the_only_backend_of_a_set_is_tried_again() {
    let (origin, _requests) = script([Does::Closes, Does::Answers(UNAVAILABLE), Does::Answers(OK)]).await;
    let backends = Backends::new([origin]);
    assert_eq!(ask(balanced(&backends, RetryPolicy::idempotent()).await, bare("GET")).await.status(), 200);
    assert_eq!(requests(&backends), [3]);
}

/// A hung backend fails no request, and is let go.
#[tokio::test]
async fn a_request_is_hedged_at_another_backend() {
    let backends = Backends::builder([silent().await, answering(OK).await]).seed(1).build().unwrap();
    let policy = RetryPolicy::idempotent().hedge(Hedge::after(Duration::from_millis(20)));
    let addr = balanced(&backends, policy).await;
    for _ in 0..10 {
        assert_eq!(ask(addr, bare("GET")).await.status(), 200);
    }
    let [hung, other] = requests(&backends)[..] else { panic!("two backends") };
    assert!(hung > 0 && other == 10, "{hung} {other}");
    let let_go = async {
        while backends.status()[0].in_flight() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    within(let_go).await;
}

/// A backend that can be killed: its connections close, and no new ones are accepted. It counts what it has got.
async fn mortal(seen: Arc<Mutex<HashMap<String, usize>>>) -> (String, AbortHandle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            connections.spawn(async move {
                let mut wire = Wire::new(stream);
                while let Some(request) = wire.message().await {
                    *seen.lock().unwrap().entry(request.start_line().to_owned()).or_default() += 1;
                    sleep(Duration::from_millis(2)).await;
                    wire.send(OK).await;
                }
            });
        }
    });
    (origin, task.abort_handle())
}

#[tokio::test]
async fn no_get_fails_and_no_post_is_sent_twice_when_a_backend_is_killed() {
    const CLIENTS: usize = 6;
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let (mut origins, mut kill) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (origin, handle) = mortal(seen.clone()).await;
        origins.push(origin);
        kill.push(handle);
    }
    let addr = balanced(&Backends::new(origins), RetryPolicy::idempotent()).await;
    let done = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for at in 0..2 * CLIENTS {
        let done = done.clone();
        clients.spawn(async move {
            let is_get = at < CLIENTS;
            let mut failed = 0;
            let mut wire = client(addr).await;
            for request in 0..60 {
                let target = format!("/{at}/{request} HTTP/1.1\r\nHost: front.example\r\n");
                let message = match is_get {
                    true => format!("GET {target}\r\n"),
                    false => format!("POST {target}Content-Length: 5\r\n\r\nhello"),
                };
                wire.send(message.as_bytes()).await;
                let status = wire.message().await.expect("a response").status();
                failed += usize::from(status != 200);
                done.fetch_add(1, Ordering::Relaxed);
            }
            (is_get, failed)
        });
    }
    while done.load(Ordering::Relaxed) < 200 {
        sleep(Duration::from_millis(1)).await;
    }
    kill[1].abort();
    let (mut gets, mut posts) = (0, 0);
    while let Some(client) = within(clients.join_next()).await {
        let (is_get, failed) = client.unwrap();
        *(if is_get { &mut gets } else { &mut posts }) += failed;
    }
    assert_eq!(gets, 0, "GETs failed");
    // Each client had one under way.
    assert!(posts <= CLIENTS, "{posts} POSTs failed");
    let seen = seen.lock().unwrap();
    let twice: Vec<_> = seen.iter().filter(|(line, count)| line.starts_with("POST") && **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert!(seen.len() >= 2 * CLIENTS * 60 - posts, "requests were lost");
}

/// A client that leaves during an attempt, or between two of them, ends the request.
#[tokio::test]
async fn no_further_attempt_is_made_for_a_client_that_has_left() {
    let (seen, mut heads) = unbounded_channel();
    let origin = backend(move |mut wire| {
        let seen = seen.clone();
        async move {
            let head = wire.head().await.unwrap();
            let _ = seen.send(head);
            // The client leaves first.
            wire.closed().await;
        }
    })
    .await;
    let addr = mounted(&origin, RetryPolicy::idempotent()).await;
    let mut wire = client(addr).await;
    wire.send(bare("GET").as_bytes()).await;
    within(heads.recv()).await.unwrap();
    drop(wire);
    sleep(Duration::from_millis(300)).await;
    assert!(heads.try_recv().is_err());
}

#[cfg(feature = "http2")]
#[tokio::test]
async fn a_body_over_http2_is_sent_again() {
    use axum::{body::Body, http::Response};
    use http_body_util::BodyExt;
    use tower_reverse_proxy::Client;

    use crate::support::http2_backends::Http2;

    let seen = Arc::new(Mutex::new(Vec::new()));
    let bodies = seen.clone();
    let (origin, ..) = Http2::serve(10, move |request| {
        let bodies = bodies.clone();
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let count = {
                let mut bodies = bodies.lock().unwrap();
                bodies.push(body);
                bodies.len()
            };
            Response::builder().status(if count < 3 { 503 } else { 200 }).body(Body::from("answer")).unwrap()
        }
    })
    .await;
    let retry = Retry::new(Upstream::new(Client::builder(&*origin).http2(true)), RetryPolicy::idempotent());
    let addr = front(Router::new().layer(ReverseProxyLayer::with_upstream(retry))).await;
    assert_eq!(ask(addr, with_body("PUT")).await.status(), 200);
    assert_eq!(*seen.lock().unwrap(), ["hello"; 3]);
}
