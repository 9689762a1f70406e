//! Idle connections with an owner, in a partition for each owner.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::idle::Idle;
use crate::identity::Owner;

/// How many connections of one owner may be idle for longer than a second. `pool_max_idle` may be less.
pub(super) const MAX_IDLE: usize = 4;

/// How long a connection with an owner may be idle. It's short because a user may have left, and there may be many
/// users.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many owners may have idle connections.
const MAX_OWNERS: usize = 256;

/// The idle connections of each owner, the oldest first. None of the lists is empty.
#[derive(Debug, Default)]
pub(super) struct Partitions(HashMap<Owner, Vec<Idle>>);

impl Partitions {
    /// Adds a connection. With too many owners, the connections of the least recently active one are returned, to be
    /// closed without the lock.
    pub(super) fn insert(&mut self, owner: Owner, idle: Idle) -> Vec<Idle> {
        let is_full = self.0.len() >= MAX_OWNERS && !self.0.contains_key(&owner);
        let evicted = if is_full { self.least_recent() } else { None };
        let surplus = evicted.and_then(|owner| self.0.remove(&owner)).unwrap_or_default();
        idle.insert_into(self.0.entry(owner).or_default());
        surplus
    }

    /// Returns the owner whose last exchange was before that of all others.
    fn least_recent(&self) -> Option<Owner> {
        let last_used = |(_, idle): &(&Owner, &Vec<Idle>)| idle.last().map(|idle| idle.since);
        self.0.iter().min_by_key(last_used).map(|(owner, _)| owner.clone())
    }

    /// Removes the connection that `pick` removes from an owner's list.
    pub(super) fn take(&mut self, owner: &Owner, pick: impl FnOnce(&mut Vec<Idle>) -> Option<Idle>) -> Option<Idle> {
        let idle = self.0.get_mut(owner)?;
        let picked = pick(idle);
        if idle.is_empty() {
            self.0.remove(owner);
        }
        picked
    }

    /// Returns since when the oldest connection of all has been idle.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.0.values().filter_map(|idle| idle.first()).map(|idle| idle.since).min()
    }

    /// Removes the oldest connection of all.
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
