//! The signal that releases a request's body after `Expect: 100-continue`.
//!
//! It's a request extension, because the forwarder holds the body back and only the client knows over which protocol
//! the request is sent.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

/// Releases the body of one request. Clones share the signal.
#[derive(Clone, Debug, Default)]
pub(crate) struct ContinueSignal {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    is_released: bool,
    waker: Option<Waker>,
}

impl ContinueSignal {
    /// Releases the body.
    pub(crate) fn release(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_released = true;
        let waker = state.waker.take();
        // Woken without the lock, because a waker may run arbitrary code.
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready when the body has been released.
    pub(crate) fn poll_released(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_released {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
