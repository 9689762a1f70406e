//! The credentials of users that the front has acquired.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::mechanism::Acquired;

/// A cache, out of which the user is dropped whose credential wasn't used for the longest time.
pub(super) struct Users<C> {
    users: HashMap<Arc<str>, User<C>>,
    max_users: usize,
    max_age: Duration,
    uses: u64,
}

struct User<C> {
    cred: C,
    principal: Arc<str>,
    until: Instant,
    /// The number of the last use.
    used: u64,
}

impl<C: Clone> Users<C> {
    pub(super) fn new() -> Self {
        Self { users: HashMap::new(), max_users: 256, max_age: Duration::from_secs(5 * 60), uses: 0 }
    }

    pub(super) fn limit(&mut self, users: usize, age: Duration) {
        (self.max_users, self.max_age) = (users, age);
        self.users.clear();
    }

    /// Returns the credential of a user, and for whom it speaks.
    pub(super) fn get(&mut self, name: &str, now: Instant) -> Option<(C, Arc<str>)> {
        self.uses += 1;
        let user = self.users.get_mut(name)?;
        if now >= user.until {
            self.users.remove(name);
            return None;
        }
        user.used = self.uses;
        Some((user.cred.clone(), user.principal.clone()))
    }

    pub(super) fn has(&self, name: &str, now: Instant) -> bool {
        self.users.get(name).is_some_and(|user| now < user.until)
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.users.remove(name);
    }

    /// Keeps a credential for the first half of its life at most.
    pub(super) fn insert(&mut self, name: Arc<str>, Acquired { cred, principal, lifetime }: Acquired<C>, now: Instant) {
        let until = now + self.max_age.min(lifetime / 2);
        if self.max_users == 0 || until <= now {
            return;
        }
        if self.users.len() >= self.max_users && !self.users.contains_key(&name) {
            self.users.retain(|_, user| now < user.until);
        }
        // A search is cheap beside the calls of the KDC that went before.
        if self.users.len() >= self.max_users
            && !self.users.contains_key(&name)
            && let Some(oldest) = self.users.iter().min_by_key(|(_, user)| user.used).map(|(name, _)| name.clone())
        {
            self.users.remove(&oldest);
        }
        self.users.insert(name, User { cred, principal, until, used: self.uses });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(300);

    fn acquired(name: &str, lifetime: Duration) -> Acquired<String> {
        Acquired { cred: format!("the credential of {name}"), principal: format!("{name}@KIT.TEST").into(), lifetime }
    }

    fn insert(users: &mut Users<String>, name: &str, lifetime: Duration, now: Instant) {
        users.insert(name.into(), acquired(name, lifetime), now);
    }

    #[test]
    fn a_credential_is_kept_for_its_age_and_for_half_of_its_life_at_most() {
        let now = Instant::now();
        for (lifetime, kept) in [(3600, 300), (600, 300), (50, 25), (0, 0)] {
            let mut users = Users::new();
            users.limit(2, AGE);
            insert(&mut users, "alice", Duration::from_secs(lifetime), now);
            let millisecond = Duration::from_millis(1);
            let last = now + Duration::from_secs(kept);
            assert_eq!(users.get("alice", last - millisecond).is_some(), kept > 0, "{lifetime}");
            assert_eq!(users.get("alice", last), None, "{lifetime}");
        }
    }

    #[test]
    fn the_user_who_was_away_for_the_longest_time_makes_room() {
        let now = Instant::now();
        let mut users = Users::new();
        users.limit(2, AGE);
        for name in ["alice", "bob"] {
            insert(&mut users, name, AGE * 2, now);
        }
        assert_eq!(users.get("alice", now).unwrap().0, "the credential of alice");
        insert(&mut users, "carol", AGE * 2, now);
        let kept = ["alice", "bob", "carol"].map(|name| users.get(name, now).is_some());
        assert_eq!(kept, [true, false, true]);
    }

    #[test]
    fn a_renewed_credential_takes_the_place_of_the_old_one() {
        let now = Instant::now();
        let mut users = Users::new();
        users.limit(2, AGE);
        for name in ["alice", "bob", "bob"] {
            insert(&mut users, name, AGE * 2, now);
        }
        assert!(users.get("alice", now).is_some());
        assert_eq!(users.get("bob", now).unwrap().1.as_ref(), "bob@KIT.TEST");
    }

    #[test]
    fn a_cache_for_no_users_keeps_none() {
        let now = Instant::now();
        let mut users = Users::new();
        users.limit(0, AGE);
        insert(&mut users, "alice", AGE, now);
        assert_eq!(users.get("alice", now), None);
    }
}
