//! `max_requests`: the permits of the members, and the one queue of the requests that wait for one.
//!
//! An attempt in flight has a permit of its member. Permits and queue change under one lock, so that a request is in
//! the queue only while there is no permit that it may take.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    attempt::InFlight,
    load::Count,
    member::{AdmittedRequests, MemberState},
    snapshot::{Entry, View},
};
use crate::tried::MemberId;

/// At least so many requests may wait, however few permits there are.
const LEAST_WAITING: usize = 100;

/// The permits of a set's members.
#[derive(Debug)]
pub(super) struct Queue {
    max_requests: u32,
    timeout: Option<Duration>,
    /// Nothing is sent, woken or dropped under it.
    waiting: Mutex<Waiting>,
}

/// The requests that wait, in the order in which they came.
#[derive(Debug, Default)]
struct Waiting {
    /// The version of the view that the permits were given by last.
    version: u64,
    next: u64,
    /// Those that take a permit of any member.
    any: BTreeMap<u64, oneshot::Sender<InFlight>>,
    /// Those that take a permit of one member, because their session is there.
    bound: HashMap<MemberId, BTreeMap<u64, oneshot::Sender<InFlight>>>,
    count: usize,
}

/// What a request finds.
pub(super) enum Admission {
    /// A permit of the member in this position.
    Admitted(usize, InFlight),
    /// The member has just been removed, or the set has changed: there is a later view.
    Stale,
    Queued(Waiter),
    /// Too many requests wait.
    Full,
    /// No member is left that the request may be sent to.
    NoneLeft,
}

/// A request in the queue, which it leaves when this is dropped.
pub(super) struct Waiter {
    queue: Arc<Queue>,
    number: u64,
    bound_to: Option<MemberId>,
    pub(super) permit: oneshot::Receiver<InFlight>,
}

impl Queue {
    pub(super) fn new(max_requests: u32, timeout: Option<Duration>) -> Self {
        Self { max_requests, timeout, waiting: Mutex::default() }
    }

    /// Takes a permit of the member that `pick` chooses among those that have one, or puts the request into the queue.
    ///
    /// `home` is the position of the only member that the request may be sent to. A request that `must_not_wait` is a
    /// further attempt, which ends instead. `is_latest`: there is no later view for the mount of the request.
    pub(super) fn admit(
        self: &Arc<Self>,
        view: &View,
        is_latest: bool,
        home: Option<usize>,
        must_not_wait: bool,
        pick: impl FnOnce(&dyn Fn(&Entry) -> bool) -> Option<usize>,
    ) -> Admission {
        let home = home.map(|position| &*view.entries[position].state);
        let mut waiting = self.lock();
        // A request that waits for a member of an earlier view would wait although another one has permits, or although
        // none is left.
        if view.version < waiting.version && !is_latest {
            return Admission::Stale;
        }
        // A change of the set may have added permits, which are the queue's.
        let picked = if waiting.is_behind(home) { None } else { pick(&|entry| self.has_permit(&entry.state)) };
        if let Some(position) = picked {
            let member = &view.entries[position].state;
            let count = member.load.begin();
            drop(waiting);
            let in_flight = InFlight::counted(member.clone());
            return if count == Count::Counted { Admission::Admitted(position, in_flight) } else { Admission::Stale };
        }
        if must_not_wait || home.is_none() && view.eligible.is_empty() {
            return Admission::NoneLeft;
        }
        let capacity = view.eligible.len().saturating_mul(self.max_requests as usize);
        if waiting.count >= capacity.saturating_mul(2).max(LEAST_WAITING) {
            return Admission::Full;
        }
        let (sender, permit) = oneshot::channel();
        let bound_to = home.map(|member| member.id);
        let number = waiting.push(bound_to, sender);
        drop(waiting);
        Admission::Queued(Waiter { queue: self.clone(), number, bound_to, permit })
    }

    /// Returns whether requests wait.
    pub(super) fn has_waiting(&self) -> bool {
        self.lock().count > 0
    }

