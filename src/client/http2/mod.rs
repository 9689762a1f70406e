//! HTTP/2 connections to one backend: shared by all requests, each driven by a task of its own, as many as streams need.

mod exchange;
mod place;
mod websocket;

use std::{
    future::{Future, pending, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum_core::body::Body;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

pub(super) use self::exchange::{Outcome, exchange};
use self::place::Freed;
use super::{ClientOptions, connect::Stream as Io, pool::Found};

/// The HTTP/2 connections to one backend.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// Whether HTTP/2 is to be spoken at all.
    enabled: bool,
    open: Arc<Mutex<Vec<Shared>>>,
    /// Held while a connection is made: a burst waits for one, and then sees whether it needs another.
    connecting: tokio::sync::Mutex<()>,
    /// Whether the backend chose HTTP/1.1 the last time that it could choose.
    http1: AtomicBool,
    freed: Arc<Freed>,
    /// How often an open connection is pinged.
    keep_alive: Option<Duration>,
    /// How long a connection may be without a stream.
    idle_timeout: Option<Duration>,
}

/// What a backend that may choose has chosen.
#[derive(Debug)]
pub(super) enum Taken {
    Http2(Stream),
    Http1(Found),
}

/// A connection, and how full it is.
#[derive(Clone, Debug)]
struct Shared {
    sender: SendRequest<Body>,
    load: Arc<Load>,
}

#[derive(Debug)]
struct Load {
    /// How many streams of ours are on the connection.
    streams: AtomicUsize,
    /// When the last one ended, in milliseconds from the start.
    unused: AtomicU64,
    start: Instant,
    /// How many the backend allows; none before it has said.
    most: AtomicUsize,
    /// That it has said so, or that the one who waited for it is gone.
    changed: Notify,
    freed: Arc<Freed>,
    /// Whether the backend offers extended CONNECT, as far as it has said.
    connect: AtomicBool,
    /// Asks the driver to look: it isn't told when the backend's first frame has come.
    asked: Notify,
}

impl Load {
    /// Until the backend has said how many, one stream waits for it: hyper looks at what it has said for a stream's sake.
    fn has_room(&self) -> bool {
        self.streams.load(Ordering::Relaxed) < self.most.load(Ordering::Relaxed).max(1)
    }

    fn begin(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.unused.store(elapsed, Ordering::Relaxed);
        // Whoever sees that it was the last one sees when it was.
        self.streams.fetch_sub(1, Ordering::Release);
    }

    /// Since when there's no stream; `None`: there is one.
    fn unused_since(&self) -> Option<Instant> {
        let unused = self.streams.load(Ordering::Acquire) == 0;
        unused.then(|| self.start + Duration::from_millis(self.unused.load(Ordering::Relaxed)))
    }

    fn allow(&self, most: usize) {
        let before = self.most.swap(most, Ordering::Relaxed);
        if before == 0 && most > 0 {
            self.changed.notify_waiters();
        }
        if before < most {
            self.freed.tell();
        }
    }
}

/// A place on a connection, until it's dropped.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) sender: SendRequest<Body>,
    load: Arc<Load>,
}

/// How long a backend may take to introduce itself.
const FIRST_FRAME: Duration = Duration::from_secs(1);

/// How often it's looked whether it has.
const LOOKS: u32 = 100;

/// What an idle timeout is at the least: in between, the timer has nothing to do.
const SHORTEST: Duration = Duration::from_millis(10);

impl Connections {
    /// Takes a place on the first connection that has one.
    fn take(&self) -> Option<Stream> {
        let mut open = self.lock();
        open.retain(|shared| !shared.sender.is_closed());
        open.iter().find_map(Shared::take)
    }

    pub(super) fn new(options: &ClientOptions) -> Self {
        let (keep_alive, idle_timeout) = (options.http2_keep_alive, options.pool_idle_timeout);
        Self { enabled: options.http2, keep_alive, idle_timeout, ..Self::default() }
    }

    pub(super) fn are_http1(&self) -> bool {
        self.http1.load(Ordering::Relaxed)
    }

    fn set_http1(&self, http1: bool) {
        self.http1.store(http1, Ordering::Relaxed);
    }

