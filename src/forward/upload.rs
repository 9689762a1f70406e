//! Progress of the request's body, shared with the response future and the response's body, so that timeouts and errors
//! are attributed to the right side.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::Context,
};

use http::Version;
use tokio::time::Instant;

use super::confirm::EndConfirmation;
use crate::error::Error;

/// Which side the upload waits for, and since when. The request's body writes it, and the exchange reads it.
#[derive(Debug)]
pub(super) struct Upload {
    progress: Mutex<Progress>,
    /// The body's error. The HTTP stack doesn't always return it, and the error that it returns instead blames the
    /// backend.
    failure: OnceLock<Error>,
    /// Only for an HTTP/2 client, whose upload may end in a reset.
    end_confirmation: Option<EndConfirmation>,
}

#[derive(Debug)]
struct Progress {
    waiting_on: WaitingOn,
    /// `None` until the body is first polled, or the exchange first waits.
    since: Option<Instant>,
    /// When the last frame of the response arrived; `None` before its head.
    response: Option<Instant>,
}

/// The side that has to act next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitingOn {
    /// The client: the body waits for its next frame.
    Client,
    /// The backend: it has been given a frame and hasn't polled for more.
    Backend,
    /// Neither side: the body has ended, or was dropped. The backend's response is next.
    Nothing,
}

impl Upload {
    /// `version` is the client's.
    pub(super) fn new(version: Version) -> Self {
        Self {
            progress: Mutex::new(Progress { waiting_on: WaitingOn::Backend, since: None, response: None }),
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

    /// Records when the exchange first waits. An upload that hasn't been polled by then waits since.
    pub(super) fn exchange_waits(&self, since: Instant) {
        self.progress().since.get_or_insert(since);
    }

    /// Records that the body waits for the client. Keeps the time of the first call, because the body may be polled
    /// again before a frame arrives.
    pub(super) fn wait_for_client(&self) {
        self.progress().wait_for(WaitingOn::Client);
    }

    /// Records that the body waits for the backend, which has been given a frame.
    pub(super) fn wait_for_backend(&self) {
        let mut progress = self.progress();
        (progress.waiting_on, progress.since) = (WaitingOn::Backend, Some(Instant::now()));
    }

    /// Records that the body has ended. Keeps the time of the first call, because an ended body is dropped later.
    pub(super) fn end(&self) {
        self.progress().wait_for(WaitingOn::Nothing);
    }

    /// Returns the side that the upload waits for, and since when.
    pub(super) fn waiting_on(&self) -> (WaitingOn, Option<Instant>) {
        let progress = self.progress();
        (progress.waiting_on, progress.since)
    }

    /// Returns when the body last made progress; `None` if it has failed.
    pub(super) fn last_request_progress(&self) -> Option<Instant> {
        if self.failure.get().is_some() { None } else { self.progress().since }
    }

    /// Records that the response's head or a frame of its body has arrived.
    pub(super) fn response_progressed(&self) {
        let mut progress = self.progress();
        // Fast path: the upload has usually ended by now, and nothing reads the time.
        if progress.waiting_on != WaitingOn::Nothing {
            progress.response = Some(Instant::now());
        }
    }

    /// Returns when the last frame of the response arrived; `None` before its head.
    pub(super) fn last_response_progress(&self) -> Option<Instant> {
        self.progress().response
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// Changes the side, and keeps the time if the upload waits for it already.
    fn wait_for(&mut self, waiting_on: WaitingOn) {
        if self.waiting_on != waiting_on {
            (self.waiting_on, self.since) = (waiting_on, Some(Instant::now()));
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_upload_waits_since_it_began_to() {
        let (upload, second) = (Upload::new(Version::HTTP_11), Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!(upload.waiting_on(), (WaitingOn::Backend, None));
        for _ in 0..2 {
            upload.exchange_waits(Instant::now());
            advance(second).await;
        }
        assert_eq!(upload.waiting_on(), (WaitingOn::Backend, Some(start)));
        for _ in 0..2 {
            upload.wait_for_client();
            advance(second).await;
        }
        assert_eq!(upload.waiting_on(), (WaitingOn::Client, Some(start + second * 2)));
        // Each frame is progress, and so is each frame of the response during the upload.
        for _ in 0..2 {
            upload.wait_for_backend();
            upload.response_progressed();
            advance(second).await;
        }
        assert_eq!(upload.waiting_on(), (WaitingOn::Backend, Some(start + second * 5)));
        assert_eq!(upload.last_response_progress(), Some(start + second * 5));
        for _ in 0..2 {
            upload.end();
            upload.response_progressed();
            advance(second).await;
        }
        assert_eq!(upload.waiting_on(), (WaitingOn::Nothing, Some(start + second * 6)));
        assert_eq!(upload.last_response_progress(), Some(start + second * 5));
    }
}
