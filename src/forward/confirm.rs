//! Tells the end of an HTTP/2 upload from a stream that was reset.
//!
//! hyper's body ends in `None` after an END_STREAM and after a RST_STREAM with NO_ERROR alike. Its `is_end_stream` tells the
//! two apart, but that of many bodies around it doesn't: a `StreamBody`, or the one of tower-http's `RequestBodyTimeoutLayer`,
//! returns `false` at any end. Such an end is held back until the exchange has been polled twice, because hyper's server looks
//! for a reset between two polls, and drops the exchange of a stream that was reset.

use std::{
    sync::{Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

/// Shared by the request's body and the exchange: the future of the response, and then the response's body.
#[derive(Debug, Default)]
pub(super) struct Confirmation {
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
    /// The body hasn't come to an end.
    #[default]
    Open,
    /// The body has come to an end that may be a reset.
    Asked,
    /// The exchange has been polled since.
    Polled,
    /// The exchange has been polled once more, or was completed: the end is one.
    Confirmed,
    /// The exchange was dropped: the client has reset its stream.
    Abandoned,
}

impl Confirmation {
    /// Called by the body, at an end that may be a reset. Returns whether it's the end.
    pub(super) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.body = Some(cx.waker().clone());
        let exchange = match state.stage {
            Stage::Confirmed => return Poll::Ready(true),
            Stage::Abandoned => return Poll::Ready(false),
            Stage::Open => {
                state.stage = Stage::Asked;
                state.exchange.take()
            }
            Stage::Asked | Stage::Polled => None,
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
            Stage::Asked => {
                state.stage = Stage::Polled;
                drop(state);
                cx.waker().wake_by_ref();
            }
            Stage::Polled => {
                drop(state);
                self.close(Stage::Confirmed);
            }
            Stage::Confirmed | Stage::Abandoned => {}
        }
    }

    /// Called when the exchange is over. One that wasn't completed was given up by the client.
    pub(super) fn exchange_over(&self, completed: bool) {
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
        let confirmation = Confirmation::default();
        confirmation.exchange_polled(cx);
        assert!(confirmation.poll_end(cx).is_pending());
        confirmation.exchange_polled(cx);
        assert!(confirmation.poll_end(cx).is_pending());
        confirmation.exchange_polled(cx);
        assert_eq!(confirmation.poll_end(cx), Poll::Ready(true));
        confirmation.exchange_over(false);
        assert_eq!(confirmation.poll_end(cx), Poll::Ready(true));
    }

    #[test]
    fn an_end_is_confirmed_when_the_exchange_completes() {
        let cx = &mut Context::from_waker(Waker::noop());
        for completed in [true, false] {
            let confirmation = Confirmation::default();
            assert!(confirmation.poll_end(cx).is_pending());
            confirmation.exchange_over(completed);
            assert_eq!(confirmation.poll_end(cx), Poll::Ready(completed));
        }
    }
}
