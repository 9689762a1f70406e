//! Responses that begin before their request has ended.
//!
//! Each direction then has a holder of its own, which polls it with a waker of its own: a task sends the rest of the
//! request, and the response's body receives the response. Otherwise, a client that reads nothing before it has sent
//! everything would wait for ever, because only its reads would send the request on.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use axum_core::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame};
use tokio::{runtime::Handle, task::AbortHandle};

use super::dispatch::Lease;
use crate::error::{Error, ErrorKind};

/// An exchange whose request and response are under way at the same time.
///
/// The response returns the connection at its end, if all of the request is sent by then. Otherwise the connection is
/// closed, because the backend may take the rest of the body for a request.
///
/// I/O is polled under the lock, as `tokio::io::split` does; the request's body isn't.
pub(super) struct Early {
    state: Mutex<State>,
}

struct State {
    /// `None` after the exchange.
    lease: Option<Lease>,
    /// Why the request couldn't be sent.
    failure: Option<Error>,
    /// Woken when the request fails.
    response: Option<Waker>,
}

/// The receiving half of an exchange. Dropping it before its end ends both halves.
pub(super) struct EarlyResponse {
    exchange: Arc<Early>,
    upload: AbortHandle,
    has_ended: bool,
}

/// The sending half of an exchange. Dropping it before its end fails the exchange.
struct EarlyUpload {
    exchange: Arc<Early>,
    has_ended: bool,
}

/// How many frames are sent in one poll. A body that is always there doesn't starve the other tasks.
const ROUNDS: usize = 32;

const CUT: &str = "the rest of the request isn't sent, because its body has panicked or its runtime is shut down";

impl Early {
    /// Spawns the rest of the upload. Without a runtime, it returns the lease.
    pub(super) fn split(mut lease: Lease) -> Result<EarlyResponse, Lease> {
        let Ok(runtime) = Handle::try_current() else { return Err(lease) };
        let Some(body) = lease.connection.take_upload() else { return Err(lease) };
        let state = State { lease: Some(lease), failure: None, response: None };
        let exchange = Arc::new(Self { state: Mutex::new(state) });
        let upload = EarlyUpload { exchange: exchange.clone(), has_ended: false };
        let upload = runtime.spawn(upload.run(body)).abort_handle();
        Ok(EarlyResponse { exchange, upload, has_ended: false })
    }

    /// Ends the exchange, unless the response has ended it.
    fn fail(&self, error: Error) {
        let mut state = self.lock();
        let Some(lease) = state.lease.take() else { return };
        state.failure = Some(error);
        let response = state.response.take();
        drop(state);
        drop(lease);
        if let Some(response) = response {
            response.wake();
        }
    }

    fn poll_upload(&self, body: &mut Body, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        for _ in 0..ROUNDS {
            let is_done = match &mut self.lock().lease {
                Some(lease) => ready!(lease.connection.poll_written(cx))?,
                None => true,
            };
            if is_done {
                return Poll::Ready(Ok(()));
            }
            let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
            let is_last = body.is_end_stream();
            if let Some(lease) = &mut self.lock().lease {
                lease.connection.push(frame, is_last)?;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EarlyUpload {
    async fn run(mut self, mut body: Body) {
        let outcome = poll_fn(|cx| self.exchange.poll_upload(&mut body, cx)).await;
        drop(body);
        if let Err(error) = outcome {
            self.exchange.fail(error);
        }
        self.has_ended = true;
    }
}

impl Drop for EarlyUpload {
    /// Its task has been dropped. A backend that waits for the rest of the request wouldn't end its response.
    fn drop(&mut self) {
        if !self.has_ended {
            self.exchange.fail(Error::with_source(ErrorKind::RequestBody, CUT));
        }
    }
}

impl EarlyResponse {
    /// Whether the response has ended, and the exchange with it.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut guard = self.exchange.lock();
        let state = &mut *guard;
        let Some(Lease { connection, .. }) = &mut state.lease else {
            self.has_ended = true;
            return Poll::Ready(state.failure.take().map(Err));
        };
        let Poll::Ready(frame) = connection.poll_response(cx) else {
            match &mut state.response {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        };
        self.has_ended = connection.is_answered();
        if self.has_ended {
            let lease = state.lease.take();
            drop(guard);
            self.upload.abort();
            if let Some(lease) = lease {
                lease.end();
            }
        }
        Poll::Ready(frame)
    }
}

impl Drop for EarlyResponse {
    fn drop(&mut self) {
        if !self.has_ended {
            let lease = self.exchange.lock().lease.take();
            self.upload.abort();
            drop(lease);
        }
    }
}
