//! The pause before a retry.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The bound of the first pause. It's doubled with each retry of a request.
const FIRST: Duration = Duration::from_millis(25);
const LONGEST: Duration = Duration::from_millis(250);

/// Draws pauses between zero and a bound that grows (full jitter), so that requests that failed together don't return
/// together.
#[derive(Debug)]
pub(super) struct Jitter {
    /// A state of splitmix64.
    state: AtomicU64,
}

impl Jitter {
    pub(super) fn random() -> Self {
        Self::seeded(RandomState::new().hash_one(0))
    }

    pub(super) fn seeded(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }

    /// Draws the pause before a request's first retry (`0`), or a further one.
    pub(super) fn pause(&self, retry: u32) -> Duration {
        let bound = FIRST.saturating_mul(1 << retry.min(8)).min(LONGEST);
        bound.mul_f64(self.draw())
    }

    /// Draws a number from 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "32 bits fit")]
    fn draw(&self) -> f64 {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(GOLDEN, Ordering::Relaxed).wrapping_add(GOLDEN);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as f64 / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_up_to_a_bound_that_doubles() {
        let jitter = Jitter::seeded(7);
        for (retry, bound) in [(0, 25), (1, 50), (2, 100), (3, 200), (4, 250), (40, 250), (u32::MAX, 250)] {
            let pauses: Vec<_> = (0..1000).map(|_| jitter.pause(retry)).collect();
            let bound = Duration::from_millis(bound);
            assert!(pauses.iter().all(|pause| *pause <= bound), "{retry}");
            assert!(pauses.iter().any(|pause| *pause > bound * 9 / 10), "{retry}");
            assert!(pauses.iter().any(|pause| *pause < bound / 10), "{retry}");
        }
    }

    #[test]
    fn a_seed_decides_the_pauses() {
        let pauses = |seed| {
            let jitter = Jitter::seeded(seed);
            (0..5).map(|retry| jitter.pause(retry)).collect::<Vec<_>>()
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }
}
