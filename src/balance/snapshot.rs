//! What a request reads of a set: the members, which of them are eligible, and their services.

use std::{cmp::Ordering, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    health::{Reason, WHOLE},
    member::{Member, MemberState, State},
    random::{Draws, Random},
    selection::{Lookup, Selection},
    slow_start::{self, SlowStart},
    trial::LATE,
};
use crate::tried::Tried;

/// How many members a pick compares. With five of them, the waiting times come close to those of comparing all.
const DRAWN: usize = 5;

/// A set at one time. It doesn't change: each change of the set, or of a member's health, makes a new one.
#[derive(Debug)]
pub(super) struct View {
    /// Counts the views of a set. 0 is the view before the first one.
    pub(super) version: u64,
    /// Counts the changes of the list of members.
    pub(super) generation: u64,
    pub(super) entries: Box<[Entry]>,
    /// The positions of the members that requests may be sent to.
    pub(super) eligible: Box<[u32]>,
    /// Whether the eligible members have the same weight.
    is_unweighted: bool,
    /// Whether an eligible member is in its slow start.
    pub(super) has_slow_start: bool,
    /// When a slow start is over, or no request has tried a member for long that can't be connected to.
    pub(super) due: Option<Instant>,
    /// When a member is to be connected to: it's down, or no request has tried it for long.
    pub(super) due_connect: Option<Instant>,
    /// When a member is to be tried by a request.
    pub(super) due_trial: Option<Instant>,
    /// When the next view is made, if it's of changes of health: see [`settling`](Self::settling).
    pub(super) settles: Option<Instant>,
    /// Whether the load alone decides about the member of a request, and a request has nothing to attend to.
    pub(super) is_by_load: bool,
    pub(super) slow_start: Duration,
    /// By what sessions, keys and turns find their member.
    pub(super) lookup: Lookup,
}

/// What a view needs of the options of its set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) slow_start: Duration,
    /// Whether all members get requests if none is healthy.
    pub(super) tries_all: bool,
    pub(super) has_checks: bool,
}

/// A member in a view.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) state: Arc<MemberState>,
    pub(super) weight: u32,
    /// The percentage of the weight by the member's check.
    percent: u8,
    /// The weight in proportion to that of the other members, with the percentages.
    pub(super) effective_weight: u32,
    pub(super) is_backup: bool,
    /// Whether the set drains it.
    pub(super) is_draining: bool,
    is_eligible: bool,
    /// Whether its check or the set lets the sessions that it has end there. It gets no others.
    pub(super) keeps_sessions: bool,
    pub(super) slow_start_since: Option<Instant>,
}

impl Entry {
    pub(super) fn new(state: Arc<MemberState>, member: &Member) -> Self {
        Self {
            state,
            weight: member.share(),
            percent: WHOLE,
            effective_weight: member.share(),
            is_backup: member.is_backup(),
            is_draining: member.is_draining(),
            is_eligible: true,
            keeps_sessions: false,
            slow_start_since: None,
        }
    }

    /// Returns the state of the member in this set.
    pub(super) fn state(&self) -> State {
        match self.state.state() {
            State::Up if self.is_draining => State::Draining,
            state => state,
        }
    }

    /// Returns the part of its hashed keys that the member keeps, by its check.
    pub(super) fn part(&self) -> f32 {
        f32::from(self.percent) / f32::from(WHOLE)
    }

    /// Returns whether something may be due at the member: the end of its slow start, or a trial.
    pub(super) fn may_be_due(&self) -> bool {
        !self.is_eligible || self.slow_start_since.is_some()
    }
}

impl View {
    pub(super) fn empty() -> Self {
        let rules = Rules { slow_start: Duration::ZERO, tries_all: true, has_checks: false };
        Self::new(0, 0, Box::default(), rules, &Selection::default())
    }

