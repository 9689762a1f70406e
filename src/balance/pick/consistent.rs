//! Consistent hashing: the member that a key belongs to. Pure.
//!
//! The owner of a key depends on the key, and on the names and weights of the members. It depends neither on their
//! order nor on the process, so replicas of the application agree without shared state. The keys of a member that can't
//! be used move to all the others and return with it. No other key moves.

use std::sync::{Mutex, PoisonError};

use super::{hash::mixed, maglev::Maglev};

/// The largest number of members for which the score of each is computed. Above it, a table is faster.
const MAX_SCORED: usize = 64;
/// The entries of the table that are read before the score of each member is computed, if they name unusable members.
const MAX_PROBES: u64 = 64;

/// A member as consistent hashing sees it.
#[derive(Clone, Copy, Debug)]
pub(in crate::balance) struct HashedMember {
    /// The [`stable_hash`](super::stable_hash) of the member's name.
    pub(in crate::balance) hash: u64,
    /// At least 1.
    pub(in crate::balance) weight: u32,
}

/// The members of a set, prepared for look-ups.
///
/// Members that are out are part of it, so that their keys return with them.
#[derive(Debug, Default)]
pub(in crate::balance) struct ConsistentHash {
    members: Box<[HashedMember]>,
    has_equal_weights: bool,
    /// The table, if there are too many members to compute all scores.
    table: Option<Maglev>,
    counted: Mutex<Counted>,
}

/// The last count of the requests, which several look-ups share if there are many members.
#[derive(Debug, Default)]
struct Counted {
    average: Option<Average>,
    /// The look-ups for which it's still used.
    left: usize,
}

/// The requests in flight at all usable members, and the members' weights.
#[derive(Clone, Copy, Debug)]
struct Average {
    requests: u128,
    weights: u128,
}

impl ConsistentHash {
    pub(in crate::balance) fn new(members: impl IntoIterator<Item = HashedMember>) -> Self {
        let members: Box<[_]> = members.into_iter().collect();
        let has_equal_weights = members.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let table = if members.len() > MAX_SCORED { Maglev::new(&members) } else { None };
        Self { members, has_equal_weights, table, counted: Mutex::default() }
    }

    /// Returns the position of the member that a key belongs to. `None` if no member is usable.
    pub(in crate::balance) fn owner(&self, key: u64, is_usable: impl Fn(usize) -> bool) -> Option<usize> {
        let key = mixed(key);
        if let Some(table) = &self.table {
            // A probe after the first is a look-up of another key, so that the keys of an unusable member are spread
            // over all the others.
            let probes = (0..MAX_PROBES).map(|probe| table.owner(mixed(key ^ mixed(probe))));
            if let Some(owner) = probes.into_iter().find(|&member| is_usable(member)) {
                return Some(owner);
            }
        }
        self.best_scored(key, is_usable)
    }

    /// Returns the position of the owner, or of the next member if the owner has more than 1.25 times the average of
    /// the requests in flight ("consistent hashing with bounded loads"): one popular key doesn't overload a member.
    /// `None` if no member is usable.
    ///
    /// The request goes to the owner in any case if the owner has no other.
    pub(in crate::balance) fn owner_within_bound(
        &self,
        key: u64,
        is_usable: impl Fn(usize) -> bool,
        in_flight: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        let owner = self.owner(key, &is_usable)?;
        if in_flight(owner) == 0 {
            return Some(owner);
        }
        let average = self.average(&is_usable, &in_flight);
        let is_within = |member: usize| u128::from(in_flight(member)) < average.bound(self.members[member].weight);
        if is_within(owner) {
            return Some(owner);
        }
        // The bounds add up to more than all requests, so none is free only if others have begun in the meantime.
        Some(self.owner(key, |member| is_usable(member) && is_within(member)).unwrap_or(owner))
    }

    /// Weighted rendezvous hashing: the member with the best score, which mixes the key and the member's name.
    fn best_scored(&self, key: u64, is_usable: impl Fn(usize) -> bool) -> Option<usize> {
        let usable = self.members.iter().enumerate().filter(|&(member, _)| is_usable(member));
        let hashed = usable.map(|(member, hashed)| (member, mixed(key ^ hashed.hash), hashed.weight));
        if self.has_equal_weights {
            return hashed.max_by_key(|&(_, hash, _)| hash).map(|(member, ..)| member);
        }
        // The score is the time of the first event of a random process with the weight as its rate. A member has the
        // earliest event with a probability in proportion to its rate. With equal weights, it's the highest hash.
        // Platforms disagree in the last bit of a logarithm, which decides about one key of 10¹⁵.
        let times = hashed.map(|(member, hash, weight)| (member, -unit(hash).ln() / f64::from(weight)));
        times.min_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(member, _)| member)
    }

    fn average(&self, is_usable: impl Fn(usize) -> bool, in_flight: impl Fn(usize) -> u32) -> Average {
        let count = || {
            let usable = self.members.iter().enumerate().filter(|&(member, _)| is_usable(member));
            usable.fold(Average { requests: 0, weights: 0 }, |sum, (member, hashed)| Average {
                requests: sum.requests + u128::from(in_flight(member)),
                weights: sum.weights + u128::from(hashed.weight),
            })
        };
        if self.table.is_none() {
            return count();
        }
        // A count serves 1/64 as many look-ups as there are members. A look-up then costs the same for any number of
        // members, and the average of a member changes by less than 1/64 of a request in between.
        let lock = || self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut counted = lock();
            if let (Some(average), Some(left)) = (counted.average, counted.left.checked_sub(1)) {
                counted.left = left;
                return average;
            }
        }
        let average = count();
        *lock() = Counted { average: Some(average), left: self.members.len() / MAX_SCORED };
        average
    }
}

