//! The connections to one backend behind one lock: the dispatcher takes and returns them, and serves the requests that
//! wait.

use std::{
    fmt,
    future::Future,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

use axum_core::BoxError;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        connect::{Connector, Offer, Stream},
        http1::{self, Checkout, Connection, Freshness, PoolOptions, Unusable, keep_alive},
        http2::{self, Share},
        limit::{Issuer, Limit, Permit, Ticket},
        reuse::Reuse,
    },
    demand::{Demand, Grant, Kind},
    state::{Connect, Outcome, State, Step},
};
use crate::{
    backend::Backend,
    error::{Error, ErrorKind},
    identity::Owner,
};

/// The connections to one backend, and the requests that wait for them.
///
/// A request that finds no connection waits for whatever comes first: a connection that another request returns, a
/// stream that ends, or a new connection. As many are opened as the waiters need, never more: one that comes too late
/// for its waiter goes to the next, and then to the idle ones. The waiters of both protocols stand in one queue in
/// order of arrival.
pub(in crate::client) struct Dispatcher {
    pub(in crate::client) backend: Backend,
    connector: Arc<Connector>,
    http1: http1::Options,
    pub(super) http2: Arc<http2::Pool>,
    options: Options,
    /// Nothing is sent, woken or dropped under it, because permits, streams and connections take it when they are
    /// dropped.
    state: Mutex<State>,
    /// Ends connects when the dispatcher is dropped.
    cancelled: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::client) struct Options {
    pub(in crate::client) pool: PoolOptions,
    pub(in crate::client) max_connections: Option<usize>,
    /// How long a request may wait at that limit.
    pub(in crate::client) queue_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        let queue_timeout = Some(Duration::from_secs(5));
        Self { pool: PoolOptions::default(), max_connections: None, queue_timeout }
    }
}

/// A request in the queue.
pub(super) enum Enqueued {
    /// A connection is idle, because it came back since the request first looked.
    Granted(Grant),
    Waiting {
        ticket: Ticket,
        outcome: oneshot::Receiver<Outcome>,
        /// How long it may wait.
        timeout: Option<Duration>,
    },
}

