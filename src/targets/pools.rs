//! A bounded map of pools, which knows those in use and the order in which the others became idle.
//!
//! It has no lock, no clock and no I/O. Each operation takes constant time. What is removed is returned, so that the
//! caller drops it outside of its lock.

use std::{collections::HashMap, hash::Hash};

use tokio::time::Instant;

/// Where a pool is, for as long as it's leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(usize);

/// Up to `capacity` pools.
pub(super) struct Pools<K, V> {
    capacity: usize,
    index: HashMap<K, Slot>,
    slots: Vec<Option<Pool<K, V>>>,
    free: Vec<Slot>,
    /// The pools without a lease, as a doubly linked list.
    longest_idle: Option<Slot>,
    last_idle: Option<Slot>,
}

struct Pool<K, V> {
    key: K,
    value: V,
    use_: Use,
}

#[derive(Clone, Copy, Debug)]
enum Use {
    /// That many leases, at least one.
    Leased(usize),
    Idle {
        since: Instant,
        before: Option<Slot>,
        after: Option<Slot>,
    },
}

/// Every pool is in use.
#[derive(Debug)]
pub(super) struct Full<V>(pub(super) V);

impl<K: Hash + Eq + Clone, V> Pools<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            longest_idle: None,
            last_idle: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Returns whether one more pool has no room, because all are leased.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.capacity && self.longest_idle.is_none()
    }

    /// Leases the pool of this key.
    pub(super) fn lease(&mut self, key: &K) -> Option<Slot> {
        let slot = *self.index.get(key)?;
        match self.pool(slot)?.use_ {
            Use::Leased(leases) => self.set_use(slot, Use::Leased(leases + 1)),
            Use::Idle { .. } => {
                self.unlink(slot);
                self.set_use(slot, Use::Leased(1));
            }
        }
        Some(slot)
    }

    /// Inserts and leases a pool of a key that has none. At the capacity, the pool that has been idle for the longest
    /// time is removed and returned.
    pub(super) fn insert(&mut self, key: K, value: V) -> Result<(Slot, Option<V>), Full<V>> {
        debug_assert!(!self.index.contains_key(&key), "the key has a pool");
        let mut removed = None;
        if self.len() >= self.capacity {
            match self.longest_idle {
                Some(slot) => removed = self.remove_idle(slot),
                None => return Err(Full(value)),
            }
        }
        let pool = Some(Pool { key: key.clone(), value, use_: Use::Leased(1) });
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot.0] = pool;
                slot
            }
            None => {
                self.slots.push(pool);
                Slot(self.slots.len() - 1)
            }
        };
        self.index.insert(key, slot);
        Ok((slot, removed))
    }

    /// Returns the value of a leased pool.
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut V> {
        self.slots.get_mut(slot.0)?.as_mut().map(|pool| &mut pool.value)
    }

    /// Ends one lease of a pool. Returns whether the pool is idle now.
    pub(super) fn release(&mut self, slot: Slot, now: impl FnOnce() -> Instant) -> bool {
        match self.pool(slot).map(|pool| pool.use_) {
            Some(Use::Leased(1)) => {
                let before = self.last_idle.replace(slot);
                self.set_use(slot, Use::Idle { since: now(), before, after: None });
                match before {
                    Some(before) => self.link(before, |_, after| *after = Some(slot)),
                    None => self.longest_idle = Some(slot),
                }
                true
            }
            Some(Use::Leased(leases)) => {
                self.set_use(slot, Use::Leased(leases - 1));
                false
            }
            Some(Use::Idle { .. }) | None => false,
        }
    }

    /// Returns since when the first of the idle pools has been idle.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        match self.pool(self.longest_idle?)?.use_ {
            Use::Idle { since, .. } => Some(since),
            Use::Leased(_) => None,
        }
    }

    /// Removes the pool that has been idle for the longest time.
    pub(super) fn take_idle(&mut self) -> Option<V> {
        self.remove_idle(self.longest_idle?)
    }

    fn remove_idle(&mut self, slot: Slot) -> Option<V> {
        self.unlink(slot);
        let Pool { key, value, .. } = self.slots.get_mut(slot.0)?.take()?;
        self.index.remove(&key);
        self.free.push(slot);
        Some(value)
    }

    /// Takes an idle pool out of the list.
    fn unlink(&mut self, slot: Slot) {
        let Some(Use::Idle { before, after, .. }) = self.pool(slot).map(|pool| pool.use_) else { return };
        match before {
            Some(before) => self.link(before, |_, its_after| *its_after = after),
            None => self.longest_idle = after,
        }
        match after {
            Some(after) => self.link(after, |its_before, _| *its_before = before),
            None => self.last_idle = before,
        }
    }

    /// Changes the neighbours of an idle pool.
    fn link(&mut self, slot: Slot, change: impl FnOnce(&mut Option<Slot>, &mut Option<Slot>)) {
        if let Some(Some(Pool { use_: Use::Idle { before, after, .. }, .. })) = self.slots.get_mut(slot.0) {
            change(before, after);
        }
    }

    fn pool(&self, slot: Slot) -> Option<&Pool<K, V>> {
        self.slots.get(slot.0)?.as_ref()
    }

    fn set_use(&mut self, slot: Slot, use_: Use) {
        if let Some(Some(pool)) = self.slots.get_mut(slot.0) {
            pool.use_ = use_;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The same map, without an index: keys with their leases, and the idle ones in order.
    #[derive(Default)]
    struct Model {
        leases: HashMap<u8, usize>,
        idle: Vec<(u8, Instant)>,
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Lease(u8),
        Release(u8),
        TakeIdle,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..12_u8).prop_map(Step::Lease),
            3 => (0..12_u8).prop_map(Step::Release),
            1 => Just(Step::TakeIdle),
        ]
    }

    proptest! {
        #[test]
        fn pools_are_leased_released_and_removed_as_in_a_model(capacity in 1..6_usize, steps in vec(step(), 0..200)) {
            let (mut pools, mut model) = (Pools::new(capacity), Model::default());
            let (start, mut slots) = (Instant::now(), HashMap::new());
            for (number, step) in steps.into_iter().enumerate() {
                let now = start + Duration::from_secs(number as u64);
                match step {
                    Step::Lease(key) if model.leases.contains_key(&key) => {
                        model.idle.retain(|(idle, _)| *idle != key);
                        *model.leases.get_mut(&key).unwrap() += 1;
                        prop_assert_eq!(pools.lease(&key), slots.get(&key).copied());
                    }
                    Step::Lease(key) => {
                        prop_assert!(pools.lease(&key).is_none());
                        let is_full = model.leases.len() == capacity && model.idle.is_empty();
                        prop_assert_eq!(pools.is_full(), is_full);
                        let evicts = model.leases.len() == capacity && !is_full;
                        let evicted = evicts.then(|| model.idle.remove(0).0);
                        match pools.insert(key, key) {
                            Ok((slot, removed)) => {
                                prop_assert!(!is_full);
                                prop_assert_eq!(removed, evicted);
                                if let Some(evicted) = evicted {
                                    model.leases.remove(&evicted);
                                }
                                model.leases.insert(key, 1);
                                slots.insert(key, slot);
                            }
                            Err(Full(value)) => prop_assert!(is_full && value == key),
                        }
                    }
                    Step::Release(key) => {
                        if let Some(leases @ 1..) = model.leases.get_mut(&key) {
                            *leases -= 1;
                            let is_idle = *leases == 0;
                            if is_idle {
                                model.idle.push((key, now));
                            }
                            prop_assert_eq!(pools.release(slots[&key], || now), is_idle);
                        }
                    }
                    Step::TakeIdle => {
                        let expected = (!model.idle.is_empty()).then(|| model.idle.remove(0).0);
                        prop_assert_eq!(pools.take_idle(), expected);
                        if let Some(expected) = expected {
                            model.leases.remove(&expected);
                        }
                    }
                }
                prop_assert_eq!(pools.len(), model.leases.len());
                prop_assert!(pools.slots.len() <= capacity);
                prop_assert_eq!(pools.idle_since(), model.idle.first().map(|(_, since)| *since));
                for key in model.leases.keys() {
                    prop_assert_eq!(pools.get_mut(slots[key]).copied(), Some(*key));
                }
            }
        }
    }
}
