//! HTTP/2 connections to one backend: shared by all requests, each driven by a task of its own, as many as streams need.

mod config;
mod exchange;
mod frames;
mod head;
mod inspect;
mod load;
mod place;
mod unread;
mod websocket;

use std::{
    future::{Future, pending, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum_core::{BoxError, body::Body};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{Instant, timeout_at};

pub(crate) use self::config::{KeepAlive, Windows};
use self::{
    config::{AnswerLimit, PONG},
    head::{HeadLimit, Share},
    inspect::Inspected,
    load::Load,
    place::Freed,
};
pub(super) use self::{
    exchange::{Outcome, exchange},
    unread::Reader,
};
use super::{ClientOptions, connect::Stream as Io, dispatch::Checkout};
use crate::observe;

/// The HTTP/2 connections to one backend.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// Whether HTTP/2 is to be spoken at all.
    enabled: bool,
    open: Arc<Mutex<Vec<Shared>>>,
    /// Held by the first of those that wait for a place.
    turn: tokio::sync::Mutex<()>,
    /// Held while a connection is made: a burst waits for one, and then sees whether it needs another.
    connecting: tokio::sync::Mutex<()>,
    /// Whether the backend chose HTTP/1.1 the last time that it could choose.
    http1: AtomicBool,
    /// Whether the backend's last SETTINGS were without extended CONNECT: its WebSockets are HTTP/1.1's.
    lacks_connect: AtomicBool,
    freed: Arc<Freed>,
    heads: HeadLimit,
    answers: AnswerLimit,
    windows: Windows,
    keep_alive: KeepAlive,
    /// How long a connection may be without a stream.
    idle_timeout: Option<Duration>,
}

/// What a backend that may choose has chosen.
#[derive(Debug)]
pub(super) enum Taken {
    Http2(Stream),
    Http1(Checkout),
}

/// A connection, and how full it is.
#[derive(Clone, Debug)]
struct Shared {
    sender: SendRequest<Body>,
    load: Arc<Load>,
}

/// A place on a connection, until it's dropped.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) sender: SendRequest<Body>,
    load: Arc<Load>,
    share: Share,
    began: Instant,
    /// How often something had been read by then.
    reads: u64,
    /// Whether the request came to something: an answer, or an error.
    is_answered: bool,
}

/// How long a stream may wait for its answer, with nothing read on its connection, and be cancelled without that the connection
/// is taken for frozen. Below it, clients that leave early would cost connections.
const SILENCE: Duration = Duration::from_secs(1);

/// What an idle timeout is at the least: in between, the timer has nothing to do.
const SHORTEST: Duration = Duration::from_millis(10);

impl Connections {
    /// Takes a place on the first connection that has one.
    fn take(&self) -> Option<Stream> {
        self.take_if(Load::has_room)
    }

    /// Takes a place on the first connection that has one, even if that may be frozen. The streams that it has will show it.
    fn take_silent(&self) -> Option<Stream> {
        self.take_if(Load::has_stream)
    }

    fn take_if(&self, has_room: impl Fn(&Load) -> bool) -> Option<Stream> {
        let mut open = self.lock();
        open.retain(|shared| !shared.sender.is_closed() && !shared.load.is_lost());
        // Only ever raised under the lock of the list.
        let shared = open.iter().find(|shared| has_room(&shared.load))?;
        shared.load.begin();
        Some(shared.clone().stream())
    }

    pub(super) fn new(options: &ClientOptions) -> Self {
        Self {
            enabled: options.http2,
            heads: HeadLimit::new(options.http2_max_request_head),
            answers: AnswerLimit { bytes: options.max_response_head, fields: options.max_response_fields },
            windows: options.http2_windows,
            keep_alive: options.http2_keep_alive,
            idle_timeout: options.pool_idle_timeout,
            ..Self::default()
        }
    }

    /// Forgets a connection that has no stream, if there is one: another is wanted in its place.
    pub(super) fn forget_one_unused(&self) {
        let mut open = self.lock();
        let unused = open.iter().position(|shared| shared.load.unused_since().is_some());
        let unused = unused.map(|unused| open.remove(unused));
        drop(open);
        drop(unused);
    }

    /// Sets whether HTTP/1.1 requests wait for what unused connections have; returns that.
    pub(super) fn want_unused(&self, are_wanted: bool) -> bool {
        let are_wanted = self.enabled && are_wanted;
        if self.enabled {
            // Before the unused are looked for: a connection becomes unused before it's seen whether it's wanted.
            self.freed.is_unused_wanted.store(are_wanted, Ordering::SeqCst);
        }
        are_wanted
    }

    pub(super) fn are_http1(&self) -> bool {
        self.http1.load(Ordering::Relaxed)
    }

    fn set_http1(&self, http1: bool) {
        self.http1.store(http1, Ordering::Relaxed);
    }

