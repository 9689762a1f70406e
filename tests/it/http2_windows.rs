//! Isolation of the exchanges on one HTTP/2 connection to the backend: small frames, and clients that don't read.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::Request,
    response::Response,
};
use http_body_util::{BodyExt, Channel};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, unbounded_channel},
    },
    task::JoinSet,
    time::timeout,
};
use tower_reverse_proxy::{Client, ReverseProxy, ReverseProxyLayer};

use crate::support::{
    PATIENCE, Progress, client,
    frames::{DATA, HEADERS, STATUS_200, frame},
    front, get,
    http2_backends::{Http2, all_at_once, framing, together},
    settled, within,
};

#[tokio::test]
async fn small_frames_are_delivered_complete() {
    const EVENTS: usize = 4000;
    let url = framing(|_, stream| {
        let event = frame(DATA, 0, stream, b"data: an event\n\n");
        [frame(HEADERS, 4, stream, STATUS_200), event.repeat(EVENTS), frame(DATA, 1, stream, b"")].concat()
    })
    .await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(Client::builder(url).http2(true)))).await;
    for attempt in 0..20 {
        let answer = get(addr, "/x", "").await;
        assert!(answer.complete, "{attempt}: {} bytes", answer.body.len());
        assert_eq!(answer.body.len(), EVENTS * 16, "{attempt}");
    }
}

/// A backend with an endless download, and one of 1 MiB. It counts the bytes of the endless ones.
async fn downloads() -> (String, Arc<AtomicUsize>, Http2) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let (url, backend, _ended) = Http2::serve(200, move |request: hyper::Request<Incoming>| {
        let sent = counted.clone();
        async move {
            if request.uri().path() == "/whole" {
                return Response::new(Body::from(vec![b'w'; 1 << 20]));
            }
            let (mut sender, body) = Channel::<Bytes>::new(1);
            tokio::spawn(async move {
                while sender.send_data(vec![b'e'; 0x4000].into()).await.is_ok() {
                    sent.fetch_add(0x4000, Ordering::SeqCst);
                }
            });
            Response::new(Body::new(body))
        }
    })
    .await;
    (url, sent, backend)
}

