//! The idle connections to one backend, as a plain structure: no lock, no queue.
//!
//! The last connection returned is the first one taken. One that has been idle for too long isn't taken. Connections
//! with an owner are kept in a partition of that owner.

use std::{mem, time::Duration};

use tokio::time::Instant;

use super::{
    idle::{Checkout, Freshness, Idle},
    keep_alive::{self, KeepAlive},
    owned::{self, Partitions},
};
use crate::identity::Owner;

/// How long a spare or surplus connection may be idle. Under load, it's reused sooner. If the maximum were enforced at
/// once, more concurrent requests than that would cause a connect each.
const SPARE_IDLE: Duration = Duration::from_secs(1);

/// How many connections may be idle, and for how long.
#[derive(Clone, Copy, Debug)]
pub(in crate::client) struct PoolOptions {
    pub(in crate::client) idle_timeout: Option<Duration>,
    pub(in crate::client) max_idle: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        // Shorter than most servers keep idle connections.
        Self { idle_timeout: Some(Duration::from_secs(30)), max_idle: 64 }
    }
}

/// The idle connections to one backend. Each backend has a pool of its own, so only connections with an owner need a
/// key.
#[derive(Debug)]
pub(in crate::client) struct Pool {
    /// Those without an owner, the oldest first.
    shared: Vec<Idle>,
    owned: Partitions,
    /// How long the backend keeps idle connections, as observed.
    pub(in crate::client) keep_alive: KeepAlive,
    options: PoolOptions,
}

impl Pool {
    pub(in crate::client) fn new(options: PoolOptions) -> Self {
        Self { shared: Vec::new(), owned: Partitions::default(), keep_alive: KeepAlive::default(), options }
    }

    pub(in crate::client) fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.owned.is_empty()
    }

    /// Takes the most recently used connection of an owner, or of none, if it's fresh enough. If it isn't, no other is.
    pub(in crate::client) fn take(
        &mut self,
        owner: Option<&Owner>,
        freshness: Freshness,
        keep_alive: KeepAlive,
        now: Instant,
    ) -> Option<Checkout> {
        let limits = self.options.limits(owner.is_some());
        let mut age = Duration::ZERO;
        let is_usable = |idle: &mut Idle| {
            age = idle.age(now);
            !limits.is_expired(age) && freshness.is_met(Some(age), keep_alive)
        };
        self.pick(owner, |idle| idle.pop_if(is_usable)).map(|idle| idle.checkout_at(age))
    }

    /// Takes the most recently used connection without an owner.
    pub(in crate::client) fn pop_youngest(&mut self, now: Instant) -> Option<Checkout> {
        self.shared.pop().map(|idle| idle.checkout(now))
    }

    /// Returns how long the most recently used connection without an owner has been idle, if it hasn't been for too
    /// long.
    pub(in crate::client) fn youngest(&self, now: Instant) -> Option<Duration> {
        let age = self.shared.last()?.age(now);
        (!self.options.limits(false).is_expired(age)).then_some(age)
    }

    /// Takes a connection out of those that [`take`](Self::take) refuses: one whose state shows how long the backend
    /// keeps idle connections, or else one that is surplus.
    pub(in crate::client) fn take_unusable(&mut self, owner: Option<&Owner>, now: Instant) -> Option<Unusable> {
        let max_idle = self.options.limits(owner.is_some()).max_idle;
        let mut is_observable = false;
        let idle = self.pick(owner, |idle| {
            is_observable = idle.first()?.age(now) >= keep_alive::AT_ONCE;
            let is_surplus = idle.len() > max_idle;
            if is_observable { Some(idle.remove(0)) } else { idle.pop_if(|_| is_surplus) }
        })?;
        Some(if is_observable { Unusable::Observable(idle) } else { Unusable::Surplus(idle) })
    }

    /// Removes the connection that `pick` removes from the list of an owner, or of none.
    fn pick(&mut self, owner: Option<&Owner>, pick: impl FnOnce(&mut Vec<Idle>) -> Option<Idle>) -> Option<Idle> {
        match owner {
            None => pick(&mut self.shared),
            Some(owner) => self.owned.take(owner, pick),
        }
    }

    /// Keeps a connection. Returns those that aren't kept, to be closed without the lock.
    pub(in crate::client) fn put(&mut self, checkout: Checkout, now: Instant) -> Vec<Idle> {
        let idle = Idle::new(checkout, now);
        if self.options.max_idle == 0 {
            return vec![idle];
        }
        match idle.connection.reuse.owner().cloned() {
            None => {
                idle.insert_into(&mut self.shared);
                Vec::new()
            }
            Some(owner) => self.owned.insert(owner, idle),
        }
    }

    /// Takes the connection that has been idle for longest, with any owner or none, to make room for a new one.
    pub(in crate::client) fn pop_oldest(&mut self) -> Option<Idle> {
        match (self.shared.first(), self.owned.oldest()) {
            (Some(shared), owned) if owned.is_none_or(|owned| shared.since <= owned) => Some(self.shared.remove(0)),
            _ => self.owned.pop_oldest(),
        }
    }

    /// Takes all connections out, so that they can be checked without the lock.
    pub(in crate::client) fn begin_sweep(&mut self) -> Sweep {
        let shared = mem::take(&mut self.shared);
        Sweep { shared, owned: mem::take(&mut self.owned), options: self.options }
    }
}

