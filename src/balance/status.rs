//! What is known of a member of a set.

use std::sync::Arc;

use super::{
    member::{MemberState, State},
    snapshot::Entry,
};

/// What is known of a member: see [`Backends::status`](super::Backends::status).
///
/// ```
/// use tower_reverse_proxy::{Backends, balance::MemberStatus};
///
/// let status: Vec<MemberStatus> = Backends::new(["http://10.0.0.1:8000"]).status();
/// assert_eq!((status[0].in_flight(), status[0].requests(), status[0].faults()), (0, 0, 0));
/// ```
#[derive(Clone, Debug)]
pub struct MemberStatus {
    name: Arc<str>,
    state: State,
    weight: u32,
    weight_percent: u8,
    is_backup: bool,
    in_flight: u32,
    requests: u64,
    faults: u64,
}

impl MemberStatus {
    /// The status of a member of the set.
    pub(super) fn new(entry: &Entry) -> Self {
        Self { weight: entry.weight, is_backup: entry.is_backup, ..Self::of(&entry.state, entry.state()) }
    }

    /// The status of a member that was removed, and whose last exchange hasn't ended.
    pub(super) fn removed(member: &MemberState) -> Self {
        Self::of(member, State::Draining)
    }

    fn of(member: &MemberState, state: State) -> Self {
        Self {
            name: member.member.name().into(),
            state,
            weight: member.member.share(),
            weight_percent: member.weight_percent(),
            is_backup: member.member.is_backup(),
            in_flight: member.load.in_flight(),
            requests: member.load.requests(),
            faults: member.faults(),
        }
    }

    /// Returns the member's [name](super::Member::name), which is its origin.
    ///
    /// ```
    /// # use tower_reverse_proxy::Backends;
    /// assert_eq!(Backends::new(["http://10.0.0.1:8000"]).status()[0].backend(), "http://10.0.0.1:8000");
    /// ```
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.name
    }

    /// Returns whether it gets requests, and if not, why.
    ///
    /// ```
    /// # use tower_reverse_proxy::{Backends, balance::State};
    /// assert_eq!(Backends::new(["http://10.0.0.1:8000"]).status()[0].state(), State::Up);
    /// ```
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns the weight.
    ///
    /// ```
    /// # use tower_reverse_proxy::{Backends, balance::Member};
    /// assert_eq!(Backends::new([Member::new("http://10.0.0.1:8000").weight(2)]).status()[0].weight(), 2);
    /// ```
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Returns how many percent of its weight count, from 1 to 100: less than 100 if its check has the verdict
    /// [`Weight`](super::Verdict::Weight).
    ///
    /// ```
    /// # use tower_reverse_proxy::Backends;
    /// assert_eq!(Backends::new(["http://10.0.0.1:8000"]).status()[0].weight_percent(), 100);
    /// ```
    #[must_use]
    pub fn weight_percent(&self) -> u8 {
        self.weight_percent
    }

    /// Returns whether it's a [backup](super::Member::backup).
    ///
    /// ```
    /// # use tower_reverse_proxy::{Backends, balance::Member};
    /// assert!(Backends::new([Member::new("http://10.0.0.1:8000").backup()]).status()[0].is_backup());
    /// ```
    #[must_use]
    pub fn is_backup(&self) -> bool {
        self.is_backup
    }

    /// Returns how many requests are in flight there: those whose response or tunnel hasn't ended.
    ///
    /// ```
    /// # use tower_reverse_proxy::Backends;
    /// assert_eq!(Backends::new(["http://10.0.0.1:8000"]).status()[0].in_flight(), 0);
    /// ```
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Returns how many requests have been sent there. Each attempt counts; checks don't.
    ///
    /// ```
    /// # use tower_reverse_proxy::Backends;
    /// assert_eq!(Backends::new(["http://10.0.0.1:8000"]).status()[0].requests(), 0);
    /// ```
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Returns how many faults have counted against it: see [`Eject`](super::Eject). A half is rounded up, because it
    /// may be all that shows a member that hangs.
    ///
    /// ```
    /// # use tower_reverse_proxy::Backends;
    /// assert_eq!(Backends::new(["http://10.0.0.1:8000"]).status()[0].faults(), 0);
    /// ```
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults
    }
}
