//! The slow start: which part of its share a member gets at which time after it has come.

use std::{cell::RefCell, time::Duration};

use tokio::time::Instant;

use super::{
    random::{Draws, Random},
    snapshot::{Entry, View},
};

/// Which part of its share a member gets at most while it catches up.
const CATCHING_UP: f32 = 1.1;

/// Returns how long a slow start lasts in all.
///
/// When a member has its share of the requests again, it has fewer in flight than the others, because the long ones
/// that would have begun earlier are missing. It catches up for as long again. Otherwise it would get all of these at
/// once.
pub(super) fn whole(ramp: Duration) -> Duration {
    ramp.saturating_mul(2)
}

/// The slow start of the members of a view, as of one pick.
pub(super) struct SlowStart {
    draws: RefCell<Draws>,
    now: Instant,
    ramp: Duration,
}

impl SlowStart {
    pub(super) fn new(view: &View, random: &Random, now: Instant) -> Self {
        Self { draws: RefCell::new(random.draws()), now, ramp: view.slow_start }
    }

    /// Returns the weight that the load of a member is divided by, in hundredths.
    pub(super) fn weight(&self, entry: &Entry) -> u64 {
        let share = self.share(entry).map_or(1.0, |share| share.min(1.0));
        (entry.effective_weight as f32 * share * 100.0) as u64
    }

    /// Returns whether a member that is the least loaded one of those that are compared gets the request. `weights` is
    /// the sum of their [weights](Self::weight), so that it gets its part of the requests even if it's always the least
    /// loaded one.
    pub(super) fn admits(&self, entry: &Entry, weights: f32) -> bool {
        self.share(entry).is_none_or(|share| {
            let probability = self.weight(entry) as f32 / weights * share.max(1.0);
            self.draw() < f64::from(probability)
        })
    }

    /// Returns which part of its share a member gets, if it's in its slow start: from a tenth to the whole, and a
    /// little more while it catches up.
    pub(super) fn share(&self, entry: &Entry) -> Option<f32> {
        Some(share(self.now.saturating_duration_since(entry.slow_start_since?), self.ramp))
    }

    /// Returns a random number between 0 and 1.
    pub(super) fn draw(&self) -> f64 {
        self.draws.borrow_mut().fraction()
    }
}

fn share(elapsed: Duration, ramp: Duration) -> f32 {
    if elapsed >= ramp {
        return CATCHING_UP;
    }
    (elapsed.as_secs_f32() / ramp.as_secs_f32()).clamp(0.1, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_grows_from_a_tenth() {
        let secs = Duration::from_secs;
        for (elapsed, expected) in [(0, 0.1), (1, 0.1), (5, 0.5), (9, 0.9), (10, CATCHING_UP), (99, CATCHING_UP)] {
            let share = share(secs(elapsed), secs(10));
            assert!((share - expected).abs() < 0.001, "{elapsed}: {share}");
        }
        assert!(share(Duration::ZERO, Duration::ZERO) >= 1.0);
        assert_eq!(whole(Duration::MAX), Duration::MAX);
    }
}
