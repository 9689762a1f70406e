//! Records what attempts and checks show of a member's health, and publishes the changes.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    check::Checked,
    comparison::{Tally, median},
    eject::Eject,
    health::{Change, Health, Suspicion},
    load::{Millis, Successes},
    member::{Ending, MemberState, State},
    outcome::{self, Outcome, ResponseHead},
    set::{Set, Shared},
};
use crate::{abandoned, client::Client, observe};

/// The health of a member, and what it's judged by.
#[derive(Debug)]
pub(super) struct Watch {
    health: Mutex<Health>,
    /// Whether a success changes nothing but the number of attempts. Most responses leave the lock alone by it.
    is_clean: AtomicBool,
    /// Whether the end of a body matters, because an earlier one was cut.
    has_cut_bodies: AtomicBool,
    eject: Arc<Eject>,
    /// The client of its active checks, whose connections aren't the pool's.
    pub(super) checker: Option<Client>,
}

impl Watch {
    pub(super) fn new(health: Health, eject: Arc<Eject>, checker: Option<Client>) -> Self {
        Self {
            is_clean: AtomicBool::new(health.is_clean()),
            health: Mutex::new(health),
            has_cut_bodies: AtomicBool::new(false),
            eject,
            checker,
        }
    }

    #[cfg(test)]
    pub(super) fn up(now: Instant) -> Self {
        Self::new(Health::up(now), Arc::default(), None)
    }

    /// Nothing is called under it.
    pub(super) fn health(&self) -> HealthGuard<'_> {
        HealthGuard { health: self.health.lock().unwrap_or_else(PoisonError::into_inner), is_clean: &self.is_clean }
    }
}

/// The health of a member under its lock.
pub(super) struct HealthGuard<'a> {
    health: MutexGuard<'a, Health>,
    is_clean: &'a AtomicBool,
}

impl Deref for HealthGuard<'_> {
    type Target = Health;

    fn deref(&self) -> &Health {
        &self.health
    }
}

impl DerefMut for HealthGuard<'_> {
    fn deref_mut(&mut self) -> &mut Health {
        &mut self.health
    }
}

impl Drop for HealthGuard<'_> {
    fn drop(&mut self) {
        self.is_clean.store(self.health.is_clean(), Ordering::Relaxed);
    }
}

impl MemberState {
    /// Records the head of a response. Returns what it shows of the member.
    ///
    /// `began` is when the attempt did, if the members of the set are compared. Without it, no clock is read for the
    /// success of a member that is well.
    pub(super) fn responded(&self, head: &ResponseHead<'_>, began: Option<Instant>, is_bodiless: bool) -> Outcome {
        let outcome = Outcome::of_head(head, &self.watch.eject);
        let is_noted = outcome == Outcome::Success && self.watch.is_clean.load(Ordering::Relaxed);
        let Some(began) = began else {
            return if is_noted { outcome } else { self.ended(&Ending::Responded { outcome, began }, Instant::now()) };
        };
        let now = Instant::now();
        let age = now.saturating_duration_since(self.epoch);
        let millis = Millis::after(age);
        if !is_noted {
            self.ended(&Ending::Responded { outcome, began: Some(began) }, now);
        } else if let Some(earlier) = self.load.succeeded(age.as_secs() as u32) {
            self.record_successes(&mut self.watch.health(), earlier);
        }
        if is_bodiless && !head.status.is_server_error() {
            self.load.responded(now.saturating_duration_since(began), millis);
        }
        outcome
    }

    /// Adds the successes that were counted without the lock.
    fn record_successes(&self, health: &mut Health, Successes { second, count }: Successes) {
        if count > 0 {
            health.record_successes(count, self.epoch + Duration::from_secs(second.into()));
        }
    }

