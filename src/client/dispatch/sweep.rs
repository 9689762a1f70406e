//! Closing idle connections: those that are too old, too many, or closed by the backend.

use std::{
    mem,
    sync::{Arc, Weak},
    time::Duration,
};

use super::{Checkout, Dispatcher, Idle, owned};

/// How long a connection may be idle that is spare, or one too many. Under load it's used sooner: with a limit that
/// is always kept, more requests at a time than that would mean as many connects.
const SPARE_IDLE: Duration = Duration::from_secs(1);

/// Sweeps for as long as there is a pool with something in it.
pub(super) async fn sweep(pool: Weak<Dispatcher>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        if !pool.upgrade().is_some_and(|pool| pool.sweep()) {
            return;
        }
    }
}

impl Dispatcher {
    /// Often enough to close what the backend has closed long before descriptors run out.
    pub(super) fn sweep_interval(&self) -> Duration {
        let most = Duration::from_secs(1);
        self.idle_timeout.map_or(most, |timeout| (timeout / 2).clamp(Duration::from_millis(10), most))
    }

    /// Closes what is too old, too much, or closed by the backend. Returns whether any are left.
    fn sweep(self: &Arc<Self>) -> bool {
        self.sweep_owned();
        let mut idle = mem::take(&mut self.lock().idle);
        self.retain_usable(&mut idle, self.max_idle, |idle| self.is_expired(idle));
        let mut state = self.lock();
        // What came back meanwhile is younger, as a rule.
        for returned in mem::take(&mut state.idle) {
            returned.insert_into(&mut idle);
        }
        state.idle = idle;
        let is_empty = state.idle.is_empty() && state.owned.is_empty();
        if is_empty {
            state.sweeper = None;
        }
        // A request that came meanwhile found none of them.
        self.serve(state);
        !is_empty
    }

    fn sweep_owned(self: &Arc<Self>) {
        let partitions = mem::take(&mut self.lock().owned);
        for mut idle in partitions.into_values() {
            self.retain_usable(&mut idle, self.max_idle.min(owned::MAX_IDLE), |idle| self.is_owned_expired(idle));
            for Idle { connection, since, .. } in idle {
                // A request of this owner that came meanwhile found none of them.
                self.give(self.lock(), Checkout { connection, idle: Some(since.elapsed()) });
            }
        }
    }

    /// Closes those of a list that are too old, closed by the backend, or spare for too long.
    fn retain_usable(&self, idle: &mut Vec<Idle>, max_idle: usize, is_expired: impl Fn(Duration) -> bool) {
        let mut surplus = idle.len().saturating_sub(max_idle);
        idle.retain_mut(|Idle { connection, since, is_spare }| {
            let (idle, is_open) = (since.elapsed(), connection.is_reusable());
            self.saw(idle, is_open);
            let is_worth_it = idle < SPARE_IDLE || !(*is_spare || surplus > 0);
            let is_kept = is_open && is_worth_it && !is_expired(idle);
            surplus = surplus.saturating_sub((!is_kept).into());
            is_kept
        });
    }
}
