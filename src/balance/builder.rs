//! The options of a set.

use std::{convert::Infallible, error, fmt, sync::Arc, time::Duration};

use super::{
    backends::Backends, check::Check, eject::Eject, member::Member, pick::Pick, selection::Selection, snapshot::Rules,
    sticky::Sticky, subset::Subset,
};
use crate::{client::ClientBuilder, timeout::bounded};

/// Builds [`Backends`]. [`Backends::builder`] returns it.
///
/// ```
/// use std::time::Duration;
/// use tower_reverse_proxy::{Backends, ReverseProxyLayer};
///
/// let backends = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
///     .client(|client| client.connect_timeout(Duration::from_secs(1)));
/// let proxy = ReverseProxyLayer::balanced(backends).prefix("/app");
/// # let _ = proxy;
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it's built"]
pub struct BackendsBuilder {
    members: Vec<Member>,
    pub(super) options: Options,
}

/// The options, each with its default.
#[derive(Clone)]
pub(super) struct Options {
    client: Option<Arc<dyn Fn(ClientBuilder) -> ClientBuilder + Send + Sync>>,
    pub(super) selection: Selection,
    pub(super) max_requests: Option<u32>,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) drain_timeout: Option<Duration>,
    pub(super) seed: Option<u64>,
    pub(super) subset: Option<Subset>,
    /// The number of services if they exist already. Their names are the numbers below it.
    pub(super) services: Option<usize>,
    pub(super) health: HealthOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            client: None,
            selection: Selection::default(),
            max_requests: None,
            queue_timeout: Some(Duration::from_secs(1)),
            drain_timeout: Some(Duration::from_secs(30)),
            seed: None,
            subset: None,
            services: None,
            health: HealthOptions::default(),
        }
    }
}

/// The options of the members' health.
#[derive(Clone, Debug)]
pub(super) struct HealthOptions {
    pub(super) eject: Arc<Eject>,
    pub(super) check: Option<Arc<Check>>,
    pub(super) slow_start: Duration,
    none_healthy: NoneHealthy,
}

impl Default for HealthOptions {
    fn default() -> Self {
        Self {
            eject: Arc::default(),
            check: None,
            slow_start: Duration::from_secs(10),
            none_healthy: NoneHealthy::TryAll,
        }
    }
}

/// Where requests go if no member of a set is healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoneHealthy {
    /// All members are tried, backups included, because the judgement may be wrong, and because a member that is well
    /// again is found at once. The default.
    #[default]
    TryAll,
    /// The client gets 503 at once, with `Retry-After: 1`.
    Unavailable,
}

impl BackendsBuilder {
    pub(super) fn new<M: Into<Member>>(members: impl IntoIterator<Item = M>) -> Self {
        Self { members: members.into_iter().map(Into::into).collect(), options: Options::default() }
    }

    /// Sets the options of the members' clients: `options` gets the builder of each member's client, also of the
    /// members of later sets. Default: a client's own defaults.
    ///
    /// Each member has a client of its own, so that a limit applies to each of them.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Backends;
    ///
    /// let backends = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
    ///     .client(|client| client.connect_timeout(Duration::from_secs(1)).pool_max_idle(16));
    /// # let _ = backends;
    /// ```
    pub fn client(mut self, options: impl Fn(ClientBuilder) -> ClientBuilder + Send + Sync + 'static) -> Self {
        self.options.client = Some(Arc::new(options));
        self
    }

