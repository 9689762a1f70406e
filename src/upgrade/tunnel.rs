//! The tunnel between the two sides of an upgrade, and the set of all open tunnels.

use std::{
    fmt,
    future::{Future, pending, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    sync::Notify,
    task::unconstrained,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::BackendSide;
use crate::{
    observe::{self, EndedTunnel},
    timeout::bounded,
    tunnel_guard::TunnelGuard,
};

/// Tracks the open tunnels of one or more proxies, such as WebSockets, and limits how long they last.
///
/// A server doesn't wait for tunnels when it shuts down gracefully, and doesn't end them. An application that passes a
/// `Tunnels` to its proxies ([`tunnels`](crate::ReverseProxyLayer::tunnels)) can do both. Clones share the same set of
/// tunnels; each clone has timeouts of its own.
///
/// ```
/// use std::time::Duration;
/// use tower_reverse_proxy::{ReverseProxyLayer, Tunnels};
///
/// # async fn run() {
/// let tunnels = Tunnels::new().idle_timeout(Duration::from_secs(3600));
/// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").tunnels(tunnels.clone());
/// // … when the server has stopped accepting connections:
/// if tokio::time::timeout(Duration::from_secs(10), tunnels.wait()).await.is_err() {
///     tunnels.shut_down();
///     tunnels.wait().await;
/// }
/// # let _ = proxy;
/// # }
/// ```
///
/// At its end, each tunnel emits an event with the target `tower_reverse_proxy::tunnel`: the bytes `up` and `down`,
/// `age_ms`, and what it was `ended_by`.
///
/// # Dead clients
///
/// TCP keep-alive finds a backend that is gone: the crate's client sets it. On the client's side, the server has to set
/// it. Without it, the tunnels of clients that vanish without a FIN stay open. With `axum::serve` and the crate
/// socket2:
///
/// ```no_run
/// use axum::serve::ListenerExt;
/// use socket2::{SockRef, TcpKeepalive};
/// # use std::time::Duration;
///
/// # async fn run(listener: tokio::net::TcpListener, app: axum::Router) -> std::io::Result<()> {
/// let keep_alive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
/// let listener = listener.tap_io(move |stream| {
///     let _ = SockRef::from(&*stream).set_tcp_keepalive(&keep_alive);
/// });
/// axum::serve(listener, app).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[doc(alias = "websocket")]
#[doc(alias = "graceful shutdown")]
pub struct Tunnels {
    tracker: TaskTracker,
    stop: CancellationToken,
    timeouts: Timeouts,
}

#[derive(Clone, Copy, Debug)]
struct Timeouts {
    idle: Option<Duration>,
    half_closed: Option<Duration>,
    max_age: Option<Duration>,
}

impl Tunnels {
    /// Creates an empty set of tunnels, with the default timeouts.
    ///
    /// ```
    /// use tower_reverse_proxy::{ReverseProxyLayer, Tunnels};
    ///
    /// // One set for two proxies.
    /// let tunnels = Tunnels::new();
    /// let chat = ReverseProxyLayer::new("http://127.0.0.1:8000").tunnels(tunnels.clone());
    /// let wiki = ReverseProxyLayer::new("http://127.0.0.1:8001").tunnels(tunnels.clone());
    /// # let _ = (chat, wiki);
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            timeouts: Timeouts { idle: None, half_closed: Some(Duration::from_secs(60)), max_age: None },
        }
    }

    /// Sets how long a tunnel may be silent in both directions. Default: `None`, for any time. On expiry, both sides
    /// are closed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Tunnels;
    ///
    /// // As nginx's `proxy_read_timeout`. WebSockets without a heartbeat are closed after a minute.
    /// let tunnels = Tunnels::new().idle_timeout(Duration::from_secs(60));
    /// # let _ = tunnels;
    /// ```
    #[must_use]
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeouts.idle = bounded(timeout);
        self
    }

    /// Sets how long a tunnel may be silent after one side has ended. Default: 60 seconds. `None` disables it.
    ///
    /// The end of one side is passed on, and the other direction continues, because a client may send a FIN and read
    /// the rest. A peer that ignores the FIN would keep the tunnel open for ever. Each byte restarts the timeout. A
    /// tunnel that is closed by it has `half-closed timeout` for its `ended_by`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Tunnels;
    ///
    /// let tunnels = Tunnels::new().half_closed_timeout(Duration::from_secs(10));
    /// # let _ = tunnels;
    /// ```
    #[must_use]
    pub fn half_closed_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeouts.half_closed = bounded(timeout);
        self
    }

    /// Sets how long a tunnel may be open. Default: `None`, for any time. On expiry, both sides are closed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Tunnels;
    ///
    /// // Clients sign in again every day.
    /// let tunnels = Tunnels::new().max_age(Duration::from_secs(24 * 60 * 60));
    /// # let _ = tunnels;
    /// ```
    #[must_use]
    pub fn max_age(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.timeouts.max_age = bounded(age);
        self
    }

    /// Returns how many tunnels are open, including those whose upgrade is being completed.
    ///
    /// ```
    /// use tower_reverse_proxy::Tunnels;
    ///
    /// assert_eq!(Tunnels::new().count(), 0);
    /// ```
    #[must_use]
    pub fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Closes both sides of every tunnel, and of those that are opened later.
    ///
    /// The proxy writes no WebSocket frames, so neither side gets a close frame: a browser's `onclose` has the code 1006.
    ///
    /// ```
    /// use tower_reverse_proxy::Tunnels;
    ///
    /// # async fn run(tunnels: Tunnels) {
    /// tunnels.shut_down();
    /// tunnels.wait().await;
    /// assert_eq!(tunnels.count(), 0);
    /// # }
    /// ```
    pub fn shut_down(&self) {
        self.stop.cancel();
    }

    /// Waits until no tunnel is open. New ones can be opened all the same.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Tunnels;
    ///
    /// # async fn run(tunnels: Tunnels) {
    /// // A minute for clients to leave by themselves.
    /// let _ = tokio::time::timeout(Duration::from_secs(60), tunnels.wait()).await;
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// It can be dropped and called again.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Starts a tunnel between the two sides of an upgrade. The guard is dropped at its end.
    pub(super) fn spawn(&self, client: OnUpgrade, backend: BackendSide, guard: Option<TunnelGuard>) {
        let tunnel = tunnel(client, backend, self.stop.clone(), self.timeouts);
        self.tracker.spawn(async move {
            let _guard = guard;
            tunnel.await;
        });
    }
}

