//! The server, with the limits that a front on the internet needs and `axum::serve` doesn't have.
//!
//! | a client that | is ended |
//! |---|---|
//! | sends nothing, or half a request head, over HTTP/1.1 or HTTP/2 | after the header-read timeout |
//! | keeps a connection without a request | after the same timeout, because the next head is due |
//! | doesn't read a response that is available | after twice the header-read timeout, but at least 5 seconds |
//! | has vanished without closing the connection | by HTTP/2 pings, otherwise by TCP keep-alive, also in tunnels |
//! | sends too large a head | with 431 |

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::{Method, Request, Version},
};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_reverse_proxy::{ClientAddr, Tunnels};

use self::stream::ClientStream;
use super::Front;

mod stream;

/// The limits of a client.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) header_read_timeout: Duration,
    pub(crate) max_header_bytes: u32,
}

/// The maximum number of fields in an HTTP/1.1 head. A chain of proxies may exceed hyper's default of 100. Each allowed
/// field costs about 20 instructions per request, because hyper allocates room for all of them each time.
const MAX_FIELDS: usize = 256;
/// hyper's default size of the read and write buffers. A larger head limit raises it.
const BUFFER: usize = 8192 + 4096 * 100;
/// The interval of HTTP/2 pings, and the timeout of each.
const PING: Duration = Duration::from_secs(20);
/// How long an idle HTTP/2 client may take after GOAWAY, in case that it has just sent a request.
const GOODBYE: Duration = Duration::from_millis(500);
/// The minimum time in which a client has to read a part of a response, for a short header-read timeout.
const MIN_SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests may take to finish at shutdown.
const DRAIN: Duration = Duration::from_secs(10);

/// Accepts connections until `stop`, and then ends them: tunnels and idle connections at once, the others when their
/// requests have finished, or after [`DRAIN`].
pub(crate) async fn serve(
    listener: TcpListener,
    front: Arc<Front>,
    limits: Limits,
    tunnels: &Tunnels,
    stop: impl Future<Output = ()>,
) {
    let server = Server::new(front, limits, tunnels.clone());
    let connections = TaskTracker::new();
    let mut stop = pin!(stop);
    let mut is_short = false;
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // The client has aborted this connection. Others aren't affected.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    // Usually, there are no file descriptors left. The next connection that ends frees one, at the
                    // latest when the timeouts end the silent ones. Until then, `accept` fails immediately, so the loop
                    // pauses.
                    if !is_short {
                        tracing::warn!("connections wait, because none can be accepted: {error}");
                    }
                    is_short = true;
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        if is_short {
            is_short = false;
            tracing::info!("connections are accepted again");
        }
        connections.spawn(server.clone().connection(stream, peer));
    }

    drop(listener);
    server.stop.cancel();
    // WebSockets don't end without it.
    tunnels.shut_down();
    connections.close();
    let ended = async {
        connections.wait().await;
        tunnels.wait().await;
    };
    if timeout(DRAIN, ended).await.is_err() {
        tracing::warn!("{} connections are closed, because they haven't ended in time", connections.len());
    }
}

/// Ready at SIGTERM or Ctrl-C.
pub(crate) async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt => return,
        }
    }
    let _ = interrupt.await;
}

/// The configuration and state that all connections share.
struct Server {
    front: Arc<Front>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    header_read_timeout: Duration,
    /// How long a client may read nothing of a response. By default 60 seconds, as nginx's `send_timeout`.
    send_timeout: Duration,
    tunnels: Tunnels,
    stop: CancellationToken,
}

impl Server {
    fn new(front: Arc<Front>, limits: Limits, tunnels: Tunnels) -> Arc<Self> {
        let max_header_bytes = limits.max_header_bytes as usize;
        let mut http1 = http1::Builder::new();
        http1
            .max_headers(MAX_FIELDS)
            .max_header_size(max_header_bytes)
            .max_buf_size(BUFFER.max(max_header_bytes + 1))
            // `supervise` has one timeout for both versions. hyper's would set a new timer for each request.
            .header_read_timeout(None);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(limits.max_header_bytes)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            // HTTP/2 clients open WebSockets by extended CONNECT.
            .enable_connect_protocol();
        let header_read_timeout = limits.header_read_timeout;
        let send_timeout = header_read_timeout.saturating_mul(2).max(MIN_SEND_TIMEOUT);
        let stop = CancellationToken::new();
        Arc::new(Self { front, http1, http2, header_read_timeout, send_timeout, tunnels, stop })
    }