    /// Sets how the member of a request is picked. Default: [`Pick::LeastRequests`].
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::Pick};
    ///
    /// let members = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"];
    /// let backends = Backends::builder(members).pick(Pick::RoundRobin);
    /// # let _ = backends;
    /// ```
    #[doc(alias("lb_policy", "least_conn", "hash", "round_robin"))]
    pub fn pick(mut self, pick: Pick) -> Self {
        self.options.selection.pick = pick;
        self
    }

    /// Keeps the requests of a session at one member. Default: they aren't.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::Sticky};
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::balance::InvalidSticky> {
    /// # let key = "0123456789abcdef0123456789abcdef";
    /// let members = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"];
    /// // The key is from the configuration.
    /// let backends = Backends::builder(members).sticky(Sticky::cookie("backend", key)?);
    /// # let _ = backends;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("session affinity", "sticky session", "ip_hash"))]
    pub fn sticky(mut self, sticky: Sticky) -> Self {
        self.options.selection.sticky = Some(sticky);
        self
    }

    /// Sets when a member that fails is taken out of the set, and for how long. Default: [`Eject::default()`].
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::Eject};
    ///
    /// let backends = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]).eject(Eject::never());
    /// # let _ = backends;
    /// ```
    pub fn eject(mut self, eject: Eject) -> Self {
        self.options.health.eject = Arc::new(eject);
        self
    }

    /// Sets an active health check of the members. Default: none.
    ///
    /// The checks begin when the set is built, or with the first request if it's built outside of a tokio runtime. They
    /// end with the last handle of the set.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::Check};
    ///
    /// let members = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"];
    /// let backends = Backends::builder(members).check(Check::get("/healthz"));
    /// # let _ = backends;
    /// ```
    #[doc(alias = "health_check")]
    pub fn check(mut self, check: Check) -> Self {
        self.options.health.check = Some(Arc::new(check));
        self
    }

    /// Sets the time in which a member gets its share of the requests by and by, after it has come back, and after it
    /// was added to a running set. Default: 10 seconds.
    ///
    /// It gets a tenth of its share at first. Otherwise an idle member, whose caches are cold, would get most of the
    /// requests at once. Its weight is divided accordingly, and it gets no more than that part of its share although
    /// it's the least loaded one. With long requests it has fewer in flight than the others at the end of this time. It
    /// catches up for as long again, with at most 1.1 times its share. Round robin passes over a part of its turns, and
    /// with hashes, one key after the other comes home.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Backends;
    ///
    /// let backends =
    ///     Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]).slow_start(Duration::from_secs(30));
    /// # let _ = backends;
    /// ```
    #[doc(alias = "slowstart")]
    pub fn slow_start(mut self, time: Duration) -> Self {
        self.options.health.slow_start = time;
        self
    }

    /// Sets where requests go if no member is healthy. Default: [`NoneHealthy::TryAll`].
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::NoneHealthy};
    ///
    /// let backends =
    ///     Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]).none_healthy(NoneHealthy::Unavailable);
    /// # let _ = backends;
    /// ```
    #[doc(alias = "panic threshold")]
    pub fn none_healthy(mut self, none_healthy: NoneHealthy) -> Self {
        self.options.health.none_healthy = none_healthy;
        self
    }

    /// Sets how many requests may be in flight at each backend, event streams and tunnels included. Default: `None`, no
    /// limit. 0 is an error.
    ///
    /// A request that finds all backends full waits for the first of them that has room, in order of arrival, for no
    /// longer than the [`queue_timeout`](Self::queue_timeout). At most twice as many requests as there is room for may
    /// wait, but always 100. Further ones get 503 at once, as do those whose time is over
    /// ([`ErrorKind::Overloaded`](crate::ErrorKind::Overloaded)), with `Retry-After: 1`. A request that is sent again
    /// after a failure doesn't wait.
    ///
    /// The request that tries an ejected member, and active checks, take no permit.
    ///
    /// Each member's client may have a [`max_connections`](ClientBuilder::max_connections) too. Where this limit isn't
    /// above that one, no request waits there, where it could use its own backend only.
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// // Backends with eight worker processes each.
    /// let backends = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]).max_requests(8);
    /// # let _ = backends;
    /// ```
    #[doc(alias = "max_conns")]
    #[doc(alias = "maxconn")]
    pub fn max_requests(mut self, requests: impl Into<Option<u32>>) -> Self {
        self.options.max_requests = requests.into();
        self
    }

    /// Sets how long a request may wait at the limit of [`max_requests`](Self::max_requests). Default: 1 second. `None`
    /// disables it: a request then waits until a backend has room, or until none is left in the set.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Backends;
    ///
    /// let backends = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
    ///     .max_requests(8)
    ///     .queue_timeout(Duration::from_secs(5));
    /// # let _ = backends;
    /// ```
    pub fn queue_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.options.queue_timeout = bounded(timeout);
        self
    }

    /// Sets how long the tunnels of a backend last after it was removed from the set. Default: 30 seconds. With `None`,
    /// they last until a side closes them.
    ///
    /// Its exchanges aren't cut, however long they take.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Backends;
    ///
    /// let backends = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
    ///     .drain_timeout(Duration::from_secs(5));
    /// # let _ = backends;
    /// ```
    #[doc(alias = "deregistration delay")]
    pub fn drain_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.options.drain_timeout = bounded(timeout);
        self
    }

    /// Sets the seed of the random numbers by which members are picked. Default: another one in each process.
    ///
    /// It's for tests that have to give the same result again.
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// let backends = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]).seed(7);
    /// # let _ = backends;
    /// ```
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = Some(seed);
        self
    }

    /// Uses a part of the members only: `size` of them, chosen for replica number `instance` (from 0 on) `of` so many
    /// replicas of the application. Default: all.
    ///
    /// It's for many replicas with many members. Each replica counts its own requests in flight, and with a thousand
    /// members these counts are mostly 0, so that the least loaded member isn't found. With some twenty members per
    /// replica it is, and the replicas open fewer connections.
    ///
    /// The choice is the same in every process and needs no communication. Each member is used by as many replicas as
    /// any other, give or take one. A member that is added or removed changes each part by one or two members; another
    /// number of replicas changes nearly everything. If `size` times `of` is less than the number of members, the parts
    /// are larger, so that every member is in one. Each part has all backups.
    ///
    /// With [`sticky`](Self::sticky) or [`Pick::Hash`], it's an error: replicas with different parts would disagree
    /// about the member of a session or of a key, and a session would be lost with each request that reaches another
    /// replica.
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// let members = (0..100).map(|number| format!("http://10.0.0.{number}:8000"));
    /// // The fourth of ten replicas, such as the pod `app-3` of a StatefulSet.
    /// let backends = Backends::builder(members).subset(20, 3, 10).build()?;
    /// assert_eq!(backends.status().len(), 20);
    /// # Ok::<_, tower_reverse_proxy::balance::InvalidBackends>(())
    /// ```
    #[doc(alias = "deterministic subsetting")]
    pub fn subset(mut self, size: usize, instance: usize, of: usize) -> Self {
        self.options.subset = Some(Subset { size, instance, of });
        self
    }

    /// Builds the set.
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// let error = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.1:8000/"]).build().unwrap_err();
    /// assert!(error.to_string().contains("twice"));
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no member, a member isn't an origin, two of them are the same, a weight or a limit is 0, a client
    /// can't be built, the path of a check isn't one or its timeout is 0, or a subset is of no size, for a replica that
    /// doesn't exist, or of a set with sessions or hashed keys. The text contains what to write instead.
    pub fn build(self) -> Result<Backends, InvalidBackends> {
        if self.options.max_requests == Some(0) {
            let text = "invalid maximum of 0 requests: write 1 or more, or `None` for no limit";
            return Err(InvalidBackends::new(text.to_owned()));
        }
        if let Some(Subset { size, instance, of }) = self.options.subset
            && (size == 0 || instance >= of)
        {
            let text = format!(
                "invalid subset of {size} members for replica {instance} of {of}: write at least one member, and a \
                 number from 0 to one less than that of the replicas"
            );
            return Err(InvalidBackends::new(text));
        }
        if self.options.subset.is_some() && self.options.selection.is_partitioned() {
            let text = "a subset with `sticky` or a hash: replicas with different members would disagree about the \
                        member of a session or a key; leave out the subset, because sessions and keys need no counts \
                        of requests, or leave out the other two";
            return Err(InvalidBackends::new(text.to_owned()));
        }
        if let Some(check) = &self.options.health.check {
            check.path().map_err(|error| InvalidBackends::new(error.to_string()))?;
            if check.timeout.is_zero() {
                let text = "a check with a timeout of 0 never succeeds: write the longest time that a response of a \
                            healthy member may take, such as 2 seconds";
                return Err(InvalidBackends::new(text.to_owned()));
            }
            if self.members.iter().any(Member::is_service) {
                let text = "members that are named have no address to check: write addresses, or no check";
                return Err(InvalidBackends::new(text.to_owned()));
            }
        }
        Backends::build(&checked(self.members)?, self.options)
    }
}

