//! A clock that runs while a body waits for its next frame.

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
    /// Made at the first wait, set again at each wait that follows a frame: a body that comes at once never needs a timer.
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

    /// Stops the clock: a frame came.
    pub(super) fn stop(self: Pin<&mut Self>) {
        *self.project().running = false;
    }

    /// Lets the clock run; ready when it has run for the whole timeout, and as much time has passed since `other`: the last
    /// frame in the other direction.
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
            ready!(poll_clock(sleep.as_mut(), cx));
            match other().map(|last| last + timeout) {
                Some(due) if due > Instant::now() => sleep.as_mut().reset(due),
                _ => return Poll::Ready(()),
            }
        }
    }
}

/// Polls a clock, whatever the task has used up of tokio's budget for it: a peer that always has something to read would
/// otherwise stop the clock.
pub(super) fn poll_clock(clock: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    pin!(unconstrained(clock)).poll(cx)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{task::coop::consume_budget, time::sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timer_runs_on_when_the_task_budget_is_exhausted() {
        let mut clock = pin!(sleep(Duration::from_secs(1)));
        sleep(Duration::from_secs(2)).await;
        poll_fn(|cx| {
            while pin!(consume_budget()).poll(cx).is_ready() {}
            assert!(clock.as_mut().poll(cx).is_pending(), "there is no budget");
            assert!(poll_clock(clock.as_mut(), cx).is_ready());
            Poll::Ready(())
        })
        .await;
    }
}
