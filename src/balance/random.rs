//! The random numbers of the picks: splitmix64.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

/// The increment of the sequence: 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A source of random numbers that requests share. It isn't for secrets.
#[derive(Debug)]
pub(super) struct Random {
    state: AtomicU64,
}

impl Random {
    /// A source whose numbers follow from the seed. `None` is for a seed of the process's own randomness.
    pub(super) fn new(seed: Option<u64>) -> Self {
        let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        Self { state: AtomicU64::new(seed) }
    }

    /// Begins the numbers of one request. The shared state is written once, however many numbers the request draws.
    pub(super) fn draws(&self) -> Draws {
        // Mixed, because the next request's numbers would otherwise be this one's, shifted by one.
        Draws { state: mix(self.state.fetch_add(GAMMA, Ordering::Relaxed)) }
    }

    /// Returns a number in 0..1.
    pub(super) fn fraction(&self) -> f64 {
        self.draws().fraction()
    }
}

/// The random numbers of one request.
#[derive(Debug)]
pub(super) struct Draws {
    state: u64,
}

impl Draws {
    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GAMMA);
        mix(self.state)
    }

    /// Returns a number in 0..1.
    pub(super) fn fraction(&mut self) -> f64 {
        // A float has 53 bits of precision.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a number below `bound`. The bias is below `bound` / 2^64.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // The product of two numbers below 2^64, shifted, is below the second one.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again() {
        let numbers = |seed| {
            let random = Random::new(Some(seed));
            (0..10).map(|_| random.draws().next()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }

    #[test]
    fn the_numbers_of_consecutive_requests_are_not_the_same_shifted() {
        let random = Random::new(Some(0));
        let (mut first, mut second) = (random.draws(), random.draws());
        first.next();
        assert_ne!(first.next(), second.next());
    }

    #[test]
    fn numbers_below_a_bound_are_equally_frequent() {
        let mut draws = Random::new(Some(1)).draws();
        let mut counts = [0; 7];
        for _ in 0..70_000 {
            counts[draws.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }
}
