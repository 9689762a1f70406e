//! The set behind a handle: its list of members, the views that requests read, and how both change.

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{sync::Notify, time::Instant};

use super::{
    builder::{InvalidBackends, Options},
    check::CheckTask,
    comparison::SetHealth,
    discover::Followers,
    health::Health,
    load::Count,
    member::{AdmittedRequests, Member, MemberState},
    queue::Queue,
    random::Random,
    snapshot::{Entry, View},
    status::MemberStatus,
    trial::Trials,
    watch::Watch,
};
use crate::tried::{MemberId, SetId};

/// Gets each view of a set, in any order.
pub(super) trait Subscriber: Send + Sync {
    fn changed(&self, view: &Arc<View>);
}

/// What the clones of a handle, and the mounts of its set, share.
pub(super) struct Shared {
    pub(super) id: SetId,
    pub(super) options: Options,
    pub(super) random: Random,
    /// Whether the members have names only, and no address.
    pub(super) has_services: bool,
    /// `Some` with a limit of the requests in flight.
    pub(super) queue: Option<Arc<Queue>>,
    pub(super) epoch: Instant,
    pub(super) checks: CheckTask,
    pub(super) trials: Trials,
    /// Nothing is woken or dropped under it, and no subscriber is called.
    set: Mutex<Set>,
    /// Notifies of each member that is no longer draining.
    drained: Notify,
    pub(super) followers: Followers,
}

pub(super) struct Set {
    pub(super) view: Arc<View>,
    /// Removed members whose last exchange hasn't ended.
    draining: Vec<Arc<MemberState>>,
    subscribers: Vec<Weak<dyn Subscriber>>,
    pub(super) rules: SetHealth,
    /// Whether the health of members has changed since the view was made.
    pub(super) is_stale: bool,
}

impl Set {
    fn is_draining(&self, member: MemberId) -> bool {
        self.draining.iter().any(|draining| draining.id == member)
    }
}

impl Shared {
    /// A set without a member as yet.
    pub(super) fn new(options: Options, has_services: bool) -> Self {
        Self {
            id: SetId::unique(),
            has_services,
            random: Random::new(options.seed),
            queue: options.max_requests.map(|permits| Arc::new(Queue::new(permits, options.queue_timeout))),
            options,
            epoch: Instant::now(),
            checks: CheckTask::default(),
            trials: Trials::default(),
            set: Mutex::new(Set {
                view: Arc::new(View::empty()),
                draining: Vec::new(),
                subscribers: Vec::new(),
                rules: SetHealth::default(),
                is_stale: false,
            }),
            drained: Notify::new(),
            followers: Followers::default(),
        }
    }

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
    pub(super) fn replace(self: &Arc<Self>, members: &[Member]) -> Result<(), InvalidBackends> {
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

    /// Removes the member of a name, or of an origin that is written otherwise, and returns its id. `None` if there is
    /// no such member.
    pub(super) fn remove(&self, name: &str) -> Option<MemberId> {
        let origin = Member::new(name);
        let key = origin.backend().map(|_| origin.key());
        loop {
            let set = self.lock();
            let (view, draining) = (set.view.clone(), set.draining.clone());
            drop(set);
            let is_named = |state: &MemberState| state.member.name() == name || Some(state.member.key()) == key;
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
        set.is_stale = false;
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

    /// Makes a view of the members' health as it is now. In a large set whose last view has just been made, a request
    /// makes it later, with all changes until then.
    pub(super) fn health_changed(&self) {
        let now = Instant::now();
        let mut set = self.lock();
        if set.view.settles.is_some_and(|at| now < at) {
            set.is_stale = true;
            drop(set);
            self.settle_for_queue();
        } else {
            self.renew(set, true, now);
        }
    }

    /// Makes the view of the changes that had to wait, if requests wait in the queue: there may be no later request
    /// that makes it. A change and a request that enters the queue both do so afterwards, and the later one finds the
    /// other.
    pub(super) fn settle_for_queue(&self) {
        if self.queue.as_ref().is_some_and(|queue| queue.has_waiting()) {
            let set = self.lock();
            if set.is_stale {
                self.renew(set, true, Instant::now());
            }
        }
    }

    /// Makes the view of the changes that had to wait, if it's time.
    pub(super) fn settle(&self, now: Instant) {
        let set = self.lock();
        if set.view.settles.is_some_and(|at| at <= now) {
            let is_stale = set.is_stale;
            self.renew(set, is_stale, now);
        }
    }

    fn renew(&self, mut set: MutexGuard<'_, Set>, has_changed: bool, now: Instant) {
        set.is_stale = false;
        let View { version, generation, entries, .. } = &*set.view;
        let view = View::new(version + 1, *generation, entries.clone(), self.options.rules(), &self.options.selection);
        let view = if has_changed { view.settling(now) } else { view };
        // The one that changed the set has the panic. This one may run in a `Drop`.
        drop(self.publish(set, &Arc::new(view)));
    }

    /// Makes this the current view, and gives it to the subscribers. Returns the panic of one whose services couldn't
    /// be made: the others get the view nevertheless.
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
        let draining: HashSet<MemberId> = set.draining.iter().map(|state| state.id).collect();
        let leaving = removed.iter().filter(|state| draining.contains(&state.id));
        let left = leaving.filter(|state| state.load.leave() == Count::Left).map(|state| state.id);
        let left: HashSet<MemberId> = left.collect();
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

    /// Completes when a member that was removed is no longer draining.
    pub(super) async fn drained(&self, member: MemberId) {
        loop {
            let mut drained = pin!(self.drained.notified());
            // From here on, no notification is missed.
            drained.as_mut().enable();
            if !self.lock().is_draining(member) {
                return;
            }
            drained.await;
        }
    }

    /// Returns what is known of each member, and of those that are draining.
    pub(super) fn status(&self) -> Vec<MemberStatus> {
        let set = self.lock();
        let (view, draining) = (set.view.clone(), set.draining.clone());
        drop(set);
        let draining = draining.iter().map(|member| MemberStatus::removed(member));
        view.entries.iter().map(MemberStatus::new).chain(draining).collect()
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
    use crate::balance::{Backends, State, attempt::InFlight};

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
