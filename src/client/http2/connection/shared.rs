//! The state of a connection that its requests, its task and its reads share.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use axum_core::BoxError;
use tokio::{sync::Notify, time::Instant};

use super::{
    super::{
        head::HeadLimit,
        options::{Options, ResponseHeadLimit, Windows},
    },
    frames::{BackendSettings, Frames},
    state::{Admission, State},
    unread::{Reach, Responses},
};

/// An HTTP/2 connection.
///
/// Its lock is never held while a task is woken, an observer is notified, or something is dropped.
pub(in super::super) struct Connection {
    state: Mutex<State>,
    pub(super) windows: Windows,
    pub(in super::super) max_response_head: ResponseHeadLimit,
    /// Which heads of requests the backend accepts.
    pub(in super::super) heads: Arc<HeadLimit>,
    responses: Responses,
    /// Signals that the connection is open, or closed.
    opened: Notify,
    /// Wakes the connection's task when h2 has applied SETTINGS, because hyper doesn't.
    pub(super) applied: Notify,
    observer: Weak<dyn Observer>,
}

/// Serves the requests that wait for streams and permits. It's called without a lock.
pub(in super::super::super) trait Observer: Send + Sync {
    /// A stream has ended; or a connection may carry more streams than before, or has been retired or closed, so that
    /// another one is needed.
    fn capacity_changed(self: Arc<Self>);
}

/// Why a connection failed on which the backend sent no SETTINGS.
const NOT_HTTP2: &str = "the backend doesn't seem to speak HTTP/2: it closed the connection, or answered, without sending \
                         SETTINGS. `http2(true)` needs prior knowledge that an `http://` or Unix-socket backend speaks it; \
                         leave it out for HTTP/1.1, or write an `https://` origin, where the backend chooses";

impl Connection {
    /// A connection that is opened for one request, whose stream it counts.
    pub(in super::super) fn opening(options: &Options, heads: Arc<HeadLimit>, observer: Weak<dyn Observer>) -> Self {
        Self {
            state: Mutex::new(State::opening(Instant::now())),
            windows: options.windows,
            max_response_head: options.max_response_head,
            heads,
            responses: Responses::new(options.windows.stream),
            opened: Notify::new(),
            applied: Notify::new(),
            observer,
        }
    }

    /// Waits until the backend's SETTINGS have been applied.
    ///
    /// # Errors
    ///
    /// The backend has closed the connection, or sent something else than SETTINGS.
    pub(in super::super) async fn opened(&self) -> Result<Admission, BoxError> {
        loop {
            let mut opened = pin!(self.opened.notified());
            opened.as_mut().enable();
            let (is_opened, admission) = {
                let state = self.lock();
                (state.is_opened(), state.admission())
            };
            match is_opened {
                Some(true) => return Ok(admission),
                Some(false) => return Err(NOT_HTTP2.into()),
                None => opened.await,
            }
        }
    }

    /// Counts a stream, if the connection takes one. With `even_silent`, it may be frozen.
    pub(in super::super) fn begin_stream(&self, even_silent: bool) -> Option<Admission> {
        self.lock().begin_stream(even_silent)
    }

    /// Ends a stream that waited so long without a response, or got one (`None`).
    pub(in super::super) fn end_stream(&self, admission: Admission, waited: Option<Duration>) {
        let now = Instant::now();
        self.lock().end_stream(admission, waited, now);
        self.notify();
    }

    /// Returns whether the connection never takes a request again.
    pub(in super::super) fn is_lost(&self) -> bool {
        self.lock().is_lost()
    }

    /// Returns since when there has been no stream; `None` if there is one.
    pub(in super::super) fn unused_since(&self) -> Option<Instant> {
        self.lock().unused_since()
    }

    /// Returns whether the backend offers extended CONNECT, which carries WebSockets.
    pub(in super::super) fn can_connect(&self) -> bool {
        self.lock().can_connect()
    }

    /// Returns whether the backend ended the connection because a request was too much for it.
    pub(in super::super) fn is_overwhelmed(&self) -> bool {
        self.lock().is_overwhelmed()
    }

    /// Returns whether the head of a response has come that may be larger than allowed, since the last call.
    pub(in super::super) fn take_large_head(&self) -> bool {
        self.lock().take_large_head()
    }

    /// Returns the responses that are being read.
    pub(in super::super) fn responses(&self) -> &Responses {
        &self.responses
    }

    /// Records SETTINGS of the backend, which h2 has applied.
    pub(super) fn set(&self, peer: BackendSettings) {
        self.lock().set(peer);
        self.applied.notify_one();
    }

    /// Sets how many streams the backend allows, and whether it offers extended CONNECT.
    pub(super) fn allow(&self, max_streams: usize, can_connect: bool) {
        let has_more = self.lock().allow(max_streams.min(self.windows.max_streams()), can_connect);
        if has_more {
            self.opened.notify_waiters();
            self.notify();
        }
    }

    /// The connection's task has ended.
    pub(super) fn close(&self) {
        self.lock().close();
        self.opened.notify_waiters();
        self.notify();
    }

    /// Records what was read.
    pub(super) fn read(&self, frames: &mut Frames) {
        let (block, goaway) = (frames.largest_block(), frames.peer().goaway);
        let mut state = self.lock();
        let mut is_changed = state.read();
        if self.max_response_head.may_be_exceeded(block) {
            state.large_head();
        }
        if let Some(code) = goaway {
            state.goaway(code);
        }
        if frames.charges().has_many_empty() {
            is_changed |= state.retire();
        }
        drop(state);
        if is_changed {
            self.notify();
        }
    }

    /// Reads ahead if h2 has been charged much for small frames. Returns whether it did.
    pub(super) fn make_room(&self, frames: &mut Frames) -> bool {
        let (windows, charges) = (self.windows, frames.charges());
        if !charges.is_due(windows) {
            return false;
        }
        charges.release(self.responses.read_ahead(Reach::Bounded));
        if charges.is_high(windows) {
            charges.release(self.responses.read_ahead(Reach::All));
        }
        // The rest was charged for streams after their reset, and h2 never takes it back.
        if charges.is_high(windows) && self.lock().retire() {
            self.notify();
        }
        true
    }

    fn notify(&self) {
        if let Some(observer) = self.observer.upgrade() {
            observer.capacity_changed();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("state", &self.state).finish_non_exhaustive()
    }
}
