//! How many connections there may be, and the one queue of the requests that wait for one.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Weak},
};

use tokio::sync::oneshot;

/// The right to be one of `max_connections`.
///
/// It's kept with the socket, because a tunnel counts, too. Dropping it releases it.
pub(super) struct Permit {
    issuer: Weak<dyn Issuer>,
    /// `None` as soon as it's being released.
    held: Option<Arc<()>>,
}

/// Shows whether a permit is still held.
#[derive(Debug)]
pub(super) struct PermitWatch {
    held: Weak<()>,
}

/// Counts the permits, and issues again those that are released.
pub(super) trait Issuer: Send + Sync {
    fn release(self: Arc<Self>);
}

impl Permit {
    pub(super) fn watch(&self) -> PermitWatch {
        PermitWatch { held: self.held.as_ref().map(Arc::downgrade).unwrap_or_default() }
    }
}

impl PermitWatch {
    /// Returns whether the permit is still held. If it isn't, it has been released, or another thread is about to
    /// release it.
    #[cfg_attr(not(any(feature = "http2", test)), expect(dead_code, reason = "HTTP/2 isn't offered"))]
    pub(super) fn is_held(&self) -> bool {
        self.held.strong_count() > 0
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.held = None;
        if let Some(issuer) = self.issuer.upgrade() {
            issuer.release();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

/// How many connections are open, those that are being opened included, and how many may be.
pub(super) struct Limit {
    open: usize,
    max: Option<usize>,
    /// How many are being closed to make room.
    closing: usize,
    issuer: Weak<dyn Issuer>,
}

impl Limit {
    pub(super) fn new(max: Option<usize>, issuer: Weak<dyn Issuer>) -> Self {
        Self { open: 0, max, closing: 0, issuer }
    }

    /// Returns a permit for one more connection, unless there are as many as there may be.
    pub(super) fn acquire(&mut self) -> Option<Permit> {
        if self.is_full() {
            return None;
        }
        self.open += 1;
        Some(Permit { issuer: self.issuer.clone(), held: Some(Arc::default()) })
    }

    /// Counts a permit that was dropped.
    pub(super) fn release(&mut self) {
        self.open -= 1;
        self.closing = self.closing.saturating_sub(1);
    }

    pub(super) fn is_full(&self) -> bool {
        self.max.is_some_and(|max| self.open >= max)
    }

    /// Returns whether so many connections more are too many.
    pub(super) fn is_exceeded_by(&self, more: usize) -> bool {
        self.max.is_some_and(|max| self.open.saturating_add(more) > max)
    }

    /// Counts a connection that is closed to make room, and releases its permit later.
    pub(super) fn begin_close(&mut self) {
        self.closing += 1;
    }

    pub(super) fn closing(&self) -> usize {
        self.closing
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limit").field("open", &self.open).field("max", &self.max).finish_non_exhaustive()
    }
}

/// How often a waiter is overtaken before a returned connection is closed to make room for its own. Each such switch
/// costs a connect, so a busy client makes few. Without a limit, requests that share connections would keep the others
/// waiting forever.
const MAX_OVERTAKEN: usize = 8;

/// How many waiters of a kind a returned connection is offered to. Where many owners wait, most of them can't use it, and
/// each connection would be compared with all of them.
const SEARCHED: usize = 256;

/// The requests that wait for a connection, in order of arrival.
///
/// There are `KINDS` kinds of demands. A connection that is opened for one demand serves any other one of its kind.
#[derive(Debug)]
pub(super) struct Queue<D, G, const KINDS: usize> {
    /// The waiters of each kind. Their numbers rise with the time of arrival.
    waiters: [VecDeque<Waiter<D, G>>; KINDS],
    next: u64,
    /// The number of the waiter that was overtaken last, and how often it was.
    overtaken: (u64, usize),
}

/// A request in the queue.
#[derive(Debug)]
pub(super) struct Waiter<D, G> {
    number: u64,
    pub(super) demand: D,
    sender: oneshot::Sender<G>,
}

/// Identifies a waiter. Tickets are ordered by the time of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    number: u64,
    kind: usize,
}

impl<D, G> Waiter<D, G> {
    /// Wakes the waiter's task, so it's called without the lock.
    ///
    /// # Errors
    ///
    /// The request was cancelled. The grant comes back.
    pub(super) fn send(self, grant: G) -> Result<(), G> {
        self.sender.send(grant)
    }
}

impl<D, G, const KINDS: usize> Queue<D, G, KINDS> {
    pub(super) fn new() -> Self {
        Self { waiters: [const { VecDeque::new() }; KINDS], next: 0, overtaken: (0, 0) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiters.iter().all(VecDeque::is_empty)
    }

    /// Returns how many demands of a kind there are.
    pub(super) fn len(&self, kind: usize) -> usize {
        self.waiters.get(kind).map_or(0, VecDeque::len)
    }

    pub(super) fn push(&mut self, kind: usize, demand: D) -> (Ticket, oneshot::Receiver<G>) {
        let (sender, receiver) = oneshot::channel();
        let number = self.next;
        self.next += 1;
        self.waiters[kind].push_back(Waiter { number, demand, sender });
        (Ticket { kind, number }, receiver)
    }

    /// Removes a waiter that gives up.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<Waiter<D, G>> {
        let position = self.position(ticket)?;
        self.waiters.get_mut(ticket.kind)?.remove(position)
    }

    /// Returns how many waiters of its kind are before a waiter.
    pub(super) fn position(&self, ticket: Ticket) -> Option<usize> {
        self.waiters.get(ticket.kind)?.binary_search_by_key(&ticket.number, |waiter| waiter.number).ok()
    }

    /// Returns the ticket of the waiter that has so many of its kind before it, and its demand.
    pub(super) fn nth(&self, kind: usize, position: usize) -> Option<(Ticket, &D)> {
        let waiter = self.waiters.get(kind)?.get(position)?;
        Some((Ticket { kind, number: waiter.number }, &waiter.demand))
    }

    /// Removes the first waiter of a kind.
    pub(super) fn pop(&mut self, kind: usize) -> Option<Waiter<D, G>> {
        self.waiters.get_mut(kind)?.pop_front()
    }

    /// Removes the first waiter that a connection serves, of the first [`SEARCHED`] of each kind. `None` also if it would
    /// overtake `protected` once too often.
    pub(super) fn take(
        &mut self,
        protected: Option<Ticket>,
        is_served: impl Fn(usize, &D) -> bool,
    ) -> Option<Waiter<D, G>> {
        let served = |(kind, waiters): (usize, &VecDeque<Waiter<D, G>>)| {
            let position = waiters.iter().take(SEARCHED).position(|waiter| is_served(kind, &waiter.demand))?;
            Some((waiters.get(position)?.number, kind, position))
        };
        let (number, kind, position) = self.waiters.iter().enumerate().filter_map(served).min()?;
        let ticket = Ticket { kind, number };
        if !self.may_overtake(ticket, protected) {
            return None;
        }
        self.overtake(ticket, protected);
        self.waiters.get_mut(kind)?.remove(position)
    }

    /// Returns the ticket that a request of this kind would get.
    pub(super) fn next(&self, kind: usize) -> Ticket {
        Ticket { kind, number: self.next }
    }

    /// Returns whether a request may be served before the first waiter for which no connection is being opened.
    pub(super) fn may_overtake(&self, ticket: Ticket, protected: Option<Ticket>) -> bool {
        protected.is_none_or(|protected| {
            ticket.number <= protected.number || self.overtaken != (protected.number, MAX_OVERTAKEN)
        })
    }

    /// Counts that a request is served before that waiter.
    pub(super) fn overtake(&mut self, ticket: Ticket, protected: Option<Ticket>) {
        if let Some(protected) = protected.filter(|protected| protected.number < ticket.number) {
            let (number, times) = self.overtaken;
            self.overtaken = (protected.number, if number == protected.number { times + 1 } else { 1 });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Two kinds of demands, each with a name.
    type Names = Queue<&'static str, (), 2>;

    fn queue(demands: &[(usize, &'static str)]) -> (Names, Vec<Ticket>) {
        let mut queue = Queue::new();
        let tickets = demands.iter().map(|&(kind, name)| queue.push(kind, name).0).collect();
        (queue, tickets)
    }

    fn taken(queue: &mut Names, protected: Option<Ticket>, name: &str) -> Option<u64> {
        queue.take(protected, |_, demand| *demand == name).map(|waiter| waiter.number)
    }

    #[test]
    fn a_connection_goes_to_the_first_waiter_of_any_kind_that_it_serves() {
        let (mut queue, _) = queue(&[(0, "a"), (1, "b"), (0, "b"), (1, "a")]);
        assert_eq!(taken(&mut queue, None, "c"), None);
        assert_eq!(taken(&mut queue, None, "b"), Some(1));
        assert_eq!(taken(&mut queue, None, "b"), Some(2));
        assert_eq!(taken(&mut queue, None, "b"), None);
        assert_eq!((queue.len(0), queue.len(1)), (1, 1));
        assert_eq!(taken(&mut queue, None, "a"), Some(0));
        assert_eq!(taken(&mut queue, None, "a"), Some(3));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_waiter_is_overtaken_a_limited_number_of_times() {
        let mut demands = vec![(0, "a"), (0, "a")];
        demands.resize(3 * MAX_OVERTAKEN, (1, "b"));
        let (mut queue, tickets) = queue(&demands);
        let (first, second) = (Some(tickets[0]), Some(tickets[1]));
        for _ in 0..MAX_OVERTAKEN {
            assert!(taken(&mut queue, first, "b").is_some());
        }
        assert_eq!(taken(&mut queue, first, "b"), None);
        assert!(!queue.may_overtake(queue.next(1), first));
        // A connection is being opened for the first waiter: the second one is overtaken as often.
        for _ in 0..MAX_OVERTAKEN {
            assert!(taken(&mut queue, second, "b").is_some());
        }
        assert_eq!(taken(&mut queue, second, "b"), None);
        // An earlier waiter doesn't overtake it.
        assert_eq!(taken(&mut queue, second, "a"), Some(0));
        assert_eq!(taken(&mut queue, second, "a"), Some(1));
        assert!(taken(&mut queue, None, "b").is_some());
    }

    #[test]
    fn a_connection_is_offered_to_a_limited_number_of_waiters() {
        let mut demands = vec![(0, "a"); SEARCHED];
        demands.extend([(0, "b"), (1, "c")]);
        let (mut queue, _) = queue(&demands);
        assert_eq!(taken(&mut queue, None, "b"), None);
        // Those of the other kind are searched from their own beginning.
        assert!(taken(&mut queue, None, "c").is_some());
        assert!(queue.pop(0).is_some());
        assert!(taken(&mut queue, None, "b").is_some());
    }

    #[test]
    fn a_waiter_leaves_from_any_place() {
        let (mut queue, tickets) = queue(&[(0, "a"), (1, "b"), (0, "c"), (0, "d")]);
        assert_eq!(queue.position(tickets[2]), Some(1));
        assert_eq!(queue.leave(tickets[2]).map(|waiter| waiter.demand), Some("c"));
        assert!(queue.leave(tickets[2]).is_none());
        assert_eq!((queue.position(tickets[3]), queue.position(tickets[2])), (Some(1), None));
        assert_eq!(queue.nth(0, 1).map(|(ticket, _)| ticket), Some(tickets[3]));
        assert_eq!(queue.pop(0).map(|waiter| waiter.demand), Some("a"));
    }

    #[test]
    fn permits_are_counted() {
        struct Counter(Mutex<Option<Limit>>);

        impl Issuer for Counter {
            fn release(self: Arc<Self>) {
                if let Some(limit) = &mut *self.0.lock().unwrap() {
                    limit.release();
                }
            }
        }

        let counter =
            Arc::new_cyclic(|this: &Weak<Counter>| Counter(Mutex::new(Some(Limit::new(Some(2), this.clone())))));
        let with = |act: &mut dyn FnMut(&mut Limit)| act(counter.0.lock().unwrap().as_mut().unwrap());
        let mut permits = Vec::new();
        with(&mut |limit| permits.extend([(); 3].map(|()| limit.acquire())));
        assert_eq!(permits.iter().flatten().count(), 2);
        with(&mut |limit| assert!(limit.is_full() && limit.is_exceeded_by(1) && !limit.is_exceeded_by(0)));
        with(&mut Limit::begin_close);
        let watch = permits[0].as_ref().map(Permit::watch).unwrap();
        assert!(watch.is_held());
        drop(permits);
        assert!(!watch.is_held());
        with(&mut |limit| assert!(!limit.is_full() && limit.is_exceeded_by(3) && limit.closing() == 0));
    }
}
