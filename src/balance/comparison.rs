//! The rules over a set: whether a member that raises a suspicion is taken out, by what the others show. Time is an
//! argument.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    health::{Reason, Suspicion},
    window::{ENOUGH, Sums},
};

/// What a member contributes to the rules over its set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tally {
    pub(super) sums: Sums,
    pub(super) is_failing: bool,
    pub(super) is_out: bool,
    pub(super) is_ejected: bool,
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
    use super::{
        super::{
            health::{
                Health,
                tests::{FAULT, out, record, secs},
            },
            outcome::Outcome,
        },
        *,
    };

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
