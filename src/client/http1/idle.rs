//! An idle connection, and what a request requires of one.

use std::time::Duration;

use tokio::time::Instant;

use super::{connection::Connection, keep_alive::KeepAlive};

/// A connection taken for a request.
#[derive(Debug)]
pub(in crate::client) struct Checkout {
    pub(in crate::client) connection: Box<Connection>,
    /// How long it has been idle. `None`: it's new, so that the backend can't be closing it.
    pub(in crate::client) idle: Option<Duration>,
    is_spare: bool,
}

impl Checkout {
    /// A connection that has just been opened. If no request needs it any more, it's spare.
    pub(in crate::client) fn opened(connection: Box<Connection>) -> Self {
        Self { connection, idle: None, is_spare: true }
    }

    /// A connection whose exchange has just ended.
    pub(in crate::client) fn returned(connection: Box<Connection>) -> Self {
        Self { is_spare: false, connection, idle: Some(Duration::ZERO) }
    }
}

/// How long the connection of a request may have been idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::client) enum Freshness {
    Any,
    /// No longer than the backend is certain to keep it, because the request can't be replayed.
    Recent,
    New,
}

impl Freshness {
    /// Returns whether a connection that has been idle for so long will do. `None`: a new one.
    pub(in crate::client) fn is_met(self, idle: Option<Duration>, keep_alive: KeepAlive) -> bool {
        match (self, idle) {
            (Self::Any, _) | (_, None) => true,
            (Self::Recent, Some(idle)) => keep_alive.is_safe(idle),
            (Self::New, Some(_)) => false,
        }
    }
}

/// A connection in the pool.
#[derive(Debug)]
pub(in crate::client) struct Idle {
    pub(super) connection: Box<Connection>,
    pub(super) since: Instant,
    /// Whether it's worth its cost only under load, because it was opened too late to be needed, and some servers
    /// reserve a worker for its first request.
    pub(super) is_spare: bool,
}

impl Idle {
    pub(super) fn new(Checkout { connection, idle, is_spare }: Checkout, now: Instant) -> Self {
        // Most have just been returned.
        let since = match idle {
            Some(age) if !age.is_zero() => now.checked_sub(age).unwrap_or(now),
            _ => now,
        };
        Self { connection, since, is_spare }
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    pub(in crate::client) fn checkout(self, now: Instant) -> Checkout {
        let age = self.age(now);
        self.checkout_at(age)
    }

    /// Takes it at an age that is known.
    pub(super) fn checkout_at(self, age: Duration) -> Checkout {
        Checkout { connection: self.connection, idle: Some(age), is_spare: self.is_spare }
    }

    /// Adds it to a list that is ordered by age, the oldest first. It's nearly always the youngest.
    pub(super) fn insert_into(self, idle: &mut Vec<Self>) {
        let place = match idle.last() {
            Some(youngest) if youngest.since > self.since => idle.partition_point(|other| other.since <= self.since),
            _ => idle.len(),
        };
        idle.insert(place, self);
    }

    /// Returns how long it has been idle, and whether the backend has kept it open.
    pub(in crate::client) fn observe(&mut self) -> (Duration, bool) {
        let is_open = self.connection.is_reusable();
        (self.since.elapsed(), is_open)
    }
}
