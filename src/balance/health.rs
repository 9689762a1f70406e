//! The health of one member as a state machine. Time is an argument. The rules over the set are a file of their own:
//! [`comparison`](super::comparison).
//!
//! ```text
//!             5 faults in a row, or half of 20 (the set permits it)
//!        ┌────────────────────────────────────────────────────────────► ejected ─┐ until its time is over
//!        │    2 failed connects in a row, or 3 failed checks                      │ ┌──┐
//!   ┌─► up ───────────────────────────────────────────────────────────► down ───┤ │  │ a trial fails: twice the time
//!   │    ▲                                                                       ▼ │  ▼
//!   │    └── slow start ◄──────────────── a trial, a connect or the checks succeed ┴──┘
//!   └── checking: a member that was added to a set with checks
//! ```

use std::time::Duration;

use tokio::time::Instant;

use super::{
    check::{Check, Verdict},
    comparison::Tally,
    eject::Eject,
    member::State,
    outcome::Outcome,
    window::{ENOUGH, Window},
};

/// The health of one member.
#[derive(Debug)]
pub(super) struct Health {
    status: Status,
    /// Whether the member is drained by its check.
    is_drained: bool,
    /// The percentage of its weight by its check, from 1 to 100.
    percent: u8,
    /// Half faults in a row, up to the head of the response.
    heads: u32,
    /// Half faults in a row of bodies, which the successes of their heads don't end.
    bodies: u32,
    /// Failed connects in a row.
    connects: u32,
    last_fault: Option<Instant>,
    window: Window,
    checks: Checks,
    /// How often the member has been out in a row, which doubles the time.
    exponent: u32,
    /// Since when it's not out.
    clean_since: Instant,
    /// Whether a response has shown that it's well since it has come back. Until then, one fault is enough.
    is_proven: bool,
    /// The `Retry-After` of a 503.
    retry_at: Option<Instant>,
    half_faults: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// `since`: it's in its slow start.
    Up {
        since: Option<Instant>,
    },
    Out {
        reason: Reason,
        since: Instant,
        until: Instant,
    },
    /// It was added to the set, and its first check hasn't succeeded yet.
    Checking,
}

/// Why a member is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Its responses show faults.
    Ejected,
    /// It can't be reached, or its checks fail.
    Down,
}

/// What speaks against a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// Its last connects failed.
    Unreachable,
    /// Its last attempts failed.
    FaultsInARow,
    /// Half of its attempts failed.
    Share,
}

/// What happened to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Out(Reason),
    Back,
    /// It's drained by its check, or is so no longer.
    Drained(bool),
    /// Its check has changed its weight.
    Weighted,
}

/// The percentage of a member whose check doesn't reduce its weight.
pub(super) const WHOLE: u8 = 100;

/// Failed connects in a row after which a member is down.
const CONNECTS: u32 = 2;

/// The longest time that the `Retry-After` of a member counts.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The time after which another trial may begin, because nothing more polls the first one: its runtime stands still, or
/// its client's connection does.
const LONGEST_TRIAL: Duration = Duration::from_secs(2 * 60);

impl Health {
    /// Returns the health of a member of a new set, which is up at once.
    pub(super) fn up(now: Instant) -> Self {
        Self::new(Status::Up { since: None }, now)
    }

    /// Returns the health of a member that is added to a running set. It begins with the slow start.
    pub(super) fn added(now: Instant) -> Self {
        Self::new(Status::Up { since: Some(now) }, now)
    }

    /// Returns the health of a member that is added to a running set with checks. It waits for the first success.
    pub(super) fn checking(now: Instant) -> Self {
        Self::new(Status::Checking, now)
    }

    fn new(status: Status, now: Instant) -> Self {
        Self {
            status,
            is_drained: false,
            percent: WHOLE,
            heads: 0,
            bodies: 0,
            connects: 0,
            last_fault: None,
            window: Window::new(now),
            checks: Checks::default(),
            exponent: 0,
            clean_since: now,
            is_proven: true,
            retry_at: None,
            half_faults: 0,
        }
    }