    /// Ends an attempt. Its permit goes to the first request that may take it.
    pub(super) fn release(&self, member: &Arc<MemberState>) -> Count {
        loop {
            let mut waiting = self.lock();
            // A trial takes no permit, so that more attempts may be in flight than there are permits.
            let has_permit = !member.load.is_leaving() && member.load.in_flight() <= self.max_requests;
            let next = if has_permit { waiting.pop(member) } else { None };
            let Some(next) = next else { return member.load.end() };
            member.load.pass_on();
            drop(waiting);
            match next.send(InFlight::counted(member.clone())) {
                Ok(()) => return Count::Counted,
                // The request has left.
                Err(in_flight) => in_flight.forget(),
            }
        }
    }

    /// Gives the permits that a new view has added to the requests that wait. Those that wait for a member that is out
    /// leave the queue without one, and so do all if no member is left, because none would ever have a permit for them.
    pub(super) fn fill(&self, view: &View) {
        let mut waiting = self.lock();
        if view.version < waiting.version {
            // Another thread has done so by a later one.
            return;
        }
        waiting.version = view.version;
        let mut left = waiting.unbind(view);
        if view.eligible.is_empty() {
            left.push(waiting.take_any());
        }
        let mut served = Vec::new();
        for entry in &view.entries {
            while waiting.count > 0 && self.has_permit(&entry.state) {
                let Some(next) = waiting.pop(&entry.state) else { break };
                let count = entry.state.load.begin();
                served.push((next, entry.state.clone(), count));
            }
        }
        drop(waiting);
        drop(left);
        for (next, member, count) in served {
            let in_flight = InFlight::counted(member);
            if count == Count::Counted {
                // A request that has left gives it back.
                drop(next.send(in_flight));
            }
        }
    }

    fn has_permit(&self, member: &MemberState) -> bool {
        member.load.in_flight() < self.max_requests
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Puts a request at the end.
    fn push(&mut self, bound_to: Option<MemberId>, sender: oneshot::Sender<InFlight>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.count += 1;
        let line = match bound_to {
            None => &mut self.any,
            Some(member) => self.bound.entry(member).or_default(),
        };
        line.insert(number, sender);
        number
    }

    /// Takes the first request that may be sent to a member.
    fn pop(&mut self, member: &MemberState) -> Option<oneshot::Sender<InFlight>> {
        match member.admission() {
            AdmittedRequests::All => self.pop_first(member.id),
            AdmittedRequests::Sessions => self.pop_bound(member.id),
            AdmittedRequests::None => None,
        }
    }

    /// Takes the first request for any member, or for this one.
    fn pop_first(&mut self, member: MemberId) -> Option<oneshot::Sender<InFlight>> {
        let any = self.any.first_key_value().map(|(&number, _)| number);
        let bound = self.bound.get(&member).and_then(|line| line.first_key_value()).map(|(&number, _)| number);
        let (number, bound_to) = match (any, bound) {
            (Some(any), Some(bound)) if bound < any => (bound, Some(member)),
            (Some(any), _) => (any, None),
            (None, Some(bound)) => (bound, Some(member)),
            (None, None) => return None,
        };
        self.remove(number, bound_to)
    }

    /// Takes the first request whose session is at a member.
    fn pop_bound(&mut self, member: MemberId) -> Option<oneshot::Sender<InFlight>> {
        let (&number, _) = self.bound.get(&member)?.first_key_value()?;
        self.remove(number, Some(member))
    }

    /// Takes out the requests that wait for a member that they can't be sent to any more.
    fn unbind(&mut self, view: &View) -> Vec<BTreeMap<u64, oneshot::Sender<InFlight>>> {
        if self.bound.is_empty() {
            return Vec::new();
        }
        let homes = view.eligible().chain(view.entries.iter().filter(|entry| entry.keeps_sessions));
        let homes: HashSet<_> = homes.map(|entry| entry.state.id).collect();
        let gone: Vec<_> = self.bound.keys().filter(|member| !homes.contains(member)).copied().collect();
        let lines: Vec<_> = gone.iter().filter_map(|member| self.bound.remove(member)).collect();
        self.count -= lines.iter().map(BTreeMap::len).sum::<usize>();
        lines
    }

    /// Takes out the requests that would take a permit of any member.
    fn take_any(&mut self) -> BTreeMap<u64, oneshot::Sender<InFlight>> {
        let any = mem::take(&mut self.any);
        self.count -= any.len();
        any
    }

    /// Takes a request out. `None` if it's no longer in the queue.
    fn remove(&mut self, number: u64, bound_to: Option<MemberId>) -> Option<oneshot::Sender<InFlight>> {
        let sender = match bound_to {
            None => self.any.remove(&number),
            Some(member) => {
                let line = self.bound.get_mut(&member)?;
                let sender = line.remove(&number);
                if line.is_empty() {
                    self.bound.remove(&member);
                }
                sender
            }
        };
        self.count -= usize::from(sender.is_some());
        sender
    }

    /// Returns whether requests wait that were there before one that would take any permit, or one of its `home`.
    ///
    /// Those that take any permit get none of a home that drains. It would stay idle while its sessions wait for them.
    fn is_behind(&self, home: Option<&MemberState>) -> bool {
        let takes_any = home.is_none_or(|member| member.admission() == AdmittedRequests::All);
        takes_any && !self.any.is_empty() || home.is_some_and(|member| self.bound.contains_key(&member.id))
    }
}

impl Waiter {
    /// Returns how long the request may wait.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.queue.timeout
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let sender = self.queue.lock().remove(self.number, self.bound_to);
        drop(sender);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::balance::{Backends, NoneHealthy, member::Member, selection::Selection, snapshot::Rules, watch::Watch};

