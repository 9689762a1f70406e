//! Idle connections to one backend: the last one in is the first one out, and none is older than it may be.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::http1::Connection;

/// The idle HTTP/1.1 connections to one backend. No key, no hashing: a backend has a pool of its own.
#[derive(Debug)]
pub(super) struct Pool {
    state: Mutex<State>,
    idle_timeout: Option<Duration>,
    max_idle: usize,
}

#[derive(Debug, Default)]
struct State {
    /// The oldest first.
    idle: Vec<Idle>,
    /// Whether the sweeper runs.
    swept: bool,
}

#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

impl Pool {
    pub(super) fn new(idle_timeout: Option<Duration>, max_idle: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), idle_timeout, max_idle })
    }

    /// Takes a connection that is fit for a request.
    pub(super) fn take(&self) -> Option<Box<Connection>> {
        loop {
            // Not checked under the lock: that reads from the socket.
            let Idle { mut connection, since } = self.lock().idle.pop()?;
            if !self.is_expired(since) && connection.is_reusable() {
                return Some(connection);
            }
        }
    }

    /// Puts a connection back, if its exchange has ended cleanly in both directions; closes it otherwise.
    pub(super) fn put(self: &Arc<Self>, mut connection: Box<Connection>) {
        if self.max_idle == 0 || !connection.is_idle() {
            return;
        }
        let mut state = self.lock();
        let surplus = if state.idle.len() >= self.max_idle { Some(state.idle.remove(0)) } else { None };
        state.idle.push(Idle { connection, since: Instant::now() });
        let starts = !std::mem::replace(&mut state.swept, true);
        drop(state);
        drop(surplus);
        if starts {
            tokio::spawn(sweep(Arc::downgrade(self), self.sweep_interval()));
        }
    }

    fn is_expired(&self, since: Instant) -> bool {
        self.idle_timeout.is_some_and(|timeout| since.elapsed() >= timeout)
    }

    /// Often enough to close what the backend has closed long before descriptors run out.
    fn sweep_interval(&self) -> Duration {
        let most = Duration::from_secs(1);
        self.idle_timeout.map_or(most, |timeout| (timeout / 2).clamp(Duration::from_millis(10), most))
    }

    /// Closes what is too old, or was closed by the backend. Returns whether any are left.
    fn sweep(&self) -> bool {
        let mut idle = std::mem::take(&mut self.lock().idle);
        idle.retain_mut(|idle| !self.is_expired(idle.since) && idle.connection.is_reusable());
        let mut state = self.lock();
        // What came back meanwhile is younger.
        idle.append(&mut state.idle);
        state.idle = idle;
        state.swept = !state.idle.is_empty();
        state.swept
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sweeps for as long as there is a pool with something in it.
async fn sweep(pool: Weak<Pool>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        if !pool.upgrade().is_some_and(|pool| pool.sweep()) {
            return;
        }
    }
}