#[tokio::test]
async fn a_client_that_does_not_read_blocks_no_other_stream() {
    let (url, sent, backend) = downloads().await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(Client::builder(url).http2(true)))).await;
    // Two clients over HTTP/1.1, and two over HTTP/2 with windows of 0.
    let mut wires = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut wire = client(addr).await;
        wire.send(b"GET /endless HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
        wires.push(wire);
        streams.push(begin(&mut narrow(addr, 0).await, "/endless").await);
    }
    settled(&sent).await;
    let mut victims = JoinSet::new();
    for _ in 0..5 {
        victims.spawn(async move { get(addr, "/whole", "").await });
    }
    while let Some(answer) = victims.join_next().await {
        let answer = answer.unwrap();
        assert!(answer.complete && answer.body.len() == 1 << 20, "{} bytes", answer.body.len());
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_connection_window_limits_the_number_of_streams() {
    const REQUESTS: usize = 6;
    let (url, backend) = together(REQUESTS, 100).await;
    let client = Client::builder(url).http2(true).http2_connection_window(1 << 20).http2_stream_window(512 << 10);
    let proxy = ReverseProxy::new(client);
    for _ in 0..3 {
        all_at_once(&proxy, REQUESTS).await;
        assert_eq!(backend.connections.load(Ordering::SeqCst), REQUESTS / 2);
    }
}

/// An HTTP/2 client with a window of so many bytes per response.
async fn narrow(addr: SocketAddr, window: u32) -> SendRequest<Body> {
    let stream = TokioIo::new(TcpStream::connect(addr).await.unwrap());
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.initial_stream_window_size(window).handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn begin(sender: &mut SendRequest<Body>, path: &str) -> Response<Incoming> {
    let request = Request::get(format!("http://front.example{path}")).body(Body::empty()).unwrap();
    within(sender.send_request(request)).await.unwrap()
}

/// A backend that responds by path. `/bytes` sends frames of one byte, without end or as many as the query has;
/// `/large` sends large frames; `/snapshot` sends five large frames and then single bytes; `/slow` sends two halves,
/// the second when notified. It reports when `/bytes` or `/snapshot` is reset.
async fn frames_of(second: Arc<Notify>) -> (String, Arc<AtomicUsize>, Http2, UnboundedReceiver<()>) {
    let (reset, resets) = unbounded_channel();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let (url, backend, _ended) = Http2::serve(200, move |request: hyper::Request<Incoming>| {
        let (sent, second, reset) = (counted.clone(), second.clone(), reset.clone());
        async move {
            let (mut sender, body) = Channel::<Bytes>::new(1);
            tokio::spawn(async move {
                match request.uri().path() {
                    "/bytes" => {
                        let most = request.uri().query().map_or(usize::MAX, |most| most.parse().unwrap());
                        for _ in 0..most {
                            if sender.send_data("b".into()).await.is_err() {
                                let _ = reset.send(());
                                return;
                            }
                        }
                    }
                    // Two frames that the front buffers, two that are read ahead, and half a window. Small frames fill
                    // the rest of it.
                    "/snapshot" => {
                        for length in [0x4000, 0x4000, 0x4000, 0x4000, 0x2000] {
                            let _ = sender.send_data(vec![b's'; length].into()).await;
                        }
                        while sender.send_data("b".into()).await.is_ok() {}
                        let _ = reset.send(());
                    }
                    "/large" => {
                        for _ in 0..8 << 6 {
                            if sender.send_data(vec![b'l'; 0x4000].into()).await.is_err() {
                                return;
                            }
                            sent.fetch_add(0x4000, Ordering::SeqCst);
                        }
                    }
                    _ => {
                        let _ = sender.send_data("first".into()).await;
                        second.notified().await;
                        let _ = sender.send_data(" second".into()).await;
                    }
                }
            });
            Response::new(Body::new(body))
        }
    })
    .await;
    (url, sent, backend, resets)
}

/// Small windows, with which h2's budget for small frames is soon used up.
fn small(url: &str) -> Router {
    let client = Client::builder(url).http2(true).http2_connection_window(2 << 20).http2_stream_window(16 << 10);
    Router::new().layer(ReverseProxyLayer::new(client))
}

#[tokio::test]
async fn unread_small_frames_end_only_their_own_response() {
    let second = Arc::new(Notify::new());
    let (url, _sent, backend, mut resets) = frames_of(second.clone()).await;
    let addr = front(small(&url)).await;
    let mut victim = narrow(addr, 65_535).await;
    let mut slow = begin(&mut victim, "/slow").await.into_body();
    assert_eq!(within(slow.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
    for _ in 0..2 {
        let stalled = begin(&mut narrow(addr, 10).await, "/bytes").await.into_body();
        timeout(PATIENCE, resets.recv()).await.expect("the stream is reset").unwrap();
        // A client that reads gets all of them.
        let answer = get(addr, "/bytes?8000", "").await;
        assert!(answer.complete && answer.body.len() == 8000, "{}", answer.body.len());
        // The stalled client sees a truncated response.
        assert!(within(stalled.collect()).await.is_err());
    }
    second.notify_one();
    assert_eq!(within(slow.collect()).await.unwrap().to_bytes(), " second");
    // A connection gets no more requests when too many small frames have arrived after a reset.
    assert!(backend.connections.load(Ordering::SeqCst) <= 3);
}

#[tokio::test]
async fn unread_small_frames_behind_large_frames_end_only_their_own_response() {
    let second = Arc::new(Notify::new());
    let (url, _sent, _backend, mut resets) = frames_of(second.clone()).await;
    let addr = front(small(&url)).await;
    let mut slow = begin(&mut narrow(addr, 65_535).await, "/slow").await.into_body();
    assert_eq!(within(slow.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
    let stalled = begin(&mut narrow(addr, 10).await, "/snapshot").await.into_body();
    let ended = async {
        // The small frames of others make the connection read ahead.
        while resets.try_recv().is_err() {
            let answer = get(addr, "/bytes?2000", "").await;
            assert!(answer.complete && answer.body.len() == 2000, "{}", answer.body.len());
        }
    };
    timeout(PATIENCE, ended).await.expect("the stream is reset");
    assert!(within(stalled.collect()).await.is_err());
    second.notify_one();
    assert_eq!(within(slow.collect()).await.unwrap().to_bytes(), " second");
}

#[tokio::test]
async fn a_slowly_read_download_completes_beside_small_frames() {
    let (url, sent, backend, _resets) = frames_of(Arc::default()).await;
    let addr = front(small(&url)).await;
    let mut sender = narrow(addr, 65_535).await;
    let slow = begin(&mut sender, "/large").await.into_body();
    for _ in 0..2 {
        let answer = get(addr, "/bytes?8000", "").await;
        assert!(answer.complete && answer.body.len() == 8000, "{}", answer.body.len());
    }
    let stopped = settled(&sent).await;
    assert!(stopped < 4 << 20, "the backend has stopped: {stopped}");
    assert_eq!(within(slow.collect()).await.unwrap().to_bytes().len(), 8 << 20);
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn many_clients_that_do_not_read_block_no_other_exchange() {
    const STALLED: usize = 12;
    let (url, sent, backend, mut resets) = frames_of(Arc::default()).await;
    let addr = front(small(&url)).await;
    // Half of them have large frames to read, and half have small ones without end.
    let (mut large, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..STALLED / 2 {
        large.push(begin(&mut narrow(addr, 65_535).await, "/large").await.into_body());
        bytes.push(begin(&mut narrow(addr, 10).await, "/bytes").await.into_body());
    }
    let ended = async {
        for _ in 0..STALLED / 2 {
            resets.recv().await.unwrap();
            // Clients that read get all of it.
            let answer = get(addr, "/bytes?500", "").await;
            assert!(answer.complete && answer.body.len() == 500, "{}", answer.body.len());
        }
    };
    Progress::default().of(ended).await;
    for stalled in bytes {
        assert!(within(stalled.collect()).await.is_err());
    }
    // The backend has sent each large response up to the window, and what the front holds of it.
    let stopped = settled(&sent).await;
    assert!(stopped < STALLED / 2 * (256 << 10), "the backend has stopped: {stopped}");
    let slow = large.pop().unwrap();
    assert_eq!(within(slow.collect()).await.unwrap().to_bytes().len(), 8 << 20);
    let connections = backend.connections.load(Ordering::SeqCst);
    assert!(connections < STALLED, "{connections}");
}

#[tokio::test]
async fn small_frames_that_are_read_late_are_delivered_complete() {
    const EVENTS: usize = 12_000;
    let url = framing(|_, stream| {
        let event = frame(DATA, 0, stream, b"data: an event\n\n");
        [frame(HEADERS, 4, stream, STATUS_200), event.repeat(EVENTS), frame(DATA, 1, stream, b"")].concat()
    })
    .await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(Client::builder(url).http2(true)))).await;
    let mut late = Vec::new();
    for _ in 0..4 {
        late.push(begin(&mut narrow(addr, 1000).await, "/x").await);
    }
    assert_eq!(get(addr, "/x", "").await.body.len(), EVENTS * 16);
    for response in late {
        let body = within(response.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes().len(), EVENTS * 16);
    }
}

#[test]
fn invalid_window_sizes_are_refused() {
    let client = || Client::builder("http://127.0.0.1:8000").http2(true);
    for wrong in [
        client().http2_connection_window(65_534),
        client().http2_connection_window(1 << 31),
        client().http2_stream_window(0),
        client().http2_stream_window(u32::MAX),
    ] {
        let message = wrong.build().unwrap_err().to_string();
        assert!(message.starts_with("invalid HTTP/2") && message.contains("2,147,483,647"), "{message}");
    }
    assert!(client().http2_connection_window(65_535).http2_stream_window(1).build().is_ok());
    for wrong in [client().http2_keep_alive(std::time::Duration::ZERO), client().http2_max_request_head(0)] {
        let message = wrong.build().unwrap_err().to_string();
        assert!(message.starts_with("invalid") && message.contains("write `None`"), "{message}");
    }
}

/// A request head with `Expect: 100-continue`.
const EXPECTING: &[u8] =
    b"POST /x HTTP/1.1\r\nHost: front.example\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";

#[tokio::test]
async fn expect_100_continue_over_http2_waits_for_no_timeout() {
    let (url, _backend, _ended) = Http2::serve(100, async |request: hyper::Request<Incoming>| {
        let expect = format!("{:?} ", request.headers().get("expect"));
        let body = within(request.into_body().collect()).await.unwrap().to_bytes();
        Response::new(Body::from([expect.as_bytes(), &body].concat()))
    })
    .await;
    // And a backend that sends an interim 100 before its response.
    let sends_100 = framing(|_, stream| {
        let interim = frame(HEADERS, 4, stream, b"\x08\x03100");
        [interim, frame(HEADERS, 4, stream, STATUS_200), frame(DATA, 1, stream, b"after 100")].concat()
    })
    .await;
    for (url, expected) in [(url, "Some(\"100-continue\") body"), (sends_100, "after 100")] {
        let layer = ReverseProxyLayer::new(Client::builder(url).http2(true)).continue_timeout(PATIENCE * 100);
        let mut wire = client(front(Router::new().layer(layer)).await).await;
        for _ in 0..2 {
            wire.send(EXPECTING).await;
            assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 100 "));
            wire.send(b"body").await;
            assert_eq!(wire.message().await.unwrap().text(), expected);
        }
    }
}

#[tokio::test]
async fn a_refused_expectation_over_http2_reaches_the_client() {
    let (url, _backend, _ended) = Http2::serve(100, async |_: hyper::Request<Incoming>| {
        let mut response = Response::new(Body::from("no"));
        *response.status_mut() = axum::http::StatusCode::EXPECTATION_FAILED;
        response
    })
    .await;
    let layer = ReverseProxyLayer::new(Client::builder(url).http2(true)).continue_timeout(PATIENCE * 100);
    let mut wire = client(front(Router::new().layer(layer)).await).await;
    wire.send(EXPECTING).await;
    // With or without an interim response, the final one is the refusal.
    let answer = wire.message().await.unwrap();
    assert_eq!((answer.status(), &*answer.text()), (417, "no"));
}
