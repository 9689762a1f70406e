//! What a simulated member does other than respond in its time.

use std::time::Duration;

use http::StatusCode;

/// What a [`SimulatedMember`](super::SimulatedMember) does [during](super::SimulatedMember::during) a time.
///
/// ```
/// use std::time::Duration;
/// use axum::http::StatusCode;
/// use tower_reverse_proxy::simulation::{Behaviour, SimulatedMember};
///
/// let second = Duration::from_secs;
/// let member = SimulatedMember::new("http://a")
///     // Restarted at 10 s, with cold caches for five seconds.
///     .during(second(10)..second(12), Behaviour::down())
///     .during(second(12)..second(17), Behaviour::slow(3.0))
///     // From one minute on, it refuses a third of the requests within a millisecond.
///     .during(second(60).., Behaviour::status(StatusCode::SERVICE_UNAVAILABLE).share(0.33));
/// # let _ = member;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    pub(super) kind: Kind,
    pub(super) share: f64,
    pub(super) after: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Down,
    Hang,
    Slow(f64),
    Status(StatusCode),
    Close,
}

impl Behaviour {
    /// The process is gone: connections are refused, so that nothing of a request is sent, and those that were under
    /// way at the beginning are closed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::simulation::{Behaviour, SimulatedMember};
    ///
    /// // kill -9 after five seconds
    /// let member = SimulatedMember::new("http://a").during(Duration::from_secs(5).., Behaviour::down());
    /// # let _ = member;
    /// ```
    #[must_use]
    pub fn down() -> Self {
        Self::new(Kind::Down)
    }

    /// The process stands still: it accepts requests and responds to none. At the end, it works on as if the time had
    /// not passed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::simulation::{Behaviour, SimulatedMember};
    ///
    /// // SIGSTOP after five seconds, SIGCONT after another ten
    /// let stopped = Duration::from_secs(5)..Duration::from_secs(15);
    /// let member = SimulatedMember::new("http://a").during(stopped, Behaviour::hang());
    /// # let _ = member;
    /// ```
    #[must_use]
    pub fn hang() -> Self {
        Self::new(Kind::Hang)
    }

    /// A request whose work begins in this time takes that many times as long. A factor of 0 or less is none at all.
    ///
    /// ```
    /// use tower_reverse_proxy::simulation::{Behaviour, SimulatedMember};
    ///
    /// // The whole time, without failures: a grey failure.
    /// let member = SimulatedMember::new("http://a").during(.., Behaviour::slow(20.0));
    /// # let _ = member;
    /// ```
    #[must_use]
    pub fn slow(factor: f64) -> Self {
        Self::new(Kind::Slow(factor.max(0.0)))
    }

    /// Responds with this status instead of working on the request: without a worker, [after](Self::after) a
    /// millisecond.
    ///
    /// ```
    /// use axum::http::StatusCode;
    /// use tower_reverse_proxy::simulation::{Behaviour, SimulatedMember};
    ///
    /// let unavailable = Behaviour::status(StatusCode::SERVICE_UNAVAILABLE);
    /// let black_hole = SimulatedMember::new("http://a").during(.., unavailable);
    /// # let _ = black_hole;
    /// ```
    #[must_use]
    pub fn status(status: StatusCode) -> Self {
        Self::new(Kind::Status(status))
    }

    /// Closes the connection instead of working on the request: without a worker, [after](Self::after) a millisecond.
    /// Whether the request was processed is unknown to the proxy.
    ///
    /// ```
    /// use tower_reverse_proxy::simulation::{Behaviour, SimulatedMember};
    ///
    /// let crashes = SimulatedMember::new("http://a").during(.., Behaviour::close().share(0.01));
    /// # let _ = crashes;
    /// ```
    #[must_use]
    pub fn close() -> Self {
        Self::new(Kind::Close)
    }

    /// Sets the share of requests that get this [`status`](Self::status) or [`close`](Self::close), from 0 to 1.
    /// Default: 1, all of them. The others are worked on as usual. The other behaviours have no share.
    ///
    /// ```
    /// # use axum::http::StatusCode;
    /// # use tower_reverse_proxy::simulation::Behaviour;
    /// let flaky = Behaviour::status(StatusCode::BAD_GATEWAY).share(0.3);
    /// # let _ = flaky;
    /// ```
    #[must_use]
    pub fn share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// Sets the time until the [`status`](Self::status) or the [`close`](Self::close). Default: 1 ms.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use axum::http::StatusCode;
    /// # use tower_reverse_proxy::simulation::Behaviour;
    /// let late = Behaviour::status(StatusCode::GATEWAY_TIMEOUT).after(Duration::from_secs(10));
    /// # let _ = late;
    /// ```
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.after = time;
        self
    }

    fn new(kind: Kind) -> Self {
        Self { kind, share: 1.0, after: Duration::from_millis(1) }
    }
}
