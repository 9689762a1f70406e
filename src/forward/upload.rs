//! How far the request's body has come, told by the body to those who await the response, and by the response to the body.

use std::{
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::Context,
    time::Duration,
};

use http::Version;
use tokio::time::Instant;

use super::confirm::Confirmation;
use crate::error::Error;

/// Whose turn it is, and since when: one word, written by one side and read by the other.
#[derive(Debug)]
pub(super) struct Upload {
    start: Instant,
    /// Milliseconds since `start`, shifted by two, and the [`Turn`].
    state: AtomicU64,
    /// Milliseconds from `start` to the last frame of the response, and one more. 0: its head isn't through.
    answered: AtomicU64,
    /// What the body failed with. The HTTP stack doesn't always hand it on, and what it says instead blames the backend.
    failure: OnceLock<Error>,
    /// Of an HTTP/2 client's upload.
    confirmation: Option<Confirmation>,
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
    /// `version` is the client's.
    pub(super) fn new(version: Version) -> Self {
        Self {
            start: Instant::now(),
            state: AtomicU64::new(Turn::Backend as u64),
            answered: AtomicU64::new(0),
            failure: OnceLock::new(),
            confirmation: (version == Version::HTTP_2).then(Confirmation::default),
        }
    }

    /// Returns what has to confirm an end of the body that may be a reset, if it may be one.
    pub(super) fn confirmation(&self) -> Option<&Confirmation> {
        self.confirmation.as_ref()
    }

    /// Keeps what the body failed with.
    pub(super) fn fail(&self, error: &Error) {
        let _ = self.failure.set(error.clone());
    }

    /// Returns what the body failed with, if it did.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.get().cloned()
    }

    /// Returns what the body failed with, in place of what came of it.
    pub(super) fn cause_of(&self, consequence: Error) -> Error {
        self.failure().unwrap_or(consequence)
    }

    pub(super) fn set(&self, turn: Turn) {
        self.state.store((self.elapsed() << 2) | turn as u64, Ordering::Release);
    }

    /// Sets that the body waits for the client, from the first time on: the body is polled again without a frame.
    pub(super) fn wait_for_client(&self) {
        if self.turn().0 != Turn::Client {
            self.set(Turn::Client);
        }
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

    /// Returns when the body was last seen to flow; `None` if it has failed.
    pub(super) fn flowed(&self) -> Option<Instant> {
        self.failure.get().is_none().then(|| self.turn().1)
    }

    /// Sets that the response's head or a frame of its body has just come.
    pub(super) fn answer(&self) {
        // Mostly the body is over by now: nothing of it waits.
        if self.state.load(Ordering::Acquire) & 3 == Turn::Done as u64 {
            return;
        }
        self.answered.store(self.elapsed() + 1, Ordering::Release);
    }

    /// Returns when the last frame of the response came; `None` before its head.
    pub(super) fn answered(&self) -> Option<Instant> {
        let answered = self.answered.load(Ordering::Acquire).checked_sub(1)?;
        Some(self.start + Duration::from_millis(answered))
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).min(u64::MAX >> 2)
    }
}

/// The exchange's share of an upload: held by the future of the response, and then by the response's body.
#[derive(Debug)]
pub(super) struct ExchangeUpload {
    upload: Arc<Upload>,
}

impl ExchangeUpload {
    pub(super) fn new(upload: Arc<Upload>) -> Self {
        Self { upload }
    }

    /// Has to be called at the beginning of each poll of the exchange.
    pub(super) fn polled(&self, cx: &mut Context<'_>) {
        if let Some(confirmation) = &self.upload.confirmation {
            confirmation.exchange_polled(cx);
        }
    }

    /// Sets that the response has come to its end.
    pub(super) fn complete(&self) {
        if let Some(confirmation) = &self.upload.confirmation {
            confirmation.exchange_over(true);
        }
    }
}

impl Deref for ExchangeUpload {
    type Target = Upload;

    fn deref(&self) -> &Upload {
        &self.upload
    }
}

impl Drop for ExchangeUpload {
    fn drop(&mut self) {
        if let Some(confirmation) = &self.upload.confirmation {
            confirmation.exchange_over(false);
        }
    }
}
