//! Thousands of tunnels and streams, over HTTP/1.1 and HTTP/2 on either side, TCP and Unix sockets, that end at random in
//! every way from either side, and leave no tasks, descriptors, memory or permits.
//!
//! A binary of its own, because it counts the tasks and descriptors of the whole process.
#![allow(clippy::expect_used, clippy::unwrap_used)] // a missing value fails the test

#[cfg(feature = "http2")]
#[path = "../it/support/frames.rs"]
#[allow(dead_code, reason = "of the other binary")]
mod frames;
mod http1;
#[cfg(feature = "http2")]
mod http2;
#[path = "../it/support/websocket.rs"]
mod websocket;

use std::{
    collections::hash_map::RandomState,
    fs,
    hash::BuildHasher,
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::Request,
};
use http_body_util::{BodyExt, Channel};
use hyper::{
    client::conn::http2::{SendRequest, handshake},
    ext::Protocol,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    task::{JoinSet, yield_now},
    time::timeout,
};
use tower_reverse_proxy::{Client, ClientBuilder, ReverseProxyLayer, Tunnels};

const EXCHANGES: usize = 3_000;
const AT_ONCE: usize = 50;
const PATIENCE: Duration = Duration::from_secs(60);
/// The connections of a client that has a limit, below what the exchanges that go on at once would take.
const LIMIT: usize = 4;
/// How long a connection stays in the pool: longer than between two exchanges, and not long to wait for its end.
const IDLE: Duration = Duration::from_millis(20);
/// For some of the requests of a client at its limit, too short.
const QUEUE: Duration = Duration::from_millis(50);
/// The timeouts of exchanges and tunnels. They end those whose other side is gone without that the front can see it: behind
/// octets of an upload that the backend doesn't take.
const TIMEOUT: Duration = Duration::from_millis(250);

/// A number below `bound`, another one each time.
fn random(bound: u64) -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    RandomState::new().hash_one(CALLS.fetch_add(1, Ordering::Relaxed)) % bound
}

/// Whether the backends answer every request and hold every connection.
static IS_CALM: AtomicBool = AtomicBool::new(false);

fn is_calm() -> bool {
    IS_CALM.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_exchanges_leave_no_tasks_descriptors_memory_or_permits() {
    let tunnels = Tunnels::new().half_closed_timeout(TIMEOUT);
    let plain = |client: ClientBuilder| client.pool_max_idle(0);
    let pooled = |client: ClientBuilder| client.pool_idle_timeout(IDLE);
    let limited = |client: ClientBuilder| pooled(client).max_connections(LIMIT).queue_timeout(QUEUE);
    let (http1, limited_http1) = (over_tcp().await, over_tcp().await);
    let mut fronts = vec![
        front(plain(Client::builder(http1.clone())), &tunnels).await,
        front(pooled(Client::builder(http1)), &tunnels).await,
    ];
    #[cfg_attr(not(feature = "http2"), expect(unused_mut, reason = "HTTP/2 adds one"))]
    let mut limited_fronts = vec![front(limited(Client::builder(limited_http1)), &tunnels).await];
    #[cfg(unix)]
    let directory = tempfile::tempdir().unwrap();
    #[cfg(unix)]
    fronts.push(front(plain(Client::builder(over_unix_sockets(directory.path()))), &tunnels).await);
    #[cfg(feature = "http2")]
    {
        let (http2, limited_http2) = (over_http2().await, over_http2().await);
        fronts.push(front(pooled(Client::builder(http2).http2(true)), &tunnels).await);
        limited_fronts.push(front(limited(Client::builder(limited_http2).http2(true)), &tunnels).await);
    }
    fronts.extend(&limited_fronts);
    let any = || fronts[usize::try_from(random(fronts.len() as u64)).unwrap()];

    // One-time allocations have been made.
    for &front in &fronts {
        exchange(front).await;
    }
    settle(&tunnels, None).await;
    let base = (tasks(), descriptors());

    let mut resident = Vec::new();
    for _ in 0..3 {
        let mut running = JoinSet::new();
        for _ in 0..EXCHANGES / 3 {
            if running.len() == AT_ONCE {
                running.join_next().await.unwrap().unwrap();
            }
            running.spawn(exchange(any()));
        }
        while running.join_next().await.is_some() {}
        settle(&tunnels, Some(base)).await;
        resident.push(memory());
        for &front in &limited_fronts {
            assert_permits(front).await;
        }
        settle(&tunnels, Some(base)).await;
    }
    // The first thousand brings the allocator to its size. A leak keeps growing: a leaked buffer per tunnel would be 16
    // MiB.
    let growth = resident[2].saturating_sub(resident[0]);
    assert!(growth < 8 << 20, "resident after each thousand: {resident:?}");
}

/// Opens as many WebSockets as the limit has connections, each of which needs a connection of its own: one that is lost
/// leaves a request in the queue, which gets 503.
async fn assert_permits(front: SocketAddr) {
    IS_CALM.store(true, Ordering::Relaxed);
    let mut open = Vec::new();
    for number in 0..LIMIT {
        let mut stream = TcpStream::connect(front).await.unwrap();
        stream.write_all(WEBSOCKET.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut start)).await.expect("an answer").unwrap();
        let start = String::from_utf8_lossy(&start);
        assert_eq!(start, "HTTP/1.1 101", "WebSocket {number} of {LIMIT}");
        open.push(stream);
    }
    drop(open);
    IS_CALM.store(false, Ordering::Relaxed);
}