    /// Serves one connection until it ends, or one of the client's timeouts elapses.
    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let life = Arc::new(Life::new());
        let stop = self.stop.child_token();
        let _ = stream.set_nodelay(true);
        // A tunnel may be silent for hours. TCP keep-alive detects that its client has vanished.
        let keep_alive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keep_alive);

        let mut stream = ClientStream::new(stream, life.clone());
        let due = life.start + self.header_read_timeout;
        let is_http2 = tokio::select! {
            version = timeout_at(due, stream.is_http2()) => match version {
                Ok(Ok(is_http2)) => is_http2,
                _ => return,
            },
            () = stop.cancelled() => return,
        };
        let service = {
            let (front, life) = (self.front.clone(), life.clone());
            service_fn(move |mut request: Request<Incoming>| {
                let exchange = life.exchange();
                let is_connect = request.method() == Method::CONNECT && request.version() == Version::HTTP_2;
                request.extensions_mut().insert(ClientAddr::from(peer));
                let front = front.clone();
                async move {
                    let response = front.answer(request).await;
                    if is_connect && response.status().is_success() {
                        exchange.life.has_tunnels.store(true, Ordering::Relaxed);
                    }
                    Ok::<_, Infallible>(response.map(|body| LiveBody::new(body, exchange)))
                }
            })
        };
        let stream = TokioIo::new(stream);
        if is_http2 {
            let connection = self.http2.serve_connection(stream, service);
            self.supervise(connection, http2::Connection::graceful_shutdown, &life, &stop, true).await;
        } else {
            let connection = self.http1.serve_connection(stream, service).with_upgrades();
            self.supervise(connection, http1::UpgradeableConnection::graceful_shutdown, &life, &stop, false).await;
        }
    }

    /// Drives a connection. It ends the connection if it's idle for too long, if its client reads nothing of a response
    /// for too long, and at shutdown.
    ///
    /// An HTTP/2 connection gets GOAWAY first, because its client may be about to send a request.
    async fn supervise<C: Future<Output = hyper::Result<()>>>(
        &self,
        connection: C,
        graceful_shutdown: fn(Pin<&mut C>),
        life: &Life,
        stop: &CancellationToken,
        is_http2: bool,
    ) {
        let mut connection = pin!(connection);
        let (mut wait, mut leaving) = (self.header_read_timeout, None);
        let mut timer = pin!(sleep_until(life.start + wait));
        loop {
            tokio::select! {
                biased;
                outcome = &mut connection => {
                    if let Err(error) = outcome {
                        tracing::debug!("a connection has failed: {error}");
                    }
                    return;
                }
                () = stop.cancelled(), if leaving != Some(Reason::Stop) => {
                    graceful_shutdown(connection.as_mut());
                    leaving = Some(Reason::Stop);
                    wait = if is_http2 { GOODBYE } else { Duration::ZERO };
                    life.touch();
                    timer.as_mut().reset(Instant::now() + wait);
                }
                () = &mut timer => {
                    let again = Instant::now() + wait.max(GOODBYE);
                    let (end, is_idle) = match life.turn(&self.tunnels) {
                        // The timeout restarts at the end of the exchange.
                        Turn::Ours => (again, false),
                        // At shutdown, `DRAIN` is shorter.
                        Turn::ClientTakes(since) => (since + self.send_timeout, false),
                        Turn::ClientAsks(since) => (since + wait, true),
                    };
                    if end > Instant::now() {
                        timer.as_mut().reset(end.min(again));
                    } else if leaving.is_none() && is_http2 && is_idle && life.has_begun() {
                        graceful_shutdown(connection.as_mut());
                        leaving = Some(Reason::Idle);
                        life.touch();
                        timer.as_mut().reset(Instant::now() + wait);
                    } else {
                        return;
                    }
                }
            }
        }
    }
}

/// Why a connection is about to end.
#[derive(PartialEq)]
enum Reason {
    Idle,
    Stop,
}

