//! Simulates members, clients and failures, so that an application tests the settings of its balancer in `cargo test`.
//!
//! A [`Simulation`] sends requests to any service at random times, with no regard to the responses, as many independent
//! clients do. The service is what the application has in production, from retries to balancer; only in place of each
//! client is a [`Simulated`] member, with a number of workers, a queue, and failures at certain times. The [`Report`]
//! counts what became of the requests.
//!
//! Simulations are run under tokio's paused clock, in which minutes pass in a fraction of a second, and on one thread.
//! There, everything depends on the seed alone: what failed once fails again. In `Cargo.toml`:
//!
//! ```toml
//! [dev-dependencies]
//! tokio = { version = "1", features = ["macros", "rt", "test-util"] }
//! tower-reverse-proxy = { version = "0.1", features = ["simulation"] }
//! ```
//!
//! ```
//! # // The function is a test in an application.
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! # /*
//! #[tokio::test(start_paused = true)]
//! async fn a_dead_member_fails_what_it_works_on() {
//! # */
//!     use std::time::Duration;
//!     use tower_reverse_proxy::simulation::{Behaviour, ServiceTime, SimulatedMember, Simulation};
//!
//!     let member = SimulatedMember::new("http://10.0.0.1:8000")
//!         .workers(8)
//!         .service_time(ServiceTime::exponential(Duration::from_millis(50)))
//!         .during(Duration::from_secs(30).., Behaviour::down());
//!     let simulation = Simulation::new(7).rate(100.0).lasting(Duration::from_secs(60)).member(member);
//!     let report = simulation.run(|members| members.service("http://10.0.0.1:8000")).await;
//!     assert_eq!(report.during(..Duration::from_secs(29)).failed(), 0, "{report}");
//! # /*
//! }
//! # */
//! # }
//! ```
//!
//! The guide simulates a set of members: see [testing](crate::guide::testing#simulate-your-balancer).

mod arrivals;
mod behaviour;
mod chance;
mod member;
mod report;
mod run;
mod server;
mod service_time;
mod simulated;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use axum_core::body::Body;
use http::Request;

pub use self::{
    behaviour::Behaviour,
    member::SimulatedMember,
    report::{Outcome, Report},
    service_time::ServiceTime,
    simulated::{Simulated, SimulatedFuture, SimulatedMembers},
};

/// Requests at random times, for a service over simulated members.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// use std::time::Duration;
/// use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
///
/// let simulation = Simulation::new(7)
///     .rate(100.0)
///     .lasting(Duration::from_secs(60))
///     .member(SimulatedMember::new("http://10.0.0.1:8000").workers(8));
/// let report = simulation.run(|members| members.service("http://10.0.0.1:8000")).await;
/// assert_eq!(report.failed(), 0, "{report}");
/// # }
/// ```
#[derive(Clone)]
#[doc(alias("test", "load test", "chaos"))]
pub struct Simulation {
    seed: u64,
    rates: BTreeMap<Duration, f64>,
    lasting: Duration,
    patience: Option<Duration>,
    request: Arc<dyn Fn(u64) -> Request<Body> + Send + Sync>,
    members: Vec<SimulatedMember>,
}

impl Simulation {
    /// Creates a simulation without members: 100 requests a second for ten seconds, each a `GET /` of a patient client.
    ///
    /// The times of arrival, the work of each request and the failures depend on the seed. A test has a constant one.
    /// It is tried with others while the test is written, because a single seed may be lucky.
    ///
    /// ```
    /// use tower_reverse_proxy::simulation::Simulation;
    ///
    /// let simulation = Simulation::new(7);
    /// # let _ = simulation;
    /// ```
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            rates: BTreeMap::from([(Duration::ZERO, 100.0)]),
            lasting: Duration::from_secs(10),
            patience: None,
            request: Arc::new(|_| Request::new(Body::empty())),
            members: Vec::new(),
        }
    }

    /// Sets how many requests arrive per second on average. Default: 100. The gaps between them are exponential (a
    /// Poisson process). Zero, a negative number and NaN are no requests.
    ///
    /// ```
    /// use tower_reverse_proxy::simulation::Simulation;
    ///
    /// let simulation = Simulation::new(7).rate(1000.0);
    /// # let _ = simulation;
    /// ```
    #[must_use]
    pub fn rate(self, per_second: f64) -> Self {
        self.rate_from(Duration::ZERO, per_second)
    }

    /// Sets the [rate](Self::rate) from this time on, until the next change. Default: it doesn't change.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::simulation::Simulation;
    ///
    /// let second = Duration::from_secs;
    /// // A storm of ten seconds.
    /// let simulation = Simulation::new(7).rate(80.0).rate_from(second(20), 130.0).rate_from(second(30), 80.0);
    /// # let _ = simulation;
    /// ```
    #[must_use]
    pub fn rate_from(mut self, start: Duration, per_second: f64) -> Self {
        self.rates.insert(start, per_second.max(0.0));
        self
    }

    /// Sets for how long requests arrive. Default: 10 s. After that, the simulation goes on for at most a minute, until
    /// each request has its end.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::simulation::Simulation;
    ///
    /// let simulation = Simulation::new(7).lasting(Duration::from_secs(60));
    /// # let _ = simulation;
    /// ```
    #[must_use]
    pub fn lasting(mut self, time: Duration) -> Self {
        self.lasting = time;
        self
    }

    /// Sets after which time clients leave if the response isn't complete. Default: never. The future of the request is
    /// dropped, as a server does when a client disconnects.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::simulation::Simulation;
    ///
    /// let simulation = Simulation::new(7).patience(Duration::from_secs(10));
    /// # let _ = simulation;
    /// ```
    #[must_use]
    pub fn patience(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.patience = time.into();
        self
    }

    /// Sets what the clients send: a function that gets the number of the request, from 0. Default: `GET /`.
    ///
    /// ```
    /// use axum::{body::Body, http::Request};
    /// use tower_reverse_proxy::simulation::Simulation;
    ///
    /// // One in ten is an order, which must not be sent twice.
    /// let simulation = Simulation::new(7).request(|number| match number % 10 {
    ///     0 => Request::post("/orders").body(Body::from("one of these")).unwrap(),
    ///     _ => Request::get("/").body(Body::empty()).unwrap(),
    /// });
    /// # let _ = simulation;
    /// ```
    #[must_use]
    pub fn request<F>(mut self, request: F) -> Self
    where
        F: Fn(u64) -> Request<Body> + Send + Sync + 'static,
    {
        self.request = Arc::new(request);
        self
    }

    /// Adds a member. Default: none.
    ///
    /// ```
    /// use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    ///
    /// let simulation = Simulation::new(7).member(SimulatedMember::new("http://10.0.0.1:8000"));
    /// # let _ = simulation;
    /// ```
    #[must_use]
    pub fn member(mut self, member: SimulatedMember) -> Self {
        self.members.push(member);
        self
    }

    /// Adds members. Default: none.
    ///
    /// ```
    /// use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    ///
    /// let members = (1..=10).map(|n| SimulatedMember::new(format!("http://10.0.0.{n}:8000")));
    /// let simulation = Simulation::new(7).members(members);
    /// # let _ = simulation;
    /// ```
    #[must_use]
    pub fn members(mut self, members: impl IntoIterator<Item = SimulatedMember>) -> Self {
        self.members.extend(members);
        self
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("seed", &self.seed)
            .field("rates", &self.rates)
            .field("lasting", &self.lasting)
            .field("patience", &self.patience)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}