    /// Judges the member by what has become of an attempt. Everything that is known of a member's health comes from
    /// here or from its checks. Returns what the attempt shows.
    pub(super) fn ended(&self, ending: &Ending<'_>, now: Instant) -> Outcome {
        let outcome = match *ending {
            Ending::Responded { outcome, .. } => outcome,
            Ending::Failed(error) => Outcome::of_error(error),
            Ending::BodyFailed(error) => Outcome::of_body_error(error),
            Ending::Abandoned { after } => self.of_abort(after.unwrap_or_default()),
        };
        if outcome == Outcome::Nothing {
            return outcome;
        }
        if outcome.halves() > 0 {
            self.load.fail(1.0, Millis::between(self.epoch, now));
        }
        // There is nothing to compare a single member with.
        let is_alone = self.view().is_some_and(|view| view.is_alone());
        let mut health = self.watch.health();
        self.record_successes(&mut health, self.load.take_successes());
        if is_alone {
            health.forget_attempts(now);
        }
        let suspicion = match ending {
            Ending::BodyFailed(_) => {
                self.watch.has_cut_bodies.store(true, Ordering::Relaxed);
                health.record_body(outcome, &self.watch.eject, now)
            }
            _ => health.record(outcome, &self.watch.eject, now),
        };
        let is_back = match *ending {
            // All members are out, and the attempt was sent nevertheless.
            Ending::Responded { began: Some(began), .. } => outcome == Outcome::Success && health.is_out_since(began),
            _ => false,
        };
        drop(health);
        if is_back && self.watch.checker.is_none() {
            self.take_back(true, now);
        }
        if let Some(suspicion) = suspicion
            && let Some(shared) = self.shared.upgrade()
        {
            shared.suspect(self, suspicion, now);
        }
        outcome
    }

    fn of_abort(&self, after: Duration) -> Outcome {
        let is_overdue = abandoned::is_overdue();
        if !is_overdue && after < outcome::patience(None) {
            return Outcome::Nothing;
        }
        let usual = self.shared.upgrade().and_then(|shared| shared.usual_latency());
        Outcome::of_abort(after, usual, is_overdue)
    }

    /// Records that a response has ended well.
    pub(super) fn ended_well(&self) {
        if self.watch.has_cut_bodies.load(Ordering::Relaxed) {
            self.watch.has_cut_bodies.store(false, Ordering::Relaxed);
            self.watch.health().ended_well();
        }
    }

    /// Takes the member back into its set.
    pub(super) fn take_back(&self, is_proven: bool, now: Instant) {
        let change = self.watch.health().take_back(is_proven, now);
        if change.is_some() {
            self.load.take_successes();
            // Its slow start is enough.
            self.load.forgive();
        }
        if let Some(change) = change
            && let Some(shared) = self.shared.upgrade()
        {
            shared.changed(self, change, "", None);
        }
    }

    pub(super) fn trial_failed(&self, outcome: Outcome, now: Instant) {
        let Some(shared) = self.shared.upgrade() else { return };
        let random = shared.random.fraction();
        self.watch.health().trial_failed(outcome, &self.watch.eject, now, random);
        shared.health_changed();
    }

    pub(super) fn trial_given_up(&self, now: Instant) {
        self.watch.health().trial_given_up(now);
        if let Some(shared) = self.shared.upgrade() {
            shared.health_changed();
        }
    }

    pub(super) fn tally(&self, now: Instant) -> Tally {
        let mut health = self.watch.health();
        self.record_successes(&mut health, self.load.take_successes());
        health.tally(now)
    }

    pub(super) fn health_state(&self) -> State {
        self.watch.health().state()
    }

    /// Returns how many faults have counted against the member.
    pub(super) fn faults(&self) -> u64 {
        self.watch.health().faults()
    }

    /// Returns the percentage of its weight by its check.
    pub(super) fn weight_percent(&self) -> u8 {
        self.watch.health().percent()
    }

    /// Returns whether the next check may change its state.
    pub(super) fn is_undecided(&self) -> bool {
        self.watch.health().is_undecided()
    }
}

