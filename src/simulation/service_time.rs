//! How long a simulated member works on a request.

use std::time::Duration;

/// How long a worker of a [`SimulatedMember`](super::SimulatedMember) is busy with one request.
///
/// The time that a request needs is drawn for the request, not for the member: two policies that are simulated with one
/// seed get the same requests.
///
/// ```
/// use std::time::Duration;
/// use tower_reverse_proxy::simulation::{ServiceTime, SimulatedMember};
///
/// let pages = SimulatedMember::new("http://a").service_time(ServiceTime::exponential(Duration::from_millis(50)));
/// let files = SimulatedMember::new("http://b").service_time(ServiceTime::fixed(Duration::from_millis(5)));
/// # let _ = (pages, files);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServiceTime(Distribution);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Distribution {
    Fixed(Duration),
    Exponential(Duration),
}

impl ServiceTime {
    /// Each request takes this time.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_reverse_proxy::simulation::ServiceTime;
    /// assert_eq!(ServiceTime::fixed(Duration::from_millis(5)).mean(), Duration::from_millis(5));
    /// ```
    #[must_use]
    pub const fn fixed(time: Duration) -> Self {
        Self(Distribution::Fixed(time))
    }

    /// Times are distributed exponentially around this mean: 37 % of them are longer than the mean, 5 % longer than
    /// three times the mean.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_reverse_proxy::simulation::ServiceTime;
    /// assert_eq!(ServiceTime::exponential(Duration::from_millis(5)).mean(), Duration::from_millis(5));
    /// ```
    #[must_use]
    pub const fn exponential(mean: Duration) -> Self {
        Self(Distribution::Exponential(mean))
    }

    /// Returns the mean time.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_reverse_proxy::simulation::ServiceTime;
    /// // Four workers complete 80 requests a second.
    /// let mean = ServiceTime::exponential(Duration::from_millis(50)).mean();
    /// assert_eq!(4.0 / mean.as_secs_f64(), 80.0);
    /// ```
    #[must_use]
    pub const fn mean(&self) -> Duration {
        match self.0 {
            Distribution::Fixed(time) | Distribution::Exponential(time) => time,
        }
    }

    /// The time that belongs to a number drawn evenly between 0 and 1.
    pub(super) fn of(&self, drawn: f64) -> Duration {
        match self.0 {
            Distribution::Fixed(time) => time,
            Distribution::Exponential(mean) => times(mean, -drawn.ln()),
        }
    }
}

/// A multiple of a duration, without the panic of `mul_f64`.
pub(super) fn times(duration: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}
