//! Idle connections that credentials have signed in, by their owner.
//!
//! A request with an [`Owner`] takes a connection of its owner's partition or a new one, never one of another
//! partition or one without an owner, and leaves its connection in its owner's partition.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{super::http1::keep_alive, Checkout, Dispatcher, Freshness, Idle, State};
use crate::identity::Owner;

/// How many connections of one owner may be idle for longer than a second. Fewer if the pool is to keep fewer.
pub(super) const MAX_IDLE: usize = 4;

/// How long a connection with an owner may be idle: a user may have left, and there may be many users.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many owners may have idle connections.
const MAX_OWNERS: usize = 256;

/// The idle connections of each owner, the oldest first. None of the lists is empty.
#[derive(Debug, Default)]
pub(super) struct Partitions(HashMap<Owner, Vec<Idle>>);

impl Partitions {
    /// Adds a connection. Where there are too many owners, the connections of the one that has been idle for longest
    /// give way: these are returned, to be closed without the lock.
    pub(super) fn insert(&mut self, owner: Owner, idle: Idle) -> Vec<Idle> {
        let is_full = self.0.len() >= MAX_OWNERS && !self.0.contains_key(&owner);
        let gives_way = if is_full { self.least_recent() } else { None };
        let surplus = gives_way.and_then(|owner| self.0.remove(&owner)).unwrap_or_default();
        idle.insert_into(self.0.entry(owner).or_default());
        surplus
    }

    /// The owner whose last exchange was before that of all others.
    fn least_recent(&self) -> Option<Owner> {
        let last_used = |(_, idle): &(&Owner, &Vec<Idle>)| idle.last().map(|idle| idle.since);
        self.0.iter().min_by_key(last_used).map(|(owner, _)| owner.clone())
    }

    /// Takes a connection of an owner that `pick` takes from its list.
    fn take(&mut self, owner: &Owner, pick: impl FnOnce(&mut Vec<Idle>) -> Option<Idle>) -> Option<Idle> {
        let idle = self.0.get_mut(owner)?;
        let picked = pick(idle);
        if idle.is_empty() {
            self.0.remove(owner);
        }
        picked
    }

    /// Since when the oldest connection of all has been idle.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.0.values().filter_map(|idle| idle.first()).map(|idle| idle.since).min()
    }

    /// Takes the oldest connection of all.
    pub(super) fn pop_oldest(&mut self) -> Option<Idle> {
        let age = |(_, idle): &(&Owner, &Vec<Idle>)| idle.first().map(|idle| idle.since);
        let owner = self.0.iter().min_by_key(age)?.0.clone();
        self.take(&owner, |idle| Some(idle.remove(0)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_values(self) -> impl Iterator<Item = Vec<Idle>> {
        self.0.into_values()
    }
}

impl Dispatcher {
    /// Takes an idle connection of this owner.
    pub(in crate::client) fn take_owned(self: &Arc<Self>, freshness: Freshness, owner: &Owner) -> Option<Checkout> {
        loop {
            let mut state = self.lock();
            if let Some(found) = self.take_youngest_owned(&mut state, freshness, owner) {
                return Some(found);
            }
            // None of them will do. The oldest may show that some will.
            let mut is_observable = false;
            let idle = state.owned.take(owner, |idle| {
                is_observable = idle.first()?.since.elapsed() >= keep_alive::AT_ONCE;
                let is_surplus = idle.len() > self.max_idle.min(MAX_IDLE);
                if is_observable { Some(idle.remove(0)) } else { idle.pop_if(|_| is_surplus) }
            });
            drop(state);
            let Idle { mut connection, since, .. } = idle.filter(|_| is_observable)?;
            let is_open = connection.is_reusable();
            let idle = since.elapsed();
            self.saw(idle, is_open);
            if is_open && idle >= keep_alive::USUAL {
                // A new one takes its place.
                return None;
            }
            if is_open {
                // A request of this owner that came meanwhile didn't find it.
                self.give(self.lock(), Checkout { connection, idle: Some(idle) });
                return self.take_youngest_owned(&mut self.lock(), freshness, owner);
            }
        }
    }

    /// Takes the connection of this owner that was used last, if it will do.
    pub(super) fn take_youngest_owned(
        &self,
        state: &mut State,
        freshness: Freshness,
        owner: &Owner,
    ) -> Option<Checkout> {
        let keep_alive = self.keep_alive(state);
        let Idle { connection, since, .. } = state.owned.take(owner, |idle| {
            let age = idle.last()?.since.elapsed();
            let will_do = !self.is_owned_expired(age) && freshness.is_met(Some(age), keep_alive);
            idle.pop_if(|_| will_do)
        })?;
        Some(Checkout { connection, idle: Some(since.elapsed()) })
    }

    pub(super) fn is_owned_expired(&self, idle: Duration) -> bool {
        idle >= IDLE_TIMEOUT || self.is_expired(idle)
    }
}
