//! A second attempt while the first one is under way.

use std::{
    array,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// When a request gets a second attempt although the first one hasn't failed: see
/// [`RetryPolicy::hedge`](crate::RetryPolicy::hedge).
///
/// ```
/// use std::time::Duration;
///
/// use tower_reverse_proxy::{RetryPolicy, retry::Hedge};
///
/// let policy = RetryPolicy::idempotent().hedge(Hedge::after(Duration::from_millis(300)));
/// # let _ = policy;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Hedge {
    /// `None` for the measured percentile.
    after: Option<Duration>,
}

impl Hedge {
    /// Hedges a request that takes longer than 95 % of the last ones, from its beginning to the head of the response.
    ///
    /// It's measured under this policy, for requests that may be hedged. There is no hedge before 100 of them.
    ///
    /// ```
    /// use tower_reverse_proxy::{RetryPolicy, retry::Hedge};
    ///
    /// let policy = RetryPolicy::idempotent().hedge(Hedge::at_p95());
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn at_p95() -> Self {
        Self { after: None }
    }

    /// Hedges a request that has no response after this time.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_reverse_proxy::{RetryPolicy, retry::Hedge};
    ///
    /// let policy = RetryPolicy::idempotent().hedge(Hedge::after(Duration::from_secs(1)));
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self { after: Some(time) }
    }

    /// Returns the time after which a request is hedged; `None` if it isn't known yet.
    pub(super) fn delay(&self, latencies: &Latencies) -> Option<Duration> {
        self.after.or_else(|| latencies.percentile(95))
    }
}

/// A histogram of the last times to a response's head.
#[derive(Debug)]
pub(super) struct Latencies {
    buckets: [AtomicU32; BUCKETS],
    recorded: AtomicU32,
}

/// Four for each octave, so that a bucket's bounds differ by 25 % at most.
const BUCKETS: usize = 64;
/// The lower bound of the second octave is twice this: 256 µs.
const SMALLEST_LOG: u32 = 8;
/// Counts are halved after so many, so that old ones lose their weight.
const HALF_LIFE: u32 = 1024;
const LEAST: u64 = 100;

impl Latencies {
    pub(super) fn new() -> Self {
        Self { buckets: array::from_fn(|_| AtomicU32::new(0)), recorded: AtomicU32::new(0) }
    }

    pub(super) fn record(&self, latency: Duration) {
        self.buckets[bucket(latency)].fetch_add(1, Ordering::Relaxed);
        if self.recorded.fetch_add(1, Ordering::Relaxed) % HALF_LIFE == HALF_LIFE - 1 {
            for count in &self.buckets {
                halve(count);
            }
        }
    }

    /// Returns the upper bound of the bucket that a percentile is in; `None` if too few have been recorded.
    fn percentile(&self, percent: u64) -> Option<Duration> {
        let counts: [u64; BUCKETS] = array::from_fn(|at| u64::from(self.buckets[at].load(Ordering::Relaxed)));
        let total: u64 = counts.iter().sum();
        if total < LEAST {
            return None;
        }
        let mut below = 0;
        let at = counts.iter().position(|count| {
            below += count;
            below * 100 >= total * percent
        });
        at.map(upper_bound)
    }
}

/// Halves a count in one step. Several threads may do so at a time if the first one takes long, and together they must not
/// take away more than there is.
fn halve(count: &AtomicU32) {
    let half = |count| Some(count - count / 2);
    let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, half);
}

fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1 << SMALLEST_LOG);
    let log = micros.ilog2();
    let quarter = (micros >> (log - 2)) & 3;
    let at = (log - SMALLEST_LOG) as usize * 4 + quarter as usize;
    at.min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> Duration {
    let (octave, quarter) = (bucket as u64 / 4, bucket as u64 % 4);
    Duration::from_micros((4 + quarter + 1) << (u64::from(SMALLEST_LOG) + octave - 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_below_its_upper_bound() {
        for micros in [0, 1, 255, 256, 300, 320, 511, 512, 1_000, 33_000, 1_000_000, 15_000_000] {
            let latency = Duration::from_micros(micros);
            let bound = upper_bound(bucket(latency));
            assert!(latency < bound, "{latency:?} {bound:?}");
            assert!(micros < 256 || bound <= latency * 5 / 4 + Duration::from_micros(1), "{latency:?} {bound:?}");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn threads_that_halve_a_count_at_the_same_time_do_not_underflow_it() {
        let count = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        count.fetch_add(1, Ordering::Relaxed);
                        halve(&count);
                        assert!(count.load(Ordering::Relaxed) < 1_000_000);
                    }
                });
            }
        });
    }

    #[test]
    fn a_percentile_needs_a_hundred_values_and_follows_the_last_ones() {
        let latencies = Latencies::new();
        let record = |count, millis| (0..count).for_each(|_| latencies.record(Duration::from_millis(millis)));
        record(99, 10);
        assert_eq!(latencies.percentile(95), None);
        record(1, 10);
        let near = |millis: u64| {
            let (percentile, expected) = (latencies.percentile(95).unwrap(), Duration::from_millis(millis));
            assert!(percentile > expected && percentile <= expected * 5 / 4, "{percentile:?} {expected:?}");
        };
        near(10);
        record(4, 1_000);
        near(10);
        record(2, 1_000);
        near(1_000);
        record(20_000, 20);
        near(20);
    }
}
