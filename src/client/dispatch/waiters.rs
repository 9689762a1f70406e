//! The requests that wait for a connection, in the order of their arrival.

use std::{collections::VecDeque, time::Duration};

use tokio::{runtime::Handle, sync::oneshot};

use super::{super::http1::keep_alive::KeepAlive, Checkout, Freshness};
use crate::{error::Error, identity::Owner};

/// The waiting, each with a higher number than the one before.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) waiters: VecDeque<Waiter>,
    pub(super) next: u64,
    /// How often later waiters were served before this first one, because the returned connections were of no use to
    /// it.
    overtaken: (u64, usize),
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) number: u64,
    pub(super) tell: oneshot::Sender<Result<Checkout, Error>>,
    pub(super) freshness: Freshness,
    /// The owner of the connections that it may use besides new ones. `None`: connections without an owner.
    pub(super) owner: Option<Owner>,
    /// Where its connection is made.
    pub(super) runtime: Handle,
}

/// How often a waiter is overtaken before a returned connection is closed to make room for its own. Each such switch of
/// owners costs a connect, so a busy pool makes few; without a limit, a busy owner would keep the others from the pool.
const OVERTAKEN: usize = 8;

impl Waiter {
    /// Whether it may have a connection that has been idle for so long. `None`: a new one, which has no owner yet.
    fn is_served_by(&self, idle: Option<Duration>, owner: Option<&Owner>, keep_alive: KeepAlive) -> bool {
        self.freshness.is_met(idle, keep_alive) && (idle.is_none() || self.owner.as_ref() == owner)
    }
}

impl Queue {
    /// Takes the first waiter that a connection serves. `None` also if that one would overtake the first of the queue
    /// once too often, while no connection is being made for that.
    pub(super) fn pop(
        &mut self,
        idle: Option<Duration>,
        owner: Option<&Owner>,
        keep_alive: KeepAlive,
        connecting: usize,
    ) -> Option<Waiter> {
        let served = self.waiters.iter().position(|waiter| waiter.is_served_by(idle, owner, keep_alive))?;
        if served > 0 && connecting == 0 {
            let first = self.waiters.front()?.number;
            if self.overtaken.0 != first {
                self.overtaken = (first, 0);
            }
            if self.overtaken.1 == OVERTAKEN {
                return None;
            }
            self.overtaken.1 += 1;
        }
        self.waiters.remove(served)
    }

    /// Removes a waiter that gives up.
    pub(super) fn leave(&mut self, number: u64) -> Option<Waiter> {
        let place = self.waiters.binary_search_by_key(&number, |waiter| waiter.number).ok()?;
        self.waiters.remove(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Queue {
        fn push(&mut self, freshness: Freshness, owner: Option<&str>) {
            let (tell, _) = oneshot::channel();
            let owner = owner.map(|owner| Owner::Principal(owner.into()));
            self.waiters.push_back(Waiter { number: self.next, tell, freshness, owner, runtime: Handle::current() });
            self.next += 1;
        }

        /// Returns the number of the waiter that is taken.
        fn popped(&mut self, idle: Option<u64>, owner: Option<&str>, connecting: usize) -> Option<u64> {
            let owner = owner.map(|owner| Owner::Principal(owner.into()));
            let idle = idle.map(Duration::from_millis);
            self.pop(idle, owner.as_ref(), KeepAlive::ASSUMED, connecting).map(|waiter| waiter.number)
        }
    }

    #[tokio::test]
    async fn a_returned_connection_goes_to_the_first_waiter_of_its_owner() {
        let mut queue = Queue::default();
        for (freshness, owner) in [
            (Freshness::New, None),
            (Freshness::Recent, Some("alice")),
            (Freshness::Recent, Some("bob")),
            (Freshness::Any, None),
        ] {
            queue.push(freshness, owner);
        }
        assert_eq!(queue.popped(Some(0), Some("carol"), 0), None);
        assert_eq!(queue.popped(Some(5000), Some("bob"), 0), None);
        assert_eq!(queue.popped(Some(0), Some("bob"), 0), Some(2));
        assert_eq!(queue.popped(Some(0), Some("bob"), 0), None);
        assert_eq!(queue.popped(Some(0), None, 0), Some(3));
        assert_eq!(queue.popped(Some(0), None, 0), None);
        // A new connection has no owner yet.
        assert_eq!(queue.popped(None, None, 0), Some(0));
        assert_eq!(queue.popped(None, None, 0), Some(1));
    }

    #[tokio::test]
    async fn the_first_waiter_is_overtaken_a_limited_number_of_times() {
        let mut queue = Queue::default();
        queue.push(Freshness::Recent, Some("alice"));
        queue.push(Freshness::Recent, Some("alice"));
        for _ in 0..3 * OVERTAKEN {
            queue.push(Freshness::Any, None);
        }
        for _ in 0..OVERTAKEN {
            assert!(queue.popped(Some(0), None, 0).is_some());
        }
        assert_eq!(queue.popped(Some(0), None, 0), None);
        // The first waiter is certain to get the connection that is being made.
        assert!(queue.popped(Some(0), None, 1).is_some());
        assert_eq!(queue.popped(None, None, 1), Some(0));
        // The next one is overtaken as often.
        for _ in 0..OVERTAKEN {
            assert!(queue.popped(Some(0), None, 0).is_some());
        }
        assert_eq!(queue.popped(Some(0), None, 0), None);
        assert_eq!(queue.popped(Some(0), Some("alice"), 0), Some(1));
    }
}