    /// Records what an attempt shows up to the head of its response. Returns what now speaks against the member.
    pub(super) fn record(&mut self, outcome: Outcome, eject: &Eject, now: Instant) -> Option<Suspicion> {
        match outcome {
            Outcome::Nothing => return None,
            Outcome::Success | Outcome::ServerError => {
                (self.heads, self.connects) = (0, 0);
                self.is_proven = true;
                self.window.add(now, 1, 0, u32::from(outcome == Outcome::ServerError));
                // One request may be answered with 500 each time, so it has to be compared.
                return if outcome == Outcome::ServerError { self.suspicion(eject, now) } else { None };
            }
            Outcome::Unreachable => self.connects = self.connects.saturating_add(1),
            Outcome::Fault { retry_after } => {
                self.connects = 0;
                self.retry_at = retry_after.map(|time| now + time.min(MAX_RETRY_AFTER));
            }
            Outcome::HalfFault => {}
        }
        self.heads = self.heads.saturating_add(outcome.halves());
        self.fault(outcome, 1, now);
        self.suspicion(eject, now)
    }

    /// Returns whether a success changes nothing but the number of attempts.
    pub(super) fn is_clean(&self) -> bool {
        matches!(self.status, Status::Up { .. }) && self.is_proven && self.heads == 0 && self.connects == 0
    }

    /// Adds successes that have changed nothing else.
    pub(super) fn record_successes(&mut self, count: u32, at: Instant) {
        self.window.add(at, count, 0, 0);
    }

    /// Forgets how many attempts failed.
    pub(super) fn forget_attempts(&mut self, now: Instant) {
        self.window = Window::new(now);
    }

    /// Records what the body of a response shows whose head was a success.
    pub(super) fn record_body(&mut self, outcome: Outcome, eject: &Eject, now: Instant) -> Option<Suspicion> {
        if outcome.halves() == 0 {
            return None;
        }
        self.bodies = self.bodies.saturating_add(outcome.halves());
        self.fault(outcome, 0, now);
        self.suspicion(eject, now)
    }

    /// Records that a response has ended well.
    pub(super) fn ended_well(&mut self) {
        self.bodies = 0;
    }

    fn fault(&mut self, outcome: Outcome, attempts: u32, now: Instant) {
        self.half_faults += u64::from(outcome.halves());
        self.last_fault = Some(now);
        self.window.add(now, attempts, outcome.halves(), 0);
    }

    fn suspicion(&self, eject: &Eject, now: Instant) -> Option<Suspicion> {
        if !eject.is_on || !matches!(self.status, Status::Up { .. }) {
            return None;
        }
        let (connects, faults) = if self.is_proven { (CONNECTS, eject.faults) } else { (1, 1) };
        if self.connects >= connects {
            return Some(Suspicion::Unreachable);
        }
        if self.heads.max(self.bodies) >= faults * 2 {
            return Some(Suspicion::FaultsInARow);
        }
        let sums = self.window.sums(now);
        (sums.attempts >= ENOUGH && sums.share(true) >= 0.5).then_some(Suspicion::Share)
    }

    /// Takes the member out. `random` is in 0..1.
    pub(super) fn take_out(&mut self, reason: Reason, eject: &Eject, now: Instant, random: f64) -> Change {
        let clean_minutes = now.saturating_duration_since(self.clean_since).as_secs() / 60;
        self.exponent = self.exponent.saturating_sub(u32::try_from(clean_minutes).unwrap_or(u32::MAX));
        self.shut(reason, eject, now, random);
        Change::Out(reason)
    }

    fn shut(&mut self, reason: Reason, eject: &Eject, now: Instant, random: f64) {
        let until = now + eject.backoff_at(self.exponent, random);
        let until = self.retry_at.take().map_or(until, |retry_at| until.max(retry_at));
        self.exponent = self.exponent.saturating_add(1).min(16);
        self.status = Status::Out { reason, since: now, until };
        self.checks = Checks::default();
    }

    /// Returns why the member is out, and begins a trial, if its time is over and no other trial is under way.
    pub(super) fn begin_trial(&mut self, now: Instant) -> Option<Reason> {
        match &mut self.status {
            Status::Out { reason, until, .. } if *until <= now => {
                *until = now + LONGEST_TRIAL;
                Some(*reason)
            }
            _ => None,
        }
    }

