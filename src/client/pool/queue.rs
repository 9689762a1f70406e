//! Those who wait for a connection, in the order that they came.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{runtime::Handle, sync::oneshot, time::Sleep};

use super::{Found, Need, Pool, keep_alive::KeepAlive};
use crate::error::{Error, ErrorKind};

/// The waiting, each with a higher number than the one before.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiters: VecDeque<Waiter>,
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    tell: oneshot::Sender<Result<Found, Error>>,
    need: Need,
    /// Where its connection is made.
    runtime: Handle,
}

impl Queue {
    /// The first one whom a connection will do that has been idle for so long.
    fn pop(&mut self, idle: Option<Duration>, keep_alive: KeepAlive) -> Option<Waiter> {
        let first = self.waiters.iter().position(|waiter| waiter.need.is_met(idle, keep_alive))?;
        self.waiters.remove(first)
    }

    fn leave(&mut self, number: u64) {
        if let Ok(place) = self.waiters.binary_search_by_key(&number, |waiter| waiter.number) {
            self.waiters.remove(place);
        }
    }
}

impl Pool {
    /// Waits for a connection.
    pub(in super::super) fn wait(self: &Arc<Self>, need: Need) -> Waiting {
        let (tell, told) = oneshot::channel();
        let mut state = self.lock();
        let number = state.queue.next;
        state.queue.next += 1;
        let patience = if let Some(found) = self.take_youngest(&mut state, need) {
            // It came back a moment ago.
            let _ = tell.send(Ok(found));
            None
        } else {
            let runtime = Handle::current();
            state.queue.waiters.push_back(Waiter { number, tell, need, runtime });
            // Who has only to wait for the connect has a time of its own for that.
            self.queue_timeout.filter(|_| self.is_full(&state)).map(|timeout| Box::pin(tokio::time::sleep(timeout)))
        };
        drop(state);
        self.connect_if_awaited();
        Waiting { pool: self.clone(), number, told, patience }
    }

    /// Gives a connection to the first who waits for it, or keeps it.
    pub(super) fn give(self: &Arc<Self>, mut found: Found) {
        loop {
            let mut state = self.lock();
            let keep_alive = self.keep_alive(&state);
            let Some(waiter) = state.queue.pop(found.idle, keep_alive) else {
                let unwanted = self.keep(&mut state, found);
                // Whoever is left wants a new one.
                let is_awaited = !state.queue.waiters.is_empty();
                drop(state);
                drop(unwanted);
                if is_awaited {
                    self.connect_if_awaited();
                }
                #[cfg(feature = "http2")]
                self.http2.tell_freed();
                return;
            };
            drop(state);
            match waiter.tell.send(Ok(found)) {
                Err(Ok(returned)) => found = returned,
                _ => return,
            }
        }
    }

    /// Begins to make a connection, if more are waited for than are being made.
    pub(super) fn connect_if_awaited(self: &Arc<Self>) {
        let mut state = self.lock();
        let Some(first) = state.queue.waiters.front() else { return };
        if state.queue.waiters.len() <= state.connecting {
            return;
        }
        if self.is_full(&state) {
            // An idle one makes room: its slot comes back here.
            let oldest = (!state.idle.is_empty()).then(|| state.idle.remove(0));
            drop(state);
            drop(oldest);
            return;
        }
        let runtime = first.runtime.clone();
        state.connecting += 1;
        let slot = self.reserve(&mut state);
        drop(state);
        let attempt = Attempt { pool: Arc::downgrade(self) };
        let (connector, gone) = (self.connector.clone(), self.gone.clone());
        runtime.spawn(async move {
            if let Some(outcome) = gone.run_until_cancelled(connector.connect_http1(slot)).await {
                attempt.end(outcome.map(|connection| Found { connection, idle: None }));
            }
        });
    }
}

/// A connection that is being made. It counts until it's there, or given up.
struct Attempt {
    pool: Weak<Pool>,
}

impl Attempt {
    fn end(mut self, outcome: Result<Found, Error>) {
        let Some(pool) = std::mem::take(&mut self.pool).upgrade() else { return };
        let mut state = pool.lock();
        state.connecting -= 1;
        match outcome {
            Ok(found) => {
                drop(state);
                pool.give(found);
            }
            // If others are being made for all who wait, one of these may do better.
            Err(_) if state.queue.waiters.len() <= state.connecting => {}
            Err(error) => {
                let waiter = state.queue.waiters.pop_front();
                drop(state);
                if let Some(waiter) = waiter {
                    let _ = waiter.tell.send(Err(error));
                }
                pool.connect_if_awaited();
            }
        }
    }
}

impl Drop for Attempt {
    /// Its runtime has ended.
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.lock().connecting -= 1;
            pool.connect_if_awaited();
        }
    }
}

/// The future of a connection that is waited for.
///
/// # Cancel safety
///
/// Dropping it leaves the queue. A connection that is being made goes to somebody else.
pub(in super::super) struct Waiting {
    pool: Arc<Pool>,
    number: u64,
    told: oneshot::Receiver<Result<Found, Error>>,
    /// How long it may take to get out of the queue.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Future for Waiting {
    type Output = Result<Found, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(told) = Pin::new(&mut self.told).poll(cx) {
            // Who leaves the queue in other ways than these has left by itself.
            return Poll::Ready(told.unwrap_or_else(|_| Err(ErrorKind::Connect.into())));
        }
        match self.patience.as_mut().map(|patience| patience.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(overloaded())),
            _ => Poll::Pending,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.told.close();
        match self.told.try_recv() {
            // It came as we left.
            Ok(Ok(found)) => self.pool.give(found),
            Ok(Err(_)) => {}
            Err(_) => self.pool.lock().queue.leave(self.number),
        }
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

/// No connection was free in time.
pub(super) fn overloaded() -> Error {
    Error::with_source(ErrorKind::Overloaded, "no connection was free within the queue timeout")
}
