//! How many connections there may be.

use std::sync::{Arc, Weak};

#[cfg(feature = "http2")]
use super::queue;
use super::{Idle, Pool, State};
#[cfg(feature = "http2")]
use crate::error::Error;

/// The right to be one of the connections. It's where the socket is: a tunnel has it too.
#[derive(Debug)]
pub(in crate::client) struct Slot {
    pool: Weak<Pool>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            let mut state = pool.lock();
            state.open -= 1;
            pool.serve(state);
        }
    }
}

impl State {
    /// Takes the connection that has been idle for longest, with any owner or none, to make room for one that is
    /// needed.
    pub(super) fn pop_oldest(&mut self) -> Option<Idle> {
        match (self.idle.first(), self.owned.oldest()) {
            (Some(shared), owned) if owned.is_none_or(|owned| shared.since <= owned) => Some(self.idle.remove(0)),
            _ => self.owned.pop_oldest(),
        }
    }
}

impl Pool {
    /// Takes the right to one more connection. `None`: there are as many as there may be, and none is idle.
    #[cfg(feature = "http2")]
    pub(in crate::client) fn slot(self: &Arc<Self>) -> Option<Slot> {
        let mut state = self.lock();
        if !self.is_full(&state) {
            return Some(self.reserve(&mut state));
        }
        let oldest = state.pop_oldest()?;
        let slot = self.reserve(&mut state);
        drop(state);
        drop(oldest);
        Some(slot)
    }

    pub(super) fn reserve(self: &Arc<Self>, state: &mut State) -> Slot {
        state.open += 1;
        Slot { pool: Arc::downgrade(self) }
    }

    /// Waits for what others have, no longer than a request may.
    #[cfg(feature = "http2")]
    pub(in crate::client) async fn in_time<T>(&self, waiting: impl Future<Output = T>) -> Result<T, Error> {
        match (self.max_connections, self.queue_timeout) {
            (None, _) => self.connector.in_time(waiting).await,
            (Some(_), Some(timeout)) => tokio::time::timeout(timeout, waiting).await.map_err(|_| queue::overloaded()),
            (Some(_), None) => Ok(waiting.await),
        }
    }
}
