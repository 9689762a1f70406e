//! What became of the requests of a simulation.

use std::{fmt, ops::RangeBounds, sync::Arc, time::Duration};

use http::StatusCode;

use super::member::bounds;
use crate::error::ErrorKind;

/// What became of the requests of a [`Simulation`](super::Simulation), or of those that arrived [during](Self::during)
/// a part of it.
///
/// `Display` shows the most important figures, for the message of an assertion.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// use std::time::Duration;
/// use tower_reverse_proxy::simulation::{ServiceTime, SimulatedMember, Simulation};
///
/// let service_time = ServiceTime::exponential(Duration::from_millis(50));
/// let simulation = Simulation::new(1)
///     .rate(16.0)
///     .lasting(Duration::from_secs(600))
///     .member(SimulatedMember::new("http://a").service_time(service_time));
/// let report = simulation.run(|members| members.service("http://a")).await;
///
/// // 16 requests a second, 50 ms each: the member is busy for 80 % of the time. Queueing theory has a mean of 250 ms.
/// assert!(report.mean_latency() < Duration::from_millis(350), "{report}");
/// assert!(report.latency(0.99) > Duration::from_millis(700), "{report}");
/// # }
/// ```
#[derive(Clone)]
pub struct Report {
    run: Arc<Run>,
    from: Duration,
    to: Duration,
}

pub(super) struct Run {
    /// In the order of arrival.
    pub(super) requests: Vec<Exchange>,
    /// For each member: the name, and when each attempt arrived.
    pub(super) attempts: Vec<(String, Vec<Duration>)>,
}

/// A request and its end. Times are counted from the start of the simulation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    pub(super) arrived: Duration,
    pub(super) ended: Duration,
    pub(super) outcome: Outcome,
    /// The index of the member that responded.
    pub(super) member: Option<usize>,
}

/// The end of a simulated request.
///
/// ```
/// use axum::http::StatusCode;
/// use tower_reverse_proxy::{ErrorKind, simulation::Outcome};
///
/// assert!(Outcome::Status(StatusCode::NOT_FOUND).is_success());
/// assert!(Outcome::Error(ErrorKind::Connect).is_failure());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// A response with this status, to the end of its body.
    Status(StatusCode),
    /// No response, because of this failure.
    Error(ErrorKind),
    /// The client left before the response was complete: see [`patience`](super::Simulation::patience).
    Left,
    /// The simulation ended before.
    Unfinished,
}

impl Outcome {
    /// Returns `true` for a response with a status below 500.
    ///
    /// ```
    /// # use axum::http::StatusCode;
    /// # use tower_reverse_proxy::simulation::Outcome;
    /// assert!(Outcome::Status(StatusCode::OK).is_success());
    /// assert!(!Outcome::Status(StatusCode::BAD_GATEWAY).is_success());
    /// ```
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::Status(status) if !status.is_server_error())
    }

    /// Returns `true` for an error, and for a response with a status of 500 or above. A client that left saw neither a
    /// success nor a failure.
    ///
    /// ```
    /// # use axum::http::StatusCode;
    /// # use tower_reverse_proxy::simulation::Outcome;
    /// assert!(Outcome::Status(StatusCode::BAD_GATEWAY).is_failure());
    /// assert!(!Outcome::Left.is_failure() && !Outcome::Left.is_success());
    /// ```
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Status(_) | Self::Error(_)) && !self.is_success()
    }
}

impl Report {
    pub(super) fn new(run: Run) -> Self {
        Self { run: Arc::new(run), from: Duration::ZERO, to: Duration::MAX }
    }

    /// Returns the report of the requests that arrived in this part of the simulation.
    ///
    /// Parts of a part count from the start of the simulation, too.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use std::time::Duration;
    /// # use tower_reverse_proxy::simulation::{Behaviour, SimulatedMember, Simulation};
    /// # let second = Duration::from_secs;
    /// let member = SimulatedMember::new("http://a").workers(100).during(second(30).., Behaviour::down());
    /// let simulation = Simulation::new(1).lasting(second(60)).member(member);
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert_eq!(report.during(..second(29)).failed(), 0);
    /// assert_eq!(report.during(second(30)..).succeeded(), 0);
    /// # }
    /// ```
    #[must_use]
    pub fn during(&self, time: impl RangeBounds<Duration>) -> Self {
        let (from, to) = bounds(&time);
        Self { run: Arc::clone(&self.run), from: from.max(self.from), to: to.min(self.to) }
    }

    /// Returns the number of requests that arrived.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use tower_reverse_proxy::simulation::Simulation;
    /// let report = Simulation::new(1).run(|members| members.service("http://a")).await;
    /// assert_eq!(report.offered(), report.succeeded() + report.failed() + report.left() + report.unfinished());
    /// # }
    /// ```
    #[must_use]
    pub fn offered(&self) -> usize {
        self.requests().len()
    }