    /// Returns whether the member is out, and was before this time.
    pub(super) fn is_out_since(&self, time: Instant) -> bool {
        matches!(self.status, Status::Out { since, .. } if since <= time)
    }

    /// Records a trial that failed: the member is out for twice as long. What it showed has been recorded.
    pub(super) fn trial_failed(&mut self, outcome: Outcome, eject: &Eject, now: Instant, random: f64) {
        let Status::Out { reason, since, .. } = self.status else { return };
        let reason = match outcome {
            Outcome::Unreachable => Reason::Down,
            // A connect isn't enough from now on, because the member accepts connections.
            Outcome::Fault { .. } | Outcome::HalfFault => Reason::Ejected,
            Outcome::ServerError => {
                // One URL may have this response at each member, so another request is tried, after the shortest time.
                self.status = Status::Out { reason: Reason::Ejected, since, until: now + eject.backoff_at(0, random) };
                return;
            }
            Outcome::Success | Outcome::Nothing => reason,
        };
        self.shut(reason, eject, now, random);
    }

    /// Records a trial that showed nothing. The next one is due soon, but not at once, because each request would try
    /// again while this process lacks descriptors.
    pub(super) fn trial_given_up(&mut self, now: Instant) {
        const SOON: Duration = Duration::from_millis(100);
        if let Status::Out { until, .. } = &mut self.status {
            *until = now + SOON;
        }
    }

    /// Takes the member back, with its slow start. `is_proven`: a response or its checks have shown that it's well.
    pub(super) fn take_back(&mut self, is_proven: bool, now: Instant) -> Option<Change> {
        if matches!(self.status, Status::Up { .. }) {
            return None;
        }
        self.status = Status::Up { since: Some(now) };
        (self.heads, self.bodies, self.connects) = (0, 0, 0);
        (self.last_fault, self.retry_at) = (None, None);
        self.window = Window::new(now);
        self.checks = Checks::default();
        self.clean_since = now;
        self.is_proven = is_proven;
        Some(Change::Back)
    }

    /// Records the verdict of a check.
    pub(super) fn checked(&mut self, verdict: Verdict, check: &Check, now: Instant, random: f64) -> Option<Change> {
        let is_up = verdict != Verdict::Down;
        self.checks.count(is_up);
        let (drained, percent) = (self.is_drained, self.percent);
        (self.is_drained, self.percent) = match verdict {
            Verdict::Up => (false, WHOLE),
            Verdict::Drain | Verdict::Weight(0) => (true, percent),
            Verdict::Weight(percent) => (false, percent.min(WHOLE)),
            Verdict::Down => (drained, percent),
        };
        let change = match self.status {
            Status::Up { .. } if self.checks.failed >= check.fall => {
                Some(self.take_out(Reason::Down, &Eject::default(), now, random))
            }
            Status::Checking if self.checks.failed >= check.fall => {
                self.status = Status::Out { reason: Reason::Down, since: now, until: now };
                self.checks = Checks::default();
                Some(Change::Out(Reason::Down))
            }
            Status::Checking if is_up => self.take_back(true, now),
            Status::Out { reason, until, .. }
                if self.checks.passed >= check.rise && (reason == Reason::Down || until <= now) =>
            {
                self.take_back(true, now)
            }
            Status::Up { .. } | Status::Checking | Status::Out { .. } => None,
        };
        change
            .or((drained != self.is_drained).then_some(Change::Drained(self.is_drained)))
            .or((percent != self.percent).then_some(Change::Weighted))
    }

    /// Returns whether the next check may change the state, so that it's due sooner.
    pub(super) fn is_undecided(&self) -> bool {
        match self.status {
            Status::Up { .. } => self.checks.failed > 0,
            Status::Checking => true,
            Status::Out { .. } => self.checks.passed > 0,
        }
    }

    /// Ends the slow start if it's over. Returns whether that is a change.
    pub(super) fn settle(&mut self, slow_start: Duration, now: Instant) -> bool {
        match &mut self.status {
            Status::Up { since } if since.is_some_and(|since| now.saturating_duration_since(since) >= slow_start) => {
                *since = None;
                true
            }
            _ => false,
        }
    }

