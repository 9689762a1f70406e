//! Wake-ups under stress: many concurrent exchanges, in tiny pieces, at odd moments. After a lost wake-up, an exchange
//! hangs.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request};
use bytes::Bytes;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Channel};
use hyper::client::conn::http2::SendRequest;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::ServiceExt;
use tower_reverse_proxy::{ReverseProxy, ReverseProxyLayer};

use crate::support::{Dice, PATIENCE, Progress, Wire, backend, client, front, http2};

/// The bytes of an exchange from an offset on. They differ between exchanges.
fn pattern(seed: u64, from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| u8::try_from((at * 7 + (at >> 8) + seed as usize * 31) % 251).unwrap()).collect()
}

/// The direction and the pace of an exchange's bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Each piece is echoed before the next one is sent, so no later piece makes up for a lost wake-up.
    PingPong,
    /// Both directions at once, each at its own pace.
    Duplex,
    Upload,
    Download,
    /// With a Content-Length.
    SizedUpload,
    SizedDownload,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::PingPong, Self::Duplex, Self::Upload, Self::Download, Self::SizedUpload, Self::SizedDownload];

    fn pieces(self) -> usize {
        if self == Self::PingPong { 12 } else { 60 }
    }
}

/// Sends the pattern in pieces.
async fn send_pieces(to: &mut (impl AsyncWrite + Unpin), kind: Kind, seed: u64, length: usize, dice: &mut Dice) {
    let sized = matches!(kind, Kind::SizedUpload | Kind::SizedDownload);
    let mut sent = 0;
    while sent < length {
        let piece = pattern(seed, sent, (1 + dice.roll(200)).min(length - sent));
        sent += piece.len();
        let piece = if sized { piece } else { chunk(&piece) };
        // A chunk may be split into two writes.
        let (one, other) = piece.split_at(dice.roll(piece.len()));
        to.write_all(one).await.unwrap();
        dice.pause().await;
        to.write_all(other).await.unwrap();
        dice.pause().await;
    }
    if !sized {
        to.write_all(b"0\r\n\r\n").await.unwrap();
    }
}

/// Reads the pattern to its end, with pauses.
async fn expect_pieces<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    kind: Kind,
    seed: u64,
    length: usize,
    dice: &mut Dice,
) {
    let mut seen = 0;
    if matches!(kind, Kind::SizedUpload | Kind::SizedDownload) {
        while seen < length {
            let piece = wire.bytes((1 + dice.roll(100)).min(length - seen)).await;
            assert_eq!(piece, pattern(seed, seen, piece.len()), "{kind:?} {seed} at {seen}");
            assert!(!piece.is_empty(), "{kind:?} {seed} broke off at {seen} of {length}");
            seen += piece.len();
            dice.pause().await;
        }
        return;
    }
    loop {
        let piece = wire.chunk().await.unwrap_or_else(|| panic!("{kind:?} {seed} broke off at {seen} of {length}"));
        assert_eq!(piece, pattern(seed, seen, piece.len()), "{kind:?} {seed} at {seen}");
        seen += piece.len();
        if piece.is_empty() {
            return assert_eq!(seen, length, "{kind:?} {seed}");
        }
        dice.pause().await;
    }
}

fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

