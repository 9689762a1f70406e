//! HTTP/2 connections to one backend: shared by all requests, each driven by a task of its own, as many as streams need.

mod exchange;
mod websocket;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
    time::Duration,
};

use axum_core::body::Body;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::{sync::Notify, time::sleep};

pub(super) use self::exchange::{Outcome, exchange};
use super::{
    ClientOptions,
    connect::{Offer, Stream as Io},
    pool::{Found, Pool, Slot},
};
use crate::error::Error;

/// The HTTP/2 connections to one backend.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// Whether HTTP/2 is to be spoken at all.
    enabled: bool,
    open: Mutex<Vec<Shared>>,
    /// Held while a connection is made: a burst waits for one, and then sees whether it needs another.
    connecting: tokio::sync::Mutex<()>,
    /// Whether the backend chose HTTP/1.1 the last time that it could choose.
    http1: AtomicBool,
    freed: Arc<Freed>,
    /// How often an open connection is pinged.
    keep_alive: Option<Duration>,
}

/// That a stream or a connection has ended, where there are as many as there may be.
#[derive(Debug, Default)]
struct Freed {
    told: Notify,
    /// Whether somebody waits for it: it isn't for who comes after.
    awaited: AtomicBool,
}

impl Freed {
    fn tell(&self) {
        // What was freed shows to who has begun to wait, or that shows here.
        fence(Ordering::SeqCst);
        if self.awaited.load(Ordering::Relaxed) {
            self.told.notify_one();
        }
    }

    fn await_it(&self) -> Awaited<'_> {
        self.awaited.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Awaited { freed: self }
    }
}

struct Awaited<'a> {
    freed: &'a Freed,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.freed.awaited.store(false, Ordering::Relaxed);
    }
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

    fn allow(&self, most: usize) {
        if self.most.swap(most, Ordering::Relaxed) == 0 && most > 0 {
            self.changed.notify_waiters();
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

impl Connections {
    /// Takes a place on the first connection that has one.
    fn take(&self) -> Option<Stream> {
        let mut open = self.lock();
        open.retain(|shared| !shared.sender.is_closed());
        open.iter().find_map(Shared::take)
    }

    pub(super) fn new(options: &ClientOptions) -> Self {
        Self { enabled: options.http2, keep_alive: options.http2_keep_alive, ..Self::default() }
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
            most: AtomicUsize::new(0),
            changed: Notify::new(),
            freed: self.freed.clone(),
            connect: AtomicBool::new(false),
            asked: Notify::new(),
        });
        self.lock().push(Shared { sender: sender.clone(), load: load.clone() });
        let told = load.clone();
        tokio::spawn(async move {
            let over = {
                let (mut driver, mut asked) = (pin!(driver), pin!(told.asked.notified()));
                let over = poll_fn(|cx| {
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
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there is for a request.
enum Place<'a> {
    Taken(Taken),
    /// The right to make a connection. The guard goes where others could share it.
    Slot(Slot, Option<tokio::sync::MutexGuard<'a, ()>>),
}

impl Pool {
    /// Takes a place on an HTTP/2 connection, on a new one if the streams of those that are open have run out.
    async fn take_http2(self: &Arc<Self>) -> Result<Taken, Error> {
        if !self.http2.freed.awaited.load(Ordering::Relaxed)
            && let Some(stream) = self.http2.take()
        {
            return Ok(Taken::Http2(stream));
        }
        let place = self.in_time(self.place()).await?;
        let (slot, _connecting) = match place {
            Place::Taken(taken) => return Ok(taken),
            Place::Slot(slot, connecting) => (slot, connecting),
        };
        self.connector
            .connect(Offer::Http2, slot, async |io| {
                let chose_http1 = self.connector.negotiates() && !io.is_http2;
                self.http2.set_http1(chose_http1);
                if chose_http1 {
                    let connection = self.connector.handshake_http1(io).await?;
                    return Ok(Taken::Http1(Found { connection, reused: false }));
                }
                Ok(Taken::Http2(self.http2.open(io).await?))
            })
            .await
    }

    /// Waits for a place, or until it's this one's turn to make one.
    async fn place(self: &Arc<Self>) -> Place<'_> {
        let connecting = self.http2.connecting.lock().await;
        let mut awaited = None;
        loop {
            if let Some(stream) = self.http2.take() {
                return Place::Taken(Taken::Http2(stream));
            }
            // A connection that was just made may have room for more.
            if self.http2.settled().await {
                continue;
            }
            if self.http2.are_http1()
                && let Some(found) = self.take()
            {
                return Place::Taken(Taken::Http1(found));
            }
            if let Some(slot) = self.slot() {
                // Nobody waits for a connection that it can't share.
                return Place::Slot(slot, (!self.http2.are_http1()).then_some(connecting));
            }
            match awaited {
                // And look once more: it may just have happened.
                None => awaited = Some(self.http2.freed.await_it()),
                Some(_) => self.http2.freed.told.notified().await,
            }
        }
    }
}

impl Shared {
    fn take(&self) -> Option<Stream> {
        // Only ever raised under the lock of the list.
        if !self.load.has_room() {
            return None;
        }
        self.load.streams.fetch_add(1, Ordering::Relaxed);
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
        self.load.streams.fetch_sub(1, Ordering::Relaxed);
        if self.load.most.load(Ordering::Relaxed) == 0 {
            self.load.changed.notify_waiters();
        }
        self.load.freed.tell();
    }
}