    /// Returns when a request has to try the member, and how. With checks, no request does.
    pub(super) fn due_trial(&self) -> Option<(Reason, Instant)> {
        match self.status {
            Status::Out { reason, until, .. } => Some((reason, until)),
            Status::Up { .. } | Status::Checking => None,
        }
    }

    /// Returns since when the member is in its slow start.
    pub(super) fn slow_start_since(&self) -> Option<Instant> {
        match self.status {
            Status::Up { since } => since,
            Status::Out { .. } | Status::Checking => None,
        }
    }

    /// Returns whether the member gets requests.
    pub(super) fn is_eligible(&self) -> bool {
        matches!(self.status, Status::Up { .. }) && !self.is_drained
    }

    /// Returns the percentage of its weight by its check.
    pub(super) fn percent(&self) -> u8 {
        self.percent
    }

    pub(super) fn state(&self) -> State {
        match self.status {
            Status::Up { .. } if self.is_drained => State::Draining,
            Status::Up { .. } => State::Up,
            Status::Out { reason: Reason::Ejected, .. } => State::Ejected,
            Status::Out { reason: Reason::Down, .. } => State::Down,
            Status::Checking => State::Checking,
        }
    }

    /// Returns how many faults have counted against the member.
    pub(super) fn faults(&self) -> u64 {
        self.half_faults.div_ceil(2)
    }

    pub(super) fn tally(&self, now: Instant) -> Tally {
        /// Faults in a row of a member that is failing, in halves.
        const FAILING: u32 = 6;
        let is_out = !matches!(self.status, Status::Up { .. });
        let is_recent = self.last_fault.is_some_and(|at| now.saturating_duration_since(at) < Window::LENGTH);
        Tally {
            sums: self.window.sums(now),
            is_failing: is_recent && self.heads.max(self.bodies) >= FAILING,
            is_out,
            is_ejected: matches!(self.status, Status::Out { reason: Reason::Ejected, .. }),
        }
    }
}

/// How many checks passed or failed in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Checks {
    passed: u32,
    failed: u32,
}

impl Checks {
    fn count(&mut self, is_up: bool) {
        *self = match is_up {
            true => Self { passed: self.passed.saturating_add(1), failed: 0 },
            false => Self { passed: 0, failed: self.failed.saturating_add(1) },
        };
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::balance) const FAULT: Outcome = Outcome::Fault { retry_after: None };

    pub(in crate::balance) fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Records outcomes at one time, and returns what the last one raises.
    pub(in crate::balance) fn record(
        health: &mut Health,
        outcome: Outcome,
        times: u32,
        now: Instant,
    ) -> Option<Suspicion> {
        (0..times).map(|_| health.record(outcome, &Eject::default(), now)).last().flatten()
    }

    fn due(health: &Health) -> Option<Instant> {
        health.due_trial().map(|(_, due)| due)
    }

    pub(in crate::balance) fn out(reason: Reason, now: Instant) -> Health {
        let mut health = Health::up(now);
        health.take_out(reason, &Eject::default(), now, 0.5);
        health
    }

    #[test]
    fn five_faults_in_a_row_raise_a_suspicion() {
        let now = Instant::now();
        let mut health = Health::up(now);
        assert_eq!(record(&mut health, FAULT, 4, now), None);
        assert_eq!(record(&mut health, FAULT, 1, now), Some(Suspicion::FaultsInARow));
        assert_eq!(health.faults(), 5);
    }

    #[test]
    fn a_success_ends_the_row_and_a_server_error_does_too() {
        let now = Instant::now();
        for outcome in [Outcome::Success, Outcome::ServerError] {
            let mut health = Health::up(now);
            record(&mut health, FAULT, 4, now);
            record(&mut health, outcome, 1, now);
            assert_eq!(record(&mut health, FAULT, 4, now), None, "{outcome:?}");
        }
    }

    #[test]
    fn what_shows_nothing_neither_ends_nor_continues_the_row() {
        let now = Instant::now();
        let mut health = Health::up(now);
        record(&mut health, FAULT, 4, now);
        assert_eq!(record(&mut health, Outcome::Nothing, 9, now), None);
        assert_eq!(record(&mut health, FAULT, 1, now), Some(Suspicion::FaultsInARow));
    }

