//! Waiting for a connection, and serving the waiters.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, MutexGuard, Weak},
    task::{Context, Poll},
};

use tokio::{runtime::Handle, sync::oneshot, time::Sleep};

use super::{
    super::{http1::Connection, limit::Permit},
    Checkout, Dispatcher, Freshness, Idle, State,
    waiters::Waiter,
};
use crate::{
    error::{Error, ErrorKind},
    identity::Owner,
};

/// What is done next for the waiters.
enum Step {
    Give(Waiter, Checkout),
    /// An idle connection that none of them can use makes room for a new one.
    Close(Box<Connection>),
    /// A connection is made on this runtime.
    Connect(Attempt, Permit, Handle),
}

impl Dispatcher {
    /// Waits for a new connection, or for one of this owner. `None`: for one without an owner.
    pub(in crate::client) fn wait(self: &Arc<Self>, freshness: Freshness, owner: Option<Owner>) -> Acquire {
        let (tell, outcome) = oneshot::channel();
        let mut state = self.lock();
        let number = state.queue.next;
        state.queue.next += 1;
        let found = match &owner {
            None => self.take_youngest(&mut state, freshness),
            Some(owner) => self.take_youngest_owned(&mut state, freshness, owner),
        };
        let patience = if let Some(found) = found {
            // It came back a moment ago.
            let _ = tell.send(Ok(found));
            None
        } else {
            let runtime = Handle::current();
            state.queue.waiters.push_back(Waiter { number, tell, freshness, owner, runtime });
            // Who has only to wait for the connect has a time of its own for that.
            self.queue_timeout.filter(|_| self.is_overfull(&state)).map(|timeout| Box::pin(tokio::time::sleep(timeout)))
        };
        self.serve(state);
        Acquire { pool: self.clone(), number, outcome, patience }
    }

    /// Whether the last waiter gets no connection of its own: not all that the waiters need have been reserved yet
    /// where another call is serving them.
    fn is_overfull(&self, state: &State) -> bool {
        let needed = state.queue.waiters.len().saturating_sub(state.connecting);
        self.max_connections.is_some_and(|most| state.open + needed > most)
    }

    /// Gives a connection to the first waiter that it will do for, or keeps it.
    pub(super) fn give<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>, mut found: Checkout) {
        loop {
            let (keep_alive, connecting) = (self.keep_alive(&state), state.connecting);
            let owner = found.connection.reuse.owner();
            let Some(waiter) = state.queue.pop(found.idle, owner, keep_alive, connecting) else { break };
            drop(state);
            match waiter.tell.send(Ok(found)) {
                Err(Ok(returned)) => found = returned,
                _ => return,
            }
            state = self.lock();
        }
        let surplus = self.keep(&mut state, found);
        // The waiters that are left need a new one.
        self.serve(state);
        drop(surplus);
    }

    /// Serves the waiters with what there is: idle connections, and new ones, as many as there may be.
    ///
    /// Each change of the state that may be of use to a waiter ends here, under the lock under which it was made: no
    /// waiter is left behind with a connection that it could have. Owned connections all come back through
    /// [`give`](Self::give), so they are idle only while none of their owner's waiters can use them.
    ///
    /// A runtime that is shutting down drops what is spawned at once, on this stack, and that comes back here: the
    /// inner call leaves it to the outer one's next round.
    pub(super) fn serve<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>) {
        if mem::replace(&mut state.serving, true) {
            return;
        }
        let unwinding = Serving { pool: self };
        while let Some(step) = self.next(&mut state) {
            drop(state);
            match step {
                Step::Give(waiter, found) => {
                    if let Err(Ok(found)) = waiter.tell.send(Ok(found)) {
                        self.give(self.lock(), found);
                    }
                }
                Step::Close(connection) => drop(connection),
                Step::Connect(attempt, permit, runtime) => drop(runtime.spawn(self.connect(attempt, permit))),
            }
            state = self.lock();
        }
        state.serving = false;
        mem::forget(unwinding);
        #[cfg(feature = "http2")]
        let is_one_wanted = self.http2.want_unused(self.is_overfull(&state));
        drop(state);
        #[cfg(feature = "http2")]
        if is_one_wanted {
            // As it's closed, its permit comes back here.
            self.http2.forget_one_unused();
        }
        #[cfg(feature = "http2")]
        self.http2.tell_freed();
    }

    fn next(self: &Arc<Self>, state: &mut State) -> Option<Step> {
        let State { idle, queue, connecting, .. } = &*state;
        let (waiting, connecting) = (queue.waiters.len(), *connecting);
        if waiting == 0 {
            return None;
        }
        // If the youngest won't do, no other will.
        if let Some(age) = idle.last().map(|idle| idle.since.elapsed())
            && !self.is_expired(age)
        {
            let keep_alive = self.keep_alive(state);
            if let Some(waiter) = state.queue.pop(Some(age), None, keep_alive, connecting)
                && let Some(Idle { connection, .. }) = state.idle.pop()
            {
                return Some(Step::Give(waiter, Checkout { connection, idle: Some(age) }));
            }
        }
        if self.is_full(state) && waiting > connecting {
            return state.pop_oldest().map(|idle| Step::Close(idle.connection));
        }
        // The others have theirs under way.
        let Waiter { number, ref runtime, .. } = *state.queue.waiters.get(connecting)?;
        let runtime = runtime.clone();
        state.connecting += 1;
        let attempt = Attempt { pool: Arc::downgrade(self), waiter: number, has_begun: false };
        Some(Step::Connect(attempt, self.reserve(state), runtime))
    }

    fn connect(&self, mut attempt: Attempt, permit: Permit) -> impl Future<Output = ()> + Send + use<> {
        let (connector, gone) = (self.connector.clone(), self.gone.clone());
        async move {
            attempt.has_begun = true;
            if let Some(outcome) = gone.run_until_cancelled(connector.connect_http1(permit)).await {
                attempt.end(outcome.map(|connection| Checkout { connection, idle: None }));
            }
        }
    }
}

