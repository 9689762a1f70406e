//! Cancellation: a disconnecting client ends its request to the backend; an early response reaches a client that stays.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::{Router, body::Body, extract::Request, routing::get};
use bytes::Bytes;
use http_body::Frame;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, ReverseProxy, ReverseProxyLayer};

use crate::support::{PATIENCE, Pipe, Wire, backend, client, front, get as ask_get, within};

const GET: &[u8] = b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n";
const UPLOAD: &[u8] = b"POST /x HTTP/1.1\r\nHost: front.example\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n";
const DOWNLOAD: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";

/// What the backend reports: the head of a request has arrived, or its connection has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    Head,
    End,
}

/// A backend that responds to each head with these bytes and then reads until the connection ends.
async fn watched(answer: &'static [u8]) -> (String, mpsc::UnboundedReceiver<Event>) {
    let (report, events) = mpsc::unbounded_channel();
    let url = backend(move |mut wire| {
        let report = report.clone();
        async move {
            wire.head().await.unwrap();
            wire.send(answer).await;
            report.send(Event::Head).unwrap();
            wire.bytes(usize::MAX).await;
            report.send(Event::End).unwrap();
        }
    })
    .await;
    (url, events)
}

#[tokio::test]
async fn a_disconnecting_client_closes_the_backend_connection() {
    for (request, answer) in [
        (GET, &b""[..]),
        (GET, b"HTTP/1.1 100 Continue\r\n\r\n"),
        (GET, b"HTTP/1.1 200 OK\r\nContent-"),
        (GET, DOWNLOAD),
        (GET, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
        (UPLOAD, b""),
        (UPLOAD, DOWNLOAD),
    ] {
        let (url, mut events) = watched(answer).await;
        let addr = front(Router::new().layer(ReverseProxyLayer::new(url))).await;
        let mut wire = client(addr).await;
        wire.send(request).await;
        assert_eq!(within(events.recv()).await, Some(Event::Head));
        if answer.ends_with(b"abc\r\n") {
            // The response has begun.
            assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
        }
        drop(wire);
        let end = timeout(PATIENCE, events.recv()).await;
        assert_eq!(end, Ok(Some(Event::End)), "{} {}", request.escape_ascii(), answer.escape_ascii());
    }
}

#[tokio::test]
async fn dropping_the_future_or_the_body_closes_the_backend_connection() {
    let request = || Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
    let (url, mut events) = watched(b"").await;
    let call = tokio::spawn(ReverseProxy::new(url).oneshot(request()));
    assert_eq!(within(events.recv()).await, Some(Event::Head));
    call.abort();
    assert_eq!(timeout(PATIENCE, events.recv()).await, Ok(Some(Event::End)));

    let (url, mut events) = watched(DOWNLOAD).await;
    let Ok(response) = ReverseProxy::new(url).oneshot(request()).await;
    assert_eq!(within(events.recv()).await, Some(Event::Head));
    drop(response);
    assert_eq!(timeout(PATIENCE, events.recv()).await, Ok(Some(Event::End)));
}

#[tokio::test]
async fn aborted_exchanges_leave_no_connections_open() {
    const EXCHANGES: usize = 60;
    const MAX_IDLE: usize = 2;
    let open = Arc::new(AtomicUsize::new(0));
    let (report, mut ended) = mpsc::unbounded_channel();
    let counted = open.clone();
    let url = backend(move |mut wire| {
        let (open, report) = (counted.clone(), report.clone());
        async move {
            open.fetch_add(1, Ordering::SeqCst);
            while let Some(head) = wire.head().await {
                if head.starts_with("GET /whole") {
                    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole").await;
                } else {
                    wire.send(DOWNLOAD).await;
                    wire.bytes(usize::MAX).await;
                    break;
                }
            }
            open.fetch_sub(1, Ordering::SeqCst);
            report.send(()).unwrap();
        }
    })
    .await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(Client::builder(url).pool_max_idle(MAX_IDLE)))).await;
    let mut clients = Vec::new();
    for index in 0..EXCHANGES {
        let mut wire = client(addr).await;
        wire.send(if index % 2 == 0 { GET } else { UPLOAD }).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
        clients.push(wire);
    }
    assert_eq!(ask_get(addr, "/whole", "").await.text(), "whole");
    drop(clients);
    for _ in 0..EXCHANGES {
        within(ended.recv()).await.unwrap();
    }
    assert!(open.load(Ordering::SeqCst) <= MAX_IDLE, "{open:?} connections are open");
    assert_eq!(ask_get(addr, "/whole", "").await.text(), "whole");
}

#[tokio::test]
async fn an_early_response_reaches_the_client() {
    for close in ["Connection: close\r\n", ""] {
        let url = backend(move |mut wire| async move {
            wire.head().await;
            let head = format!("HTTP/1.1 413 Too Large\r\n{close}Content-Length: 3\r\n\r\n");
            wire.send(format!("{head}too").as_bytes()).await;
            // Without `close`, the backend keeps reading.
            if close.is_empty() {
                wire.bytes(usize::MAX).await;
            }
        })
        .await;
        let app = Router::new().route("/", get(async || "home")).layer(ReverseProxyLayer::new(url).prefix("/x"));
        let addr = front(app).await;
        // The client waits for the response before it sends more.
        let mut waiting = client(addr).await;
        waiting.send(UPLOAD).await;
        let answer = waiting.message().await.unwrap();
        assert_eq!((answer.status(), &*answer.text()), (413, "too"), "{close:?}");
        assert!(answer.start_line().ends_with("Too Large"));
        drop(waiting);

        // The client keeps sending, and reads at the same time.
        let (reading, mut writing) = tokio::io::split(client(addr).await.stream);
        let upload = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            let _ = writing.write_all(UPLOAD).await;
            while writing.write_all(b"4\r\nabcd\r\n").await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
        let answer = Wire::new(tokio::io::join(reading, tokio::io::sink())).message().await.unwrap();
        assert_eq!(answer.status(), 413, "{close:?}");
        upload.abort();
        assert_eq!(ask_get(addr, "/", "").await.text(), "home");
    }
}

/// A body without end that reports when it's dropped.
struct Endless(Option<oneshot::Sender<()>>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 64 * 1024])))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.0.take().unwrap().send(());
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_stalled_by_the_backend_can_be_cancelled() {
    let (report, mut stalls) = mpsc::unbounded_channel();
    let connector = service_fn(move |_| {
        let (ours, theirs) = Pipe::pair();
        let report = report.clone();
        tokio::spawn(async move {
            let mut wire = Wire::new(theirs);
            wire.head().await;
            report.send(()).unwrap();
            std::future::pending::<()>().await;
        });
        async { Ok::<_, std::io::Error>(ours) }
    });
    let (dropped, mut is_dropped) = oneshot::channel();
    let body = Body::new(Endless(Some(dropped)));
    let request = Request::post("/x").header("host", "front.example").body(body).unwrap();
    let proxy = ReverseProxy::new(Client::builder("http://backend.example").connector(connector));
    let call = tokio::spawn(proxy.oneshot(request));
    within(stalls.recv()).await.unwrap();
    // The upload stalls when the pipe is full.
    assert!(timeout(PATIENCE, &mut is_dropped).await.is_err());
    call.abort();
    within(is_dropped).await.unwrap();
}
