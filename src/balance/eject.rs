//! The options of passive health checks.

use std::time::Duration;

use http::StatusCode;

/// When a member that fails is taken out, and for how long: the passive health check of a set.
///
/// A member is out after [five faults in a row](Self::faults), after two failed connects in a row, or when at least
/// half of at least 20 attempts within ten seconds failed, and it's worse than the others by 30 percentage points. What
/// is a fault is listed in the guide: [health](crate::guide::several_backends#health).
///
/// Three rules keep it from doing harm. No member is taken out by its responses while most of the others fail, too. At
/// most half of the members, rounded down, are out by their responses at the same time; members that can't be reached
/// don't count. A member without a sibling stays.
///
/// A member that is out comes back without an error for any client: by a background connect if it couldn't be reached,
/// by the [`Check`](super::Check) if there is one, and by one request otherwise, a `GET` or `HEAD` without a body,
/// which goes to another member if it fails, or if its response is late. A late response is awaited without the
/// request, for at least two seconds and ten times the usual latency. The member then gets its share by and by: see
/// [`slow_start`](super::BackendsBuilder::slow_start).
///
/// ```
/// use std::time::Duration;
/// use tower_reverse_proxy::{Backends, balance::Eject};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let backends = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
///     .eject(Eject::default().faults(10).backoff(Duration::from_secs(5)))
///     .build()?;
/// # let _ = backends;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(alias = "outlier detection")]
#[doc(alias = "circuit breaker")]
#[doc(alias = "max_fails")]
pub struct Eject {
    pub(super) is_on: bool,
    pub(super) faults: u32,
    pub(super) backoff: Duration,
    pub(super) max_backoff: Duration,
    statuses: Vec<StatusCode>,
}

impl Default for Eject {
    fn default() -> Self {
        Self {
            is_on: true,
            faults: 5,
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(60),
            statuses: Vec::new(),
        }
    }
}

impl Eject {
    /// Takes no member out by what its responses or connects show. A recent fault still counts as load, so that a
    /// member that fails at once doesn't get most of the requests. Checks still take members out.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::Eject};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let members = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"];
    /// let backends = Backends::builder(members).eject(Eject::never()).build()?;
    /// # let _ = backends;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn never() -> Self {
        Self { is_on: false, ..Self::default() }
    }

    /// Sets after how many faults in a row a member is out. Default: 5. `0` is taken as 1.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::Eject;
    ///
    /// let eject = Eject::default().faults(3);
    /// # let _ = eject;
    /// ```
    #[must_use]
    pub fn faults(mut self, in_a_row: u32) -> Self {
        self.faults = in_a_row.clamp(1, u32::MAX / 4);
        self
    }

    /// Sets further statuses that are faults. Default: none besides 502, 503 and 504.
    ///
    /// A 429 is no fault by itself, because the limit is usually the client's.
    ///
    /// ```
    /// use axum::http::StatusCode;
    /// use tower_reverse_proxy::balance::Eject;
    ///
    /// // The members limit the front as a whole.
    /// let eject = Eject::default().statuses([StatusCode::TOO_MANY_REQUESTS]);
    /// # let _ = eject;
    /// ```
    #[must_use]
    pub fn statuses(mut self, statuses: impl IntoIterator<Item = StatusCode>) -> Self {
        self.statuses = statuses.into_iter().collect();
        self
    }

    /// Sets for how long a member is out at first. Default: 1 second. The time doubles with each failed attempt to come
    /// back, and varies by 20 %. It halves again with each minute in which the member wasn't out.
    ///
    /// The `Retry-After` of a 503, in seconds or as a date, prolongs it, up to 30 seconds.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::balance::Eject;
    ///
    /// let eject = Eject::default().backoff(Duration::from_secs(10));
    /// # let _ = eject;
    /// ```
    #[doc(alias = "fail_timeout")]
    #[must_use]
    pub fn backoff(mut self, first: Duration) -> Self {
        self.backoff = first;
        self
    }

    /// Sets for how long a member is out at most between two attempts to come back. Default: 60 seconds.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::balance::Eject;
    ///
    /// let eject = Eject::default().max_backoff(Duration::from_secs(20));
    /// # let _ = eject;
    /// ```
    #[must_use]
    pub fn max_backoff(mut self, longest: Duration) -> Self {
        self.max_backoff = longest;
        self
    }

    pub(super) fn counts_status(&self, status: StatusCode) -> bool {
        self.statuses.contains(&status)
    }

    /// Returns how long a member is out for the `exponent`-th time in a row. `random` is in 0..1.
    pub(super) fn backoff_at(&self, exponent: u32, random: f64) -> Duration {
        // Sooner than this, a member that is out would cost a connect for each request.
        const LEAST: Duration = Duration::from_millis(10);
        let doubled = self.backoff.saturating_mul(1 << exponent.min(16)).min(self.max_backoff).max(LEAST);
        doubled.min(Duration::from_secs(24 * 60 * 60)).mul_f64(0.4f64.mul_add(random.clamp(0.0, 1.0), 0.8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_out_doubles_up_to_its_maximum() {
        let eject = Eject::default();
        let seconds: Vec<u64> = (0..9).map(|exponent| eject.backoff_at(exponent, 0.5).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(eject.backoff_at(u32::MAX, 0.5), Duration::from_secs(60));
    }

    #[test]
    fn the_time_out_varies_by_a_fifth() {
        let eject = Eject::default();
        assert_eq!(eject.backoff_at(0, 0.0), Duration::from_millis(800));
        assert_eq!(eject.backoff_at(0, 1.0), Duration::from_millis(1200));
    }

    #[test]
    fn a_backoff_beyond_all_bounds_does_not_overflow() {
        let eject = Eject::default().backoff(Duration::MAX).max_backoff(Duration::MAX).faults(u32::MAX);
        assert!(eject.backoff_at(9, 1.0) <= Duration::from_secs(2 * 24 * 60 * 60));
        assert!(Eject::default().backoff(Duration::ZERO).backoff_at(0, 0.0) > Duration::ZERO);
    }
}