impl Default for Tunnels {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels")
            .field("count", &self.count())
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// Copies bytes in both directions until both sides have ended, or one has failed. The end of a side is forwarded at
/// once.
async fn tunnel(client: OnUpgrade, backend: BackendSide, stop: CancellationToken, timeouts: Timeouts) {
    // The client's side is ready after the response has been written, and fails if its connection ends before.
    let both = async { Ok::<_, hyper::Error>((client.await?, backend.connection().await?)) };
    let (client, backend) = match stop.run_until_cancelled(both).await {
        Some(Ok(both)) => both,
        Some(Err(error)) => {
            observe::incomplete_upgrade(&error);
            return;
        }
        None => return,
    };
    let stats = Arc::new(TunnelStats::new());
    let client = TokioIo::new(client);
    let mut client = Side { name: "client", io: client, leftover: Bytes::new(), stats: stats.clone() };
    let mut backend = Side { name: "backend", io: backend.io, leftover: backend.leftover, stats: stats.clone() };
    let mut copied = pin!(copy_bidirectional_with_sizes(&mut client, &mut backend, TUNNEL_BUFFER, TUNNEL_BUFFER));
    // Unconstrained, because a side that always has data to read uses up the task's budget, and the timers would never
    // fire.
    let (mut idle, mut age) =
        (pin!(unconstrained(stats.idle(timeouts.idle))), pin!(unconstrained(after(timeouts.max_age))));
    let mut half_closed = pin!(unconstrained(stats.half_closed(timeouts.half_closed)));
    let mut stop = pin!(unconstrained(stop.cancelled()));
    let mut expired = false;
    let error = poll_fn(|cx| {
        if let Poll::Ready(outcome) = copied.as_mut().poll(cx) {
            return Poll::Ready(outcome.err().map(|error| error.to_string()));
        }
        for (over, why) in [
            (idle.as_mut().poll(cx), "idle timeout"),
            (age.as_mut().poll(cx), "maximum age"),
            (stop.as_mut().poll(cx), "shutdown"),
        ] {
            if over.is_ready() {
                stats.ended_by(why);
                return Poll::Ready(None);
            }
        }
        if half_closed.as_mut().poll(cx).is_ready() {
            expired = true;
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await;
    observe::ended_tunnel(&EndedTunnel {
        up: stats.up.load(Ordering::Relaxed),
        down: stats.down.load(Ordering::Relaxed),
        age: stats.start.elapsed(),
        ended_by: if expired { "half-closed timeout" } else { stats.end.get().copied().unwrap_or_default() },
        error: error.as_deref(),
    });
}

/// The size of the buffer of each direction, in bytes.
///
/// With 8, 16, 32 and 64 KiB, a GiB costs 1.0, 0.8, 0.5 and 0.5 seconds of CPU. Most tunnels are silent most of the
/// time and keep both buffers, so their memory counts more than the difference.
const TUNNEL_BUFFER: usize = 16 * 1024;

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => pending().await,
    }
}

/// The bytes, times and end of a tunnel.
#[derive(Debug)]
struct TunnelStats {
    start: Instant,
    /// Milliseconds from the start to the last byte.
    last: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    /// The first cause of the end: a side, a timeout, or the shutdown.
    end: OnceLock<&'static str>,
    /// Notified when the first side has ended.
    closed: Notify,
}

impl TunnelStats {
    fn new() -> Self {
        let zero = AtomicU64::default;
        let (end, closed) = (OnceLock::new(), Notify::new());
        Self { start: Instant::now(), last: zero(), up: zero(), down: zero(), end, closed }
    }

    fn ended_by(&self, name: &'static str) {
        let _ = self.end.set(name);
    }

    /// Records the end of a side. It restarts the idle timeout as a byte does.
    fn side_ended(&self, name: &'static str) {
        if self.end.set(name).is_ok() {
            self.touch();
            self.closed.notify_one();
        }
    }

    fn count(&self, counter: &AtomicU64, bytes: usize) {
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    fn touch(&self) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Ordering::Relaxed);
    }

    /// Ready when one side has ended, and the timeout has elapsed since then without a byte.
    async fn half_closed(&self, timeout: Option<Duration>) {
        self.closed.notified().await;
        self.idle(timeout).await;
    }

    /// Ready when the timeout has elapsed without a byte.
    async fn idle(&self, timeout: Option<Duration>) {
        let Some(timeout) = timeout else { return pending().await };
        loop {
            let due = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + timeout;
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }
}

/// One side of a tunnel, whose bytes and end are recorded.
struct Side<T> {
    name: &'static str,
    io: T,
    /// What has been read from it before.
    leftover: Bytes,
    stats: Arc<TunnelStats>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Side<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.leftover.has_remaining() {
            let size = self.leftover.len().min(buf.remaining());
            buf.put_slice(&self.leftover.split_to(size));
            self.stats.count(&self.stats.down, size);
            return Poll::Ready(Ok(()));
        }
        let outcome = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        match buf.filled().len() - before {
            0 => self.stats.side_ended(self.name),
            bytes if self.name == "client" => self.stats.count(&self.stats.up, bytes),
            bytes => self.stats.count(&self.stats.down, bytes),
        }
        Poll::Ready(outcome)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Side<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        if outcome.is_err() {
            self.stats.ended_by(self.name);
        }
        Poll::Ready(outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
