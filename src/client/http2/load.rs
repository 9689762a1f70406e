//! What is known of one HTTP/2 connection: how full it is, what the backend has set, and whether it's of use.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum_core::BoxError;
use h2::Reason;
use tokio::{sync::Notify, time::Instant};

use super::{
    config::{AnswerLimit, Windows},
    frames::{Frames, Peer},
    place::Freed,
    unread::{Reach, Unread},
};

/// One connection, as its streams, its driver and its reads share it.
#[derive(Debug)]
pub(super) struct Load {
    /// How many streams of ours are on the connection.
    streams: AtomicUsize,
    /// When the last one ended, in milliseconds from the start.
    unused: AtomicU64,
    pub(super) start: Instant,
    /// How many there may be; none before the backend's SETTINGS have come.
    most: AtomicUsize,
    pub(super) windows: Windows,
    /// The answers that are read.
    pub(super) unread: Unread,
    /// How often something has been read.
    pub(super) reads: AtomicU64,
    /// Whether a stream has waited for its answer for long, and nothing at all was read meanwhile. Before something is, no stream
    /// is opened, unless there can't be another connection.
    pub(super) is_silent: AtomicBool,
    /// Whether h2 is about to end the connection. The streams that are open go on as long as they can.
    is_retired: AtomicBool,
    /// Signals that the SETTINGS have come.
    changed: Notify,
    /// Signals that the connection has become unused where HTTP/1.1 requests wait for what unused ones have.
    pub(super) wanted: Notify,
    pub(super) freed: Arc<Freed>,
    /// How large a request's head the backend takes, if it has set that; else [`u32::MAX`].
    max_head: AtomicU32,
    answers: AnswerLimit,
    /// Whether the head of an answer has come that may be larger than allowed.
    has_large_head: AtomicBool,
    /// Why the backend ends the connection: the code of its GOAWAY. Before that, [`u32::MAX`].
    goes_for: AtomicU32,
    /// How many SETTINGS frames the backend has sent. With `most` but without any, it has closed, or doesn't speak HTTP/2.
    settings: AtomicU32,
    /// Whether the backend offers extended CONNECT. Final with the first SETTINGS (RFC 8441, section 3).
    pub(super) connect: AtomicBool,
    /// Wakes the driver when SETTINGS have been applied, which hyper doesn't.
    pub(super) applied: Notify,
}

/// Why a connection failed whose backend sent no SETTINGS.
const NOT_HTTP2: &str = "the backend doesn't seem to speak HTTP/2: it closed the connection, or answered, without sending \
                         SETTINGS. `http2(true)` needs prior knowledge that an `http://` or Unix-socket backend speaks it; \
                         leave it out for HTTP/1.1, or write an `https://` origin, where the backend chooses";

/// How many empty DATA frames a connection may have had and still get requests. h2 ends it at more than 100.
const EMPTY_FRAMES: usize = 50;

impl Load {
    pub(super) fn new(freed: Arc<Freed>, windows: Windows, answers: AnswerLimit) -> Self {
        Self {
            streams: AtomicUsize::new(1),
            unused: AtomicU64::new(0),
            start: Instant::now(),
            most: AtomicUsize::new(0),
            windows,
            unread: Unread::new(windows.stream),
            reads: AtomicU64::new(0),
            is_silent: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            changed: Notify::new(),
            wanted: Notify::new(),
            freed,
            max_head: AtomicU32::new(u32::MAX),
            answers,
            has_large_head: AtomicBool::new(false),
            goes_for: AtomicU32::new(u32::MAX),
            settings: AtomicU32::new(0),
            connect: AtomicBool::new(false),
            applied: Notify::new(),
        }
    }

    /// Takes over what the backend has set.
    pub(super) fn settle(&self, peer: Peer) {
        let max_head = peer.max_header_list_size.map_or(u32::MAX, |size| size.min(u32::MAX - 1));
        self.max_head.store(max_head, Ordering::Relaxed);
        self.settings.store(peer.frames, Ordering::Relaxed);
        self.applied.notify_one();
    }

