//! The state of a dispatcher, which is under its lock, and the decisions over it. Nothing is sent, closed or dropped
//! here.

use std::{mem, sync::Arc, time::Duration};

use tokio::{runtime::Handle, task::JoinHandle, time::Instant};

use super::{
    super::{
        http1::{self, Checkout, Freshness, Idle, keep_alive::KeepAlive},
        http2::{self, Removed, Stream},
        limit::{self, Limit, Permit, Ticket},
    },
    demand::{Demand, Grant, KINDS, Kind},
};
use crate::{error::Error, identity::Owner};

pub(super) type Outcome = Result<Grant, Error>;
pub(super) type Waiter = limit::Waiter<Demand, Outcome>;

#[derive(Debug)]
pub(super) struct State {
    pub(super) limit: Limit,
    pub(super) queue: limit::Queue<Demand, Outcome, KINDS>,
    pub(super) http1: http1::Pool,
    http2: Arc<http2::Pool>,
    /// How many connections are being opened for each kind of demand.
    connecting: [usize; KINDS],
    /// Whether the backend chose HTTP/1.1 when it could choose last.
    pub(super) chose_http1: bool,
    /// Whether a call is serving the waiters: it sees every change that is made meanwhile.
    pub(super) is_serving: bool,
    /// Closes idle connections, as long as there are any and its runtime isn't shut down.
    pub(super) sweeper: Option<JoinHandle<()>>,
    /// To be dropped without the lock.
    removed: Removed,
}

/// The next thing to do for the waiters, without the lock.
#[derive(Debug)]
pub(super) enum Step {
    Grant(Waiter, Grant),
    /// A connection that no waiter can use makes room for a new one.
    CloseIdle(Idle),
    CloseUnused(Removed),
    Connect(Connect),
}

/// A connection to be opened.
#[derive(Debug)]
pub(super) struct Connect {
    pub(super) kind: Kind,
    /// The waiter that it's opened for. Another one may get it.
    pub(super) ticket: Ticket,
    /// The runtime of that waiter.
    pub(super) runtime: Handle,
    pub(super) permit: Permit,
}

impl State {
    pub(super) fn new(limit: Limit, http1: http1::Pool, http2: Arc<http2::Pool>) -> Self {
        Self {
            limit,
            queue: limit::Queue::new(),
            http1,
            http2,
            connecting: [0; KINDS],
            chose_http1: false,
            is_serving: false,
            sweeper: None,
            removed: Removed::default(),
        }
    }

    /// Returns whether a task has to be started that sweeps.
    pub(super) fn lacks_sweeper(&self) -> bool {
        self.sweeper.as_ref().is_none_or(JoinHandle::is_finished) && !self.http1.is_empty()
    }

    /// Returns how long the backend is known to keep idle connections. At the limit, that's assumed, because no
    /// connection is idle for long enough to observe it, and each request would close one to open another.
    pub(super) fn keep_alive(&self) -> KeepAlive {
        if self.limit.is_full() { KeepAlive::ASSUMED } else { self.http1.keep_alive }
    }

    /// Takes an idle HTTP/1.1 connection.
    pub(super) fn take(&mut self, owner: Option<&Owner>, freshness: Freshness, now: Instant) -> Option<Checkout> {
        let keep_alive = self.keep_alive();
        self.http1.take(owner, freshness, keep_alive, now)
    }

    /// Takes a stream for a request that arrives now, unless earlier requests wait for one.
    pub(super) fn take_stream(&mut self) -> Option<Stream> {
        let kind = Kind::Shared.index();
        if self.queue.len(kind) > 0 {
            return None;
        }
        self.stream_for(self.queue.next(kind), false)
    }

    /// Takes a stream, unless that would overtake an earlier request once too often.
    fn stream_for(&mut self, ticket: Ticket, even_silent: bool) -> Option<Stream> {
        let protected = self.first_uncovered().map(|(_, ticket)| ticket);
        if !self.queue.may_overtake(ticket, protected) {
            return None;
        }
        let (stream, mut removed) = if even_silent { self.http2.take_silent() } else { self.http2.take() };
        self.removed.append(&mut removed);
        if stream.is_some() {
            self.queue.overtake(ticket, protected);
        }
        stream
    }

    /// Removes the HTTP/2 connections without a stream. They are to be dropped without the lock.
    pub(super) fn take_unused_http2(&self) -> Removed {
        self.http2.remove_all_unused()
    }

    /// Returns the connections that are to be dropped without the lock.
    pub(super) fn take_removed(&mut self) -> Removed {
        mem::take(&mut self.removed)
    }

    /// Removes the first waiter that an HTTP/1.1 connection serves.
    pub(super) fn take_waiter(&mut self, idle: Option<Duration>, owner: Option<&Owner>) -> Option<Waiter> {
        if self.queue.is_empty() {
            return None;
        }
        let (keep_alive, chose_http1) = (self.keep_alive(), self.chose_http1);
        // A new connection overtakes no waiter, because they are opened in the waiters' order.
        let protected = idle.and_then(|_| self.first_uncovered()).map(|(_, ticket)| ticket);
        self.queue.take(protected, |kind, demand| {
            (kind == Kind::Http1.index() || chose_http1) && demand.is_met(idle, owner, keep_alive)
        })
    }

