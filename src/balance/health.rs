//! The health of one member as a state machine, and the rules over the whole set. Time is an argument.
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
    eject::Eject,
    member::State,
    outcome::Outcome,
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

/// Attempts within [`Window`], from which on their share of faults counts.
const ENOUGH: u32 = 20;

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
        let Status::Out { reason, .. } = self.status else { return };
        let reason = match outcome {
            Outcome::Unreachable => Reason::Down,
            // A connect isn't enough from now on, because the member accepts connections.
            Outcome::Fault { .. } | Outcome::HalfFault | Outcome::ServerError => Reason::Ejected,
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

/// What the attempts of the last ten seconds showed, in buckets of a second.
#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    buckets: [Bucket; Self::SECONDS as usize],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// The second that it counts, from the beginning of the window.
    second: u64,
    sums: Sums,
}

/// What a number of attempts showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    attempts: u32,
    half_faults: u32,
    /// Those 5xx that are no faults by themselves.
    errors: u32,
}

impl Window {
    const SECONDS: u64 = 10;
    const LENGTH: Duration = Duration::from_secs(Self::SECONDS);

    fn new(now: Instant) -> Self {
        Self { began: now, buckets: Default::default() }
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }

    fn add(&mut self, now: Instant, attempts: u32, half_faults: u32, errors: u32) {
        let second = self.second(now);
        let index = usize::try_from(second % Self::SECONDS).unwrap_or_default();
        let Some(bucket) = self.buckets.get_mut(index) else { return };
        if bucket.second > second {
            return;
        }
        if bucket.second != second {
            *bucket = Bucket { second, sums: Sums::default() };
        }
        bucket.sums.add(Sums { attempts, half_faults, errors });
    }

    fn sums(&self, now: Instant) -> Sums {
        let second = self.second(now);
        let mut sums = Sums::default();
        for bucket in self.buckets.iter().filter(|bucket| bucket.second + Self::SECONDS > second) {
            sums.add(bucket.sums);
        }
        sums
    }
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.attempts = self.attempts.saturating_add(other.attempts);
        self.half_faults = self.half_faults.saturating_add(other.half_faults);
        self.errors = self.errors.saturating_add(other.errors);
    }

    fn without(self, other: Self) -> Self {
        Self {
            attempts: self.attempts.saturating_sub(other.attempts),
            half_faults: self.half_faults.saturating_sub(other.half_faults),
            errors: self.errors.saturating_sub(other.errors),
        }
    }

    /// Returns the share of faults, and of the other 5xx if they count. No attempts: 0.
    fn share(self, with_errors: bool) -> f64 {
        let errors = if with_errors { f64::from(self.errors) } else { 0.0 };
        ((f64::from(self.half_faults) / 2.0 + errors) / f64::from(self.attempts.max(1))).min(1.0)
    }
}

/// What a member contributes to the rules over its set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tally {
    sums: Sums,
    is_failing: bool,
    is_out: bool,
    is_ejected: bool,
}

#[cfg(test)]
impl Tally {
    pub(super) fn attempts(&self) -> u32 {
        self.sums.attempts
    }
}

/// What the members of a set show together. It's summed up at most every tenth of a second, because a set that fails
/// as a whole raises a suspicion with each attempt.
#[derive(Debug, Default)]
pub(super) struct SetHealth {
    cached: Option<(Instant, SetTally)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct SetTally {
    sums: Sums,
    members: usize,
    /// Members that get no requests.
    out: usize,
    /// Members that get requests, and had some.
    active: usize,
    /// Those of them whose last attempts failed.
    failing: usize,
    ejected: usize,
}

impl SetHealth {
    const STALE: Duration = Duration::from_millis(100);

    /// Forgets what the members showed, because the set has changed.
    pub(super) fn forget(&mut self) {
        self.cached = None;
    }