impl Average {
    /// The requests that a member with this weight may have, the one that is to be placed among them: 1.25 times its
    /// share of all, rounded up.
    fn bound(self, weight: u32) -> u128 {
        (5 * (self.requests + 1) * u128::from(weight)).div_ceil(4 * self.weights.max(1))
    }
}

/// Turns a hash into a number between 0 and 1, both exclusive.
fn unit(hash: u64) -> f64 {
    // 53 bits are exact.
    ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{super::hash::stable_hash, *};

    fn named(names: impl IntoIterator<Item = usize>) -> Vec<HashedMember> {
        names.into_iter().map(|name| member(name, 1)).collect()
    }

    fn member(name: usize, weight: u32) -> HashedMember {
        HashedMember { hash: stable_hash(format!("http://10.0.{}.{}:8000", name / 250, name % 250)), weight }
    }

    fn key(n: usize) -> u64 {
        stable_hash(format!("user{n}"))
    }

    /// The owners of 10,000 keys, as the members' hashes, if the members at some positions are out.
    fn owners(members: &[HashedMember], out: &[usize]) -> Vec<u64> {
        let hash = ConsistentHash::new(members.iter().copied());
        (0..10_000).map(|n| members[hash.owner(key(n), |at| !out.contains(&at)).unwrap()].hash).collect()
    }

    fn moved(before: &[u64], after: &[u64]) -> usize {
        before.iter().zip(after).filter(|(before, after)| before != after).count()
    }

    fn counts(owners: impl IntoIterator<Item = u64>) -> BTreeMap<u64, usize> {
        owners.into_iter().fold(BTreeMap::new(), |mut counts, owner| {
            *counts.entry(owner).or_default() += 1;
            counts
        })
    }

    #[test]
    fn keys_are_spread_evenly() {
        for (members, most) in [(3, 1.1), (10, 1.15), (64, 1.4), (65, 1.4), (1000, 3.0)] {
            let counts = counts(owners(&named(0..members), &[]));
            assert_eq!(counts.len(), members);
            let ratio = *counts.values().max().unwrap() as f64 * members as f64 / 10_000.0;
            assert!(ratio < most, "{ratio} times the average at one of {members}");
        }
    }

    #[test]
    fn keys_are_spread_by_weight() {
        for members in [4, 100] {
            let weighted: Vec<_> = (0..members).map(|n| member(n, if n % 2 == 0 { 3 } else { 1 })).collect();
            let counts = counts(owners(&weighted, &[]));
            let heavy: usize = weighted.iter().step_by(2).map(|heavy| counts[&heavy.hash]).sum();
            assert!((7_300..=7_700).contains(&heavy), "{heavy} of 10000 keys at the heavy ones of {members}");
        }
    }

    #[test]
    fn only_the_keys_of_a_member_that_is_out_move_and_they_come_home() {
        for members in [2, 3, 10, 64, 65, 200] {
            let set = named(0..members);
            let (before, after) = (owners(&set, &[]), owners(&set, &[1]));
            let gone = set[1].hash;
            for (before, after) in before.iter().zip(&after) {
                assert!(*before == gone || before == after, "a key of another member moved");
                assert_ne!(*after, gone);
            }
            let heirs = counts(before.iter().zip(&after).filter(|(b, _)| **b == gone).map(|(_, after)| *after));
            let keys: usize = heirs.values().sum();
            assert!(heirs.len() * 2 > keys.min(members - 1), "{keys} keys of one of {members} moved to {heirs:?}");
            assert!(members > 10 || heirs.len() == members - 1);
            // A second member that goes takes no key of the first one's heirs but its own.
            if members > 2 {
                let both = owners(&set, &[1, 2]);
                assert!(after.iter().zip(&both).all(|(after, both)| *after == set[2].hash || after == both));
            }
            assert_eq!(owners(&set, &[]), before);
        }
    }

    /// 10,000 sessions at ten members, one of which is replaced by another.
    #[test]
    fn a_member_that_leaves_and_one_that_joins_move_their_own_share() {
        let before = owners(&named(0..10), &[]);
        let without = owners(&named((0..10).filter(|n| *n != 4)), &[]);
        let gone = member(4, 1).hash;
        assert!(before.iter().zip(&without).all(|(before, after)| *before == gone || before == after));
        let with = owners(&named((0..11).filter(|n| *n != 4)), &[]);
        let new = member(10, 1).hash;
        assert!(without.iter().zip(&with).all(|(before, after)| *after == new || before == after));
        // One of eleven, and two points.
        let joined = moved(&before, &owners(&named(0..11), &[]));
        assert!(joined <= 10_000 / 11 + 200, "{joined} of 10000 keys moved to a new member");
        // The control: a remainder moves nearly all of them.
        let remainder = |members: u64| (0..10_000).map(|n| key(n) % members).collect::<Vec<_>>();
        assert!(moved(&remainder(10), &remainder(11)) > 8_000);
    }

    #[test]
    fn a_changed_set_above_the_limit_moves_few_keys_more() {
        for members in [100, 1000] {
            let before = owners(&named(0..members), &[]);
            let after = owners(&named((0..members).filter(|n| *n != 4)), &[]);
            let others = before.iter().zip(&after).filter(|(b, a)| **b != member(4, 1).hash && b != a).count();
            assert!(others < 300, "{others} of 10000 keys moved without need");
        }
    }

    #[test]
    fn a_weight_that_grows_attracts_keys_and_moves_no_other() {
        let light: Vec<_> = (0..5).map(|n| member(n, 2)).collect();
        let mut heavy = light.clone();
        heavy[3].weight = 3;
        let (before, after) = (owners(&light, &[]), owners(&heavy, &[]));
        assert!(before.iter().zip(&after).all(|(before, after)| before == after || *after == heavy[3].hash));
        assert!(moved(&before, &after) > 300);
        assert_eq!(owners(&named(0..5), &[]), before, "equal weights are equal, whatever they are");
    }

    #[test]
    fn the_order_of_the_members_does_not_matter() {
        for members in [10, 100] {
            let set = named(0..members);
            let reversed: Vec<_> = set.iter().rev().copied().collect();
            assert_eq!(owners(&set, &[]), owners(&reversed, &[]));
        }
    }

    #[test]
    fn no_usable_member_is_no_owner() {
        for members in [0, 1, 100] {
            let hash = ConsistentHash::new(named(0..members));
            assert_eq!(hash.owner(1, |_| false), None);
            assert_eq!(hash.owner_within_bound(1, |_| false, |_| 0), None);
            if members > 0 {
                assert_eq!(hash.owner(1, |at| at == members - 1), Some(members - 1));
            }
        }
    }

    #[test]
    fn one_request_at_a_time_never_moves() {
        for members in [3, 10, 100] {
            let hash = ConsistentHash::new(named(0..members));
            for n in 0..1_000 {
                assert_eq!(hash.owner_within_bound(key(n), |_| true, |_| 0), hash.owner(key(n), |_| true));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Requests begin and end; some keys are very popular. The control is the same without a bound.
        #[test]
        fn no_member_has_more_than_its_bound(
            weights in prop::collection::vec(1_u32..4, 2..20),
            keys in prop::collection::vec(0_usize..6, 50..400),
        ) {
            let members: Vec<_> = weights.iter().enumerate().map(|(name, &weight)| member(name, weight)).collect();
            let hash = ConsistentHash::new(members);
            let mut in_flight = vec![0_u32; weights.len()];
            let all: u32 = weights.iter().sum();
            for (n, &popular) in keys.iter().enumerate() {
                let at = hash.owner_within_bound(key(popular), |_| true, |at| in_flight[at]).unwrap();
                in_flight[at] += 1;
                let requests: u32 = in_flight.iter().sum();
                let bound = (1.25 * f64::from(requests) * f64::from(weights[at]) / f64::from(all)).ceil();
                prop_assert!(f64::from(in_flight[at]) <= bound, "{in_flight:?} for {weights:?}");
                // The oldest one of the fullest member ends.
                if n > 40 && let Some(fullest) = in_flight.iter_mut().max() {
                    *fullest -= 1;
                }
            }
        }
    }

    #[test]
    fn the_bound_holds_for_many_members() {
        let hash = ConsistentHash::new(named(0..200));
        let mut in_flight = vec![0_u32; 200];
        for n in 0..4_000 {
            let at = hash.owner_within_bound(key(n % 10), |_| true, |at| in_flight[at]).unwrap();
            in_flight[at] += 1;
        }
        // The average is 20. A count is used for 3 requests more.
        assert!(in_flight.iter().all(|&requests| requests <= 25), "{in_flight:?}");
    }
}