/// The side that has to act next, and since when if it's the client.
enum Turn {
    Ours,
    /// The client has to read the rest of a response.
    ClientTakes(Instant),
    /// The client has to send a request, because no exchange is in progress.
    ClientAsks(Instant),
}

/// The exchanges in progress on a connection.
pub(crate) struct Life {
    start: Instant,
    /// Exchanges whose responses haven't been passed to hyper completely.
    exchanges: AtomicUsize,
    /// The exchanges among them that wait for the front or a backend, and not for the client to read.
    working: AtomicUsize,
    /// Milliseconds from the start to the last progress of an exchange.
    last: AtomicU64,
    has_begun: AtomicBool,
    /// Whether an HTTP/2 CONNECT has been accepted.
    has_tunnels: AtomicBool,
    /// Whether an HTTP/2 response has begun whose end hasn't been written.
    is_answering: AtomicBool,
    /// Whether the last write is blocked because the client doesn't read. It may contain the end of a response.
    is_blocked: AtomicBool,
}

impl Life {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            exchanges: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            has_begun: AtomicBool::new(false),
            has_tunnels: AtomicBool::new(false),
            is_answering: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
        }
    }

    fn turn(&self, tunnels: &Tunnels) -> Turn {
        let is_answering = self.is_answering.load(Ordering::Relaxed);
        // Tunnels over HTTP/2 are streams that hyper doesn't expose, so an open stream may be a tunnel.
        let may_have_tunnels = is_answering && self.has_tunnels.load(Ordering::Relaxed) && tunnels.count() > 0;
        if may_have_tunnels || self.working.load(Ordering::Acquire) > 0 {
            return Turn::Ours;
        }
        let has_more =
            is_answering || self.is_blocked.load(Ordering::Relaxed) || self.exchanges.load(Ordering::Acquire) > 0;
        let since = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed));
        if has_more { Turn::ClientTakes(since) } else { Turn::ClientAsks(since) }
    }

    fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Ordering::Relaxed);
    }

    /// Records a read over HTTP/1.1. It counts as progress, because a client may read an early response after its
    /// upload only.
    pub(crate) fn read(&self) {
        if self.exchanges.load(Ordering::Relaxed) > 0 {
            self.touch();
        }
    }

    /// Records whether a write is blocked.
    pub(crate) fn written(&self, is_blocked: bool) {
        if is_blocked {
            self.is_blocked.store(true, Ordering::Relaxed);
        } else if self.is_blocked.load(Ordering::Relaxed) {
            self.is_blocked.store(false, Ordering::Relaxed);
            self.touch();
        }
    }

    /// Records a write of HTTP/2 responses, and whether one of them hasn't ended.
    pub(crate) fn answered(&self, is_answering: bool) {
        self.is_answering.store(is_answering, Ordering::Relaxed);
        self.touch();
    }

    /// Begins an exchange, which ends when the returned guard is dropped.
    fn exchange(self: &Arc<Self>) -> Exchange {
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        self.working.fetch_add(1, Ordering::Relaxed);
        self.has_begun.store(true, Ordering::Relaxed);
        Exchange { life: self.clone(), is_working: true }
    }
}

struct Exchange {
    life: Arc<Life>,
    is_working: bool,
}

impl Exchange {
    /// Records whether the exchange waits for the front or a backend.
    fn set_working(&mut self, is_working: bool) {
        if self.is_working == is_working {
            return;
        }
        self.is_working = is_working;
        if is_working {
            self.life.working.fetch_add(1, Ordering::Relaxed);
        } else {
            self.life.touch();
            self.life.working.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.set_working(false);
        self.life.touch();
        self.life.exchanges.fetch_sub(1, Ordering::Release);
    }
}

/// The body of a response, whose end is the end of the exchange.
///
/// hyper polls for a frame when its buffer has room. Between two frames, the exchange therefore waits for the client.
struct LiveBody {
    body: Body,
    exchange: Exchange,
}

impl LiveBody {
    fn new(body: Body, mut exchange: Exchange) -> Self {
        exchange.set_working(false);
        Self { body, exchange }
    }
}

impl HttpBody for LiveBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.exchange.set_working(polled.is_pending());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