const WEBSOCKET: &str = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Starts a backend, and returns its origin.
async fn over_tcp() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http1::converse(stream, Vec::new()));
        }
    });
    origin
}

#[cfg(unix)]
fn over_unix_sockets(directory: &std::path::Path) -> String {
    let path = directory.join("backend.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http1::converse(stream, Vec::new()));
        }
    });
    format!("unix:{}", path.display())
}

/// A backend that speaks HTTP/2, and HTTP/1.1 where WebSockets need it.
#[cfg(feature = "http2")]
async fn over_http2() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http2::converse(stream));
        }
    });
    origin
}

async fn front(client: ClientBuilder, tunnels: &Tunnels) -> SocketAddr {
    let layer = ReverseProxyLayer::new(client).tunnels(tunnels.clone());
    let layer = layer.header_timeout(TIMEOUT).body_idle_timeout(TIMEOUT);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().layer(layer)).await });
    front
}

/// Resident memory of the process, in bytes; 0 where there's no such file.
fn memory() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse().ok());
    pages.unwrap_or(0) * 4096
}

/// Waits until there are no more tasks and descriptors than before.
async fn settle(tunnels: &Tunnels, base: Option<(usize, usize)>) {
    timeout(PATIENCE, tunnels.wait()).await.expect("tunnels end");
    let settled = async {
        let mut quiet = 0;
        while quiet < 20 {
            let now = (tasks(), descriptors());
            let calm = base.is_none_or(|base| now.0 <= base.0 && now.1 <= base.1);
            quiet = if calm { quiet + 1 } else { 0 };
            // In real time, because the kernel closes sockets in it.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(PATIENCE, settled).await.is_err() {
        panic!("before: {base:?}, left: {:?}", (tasks(), descriptors()));
    }
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// A client that opens a tunnel or a stream, sends something, and ends in one of many ways.
async fn exchange(front: SocketAddr) {
    let mut stream = TcpStream::connect(front).await.unwrap();
    let (head, piece): (&str, &[u8]) = match random(5) {
        0 => return exchange_http2(stream).await,
        1 => (WEBSOCKET, b"some octets"),
        2 => ("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n"),
        3 => ("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 22\r\n\r\n", b"some octets"),
        _ => ("GET /x HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n", b""),
    };
    let _ = stream.write_all(head.as_bytes()).await;
    for _ in 0..random(4) {
        let _ = stream.write_all(piece).await;
        yield_now().await;
    }
    end(stream).await;
}

/// A client with several concurrent streams, each ended or reset on its own.
async fn exchange_http2(stream: TcpStream) {
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut streams = JoinSet::new();
    for _ in 0..=random(4) {
        let mut sender = sender.clone();
        streams.spawn(async move {
            let patience = Duration::from_millis(1 << random(9));
            let _ = match random(3) {
                0 => timeout(patience, websocket(&mut sender)).await,
                1 => timeout(patience, upload(&mut sender)).await,
                _ => timeout(patience, download(&mut sender)).await,
            };
        });
    }
    // One client in four drops all its streams at once.
    if random(4) > 0 {
        streams.join_all().await;
    }
}

async fn websocket(sender: &mut SendRequest<Body>) {
    let mut request = Request::connect("http://a/x").body(Body::empty()).unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let Ok(response) = sender.send_request(request).await else { return };
    let Ok(tunnel) = hyper::upgrade::on(response).await else { return };
    let mut tunnel = TokioIo::new(tunnel);
    for _ in 0..random(4) {
        let _ = tunnel.write_all(b"some octets").await;
    }
    if random(2) == 0 {
        let _ = tunnel.shutdown().await;
    }
    let _ = tunnel.read(&mut [0; 1024]).await;
}

async fn upload(sender: &mut SendRequest<Body>) {
    let (mut upload, body) = Channel::<Bytes, io::Error>::new(1);
    let response = sender.send_request(Request::post("http://a/x").body(Body::new(body)).unwrap());
    for _ in 0..random(4) {
        let _ = upload.send_data(Bytes::from_static(b"hello")).await;
    }
    if random(2) == 0 {
        upload.abort(io::ErrorKind::Other.into());
    }
    let _ = response.await;
}

async fn download(sender: &mut SendRequest<Body>) {
    let request = Request::get("http://a/x").body(Body::empty()).unwrap();
    let Ok(response) = sender.send_request(request).await else { return };
    let mut body = response.into_body();
    for _ in 0..random(8) {
        let _ = body.frame().await;
    }
}

/// One end of a connection, which can be reset.
pub(crate) trait Peer: AsyncRead + AsyncWrite + Unpin + Send {
    fn reset(self);
}

impl Peer for TcpStream {
    fn reset(self) {
        self.set_zero_linger().unwrap();
    }
}

#[cfg(unix)]
impl Peer for tokio::net::UnixStream {
    /// A Unix socket is reset by unread octets only.
    fn reset(self) {}
}

async fn end(mut stream: impl Peer) {
    let mut sink = vec![0; 1024];
    match random(4) {
        // A reset.
        0 => stream.reset(),
        // An end.
        1 => {}
        // A half-close, and then a short read.
        2 => {
            let _ = stream.shutdown().await;
            let _ = timeout(Duration::from_millis(random(20)), stream.read(&mut sink)).await;
        }
        // A short read.
        _ => {
            let _ = timeout(Duration::from_millis(random(20)), stream.read(&mut sink)).await;
        }
    }
}
