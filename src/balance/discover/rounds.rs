//! Looks members up again and again: at once, and then each time the answer's validity is over.

use std::{
    fmt,
    future::Future,
    hash::{BuildHasher, Hasher, RandomState},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum_core::BoxError;
use tokio::time::{Instant, sleep_until};

use crate::balance::Member;

/// How long after a failed look-up the next one begins.
const AFTER_A_FAILURE: Duration = Duration::from_secs(5);

/// The members that were found, and how long the answer is valid.
pub(super) type Found = Result<(Vec<Member>, Duration), BoxError>;

/// Looks members up.
pub(super) trait LookUp: Clone + Send + 'static {
    /// Performs one look-up. It may keep parts of its answer for the next one.
    fn look_up(&mut self) -> impl Future<Output = Found> + Send;
}

/// The look-ups of a source, one after the other.
pub(super) struct Rounds<L> {
    pub(super) source: L,
    /// When the last answer's validity is over. `None` before the first one.
    due: Option<Instant>,
    under_way: Option<Round<L>>,
}

type Round<L> = Pin<Box<dyn Future<Output = (L, Found)> + Send>>;

impl<L: LookUp> Rounds<L> {
    pub(super) fn new(source: L) -> Self {
        Self { source, due: None, under_way: None }
    }

    pub(super) fn poll_found(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Member>, BoxError>> {
        let round = self.under_way.get_or_insert_with(|| {
            let (mut source, due) = (self.source.clone(), self.due);
            Box::pin(async move {
                if let Some(due) = due {
                    sleep_until(due).await;
                }
                let answer = source.look_up().await;
                (source, answer)
            })
        });
        let (source, answer) = ready!(round.as_mut().poll(cx));
        self.under_way = None;
        self.source = source;
        let (answer, validity) = match answer {
            Ok((members, validity)) => (Ok(members), validity),
            Err(error) => (Err(error), AFTER_A_FAILURE),
        };
        self.due = Some(Instant::now() + spread(validity));
        Poll::Ready(answer)
    }
}

impl<L: fmt::Debug> fmt::Debug for Rounds<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

/// Varies a duration by up to 10 % either way, so that replicas don't ask their name server at the same moment.
fn spread(duration: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 2001;
    // From 0.9 to 1.1, in steps of 0.0001.
    duration.mul_f64(0.9 + random as f64 / 10_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_validity_varies_by_a_tenth() {
        let spread: Vec<_> = (0..1000).map(|_| spread(Duration::from_secs(100)).as_secs_f64()).collect();
        assert!(spread.iter().all(|seconds| (90.0..=110.0).contains(seconds)), "{spread:?}");
        assert!(spread.iter().any(|&seconds| seconds < 92.0) && spread.iter().any(|&seconds| seconds > 108.0));
    }
}
