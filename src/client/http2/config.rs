//! How HTTP/2 connections to a backend are made.

use std::time::Duration;

/// How large the head of an answer may be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AnswerLimit {
    pub(super) bytes: usize,
    pub(super) fields: usize,
}

/// How often an open connection is pinged, and whether also while no stream is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeepAlive {
    pub(crate) interval: Option<Duration>,
    pub(crate) while_idle: bool,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { interval: Some(Duration::from_secs(20)), while_idle: false }
    }
}

/// How long a ping may go unanswered.
pub(super) const PONG: Duration = Duration::from_secs(20);

/// How much a backend may send before it's read (RFC 9113, section 5.2), in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    pub(crate) connection: u32,
    pub(crate) stream: u32,
}

impl Default for Windows {
    fn default() -> Self {
        Self { connection: 16 << 20, stream: 256 << 10 }
    }
}

impl Windows {
    /// How many streams can be full before the connection is.
    pub(super) fn capacity(self) -> usize {
        (self.connection / self.stream.max(1)).max(1) as usize
    }

    /// How much small frames may be charged before it's read ahead: an eighth of what h2 allows.
    pub(super) fn allowance(self) -> usize {
        (self.connection as usize / 16).max(1024)
    }
}