/// A backend for all kinds. The target has the kind, the seed and the length.
async fn talk(mut wire: Wire<TcpStream>) {
    while let Some(head) = wire.head().await {
        let parts: Vec<&str> = head.split(' ').nth(1).unwrap().split('/').skip(1).collect();
        let kind = Kind::ALL[parts[0].parse::<usize>().unwrap()];
        let (seed, length): (u64, usize) = (parts[1].parse().unwrap(), parts[2].parse().unwrap());
        let mut dice = Dice::new(seed ^ 0xbac);
        match kind {
            Kind::PingPong | Kind::Duplex => {
                wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                let mut seen = 0;
                loop {
                    let Some(piece) = wire.chunk().await else { return };
                    assert_eq!(piece, pattern(seed, seen, piece.len()), "{kind:?} {seed} at {seen}, upstream");
                    seen += piece.len();
                    dice.pause().await;
                    wire.send(&chunk(&piece)).await;
                    if piece.is_empty() {
                        break;
                    }
                }
                assert_eq!(seen, length, "{kind:?} {seed}, upstream");
            }
            Kind::Upload | Kind::SizedUpload => {
                expect_pieces(&mut wire, kind, seed, length, &mut dice).await;
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
            Kind::Download => {
                wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                send_pieces(&mut wire.stream, kind, seed, length, &mut dice).await;
            }
            Kind::SizedDownload => {
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await;
                send_pieces(&mut wire.stream, kind, seed, length, &mut dice).await;
            }
        }
    }
}

/// Sequential exchanges on one connection.
async fn exchanges(addr: SocketAddr, seeds: impl Iterator<Item = u64>, progress: Progress) {
    let (reading, mut writing) = tokio::io::split(client(addr).await.stream);
    let mut wire = Wire::new(tokio::io::join(reading, tokio::io::sink()));
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let of = dice.roll(Kind::ALL.len());
        let kind = Kind::ALL[of];
        let length = dice.roll(100 * kind.pieces());
        let (method, framing) = match kind {
            Kind::Download | Kind::SizedDownload => ("GET", String::new()),
            Kind::SizedUpload => ("POST", format!("Content-Length: {length}\r\n")),
            _ => ("POST", "Transfer-Encoding: chunked\r\n".into()),
        };
        let head = format!("{method} /{of}/{seed}/{length} HTTP/1.1\r\nHost: front.example\r\n{framing}\r\n");
        writing.write_all(head.as_bytes()).await.unwrap();
        match kind {
            Kind::PingPong => {
                assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"), "{kind:?} {seed}");
                let mut sent = 0;
                while sent < length {
                    let piece = pattern(seed, sent, (1 + dice.roll(200)).min(length - sent));
                    writing.write_all(&chunk(&piece)).await.unwrap();
                    let mut echo = Vec::new();
                    while echo.len() < piece.len() {
                        echo.extend(wire.chunk().await.unwrap());
                    }
                    assert_eq!(echo, piece, "{kind:?} {seed} at {sent}");
                    sent += piece.len();
                    dice.pause().await;
                }
                writing.write_all(b"0\r\n\r\n").await.unwrap();
                assert_eq!(wire.chunk().await.unwrap(), b"", "{kind:?} {seed}");
            }
            Kind::Duplex => {
                let mut own = Dice::new(seed ^ 0xd1ce);
                let receive = async {
                    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"), "{kind:?} {seed}");
                    expect_pieces(&mut wire, kind, seed, length, &mut own).await;
                };
                tokio::join!(send_pieces(&mut writing, kind, seed, length, &mut dice), receive);
            }
            Kind::Upload | Kind::SizedUpload => {
                send_pieces(&mut writing, kind, seed, length, &mut dice).await;
                let answer = wire.message().await.unwrap();
                assert_eq!((answer.status(), &*answer.text()), (200, "ok"), "{kind:?} {seed}");
            }
            Kind::Download | Kind::SizedDownload => {
                assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"), "{kind:?} {seed}");
                expect_pieces(&mut wire, kind, seed, length, &mut dice).await;
            }
        }
        progress.step();
    }
}

