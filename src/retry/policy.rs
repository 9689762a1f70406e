//! Which requests are sent again, and how often.

use std::{fmt, sync::Arc, time::Duration};

use axum_core::body::Body;
use http::Request;
use http_body::Body as _;
use tokio::time::Instant;

use super::{
    Hedge,
    budget::{Allowance, Budget},
    hedge::Latencies,
    jitter::Jitter,
    original::{Original, is_replayable},
    replay::{Limits, Memory},
};
use crate::method::is_idempotent;

/// Which requests a [`Retry`](super::Retry) sends again, and how often.
///
/// | policy | what is sent again | what it costs a request that succeeds |
/// |---|---|---|
/// | [`none()`](Self::none) | nothing | nothing |
/// | [`unsent()`](Self::unsent), the default | a request of which nothing reached a backend, with any method and any body | nothing: it comes back with the error |
/// | [`idempotent()`](Self::idempotent) | also `GET`, `HEAD`, `OPTIONS`, `PUT` and `DELETE` after a cut, 502, 503 or 504 | a copy of its head, and up to 64 KiB of its body in memory until the response begins |
///
/// Clones share the [budget](Self::budget_percent) and the [memory](Self::replay_memory).
///
/// ```
/// use tower_reverse_proxy::{Retry, RetryPolicy, Upstream};
///
/// let upstream = Retry::new(Upstream::new("http://127.0.0.1:8000"), RetryPolicy::idempotent().attempts(2));
/// # let _ = upstream;
/// ```
#[derive(Clone)]
#[must_use]
#[doc(alias = "proxy_next_upstream")]
#[doc(alias = "retry_on")]
pub struct RetryPolicy {
    attempts: u32,
    // Behind a pointer, because the service is cloned for each request.
    idempotent: Option<Arc<Idempotent>>,
}

/// What only [`RetryPolicy::idempotent`] has.
#[derive(Clone)]
pub(super) struct Idempotent {
    options: Options,
    shared: Arc<Shared>,
}

#[derive(Clone, Copy, Debug)]
struct Options {
    allowance: Allowance,
    limits: Limits,
    by_idempotency_key: bool,
    hedge: Option<Hedge>,
}

struct Shared {
    budget: Budget,
    memory: Arc<Memory>,
    jitter: Jitter,
    latencies: Latencies,
}

impl Shared {
    fn new(jitter: Jitter) -> Arc<Self> {
        let budget = Budget::new(Instant::now());
        Arc::new(Self { budget, memory: Arc::default(), jitter, latencies: Latencies::new() })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            allowance: Allowance { percent: 10, floor: 30 },
            limits: Limits { request: 64 << 10, total: 64 << 20 },
            by_idempotency_key: false,
            hedge: None,
        }
    }
}

impl RetryPolicy {
    /// Sends nothing again: the first failure is the client's.
    ///
    /// ```
    /// use tower_reverse_proxy::RetryPolicy;
    ///
    /// let policy = RetryPolicy::none();
    /// # let _ = policy;
    /// ```
    pub fn none() -> Self {
        Self { attempts: 1, idempotent: None }
    }

    /// Sends a request again if nothing of it reached a backend: see [`Error::is_unsent`](crate::Error::is_unsent).
    ///
    /// Its method doesn't matter, and its body may have any size, because the request comes back with the
    /// [error](crate::Error::take_request). There is no pause before the next attempt, and no budget, because a backend
    /// has no work with such a request.
    ///
    /// ```
    /// use tower_reverse_proxy::RetryPolicy;
    ///
    /// let policy = RetryPolicy::unsent();
    /// # let _ = policy;
    /// ```
    pub fn unsent() -> Self {
        Self { attempts: 3, idempotent: None }
    }

