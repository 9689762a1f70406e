//! The connections to one backend: those that are idle, those who wait for one, and how many there may be.
//!
//! The last one in is the first one out, and none is older than it may be. Who finds none waits in a [`queue`] for
//! whatever comes first: a connection that another request is through with, or a new one. As many are being made as
//! are waited for, never more: what comes too late for the one goes to the next, and then to the idle. What can't be
//! sent twice gets none that the backend may just be closing ([`keep_alive`]). Connections that credentials have
//! signed in stand apart, by their owner ([`owned`]).

mod owned;
mod permits;
mod queue;
mod sweep;
mod waiters;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

pub(super) use self::queue::Acquire;
use self::{owned::Partitions, waiters::Queue};
#[cfg(feature = "http2")]
use super::http2::Connections;
use super::{
    ClientOptions, InvalidClient,
    connect::Connector,
    http1::{
        Connection,
        keep_alive::{self, KeepAlive},
    },
    reuse::Reuse,
};
use crate::backend::Backend;

/// The connections to one backend. Each backend has a pool of its own, so only connections with an owner need a key.
pub(super) struct Dispatcher {
    pub(super) backend: Backend,
    pub(super) connector: Arc<Connector>,
    #[cfg(feature = "http2")]
    pub(super) http2: Connections,
    state: Mutex<State>,
    idle_timeout: Option<Duration>,
    max_idle: usize,
    max_connections: Option<usize>,
    queue_timeout: Option<Duration>,
    /// Ends what is being connected when the pool does.
    gone: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// Those without an owner, the oldest first.
    idle: Vec<Idle>,
    owned: Partitions,
    keep_alive: KeepAlive,
    queue: Queue,
    /// How many connections are being made for the queue.
    connecting: usize,
    /// How many there are, these included.
    open: usize,
    /// Whether a call of [`Dispatcher::serve`] is at work: it sees what is changed meanwhile.
    serving: bool,
    /// Closes idle connections, as long as there are any and its runtime isn't shut down.
    sweeper: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    since: Instant,
    /// Whether it's worth its cost under load only. Its buffer has grown: of what an idle proxy holds, that's the
    /// larger part. Or it came too late to be needed: some servers have a worker wait on it for its first request.
    is_spare: bool,
}

impl Idle {
    /// Puts it among others, which stay in the order of their age. Nearly always it's the youngest.
    fn insert_into(self, idle: &mut Vec<Self>) {
        let place = match idle.last() {
            Some(youngest) if youngest.since > self.since => idle.partition_point(|other| other.since <= self.since),
            _ => idle.len(),
        };
        idle.insert(place, self);
    }
}

/// A connection for a request.
#[derive(Debug)]
pub(super) struct Checkout {
    pub(super) connection: Box<Connection>,
    /// How long it has been idle: the backend may be closing it. `None`: it's new.
    pub(super) idle: Option<Duration>,
}

/// Which connection a request may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    Any,
    /// Connections that the backend is not about to close, because the request can't be sent twice.
    Recent,
    New,
}

impl Freshness {
    fn is_met(self, idle: Option<Duration>, keep_alive: KeepAlive) -> bool {
        match (self, idle) {
            (Self::Any, _) | (_, None) => true,
            (Self::Recent, Some(idle)) => keep_alive.is_safe(idle),
            (Self::New, Some(_)) => false,
        }
    }
}

impl Dispatcher {
    pub(super) fn new(backend: Backend, options: &ClientOptions) -> Result<Arc<Self>, InvalidClient> {
        Ok(Arc::new(Self {
            connector: Arc::new(Connector::new(&backend, options)?),
            backend,
            #[cfg(feature = "http2")]
            http2: Connections::new(options),
            state: Mutex::default(),
            idle_timeout: options.pool_idle_timeout,
            max_idle: options.pool_max_idle,
            max_connections: options.max_connections,
            queue_timeout: options.queue_timeout,
            gone: CancellationToken::new(),
        }))
    }