    /// Makes a view of the members' health as it is now.
    pub(super) fn new(
        version: u64,
        generation: u64,
        mut entries: Box<[Entry]>,
        rules: Rules,
        selection: &Selection,
    ) -> Self {
        let Rules { slow_start, tries_all, has_checks } = rules;
        let (mut due, mut due_connect, mut due_trial) = (None, None, None);
        let earlier = |due: &mut Option<Instant>, at: Instant| *due = Some(due.map_or(at, |due| due.min(at)));
        for entry in &mut entries {
            let health = entry.state.watch.health();
            entry.is_eligible = health.is_eligible() && !entry.is_draining;
            entry.keeps_sessions = health.state() == State::Draining || entry.is_draining && health.is_eligible();
            entry.slow_start_since = health.slow_start_since();
            entry.percent = health.percent();
            let end = |since: Instant| since.checked_add(slow_start::whole(slow_start));
            if let Some(end) = entry.slow_start_since.and_then(end) {
                earlier(&mut due, end);
            }
            match health.due_trial() {
                Some(_) if has_checks || entry.is_draining => {}
                Some((reason, at)) => match entry.state.member.client_in_use() {
                    Some(_) if reason == Reason::Down => earlier(&mut due_connect, at),
                    client => {
                        earlier(&mut due_trial, at);
                        earlier(if client.is_some() { &mut due_connect } else { &mut due }, at + LATE);
                    }
                },
                None => {}
            }
        }
        let is_reduced = entries.iter().any(|entry| entry.percent != WHOLE);
        for entry in &mut entries {
            let percent = if is_reduced { u32::from(entry.percent) } else { 1 };
            entry.effective_weight = entry.weight.saturating_mul(percent);
        }
        let eligible = eligible(&entries, tries_all);
        let has_slow_start = eligible.iter().any(|&at| entries[at as usize].slow_start_since.is_some());
        let mut weights = eligible.iter().map(|&at| entries[at as usize].effective_weight);
        let first = weights.next();
        let is_unweighted = weights.all(|weight| Some(weight) == first);
        let lookup = selection.lookup(&entries, &eligible);
        let has_due = due.is_some() || due_connect.is_some() || due_trial.is_some();
        let is_by_load = selection.is_by_load() && !has_slow_start && !has_due && !has_checks;
        Self {
            version,
            generation,
            entries,
            eligible,
            is_unweighted,
            has_slow_start,
            due,
            due_connect,
            due_trial,
            settles: None,
            is_by_load,
            slow_start,
            lookup,
        }
    }

    /// Returns whether a member is healthy.
    pub(super) fn has_healthy(&self) -> bool {
        self.entries.iter().any(|entry| entry.is_eligible)
    }

    /// Returns whether something has to be done at a time, which may have come.
    pub(super) fn has_due(&self) -> bool {
        self.due.is_some() || self.due_connect.is_some() || self.due_trial.is_some() || self.settles.is_some()
    }

    /// Makes further changes of health wait for a while, if there are many members: a view is made of all of them, and
    /// with one for each of many changes the work would be quadratic.
    pub(super) fn settling(mut self, now: Instant) -> Self {
        /// Sets of up to so many members have a view of each change.
        const SMALL: usize = 128;
        /// The time for each member, which is several times what a view takes.
        const EACH: Duration = Duration::from_micros(1);
        if self.entries.len() > SMALL {
            let members = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
            self.settles = Some(now + EACH.saturating_mul(members));
            self.is_by_load = false;
        }
        self
    }

    /// Returns the eligible members.
    pub(super) fn eligible(&self) -> impl Iterator<Item = &Entry> {
        self.eligible.iter().map(|&at| &self.entries[at as usize])
    }

    /// Returns whether a request has been sent to every member that it may be sent to. A single member is tried again.
    pub(super) fn is_exhausted(&self, tried: &Tried) -> bool {
        !self.is_alone() && self.eligible().all(|entry| tried.contains(entry.state.id))
    }

    /// Returns whether there is a single member. A request that failed may be sent to it again.
    pub(super) fn is_alone(&self) -> bool {
        self.entries.len() == 1
    }

    /// Picks the member with the fewest requests among those that are eligible and `usable`, and returns its position.
    pub(super) fn pick(&self, random: &Random, usable: impl Fn(&Entry) -> bool) -> Option<usize> {
        match *self.eligible {
            [] => None,
            [only] => usable(&self.entries[only as usize]).then_some(only as usize),
            _ => self.least_loaded(&mut random.draws(), usable),
        }
    }

