//! Shows the future of an attempt, while it's dropped, whether the proxy has given it up or the client has left; and
//! the proxy, which member of a balancer the attempt was at.

use std::cell::{Cell, RefCell};

thread_local! {
    static IS_OVERDUE: Cell<bool> = const { Cell::new(false) };
    static MEMBER: RefCell<Option<Box<str>>> = const { RefCell::new(None) };
}

/// Drops the future or the response of an exchange, or polls its body for the last time, because its backend is overdue
/// or the response unusable. Returns the member that [`is_at`] has named, too.
///
/// It's a thread-local, because a future is dropped on the stack of the one that owns it, and a mark in the request
/// would cost each exchange an allocation. A future that a layer has moved to a task of its own doesn't see it.
pub(crate) fn abandon<R>(end: impl FnOnce() -> R) -> (R, Option<Box<str>>) {
    MEMBER.take();
    let ended = {
        let _restore = Restore { before: IS_OVERDUE.replace(true) };
        end()
    };
    (ended, MEMBER.take())
}

/// Names the member of the attempt that ends because of its backend.
pub(crate) fn is_at(member: &str) {
    if is_overdue() {
        MEMBER.replace(Some(member.into()));
    }
}

/// Returns whether the value that calls it is dropped, or polled for the last time, because of its backend.
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
        is_at("b");
        assert_eq!(abandon(is_overdue), (true, None));
        assert!(!is_overdue());
        assert_eq!(abandon(|| is_at("a")).1.as_deref(), Some("a"));
        let panicked = std::panic::catch_unwind(|| {
            abandon::<()>(|| {
                is_at("a");
                panic!("a drop");
            })
        });
        assert!(panicked.is_err() && !is_overdue());
        assert_eq!(abandon(|| {}), ((), None));
    }
}