    /// Waits for the backend's SETTINGS.
    ///
    /// # Errors
    ///
    /// It has closed the connection, or answered with something else than SETTINGS.
    pub(super) async fn settled(&self) -> Result<(), BoxError> {
        while self.most.load(Ordering::Acquire) == 0 {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.most.load(Ordering::Acquire) == 0 {
                changed.await;
            }
        }
        if self.settings.load(Ordering::Relaxed) == 0 { Err(NOT_HTTP2.into()) } else { Ok(()) }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.is_silent.load(Ordering::Relaxed) && self.has_stream()
    }

    /// Whether the backend allows one more stream.
    pub(super) fn has_stream(&self) -> bool {
        self.streams.load(Ordering::Relaxed) < self.most.load(Ordering::Relaxed)
    }

    /// Whether no more streams are to come: the connection is retired, or the peer may be frozen, and there's no stream that could
    /// show that it isn't.
    pub(super) fn is_lost(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
            || self.is_silent.load(Ordering::Relaxed) && self.streams.load(Ordering::Relaxed) == 0
    }

    /// Takes over what shows in the frames and hyper doesn't show.
    pub(super) fn watch(&self, frames: &mut Frames) {
        // Compressed, and without what a field counts beside its text, it's up to eight times smaller.
        if frames.largest_block() > self.answers.bytes / 8 {
            self.has_large_head.store(true, Ordering::Relaxed);
        }
        if let Some(code) = frames.peer().goes_for {
            self.goes_for.store(code, Ordering::Relaxed);
        }
        if frames.empty() > EMPTY_FRAMES {
            self.retire();
        }
    }

    /// Makes room in h2, which is charged for small frames.
    pub(super) fn make_room(&self, frames: &mut Frames) {
        let most = 4 * self.windows.allowance();
        self.unread.read_ahead(Reach::Bounded);
        frames.release(self.unread.released());
        if frames.charged() > most {
            self.unread.read_ahead(Reach::All);
            frames.release(self.unread.released());
        }
        // Frames that came on streams after their reset: h2 never takes these charges back.
        if frames.charged() > most {
            self.retire();
        }
    }

    /// Keeps further requests off the connection: h2 will end it.
    fn retire(&self) {
        if !self.is_retired.swap(true, Ordering::Relaxed) {
            self.freed.tell();
        }
    }

    /// Something has been read.
    pub(super) fn hear(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.is_silent.load(Ordering::Relaxed) {
            self.is_silent.store(false, Ordering::Relaxed);
            self.freed.tell();
        }
    }

    /// How large a request's head the backend takes, if it has said so.
    pub(super) fn max_head(&self) -> Option<usize> {
        let max_head = self.max_head.load(Ordering::Relaxed);
        (max_head != u32::MAX).then_some(max_head as usize)
    }

    pub(super) fn begin(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.unused.store(elapsed, Ordering::Relaxed);
        // Ordered, so that a reader that sees the last stream end sees its time, too.
        self.streams.fetch_sub(1, Ordering::SeqCst);
    }

    /// Since when there's no stream; `None`: there is one.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        let unused = self.streams.load(Ordering::SeqCst) == 0;
        unused.then(|| self.start + Duration::from_millis(self.unused.load(Ordering::Relaxed)))
    }

    pub(super) fn allow(&self, most: usize) {
        let most = most.min(self.windows.capacity());
        let before = self.most.swap(most, Ordering::Release);
        if before == 0 && most > 0 {
            self.changed.notify_waiters();
        }
        if before < most {
            self.freed.tell();
        }
    }

    /// Whether the backend ends the connection because a request was too much for it. On a connection of its own, that's for its
    /// head.
    pub(super) fn is_overwhelmed(&self) -> bool {
        self.goes_for.load(Ordering::Relaxed) == u32::from(Reason::ENHANCE_YOUR_CALM)
    }

    /// Whether the head of an answer has come that may be too large, since this was asked last. h2 doesn't tell why it refuses one.
    pub(super) fn has_had_large_head(&self) -> bool {
        self.has_large_head.swap(false, Ordering::Relaxed)
    }
}
