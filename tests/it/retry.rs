//! Retries over the wire: what reaches the backends, and what the client gets.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::Router;
use tokio::{
    net::TcpStream,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};
use tower_reverse_proxy::{Retry, RetryPolicy, ReverseProxyLayer, Upstream};

use crate::support::{Message, Wire, ask, backend, client, front, others_run, refusing, within};

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

/// A backend that does one thing after the other, each on a connection of its own. It reports the requests, and how much
/// of an incomplete one it has read.
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

#[cfg(feature = "http2")]
#[tokio::test]
async fn a_body_over_http2_is_sent_again() {
    use std::sync::Mutex;

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
