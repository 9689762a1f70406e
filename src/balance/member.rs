//! A member of a set: its description, and the state that all mounts of the set share.

use std::{
    fmt, mem,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use http::Uri;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    builder::InvalidBackends,
    load::{Clock, Count, Load},
    outcome::Outcome,
    queue::Queue,
    set::Shared,
    snapshot::View,
    watch::Watch,
};
use crate::{
    backend::{Backend, InvalidBackend},
    client::{Client, ClientBuilder},
    tried::{MemberId, SetId},
    tunnel_guard::TunnelEnd,
};

/// One of several backends: its address, and how much of the requests it gets.
///
/// An origin becomes a member with the default options by itself, so that most sets are lists of URLs.
///
/// ```
/// use tower_reverse_proxy::{Backends, balance::Member};
///
/// # fn main() -> Result<(), tower_reverse_proxy::balance::InvalidBackends> {
/// let backends = Backends::try_new([
///     // Gets two thirds of the requests.
///     Member::new("http://10.0.0.1:8000").weight(2),
///     Member::new("http://10.0.0.2:8000"),
///     // Gets requests only if none of the others is healthy.
///     Member::new("unix:/run/spare.sock").backup(),
/// ])?;
/// # let _ = backends;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Member {
    name: Arc<str>,
    destination: Destination,
    address: Option<SocketAddr>,
    weight: u32,
    is_backup: bool,
    is_draining: bool,
    /// `Some` if it's a member of a set, and has an origin.
    client: Option<Client>,
    /// Whether the client has been taken. If not, requests go to a service that has nothing to do with it.
    is_client_used: Arc<AtomicBool>,
}

#[derive(Clone, Debug)]
enum Destination {
    Backend(Backend),
    /// It isn't one, which is an error of the set.
    Invalid(InvalidBackend),
    /// A service that isn't made from an address.
    Service,
}

impl Member {
    /// Describes a member by its origin, as `&str`, `String`, [`Uri`] or [`Backend`].
    ///
    /// An invalid origin is an error of the set that it's put into.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::Member};
    ///
    /// let error = Backends::try_new([Member::new("10.0.0.1:8000")]).unwrap_err();
    /// assert!(error.to_string().contains("http://"));
    /// ```
    pub fn new(backend: impl TryInto<Backend, Error: Into<InvalidBackend>>) -> Self {
        let (name, destination) = match backend.try_into().map_err(Into::into) {
            Ok(backend) => (backend.to_string(), Destination::Backend(backend)),
            Err(error) => (String::new(), Destination::Invalid(error)),
        };
        Self::with_destination(name, destination)
    }

    /// Describes a member that is a service of the application, and has no address, by its name.
    ///
    /// The function that is given to [`Balance::new`](super::Balance::new) makes its service.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tower_reverse_proxy::{Backends, balance::{Balance, Member}};
    ///
    /// let backends = Backends::new([Member::named("blue"), Member::named("green")]);
    /// let balance = Balance::new(&backends, |member: &Member| {
    ///     let name = member.name().to_owned();
    ///     Router::<()>::new().route("/", get(move || async move { name }))
    /// });
    /// # let _ = balance;
    /// ```
    pub fn named(name: impl Into<String>) -> Self {
        Self::with_destination(name.into(), Destination::Service)
    }

    fn with_destination(name: String, destination: Destination) -> Self {
        let is_client_used = Arc::default();
        Self {
            name: name.into(),
            destination,
            address: None,
            weight: 1,
            is_backup: false,
            is_draining: false,
            client: None,
            is_client_used,
        }
    }

    /// Sets the weight, by which the requests are divided. Default: 1. 0 is an error of the set.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::Member;
    ///
    /// // A machine with four times the cores of the others.
    /// let large = Member::new("http://10.0.0.1:8000").weight(4);
    /// # let _ = large;
    /// ```
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Makes the member a backup, which gets requests only if none of the other members is healthy. Default: it isn't
    /// one.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::Member;
    ///
    /// let spare = Member::new("http://10.0.1.1:8000").backup();
    /// # let _ = spare;
    /// ```
    pub fn backup(mut self) -> Self {
        self.is_backup = true;
        self
    }

