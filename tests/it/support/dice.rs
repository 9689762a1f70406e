//! Chance in tests.

use std::time::Duration;

use tokio::{task::yield_now, time::sleep};

/// Pseudo-random numbers that are the same in every run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    /// Yields, sleeps, or continues at once. In real time, because the tasks race on several threads.
    pub(crate) async fn pause(&mut self) {
        match self.roll(24) {
            0 => sleep(Duration::from_millis(1)).await,
            1..12 => yield_now().await,
            _ => {}
        }
    }
}
