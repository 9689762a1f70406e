//! How many retries there may be: a share of the last requests, and some more.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// Limits the retries of the last 10 s to a share of the requests of that time, and a floor.
///
/// Without a limit, a set of backends that is overloaded gets a multiple of the load, and doesn't recover.
///
/// Counts of concurrent threads may be late, so that it's exceeded by as many retries as there are threads.
#[derive(Debug)]
pub(super) struct Budget {
    start: Instant,
    requests: Counter,
    retries: Counter,
}

/// The share and the floor of a [`Budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowance {
    pub(super) percent: u32,
    pub(super) floor: u32,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { start: now, requests: Counter::new(), retries: Counter::new() }
    }

    /// Counts a request.
    pub(super) fn deposit(&self, now: Instant) {
        self.requests.add(self.second(now));
    }

    /// Counts a retry, if the allowance permits one.
    pub(super) fn withdraw(&self, allowance: Allowance, now: Instant) -> bool {
        let second = self.second(now);
        let share = self.requests.sum(second).saturating_mul(u64::from(allowance.percent)) / 100;
        let is_within = self.retries.sum(second) < share.saturating_add(u64::from(allowance.floor));
        if is_within {
            self.retries.add(second);
        }
        is_within
    }

    /// Returns the seconds since the start.
    fn second(&self, now: Instant) -> u32 {
        let elapsed: Duration = now.saturating_duration_since(self.start);
        u32::try_from(elapsed.as_secs()).unwrap_or(u32::MAX)
    }
}

/// The seconds that are counted.
const WINDOW: u32 = 10;

/// Counts events of the last [`WINDOW`] seconds.
#[derive(Debug)]
struct Counter {
    /// Each has a second in the upper half, and the count of that second in the lower half.
    seconds: [AtomicU64; SLOTS],
}

/// More than the seconds of the window, because a thread may still write the last one.
const SLOTS: usize = 16;

impl Counter {
    fn new() -> Self {
        Self { seconds: array::from_fn(|_| AtomicU64::new(0)) }
    }

    fn add(&self, second: u32) {
        let slot = &self.seconds[second as usize % SLOTS];
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let (counted, count) = unpack(packed);
            match counted == second {
                true if count == u32::MAX => None,
                true => Some(packed + 1),
                // A thread that was late by a whole round counts nothing.
                false if counted > second => None,
                false => Some((u64::from(second) << 32) | 1),
            }
        });
    }

    /// Returns the count of the window that ends with `second`.
    fn sum(&self, second: u32) -> u64 {
        let counts = self.seconds.iter().map(|slot| {
            let (counted, count) = unpack(slot.load(Ordering::Relaxed));
            let is_recent = second.checked_sub(counted).is_none_or(|age| age < WINDOW);
            if is_recent { u64::from(count) } else { 0 }
        });
        counts.sum()
    }
}

/// Returns a second and its count.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is the count")]
fn unpack(packed: u64) -> (u32, u32) {
    ((packed >> 32) as u32, packed as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance { percent: 10, floor: 30 };

    /// Withdraws until the budget is spent.
    fn retries(budget: &Budget, now: Instant) -> usize {
        (0..10_000).take_while(|_| budget.withdraw(ALLOWANCE, now)).count()
    }

    #[test]
    fn retries_are_a_share_of_the_requests_and_a_floor() {
        let start = Instant::now();
        for (requests, expected) in [(0, 30), (9, 30), (10, 31), (1000, 130)] {
            let budget = Budget::new(start);
            (0..requests).for_each(|_| budget.deposit(start));
            assert_eq!(retries(&budget, start), expected, "{requests}");
        }
    }

    #[test]
    fn requests_and_retries_count_for_ten_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let budget = Budget::new(start);
        (0..500).for_each(|_| budget.deposit(start));
        assert_eq!(retries(&budget, at(0)), 80);
        for second in 1..10 {
            assert_eq!(retries(&budget, at(second)), 0, "after {second} s");
        }
        assert_eq!(retries(&budget, at(10)), 30);
        assert_eq!(retries(&budget, at(19)), 0);
        // The slots have been used before.
        (0..100).for_each(|_| budget.deposit(at(36)));
        assert_eq!(retries(&budget, at(37)), 40);
        assert_eq!(retries(&budget, at(u64::from(u32::MAX) + 100)), 30);
    }

    #[test]
    fn a_late_thread_overwrites_no_newer_count() {
        let counter = Counter::new();
        counter.add(20);
        counter.add(4);
        assert_eq!(counter.sum(20), 1);
    }

    #[test]
    fn without_a_share_and_a_floor_there_is_no_retry() {
        let now = Instant::now();
        let budget = Budget::new(now);
        budget.deposit(now);
        assert!(!budget.withdraw(Allowance { percent: 0, floor: 0 }, now));
        assert!(budget.withdraw(Allowance { percent: 100, floor: 0 }, now));
        assert!(!budget.withdraw(Allowance { percent: 100, floor: 0 }, now));
    }
}
