//! How long the backend lets a connection be idle, as far as it has been seen.
//!
//! A request that races with the backend closing an idle connection fails, and it's unknown whether it was read. One that may be sent twice is
//! sent again; one that may not goes over no connection that has been idle for nearly as long as any was seen to be kept.

use std::time::Duration;

/// What is known of a backend. Nothing at first: it may close behind each answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::client) struct KeepAlive {
    /// The longest time that it has kept a connection, unless it has closed one sooner since.
    keeps: Duration,
}

/// By then a backend that closes behind each answer has done so.
pub(in crate::client) const AT_ONCE: Duration = Duration::from_millis(100);

/// The longest time that is safe with any backend: of usual keep-alive times the shortest is gunicorn's, 2 s.
pub(in crate::client) const USUAL: Duration = Duration::from_secs(1);

impl KeepAlive {
    /// What is assumed where nothing can be learned.
    pub(in crate::client) const ASSUMED: Self = Self { keeps: Duration::from_secs(2) };

    /// Whether the backend isn't about to close what has been idle for so long.
    pub(in crate::client) fn is_safe(self, idle: Duration) -> bool {
        idle < USUAL.min(self.keeps / 2)
    }

    /// Learns whether a connection was still open after so long.
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