    /// A view of a single member that is full.
    fn view(version: u64) -> View {
        let now = Instant::now();
        let member = Member::named("a");
        let state = Arc::new(MemberState::alone(member.clone(), now, Watch::up(now)));
        state.load.begin();
        let rules = Rules { slow_start: Duration::ZERO, tries_all: true, has_checks: false };
        View::new(version, version, [Entry::new(state, &member)].into(), rules, &Selection::default())
    }

    #[test]
    fn no_request_waits_by_a_view_that_is_older_than_the_one_that_gave_the_last_permits() {
        let queue = Arc::new(Queue::new(1, None));
        let admit = |version, is_latest| queue.admit(&view(version), is_latest, None, false, |_| None);
        queue.fill(&view(2));
        queue.fill(&view(1));
        assert!(matches!(admit(1, false), Admission::Stale));
        assert!(matches!(admit(2, false), Admission::Queued(_)));
        assert!(matches!(admit(3, false), Admission::Queued(_)));
        // The mount gets no later view.
        assert!(matches!(admit(1, true), Admission::Queued(_)));
    }

    #[test]
    fn a_session_waits_for_its_draining_member_only() {
        let members = [Member::named("a").draining(), Member::named("b")];
        let builder = Backends::builder(members.clone()).max_requests(1).none_healthy(NoneHealthy::Unavailable);
        let backends = builder.build().unwrap();
        let queue = backends.shared.queue.as_ref().unwrap();
        let admit = |home: Option<usize>| {
            let (view, position) = (backends.shared.view(), home.unwrap_or(1));
            let member = view.entries.get(position);
            queue.admit(&view, false, home, false, |has_permit| member.is_some_and(has_permit).then_some(position))
        };
        let is_admitted = |waiter: &mut Waiter| waiter.permit.try_recv().is_ok();
        let busy = admit(None);
        let Admission::Queued(mut any) = admit(None) else { panic!("b has one permit") };
        let session = admit(Some(0));
        assert!(matches!((&busy, &session), (Admission::Admitted(1, _), Admission::Admitted(0, _))));
        let Admission::Queued(mut second) = admit(Some(0)) else { panic!("a has one permit") };
        drop(session);
        assert!(is_admitted(&mut second) && !is_admitted(&mut any));
        // No other member is left.
        let session = admit(Some(0));
        assert!(matches!(session, Admission::Admitted(0, _)));
        backends.set(members.into_iter().take(1)).unwrap();
        assert!(matches!(admit(None), Admission::NoneLeft));
        let Admission::Queued(mut second) = admit(Some(0)) else { panic!("a has one permit") };
        drop(session);
        assert!(is_admitted(&mut second));
    }
}
