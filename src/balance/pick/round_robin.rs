//! Smooth weighted round robin: members in turn, and the turns of each one spread evenly. Pure.

use std::{cmp::Reverse, collections::BinaryHeap};

/// The largest number of turns before the sequence repeats, if there are fewer members. Weights whose sum is larger are
/// rounded to it.
const MAX_TURNS: u64 = 4096;

/// The order in which members take their turns. It's a fixed sequence, so that a pick needs no lock: requests count up
/// one number.
#[derive(Debug, Default)]
pub(in crate::balance) struct Turns {
    sequence: Box<[u32]>,
}

impl Turns {
    /// Spreads the members' turns by their weights, which are at least 1. The members are positions and weights.
    pub(in crate::balance) fn new(members: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let members: Vec<_> = members.into_iter().collect();
        let weights = reduced(members.iter().map(|&(_, weight)| weight));
        let sequence = sequence(&weights).map(|at| members[at].0).collect();
        Self { sequence }
    }

    /// Returns the position of the member whose turn it is, or of the next one that is usable. `None` if there is none.
    pub(in crate::balance) fn member(&self, turn: usize, is_usable: impl Fn(usize) -> bool) -> Option<usize> {
        let (before, after) = self.sequence.split_at(turn.checked_rem(self.sequence.len())?);
        after.iter().chain(before).map(|&member| member as usize).find(|&member| is_usable(member))
    }
}

/// Divides the weights by what they have in common, and rounds them if the sequence would still be too long.
fn reduced(weights: impl Iterator<Item = u32> + Clone) -> Vec<u64> {
    let common = weights.clone().fold(0, |a, b| common_divisor(a, u64::from(b))).max(1);
    let weights: Vec<_> = weights.map(|weight| (u64::from(weight) / common).max(1)).collect();
    let all: u64 = weights.iter().sum();
    if all <= MAX_TURNS.max(weights.len() as u64) {
        return weights;
    }
    weights.into_iter().map(|weight| (weight * MAX_TURNS / all).max(1)).collect()
}

fn common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// The members' positions, in the order of their turns.
///
/// A member with the weight `w` divides the sequence into `w` equal parts, and has one turn in each. Among the members
/// whose part has begun, the one whose part ends first takes the slot (WF²Q). There is one in each slot, because the
/// parts that have ended before it aren't more than the slots.
fn sequence(weights: &[u64]) -> impl Iterator<Item = usize> {
    let all: u64 = weights.iter().sum();
    // The slot at which the next part begins, its number, and the member.
    let mut later: BinaryHeap<_> = (0..weights.len()).map(|member| Reverse((0, 0, member))).collect();
    // The time at which the part ends, in fractions of a slot.
    let mut due = BinaryHeap::new();
    (0..all).filter_map(move |slot| {
        while let Some(&Reverse((start, turn, member))) = later.peek()
            && start <= slot
        {
            later.pop();
            let end = (turn + 1) * all * MAX_TURNS / weights[member];
            // Of two with the same end, the heavier one is first, so that its turns don't become neighbours.
            due.push(Reverse((end, Reverse(weights[member]), member, turn + 1)));
        }
        let Reverse((_, _, member, turn)) = due.pop()?;
        later.push(Reverse(((turn * all).div_ceil(weights[member]), turn, member)));
        Some(member)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turns(weights: &[u32]) -> Turns {
        Turns::new(weights.iter().enumerate().map(|(at, &weight)| (u32::try_from(at).unwrap(), weight)))
    }

    #[test]
    fn turns_are_smooth() {
        for (weights, sequence) in [
            (&[][..], &[][..]),
            (&[3], &[0]),
            (&[1, 1, 1], &[0, 1, 2]),
            (&[7, 7, 7], &[0, 1, 2]),
            (&[2, 1], &[0, 1, 0]),
            (&[1, 1, 2], &[2, 0, 2, 1]),
            (&[5, 1, 1], &[0, 1, 0, 0, 2, 0, 0]),
            (&[10, 5, 5], &[0, 1, 0, 2]),
        ] {
            assert_eq!(*turns(weights).sequence, *sequence, "{weights:?}");
        }
    }

    #[test]
    fn a_member_that_is_not_usable_is_passed_over() {
        let turns = turns(&[1, 1, 1, 1]);
        for (turn, member) in [(0, 0), (1, 2), (2, 2), (3, 3), (4, 0), (5, 2), (usize::MAX, 3)] {
            assert_eq!(turns.member(turn, |member| member != 1), Some(member), "{turn}");
        }
        assert_eq!(turns.member(7, |_| false), None);
        assert_eq!(Turns::default().member(7, |_| true), None);
    }

    #[test]
    fn positions_are_those_that_were_given() {
        let turns = Turns::new([(4, 1), (2, 1)]);
        assert_eq!((0..3).map(|turn| turns.member(turn, |_| true).unwrap()).collect::<Vec<_>>(), [4, 2, 4]);
    }

    #[test]
    fn long_sequences_are_rounded() {
        let turns = turns(&[u32::MAX, u32::MAX - 1, 1]);
        assert!(turns.sequence.len() <= 4097, "{}", turns.sequence.len());
        assert!(turns.sequence.contains(&2));
        assert_eq!(self::turns(&[1; 5000]).sequence.len(), 5000);
        assert!(self::turns(&(1..5000).collect::<Vec<_>>()).sequence.len() < 10_000);
    }

    proptest! {
        /// At each time, a member is less than one turn behind its share, and less than one before it.
        #[test]
        fn every_member_has_its_share_at_each_time(weights in prop::collection::vec(1_u32..30, 1..20)) {
            let turns = turns(&weights);
            let all: u32 = weights.iter().sum();
            let common = weights.iter().fold(0, |a, &b| common_divisor(a, u64::from(b)));
            prop_assert_eq!(turns.sequence.len() as u64, u64::from(all) / common);
            let mut had = vec![0_u32; weights.len()];
            for (slot, &member) in (1_u32..).zip(&turns.sequence) {
                had[member as usize] += 1;
                for (had, weight) in had.iter().zip(&weights) {
                    let behind = f64::from(slot) * f64::from(*weight) / f64::from(all) - f64::from(*had);
                    prop_assert!(behind > -1.0 && behind < 1.0, "{behind} turns behind: {:?}", turns.sequence);
                }
            }
            for (had, weight) in had.iter().zip(&weights) {
                prop_assert_eq!(u64::from(*had), u64::from(*weight) / common);
            }
        }
    }
}