    #[test]
    fn ten_half_faults_are_five() {
        let now = Instant::now();
        let mut health = Health::up(now);
        assert_eq!(record(&mut health, Outcome::HalfFault, 1, now), None);
        assert_eq!(health.faults(), 1);
        assert_eq!(record(&mut health, Outcome::HalfFault, 8, now), None);
        assert_eq!(record(&mut health, Outcome::HalfFault, 1, now), Some(Suspicion::FaultsInARow));
        assert_eq!(health.faults(), 5);
    }

    #[test]
    fn two_failed_connects_in_a_row_raise_a_suspicion() {
        let now = Instant::now();
        let mut health = Health::up(now);
        assert_eq!(record(&mut health, Outcome::Unreachable, 1, now), None);
        record(&mut health, Outcome::Success, 1, now);
        assert_eq!(record(&mut health, Outcome::Unreachable, 1, now), None);
        assert_eq!(record(&mut health, Outcome::Unreachable, 1, now), Some(Suspicion::Unreachable));
    }

    #[test]
    fn bodies_that_are_cut_count_although_their_heads_succeed() {
        let now = Instant::now();
        let mut health = Health::up(now);
        let mut suspicion = None;
        for _ in 0..5 {
            assert_eq!(suspicion, None);
            record(&mut health, Outcome::Success, 1, now);
            suspicion = health.record_body(FAULT, &Eject::default(), now);
        }
        assert_eq!(suspicion, Some(Suspicion::FaultsInARow));
        health.ended_well();
        assert_eq!(health.record_body(FAULT, &Eject::default(), now), None);
    }

    #[test]
    fn half_of_twenty_raise_a_suspicion_and_a_500_is_one_of_them() {
        let now = Instant::now();
        for fault in [FAULT, Outcome::ServerError] {
            let mut health = Health::up(now);
            for _ in 0..9 {
                record(&mut health, fault, 1, now);
                assert_eq!(record(&mut health, Outcome::Success, 1, now), None);
            }
            record(&mut health, Outcome::Success, 1, now);
            assert_eq!(record(&mut health, fault, 1, now), Some(Suspicion::Share), "{fault:?}");
        }
    }

    #[test]
    fn the_share_covers_ten_seconds() {
        let begin = Instant::now();
        let mut health = Health::up(begin);
        record(&mut health, Outcome::ServerError, 19, begin);
        let later = begin + secs(10);
        record(&mut health, Outcome::Success, 19, later);
        assert_eq!(record(&mut health, Outcome::ServerError, 1, later), None);
        let mut health = Health::up(begin);
        record(&mut health, Outcome::ServerError, 19, begin);
        assert_eq!(record(&mut health, Outcome::ServerError, 1, begin + secs(9)), Some(Suspicion::Share));
    }

    #[test]
    fn never_raises_no_suspicion_and_counts_the_faults() {
        let now = Instant::now();
        let mut health = Health::up(now);
        for outcome in [FAULT, Outcome::Unreachable] {
            for _ in 0..30 {
                assert_eq!(health.record(outcome, &Eject::never(), now), None);
            }
        }
        assert_eq!(health.faults(), 60);
    }

    #[test]
    fn the_time_out_doubles_with_each_failed_trial_and_one_trial_is_under_way_at_most() {
        let begin = Instant::now();
        let mut health = out(Reason::Ejected, begin);
        assert_eq!(due(&health), Some(begin + secs(1)));
        assert_eq!(health.begin_trial(begin + Duration::from_millis(999)), None);
        let second = begin + secs(1);
        assert_eq!(health.begin_trial(second), Some(Reason::Ejected));
        assert_eq!(health.begin_trial(second), None);
        assert_eq!(due(&health), Some(second + LONGEST_TRIAL));
        health.trial_failed(FAULT, &Eject::default(), second, 0.5);
        assert_eq!(due(&health), Some(second + secs(2)));
        let third = second + secs(2);
        health.begin_trial(third);
        health.trial_failed(FAULT, &Eject::default(), third, 0.5);
        assert_eq!(due(&health), Some(third + secs(4)));
    }