/// Lets others serve if this call unwinds.
struct Serving<'a> {
    pool: &'a Dispatcher,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.pool.lock().serving = false;
    }
}

/// A connection that is being made. It counts until it's there, or given up.
struct Attempt {
    pool: Weak<Dispatcher>,
    /// The waiter on whose runtime it is made. Another one may get it.
    waiter: u64,
    /// Whether it has been polled. If not by its end, its runtime has been shut down.
    has_begun: bool,
}

impl Attempt {
    fn end(mut self, outcome: Result<Checkout, Error>) {
        let Some(pool) = mem::take(&mut self.pool).upgrade() else { return };
        let mut state = pool.lock();
        state.connecting -= 1;
        match outcome {
            Ok(found) => pool.give(state, found),
            // If others are being made for all who wait, one of these may do better.
            Err(_) if state.queue.waiters.len() <= state.connecting => {}
            Err(error) => {
                let waiter = state.queue.waiters.pop_front();
                pool.serve(state);
                if let Some(waiter) = waiter {
                    let _ = waiter.tell.send(Err(error));
                }
            }
        }
    }
}

impl Drop for Attempt {
    /// Its runtime has been shut down. What begins there is dropped unpolled, so that a waiter of that runtime fails:
    /// it would wait for ever. The connections of other waiters are made on their own runtimes.
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut state = pool.lock();
        state.connecting -= 1;
        let waiter = if self.has_begun { None } else { state.queue.leave(self.waiter) };
        pool.serve(state);
        if let Some(waiter) = waiter {
            let error = Error::with_source(ErrorKind::Connect, "the request's runtime is shutting down");
            let _ = waiter.tell.send(Err(error));
        }
    }
}

/// The future of a connection that is waited for.
///
/// # Cancel safety
///
/// Dropping it leaves the queue. A connection that is being made goes to another request.
pub(in crate::client) struct Acquire {
    pool: Arc<Dispatcher>,
    number: u64,
    outcome: oneshot::Receiver<Result<Checkout, Error>>,
    /// How long it may take to get out of the queue.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Future for Acquire {
    type Output = Result<Checkout, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(outcome) = Pin::new(&mut self.outcome).poll(cx) {
            // Who leaves the queue in other ways than these has left by itself.
            return Poll::Ready(outcome.unwrap_or_else(|_| Err(ErrorKind::Connect.into())));
        }
        match self.patience.as_mut().map(|patience| patience.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(overloaded())),
            _ => Poll::Pending,
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        self.outcome.close();
        match self.outcome.try_recv() {
            // It came as we left.
            Ok(Ok(found)) => self.pool.give(self.pool.lock(), found),
            Ok(Err(_)) => {}
            Err(_) => drop(self.pool.lock().queue.leave(self.number)),
        }
    }
}

impl fmt::Debug for Acquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquire").finish_non_exhaustive()
    }
}

/// No connection was free in time.
pub(super) fn overloaded() -> Error {
    Error::with_source(ErrorKind::Overloaded, "no connection was free within the queue timeout")
}