    /// Lets the member end what it has: it gets only the requests of the [sticky sessions](super::Sticky) that it has.
    /// Default: it gets its part of all requests.
    ///
    /// This is for a backend that has announced its end, such as a pod of Kubernetes that is terminating. It's listed
    /// as [draining](State::Draining) until a set is without it. Unlike a removed member, it keeps its sessions, its
    /// tunnels stay open until it closes them, and it gets requests if no other member is healthy and
    /// [all are tried](super::NoneHealthy::TryAll).
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::{Member, State}};
    ///
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// backends.set([Member::new("http://10.0.0.1:8000").draining(), Member::new("http://10.0.0.2:8000")])?;
    /// assert_eq!(backends.status()[0].state(), State::Draining);
    /// # Ok::<_, tower_reverse_proxy::balance::InvalidBackends>(())
    /// ```
    pub fn draining(mut self) -> Self {
        self.is_draining = true;
        self
    }

    /// Sets the address that connections are made to. Default: the addresses of the origin's host.
    ///
    /// `Host`, and the certificate of an `https` backend, are those of the origin.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::Member;
    ///
    /// # fn main() -> Result<(), std::net::AddrParseError> {
    /// // One of the servers of `app.example`.
    /// let member = Member::new("http://app.example").at("10.0.0.7:8000".parse()?);
    /// assert_eq!(member.name(), "http://app.example at 10.0.0.7:8000");
    /// # Ok(())
    /// # }
    /// ```
    pub fn at(mut self, address: SocketAddr) -> Self {
        if let Destination::Backend(backend) = &self.destination {
            self.name = format!("{backend} at {address}").into();
        }
        self.address = Some(address);
        self
    }

    /// Returns the name: the origin, with the address if one is set, or the name of a service.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::Member;
    ///
    /// assert_eq!(Member::new("http://10.0.0.1:8000/").name(), "http://10.0.0.1:8000");
    /// ```
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the origin. `None` for a member that is [named](Self::named).
    ///
    /// ```
    /// use tower_reverse_proxy::balance::Member;
    ///
    /// assert!(Member::new("http://10.0.0.1:8000").backend().is_some());
    /// assert!(Member::named("blue").backend().is_none());
    /// ```
    #[must_use]
    pub fn backend(&self) -> Option<&Backend> {
        match &self.destination {
            Destination::Backend(backend) => Some(backend),
            Destination::Invalid(_) | Destination::Service => None,
        }
    }

    /// Returns the client that the set has made for the origin, with its connection pool.
    ///
    /// It's `Some` in the function that [`Balance::new`](super::Balance::new) calls, if the member has an origin. If
    /// the function makes a service without it, the balancer doesn't connect to a member that is down: a request shows
    /// whether it's back.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, Upstream, balance::{Balance, Member}};
    ///
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// let balance = Balance::new(&backends, |member: &Member| {
    ///     let client = member.client().expect("the members have origins");
    ///     Upstream::new(client.clone()).host("app.internal")
    /// });
    /// # let _ = balance;
    /// ```
    #[must_use]
    pub fn client(&self) -> Option<&Client> {
        self.is_client_used.store(true, Ordering::Relaxed);
        self.client.as_ref()
    }

    /// Returns the client if requests go over it, so that a connect shows whether the member can be reached.
    pub(super) fn client_in_use(&self) -> Option<&Client> {
        self.client.as_ref().filter(|_| self.is_client_used.load(Ordering::Relaxed))
    }

    /// Returns what distinguishes members: two in a set can't have the same. It's the name, in the one spelling of its
    /// origin.
    pub(super) fn key(&self) -> String {
        match (self.backend().map(Backend::canonical), self.address) {
            (None, _) => self.name.to_string(),
            (Some(origin), None) => origin.to_string(),
            (Some(origin), Some(address)) => format!("{origin} at {address}"),
        }
    }

    /// Returns whether it has no address.
    pub(super) fn is_service(&self) -> bool {
        matches!(self.destination, Destination::Service)
    }

    pub(super) fn share(&self) -> u32 {
        self.weight
    }

    pub(super) fn is_backup(&self) -> bool {
        self.is_backup
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Checks what can be checked without the other members.
    pub(super) fn check(&self) -> Result<(), InvalidBackends> {
        if let Destination::Invalid(error) = &self.destination {
            return Err(InvalidBackends::new(error.to_string()));
        }
        if self.weight == 0 {
            return Err(InvalidBackends::new(format!(
                "the weight of {:?} is 0: write 1 or more, or leave the member out",
                self.name
            )));
        }
        Ok(())
    }

    /// Makes the client of a member that has an origin.
    pub(super) fn connected(
        mut self,
        options: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> Result<Self, InvalidBackends> {
        if let Destination::Backend(backend) = &self.destination {
            let builder = Client::builder(backend.clone()).address(self.address);
            let client = options(builder).build().map_err(|error| InvalidBackends::new(error.to_string()))?;
            self.client = Some(client);
            // A description may be put into several sets.
            self.is_client_used = Arc::default();
        }
        Ok(self)
    }
}

macro_rules! from_backend {
    ($($backend:ty),*) => {$(
        impl From<$backend> for Member {
            fn from(backend: $backend) -> Self {
                Self::new(backend)
            }
        }
    )*};
}

from_backend!(&str, String, &String, Uri, Backend);

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("name", &self.name)
            .field("weight", &self.weight)
            .field("is_backup", &self.is_backup)
            .field("is_draining", &self.is_draining)
            .finish_non_exhaustive()
    }
}

/// Whether a member gets requests, and if not, why.
///
/// `Display` is the name in lower case.
///
/// ```
/// use tower_reverse_proxy::{Backends, balance::State};
///
/// let backends = Backends::new(["http://10.0.0.1:8000"]);
/// assert_eq!(backends.status()[0].state(), State::Up);
/// assert_eq!(State::Up.to_string(), "up");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// It gets requests.
    Up,
    /// It can't be reached, or its active check fails.
    Down,
    /// Its responses show faults.
    Ejected,
    /// It's removed from the set, and its last exchanges haven't ended; or its active check or the
    /// [set](Member::draining) drains it.
    Draining,
    /// It's new, and its first active check hasn't ended.
    Checking,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
            Self::Checking => "checking",
        })
    }
}