impl Options {
    /// Returns what a view needs of the options.
    pub(super) fn rules(&self) -> Rules {
        let HealthOptions { slow_start, none_healthy, ref check, .. } = self.health;
        Rules { slow_start, tries_all: none_healthy == NoneHealthy::TryAll, has_checks: check.is_some() }
    }

    /// Returns whether all members get the same kinds of requests, so that their 5xx can be compared.
    pub(super) fn is_comparable(&self) -> bool {
        !self.selection.is_partitioned()
    }

    pub(super) fn client(&self, builder: ClientBuilder) -> ClientBuilder {
        match &self.client {
            Some(options) => options(builder),
            None => builder,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("selection", &self.selection)
            .field("max_requests", &self.max_requests)
            .field("queue_timeout", &self.queue_timeout)
            .field("drain_timeout", &self.drain_timeout)
            .field("seed", &self.seed)
            .field("subset", &self.subset)
            .field("services", &self.services)
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

/// Checks the members of a set.
pub(super) fn checked<M: Into<Member>>(members: impl IntoIterator<Item = M>) -> Result<Vec<Member>, InvalidBackends> {
    let members: Vec<Member> = members.into_iter().map(Into::into).collect();
    if members.is_empty() {
        return Err(InvalidBackends::new("there are no backends: write at least one".to_owned()));
    }
    for member in &members {
        member.check()?;
    }
    if members.iter().any(|member| member.is_service() != members[0].is_service()) {
        let text = "some members have an address and some are named: write addresses for all, or names for all";
        return Err(InvalidBackends::new(text.to_owned()));
    }
    let mut keys: Vec<_> = members.iter().map(Member::key).collect();
    keys.sort_unstable();
    if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        let text = format!("{:?} is listed twice: write it once, with a weight of 2 if it's meant so", pair[0]);
        return Err(InvalidBackends::new(text));
    }
    Ok(members)
}

/// The error returned when a set of backends can't be built, or can't be replaced.
///
/// Its text contains what to write instead. `Debug` shows the same text, because that is how an error returned from
/// `main` is printed.
///
/// ```
/// use tower_reverse_proxy::{Backends, balance::Member};
///
/// let error = Backends::try_new([Member::new("http://10.0.0.1:8000").weight(0)]).unwrap_err();
/// assert!(error.to_string().contains("write 1 or more"));
/// ```
#[derive(Clone)]
pub struct InvalidBackends {
    text: String,
}

impl InvalidBackends {
    pub(super) fn new(text: String) -> Self {
        Self { text }
    }
}

impl fmt::Display for InvalidBackends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for InvalidBackends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for InvalidBackends {}

impl From<Infallible> for InvalidBackends {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl TryFrom<BackendsBuilder> for Backends {
    type Error = InvalidBackends;

    fn try_from(builder: BackendsBuilder) -> Result<Self, Self::Error> {
        builder.build()
    }
}

impl<M: Into<Member>, const N: usize> TryFrom<[M; N]> for Backends {
    type Error = InvalidBackends;

    fn try_from(members: [M; N]) -> Result<Self, Self::Error> {
        Self::try_new(members)
    }
}

impl<M: Into<Member>> TryFrom<Vec<M>> for Backends {
    type Error = InvalidBackends;

    fn try_from(members: Vec<M>) -> Result<Self, Self::Error> {
        Self::try_new(members)
    }
}

impl From<&Self> for Backends {
    fn from(backends: &Self) -> Self {
        backends.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_set_names_what_to_write() {
        let url = "http://10.0.0.1:8000";
        for (members, hint) in [
            (vec![], "write at least one"),
            (vec![Member::new("10.0.0.1:8000")], "http://127.0.0.1:8000"),
            (vec![Member::new(url).weight(0)], "write 1 or more"),
            (
                vec![Member::new(url), Member::new("http://10.0.0.2:8000"), Member::new("HTTP://10.0.0.1:8000/")],
                "twice",
            ),
            (vec![Member::named("blue"), Member::named("blue")], "twice"),
            (vec![Member::new(url), Member::named("blue")], "names for all"),
            #[cfg(not(feature = "tls"))]
            (vec![Member::new("https://backend.example")], "feature `tls-ring`"),
        ] {
            let error = Backends::try_new(members.clone()).unwrap_err();
            assert!(error.to_string().contains(hint), "{error}");
            assert_eq!(format!("{error:?}"), error.to_string());
            // The set stays as it is.
            let backends = Backends::new([url]);
            assert!(backends.set(members).is_err());
            assert_eq!(backends.status()[0].backend(), url);
        }
        assert!(Backends::new([url]).set([Member::named("blue")]).unwrap_err().to_string().contains("addresses"));
        let at = |port| Member::new("http://app.example").at(([10, 0, 0, 1], port).into());
        assert!(Backends::try_new([at(8000), at(8001)]).is_ok());
        assert!(Backends::builder([url]).max_requests(0).build().unwrap_err().to_string().contains("write 1 or more"));
        let limited = Backends::builder([url]).client(|client| client.max_connections(0));
        assert!(limited.build().unwrap_err().to_string().contains("write `None`"));
    }
}
