//! The description of a simulated member.

use std::{
    ops::{Bound, RangeBounds},
    time::Duration,
};

use super::{Behaviour, ServiceTime};

/// A member of a [`Simulation`](super::Simulation): how many requests it works on at a time, how long each takes, and
/// what goes wrong when.
///
/// Requests that find every worker busy wait in one queue, first come first served. A member doesn't notice that a
/// client has left, as many web servers don't: it works on the request all the same.
///
/// ```
/// use std::time::Duration;
/// use tower_reverse_proxy::simulation::{Behaviour, ServiceTime, SimulatedMember};
///
/// let second = Duration::from_secs;
/// let member = SimulatedMember::new("http://10.0.0.1:8000")
///     .workers(8)
///     .service_time(ServiceTime::exponential(Duration::from_millis(50)))
///     .during(second(20)..second(30), Behaviour::down());
/// # let _ = member;
/// ```
#[derive(Clone, Debug)]
pub struct SimulatedMember {
    pub(super) name: String,
    pub(super) workers: usize,
    pub(super) service_time: ServiceTime,
    pub(super) windows: Vec<Window>,
}

/// A time from `start` to before `end`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: Duration,
    /// `Duration::MAX` if it doesn't end.
    pub(super) end: Duration,
    pub(super) behaviour: Behaviour,
}

impl Window {
    pub(super) fn contains(&self, at: Duration) -> bool {
        self.start <= at && at < self.end
    }
}

impl SimulatedMember {
    /// Creates a member with one worker, which takes exactly 50 ms for each request.
    ///
    /// The name is the address that the balancer knows it by.
    ///
    /// ```
    /// use tower_reverse_proxy::simulation::SimulatedMember;
    ///
    /// let member = SimulatedMember::new("http://10.0.0.1:8000");
    /// # let _ = member;
    /// ```
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        let service_time = ServiceTime::fixed(Duration::from_millis(50));
        Self { name: name.into(), workers: 1, service_time, windows: Vec::new() }
    }

    /// Sets how many requests are worked on at a time. Default: 1. A member without workers accepts requests and never
    /// responds.
    ///
    /// ```
    /// use tower_reverse_proxy::simulation::SimulatedMember;
    ///
    /// let member = SimulatedMember::new("http://10.0.0.1:8000").workers(8);
    /// # let _ = member;
    /// ```
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Sets how long a worker is busy with each request. Default: exactly 50 ms.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::simulation::{ServiceTime, SimulatedMember};
    ///
    /// let time = ServiceTime::exponential(Duration::from_millis(20));
    /// let member = SimulatedMember::new("http://10.0.0.1:8000").service_time(time);
    /// # let _ = member;
    /// ```
    #[must_use]
    pub fn service_time(mut self, time: ServiceTime) -> Self {
        self.service_time = time;
        self
    }

    /// Adds a behaviour for a time, which is counted from the start of the simulation. Default: none.
    ///
    /// Where times overlap, all of it applies: a member that is down refuses; otherwise, the first status or close
    /// whose share is hit is the response; the factors of slow times are multiplied.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::simulation::{Behaviour, SimulatedMember};
    ///
    /// let second = Duration::from_secs;
    /// let member = SimulatedMember::new("http://10.0.0.1:8000")
    ///     .during(second(10)..second(12), Behaviour::down())
    ///     .during(second(12)..second(17), Behaviour::slow(3.0));
    /// # let _ = member;
    /// ```
    #[must_use]
    pub fn during(mut self, time: impl RangeBounds<Duration>, behaviour: Behaviour) -> Self {
        let (start, end) = bounds(&time);
        let at = self.windows.partition_point(|window| window.start <= start);
        self.windows.insert(at, Window { start, end, behaviour });
        self
    }
}

/// A range as its first instant and the first one after it.
pub(super) fn bounds(range: &impl RangeBounds<Duration>) -> (Duration, Duration) {
    const NEXT: Duration = Duration::from_nanos(1);
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(NEXT),
        Bound::Unbounded => Duration::ZERO,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(NEXT),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => Duration::MAX,
    };
    (start, end)
}
