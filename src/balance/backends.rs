//! The live handle of a set of backends.

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    fmt,
    future::Future,
    mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use axum_core::BoxError;
use futures_core::Stream;
use tokio::{sync::Notify, time::Instant};

use super::{
    builder::{BackendsBuilder, InvalidBackends, Options, checked},
    check::CheckTask,
    discover::{Follow, Followers},
    health::{Health, SetHealth},
    load::Count,
    member::{AdmittedRequests, Member, MemberState, State},
    queue::Queue,
    random::Random,
    snapshot::{Entry, View},
    watch::Watch,
};
use crate::tried::MemberId;

/// The backends of one or more mounts: a live handle, by which the set is changed and observed.
///
/// Clones share the set. So do two mounts that are made of one handle: they share its members' connections, load and
/// health.
///
/// ```
/// use axum::{Json, Router, extract::State, routing::get};
/// use tower_reverse_proxy::{Backends, ReverseProxyLayer};
///
/// /// Which backends get requests.
/// async fn status(State(backends): State<Backends>) -> Json<Vec<String>> {
///     Json(backends.status().iter().map(|member| format!("{}: {}", member.backend(), member.state())).collect())
/// }
///
/// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
/// let app: Router = Router::new()
///     .route("/status", get(status))
///     .with_state(backends.clone())
///     .layer(ReverseProxyLayer::balanced(&backends).prefix("/app"));
/// // Later, while requests are under way:
/// backends.set(["http://10.0.0.2:8000", "http://10.0.0.3:8000"])?;
/// # let _ = app;
/// # Ok::<_, tower_reverse_proxy::balance::InvalidBackends>(())
/// ```
#[derive(Clone)]
#[doc(alias = "upstream")]
#[doc(alias = "cluster")]
#[doc(alias = "load balancer")]
pub struct Backends {
    pub(super) shared: Arc<Shared>,
}

impl Backends {
    /// Makes a set with the default options, of origins or of [`Member`]s.
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// # let _ = backends;
    /// ```
    ///
    /// # Panics
    ///
    /// If there is no member, or one is invalid, with a message that names what to write instead.
    /// [`try_new`](Self::try_new) returns it.
    #[track_caller]
    pub fn new<M: Into<Member>>(members: impl IntoIterator<Item = M>) -> Self {
        match Self::try_new(members) {
            Ok(backends) => backends,
            Err(error) => panic!("{error}"),
        }
    }

    /// Makes a set with the default options, as [`new`](Self::new) does.
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// let none: [&str; 0] = [];
    /// assert!(Backends::try_new(none).is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no member, or one is invalid.
    pub fn try_new<M: Into<Member>>(members: impl IntoIterator<Item = M>) -> Result<Self, InvalidBackends> {
        Self::builder(members).build()
    }

    /// Begins to build a set with options.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::Member};
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::balance::InvalidBackends> {
    /// let members = [Member::new("http://10.0.0.1:8000").weight(2), Member::new("http://10.0.0.2:8000")];
    /// let backends = Backends::builder(members).client(|client| client.pool_max_idle(16)).build()?;
    /// # let _ = backends;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder<M: Into<Member>>(members: impl IntoIterator<Item = M>) -> BackendsBuilder {
        BackendsBuilder::new(members)
    }

    pub(super) fn build(members: &[Member], options: Options) -> Result<Self, InvalidBackends> {
        let shared = Arc::new(Shared {
            has_services: members.iter().any(Member::is_service),
            random: Random::new(options.seed),
            queue: options.max_requests.map(|permits| Arc::new(Queue::new(permits, options.queue_timeout))),
            options,
            epoch: Instant::now(),
            checks: CheckTask::default(),
            set: Mutex::new(Set {
                view: Arc::new(View::empty()),
                draining: Vec::new(),
                subscribers: Vec::new(),
                rules: SetHealth::default(),
            }),
            drained: Notify::new(),
            followers: Followers::default(),
        });
        shared.replace(members)?;
        if shared.options.health.check.is_some() {
            shared.checks.ensure(&shared);
        }
        Ok(Self { shared })
    }