    /// Whether the backend is known to have no extended CONNECT.
    fn lacks_connect(&self) -> bool {
        self.lacks_connect.load(Ordering::Relaxed)
    }

    /// Makes a connection of a stream, and takes a place on it; requests that may not share it don't find it. It's made when the
    /// backend's SETTINGS have come.
    async fn open(&self, io: Io, share: Share) -> Result<Stream, BoxError> {
        let load = Arc::new(Load::new(self.freed.clone(), self.windows, self.answers));
        let io = TokioIo::new(Inspected::new(TokioIo::new(io), load.clone()));
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            // Fixed: adaptive windows leave the connection's at 64 KiB, and half of it is what h2 allows small frames to cost.
            .initial_connection_window_size(self.windows.connection)
            .initial_stream_window_size(self.windows.stream)
            .max_header_list_size(u32::try_from(self.answers.bytes).unwrap_or(u32::MAX))
            // What comes late on a stream that a client has left is expected. Forgotten, it would count as an error of the
            // connection, which ends with too many of them.
            .max_concurrent_reset_streams(1024)
            // The backend's SETTINGS are the first that it sends (RFC 9113, section 3.4): how many, it says at once.
            .initial_max_send_streams(0)
            .keep_alive_interval(self.keep_alive.interval)
            .keep_alive_timeout(PONG)
            .keep_alive_while_idle(self.keep_alive.while_idle)
            .handshake(io)
            .await?;
        let observed = load.clone();
        let forget = forget_unused(Arc::downgrade(&self.open), load.clone(), self.idle_timeout);
        tokio::spawn(async move {
            let over = {
                let (mut driver, mut applied) = (pin!(driver), pin!(observed.applied.notified()));
                let mut forget = pin!(forget);
                let over = poll_fn(|cx| {
                    let _ = forget.as_mut().poll(cx);
                    while applied.as_mut().poll(cx).is_ready() {
                        applied.set(observed.applied.notified());
                    }
                    let over = driver.as_mut().poll(cx);
                    // Before the number, which says that this is final.
                    observed.connect.store(driver.is_extended_connect_protocol_enabled(), Ordering::Relaxed);
                    observed.allow(driver.current_max_send_streams());
                    over
                });
                over.await
            };
            // It's closed, so no request has to wait for its SETTINGS.
            observed.allow(usize::MAX);
            if let Err(error) = over {
                observe::broken_connection(&error);
            }
        });
        load.settled().await?;
        self.lacks_connect.store(!load.connect.load(Ordering::Relaxed), Ordering::Relaxed);
        let shared = Shared { sender, load };
        if share == Share::Shared {
            self.lock().push(shared.clone());
        }
        let mut stream = shared.stream();
        stream.share = share;
        Ok(stream)
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

/// Forgets a connection that has had no stream for so long, or has none when its place is wanted; then it's never ready.
/// Forgotten, it closes by itself, as soon as nothing is under way on it.
async fn forget_unused(open: Weak<Mutex<Vec<Shared>>>, load: Arc<Load>, timeout: Option<Duration>) {
    let timeout = timeout.map(|timeout| timeout.max(SHORTEST));
    let mut due = timeout.map(|timeout| load.start + timeout);
    loop {
        let is_wanted = match due {
            Some(due) => timeout_at(due, load.wanted.notified()).await.is_ok(),
            None => {
                load.wanted.notified().await;
                true
            }
        };
        let Some(open) = open.upgrade() else { break };
        // No stream is opened meanwhile.
        let mut open = lock(&open);
        let (now, unused) = (Instant::now(), load.unused_since());
        due = timeout.map(|timeout| unused.unwrap_or(now) + timeout);
        if unused.is_some() && (is_wanted || due.is_some_and(|due| due <= now)) {
            open.retain(|shared| !Arc::ptr_eq(&shared.load, &load));
            break;
        }
    }
    pending::<()>().await;
}

impl Shared {
    /// A place that is counted already.
    fn stream(self) -> Stream {
        let Self { sender, load } = self;
        let reads = load.reads.load(Ordering::Relaxed);
        Stream { sender, load, share: Share::Shared, began: Instant::now(), reads, is_answered: false }
    }
}

impl Stream {
    /// Whether the connection can carry a WebSocket.
    fn can_connect(&self) -> bool {
        self.load.connect.load(Ordering::Relaxed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let heard_nothing = || self.load.reads.load(Ordering::Relaxed) == self.reads;
        if !self.is_answered && heard_nothing() && self.began.elapsed() >= SILENCE {
            self.load.is_silent.store(true, Ordering::Relaxed);
        }
        self.load.end();
        self.load.freed.tell();
        if self.load.freed.is_unused_wanted.load(Ordering::SeqCst) && self.load.unused_since().is_some() {
            self.load.wanted.notify_one();
        }
    }
}