    /// Picks a member as [`pick`](Self::pick) does, while one is in its slow start: its weight is a part of its own,
    /// and it gets no more than that part of its share.
    pub(super) fn pick_slowly(
        &self,
        slow_start: &SlowStart,
        random: &Random,
        usable: impl Fn(&Entry) -> bool,
    ) -> Option<usize> {
        let draws = &mut random.draws();
        let drawn = (self.eligible.len() > DRAWN).then(|| sample(draws, self.eligible.len()));
        let drawn = drawn.map(|drawn| drawn.map(|at| self.eligible[at]));
        let drawn = drawn.as_ref().map_or(&*self.eligible, |drawn| drawn);
        let usable_of = |positions: &[u32]| -> Vec<u32> {
            positions.iter().copied().filter(|&position| usable(&self.entries[position as usize])).collect()
        };
        let mut compared = usable_of(drawn);
        if compared.is_empty() {
            compared = usable_of(&self.eligible);
        }
        let weight = |entry: &Entry| slow_start.weight(entry);
        let weights = compared.iter().map(|&position| weight(&self.entries[position as usize]) as f32).sum();
        loop {
            let least = self.least_loaded_of(&compared, false, weight, draws, &|_| true)?;
            // Among members that are loaded alike, the weight is enough.
            let is_alone = least.tied == weight(least.entry);
            if !is_alone || slow_start.admits(least.entry, weights) {
                return Some(least.position as usize);
            }
            let refused = least.position;
            compared.retain(|&position| position != refused);
        }
    }

    /// Chooses the least loaded of a few members, or of all if none of these is usable.
    fn least_loaded(&self, draws: &mut Draws, usable: impl Fn(&Entry) -> bool) -> Option<usize> {
        let weight = |entry: &Entry| u64::from(entry.effective_weight);
        if self.eligible.len() > DRAWN {
            let drawn = sample(draws, self.eligible.len()).map(|at| self.eligible[at]);
            let least = self.least_loaded_of(&drawn, self.is_unweighted, weight, draws, &usable);
            if let Some(least) = least {
                return Some(least.position as usize);
            }
        }
        let least = self.least_loaded_of(&self.eligible, self.is_unweighted, weight, draws, &usable);
        least.map(|least| least.position as usize)
    }

    /// `is_unweighted`: all have the same weight.
    fn least_loaded_of(
        &self,
        positions: &[u32],
        is_unweighted: bool,
        weight_of: impl Fn(&Entry) -> u64,
        draws: &mut Draws,
        usable: &impl Fn(&Entry) -> bool,
    ) -> Option<Best<'_>> {
        let clock = self.entries.first()?.state.clock();
        let mut best: Option<Best<'_>> = None;
        for &position in positions {
            let entry = &self.entries[position as usize];
            if !usable(entry) {
                continue;
            }
            let pressure = entry.state.load.pressure(&clock);
            let weight = weight_of(entry);
            let mut tied = weight;
            if let Some(best) = &mut best {
                let (own, least) = if is_unweighted {
                    (pressure, best.pressure)
                } else {
                    (pressure * weight_of(best.entry) as f32, best.pressure * weight as f32)
                };
                if own > least {
                    continue;
                }
                match (own == least).then(|| entry.state.load.compare_latency(&best.entry.state.load, &clock)) {
                    None | Some(Ordering::Less) => {}
                    Some(Ordering::Greater) => continue,
                    Some(Ordering::Equal) => {
                        // At random in proportion to the weights, because an idle set would otherwise use one member
                        // only.
                        best.tied += weight;
                        if draws.below(best.tied) >= weight {
                            continue;
                        }
                        tied = best.tied;
                    }
                }
            }
            best = Some(Best { position, entry, pressure, tied });
        }
        best
    }
}

/// The least loaded of the members that have been compared.
struct Best<'a> {
    position: u32,
    entry: &'a Entry,
    pressure: f32,
    /// The sum of the weights of the members that are as good.
    tied: u64,
}

/// Returns the positions of the members that requests may be sent to: those that are healthy, or else the healthy
/// backups, or else all, if all are tried.
fn eligible(entries: &[Entry], tries_all: bool) -> Box<[u32]> {
    let of = |is_wanted: &dyn Fn(&Entry) -> bool| -> Box<[u32]> {
        let positions = (0..).zip(entries).filter(|(_, entry)| is_wanted(entry));
        positions.map(|(position, _)| position).collect()
    };
    let mut members = of(&|entry| entry.is_eligible && !entry.is_backup);
    if members.is_empty() {
        members = of(&|entry| entry.is_eligible);
    }
    if members.is_empty() && tries_all {
        // One that drains is well, other than those that are out.
        members = of(&|entry| entry.keeps_sessions);
    }
    if members.is_empty() && tries_all { of(&|_| true) } else { members }
}

/// Draws distinct numbers below `count`, which is larger than their number (Floyd's algorithm).
fn sample(draws: &mut Draws, count: usize) -> [usize; DRAWN] {
    let mut drawn = [usize::MAX; DRAWN];
    for (at, last) in (count - DRAWN..count).enumerate() {
        let number = draws.below(last as u64 + 1) as usize;
        drawn[at] = if drawn.contains(&number) { last } else { number };
    }
    drawn
}