    /// Returns the next thing to do for the waiters.
    ///
    /// It's called after each change that may be of use to a waiter, so that no waiter is left beside a connection that
    /// it could have. Connections with an owner are offered to that owner's waiters when they return, and aren't idle
    /// before.
    pub(super) fn next(&mut self) -> Option<Step> {
        if self.queue.is_empty() {
            return None;
        }
        let granted = self.grant_idle().or_else(|| self.grant_stream(false));
        granted.or_else(|| self.open()).or_else(|| self.make_room())
    }

    fn grant_idle(&mut self) -> Option<Step> {
        let now = Instant::now();
        let age = self.http1.youngest(now)?;
        let waiter = self.take_waiter(Some(age), None)?;
        self.http1.pop_youngest(now).map(|checkout| Step::Grant(waiter, Grant::Http1(checkout)))
    }

    fn grant_stream(&mut self, even_silent: bool) -> Option<Step> {
        let kind = Kind::Shared.index();
        let (ticket, _) = self.queue.nth(kind, 0)?;
        let stream = self.stream_for(ticket, even_silent)?;
        self.queue.pop(kind).map(|waiter| Step::Grant(waiter, Grant::Http2(stream)))
    }

    /// Opens a connection for the first waiter that needs one, unless there are as many as there may be.
    fn open(&mut self) -> Option<Step> {
        let (kind, ticket) = self.first_uncovered()?;
        let connecting = self.connecting.get_mut(kind.index())?;
        let runtime = self.queue.nth(kind.index(), *connecting)?.1.runtime.clone();
        let permit = self.limit.acquire()?;
        *connecting += 1;
        Some(Step::Connect(Connect { kind, ticket, runtime, permit }))
    }

    /// Makes room at the limit.
    fn make_room(&mut self) -> Option<Step> {
        let uncovered = self.uncovered();
        if uncovered > self.limit.closing() {
            if let Some(idle) = self.http1.pop_oldest() {
                self.limit.begin_close();
                return Some(Step::CloseIdle(idle));
            }
            if let Some(removed) = self.http2.remove_unused() {
                self.limit.begin_close();
                return Some(Step::CloseUnused(removed));
            }
        }
        // A connection that may be frozen serves a waiter better than no connection.
        if uncovered > 0 { self.grant_stream(true) } else { None }
    }

    /// Returns how many connections have to be opened for the demands of a kind, those that are being opened included.
    ///
    /// Requests that share connections need one at first, because it's unknown how many of them it serves.
    fn needed(&self, kind: Kind) -> usize {
        let waiting = self.queue.len(kind.index());
        if kind == Kind::Shared && !self.chose_http1 { waiting.min(1) } else { waiting }
    }

    fn connecting(&self, kind: Kind) -> usize {
        self.connecting.get(kind.index()).copied().unwrap_or_default()
    }

    /// Returns how many waiters need a connection that isn't being opened yet.
    fn uncovered(&self) -> usize {
        Kind::ALL.into_iter().map(|kind| self.needed(kind).saturating_sub(self.connecting(kind))).sum()
    }

    /// Returns the first waiter that needs a connection that isn't being opened yet.
    fn first_uncovered(&self) -> Option<(Kind, Ticket)> {
        let first = |kind: Kind| {
            let connecting = self.connecting(kind);
            let (ticket, _) = self.queue.nth(kind.index(), connecting).filter(|_| self.needed(kind) > connecting)?;
            Some((kind, ticket))
        };
        Kind::ALL.into_iter().filter_map(first).min_by_key(|(_, ticket)| *ticket)
    }

    /// Returns whether the waiters need more connections than the limit allows.
    pub(super) fn is_overfull(&self) -> bool {
        self.limit.is_exceeded_by(self.uncovered())
    }

    /// Returns whether a connection is being opened for a waiter.
    pub(super) fn is_connecting_for(&self, kind: Kind, ticket: Ticket) -> bool {
        self.queue.position(ticket).is_some_and(|position| position < self.connecting(kind))
    }

    /// Counts a connection that is open, or given up.
    pub(super) fn end_connecting(&mut self, kind: Kind) {
        if let Some(connecting) = self.connecting.get_mut(kind.index()) {
            *connecting -= 1;
        }
    }

    /// Removes the waiter that fails with a connect. `None`: connections are being opened for all waiters of its kind,
    /// and one of them may succeed.
    pub(super) fn pop_failed(&mut self, kind: Kind) -> Option<Waiter> {
        let is_needed = self.needed(kind) > self.connecting(kind);
        if is_needed { self.queue.pop(kind.index()) } else { None }
    }
}