/// What the mounts of a set share of a member, untyped: its load and its health.
#[derive(Debug)]
pub(super) struct MemberState {
    pub(super) id: MemberId,
    pub(super) set: SetId,
    pub(super) member: Member,
    pub(super) load: Load,
    /// When the clock of the set began.
    pub(super) epoch: Instant,
    /// The [`AdmittedRequests`] by the last view of the set, for the queue.
    admission: AtomicU8,
    /// Cancelled when it's removed from the set.
    removal: Mutex<CancellationToken>,
    drain_timeout: Option<Duration>,
    queue: Option<Arc<Queue>>,
    pub(super) shared: Weak<Shared>,
    pub(super) watch: Watch,
}

/// Which requests may be sent to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdmittedRequests {
    None = 0,
    /// Those whose session is there.
    Sessions = 1,
    All = 2,
}

/// How an attempt ended, or what part of it did.
#[derive(Debug)]
pub(super) enum Ending<'a> {
    /// The head of a response has come.
    Responded {
        outcome: Outcome,
        /// When the attempt began, if that is known.
        began: Option<Instant>,
    },
    /// The attempt failed before a response.
    Failed(&'a (dyn std::error::Error + 'static)),
    /// The body of the response failed.
    BodyFailed(&'a (dyn std::error::Error + 'static)),
    /// The request was dropped before a response.
    Abandoned { after: Option<Duration> },
}

impl MemberState {
    pub(super) fn new(member: Member, shared: &Arc<Shared>, watch: Watch) -> Self {
        Self {
            set: shared.id,
            queue: shared.queue.clone(),
            drain_timeout: shared.options.drain_timeout,
            shared: Arc::downgrade(shared),
            ..Self::alone(member, shared.epoch, watch)
        }
    }

    /// A member of no set.
    pub(super) fn alone(member: Member, epoch: Instant, watch: Watch) -> Self {
        Self {
            id: MemberId::unique(),
            set: SetId::unique(),
            member,
            load: Load::new(),
            watch,
            epoch,
            admission: AtomicU8::new(0),
            removal: Mutex::default(),
            drain_timeout: None,
            queue: None,
            shared: Weak::new(),
        }
    }

    pub(super) fn state(&self) -> State {
        if self.load.is_leaving() { State::Draining } else { self.health_state() }
    }

    pub(super) fn clock(&self) -> Clock {
        Clock::new(self.epoch)
    }

    /// Returns the present view of its set, unless the set is gone.
    pub(super) fn view(&self) -> Option<Arc<View>> {
        Some(self.shared.upgrade()?.view())
    }

    pub(super) fn admission(&self) -> AdmittedRequests {
        match self.admission.load(Ordering::Relaxed) {
            2 => AdmittedRequests::All,
            1 => AdmittedRequests::Sessions,
            _ => AdmittedRequests::None,
        }
    }

    pub(super) fn set_admission(&self, requests: AdmittedRequests) {
        self.admission.store(requests as u8, Ordering::Relaxed);
    }

    /// Counts the end of an attempt.
    pub(super) fn end(self: &Arc<Self>) {
        let count = match &self.queue {
            Some(queue) => queue.release(self),
            None => self.load.end(),
        };
        if count == Count::Left
            && let Some(shared) = self.shared.upgrade()
        {
            shared.left(self.id);
        }
    }

    /// Lets the tunnels end after the drain timeout, and closes the idle connections.
    pub(super) fn removed(&self) {
        let removal = self.removal().clone();
        removal.cancel();
        if let Some(client) = self.member.client() {
            client.close_idle();
        }
    }

    /// Makes a new token, because the member is back in the set.
    pub(super) fn returned(&self) {
        let mut removal = self.removal();
        // If another thread has removed it again, its tunnels wait for the present token, which is cancelled.
        let old = if self.load.is_leaving() { None } else { Some(mem::take(&mut *removal)) };
        drop(removal);
        drop(old);
    }

    /// Returns a token that is cancelled when the member is removed from the set.
    pub(super) fn removal_token(&self) -> CancellationToken {
        self.removal().clone()
    }

    fn removal(&self) -> MutexGuard<'_, CancellationToken> {
        self.removal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a future that completes when the member's tunnels have to end. `None`: they never have to.
    pub(super) fn tunnel_end(self: &Arc<Self>) -> Option<TunnelEnd> {
        let (timeout, this) = (self.drain_timeout?, self.clone());
        Some(Box::pin(async move {
            loop {
                let removal = this.removal().clone();
                removal.cancelled().await;
                sleep(timeout).await;
                if this.load.is_leaving() {
                    return;
                }
                // It has come back, and may be removed again.
            }
        }))
    }
}
