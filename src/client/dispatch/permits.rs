//! How many connections there may be.

use std::sync::Arc;

#[cfg(feature = "http2")]
use super::queue;
use super::{
    super::limit::{Issuer, Permit},
    Dispatcher, Idle, State,
};
#[cfg(feature = "http2")]
use crate::error::Error;

impl Issuer for Dispatcher {
    fn release(self: Arc<Self>) {
        let mut state = self.lock();
        state.open -= 1;
        self.serve(state);
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

impl Dispatcher {
    /// Takes the right to one more connection. `None`: there are as many as there may be, and none is idle.
    #[cfg(feature = "http2")]
    pub(in crate::client) fn permit(self: &Arc<Self>) -> Option<Permit> {
        let mut state = self.lock();
        if !self.is_full(&state) {
            return Some(self.reserve(&mut state));
        }
        let oldest = state.pop_oldest()?;
        let permit = self.reserve(&mut state);
        drop(state);
        drop(oldest);
        Some(permit)
    }

    pub(super) fn reserve(self: &Arc<Self>, state: &mut State) -> Permit {
        state.open += 1;
        Permit::new(self)
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