impl Dispatcher {
    pub(in crate::client) fn new(
        backend: Backend,
        connector: Connector,
        http1: http1::Options,
        http2: Arc<http2::Pool>,
        options: Options,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let limit = Limit::new(options.max_connections, this.clone());
            let state = State::new(limit, http1::Pool::new(options.pool), http2.clone());
            Self {
                backend,
                connector: Arc::new(connector),
                http1,
                http2,
                options,
                state: Mutex::new(state),
                cancelled: CancellationToken::new(),
            }
        })
    }

    // ---- HTTP/1.1 ----

    /// Takes an idle connection of an owner, or of none. The exchange finds out whether the backend has closed it.
    pub(in crate::client) fn take(self: &Arc<Self>, owner: Option<&Owner>, freshness: Freshness) -> Option<Checkout> {
        loop {
            let now = Instant::now();
            let mut state = self.lock();
            if let Some(checkout) = state.take(owner, freshness, now) {
                return Some(checkout);
            }
            // No idle connection is fresh enough. That the oldest is still open may show that others are.
            let unusable = state.http1.take_unusable(owner, now);
            drop(state);
            let mut idle = match unusable? {
                Unusable::Observable(idle) => idle,
                Unusable::Surplus(idle) => {
                    drop(idle);
                    return None;
                }
            };
            let (age, is_open) = idle.observe();
            self.observed(age, is_open);
            if !is_open {
                continue;
            }
            if age >= keep_alive::USUAL {
                // A new connection replaces it.
                return None;
            }
            // Requests that came meanwhile wait, because they didn't see it.
            self.give(self.lock(), idle.checkout(Instant::now()));
            return self.lock().take(owner, freshness, Instant::now());
        }
    }

    /// Records whether the backend has kept a connection that has been idle for so long.
    pub(in crate::client) fn observed(&self, idle: Duration, is_open: bool) {
        self.lock().http1.keep_alive.saw(idle, is_open);
    }

    /// Takes a connection back if its exchange has ended cleanly in both directions and another request may use it, and
    /// closes it otherwise.
    pub(in crate::client) fn put(self: &Arc<Self>, connection: Box<Connection>) {
        if connection.reuse != Reuse::Never && connection.is_idle() {
            self.give(self.lock(), Checkout::returned(connection));
        }
    }

    /// Gives a connection to the first waiter that it serves, or keeps it.
    fn give<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>, mut checkout: Checkout) {
        while let Some(waiter) = state.take_waiter(checkout.idle, checkout.connection.reuse.owner()) {
            drop(state);
            checkout = match waiter.send(Ok(Grant::Http1(checkout))) {
                // The waiter has left.
                Err(Ok(Grant::Http1(returned))) => returned,
                _ => return self.serve(self.lock()),
            };
            state = self.lock();
        }
        let surplus = state.http1.put(checkout, Instant::now());
        let lacks_sweeper = state.lacks_sweeper();
        // The waiters that are left need a new one.
        self.serve(state);
        drop(surplus);
        if lacks_sweeper {
            self.start_sweeper();
        }
    }

    /// Closes idle connections from now on, one by one as they become too old.
    fn start_sweeper(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else {
            // Without a runtime, no task can sweep.
            let idle = self.lock().http1.begin_sweep();
            return drop(idle);
        };
        let sweeper = runtime.spawn(sweep(Arc::downgrade(self), self.options.pool.sweep_interval()));
        let mut state = self.lock();
        if state.lacks_sweeper() {
            let finished = state.sweeper.replace(sweeper);
            drop(state);
            drop(finished);
        } else {
            drop(state);
            sweeper.abort();
        }
    }

    /// Closes idle connections that are too old, surplus, or closed by the backend. Returns whether any are left.
    fn sweep(self: &Arc<Self>) -> bool {
        let sweep = self.lock().http1.begin_sweep();
        for idle in sweep.run(|idle, is_open| self.observed(idle, is_open)) {
            // Requests that came meanwhile wait, because they didn't see it.
            self.give(self.lock(), idle.checkout(Instant::now()));
        }
        let mut state = self.lock();
        let is_empty = state.http1.is_empty();
        let ended = if is_empty { state.sweeper.take() } else { None };
        drop(state);
        drop(ended);
        !is_empty
    }

    /// Closes the connections without an exchange.
    pub(in crate::client) fn close_idle(&self) {
        let mut state = self.lock();
        let (idle, unused) = (state.http1.begin_sweep(), state.take_unused_http2());
        drop(state);
        drop(idle);
        drop(unused);
    }

    // ---- HTTP/2 ----

    /// Returns whether the backend may choose HTTP/2 for the client's requests.
    pub(super) fn speaks_http2(&self) -> bool {
        self.connector.offers_http2()
    }

    /// Returns whether HTTP/1.1 can be had of a backend that would choose HTTP/2.
    pub(super) fn can_insist_on_http1(&self) -> bool {
        self.connector.can_insist_on_http1()
    }

    /// Returns whether the backend chose HTTP/1.1 when it could choose last.
    pub(in crate::client) fn chose_http1(&self) -> bool {
        self.lock().chose_http1
    }

    /// Takes a stream of an open connection.
    pub(super) fn take_stream(self: &Arc<Self>) -> Option<http2::Stream> {
        let mut state = self.lock();
        let (stream, removed) = (state.take_stream(), state.take_removed());
        drop(state);
        drop(removed);
        stream
    }

    /// Gives a stream of a new connection to the first waiter of its kind.
    fn give_stream<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>, kind: Kind, mut stream: http2::Stream) {
        while let Some(waiter) = state.queue.pop(kind.index()) {
            drop(state);
            stream = match waiter.send(Ok(Grant::Http2(stream))) {
                Err(Ok(Grant::Http2(returned))) => returned,
                _ => return self.serve(self.lock()),
            };
            state = self.lock();
        }
        self.serve(state);
        // A connection that requests share stays open for a while.
        drop(stream);
    }

    // ---- The queue ----

    /// Puts a request into the queue.
    pub(super) fn enqueue(self: &Arc<Self>, kind: Kind, demand: Demand) -> Enqueued {
        let mut state = self.lock();
        if kind == Kind::Http1 || state.chose_http1 {
            let checkout = state.take(demand.owner.as_ref(), demand.freshness, Instant::now());
            if let Some(checkout) = checkout {
                return Enqueued::Granted(Grant::Http1(checkout));
            }
        }
        let (ticket, outcome) = state.queue.push(kind.index(), demand);
        let timeout = match (kind, self.options.max_connections) {
            // Below the limit, the connect timeout bounds the wait, because a connection is opened for the request.
            (Kind::Http1, _) => self.options.queue_timeout.filter(|_| state.is_overfull()),
            (Kind::Shared | Kind::Alone, Some(_)) => self.options.queue_timeout,
            (Kind::Shared | Kind::Alone, None) => self.connector.timeout(),
        };
        self.serve(state);
        Enqueued::Waiting { ticket, outcome, timeout }
    }

    /// Removes a request from the queue.
    pub(super) fn leave(self: &Arc<Self>, ticket: Ticket) {
        let mut state = self.lock();
        let waiter = state.queue.leave(ticket);
        // Later requests may have waited only in order not to overtake it.
        self.serve(state);
        drop(waiter);
    }

    /// Takes back the grant of a request that was cancelled.
    pub(super) fn give_back(self: &Arc<Self>, grant: Grant) {
        match grant {
            Grant::Http1(checkout) => self.give(self.lock(), checkout),
            Grant::Http2(stream) => drop(stream),
        }
    }

    /// Returns why a request that has waited for so long fails. `None`: it waits on, because a connection is being
    /// opened for it, within a timeout of its own.
    pub(super) fn timed_out(&self, kind: Kind, ticket: Ticket) -> Option<Error> {
        if self.lock().is_connecting_for(kind, ticket) {
            return None;
        }
        Some(match self.options.max_connections {
            None => ErrorKind::ConnectTimeout.into(),
            Some(_) => {
                let why = "no connection was free within the queue timeout";
                Error::with_source(ErrorKind::Overloaded, why).with_retry_after(1)
            }
        })
    }

    /// Serves the waiters with idle connections, streams, and as many new connections as the limit allows.
    ///
    /// A runtime that is shutting down drops a spawned task at once, on this stack, which comes back here. The inner
    /// call leaves its change to the outer one's next round.
    fn serve<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>) {
        if state.queue.is_empty() || mem::replace(&mut state.is_serving, true) {
            return;
        }
        loop {
            let (step, removed) = (state.next(), state.take_removed());
            if step.is_none() {
                state.is_serving = false;
            }
            drop(state);
            // It takes the lock if a step unwinds, so it lives only while that is free.
            let serving = Serving { dispatcher: self };
            drop(removed);
            let is_done = step.is_none();
            if let Some(step) = step {
                self.take_step(step);
            }
            mem::forget(serving);
            if is_done {
                return;
            }
            state = self.lock();
        }
    }

    fn take_step(self: &Arc<Self>, step: Step) {
        match step {
            Step::Grant(waiter, grant) => {
                if let Err(Ok(grant)) = waiter.send(Ok(grant)) {
                    self.give_back(grant);
                }
            }
            Step::CloseIdle(idle) => drop(idle),
            Step::CloseUnused(removed) => drop(removed),
            Step::Connect(Connect { kind, ticket, runtime, permit }) => {
                let pending = PendingConnect { dispatcher: Arc::downgrade(self), kind, ticket, has_begun: false };
                drop(runtime.spawn(self.connect(pending, permit)));
            }
        }
    }

    fn connect(
        self: &Arc<Self>,
        mut pending: PendingConnect,
        permit: Permit,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (connector, cancelled) = (self.connector.clone(), self.cancelled.clone());
        let handshake = Handshake { http1: self.http1, http2: self.http2.clone(), observer: Arc::downgrade(self) };
        async move {
            pending.has_begun = true;
            let connecting = handshake.connect(&connector, permit, pending.kind);
            if let Some(outcome) = cancelled.run_until_cancelled(connecting).await {
                pending.end(outcome);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a connection of a socket.
struct Handshake {
    http1: http1::Options,
    http2: Arc<http2::Pool>,
    observer: Weak<Dispatcher>,
}

impl Handshake {
    async fn connect(self, connector: &Connector, permit: Permit, kind: Kind) -> Outcome {
        let share = match kind {
            Kind::Http1 => {
                let opened = connector.connect(Offer::Http1, permit, async |io| Ok::<_, BoxError>(self.http1(io)));
                return opened.await;
            }
            Kind::Shared => Share::Shared,
            Kind::Alone => Share::Alone,
        };
        let negotiated = async |io| {
            if connector.has_chosen_http1(&io) {
                return Ok::<_, BoxError>(self.http1(io));
            }
            self.http2.open(io, share, self.observer.clone()).await.map(Grant::Http2)
        };
        connector.connect(Offer::Http2, permit, negotiated).await
    }

    fn http1(&self, io: Stream) -> Grant {
        Grant::Http1(Checkout::opened(Box::new(Connection::new(io, self.http1))))
    }
}

impl Issuer for Dispatcher {
    fn release(self: Arc<Self>) {
        let mut state = self.lock();
        state.limit.release();
        self.serve(state);
    }
}

impl http2::Observer for Dispatcher {
    fn capacity_changed(self: Arc<Self>) {
        self.serve(self.lock());
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.cancelled.cancel();
    }
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Sweeps for as long as there is a dispatcher with idle connections.
async fn sweep(dispatcher: Weak<Dispatcher>, interval: Duration) {
    loop {
        sleep(interval).await;
        if !dispatcher.upgrade().is_some_and(|dispatcher| dispatcher.sweep()) {
            return;
        }
    }
}

/// Lets later calls serve if this one unwinds.
struct Serving<'a> {
    dispatcher: &'a Dispatcher,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.dispatcher.lock().is_serving = false;
    }
}

/// A connection that is being opened. It's counted until it's open or given up.
struct PendingConnect {
    dispatcher: Weak<Dispatcher>,
    kind: Kind,
    /// The waiter on whose runtime it's opened. Another one may get it.
    ticket: Ticket,
    /// Whether it has been polled. If not by its end, its runtime has been shut down.
    has_begun: bool,
}

impl PendingConnect {
    fn end(mut self, outcome: Outcome) {
        let Some(dispatcher) = mem::take(&mut self.dispatcher).upgrade() else { return };
        let kind = self.kind;
        let mut state = dispatcher.lock();
        state.end_connecting(kind);
        match outcome {
            Ok(Grant::Http1(checkout)) => {
                state.chose_http1 |= kind != Kind::Http1;
                dispatcher.give(state, checkout);
            }
            Ok(Grant::Http2(stream)) => {
                state.chose_http1 = false;
                dispatcher.give_stream(state, kind, stream);
            }
            Err(error) => {
                let waiter = state.pop_failed(kind);
                dispatcher.serve(state);
                if let Some(waiter) = waiter {
                    let _ = waiter.send(Err(error));
                }
            }
        }
    }
}

impl Drop for PendingConnect {
    /// Its runtime has been shut down, or the connector has panicked. A connect that is begun on a runtime that is shut
    /// down is dropped unpolled, so that a waiter of that runtime fails instead of waiting forever. The connections of
    /// other waiters are opened on their own runtimes. A panic is a failed connect, because the next one would panic,
    /// too.
    fn drop(&mut self) {
        let Some(dispatcher) = self.dispatcher.upgrade() else { return };
        let mut state = dispatcher.lock();
        state.end_connecting(self.kind);
        let (waiter, why) = match self.has_begun {
            false => (state.queue.leave(self.ticket), "the request's runtime is shutting down"),
            true if thread::panicking() => (state.pop_failed(self.kind), "the connector has panicked"),
            true => (None, ""),
        };
        dispatcher.serve(state);
        if let Some(waiter) = waiter {
            let _ = waiter.send(Err(Error::with_source(ErrorKind::Connect, why)));
        }
    }
}