    /// Returns whether a member is taken out, and why. `own` is its tally, and among `members`. `comparable`: all
    /// members get the same kinds of requests, so that their 5xx can be compared.
    pub(super) fn judge<I: Iterator<Item = Tally>>(
        &mut self,
        suspicion: Suspicion,
        own: Tally,
        members: impl FnOnce() -> I,
        comparable: bool,
        now: Instant,
    ) -> Option<Reason> {
        let set = match &mut self.cached {
            Some((at, set)) if now.saturating_duration_since(*at) < Self::STALE => set,
            cached => &mut cached.insert((now, SetTally::sum(members()))).1,
        };
        if set.members < 2 || own.is_out {
            return None;
        }
        if suspicion == Suspicion::Unreachable {
            return Some(Reason::Down);
        }
        let permitted = set.ejected < set.members / 2 && !set.fails() && set.is_outlier(suspicion, own, comparable);
        if permitted {
            set.ejected += 1;
        }
        permitted.then_some(Reason::Ejected)
    }

    /// Returns whether every member that gets requests failed with its last ones when they were summed up, so that none
    /// of them is to blame; and whether that was now.
    pub(super) fn fails_everywhere(&self, now: Instant) -> Option<bool> {
        let (at, set) = self.cached.as_ref()?;
        (set.failing > 0 && set.failing == set.members - set.out).then_some(*at == now)
    }
}

impl SetTally {
    fn sum(members: impl Iterator<Item = Tally>) -> Self {
        let mut set = Self::default();
        for member in members {
            set.members += 1;
            set.ejected += usize::from(member.is_ejected);
            if member.is_out {
                set.out += 1;
                continue;
            }
            set.sums.add(member.sums);
            set.active += usize::from(member.sums.attempts > 0);
            set.failing += usize::from(member.is_failing);
        }
        set
    }

    /// Returns whether most attempts fail at the whole set.
    fn fails(&self) -> bool {
        self.sums.attempts >= ENOUGH && self.sums.share(false) > 0.5
    }