/// Ping-pong over HTTP/2, where the front has separate tasks for upload and download.
async fn exchanges_http2(mut sender: SendRequest<Body>, seeds: impl Iterator<Item = u64>, progress: Progress) {
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let length = 1 + dice.roll(1000);
        let (mut upload, body) = Channel::<Bytes>::new(1);
        let request = Request::post(format!("http://front.example/0/{seed}/{length}")).body(Body::new(body)).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let (mut body, mut sent) = (response.into_body(), 0);
        while sent < length {
            let piece = pattern(seed, sent, (1 + dice.roll(200)).min(length - sent));
            sent += piece.len();
            upload.send_data(piece.clone().into()).await.unwrap();
            let mut echo = Vec::new();
            while echo.len() < piece.len() {
                echo.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
            }
            assert_eq!(echo, piece, "{seed} at {sent}");
            dice.pause().await;
        }
        drop(upload);
        while let Some(frame) = body.frame().await {
            assert!(frame.unwrap().into_data().unwrap().is_empty());
        }
        progress.step();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_over_http1() {
    const CLIENTS: u64 = 40;
    const EXCHANGES: u64 = 24;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(backend(talk).await))).await;
    let (mut clients, progress) = (JoinSet::new(), Progress::default());
    for client in 0..CLIENTS {
        clients.spawn(exchanges(addr, client * EXCHANGES..(client + 1) * EXCHANGES, progress.clone()));
    }
    progress.of(async { while clients.join_next().await.transpose().unwrap().is_some() {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_over_http2() {
    const CLIENTS: u64 = 16;
    const EXCHANGES: u64 = 24;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(backend(talk).await))).await;
    let sender = http2(addr).await;
    let (mut clients, progress) = (JoinSet::new(), Progress::default());
    for client in 0..CLIENTS {
        let seeds = client * EXCHANGES..(client + 1) * EXCHANGES;
        clients.spawn(exchanges_http2(sender.clone(), seeds, progress.clone()));
    }
    progress.of(async { while clients.join_next().await.transpose().unwrap().is_some() {} }).await;
}

/// The waker of a finished task.
struct Finished;

impl Wake for Finished {
    fn wake(self: Arc<Self>) {}
}

#[tokio::test]
async fn the_last_waiting_task_is_woken() {
    let mut go = Arc::new(Notify::new());
    let going = go.clone();
    let url = backend(move |mut wire| {
        let going = going.clone();
        async move {
            wire.head().await;
            going.notified().await;
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            going.notified().await;
            wire.send(b"5\r\nfirst\r\n").await;
            going.notified().await;
            wire.send(b"5\r\nlater\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let finished = Waker::from(Arc::new(Finished));
    let request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
    let mut response = Box::pin(ReverseProxy::new(url).oneshot(request));
    // Head and frames are each polled in one task first, until the future has the connection or is about to read, and
    // then in another.
    for _ in 0..20 {
        assert!(response.as_mut().poll(&mut Context::from_waker(&finished)).is_pending());
        // In real time, because the connect is real.
        sleep(Duration::from_millis(2)).await;
    }
    go.notify_one();
    let Ok(response) = timeout(PATIENCE, tokio::spawn(response)).await.expect("the response's task is woken").unwrap();
    let mut body = response.into_body();
    for expected in ["first", "later"] {
        assert!(Pin::new(&mut body).poll_frame(&mut Context::from_waker(&finished)).is_pending());
        let waits = tokio::spawn(async move {
            let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
                Poll::Pending => {
                    // The frame is pending now.
                    go.notify_one();
                    Poll::Pending
                }
                ready @ Poll::Ready(_) => ready,
            });
            (frame.await.unwrap().unwrap().into_data().unwrap(), body, go)
        });
        let frame;
        (frame, body, go) = timeout(PATIENCE, waits).await.expect("the body's task is woken").unwrap();
        assert_eq!(frame, expected);
    }
}

/// A body of so many frames that wakes its reader several times before each frame, as futures do that yield by
/// themselves.
struct Restless {
    frames: usize,
    wakes: usize,
}

impl http_body::Body for Restless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(left) = self.wakes.checked_sub(1) {
            self.wakes = left;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.frames.checked_sub(1).map(|left| {
            // Now and then more wakes than the reader polls without yielding.
            *self = Self { frames: left, wakes: if left % 20 == 0 { 200 } else { left % 4 } };
            Ok(Frame::data(Bytes::from_static(b"x")))
        }))
    }
}

#[tokio::test]
async fn an_upload_that_wakes_its_own_reader_makes_progress() {
    const FRAMES: usize = 200;
    let url = backend(|mut wire| async move {
        while let Some(request) = wire.message().await {
            let length = request.body.len().to_string();
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{length}", length.len()).as_bytes()).await;
        }
    })
    .await;
    let proxy = ReverseProxy::new(url);
    for wakes in [0, 1, 31, 32, 33, 200] {
        let body = Body::new(Restless { frames: FRAMES, wakes });
        let request = Request::post("/x").header("host", "front.example").body(body).unwrap();
        let Ok(response) = timeout(PATIENCE, proxy.clone().oneshot(request)).await.expect("it goes on");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), FRAMES.to_string());
    }
}
