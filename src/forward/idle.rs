//! The idle timeout of a body.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    task::unconstrained,
    time::{Instant, Sleep},
};

pin_project! {
    /// Measures how long a body waits for its next frame. The timer is created at the first wait, so a body that is
    /// available at once needs none.
    #[derive(Debug)]
    pub(super) struct Idle {
        timeout: Option<Duration>,
        running: bool,
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Idle {
    pub(super) fn new(timeout: Option<Duration>) -> Self {
        Self { timeout, running: false, sleep: None }
    }

    /// Stops the timer, because a frame has arrived.
    pub(super) fn stop(self: Pin<&mut Self>) {
        *self.project().running = false;
    }

    /// Starts the timer if it isn't running. Ready when the timeout has elapsed both since the start and since `other`,
    /// the time of the last frame in the other direction.
    pub(super) fn poll_elapsed(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        other: impl Fn() -> Option<Instant>,
    ) -> Poll<()> {
        let mut this = self.project();
        let Some(timeout) = *this.timeout else { return Poll::Pending };
        if !*this.running {
            *this.running = true;
            match this.sleep.as_mut().as_pin_mut() {
                Some(sleep) => sleep.reset(Instant::now() + timeout),
                None => this.sleep.set(Some(tokio::time::sleep(timeout))),
            }
        }
        let Some(mut sleep) = this.sleep.as_pin_mut() else { return Poll::Pending };
        loop {
            ready!(poll_timer(sleep.as_mut(), cx));
            match other().map(|last| last + timeout) {
                Some(due) if due > Instant::now() => sleep.as_mut().reset(due),
                _ => return Poll::Ready(()),
            }
        }
    }
}

/// Polls a timer outside of tokio's cooperative budget. A peer that always has data to read uses up the budget, and a
/// timer polled within it would never fire.
pub(super) fn poll_timer(timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    pin!(unconstrained(timer)).poll(cx)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{task::coop::consume_budget, time::sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timer_runs_on_when_the_task_budget_is_exhausted() {
        let mut timer = pin!(sleep(Duration::from_secs(1)));
        sleep(Duration::from_secs(2)).await;
        poll_fn(|cx| {
            while pin!(consume_budget()).poll(cx).is_ready() {}
            assert!(timer.as_mut().poll(cx).is_pending(), "the budget is used up");
            assert!(poll_timer(timer.as_mut(), cx).is_ready());
            Poll::Ready(())
        })
        .await;
    }
}