    /// Replaces the set, at once and as a whole.
    ///
    /// Members are compared by their scheme, authority and address. Those that are in both sets keep their connections,
    /// load and health. One that isn't in the new set gets no more requests. It's [listed](Self::status) as
    /// [draining](State::Draining) until its last exchange has ended, which no request notices. Its tunnels are closed
    /// after the [`drain_timeout`](BackendsBuilder::drain_timeout).
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// backends.set(["http://10.0.0.2:8000", "http://10.0.0.3:8000"])?;
    /// let names: Vec<_> = backends.status().iter().map(|member| member.backend().to_owned()).collect();
    /// assert_eq!(names, ["http://10.0.0.2:8000", "http://10.0.0.3:8000"]);
    /// # Ok::<_, tower_reverse_proxy::balance::InvalidBackends>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no member, or one is invalid. The set stays as it was.
    ///
    /// # Panics
    ///
    /// If a function or a layer that makes the service of a new member panics. The set is changed nevertheless. The mount
    /// of that function goes on with those members that it knows and that are still in the set, and makes the service
    /// again with the next change.
    pub fn set<M: Into<Member>>(&self, members: impl IntoIterator<Item = M>) -> Result<(), InvalidBackends> {
        let members = checked(members)?;
        if members.iter().any(Member::is_service) != self.shared.has_services {
            let text =
                "the members of this set are of another kind: write addresses if it began with addresses, else names";
            return Err(InvalidBackends::new(text.to_owned()));
        }
        self.shared.replace(&members)
    }

    /// Makes each set of a source the set of the backends, as by [`set`](Self::set), until the returned guard is
    /// dropped or [detached](Follow::detach), the source ends, or the last handle and mount of the backends are gone.
    ///
    /// A source is a stream of whole sets, such as [`Dns`](super::discover::Dns): see [`discover`](super::discover). If
    /// it returns an error, no members or invalid ones, the last set stays, and a warning is logged.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, ReverseProxyLayer, balance::discover::Dns};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let backends = Backends::new(["http://app.internal:8000"]);
    /// let _follow = backends.follow(Dns::new("http://app.internal:8000"));
    /// let proxy = ReverseProxyLayer::balanced(&backends).prefix("/app");
    /// # let _ = proxy;
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[doc(alias = "service discovery")]
    pub fn follow<S, E>(&self, source: S) -> Follow
    where
        S: Stream<Item = Result<Vec<Member>, E>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        self.shared.followers.follow(Arc::downgrade(&self.shared), source)
    }

    /// Removes a member, and waits until its last exchange and its last tunnel have ended.
    ///
    /// It's removed when this is called; the future only waits. Its tunnels are closed after the
    /// [`drain_timeout`](BackendsBuilder::drain_timeout); an exchange may take any time. It returns `false` at once if
    /// there is no member of this name. If it was the last one, requests are answered with 503.
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// # async fn deploy() -> Result<(), tower_reverse_proxy::balance::InvalidBackends> {
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// backends.drain("http://10.0.0.1:8000").await;
    /// // … the machine is restarted, and comes back:
    /// backends.set(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the waiting. The member stays removed.
    pub fn drain(&self, name: &str) -> impl Future<Output = bool> + Send + use<> {
        let shared = self.shared.clone();
        let removed = shared.remove(&Member::new(name));
        async move {
            let Some(member) = removed else { return false };
            loop {
                let mut drained = pin!(shared.drained.notified());
                // From here on, no notification is missed.
                drained.as_mut().enable();
                if !shared.lock().is_draining(member) {
                    return true;
                }
                drained.await;
            }
        }
    }

    /// Returns what is known of each member, in the order of the set, and of those that are draining.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::State};
    ///
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// let is_healthy = backends.status().iter().any(|member| member.state() == State::Up);
    /// assert!(is_healthy);
    /// ```
    #[must_use]
    pub fn status(&self) -> Vec<MemberStatus> {
        let set = self.shared.lock();
        let (view, draining) = (set.view.clone(), set.draining.clone());
        drop(set);
        let members = view.entries.iter().map(|entry| MemberStatus {
            state: entry.state(),
            ..MemberStatus::new(&entry.state, entry.weight, entry.is_backup)
        });
        let draining = draining.iter().map(|state| MemberStatus {
            state: State::Draining,
            ..MemberStatus::new(state, state.member.share(), state.member.is_backup())
        });
        members.chain(draining).collect()
    }
}

impl Backends {
    /// Returns a number that no other set has while this one exists.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }

    /// Checks that every member has an address, and so a client.
    pub(crate) fn with_addresses(self) -> Result<Self, InvalidBackends> {
        if self.shared.has_services {
            let text = "the members are named, and have no address: write `Balance::new` with a function that makes their \
                        services, and give it to `ReverseProxyLayer::with_upstream`";
            return Err(InvalidBackends::new(text.to_owned()));
        }
        Ok(self)
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backends").field(&self.status()).finish()
    }
}

