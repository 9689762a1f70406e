//! Shows the future of an attempt, while it's dropped, whether the proxy has given it up or the client has left.

use std::cell::Cell;

thread_local! {
    static IS_OVERDUE: Cell<bool> = const { Cell::new(false) };
}

/// Drops the future of an exchange because its backend is overdue.
///
/// It's a thread-local, because a future is dropped on the stack of the one that owns it, and a mark in the request
/// would cost each exchange an allocation. A future that a layer has moved to a task of its own doesn't see it.
pub(crate) fn abandon(drop: impl FnOnce()) {
    let _restore = Restore { before: IS_OVERDUE.replace(true) };
    drop();
}

/// Returns whether the value whose `Drop` calls it is dropped because its backend is overdue.
pub(crate) fn is_overdue() -> bool {
    IS_OVERDUE.get()
}

/// Restores the mark, also if a `Drop` panics.
struct Restore {
    before: bool,
}

impl Drop for Restore {
    fn drop(&mut self) {
        IS_OVERDUE.set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_lasts_for_the_drop_alone() {
        assert!(!is_overdue());
        abandon(|| assert!(is_overdue()));
        assert!(!is_overdue());
        let panicked = std::panic::catch_unwind(|| abandon(|| panic!("a drop")));
        assert!(panicked.is_err() && !is_overdue());
    }
}