/// A view, and the services of its members in the same order.
#[derive(Debug)]
pub(super) struct Snapshot<S> {
    pub(super) view: Arc<View>,
    pub(super) services: Arc<[S]>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;
    use tokio::time::Instant;

    use super::*;
    use crate::balance::{
        Pick,
        eject::Eject,
        load::Millis,
        member::{Member, MemberState},
        watch::Watch,
    };

    const RULES: Rules = Rules { slow_start: Duration::from_secs(10), tries_all: true, has_checks: false };

    fn view(weights: &[u32]) -> View {
        let epoch = Instant::now();
        let entries = weights.iter().enumerate().map(|(at, &weight)| {
            let member = Member::named(at.to_string()).weight(weight);
            Entry::new(Arc::new(MemberState::alone(member.clone(), epoch, Watch::up(epoch))), &member)
        });
        View::new(1, 1, entries.collect(), RULES, &Selection::default())
    }

    /// How often each member is picked by requests that end at once.
    fn counts(view: &View, picks: usize) -> Vec<usize> {
        let random = Random::new(Some(1));
        let mut counts = vec![0; view.entries.len()];
        for _ in 0..picks {
            counts[view.pick(&random, |_| true).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn idle_members_get_equal_shares() {
        for count in [2, 3, 5, 6, 10] {
            let counts = counts(&view(&vec![1; count]), 10_000 * count);
            assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn idle_members_get_shares_by_weight() {
        let counts = counts(&view(&[1, 1, 2]), 40_000);
        let expected = [10_000, 10_000, 20_000];
        assert!(
            counts.iter().zip(expected).all(|(&count, share): (_, usize)| count.abs_diff(share) < 500),
            "{counts:?}"
        );
    }

    #[test]
    fn a_busy_member_is_avoided_until_the_others_are_as_busy() {
        let view = view(&[1, 1, 4]);
        let random = Random::new(Some(1));
        let mut counts = [0; 3];
        for _ in 0..600 {
            let picked = view.pick(&random, |_| true).unwrap();
            view.entries[picked].state.load.begin();
            counts[picked] += 1;
        }
        assert_eq!(counts, [100, 100, 400]);
    }

    #[test]
    fn the_least_loaded_of_many_members_is_often_found() {
        let view = view(&[1; 100]);
        let random = Random::new(Some(1));
        for _ in 0..1_000 {
            let picked = view.pick(&random, |_| true).unwrap();
            view.entries[picked].state.load.begin();
        }
        let most = view.entries.iter().map(|entry| entry.state.load.in_flight()).max().unwrap();
        assert!(most <= 11, "{most}");
    }

    #[test]
    fn a_member_that_fails_at_once_is_not_the_least_loaded_one() {
        let view = view(&[1, 1, 1]);
        view.entries[0].state.load.fail(1.0, Millis::between(view.entries[0].state.epoch, Instant::now()));
        assert_eq!(counts(&view, 1_000)[0], 0);
    }

    #[test]
    fn a_much_slower_member_comes_after_equally_loaded_ones() {
        let view = view(&[1, 1, 1]);
        for (entry, latency) in view.entries.iter().zip([200, 10, 10]) {
            for _ in 0..10 {
                let now = Millis::between(entry.state.epoch, Instant::now());
                entry.state.load.responded(Duration::from_millis(latency), now);
            }
        }
        assert_eq!(counts(&view, 1_000)[0], 0);
    }

    #[test]
    fn only_usable_members_are_picked() {
        let random = Random::new(Some(1));
        for count in [1, 2, 5, 6, 100] {
            let view = view(&vec![1; count]);
            let last = &view.entries[count - 1].state;
            for _ in 0..100 {
                let picked = view.pick(&random, |entry| Arc::ptr_eq(&entry.state, last));
                assert_eq!(picked, Some(count - 1));
            }
            assert_eq!(view.pick(&random, |_| false), None);
        }
    }

    #[test]
    fn a_member_in_its_slow_start_gets_less_than_its_share_even_if_the_others_are_busy() {
        for (count, is_busy) in [(2, false), (3, false), (10, false), (2, true), (3, true), (10, true), (100, true)] {
            let mut view = view(&vec![1; count]);
            let now = Instant::now();
            view.entries[0].slow_start_since = Some(now);
            for entry in &view.entries[1..] {
                for _ in 0..if is_busy { 5 } else { 0 } {
                    entry.state.load.begin();
                }
            }
            let random = Random::new(Some(1));
            for (elapsed, most) in [(0, 0.2), (3, 0.5), (5, 0.7), (15, 1.15)] {
                let slow_start = SlowStart::new(&view, &random, now + Duration::from_secs(elapsed));
                let picks = 20_000;
                let picked = (0..picks).filter(|_| view.pick_slowly(&slow_start, &random, |_| true) == Some(0));
                let fair = picks as f32 / count as f32;
                let part = picked.count() as f32 / fair;
                assert!(part <= most, "{count} {is_busy} {elapsed}: {part} of its share");
                assert!(part > 0.0, "{count} {is_busy} {elapsed}");
            }
        }
    }

    #[test]
    fn turns_that_a_member_passes_on_are_spread_over_the_others() {
        let mut view = view(&[1; 5]);
        let mut selection = Selection::default();
        selection.pick = Pick::RoundRobin;
        view.lookup = selection.lookup(&view.entries, &view.eligible);
        view.entries[1].slow_start_since = Some(Instant::now());
        view.has_slow_start = true;
        let random = Random::new(Some(1));
        let wish = selection.wish(&mut Request::default(), &view);
        let mut counts = [0; 5];
        for _ in 0..4_100 {
            counts[selection.pick(&wish, &view, &random, None, |_| true).unwrap()] += 1;
        }
        // A tenth of 1,000, and a quarter of the others.
        assert!((50..150).contains(&counts[1]), "{counts:?}");
        assert!([0, 2, 3, 4].iter().all(|&other| (970..1_030).contains(&counts[other])), "{counts:?}");
    }

    #[test]
    fn a_slow_start_is_slow_whatever_the_weights_are() {
        for weight in [1, 1_000, u32::MAX] {
            let mut view = view(&[weight; 3]);
            let now = Instant::now();
            view.entries[0].slow_start_since = Some(now);
            let random = Random::new(Some(1));
            let slow_start = SlowStart::new(&view, &random, now);
            let picked = (0..3_000).filter(|_| view.pick_slowly(&slow_start, &random, |_| true) == Some(0)).count();
            assert!((50..200).contains(&picked), "{weight}: {picked}");
        }
    }

    #[test]
    fn drawn_numbers_are_distinct_and_equally_frequent() {
        let mut draws = Random::new(Some(1)).draws();
        let mut counts = [0; 8];
        for _ in 0..8_000 {
            let drawn = sample(&mut draws, 8);
            for (at, &number) in drawn.iter().enumerate() {
                assert!(!drawn[..at].contains(&number), "{drawn:?}");
                counts[number] += 1;
            }
        }
        assert!(counts.iter().all(|count| (4_700..5_300).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_draining_member_that_is_out_keeps_no_sessions_and_is_not_tried() {
        let (epoch, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let entry = |is_out: bool, drains: bool| {
            let member = Member::named(format!("{is_out} {drains}"));
            let watch = Watch::up(epoch);
            if is_out {
                watch.health().take_out(Reason::Ejected, &Eject::default(), later, 0.5);
            }
            let state = Arc::new(MemberState::alone(member.clone(), epoch, watch));
            Entry::new(state, &if drains { member.draining() } else { member })
        };
        let view = |entries: Vec<Entry>| View::new(1, 1, entries.into(), RULES, &Selection::default());
        let drained = view(vec![entry(true, true), entry(false, true), entry(false, false)]);
        let states: Vec<_> = drained.entries.iter().map(|entry| (entry.state(), entry.keeps_sessions)).collect();
        assert_eq!(states, [(State::Ejected, false), (State::Draining, true), (State::Up, false)]);
        assert_eq!((&*drained.eligible, drained.due_trial), (&[2][..], None));
        assert!(view(vec![entry(true, false), entry(false, false)]).due_trial.is_some());
        // Of those that are left, the one that drains is well.
        assert_eq!(*view(vec![entry(true, false), entry(false, true), entry(true, true)]).eligible, [1]);
        assert_eq!(*view(vec![entry(true, false), entry(true, true)]).eligible, [0, 1]);
    }

    #[test]
    fn backups_are_eligible_only_alone() {
        let mut view = view(&[1, 1, 1]);
        view.entries[1].is_backup = true;
        assert_eq!(*eligible(&view.entries, true), [0, 2]);
        view.entries[0].is_backup = true;
        view.entries[2].is_backup = true;
        assert_eq!(*eligible(&view.entries, true), [0, 1, 2]);
        assert!(eligible(&[], true).is_empty());
    }
}