/// What is known of a member: see [`Backends::status`].
///
/// ```
/// use tower_reverse_proxy::{Backends, balance::MemberStatus};
///
/// let status: Vec<MemberStatus> = Backends::new(["http://10.0.0.1:8000"]).status();
/// assert_eq!((status[0].in_flight(), status[0].requests(), status[0].failures()), (0, 0, 0));
/// ```
#[derive(Clone, Debug)]
pub struct MemberStatus {
    name: Arc<str>,
    state: State,
    weight: u32,
    is_backup: bool,
    in_flight: u32,
    requests: u64,
    failures: u64,
}

impl MemberStatus {
    fn new(state: &MemberState, weight: u32, is_backup: bool) -> Self {
        Self {
            name: state.member.name().into(),
            state: state.state(),
            weight,
            is_backup,
            in_flight: state.load.in_flight(),
            requests: state.load.requests(),
            failures: state.failures(),
        }
    }

    /// Returns the member's [name](Member::name), which is its origin.
    ///
    /// ```
    /// # use tower_reverse_proxy::Backends;
    /// assert_eq!(Backends::new(["http://10.0.0.1:8000"]).status()[0].backend(), "http://10.0.0.1:8000");
    /// ```
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.name
    }

    /// Returns whether it gets requests, and if not, why.
    ///
    /// ```
    /// # use tower_reverse_proxy::{Backends, balance::State};
    /// assert_eq!(Backends::new(["http://10.0.0.1:8000"]).status()[0].state(), State::Up);
    /// ```
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns the weight.
    ///
    /// ```
    /// # use tower_reverse_proxy::{Backends, balance::Member};
    /// assert_eq!(Backends::new([Member::new("http://10.0.0.1:8000").weight(2)]).status()[0].weight(), 2);
    /// ```
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Returns whether it's a [backup](Member::backup).
    ///
    /// ```
    /// # use tower_reverse_proxy::{Backends, balance::Member};
    /// assert!(Backends::new([Member::new("http://10.0.0.1:8000").backup()]).status()[0].is_backup());
    /// ```
    #[must_use]
    pub fn is_backup(&self) -> bool {
        self.is_backup
    }

    /// Returns how many requests are in flight there: those whose response or tunnel hasn't ended.
    ///
    /// ```
    /// # use tower_reverse_proxy::Backends;
    /// assert_eq!(Backends::new(["http://10.0.0.1:8000"]).status()[0].in_flight(), 0);
    /// ```
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Returns how many requests have been sent there. Each attempt counts; checks don't.
    ///
    /// ```
    /// # use tower_reverse_proxy::Backends;
    /// assert_eq!(Backends::new(["http://10.0.0.1:8000"]).status()[0].requests(), 0);
    /// ```
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Returns how many failures have been held against it.
    ///
    /// ```
    /// # use tower_reverse_proxy::Backends;
    /// assert_eq!(Backends::new(["http://10.0.0.1:8000"]).status()[0].failures(), 0);
    /// ```
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }
}

/// Gets each view of a set, in any order.
pub(super) trait Subscriber: Send + Sync {
    fn changed(&self, view: &Arc<View>);
}

/// What the clones of a handle, and the mounts of its set, share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) random: Random,
    /// Whether the members have names only, and no address.
    has_services: bool,
    /// `Some` with a limit of the requests in flight.
    pub(super) queue: Option<Arc<Queue>>,
    pub(super) epoch: Instant,
    pub(super) checks: CheckTask,
    /// Nothing is woken or dropped under it, and no subscriber is called.
    set: Mutex<Set>,
    /// Notifies of each member that is no longer draining.
    drained: Notify,
    followers: Followers,
}

pub(super) struct Set {
    pub(super) view: Arc<View>,
    /// Removed members whose last exchange hasn't ended.
    draining: Vec<Arc<MemberState>>,
    subscribers: Vec<Weak<dyn Subscriber>>,
    pub(super) rules: SetHealth,
}

impl Set {
    fn is_draining(&self, member: MemberId) -> bool {
        self.draining.iter().any(|draining| draining.id == member)
    }
}

impl Shared {
    /// Gives every later view to a subscriber. Returns the current one.
    pub(super) fn subscribe(&self, subscriber: Weak<dyn Subscriber>) -> Arc<View> {
        let mut set = self.lock();
        // Those whose mounts are gone.
        let (live, gone): (Vec<_>, Vec<_>) =
            mem::take(&mut set.subscribers).into_iter().partition(|weak| weak.strong_count() > 0);
        set.subscribers = live;
        set.subscribers.push(subscriber);
        let view = set.view.clone();
        drop(set);
        drop(gone);
        view
    }

    /// Returns the current view.
    pub(super) fn view(&self) -> Arc<View> {
        self.lock().view.clone()
    }

