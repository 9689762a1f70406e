//! The part of a large set that one of several replicas of the application uses. Pure.

use super::{member::Member, pick::stable_hash};

/// Which replica this is, and how many members it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subset {
    pub(super) size: usize,
    /// The number of this replica, from 0 on.
    pub(super) instance: usize,
    /// The number of replicas.
    pub(super) of: usize,
}

impl Subset {
    /// Returns the members that this replica uses: a part of them, and all backups.
    pub(super) fn of(self, members: &[Member]) -> Vec<&Member> {
        let (backups, regular): (Vec<_>, Vec<_>) = members.iter().partition(|member| member.is_backup());
        let keys: Vec<String> = regular.iter().map(|member| member.key()).collect();
        self.positions(&keys).into_iter().map(|at| regular[at]).chain(backups).collect()
    }

    /// Returns the positions of the members that this replica uses, in their order.
    ///
    /// The members stand in a circle, in an order that is the same for every replica, because it's by the hashes of
    /// their keys. A replica uses a run of neighbours. The runs begin at equal distances, so that each member is in as
    /// many runs as any other, give or take one. A member that is added or removed moves both ends of a run by one
    /// place at most. The runs are long enough for every member to be in one.
    fn positions(self, keys: &[String]) -> Vec<usize> {
        let (count, of) = (keys.len(), self.of.max(1));
        let size = self.size.max(count.div_ceil(of));
        if size >= count {
            return (0..count).collect();
        }
        let mut circle: Vec<usize> = (0..count).collect();
        circle.sort_by_cached_key(|&at| (stable_hash(&keys[at]), &keys[at]));
        // Both numbers are far from overflowing it.
        let start = (self.instance % of).saturating_mul(count) / of;
        let mut run: Vec<usize> = circle.into_iter().cycle().skip(start).take(size).collect();
        run.sort_unstable();
        run
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::balance::{Backends, Pick, State, Sticky};

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("http://10.0.{}.{}:8000", number / 250, number % 250)).collect()
    }

    fn of(names: &[String], size: usize, instance: usize, of: usize) -> HashSet<&str> {
        Subset { size, instance, of }.positions(names).into_iter().map(|member| &*names[member]).collect()
    }

    #[test]
    fn each_member_is_used_by_as_many_replicas_as_any_other() {
        for (count, size, replicas) in
            [(1000, 20, 100), (1000, 20, 97), (30, 7, 11), (10, 3, 4), (7, 1, 7), (5, 4, 1), (11, 2, 3), (3, 2, 50)]
        {
            let names = names(count);
            let mut uses = vec![0; count];
            for instance in 0..replicas {
                let run = Subset { size, instance, of: replicas }.positions(&names);
                assert_eq!(run.len(), size.max(count.div_ceil(replicas)).min(count));
                assert!(run.is_sorted());
                run.into_iter().for_each(|member| uses[member] += 1);
            }
            let (least, most) = (uses.iter().min().unwrap(), uses.iter().max().unwrap());
            assert!(
                *least >= 1 && most - least <= 1,
                "{count} members, {replicas} replicas of {size}: {least}..{most}"
            );
        }
    }

    #[test]
    fn a_change_of_one_member_changes_little() {
        let all = names(200);
        for removed in [0, 1, 77, 199] {
            let mut fewer = all.clone();
            fewer.remove(removed);
            for instance in 0..25 {
                let (before, after) = (of(&all, 20, instance, 25), of(&fewer, 20, instance, 25));
                let lost = before.difference(&after).filter(|name| **name != all[removed]).count();
                let gained = after.difference(&before).count();
                assert!(lost <= 1 && gained <= 2, "replica {instance}: {lost} lost, {gained} gained");
            }
        }
    }

    #[test]
    fn the_order_in_which_members_are_found_does_not_matter() {
        let (forwards, mut backwards) = (names(100), names(100));
        backwards.reverse();
        for instance in 0..10 {
            assert_eq!(of(&forwards, 20, instance, 10), of(&backwards, 20, instance, 10));
        }
    }

    #[test]
    fn every_replica_has_all_backups() {
        let member = |number: u8| Member::new(format!("http://10.0.0.{number}:8000"));
        let members: Vec<_> =
            (0..40).map(|number| if number % 10 == 0 { member(number).backup() } else { member(number) }).collect();
        let used = Subset { size: 6, instance: 2, of: 9 }.of(&members);
        assert_eq!((used.len(), used.iter().filter(|member| member.is_backup()).count()), (10, 4));
    }

    #[test]
    fn a_later_set_is_reduced_too() {
        let backends = Backends::builder(names(40)).subset(5, 3, 8).build().unwrap();
        assert_eq!(backends.status().len(), 5);
        backends.set(names(80)).unwrap();
        assert_eq!(backends.status().iter().filter(|member| member.state() != State::Draining).count(), 10);
    }

    #[test]
    fn a_subset_that_makes_no_sense_is_an_error() {
        for (size, instance, of) in [(0, 0, 1), (1, 1, 1), (1, 0, 0), (20, 7, 3)] {
            let error = Backends::builder(names(4)).subset(size, instance, of).build().unwrap_err();
            assert!(error.to_string().contains("write at least one member"), "{error}");
        }
    }

    #[test]
    fn a_subset_of_sessions_or_keys_is_an_error_because_replicas_would_disagree() {
        let builder = || Backends::builder(names(40)).subset(5, 3, 8);
        for builder in [
            builder().sticky(Sticky::cookie("backend", "0123456789abcdef").unwrap()),
            builder().sticky(Sticky::by(|_| None)),
            builder().pick(Pick::hash_by_path()),
        ] {
            let error = builder.build().unwrap_err();
            assert!(error.to_string().contains("leave out the subset"), "{error}");
        }
        assert!(builder().pick(Pick::RoundRobin).build().is_ok());
    }

    /// If this fails, replicas of two versions use other members than they did.
    #[test]
    fn the_members_of_a_replica_never_change() {
        let run = Subset { size: 4, instance: 1, of: 3 }.positions(&names(12));
        assert_eq!(run, [2, 4, 5, 9]);
    }

    #[test]
    fn a_small_set_is_used_whole() {
        let few = names(5);
        for (size, instance, replicas) in [(5, 3, 4), (20, 0, 1), (1, 0, 1), (20, 99, 100)] {
            assert_eq!(of(&few, size, instance, replicas).len(), 5);
        }
        assert_eq!(Subset { size: 20, instance: 0, of: 1 }.positions(&[]), [0; 0]);
    }
}
