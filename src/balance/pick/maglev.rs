//! The table of Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI
//! 2016, section 3.4), with weights. Pure.

use super::consistent::HashedMember;
use super::hash::mixed;

/// The entries of the table. It's a prime number, so that each step between 1 and `SIZE - 1` visits all of them.
const SIZE: usize = 65_537;
/// The largest ratio of two weights. It limits the time in which the table is made: a member that takes its turn in one
/// of a million rounds would have to be looked at in each of them.
const MAX_RATIO: u32 = 256;

/// A member for each entry. The members' entries are in proportion to their weights.
#[derive(Debug)]
pub(super) struct Maglev {
    entries: Box<[u16]>,
}

/// A member that takes its turns at the table.
struct Chooser {
    member: u16,
    /// The entry that it prefers next, and the step to the one after it.
    next: usize,
    step: usize,
    weight: u64,
    /// It takes a turn for each time that the greatest weight is in it.
    credit: u64,
}

impl Maglev {
    /// Makes the table. `None` if there are no members, or too many for it.
    pub(super) fn new(members: &[HashedMember]) -> Option<Self> {
        let greatest = members.iter().map(|member| member.weight).max()?;
        let mut choosers = Vec::with_capacity(members.len());
        for (at, member) in members.iter().enumerate() {
            choosers.push(Chooser {
                member: u16::try_from(at).ok()?,
                next: reduced(member.hash, SIZE),
                step: reduced(mixed(member.hash), SIZE - 1) + 1,
                weight: u64::from(member.weight.max(greatest / MAX_RATIO)),
                credit: 0,
            });
        }
        // Replicas may list the members in another order.
        choosers.sort_unstable_by_key(|chooser| members[usize::from(chooser.member)].hash);
        let mut entries: Box<[Option<u16>]> = vec![None; SIZE].into();
        let mut free = SIZE;
        while free > 0 {
            for chooser in &mut choosers {
                chooser.credit += chooser.weight;
                if chooser.credit >= u64::from(greatest) && free > 0 {
                    chooser.credit -= u64::from(greatest);
                    while entries[chooser.next].is_some() {
                        chooser.next = (chooser.next + chooser.step) % SIZE;
                    }
                    entries[chooser.next] = Some(chooser.member);
                    free -= 1;
                }
            }
        }
        Some(Self { entries: entries.into_iter().flatten().collect() })
    }

    /// Returns the position of the member in the entry of a hash.
    pub(super) fn owner(&self, hash: u64) -> usize {
        usize::from(self.entries[reduced(hash, SIZE)])
    }
}

fn reduced(hash: u64, size: usize) -> usize {
    (hash % size as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::{super::hash::stable_hash, *};

    fn members(weights: &[u32]) -> Vec<HashedMember> {
        let member = |(name, &weight): (usize, &u32)| HashedMember { hash: stable_hash(name.to_string()), weight };
        weights.iter().enumerate().map(member).collect()
    }

    fn shares(weights: &[u32]) -> Vec<usize> {
        let table = Maglev::new(&members(weights)).unwrap();
        assert_eq!(table.entries.len(), SIZE);
        let mut shares = vec![0; weights.len()];
        for &member in &table.entries {
            shares[usize::from(member)] += 1;
        }
        shares
    }

    #[test]
    fn equal_members_have_equal_shares() {
        let shares = shares(&[1; 100]);
        assert!(shares.iter().all(|share| (655..=656).contains(share)), "{shares:?}");
    }

    #[test]
    fn shares_are_in_proportion_to_weights() {
        for weights in [[1, 2, 3, 4], [5, 10, 15, 20], [4_000_000_000, 1, 1, 4_000_000_000]] {
            let shares = shares(&weights);
            let all: f64 = weights.iter().copied().map(f64::from).sum();
            for (share, weight) in shares.iter().zip(weights) {
                let (share, ideal) = (*share as f64 / SIZE as f64, f64::from(weight) / all);
                // A weight below 1/256 of the greatest counts as that.
                assert!((share - ideal).abs() < 0.003, "{share} for {weight} of {weights:?}");
            }
        }
    }

    #[test]
    fn sets_that_fit_no_table_have_none() {
        assert!(Maglev::new(&[]).is_none());
        assert!(Maglev::new(&members(&[1; 70_000])).is_none());
        assert!(Maglev::new(&members(&[7])).is_some());
    }
}