    /// Sends a request again as [`unsent`](Self::unsent) does, and also if a backend may have processed it, but a
    /// second request has the effect of one (RFC 9110, section 9.2.2): `GET`, `HEAD`, `OPTIONS`, `PUT` and `DELETE`.
    ///
    /// It does so after one of these:
    ///
    /// - the connection ended before the response's head was complete;
    /// - the status is 502, 503 or 504;
    /// - a response of gRPC has no message and the status `UNAVAILABLE`. As gRPC's requests are `POST`s, they need an
    ///   [`Idempotency-Key`](Self::idempotency_key).
    ///
    /// Such a retry comes out of the [budget](Self::budget_percent). It waits for a random time of up to 25 ms, and of
    /// twice as long before each further one. If there is none, the last response or failure is the client's.
    ///
    /// A body is sent again if what an attempt has read of it is in memory: see [`replay_limit`](Self::replay_limit).
    /// Trailers are sent again, too.
    ///
    /// A request is never sent again if its method is another one, such as `POST`; if it offers an
    /// [upgrade](crate::guide::upgrades); if its credentials sign in a connection (`Negotiate`, `NTLM`, an
    /// [`Owner::Principal`](crate::Owner::Principal)); or if its client has left, or sends an invalid body.
    ///
    /// ```
    /// use tower_reverse_proxy::RetryPolicy;
    ///
    /// let policy = RetryPolicy::idempotent();
    /// # let _ = policy;
    /// ```
    pub fn idempotent() -> Self {
        let shared = Shared::new(Jitter::random());
        Self { attempts: 3, idempotent: Some(Arc::new(Idempotent { options: Options::default(), shared })) }
    }

    /// Sets how many times a request is sent at most, the first time included. Default: 3. 0 counts as 1.
    ///
    /// ```
    /// use tower_reverse_proxy::RetryPolicy;
    ///
    /// let policy = RetryPolicy::unsent().attempts(2);
    /// # let _ = policy;
    /// ```
    #[doc(alias = "proxy_next_upstream_tries")]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets how many retries there may be, in percent of the requests of the last 10 s. Default: 10.
    ///
    /// [`budget_floor`](Self::budget_floor) is added to it. Backends that are overloaded therefore get little more than
    /// their load. Requests of which nothing was sent cost none of it. Without
    /// [`idempotent`](Self::idempotent), it has no effect.
    ///
    /// ```
    /// use tower_reverse_proxy::RetryPolicy;
    ///
    /// // The backends get at most 1.2 times the load.
    /// let policy = RetryPolicy::idempotent().budget_percent(20).budget_floor(0);
    /// # let _ = policy;
    /// ```
    #[doc(alias = "retry budget")]
    pub fn budget_percent(self, percent: u32) -> Self {
        self.set(|options| options.allowance.percent = percent)
    }

    /// Sets how many retries there may be in 10 s, besides the [share of the requests](Self::budget_percent). Default:
    /// 30.
    ///
    /// It's for the start, and for few requests. Without [`idempotent`](Self::idempotent), it has no effect.
    ///
    /// ```
    /// use tower_reverse_proxy::RetryPolicy;
    ///
    /// let policy = RetryPolicy::idempotent().budget_floor(10);
    /// # let _ = policy;
    /// ```
    pub fn budget_floor(self, retries: u32) -> Self {
        self.set(|options| options.allowance.floor = retries)
    }

    /// Sets how much of a request's body is kept for further attempts, in bytes. Default: 64 KiB.
    ///
    /// It's kept as it's sent, until the response begins. A body of which more was sent isn't sent again. With `0`,
    /// only requests of whose body nothing was read are. Without [`idempotent`](Self::idempotent), it has no effect: an
    /// unsent body needs no memory.
    ///
    /// ```
    /// use tower_reverse_proxy::RetryPolicy;
    ///
    /// let policy = RetryPolicy::idempotent().replay_limit(4 << 10);
    /// # let _ = policy;
    /// ```
    pub fn replay_limit(self, bytes: usize) -> Self {
        self.set(|options| options.limits.request = bytes)
    }

    /// Sets how much of all bodies is kept at a time under this policy and its clones, in bytes. Default: 64 MiB.
    ///
    /// A body that doesn't fit isn't sent again. Without [`idempotent`](Self::idempotent), it has no effect.
    ///
    /// ```
    /// use tower_reverse_proxy::RetryPolicy;
    ///
    /// let policy = RetryPolicy::idempotent().replay_memory(8 << 20);
    /// # let _ = policy;
    /// ```
    pub fn replay_memory(self, bytes: usize) -> Self {
        self.set(|options| options.limits.total = bytes)
    }

    /// Sets whether a `POST` with an `Idempotency-Key` is sent again as a `PUT` is. Default: `false`.
    ///
    /// The field is the client's. Choose it if every backend processes one key once, all of them together, and not each
    /// by itself. Without [`idempotent`](Self::idempotent), it has no effect.
    ///
    /// ```
    /// use tower_reverse_proxy::RetryPolicy;
    ///
    /// let policy = RetryPolicy::idempotent().idempotency_key(true);
    /// # let _ = policy;
    /// ```
    pub fn idempotency_key(self, retry: bool) -> Self {
        self.set(|options| options.by_idempotency_key = retry)
    }

