//! Distinguishes the end of an HTTP/2 upload from a reset of its stream.
//!
//! hyper's body returns `None` both after END_STREAM and after RST_STREAM with NO_ERROR. Its `is_end_stream`
//! distinguishes the two, but many bodies that wrap it return `false` at any end: `StreamBody`, or that of tower-http's
//! `RequestBodyTimeoutLayer`. Such an end is held back until the exchange has been polled twice, because hyper's server
//! checks for a reset between two polls and drops the exchange of a stream that was reset.

use std::{
    sync::{Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

/// Shared by the request's body and the exchange, which is first the response future and then the response's body.
#[derive(Debug, Default)]
pub(super) struct EndConfirmation {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    exchange: Option<Waker>,
    body: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The body hasn't ended.
    #[default]
    Open,
    /// The body has ended, and the end may be a reset.
    EndSeen,
    /// The exchange has been polled since.
    PolledOnce,
    /// The exchange has been polled a second time, or was completed, so the end isn't a reset.
    Confirmed,
    /// The exchange was dropped, because the client has reset its stream.
    Abandoned,
}

impl EndConfirmation {
    /// Called by the body at an end that may be a reset. Returns whether it's the end of the upload.
    pub(super) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.body = Some(cx.waker().clone());
        let exchange = match state.stage {
            Stage::Confirmed => return Poll::Ready(true),
            Stage::Abandoned => return Poll::Ready(false),
            Stage::Open => {
                state.stage = Stage::EndSeen;
                state.exchange.take()
            }
            Stage::EndSeen | Stage::PolledOnce => None,
        };
        drop(state);
        wake(exchange);
        Poll::Pending
    }

    /// Called by the exchange, at the beginning of each poll.
    pub(super) fn exchange_polled(&self, cx: &mut Context<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.stage {
            Stage::Open => match &mut state.exchange {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            },
            Stage::EndSeen => {
                state.stage = Stage::PolledOnce;
                drop(state);
                cx.waker().wake_by_ref();
            }
            Stage::PolledOnce => {
                drop(state);
                self.close(Stage::Confirmed);
            }
            Stage::Confirmed | Stage::Abandoned => {}
        }
    }

    /// Called when the exchange has ended. If it wasn't completed, the client has cancelled it.
    pub(super) fn exchange_ended(&self, completed: bool) {
        self.close(if completed { Stage::Confirmed } else { Stage::Abandoned });
    }

    fn close(&self, stage: Stage) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(state.stage, Stage::Confirmed | Stage::Abandoned) {
            state.stage = stage;
        }
        let body = state.body.take();
        drop(state);
        wake(body);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_confirmed_after_two_polls_of_the_exchange() {
        let cx = &mut Context::from_waker(Waker::noop());
        let confirmation = EndConfirmation::default();
        confirmation.exchange_polled(cx);
        assert!(confirmation.poll_end(cx).is_pending());
        confirmation.exchange_polled(cx);
        assert!(confirmation.poll_end(cx).is_pending());
        confirmation.exchange_polled(cx);
        assert_eq!(confirmation.poll_end(cx), Poll::Ready(true));
        confirmation.exchange_ended(false);
        assert_eq!(confirmation.poll_end(cx), Poll::Ready(true));
    }

    #[test]
    fn an_end_is_confirmed_when_the_exchange_completes() {
        let cx = &mut Context::from_waker(Waker::noop());
        for completed in [true, false] {
            let confirmation = EndConfirmation::default();
            assert!(confirmation.poll_end(cx).is_pending());
            confirmation.exchange_ended(completed);
            assert_eq!(confirmation.poll_end(cx), Poll::Ready(completed));
        }
    }
}