    /// Makes these the members.
    fn replace(self: &Arc<Self>, members: &[Member]) -> Result<(), InvalidBackends> {
        let members: Vec<&Member> = match self.options.subset {
            Some(subset) => subset.of(members),
            None => members.iter().collect(),
        };
        loop {
            let set = self.lock();
            let (view, draining) = (set.view.clone(), set.draining.clone());
            drop(set);
            let known = view.entries.iter().map(|entry| &entry.state).chain(&draining);
            let known: HashMap<String, &Arc<MemberState>> = known.map(|state| (state.member.key(), state)).collect();
            let entries = members.iter().map(|&member| {
                let state = match known.get(&member.key()) {
                    Some(&state) => state.clone(),
                    None => self.member(member)?,
                };
                Ok(Entry::new(state, member))
            });
            let entries = entries.collect::<Result<_, InvalidBackends>>()?;
            if self.install(view.generation, entries) {
                return Ok(());
            }
        }
    }

    /// Removes a member, and returns its id. `None` if there is no such member.
    fn remove(&self, member: &Member) -> Option<MemberId> {
        loop {
            let set = self.lock();
            let (view, draining) = (set.view.clone(), set.draining.clone());
            drop(set);
            let is_named =
                |state: &MemberState| state.member.key() == member.key() || state.member.name() == member.name();
            let Some(entry) = view.entries.iter().find(|entry| is_named(&entry.state)) else {
                return draining.iter().find(|state| is_named(state)).map(|state| state.id);
            };
            let id = entry.state.id;
            let rest = view.entries.iter().filter(|entry| entry.state.id != id).cloned();
            if self.install(view.generation, rest.collect()) {
                return Some(id);
            }
        }
    }

    fn member(self: &Arc<Self>, member: &Member) -> Result<Arc<MemberState>, InvalidBackends> {
        let member = member.clone().connected(|client| self.options.client(client))?;
        let watch = self.watch(&member)?;
        Ok(Arc::new(MemberState::new(member, self, watch)))
    }

    /// Returns the health of a new member.
    fn watch(&self, member: &Member) -> Result<Watch, InvalidBackends> {
        let (now, set) = (Instant::now(), self.lock());
        let (is_first, has_others) = (set.view.generation == 0, set.view.has_healthy());
        drop(set);
        let mut checker = None;
        if self.options.health.check.is_some() {
            let options = |client| self.options.client(client).max_connections(None).pool_max_idle(0);
            checker = member.clone().connected(options)?.client().cloned();
        }
        let health = match checker {
            _ if is_first => Health::up(now),
            // The others serve the requests until its first check has succeeded.
            Some(_) if has_others => Health::checking(now),
            _ => Health::added(now),
        };
        Ok(Watch::new(health, self.options.health.eject.clone(), checker))
    }

    /// Makes these the entries if the list of members is still of that generation.
    fn install(&self, generation: u64, entries: Box<[Entry]>) -> bool {
        let _prepared = self.options.selection.prepared(&entries);
        let kept: HashSet<MemberId> = entries.iter().map(|entry| entry.state.id).collect();
        let mut set = self.lock();
        if set.view.generation != generation {
            drop(set);
            return false;
        }
        let view = Arc::new(View::new(
            set.view.version + 1,
            generation + 1,
            entries,
            self.options.rules(),
            &self.options.selection,
        ));
        set.rules.forget();
        // Members that return to the set before their last exchange has ended.
        let (mut returned, draining): (Vec<_>, _) =
            mem::take(&mut set.draining).into_iter().partition(|state| kept.contains(&state.id));
        set.draining = draining;
        for state in &returned {
            state.load.stay();
        }
        // Those whose last exchange has ended since the entries were made are no longer in the list.
        returned.extend(view.entries.iter().map(|entry| &entry.state).filter(|state| state.load.stay()).cloned());
        let removed: Vec<_> = set
            .view
            .entries
            .iter()
            .map(|entry| &entry.state)
            .filter(|state| !kept.contains(&state.id))
            .cloned()
            .collect();
        set.draining.extend(removed.iter().cloned());
        let panicked = self.publish(set, &view);
        self.checks.set_changed();
        self.leave(&removed);
        if !returned.is_empty() {
            returned.iter().for_each(|state| state.returned());
            self.drained.notify_waiters();
        }
        match panicked {
            Some(payload) => resume_unwind(payload),
            None => true,
        }
    }

    /// Makes a view of the members' health as it is now.
    pub(super) fn health_changed(&self) {
        let set = self.lock();
        let View { version, generation, entries, .. } = &*set.view;
        let view = View::new(version + 1, *generation, entries.clone(), self.options.rules(), &self.options.selection);
        // The one that changed the set has the panic. This one may run in a `Drop`.
        drop(self.publish(set, &Arc::new(view)));
    }