    fn is_outlier(&self, suspicion: Suspicion, own: Tally, comparable: bool) -> bool {
        /// Attempts of the others without which there is no comparison.
        const COMPARED: u32 = 5;
        /// The share of faults at the others from which on five in a row come by chance.
        const BY_CHANCE: f64 = 0.2;
        let rest = self.sums.without(own.sums);
        let is_worse = |with_errors| own.sums.share(with_errors) - rest.share(with_errors) >= 0.3;
        let others = self.active.saturating_sub(1);
        let failing = self.failing.saturating_sub(usize::from(own.is_failing));
        if failing * 2 > others {
            return false;
        }
        match suspicion {
            Suspicion::Share => rest.attempts >= COMPARED && own.sums.share(comparable) >= 0.5 && is_worse(comparable),
            // A request may provoke a fault at every member, such as the end of a worker process.
            Suspicion::FaultsInARow => rest.attempts < ENOUGH || rest.share(false) < BY_CHANCE || is_worse(false),
            Suspicion::Unreachable => true,
        }
    }
}

/// Returns the median. It's the lower one of the two in the middle.
pub(super) fn median(mut values: Vec<f32>) -> Option<f32> {
    let middle = values.len().checked_sub(1)? / 2;
    let (_, median, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
    Some(*median)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: Outcome = Outcome::Fault { retry_after: None };

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Records outcomes at one time, and returns what the last one raises.
    fn record(health: &mut Health, outcome: Outcome, times: u32, now: Instant) -> Option<Suspicion> {
        (0..times).map(|_| health.record(outcome, &Eject::default(), now)).last().flatten()
    }

    fn due(health: &Health) -> Option<Instant> {
        health.due_trial().map(|(_, due)| due)
    }

    fn out(reason: Reason, now: Instant) -> Health {
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

    // ---- The set ----

    fn judge(members: &[&Health], suspicion: Suspicion, now: Instant) -> Option<Reason> {
        let tallies = || members.iter().map(|member| member.tally(now));
        SetHealth::default().judge(suspicion, members[0].tally(now), tallies, true, now)
    }

    /// A member with so many successes and faults.
    fn member(successes: u32, outcome: Outcome, times: u32, now: Instant) -> Health {
        let mut health = Health::up(now);
        record(&mut health, Outcome::Success, successes, now);
        record(&mut health, outcome, times, now);
        health
    }

    #[test]
    fn an_outlier_is_ejected() {
        let now = Instant::now();
        let (bad, good) = (member(5, FAULT, 5, now), member(5, FAULT, 0, now));
        let set = [&bad, &good, &good];
        assert_eq!(judge(&set, Suspicion::FaultsInARow, now), Some(Reason::Ejected));
    }

    #[test]
    fn a_member_without_a_sibling_stays() {
        let now = Instant::now();
        let bad = member(5, FAULT, 5, now);
        assert_eq!(judge(&[&bad], Suspicion::FaultsInARow, now), None);
        assert_eq!(judge(&[&bad], Suspicion::Unreachable, now), None);
    }

    #[test]
    fn half_of_the_set_is_out_at_most_and_those_that_are_down_do_not_count() {
        let now = Instant::now();
        let (bad, good) = (member(0, FAULT, 5, now), member(50, FAULT, 0, now));
        let (ejected, down) = (out(Reason::Ejected, now), out(Reason::Down, now));
        assert_eq!(judge(&[&bad, &good, &ejected], Suspicion::FaultsInARow, now), None);
        assert_eq!(judge(&[&bad, &good, &ejected, &good], Suspicion::FaultsInARow, now), Some(Reason::Ejected));
        assert_eq!(judge(&[&bad, &good, &down], Suspicion::FaultsInARow, now), Some(Reason::Ejected));
        assert_eq!(judge(&[&bad, &ejected, &down], Suspicion::Unreachable, now), Some(Reason::Down));
    }

    #[test]
    fn what_most_members_do_at_once_ejects_none() {
        let now = Instant::now();
        let (bad, failing, good) = (member(5, FAULT, 5, now), member(900, FAULT, 3, now), member(900, FAULT, 0, now));
        assert_eq!(judge(&[&bad, &failing, &failing], Suspicion::FaultsInARow, now), None);
        assert_eq!(judge(&[&bad, &failing, &good], Suspicion::FaultsInARow, now), Some(Reason::Ejected));
        // The failures are long over.
        let later = now + secs(10);
        let mut bad = bad;
        record(&mut bad, FAULT, 5, later);
        assert_eq!(judge(&[&bad, &failing, &failing], Suspicion::FaultsInARow, later), Some(Reason::Ejected));
    }

    #[test]
    fn a_set_that_fails_as_a_whole_ejects_none() {
        let now = Instant::now();
        let mut other = member(10, FAULT, 40, now);
        record(&mut other, Outcome::Success, 1, now);
        let bad = member(5, FAULT, 20, now);
        assert_eq!(judge(&[&bad, &other], Suspicion::FaultsInARow, now), None);
    }

    #[test]
    fn errors_that_a_url_provokes_everywhere_eject_none() {
        let now = Instant::now();
        let poisoned = member(10, Outcome::ServerError, 30, now);
        assert_eq!(judge(&[&poisoned; 3], Suspicion::Share, now), None);
        let (broken, good) = (member(10, Outcome::ServerError, 30, now), member(40, FAULT, 0, now));
        assert_eq!(judge(&[&broken, &good, &good], Suspicion::Share, now), Some(Reason::Ejected));
    }

    #[test]
    fn faults_that_a_url_provokes_everywhere_eject_none() {
        let now = Instant::now();
        let poisoned = |successes, faults| member(successes, FAULT, faults, now);
        let bad = poisoned(5, 10);
        for (others, expected) in [
            (poisoned(30, 22), None),
            (poisoned(40, 20), Some(Reason::Ejected)),
            // Five in a row don't come by chance.
            (poisoned(81, 19), Some(Reason::Ejected)),
            (poisoned(12, 6), Some(Reason::Ejected)),
        ] {
            // The last of each one's attempts has succeeded.
            let mut others = others;
            record(&mut others, Outcome::Success, 1, now);
            assert_eq!(judge(&[&bad, &others], Suspicion::FaultsInARow, now), expected, "{others:?}");
        }
    }

    #[test]
    fn errors_are_not_compared_where_the_members_get_different_requests() {
        let now = Instant::now();
        let (broken, good) = (member(10, Outcome::ServerError, 30, now), member(40, FAULT, 0, now));
        let tallies = || [&broken, &good].into_iter().map(|member| member.tally(now));
        let judge =
            |comparable| SetHealth::default().judge(Suspicion::Share, broken.tally(now), tallies, comparable, now);
        assert_eq!((judge(false), judge(true)), (None, Some(Reason::Ejected)));
    }

    #[test]
    fn thirty_points_have_to_lie_between_a_member_and_the_rest() {
        let now = Instant::now();
        let bad = member(10, Outcome::ServerError, 10, now);
        for (errors, expected) in [(21, None), (20, Some(Reason::Ejected))] {
            let rest = member(100 - errors, Outcome::ServerError, errors, now);
            assert_eq!(judge(&[&bad, &rest], Suspicion::Share, now), expected, "{errors} of 100");
        }
    }

    #[test]
    fn a_member_is_not_compared_with_nothing() {
        let now = Instant::now();
        let (bad, idle) = (member(0, Outcome::ServerError, 40, now), Health::up(now));
        assert_eq!(judge(&[&bad, &idle], Suspicion::Share, now), None);
    }

    #[test]
    fn ejections_in_the_same_moment_respect_the_limit() {
        let now = Instant::now();
        let (bad, good) = (member(0, FAULT, 5, now), member(90, FAULT, 0, now));
        let set = [&bad, &bad, &good, &good, &good];
        let mut rules = SetHealth::default();
        let mut judge =
            || rules.judge(Suspicion::FaultsInARow, bad.tally(now), || set.iter().map(|m| m.tally(now)), true, now);
        assert_eq!([judge(), judge(), judge()], [Some(Reason::Ejected), Some(Reason::Ejected), None]);
    }

    #[test]
    fn a_set_fails_everywhere_if_no_member_that_gets_requests_works() {
        let now = Instant::now();
        let member = |faults| {
            let mut health = Health::up(now);
            record(&mut health, FAULT, faults, now);
            health
        };
        let (bad, good, ejected) = (member(5), member(0), out(Reason::Ejected, now));
        for (set, expected) in [
            ([&bad, &bad, &bad], true),
            ([&bad, &bad, &ejected], true),
            // It may be idle, or work on long requests.
            ([&bad, &bad, &good], false),
            ([&good, &good, &ejected], false),
        ] {
            let mut rules = SetHealth::default();
            assert_eq!(rules.fails_everywhere(now), None);
            let _ =
                rules.judge(Suspicion::FaultsInARow, bad.tally(now), || set.iter().map(|m| m.tally(now)), true, now);
            assert_eq!(rules.fails_everywhere(now), expected.then_some(true), "{set:?}");
            assert_eq!(rules.fails_everywhere(now + secs(1)), expected.then_some(false), "{set:?}");
        }
    }

    #[test]
    fn the_median_of_an_even_number_is_the_lower_one() {
        for (values, expected) in
            [(vec![], None), (vec![3.0], Some(3.0)), (vec![9.0, 1.0], Some(1.0)), (vec![9.0, 1.0, 5.0], Some(5.0))]
        {
            assert_eq!(median(values.clone()), expected, "{values:?}");
        }
    }
}