    #[test]
    fn a_trial_of_an_url_that_is_an_error_everywhere_does_not_prolong_the_time() {
        let mut now = Instant::now();
        let mut health = out(Reason::Down, now);
        for _ in 0..5 {
            now += secs(1);
            assert!(health.begin_trial(now).is_some());
            health.trial_failed(Outcome::ServerError, &Eject::default(), now, 0.5);
            assert_eq!((health.state(), due(&health)), (State::Ejected, Some(now + secs(1))));
        }
        health.trial_failed(FAULT, &Eject::default(), now, 0.5);
        assert_eq!(due(&health), Some(now + secs(2)));
    }

    #[test]
    fn a_trial_that_never_ends_is_followed_by_another() {
        let begin = Instant::now();
        let mut health = out(Reason::Down, begin);
        health.begin_trial(begin + secs(1));
        assert_eq!(health.begin_trial(begin + secs(120)), None);
        assert_eq!(health.begin_trial(begin + secs(121)), Some(Reason::Down));
    }

    #[test]
    fn a_trial_that_shows_nothing_is_soon_followed_by_another() {
        let begin = Instant::now();
        let mut health = out(Reason::Ejected, begin);
        let due = begin + secs(1);
        health.begin_trial(due);
        health.trial_given_up(due);
        assert_eq!(health.begin_trial(due), None);
        assert_eq!(health.begin_trial(due + Duration::from_millis(100)), Some(Reason::Ejected));
    }

    #[test]
    fn a_member_that_is_reached_and_fails_its_trial_is_ejected() {
        let now = Instant::now();
        let mut health = out(Reason::Down, now);
        assert_eq!(health.state(), State::Down);
        health.trial_failed(FAULT, &Eject::default(), now, 0.5);
        assert_eq!(health.state(), State::Ejected);
        health.trial_failed(Outcome::Unreachable, &Eject::default(), now, 0.5);
        assert_eq!(health.state(), State::Down);
    }

    #[test]
    fn a_minute_without_ejection_halves_the_next_time_out() {
        let mut now = Instant::now();
        let mut health = out(Reason::Ejected, now);
        for expected in [2, 4] {
            health.take_back(true, now);
            health.take_out(Reason::Ejected, &Eject::default(), now, 0.5);
            assert_eq!(due(&health), Some(now + secs(expected)));
        }
        health.take_back(true, now);
        now += secs(120);
        health.take_out(Reason::Ejected, &Eject::default(), now, 0.5);
        assert_eq!(due(&health), Some(now + secs(2)));
    }

    #[test]
    fn retry_after_prolongs_the_time_out_up_to_thirty_seconds() {
        let now = Instant::now();
        for (asked, expected) in [(0, 1), (7, 7), (30, 30), (3600, 30), (u64::MAX, 30)] {
            let mut health = Health::up(now);
            record(&mut health, Outcome::Fault { retry_after: Some(secs(asked)) }, 1, now);
            health.take_out(Reason::Ejected, &Eject::default(), now, 0.5);
            assert_eq!(due(&health), Some(now + secs(expected)), "{asked}");
        }
    }

    #[test]
    fn a_member_comes_back_with_a_slow_start_and_a_clean_record() {
        let now = Instant::now();
        let mut health = out(Reason::Ejected, now);
        record(&mut health, FAULT, 9, now);
        assert_eq!(health.take_back(true, now), Some(Change::Back));
        assert_eq!(health.take_back(true, now), None);
        assert_eq!(health.slow_start_since(), Some(now));
        assert_eq!(record(&mut health, FAULT, 4, now), None);
        assert!(!health.settle(secs(10), now + Duration::from_millis(9_999)));
        assert!(health.settle(secs(10), now + secs(10)));
        assert_eq!((health.slow_start_since(), due(&health)), (None, None));
    }

