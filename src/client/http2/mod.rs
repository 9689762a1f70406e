//! HTTP/2 to one backend: requests share connections, each of which has a task of its own, as many as their streams need.

mod body;
mod connection;
mod convert;
mod exchange;
mod head;
mod options;
mod place;
mod pool;
mod stream;
mod websocket;

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

pub(crate) use self::options::{KeepAlive, Windows};
pub(super) use self::{
    body::Body,
    exchange::{Outcome, exchange},
    stream::Stream,
};
use self::{
    connection::Observer,
    options::{Options, ResponseHeadLimit},
    place::Freed,
    pool::Pool,
};
use super::{ClientOptions, dispatch::Checkout};

/// The HTTP/2 connections to one backend, and what waits for them.
#[derive(Debug)]
pub(super) struct Connections {
    /// Whether HTTP/2 is to be spoken at all.
    enabled: bool,
    open: Arc<Pool>,
    /// Held by the first of those that wait for a place.
    turn: tokio::sync::Mutex<()>,
    /// Held while a connection is made: a burst waits for one, and then sees whether it needs another.
    connecting: tokio::sync::Mutex<()>,
    /// Whether the backend chose HTTP/1.1 the last time that it could choose.
    http1: AtomicBool,
    freed: Arc<Freed>,
}

/// What a backend that may choose has chosen.
#[derive(Debug)]
pub(super) enum Taken {
    Http2(Stream),
    Http1(Checkout),
}

impl Connections {
    pub(super) fn new(options: &ClientOptions) -> Self {
        let open = Pool::new(Options {
            windows: options.http2_windows,
            keep_alive: options.http2_keep_alive,
            max_request_head: options.http2_max_request_head,
            max_response_head: ResponseHeadLimit {
                bytes: options.max_response_head,
                fields: options.max_response_fields,
            },
            idle_timeout: options.pool_idle_timeout,
        });
        Self {
            enabled: options.http2,
            freed: Arc::new(Freed::new(open.clone())),
            open,
            turn: tokio::sync::Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            http1: AtomicBool::new(false),
        }
    }

    /// Forgets a connection that has no stream, if there is one: another is wanted in its place.
    pub(super) fn forget_one_unused(&self) {
        self.open.remove_unused();
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

    /// Something has come back that those may need who wait for it.
    pub(super) fn tell_freed(&self) {
        if self.enabled {
            self.freed.tell();
        }
    }

    fn observer(&self) -> Weak<dyn Observer> {
        Arc::downgrade(&self.freed) as _
    }
}
