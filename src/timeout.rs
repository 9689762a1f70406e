//! Timeouts as options have them: `None` disables one.

use std::time::Duration;

/// Disables a timeout that can't be added to a point in time, such as `Duration::MAX`.
pub(crate) fn bounded(timeout: impl Into<Option<Duration>>) -> Option<Duration> {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    timeout.into().filter(|&timeout| timeout < CENTURY)
}