    /// Sets when a request gets a second attempt although the first one hasn't failed. Default: never.
    ///
    /// The first response that isn't 502, 503 or 504 is the client's, and the other attempt is cancelled. It shortens
    /// the wait for a response of a backend that has stopped, or does something else for a while.
    ///
    /// It's for requests without a body whose method is idempotent. The second attempt goes to another member of a
    /// balancer; there is none if there is no other one, or if the [budget](Self::budget_percent) is spent. It counts
    /// as one of the [`attempts`](Self::attempts). Over HTTP/1.1, the cancelled attempt closes its connection. Without
    /// [`idempotent`](Self::idempotent), it has no effect.
    ///
    /// ```
    /// use tower_reverse_proxy::{RetryPolicy, retry::Hedge};
    ///
    /// let policy = RetryPolicy::idempotent().hedge(Hedge::at_p95());
    /// # let _ = policy;
    /// ```
    #[doc(alias = "hedging")]
    #[doc(alias = "tail latency")]
    pub fn hedge(self, hedge: Hedge) -> Self {
        self.set(|options| options.hedge = Some(hedge))
    }

    /// Sets the seed of the random pauses, so that a test with a paused clock is repeatable. Default: a random one.
    ///
    /// The policy no longer shares budget and memory with those that it was cloned from.
    ///
    /// ```
    /// use tower_reverse_proxy::RetryPolicy;
    ///
    /// let policy = RetryPolicy::idempotent().seed(1);
    /// # let _ = policy;
    /// ```
    pub fn seed(mut self, seed: u64) -> Self {
        if let Some(idempotent) = &mut self.idempotent {
            Arc::make_mut(idempotent).shared = Shared::new(Jitter::seeded(seed));
        }
        self
    }

    fn set(mut self, option: impl FnOnce(&mut Options)) -> Self {
        if let Some(idempotent) = &mut self.idempotent {
            option(&mut Arc::make_mut(idempotent).options);
        }
        self
    }

    /// Returns how many times a request is sent at most.
    pub(super) fn max_attempts(&self) -> u32 {
        self.attempts
    }

    /// Counts a request, and copies it if it may be sent again although a backend may have processed it.
    pub(super) fn begin(&self, request: &mut Request<Body>) -> Option<Box<Replayable>> {
        let Idempotent { options, shared } = &**self.idempotent.as_ref()?;
        shared.budget.deposit(Instant::now());
        if !is_replayable(request, options.by_idempotency_key) {
            return None;
        }
        let hedge = options.hedge.filter(|_| is_idempotent(request.method()) && request.body().is_end_stream());
        let hedge_after = hedge.and_then(|hedge| hedge.delay(&shared.latencies));
        let original = Original::of(request, options.limits, &shared.memory);
        let (allowance, shared, began) = (options.allowance, shared.clone(), hedge.map(|_| Instant::now()));
        Some(Box::new(Replayable { original, allowance, shared, began, hedge_after }))
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.idempotent.as_ref().map_or(0, |idempotent| idempotent.shared.memory.used())
    }
}

/// A request that may be sent again although a backend may have processed it.
pub(super) struct Replayable {
    pub(super) original: Original,
    allowance: Allowance,
    shared: Arc<Shared>,
    /// When it began, if it may be hedged.
    began: Option<Instant>,
    /// When it's hedged.
    pub(super) hedge_after: Option<Duration>,
}

impl Replayable {
    /// Returns the request for a hedge, if there may be one.
    pub(super) fn hedge(&self) -> Option<Request<Body>> {
        self.may_retry().then(|| self.original.with_body(Body::empty()))
    }

    /// Records the time to the head of the response.
    pub(super) fn responded(&self) {
        if let Some(began) = self.began {
            self.shared.latencies.record(began.elapsed());
        }
    }

    fn may_retry(&self) -> bool {
        self.original.is_replayable() && self.shared.budget.withdraw(self.allowance, Instant::now())
    }

    /// Returns the pause before a retry of the request, the number of which counts from 0. `None` if there is none.
    pub(super) fn pause(&self, retry: u32) -> Option<Duration> {
        self.may_retry().then(|| self.shared.jitter.pause(retry))
    }
}

/// The default is [`unsent`](Self::unsent).
impl Default for RetryPolicy {
    fn default() -> Self {
        Self::unsent()
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = self.idempotent.as_ref().map(|idempotent| &idempotent.options);
        f.debug_struct("RetryPolicy").field("attempts", &self.attempts).field("idempotent", &options).finish()
    }
}
