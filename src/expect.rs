//! The word that a request's body waits for after `Expect: 100-continue`, as a request extension: the forwarder doesn't know
//! which protocol the request goes over, and the client does.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

/// Releases the body of one request. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Continue {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    is_released: bool,
    waker: Option<Waker>,
}

impl Continue {
    /// Lets the body go.
    pub(crate) fn release(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_released = true;
        let waker = state.waker.take();
        // Not under the lock: a waker may do anything.
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
