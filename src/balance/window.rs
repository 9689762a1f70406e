//! What the last attempts at a member showed.

use std::time::Duration;

use tokio::time::Instant;

/// Attempts within [`Window`], from which on their share of faults counts.
pub(super) const ENOUGH: u32 = 20;

/// What the attempts of the last ten seconds showed, in buckets of a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    began: Instant,
    buckets: [Bucket; Self::SECONDS as usize],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// The second that it counts, from the beginning of the window.
    second: u64,
    sums: Sums,
}

/// What a number of attempts showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) attempts: u32,
    pub(super) half_faults: u32,
    /// Those 5xx that are no faults by themselves.
    pub(super) errors: u32,
}

impl Window {
    const SECONDS: u64 = 10;
    pub(super) const LENGTH: Duration = Duration::from_secs(Self::SECONDS);

    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, buckets: Default::default() }
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }

    pub(super) fn add(&mut self, now: Instant, attempts: u32, half_faults: u32, errors: u32) {
        let second = self.second(now);
        let index = usize::try_from(second % Self::SECONDS).unwrap_or_default();
        let Some(bucket) = self.buckets.get_mut(index) else { return };
        if bucket.second > second {
            return;
        }
        if bucket.second != second {
            *bucket = Bucket { second, sums: Sums::default() };
        }
        bucket.sums.add(Sums { attempts, half_faults, errors });
    }

    pub(super) fn sums(&self, now: Instant) -> Sums {
        let second = self.second(now);
        let mut sums = Sums::default();
        for bucket in self.buckets.iter().filter(|bucket| bucket.second + Self::SECONDS > second) {
            sums.add(bucket.sums);
        }
        sums
    }
}

impl Sums {
    pub(super) fn add(&mut self, other: Self) {
        self.attempts = self.attempts.saturating_add(other.attempts);
        self.half_faults = self.half_faults.saturating_add(other.half_faults);
        self.errors = self.errors.saturating_add(other.errors);
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self {
            attempts: self.attempts.saturating_sub(other.attempts),
            half_faults: self.half_faults.saturating_sub(other.half_faults),
            errors: self.errors.saturating_sub(other.errors),
        }
    }

    /// Returns the share of faults, and of the other 5xx if they count. No attempts: 0.
    pub(super) fn share(self, with_errors: bool) -> f64 {
        let errors = if with_errors { f64::from(self.errors) } else { 0.0 };
        ((f64::from(self.half_faults) / 2.0 + errors) / f64::from(self.attempts.max(1))).min(1.0)
    }
}