    /// Returns the number of requests with this outcome.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use axum::http::StatusCode;
    /// # use tower_reverse_proxy::simulation::{Outcome, SimulatedMember, Simulation};
    /// let simulation = Simulation::new(1).member(SimulatedMember::new("http://a"));
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert_eq!(report.count(Outcome::Status(StatusCode::OK)), report.offered());
    /// # }
    /// ```
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> usize {
        self.requests().iter().filter(|request| request.outcome == outcome).count()
    }

    /// Returns the number of requests with a [success](Outcome::is_success) as their outcome.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use tower_reverse_proxy::simulation::Simulation;
    /// // Nothing listens at an address without a member.
    /// let report = Simulation::new(1).run(|members| members.service("http://nowhere")).await;
    /// assert_eq!((report.succeeded(), report.failed()), (0, report.offered()));
    /// # }
    /// ```
    #[must_use]
    pub fn succeeded(&self) -> usize {
        self.requests().iter().filter(|request| request.outcome.is_success()).count()
    }

    /// Returns the number of requests with a [failure](Outcome::is_failure) as their outcome: errors that a client saw.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    /// let simulation = Simulation::new(1).member(SimulatedMember::new("http://a"));
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert_eq!(report.failed(), 0, "{report}");
    /// # }
    /// ```
    #[must_use]
    pub fn failed(&self) -> usize {
        self.requests().iter().filter(|request| request.outcome.is_failure()).count()
    }

    /// Returns the number of clients that [left](super::Simulation::patience).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use std::time::Duration;
    /// # use tower_reverse_proxy::simulation::{Behaviour, SimulatedMember, Simulation};
    /// let stopped = SimulatedMember::new("http://a").during(.., Behaviour::hang());
    /// let simulation = Simulation::new(1).patience(Duration::from_secs(10)).member(stopped);
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert_eq!(report.left(), report.offered());
    /// # }
    /// ```
    #[must_use]
    pub fn left(&self) -> usize {
        self.count(Outcome::Left)
    }

