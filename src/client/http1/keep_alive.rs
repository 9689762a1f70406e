//! Observes how long the backend keeps idle connections.
//!
//! A request that races with the backend closing an idle connection fails, and it's unknown whether it was processed.
//! Requests that can be replayed are resent. The others avoid connections that have been idle for more than half the
//! longest idle time observed.

use std::time::Duration;

/// How long a backend keeps idle connections. Without an observation, it may close them after each response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::client) struct KeepAlive {
    /// The longest time for which it has kept a connection, unless it has closed one sooner since.
    keeps: Duration,
}

/// The time by which a backend that closes the connection after each response has done so.
pub(in crate::client) const AT_ONCE: Duration = Duration::from_millis(100);

/// The longest time that is safe with any backend: gunicorn's keep-alive time, 2 s, is the shortest of usual ones.
pub(in crate::client) const USUAL: Duration = Duration::from_secs(1);

impl KeepAlive {
    /// The assumption where nothing can be observed.
    pub(in crate::client) const ASSUMED: Self = Self { keeps: Duration::from_secs(2) };

    /// Whether the backend isn't about to close a connection that has been idle for so long.
    pub(in crate::client) fn is_safe(self, idle: Duration) -> bool {
        idle < USUAL.min(self.keeps / 2)
    }

    /// Records whether a connection was still open after such an idle time.
    pub(in crate::client) fn saw(&mut self, idle: Duration, is_open: bool) {
        match is_open {
            true if idle >= AT_ONCE => self.keeps = self.keeps.max(idle),
            true => {}
            false => self.keeps = self.keeps.min(idle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_observed_idle_time_is_safe() {
        for (seen, safe) in [
            (&[][..], None),
            (&[(99, true)], None),
            (&[(100, true)], Some(49)),
            (&[(100, true), (900, true), (300, true)], Some(449)),
            (&[(5000, true)], Some(999)),
            (&[(5000, true), (7000, false)], Some(999)),
            (&[(5000, true), (200, false)], Some(99)),
            (&[(200, false), (5000, true), (0, false)], None),
        ] {
            let mut keep_alive = KeepAlive::default();
            for &(idle, is_open) in seen {
                keep_alive.saw(Duration::from_millis(idle), is_open);
            }
            let longest = (0..2000).take_while(|&idle| keep_alive.is_safe(Duration::from_millis(idle))).last();
            assert_eq!(longest, safe, "{seen:?}");
        }
    }
}