    /// Takes an idle connection without an owner. Whether the backend has closed it shows when a request is sent: it
    /// comes back unsent.
    pub(super) fn take(self: &Arc<Self>, freshness: Freshness) -> Option<Checkout> {
        loop {
            let mut state = self.lock();
            if let Some(found) = self.take_youngest(&mut state, freshness) {
                return Some(found);
            }
            // None of them will do. The oldest may show that some will.
            let Idle { since, .. } = *state.idle.first()?;
            if since.elapsed() < keep_alive::AT_ONCE {
                let surplus = if state.idle.len() > self.max_idle { state.idle.pop() } else { None };
                drop(state);
                drop(surplus);
                return None;
            }
            let mut oldest = state.idle.remove(0);
            drop(state);
            let is_open = oldest.connection.is_reusable();
            self.saw(since.elapsed(), is_open);
            if is_open && since.elapsed() >= keep_alive::USUAL {
                // A new one takes its place.
                return None;
            }
            if is_open {
                let mut state = self.lock();
                state.idle.insert(0, oldest);
                let found = self.take_youngest(&mut state, freshness);
                // A request that came meanwhile didn't find it.
                self.serve(state);
                return found;
            }
        }
    }

    /// Takes the connection that was used last, if it will do.
    fn take_youngest(&self, state: &mut State, freshness: Freshness) -> Option<Checkout> {
        let idle = state.idle.last()?.since.elapsed();
        let will_do = !self.is_expired(idle) && freshness.is_met(Some(idle), self.keep_alive(state));
        let Idle { connection, .. } = state.idle.pop_if(|_| will_do)?;
        Some(Checkout { connection, idle: Some(idle) })
    }

    /// Where there are as many connections as there may be, none would be idle for long enough to learn from it: each
    /// request would close one to make another.
    fn keep_alive(&self, state: &State) -> KeepAlive {
        if self.is_full(state) { KeepAlive::ASSUMED } else { state.keep_alive }
    }

    /// Learns whether the backend has kept a connection for so long.
    pub(super) fn saw(&self, idle: Duration, is_open: bool) {
        self.lock().keep_alive.saw(idle, is_open);
    }

    /// Takes a connection back, if its exchange has ended cleanly in both directions and another request may use it;
    /// closes it otherwise.
    pub(super) fn put(self: &Arc<Self>, mut connection: Box<Connection>) {
        if connection.reuse != Reuse::Never && connection.is_idle() {
            self.give(self.lock(), Checkout { connection, idle: Some(Duration::ZERO) });
        }
    }

    /// Keeps a connection that no request waits for. Returns those that aren't kept, to be closed without the lock.
    fn keep(self: &Arc<Self>, state: &mut State, Checkout { connection, idle }: Checkout) -> Vec<Idle> {
        let is_spare = connection.has_grown || idle.is_none();
        let now = Instant::now();
        let since = now.checked_sub(idle.unwrap_or_default()).unwrap_or(now);
        let idle = Idle { connection, since, is_spare };
        // Without a runtime, no task can sweep.
        let (1.., Ok(runtime)) = (self.max_idle, Handle::try_current()) else { return vec![idle] };
        let surplus = match idle.connection.reuse.owner().cloned() {
            None => {
                idle.insert_into(&mut state.idle);
                Vec::new()
            }
            Some(owner) => state.owned.insert(owner, idle),
        };
        if state.sweeper.as_ref().is_none_or(JoinHandle::is_finished) {
            state.sweeper = Some(runtime.spawn(sweep::sweep(Arc::downgrade(self), self.sweep_interval())));
        }
        surplus
    }

    fn is_full(&self, state: &State) -> bool {
        self.max_connections.is_some_and(|most| state.open >= most)
    }

    fn is_expired(&self, idle: Duration) -> bool {
        self.idle_timeout.is_some_and(|timeout| idle >= timeout)
    }

    /// No connection may be dropped under the lock: its permit takes it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").field("state", &self.state).finish_non_exhaustive()
    }
}
