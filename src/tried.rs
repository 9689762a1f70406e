//! The members of a balancer that a request has been sent to, as a request extension.
//!
//! The balancer writes it, and avoids these members when the request comes again. A retry layer around the balancer
//! reads whether another attempt has a member left.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use http::Extensions;

/// A member of a balancer. It's unique in the process, so that nested balancers don't confuse their members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MemberId(u64);

impl MemberId {
    /// Returns an id that no other member has.
    pub(crate) fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A set of members. It's unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SetId(u64);

impl SetId {
    /// Returns an id that no other set has.
    pub(crate) fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The members that a request has been sent to. Clones share the list, so that the copies of a request for several
/// attempts have one.
///
/// Of nested balancers, the outermost one gets a further attempt first. It alone decides whether there is one.
#[derive(Clone, Default)]
pub(crate) struct Tried {
    attempts: Arc<Mutex<Attempts>>,
}

#[derive(Default)]
struct Attempts {
    /// Without an allocation, because most requests are sent once.
    first: Option<MemberId>,
    others: Vec<MemberId>,
    /// The set of the outermost balancer.
    outermost: Option<SetId>,
    is_exhausted: bool,
}

impl Tried {
    /// Returns the list of a request, if it has one.
    pub(crate) fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// Adds a member to the list of a request that is sent to it. The outermost balancer does so first.
    pub(crate) fn push(&self, set: SetId, member: MemberId) {
        let mut attempts = self.lock();
        attempts.outermost.get_or_insert(set);
        attempts.add(member);
    }

    /// Adds a member to the list of a request that comes back from it. The outermost balancer does so last.
    pub(crate) fn push_unsent(&self, set: SetId, member: MemberId) {
        let mut attempts = self.lock();
        attempts.outermost = Some(set);
        attempts.add(member);
    }

    /// Returns whether the request hasn't been sent to any member.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().first.is_none()
    }

    /// Returns whether the request has been sent to a member.
    pub(crate) fn contains(&self, member: MemberId) -> bool {
        self.lock().contains(member)
    }

    /// Sets whether the balancer of a set has no other member for the request. Only that of the outermost one matters.
    pub(crate) fn set_exhausted(&self, set: SetId, is_exhausted: bool) {
        let mut attempts = self.lock();
        if attempts.outermost == Some(set) {
            attempts.is_exhausted = is_exhausted;
        }
    }

    /// Returns whether the outermost balancer has no other member for the request.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.lock().is_exhausted
    }

    fn lock(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempts {
    fn add(&mut self, member: MemberId) {
        if self.first.is_none() {
            self.first = Some(member);
        } else if !self.contains(member) {
            self.others.push(member);
        }
    }

    fn contains(&self, member: MemberId) -> bool {
        self.members().any(|tried| *tried == member)
    }

    fn members(&self) -> impl Iterator<Item = &MemberId> {
        self.first.iter().chain(&self.others)
    }
}

impl fmt::Debug for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lock().members()).finish()
    }
}

/// The error of a balancer whose last untried member has left it since the previous attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoneLeft;

impl fmt::Display for NoneLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request has been sent to every member")
    }
}

impl std::error::Error for NoneLeft {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_list_and_members_are_unique() {
        let (a, b, set) = (MemberId::unique(), MemberId::unique(), SetId::unique());
        assert_ne!(a, b);
        let tried = Tried::default();
        let clone = tried.clone();
        clone.push(set, a);
        clone.push(set, a);
        assert!(tried.contains(a) && !tried.contains(b));
        assert_eq!(tried.lock().members().count(), 1);
        clone.set_exhausted(set, true);
        assert!(tried.is_exhausted());
    }

    #[test]
    fn the_outermost_balancer_decides_whether_a_member_is_left() {
        let (inner, outer) = (SetId::unique(), SetId::unique());
        assert_ne!(inner, outer);
        let sent = Tried::default();
        for set in [outer, inner] {
            sent.push(set, MemberId::unique());
            sent.set_exhausted(set, set == inner);
        }
        let unsent = Tried::default();
        for set in [inner, outer] {
            unsent.push_unsent(set, MemberId::unique());
            unsent.set_exhausted(set, set == inner);
        }
        assert!(!sent.is_exhausted() && !unsent.is_exhausted());
    }
}