/// A connection that no request can use at the moment.
#[derive(Debug)]
pub(in crate::client) enum Unusable {
    /// It has been idle for long enough to learn from it.
    Observable(Idle),
    /// It's to be closed.
    Surplus(Idle),
}

/// Connections that are being checked.
#[derive(Debug)]
pub(in crate::client) struct Sweep {
    shared: Vec<Idle>,
    owned: Partitions,
    options: PoolOptions,
}

impl Sweep {
    /// Closes connections that are too old, surplus, or closed by the backend, and returns the others. `observe` is
    /// called with how long each one has been idle, and with whether it's still open.
    pub(in crate::client) fn run(self, mut observe: impl FnMut(Duration, bool)) -> Vec<Idle> {
        let Self { shared, owned, options } = self;
        let mut kept = Vec::new();
        let owned = owned.into_values().map(|idle| (idle, options.limits(true)));
        for (mut idle, limits) in owned.chain([(shared, options.limits(false))]) {
            limits.retain_usable(&mut idle, &mut observe);
            kept.append(&mut idle);
        }
        kept
    }
}

impl PoolOptions {
    /// Returns the interval of sweeps: often enough to close what the backend has closed long before descriptors run
    /// out.
    pub(in crate::client) fn sweep_interval(&self) -> Duration {
        let most = Duration::from_secs(1);
        self.idle_timeout.map_or(most, |timeout| (timeout / 2).clamp(Duration::from_millis(10), most))
    }

    /// Returns what applies to one list.
    fn limits(self, is_owned: bool) -> Self {
        match is_owned {
            false => self,
            true => Self {
                idle_timeout: Some(self.idle_timeout.unwrap_or(Duration::MAX).min(owned::IDLE_TIMEOUT)),
                max_idle: self.max_idle.min(owned::MAX_IDLE),
            },
        }
    }

    fn is_expired(&self, idle: Duration) -> bool {
        self.idle_timeout.is_some_and(|timeout| idle >= timeout)
    }

    fn retain_usable(&self, idle: &mut Vec<Idle>, mut observe: impl FnMut(Duration, bool)) {
        let mut surplus = idle.len().saturating_sub(self.max_idle);
        idle.retain_mut(|idle| {
            let (age, is_open) = idle.observe();
            observe(age, is_open);
            let is_worthwhile = age < SPARE_IDLE || !(idle.is_spare || surplus > 0);
            let is_kept = is_open && is_worthwhile && !self.is_expired(age);
            surplus = surplus.saturating_sub((!is_kept).into());
            is_kept
        });
    }
}
