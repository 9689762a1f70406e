//! How far the request's body has come, told by the body to those who await the response.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::error::Error;

/// Whose turn it is, and since when: one word, written by one side and read by the other.
#[derive(Debug)]
pub(super) struct Upload {
    start: Instant,
    /// Milliseconds since `start`, shifted by two, and the [`Turn`].
    state: AtomicU64,
    /// What the body failed with. The HTTP stack doesn't always hand it on, and what it says instead blames the backend.
    failure: OnceLock<Error>,
}

/// Who has to do something next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The client: the body waits for its next frame.
    Client = 0,
    /// The backend: it was given a frame and hasn't asked for more.
    Backend = 1,
    /// The backend: it was given everything, or wants no more.
    Done = 2,
}

impl Upload {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), state: AtomicU64::new(Turn::Backend as u64), failure: OnceLock::new() }
    }

    /// Keeps what the body failed with.
    pub(super) fn fail(&self, error: &Error) {
        let _ = self.failure.set(error.clone());
    }

    /// Returns what the body failed with, in place of what came of it.
    pub(super) fn cause_of(&self, consequence: Error) -> Error {
        self.failure.get().cloned().unwrap_or(consequence)
    }

    pub(super) fn set(&self, turn: Turn) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX >> 2);
        self.state.store((elapsed << 2) | turn as u64, Ordering::Release);
    }

    /// Returns whose turn it is, and since when.
    pub(super) fn turn(&self) -> (Turn, Instant) {
        let state = self.state.load(Ordering::Acquire);
        let turn = match state & 3 {
            0 => Turn::Client,
            1 => Turn::Backend,
            _ => Turn::Done,
        };
        (turn, self.start + Duration::from_millis(state >> 2))
    }
}