    /// Returns the number of requests that had no end when the simulation ended: a minute after the last arrival.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use tower_reverse_proxy::simulation::{Behaviour, SimulatedMember, Simulation};
    /// let stopped = SimulatedMember::new("http://a").during(.., Behaviour::hang());
    /// let report = Simulation::new(1).member(stopped).run(|members| members.service("http://a")).await;
    /// assert_eq!(report.unfinished(), report.offered());
    /// # }
    /// ```
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.count(Outcome::Unfinished)
    }

    /// Returns a quantile of the time from arrival to the end of the response, of the requests that
    /// [succeeded](Self::succeeded): 0.5 is the median, 0.99 the time that one in a hundred exceeds. Zero if none
    /// succeeded.
    ///
    /// Times have a resolution of a millisecond, as the timers of tokio.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use std::time::Duration;
    /// # use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    /// let simulation = Simulation::new(1).rate(1.0).member(SimulatedMember::new("http://a").workers(10));
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert!(report.latency(0.99) < Duration::from_millis(53), "{report}");
    /// # }
    /// ```
    #[must_use]
    #[doc(alias("percentile", "p99"))]
    pub fn latency(&self, quantile: f64) -> Duration {
        let mut times = self.latencies();
        let Some(last) = times.len().checked_sub(1) else { return Duration::ZERO };
        let at = ((times.len() as f64 * quantile) as usize).min(last);
        *times.select_nth_unstable(at).1
    }

    /// Returns the mean time from arrival to the end of the response, of the requests that
    /// [succeeded](Self::succeeded). Zero if none succeeded.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use std::time::Duration;
    /// # use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    /// let simulation = Simulation::new(1).rate(1.0).member(SimulatedMember::new("http://a").workers(10));
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert!(report.mean_latency() < Duration::from_millis(53), "{report}");
    /// # }
    /// ```
    #[must_use]
    pub fn mean_latency(&self) -> Duration {
        let times = self.latencies();
        let sum: f64 = times.iter().map(Duration::as_secs_f64).sum();
        Duration::try_from_secs_f64(sum / times.len() as f64).unwrap_or_default()
    }

    /// Returns how many requests were under way on average in this time, those that arrived earlier included.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use std::time::Duration;
    /// # use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    /// # let second = Duration::from_secs;
    /// // One worker completes 20 requests a second. The queue grows by ten a second.
    /// let simulation = Simulation::new(1).rate(30.0).lasting(second(60)).member(SimulatedMember::new("http://a"));
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert!(report.during(second(50)..second(60)).in_flight() > 400.0);
    /// # }
    /// ```
    #[must_use]
    pub fn in_flight(&self) -> f64 {
        let last = self.run.requests.iter().map(|request| request.ended).max().unwrap_or_default();
        let (from, to) = (self.from, self.to.min(last));
        let overlaps = self.run.requests.iter().map(|request| {
            let overlap = request.ended.min(to).saturating_sub(request.arrived.max(from));
            overlap.as_secs_f64()
        });
        let sum = overlaps.sum::<f64>();
        if sum > 0.0 { sum / to.saturating_sub(from).as_secs_f64() } else { 0.0 }
    }

    /// Returns the number of attempts that all members together got in this time. Without retries, it's the number of
    /// [requests](Self::offered).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    /// let simulation = Simulation::new(1).member(SimulatedMember::new("http://a"));
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert_eq!(report.attempts(), report.offered());
    /// # }
    /// ```
    #[must_use]
    pub fn attempts(&self) -> usize {
        self.run.attempts.iter().map(|(_, times)| self.within(times)).sum()
    }

    /// Returns the number of attempts that the member of this name got in this time; 0 for an unknown name.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    /// let simulation = Simulation::new(1).member(SimulatedMember::new("http://a"));
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert_eq!(report.attempts_of("http://a"), report.offered());
    /// # }
    /// ```
    #[must_use]
    pub fn attempts_of(&self, name: &str) -> usize {
        self.run.attempts.iter().filter(|(member, _)| member == name).map(|(_, times)| self.within(times)).sum()
    }

    /// Returns the share of all attempts that the member of this name got in this time, from 0 to 1.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    /// let simulation = Simulation::new(1).member(SimulatedMember::new("http://a"));
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert_eq!(report.share("http://a"), 1.0);
    /// # }
    /// ```
    #[must_use]
    pub fn share(&self, name: &str) -> f64 {
        self.attempts_of(name) as f64 / self.attempts().max(1) as f64
    }

    /// Returns the number of requests whose response came from the member of this name.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    /// let simulation = Simulation::new(1).member(SimulatedMember::new("http://a"));
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert_eq!(report.responded_by("http://a"), report.offered());
    /// # }
    /// ```
    #[must_use]
    pub fn responded_by(&self, name: &str) -> usize {
        let index = self.run.attempts.iter().position(|(member, _)| member == name);
        let of_member = |request: &&Exchange| request.member.is_some() && request.member == index;
        self.requests().iter().filter(of_member).count()
    }

    /// Returns a number that depends on the outcome, the member and the time of every request. It's the same in each
    /// run of a simulation with the same seed and the same settings, with one version of this crate.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    /// let simulation = Simulation::new(1).member(SimulatedMember::new("http://a"));
    /// let first = simulation.run(|members| members.service("http://a")).await;
    /// let second = simulation.run(|members| members.service("http://a")).await;
    /// assert_eq!(first.digest(), second.digest());
    /// # }
    /// ```
    #[must_use]
    pub fn digest(&self) -> u64 {
        let numbers = self.requests().iter().flat_map(|request| {
            let outcome = match request.outcome {
                Outcome::Status(status) => u64::from(status.as_u16()),
                Outcome::Error(kind) => 1000 + kind as u64,
                Outcome::Left => 1,
                Outcome::Unfinished => 2,
            };
            let member = request.member.map_or(u64::MAX, |member| member as u64);
            [outcome, member, request.arrived.as_nanos() as u64, request.ended.as_nanos() as u64]
        });
        let attempts = self.run.attempts.iter().map(|(_, times)| self.within(times) as u64);
        // FNV-1a, a word at a time.
        numbers.chain(attempts).fold(0xcbf2_9ce4_8422_2325, |digest, number| {
            let mixed = (digest ^ number).wrapping_mul(0x0100_0000_01b3);
            mixed ^ (mixed >> 29)
        })
    }

    /// The requests that arrived in this time.
    fn requests(&self) -> &[Exchange] {
        let all = &self.run.requests;
        let from = all.partition_point(|request| request.arrived < self.from);
        let to = all.partition_point(|request| request.arrived < self.to);
        &all[from..to.max(from)]
    }

    fn latencies(&self) -> Vec<Duration> {
        let succeeded = self.requests().iter().filter(|request| request.outcome.is_success());
        succeeded.map(|request| request.ended.saturating_sub(request.arrived)).collect()
    }

    /// How many of these times, which are in order, are in this part.
    fn within(&self, times: &[Duration]) -> usize {
        let before = |limit: Duration| times.partition_point(|at| *at < limit);
        before(self.to).saturating_sub(before(self.from))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} requests, {} attempts, digest {:016x}", self.offered(), self.attempts(), self.digest())?;
        let mut outcomes: Vec<(Outcome, usize)> = Vec::new();
        for request in self.requests() {
            match outcomes.iter_mut().find(|(outcome, _)| *outcome == request.outcome) {
                Some((_, count)) => *count += 1,
                None => outcomes.push((request.outcome, 1)),
            }
        }
        for (outcome, count) in outcomes {
            writeln!(f, "{count} × {outcome:?}")?;
        }
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|quantile| self.latency(quantile));
        writeln!(f, "latency: mean {:?}, p50 {p50:?}, p90 {p90:?}, p99 {p99:?}", self.mean_latency())?;
        // A set may have thousands of members.
        for (name, times) in self.run.attempts.iter().take(20) {
            writeln!(f, "{name}: {} attempts, {:.2} %", self.within(times), self.share(name) * 100.0)?;
        }
        if let Some(rest) = self.run.attempts.len().checked_sub(20).filter(|rest| *rest > 0) {
            writeln!(f, "{rest} more members")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("offered", &self.offered())
            .field("failed", &self.failed())
            .finish_non_exhaustive()
    }
}
