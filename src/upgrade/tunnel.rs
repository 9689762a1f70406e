//! The tunnel between the two sides of an upgrade, and the set of all open tunnels.

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::{
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

use super::{
    BackendSide,
    copy::{BidirectionalCopy, Side},
};
use crate::{
    observe::{self, EndedTunnel},
    switched::{SwitchedConnection, Transport},
    timeout::bounded,
    tunnel_guard::{TunnelEnd, TunnelGuard, poll_any},
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
    /// The proxy writes no WebSocket frames, so neither side gets a close frame: a browser's `onclose` has the code
    /// 1006.
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
        let stage = Stage::Opening(Box::pin(opened(client, backend)), self.timeouts);
        let stop = self.stop.clone().cancelled_owned();
        let guarded = guard.map(|guard| Box::new(Guarded::new(guard)));
        self.tracker.spawn(Tunnel { stage, stop, guarded });
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

pin_project! {
    /// The task of a tunnel.
    struct Tunnel {
        stage: Stage,
        #[pin]
        stop: WaitForCancellationFutureOwned,
        // In a box, because few tunnels have one.
        guarded: Option<Box<Guarded>>,
    }
}

/// What the services below the proxy keep for a tunnel.
struct Guarded {
    /// Each of them may end the tunnel.
    ends: Vec<TunnelEnd>,
    guard: TunnelGuard,
    /// Whether it knows that the backend has ended its side.
    has_backend_ended: bool,
}

impl Guarded {
    fn new(guard: TunnelGuard) -> Self {
        Self { ends: guard.ends(), guard, has_backend_ended: false }
    }

    fn backend_ended(&mut self) {
        if !self.has_backend_ended {
            self.has_backend_ended = true;
            self.guard.backend_ended();
        }
    }
}

type Sides = (Upgraded, SwitchedConnection);

enum Stage {
    /// In a box, which is freed when the tunnel opens.
    Opening(Pin<Box<dyn Future<Output = hyper::Result<Sides>> + Send>>, Timeouts),
    Open(OpenTunnel),
}

/// Waits until both sides can be copied.
async fn opened(client: OnUpgrade, backend: BackendSide) -> hyper::Result<Sides> {
    // The client's side is ready after the response has been written, and fails if its connection ends before.
    Ok((client.await?, backend.connection().await?))
}

impl Future for Tunnel {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let (mut stop, guarded) = (this.stop, this.guarded);
        let stopped = poll_fn(|cx| {
            if stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready("shutdown");
            }
            let ends = guarded.as_mut().map(|guarded| &mut *guarded.ends).unwrap_or_default();
            poll_any(ends, cx).map(|()| "drain timeout")
        });
        // Unconstrained, because a connection may use up the task's budget in each poll.
        let stop = pin!(unconstrained(stopped));
        if let Stage::Opening(opening, timeouts) = this.stage {
            match opening.as_mut().poll(cx) {
                Poll::Ready(Ok((client, backend))) => {
                    let tunnel = OpenTunnel::new(client, backend, *timeouts);
                    *this.stage = Stage::Open(tunnel);
                }
                Poll::Ready(Err(error)) => {
                    observe::incomplete_upgrade(&error);
                    return Poll::Ready(());
                }
                Poll::Pending => return stop.poll(cx).map(|_| ()),
            }
        }
        let Stage::Open(tunnel) = this.stage else { return Poll::Pending };
        let outcome = tunnel.poll(cx, stop);
        if let Some(guarded) = guarded
            && tunnel.copy.ended() == Some(Side::Backend)
        {
            guarded.backend_ended();
        }
        outcome
    }
}

const HALF_CLOSED: &str = "half-closed timeout";

/// A tunnel whose sides are both open, or were.
struct OpenTunnel {
    copy: BidirectionalCopy<TokioIo<Upgraded>, Box<dyn Transport>>,
    timeouts: Timeouts,
    start: Instant,
    /// When the last byte was read, or the first side ended. Recorded only while a timeout depends on it.
    last: Instant,
    /// Due at the earliest timeout or before. `None` as long as no timeout runs.
    timer: Option<Pin<Box<Sleep>>>,
}

impl OpenTunnel {
    fn new(client: Upgraded, backend: SwitchedConnection, timeouts: Timeouts) -> Self {
        let copy = BidirectionalCopy::new(TokioIo::new(client), backend.io, backend.leftover);
        let start = Instant::now();
        Self { copy, timeouts, start, last: start, timer: None }
    }

    /// Ready when both sides have ended, one has failed, a timeout has expired, or on shutdown.
    fn poll(&mut self, cx: &mut Context<'_>, stop: Pin<&mut impl Future<Output = &'static str>>) -> Poll<()> {
        let (cause, error) = if let Poll::Ready(outcome) = self.poll_copy(cx) {
            (None, outcome.err().map(|error| error.to_string()))
        } else if let Poll::Ready(cause) = stop.poll(cx) {
            (Some(cause), None)
        } else {
            (Some(ready!(self.poll_expired(cx))), None)
        };
        let ended_by = match (self.copy.ended(), cause) {
            (_, Some(HALF_CLOSED)) => HALF_CLOSED,
            (Some(Side::Client), _) => "client",
            (Some(Side::Backend), _) => "backend",
            (None, cause) => cause.unwrap_or_default(),
        };
        observe::ended_tunnel(&EndedTunnel {
            up: self.copy.up(),
            down: self.copy.down(),
            age: self.start.elapsed(),
            ended_by,
            error: error.as_deref(),
        });
        Poll::Ready(())
    }

    /// Copies, and records when the last byte was read.
    fn poll_copy(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = (self.copy.up(), self.copy.down(), self.copy.ended());
        let outcome = self.copy.poll(cx);
        let is_timed = self.timeouts.idle.is_some() || self.copy.ended().is_some();
        if is_timed && before != (self.copy.up(), self.copy.down(), self.copy.ended()) {
            self.last = Instant::now();
        }
        outcome
    }

    /// Ready with the cause if a timeout has expired.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        while let Some((due, cause)) = self.due() {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if due < timer.deadline() {
                timer.as_mut().reset(due);
            }
            ready!(pin!(unconstrained(timer.as_mut())).poll(cx));
            if due <= Instant::now() {
                return Poll::Ready(cause);
            }
            // Bytes have postponed the timeout since the timer was set.
            timer.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// Returns the earliest timeout, and the cause of the end that it is.
    fn due(&self) -> Option<(Instant, &'static str)> {
        let half_closed = self.timeouts.half_closed.filter(|_| self.copy.ended().is_some());
        let timeouts = [
            self.timeouts.idle.map(|timeout| (self.last + timeout, "idle timeout")),
            self.timeouts.max_age.map(|timeout| (self.start + timeout, "maximum age")),
            half_closed.map(|timeout| (self.last + timeout, HALF_CLOSED)),
        ];
        timeouts.into_iter().flatten().min_by_key(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In bytes, on a 64-bit machine. The future is the task of an open tunnel.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn the_future_of_a_tunnel_is_small() {
        let size = size_of::<Tunnel>();
        assert!(size <= 344, "{size}");
    }
}
