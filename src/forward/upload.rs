//! Progress of the request's body, shared with the response future and the response's body, so that timeouts and errors
//! are attributed to the right side.

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

use super::confirm::EndConfirmation;
use crate::error::Error;

/// Which side the upload waits for, and since when. The request's body writes it, and the exchange reads it.
#[derive(Debug)]
pub(super) struct Upload {
    start: Instant,
    /// Milliseconds since `start`, shifted left by two, and the [`WaitingOn`]. One atomic, so that both are read
    /// together.
    state: AtomicU64,
    /// Milliseconds from `start` to the last frame of the response, plus one. 0: its head hasn't arrived.
    response_progress: AtomicU64,
    /// The body's error. The HTTP stack doesn't always return it, and the error that it returns instead blames the
    /// backend.
    failure: OnceLock<Error>,
    /// Only for an HTTP/2 client, whose upload may end in a reset.
    end_confirmation: Option<EndConfirmation>,
}

/// The side that has to act next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitingOn {
    /// The client: the body waits for its next frame.
    Client = 0,
    /// The backend: it has been given a frame and hasn't polled for more.
    Backend = 1,
    /// Neither side: the body has ended, or was dropped. The backend's response is next.
    Nothing = 2,
}

impl Upload {
    /// `version` is the client's.
    pub(super) fn new(version: Version) -> Self {
        Self {
            start: Instant::now(),
            state: AtomicU64::new(WaitingOn::Backend as u64),
            response_progress: AtomicU64::new(0),
            failure: OnceLock::new(),
            end_confirmation: (version == Version::HTTP_2).then(EndConfirmation::default),
        }
    }

    /// Returns the confirmation that an end of the body needs, if it may be a reset.
    pub(super) fn end_confirmation(&self) -> Option<&EndConfirmation> {
        self.end_confirmation.as_ref()
    }

    /// Records the body's error.
    pub(super) fn fail(&self, error: &Error) {
        let _ = self.failure.set(error.clone());
    }

    /// Returns the body's error, if it failed.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.get().cloned()
    }

    /// Returns the body's error if it failed, because `consequence` then follows from it.
    pub(super) fn root_cause(&self, consequence: Error) -> Error {
        self.failure().unwrap_or(consequence)
    }

    pub(super) fn set_waiting_on(&self, waiting_on: WaitingOn) {
        self.state.store((self.elapsed() << 2) | waiting_on as u64, Ordering::Release);
    }

    /// Records that the body waits for the client. Keeps the time of the first call, because the body may be polled
    /// again before a frame arrives.
    pub(super) fn wait_for_client(&self) {
        if self.waiting_on().0 != WaitingOn::Client {
            self.set_waiting_on(WaitingOn::Client);
        }
    }

    /// Returns the side that the upload waits for, and since when.
    pub(super) fn waiting_on(&self) -> (WaitingOn, Instant) {
        let state = self.state.load(Ordering::Acquire);
        let waiting_on = match state & 3 {
            0 => WaitingOn::Client,
            1 => WaitingOn::Backend,
            _ => WaitingOn::Nothing,
        };
        (waiting_on, self.start + Duration::from_millis(state >> 2))
    }

    /// Returns when the body last made progress; `None` if it has failed.
    pub(super) fn last_request_progress(&self) -> Option<Instant> {
        self.failure.get().is_none().then(|| self.waiting_on().1)
    }

    /// Records that the response's head or a frame of its body has arrived.
    pub(super) fn response_progressed(&self) {
        // Fast path: the upload has usually ended by now, and nothing reads the time.
        if self.state.load(Ordering::Acquire) & 3 == WaitingOn::Nothing as u64 {
            return;
        }
        self.response_progress.store(self.elapsed() + 1, Ordering::Release);
    }

    /// Returns when the last frame of the response arrived; `None` before its head.
    pub(super) fn last_response_progress(&self) -> Option<Instant> {
        let millis = self.response_progress.load(Ordering::Acquire).checked_sub(1)?;
        Some(self.start + Duration::from_millis(millis))
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).min(u64::MAX >> 2)
    }
}

/// The exchange's handle to an upload. The response future holds it first, then the response's body.
#[derive(Debug)]
pub(super) struct ExchangeUpload {
    upload: Arc<Upload>,
}

impl ExchangeUpload {
    pub(super) fn new(upload: Arc<Upload>) -> Self {
        Self { upload }
    }

    /// Must be called at the beginning of each poll of the exchange.
    pub(super) fn exchange_polled(&self, cx: &mut Context<'_>) {
        if let Some(confirmation) = &self.upload.end_confirmation {
            confirmation.exchange_polled(cx);
        }
    }

    /// Records that the response is complete.
    pub(super) fn complete(&self) {
        if let Some(confirmation) = &self.upload.end_confirmation {
            confirmation.exchange_ended(true);
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
        if let Some(confirmation) = &self.upload.end_confirmation {
            confirmation.exchange_ended(false);
        }
    }
}