    #[test]
    fn one_fault_is_enough_for_a_member_that_came_back_without_a_response() {
        let now = Instant::now();
        for (fault, suspicion) in [(FAULT, Suspicion::FaultsInARow), (Outcome::Unreachable, Suspicion::Unreachable)] {
            let mut health = out(Reason::Down, now);
            health.take_back(false, now);
            assert_eq!(record(&mut health, Outcome::HalfFault, 1, now), None);
            assert_eq!(record(&mut health, fault, 1, now), Some(suspicion));
            let mut health = out(Reason::Down, now);
            health.take_back(false, now);
            record(&mut health, Outcome::Success, 1, now);
            assert_eq!(record(&mut health, fault, 1, now), None, "{fault:?}");
        }
    }

    #[test]
    fn a_member_of_a_new_set_has_no_slow_start_and_a_later_one_does() {
        let now = Instant::now();
        assert_eq!(Health::up(now).slow_start_since(), None);
        assert_eq!(Health::added(now).slow_start_since(), Some(now));
        assert!(!Health::checking(now).is_eligible());
    }

    fn checked(health: &mut Health, verdict: Verdict, times: u32, now: Instant) -> Option<Change> {
        let check = Check::get("/healthz");
        (0..times).map(|_| health.checked(verdict, &check, now, 0.5)).last().flatten()
    }

    #[test]
    fn three_failed_checks_in_a_row_take_a_member_out_and_two_bring_it_back() {
        use Verdict::{Down, Up};
        let now = Instant::now();
        let mut health = Health::up(now);
        checked(&mut health, Down, 2, now);
        assert!(health.is_undecided());
        checked(&mut health, Up, 1, now);
        assert!(!health.is_undecided());
        assert_eq!(checked(&mut health, Down, 2, now), None);
        assert_eq!(checked(&mut health, Down, 1, now), Some(Change::Out(Reason::Down)));
        assert_eq!((health.state(), health.is_eligible()), (State::Down, false));
        checked(&mut health, Up, 1, now);
        assert_eq!(checked(&mut health, Down, 1, now), None);
        checked(&mut health, Up, 1, now);
        assert_eq!(checked(&mut health, Up, 1, now), Some(Change::Back));
    }

    #[test]
    fn a_check_brings_an_ejected_member_back_after_its_time() {
        let now = Instant::now();
        let mut health = out(Reason::Ejected, now);
        assert_eq!(checked(&mut health, Verdict::Up, 3, now), None);
        assert_eq!(checked(&mut health, Verdict::Up, 1, now + secs(1)), Some(Change::Back));
    }

    #[test]
    fn an_added_member_waits_for_its_first_check() {
        let now = Instant::now();
        let mut health = Health::checking(now);
        assert_eq!(health.state(), State::Checking);
        assert_eq!(checked(&mut health, Verdict::Down, 2, now), None);
        assert_eq!(checked(&mut health, Verdict::Up, 1, now), Some(Change::Back));
        let mut health = Health::checking(now);
        assert_eq!(checked(&mut health, Verdict::Down, 3, now), Some(Change::Out(Reason::Down)));
    }

    #[test]
    fn a_check_drains_a_member_and_ends_the_drain() {
        let now = Instant::now();
        let mut health = Health::up(now);
        assert_eq!(checked(&mut health, Verdict::Drain, 1, now), Some(Change::Drained(true)));
        assert_eq!((health.state(), health.is_eligible()), (State::Draining, false));
        assert_eq!(checked(&mut health, Verdict::Up, 1, now), Some(Change::Drained(false)));
        assert!(health.is_eligible());
    }

    #[test]
    fn a_check_reduces_the_weight_of_a_member() {
        let now = Instant::now();
        let mut health = Health::up(now);
        for (verdict, change, percent) in [
            (Verdict::Weight(25), Some(Change::Weighted), 25),
            (Verdict::Weight(25), None, 25),
            (Verdict::Down, None, 25),
            (Verdict::Weight(u8::MAX), Some(Change::Weighted), 100),
            (Verdict::Weight(1), Some(Change::Weighted), 1),
            (Verdict::Weight(0), Some(Change::Drained(true)), 1),
            (Verdict::Weight(50), Some(Change::Drained(false)), 50),
            (Verdict::Up, Some(Change::Weighted), 100),
        ] {
            assert_eq!((checked(&mut health, verdict, 1, now), health.percent()), (change, percent), "{verdict:?}");
            assert_eq!(health.is_eligible(), verdict != Verdict::Weight(0));
        }
    }
}