impl Shared {
    /// Judges a member that raises a suspicion, by what the others show.
    pub(super) fn suspect(&self, member: &MemberState, suspicion: Suspicion, now: Instant) {
        let mut set = self.lock();
        let Set { view, rules, .. } = &mut *set;
        let members = || view.entries.iter().map(|entry| entry.state.tally(now));
        let verdict = rules.judge(suspicion, member.tally(now), members, self.options.is_comparable(), now);
        let take_out =
            |reason| member.watch.health().take_out(reason, &member.watch.eject, now, self.random.fraction());
        let change = verdict.map(take_out);
        // What all members do at once is no reason to avoid one of them. They would owe for hundreds of faults, so that
        // one that was out meanwhile, and owes nothing, would get all requests when the failure has ended.
        match rules.fails_everywhere(now) {
            Some(true) => view.entries.iter().for_each(|entry| entry.state.load.forgive()),
            Some(false) => member.load.forgive(),
            None => {}
        }
        drop(set);
        if let Some(change) = change {
            let reason = match suspicion {
                Suspicion::Unreachable => "failed connects",
                Suspicion::FaultsInARow => "faults in a row",
                Suspicion::Share => "share of faults",
            };
            self.changed(member, change, reason, None);
        }
    }

    /// Records the verdict of a check.
    pub(super) fn checked(&self, member: &MemberState, checked: Checked) {
        let Checked { verdict, cause } = checked;
        let Some(check) = &self.options.health.check else { return };
        let random = self.random.fraction();
        let change = member.watch.health().checked(verdict, check, Instant::now(), random);
        if let Some(change) = change {
            if change == Change::Back {
                member.load.forgive();
            }
            self.changed(member, change, "failed checks", cause.as_deref());
        }
    }

    /// Publishes a change of a member's health.
    pub(super) fn changed(&self, member: &MemberState, change: Change, reason: &str, cause: Option<&str>) {
        self.health_changed();
        let name = member.member.name();
        match change {
            Change::Out(_) => observe::member_out(name, &member.state(), reason, cause),
            Change::Back | Change::Drained(false) => observe::member_back(name),
            Change::Drained(true) => observe::member_drains(name),
            // Its load may change with each check.
            Change::Weighted => {}
        }
    }