    /// Waits for what the backend says of a new connection that it hasn't said yet. `false`: there is none such.
    async fn settled(&self) -> bool {
        let unsettled = self.lock().iter().find(|shared| shared.load.most.load(Ordering::Relaxed) == 0).cloned();
        let Some(Shared { load, .. }) = unsettled else { return false };
        let mut changed = pin!(load.changed.notified());
        changed.as_mut().enable();
        if load.most.load(Ordering::Relaxed) == 0 && !load.has_room() {
            changed.await;
        }
        true
    }

    /// Makes a connection of a stream, and takes a place on it.
    async fn open(&self, io: Io) -> hyper::Result<Stream> {
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .adaptive_window(true)
            // The backend's SETTINGS are the first that it sends (RFC 9113, section 3.4): how many, it says at once.
            .initial_max_send_streams(0)
            .keep_alive_interval(self.keep_alive)
            .keep_alive_while_idle(true)
            .handshake(io)
            .await?;
        let load = Arc::new(Load {
            streams: AtomicUsize::new(1),
            unused: AtomicU64::new(0),
            start: Instant::now(),
            most: AtomicUsize::new(0),
            changed: Notify::new(),
            freed: self.freed.clone(),
            connect: AtomicBool::new(false),
            asked: Notify::new(),
        });
        self.lock().push(Shared { sender: sender.clone(), load: load.clone() });
        let told = load.clone();
        let forget = forget_unused(Arc::downgrade(&self.open), load.clone(), self.idle_timeout);
        tokio::spawn(async move {
            let over = {
                let (mut driver, mut asked) = (pin!(driver), pin!(told.asked.notified()));
                let mut forget = pin!(forget);
                let over = poll_fn(|cx| {
                    let _ = forget.as_mut().poll(cx);
                    while asked.as_mut().poll(cx).is_ready() {
                        asked.set(told.asked.notified());
                    }
                    let over = driver.as_mut().poll(cx);
                    told.allow(driver.current_max_send_streams());
                    told.connect.store(driver.is_extended_connect_protocol_enabled(), Ordering::Relaxed);
                    over
                });
                over.await
            };
            // It's closed by now: nobody waits for what it would have said.
            told.allow(usize::MAX);
            if let Err(error) = over {
                tracing::debug!(target: "tower_reverse_proxy", %error, "an HTTP/2 connection broke off");
            }
        });
        Ok(Stream { sender, load })
    }

    /// Something has come back that those may need who wait for it.
    pub(super) fn tell_freed(&self) {
        if self.enabled {
            self.freed.tell();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Shared>> {
        lock(&self.open)
    }
}

fn lock(open: &Mutex<Vec<Shared>>) -> MutexGuard<'_, Vec<Shared>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets a connection that has had no stream for so long; then it's never ready. Forgotten, it closes by itself, as soon as
/// nothing is under way on it.
async fn forget_unused(open: Weak<Mutex<Vec<Shared>>>, load: Arc<Load>, timeout: Option<Duration>) {
    let Some(timeout) = timeout else { return pending().await };
    let timeout = timeout.max(SHORTEST);
    let mut due = load.start + timeout;
    loop {
        sleep_until(due).await;
        let Some(open) = open.upgrade() else { break };
        // Nobody opens a stream meanwhile.
        let mut open = lock(&open);
        let now = Instant::now();
        due = load.unused_since().unwrap_or(now) + timeout;
        if due <= now {
            open.retain(|shared| !Arc::ptr_eq(&shared.load, &load));
            break;
        }
    }
    pending::<()>().await;
}

impl Shared {
    fn take(&self) -> Option<Stream> {
        // Only ever raised under the lock of the list.
        if !self.load.has_room() {
            return None;
        }
        self.load.begin();
        Some(Stream { sender: self.sender.clone(), load: self.load.clone() })
    }
}

impl Stream {
    /// Whether the connection can carry a WebSocket.
    ///
    /// A backend says so in its first frame, which may not have come yet. It never says that it doesn't.
    pub(super) async fn can_connect(&self) -> bool {
        for _ in 0..LOOKS {
            if self.load.connect.load(Ordering::Relaxed) {
                return true;
            }
            self.load.asked.notify_one();
            sleep(FIRST_FRAME / LOOKS).await;
        }
        false
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.load.end();
        if self.load.most.load(Ordering::Relaxed) == 0 {
            self.load.changed.notify_waiters();
        }
        self.load.freed.tell();
    }
}