    /// Makes this the current view, and gives it to the subscribers. Returns the panic of one whose services couldn't be
    /// made: the others get the view nevertheless.
    fn publish(&self, mut set: MutexGuard<'_, Set>, view: &Arc<View>) -> Option<Box<dyn Any + Send>> {
        let old = mem::replace(&mut set.view, view.clone());
        for (position, entry) in (0..).zip(&view.entries) {
            entry.state.set_admission(match view.eligible.binary_search(&position) {
                Ok(_) => AdmittedRequests::All,
                Err(_) if entry.keeps_sessions => AdmittedRequests::Sessions,
                Err(_) => AdmittedRequests::None,
            });
        }
        let subscribers: Vec<_> = set.subscribers.iter().filter_map(Weak::upgrade).collect();
        drop(set);
        drop(old);
        let mut panicked = None;
        for subscriber in subscribers {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| subscriber.changed(view))) {
                panicked = Some(payload);
            }
        }
        if let Some(queue) = &self.queue {
            queue.fill(view);
        }
        panicked
    }

    /// Lets no more attempts begin at these members. It's done when no snapshot has them any more, so that a request
    /// that an old one led there picks again.
    fn leave(&self, removed: &[Arc<MemberState>]) {
        let mut set = self.lock();
        // One that another thread has put back stays.
        let leaving = removed.iter().filter(|state| set.is_draining(state.id));
        let left: Vec<_> = leaving.filter(|state| state.load.leave() == Count::Left).map(|state| state.id).collect();
        let (ended, draining): (Vec<_>, _) =
            mem::take(&mut set.draining).into_iter().partition(|state| left.contains(&state.id));
        set.draining = draining;
        drop(set);
        drop(ended);
        removed.iter().filter(|state| state.load.is_leaving()).for_each(|state| state.removed());
        if !left.is_empty() {
            self.drained.notify_waiters();
        }
    }

    /// The last exchange of a member has ended since it was removed.
    pub(super) fn left(&self, member: MemberId) {
        let mut set = self.lock();
        let ended = set.draining.iter().position(|state| state.id == member && state.load.is_leaving());
        let ended = ended.map(|at| set.draining.remove(at));
        drop(set);
        drop(ended);
        self.drained.notify_waiters();
    }

    /// Returns the members.
    pub(super) fn members(&self) -> Vec<Arc<MemberState>> {
        self.lock().view.entries.iter().map(|entry| entry.state.clone()).collect()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::attempt::InFlight;

    /// Counts the views that it gets.
    #[derive(Default)]
    struct Counter(Mutex<Vec<u64>>);

    impl Subscriber for Counter {
        fn changed(&self, view: &Arc<View>) {
            self.0.lock().unwrap().push(view.version);
        }
    }

    #[test]
    fn every_change_is_published_and_a_change_of_health_is_none_of_the_list() {
        let backends = Backends::new(["http://10.0.0.1:8000"]);
        let counter = Arc::new(Counter::default());
        let subscriber: Arc<dyn Subscriber> = counter.clone();
        let first = backends.shared.subscribe(Arc::downgrade(&subscriber));
        backends.shared.health_changed();
        backends.set(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]).unwrap();
        assert_eq!((first.version, &*counter.0.lock().unwrap()), (1, &vec![2, 3]));
        let last = backends.shared.lock().view.clone();
        assert_eq!((first.generation, last.generation), (1, 2));
        assert!(Arc::ptr_eq(&first.entries[0].state, &last.entries[0].state));
    }

    #[test]
    fn a_member_whose_last_exchange_ends_while_it_returns_gets_requests() {
        let urls = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"];
        let backends = Backends::new(urls);
        let shared = &backends.shared;
        let entries = shared.view().entries.clone();
        let member = entries[0].state.clone();
        let exchange = InFlight::begin(&member).unwrap();
        backends.set([urls[1]]).unwrap();
        // The other thread has found it among those that are draining.
        drop(exchange);
        assert!(shared.install(shared.view().generation, entries));
        assert!(InFlight::begin(&member).is_some());
        assert_eq!(backends.status()[0].state(), State::Up);
    }

    #[test]
    fn subscribers_that_are_gone_are_forgotten() {
        let backends = Backends::new(["http://10.0.0.1:8000"]);
        for _ in 0..10 {
            let subscriber: Arc<dyn Subscriber> = Arc::new(Counter::default());
            backends.shared.subscribe(Arc::downgrade(&subscriber));
        }
        assert_eq!(backends.shared.lock().subscribers.len(), 1);
    }
}
