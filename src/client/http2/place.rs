//! Waiting for a place on an HTTP/2 connection, where there are as many connections as there may be, or one is being made.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
};

use axum_core::BoxError;
use tokio::sync::{MutexGuard, Notify};

use super::{
    super::{
        connect::Offer,
        dispatch::{Checkout, Dispatcher, Freshness},
        limit::Permit,
    },
    Connections, Taken,
    connection::Observer,
    head::Share,
    pool,
};
use crate::error::Error;

/// What there is for a request.
enum Place<'a> {
    Taken(Taken),
    /// The right to make a connection. The guard goes where others could share it.
    Permitted(Permit, Option<MutexGuard<'a, ()>>),
}

impl Dispatcher {
    /// Takes a place on an HTTP/2 connection, on a new one if the streams of those that are open have run out, or if it's to be
    /// the only one. `freshness` is for a backend that has chosen HTTP/1.1.
    pub(super) async fn take_http2(self: &Arc<Self>, freshness: Freshness, share: Share) -> Result<Taken, Error> {
        if share == Share::Shared
            && !self.http2.freed.is_awaited()
            && let Some(stream) = self.http2.open.take()
        {
            return Ok(Taken::Http2(stream));
        }
        let place = self.in_time(self.place(freshness, share)).await?;
        let (permit, _connecting) = match place {
            Place::Taken(taken) => return Ok(taken),
            Place::Permitted(permit, connecting) => (permit, connecting),
        };
        self.connector
            .connect(Offer::Http2, permit, async |io| {
                let chose_http1 = self.connector.negotiates() && !io.is_http2;
                self.http2.set_http1(chose_http1);
                if chose_http1 {
                    let connection = self.connector.handshake_http1(io).await?;
                    return Ok::<_, BoxError>(Taken::Http1(Checkout { connection, idle: None }));
                }
                Ok(Taken::Http2(self.http2.open.open(io, share, self.http2.observer()).await?))
            })
            .await
    }

    /// Waits for a place, or until it's this one's turn to make one.
    async fn place(self: &Arc<Self>, freshness: Freshness, share: Share) -> Place<'_> {
        let _awaited = self.http2.freed.awaited();
        let _turn = self.http2.turn.lock().await;
        // There's one request at a time here. A permit of `freed` is stored for it as soon as something has changed.
        loop {
            if share == Share::Shared
                && let Some(stream) = self.http2.open.take()
            {
                return Place::Taken(Taken::Http2(stream));
            }
            if self.http2.are_http1()
                && let Some(found) = self.take(freshness)
            {
                return Place::Taken(Taken::Http1(found));
            }
            // A request doesn't wait for a connection that it can't share.
            let is_awaited = share == Share::Shared && !self.http2.are_http1();
            let connecting = if is_awaited { self.http2.connecting.try_lock().ok() } else { None };
            if is_awaited && connecting.is_none() {
                self.http2.freed_or_connected().await;
                continue;
            }
            if let Some(permit) = self.permit() {
                return Place::Permitted(permit, connecting);
            }
            drop(connecting);
            match share {
                Share::Shared => {
                    // One that may be frozen is better than none.
                    if let Some(stream) = self.http2.open.take_silent() {
                        return Place::Taken(Taken::Http2(stream));
                    }
                }
                // An unused one is in the way of one that is needed.
                Share::Alone => self.http2.forget_one_unused(),
            }
            self.http2.freed.notify.notified().await;
        }
    }
}

impl Connections {
    /// Waits until something has come back, or the connection that is being made is there, or has failed.
    async fn freed_or_connected(&self) {
        let (mut freed, mut connected) = (pin!(self.freed.notify.notified()), pin!(self.connecting.lock()));
        poll_fn(|cx| match freed.as_mut().poll(cx).is_ready() || connected.as_mut().poll(cx).is_ready() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

/// That a stream or a connection has ended, where there are as many as there may be.
#[derive(Debug)]
pub(super) struct Freed {
    open: Arc<pool::Pool>,
    notify: Notify,
    /// How many wait for it: it isn't for requests that come after. Who is woken doesn't depend on it.
    waiting: AtomicUsize,
    /// Whether HTTP/1.1 requests wait for what unused connections have.
    pub(super) is_unused_wanted: AtomicBool,
}

impl Freed {
    pub(super) fn new(open: Arc<pool::Pool>) -> Self {
        Self { open, notify: Notify::new(), waiting: AtomicUsize::new(0), is_unused_wanted: AtomicBool::new(false) }
    }

    /// Has the waiter look again. If there's none now, the next one does, once more than it needs.
    pub(super) fn tell(&self) {
        self.notify.notify_one();
    }

    fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn awaited(&self) -> Awaited<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Awaited { freed: self }
    }
}

impl Observer for Freed {
    fn stream_ended(&self, is_unused: bool) {
        self.tell();
        if is_unused && self.is_unused_wanted.load(Ordering::SeqCst) {
            self.open.remove_unused();
        }
    }

    fn capacity_changed(&self) {
        self.tell();
    }
}

struct Awaited<'a> {
    freed: &'a Freed,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.freed.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