    /// Returns the median of the members' latencies.
    pub(super) fn usual_latency(&self) -> Option<Duration> {
        let view = self.lock().view.clone();
        let latencies = view.entries.iter().filter_map(|entry| entry.state.load.latency()).collect();
        median(latencies).map(|milliseconds| Duration::from_secs_f32((milliseconds / 1_000.0).max(0.0)))
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use axum_core::body::Body;
    use http::{HeaderMap, Request, Response, StatusCode};
    use tokio::time::{advance, timeout};
    use tower::{ServiceExt, service_fn};
    use tower_service::Service;

    use super::*;
    use crate::balance::{Backends, Balance, Member, health::Reason};

    /// The milliseconds of a member's load begin again after 49 days.
    #[tokio::test(start_paused = true)]
    async fn successes_count_however_old_the_set_is() {
        for days in [0, 60] {
            let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
            advance(Duration::from_secs(days * 24 * 60 * 60)).await;
            let members = backends.shared.members();
            let respond = |member: usize, status: StatusCode, times: usize| {
                for _ in 0..times {
                    let head = ResponseHead { status, headers: &HeaderMap::new(), is_whole: true };
                    members[member].responded(&head, Some(Instant::now()), false);
                }
            };
            for _ in 0..5 {
                respond(1, StatusCode::BAD_GATEWAY, 1);
                respond(1, StatusCode::OK, 1);
            }
            respond(0, StatusCode::OK, 1_000);
            // One in forty is no reason to take it out.
            respond(0, StatusCode::INTERNAL_SERVER_ERROR, 25);
            assert_eq!(backends.status()[0].state(), State::Up, "after {days} days");
        }
    }

    fn urls(count: usize) -> impl Iterator<Item = String> {
        (0..count).map(|number| format!("http://10.0.{}.{}:8000", number / 250, number % 250))
    }

    /// Takes a member out, as failed connects do.
    fn take_down(shared: &Shared, member: &MemberState) {
        let change = member.watch.health().take_out(Reason::Down, &member.watch.eject, Instant::now(), 0.5);
        shared.changed(member, change, "failed connects", None);
    }

    /// With a view for each of them, these 2,000 changes take 4,000,000 steps.
    #[tokio::test(start_paused = true)]
    async fn many_changes_at_once_are_few_views() {
        const COUNT: usize = 2_000;
        let backends = Backends::builder((0..COUNT).map(|number| Member::named(number.to_string()))).build().unwrap();
        let shared = &backends.shared;
        let attend = || shared.attend(&shared.view(), false, |_| false).is_none();
        for (number, member) in shared.members().iter().enumerate().skip(1) {
            take_down(shared, member);
            if number % 20 == 0 {
                advance(Duration::from_millis(10)).await;
                assert!(attend());
            }
        }
        // A second, with one view in two milliseconds at most, and another one when nothing has changed since.
        let views = shared.view().version;
        assert!((90..=210).contains(&views), "{views} views");
        advance(Duration::from_millis(2)).await;
        assert!(attend());
        assert_eq!(&*shared.view().eligible, [0]);
        advance(Duration::from_millis(2)).await;
        assert!(attend());
        let version = shared.view().version;
        advance(Duration::from_millis(2)).await;
        assert!(attend());
        assert_eq!(shared.view().version, version);
    }

    #[tokio::test(start_paused = true)]
    async fn few_of_many_members_that_are_down_are_connected_to_at_a_time() {
        let backends = Backends::new(urls(300));
        let shared = &backends.shared;
        let members = shared.members();
        for member in members.iter().rev() {
            let _used = member.member.client();
            take_down(shared, member);
            advance(Duration::from_millis(1)).await;
        }
        advance(Duration::from_secs(2)).await;
        // No task runs in between.
        for _ in 0..3 {
            assert!(shared.attend(&shared.view(), false, |_| false).is_none());
        }
        let now = Instant::now();
        let is_tried = |member: &&Arc<MemberState>| member.watch.health().due_trial().is_some_and(|(_, due)| due > now);
        assert_eq!(members.iter().filter(is_tried).count(), 64);
        // They have been out for the longest time.
        assert_eq!(members[300 - 64..].iter().filter(is_tried).count(), 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_the_queue_waits_for_no_later_view() {
        let members = (0..200).map(|number| Member::named(number.to_string()));
        let backends = Backends::builder(members).max_requests(1).queue_timeout(None).build().unwrap();
        let balance = Balance::new(&backends, |member: &Member| {
            let hangs = member.name() == "0";
            service_fn(move |_: Request<Body>| async move {
                if hangs {
                    pending::<()>().await;
                }
                Ok::<_, Infallible>(Response::new(Body::empty()))
            })
        });
        let (shared, members) = (&backends.shared, backends.shared.members());
        members[1..].iter().for_each(|member| take_down(shared, member));
        advance(Duration::from_millis(1)).await;
        let _busy = balance.clone().call(Request::default());
        assert_eq!(members[0].load.in_flight(), 1);
        members[1].take_back(true, Instant::now());
        assert!(shared.lock().is_stale, "its view is made later");
        let response = timeout(Duration::from_secs(60), balance.oneshot(Request::default())).await;
        assert!(response.is_ok(), "nothing else makes the view");
    }

    /// Each request would look at all members, as long as the connects of some of them hang.
    #[tokio::test(start_paused = true)]
    async fn without_a_permit_for_a_connect_none_is_due() {
        let backends = Backends::new(urls(2));
        let (shared, members) = (&backends.shared, backends.shared.members());
        let _used = members[0].member.client();
        let change = members[0].watch.health().take_out(Reason::Ejected, &Eject::default(), Instant::now(), 0.5);
        shared.changed(&members[0], change, "faults in a row", None);
        let view = shared.view();
        assert!(view.due.is_none() && view.due_connect.is_some() && view.due_trial.is_some());
    }
}
