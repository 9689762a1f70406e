//! The tokens that are used again: a bounded cache.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::HeaderValue;

use crate::identity::RemoteUser;

/// Each token is in the set that the hash of its user selects, so that a look-up is short and locks one set only. The
/// hash is keyed: no choice of names fills one set. Together they hold 2,048 tokens.
const SETS: usize = 256;
const TOKENS_OF_A_SET: usize = 8;

/// A longer token isn't kept, so that the memory has a bound whatever the names and claims are. Usual servers refuse a
/// field of this length.
const LONGEST: usize = 8 * 1024;

/// What a token is for.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) user: &'a RemoteUser,
    pub(super) audience: Audience<'a>,
    /// Further claims, as members of a JSON object.
    pub(super) claims: &'a str,
}

/// The audience, in parts as long as only a cached one is looked for.
#[derive(Clone, Copy)]
pub(super) enum Audience<'a> {
    Named(&'a str),
    Origin { scheme: &'a str, authority: &'a str },
}

impl Audience<'_> {
    fn is(self, text: &str) -> bool {
        match self {
            Self::Named(name) => name == text,
            Self::Origin { scheme, authority } => {
                text.strip_prefix(scheme).and_then(|text| text.strip_prefix("://")) == Some(authority)
            }
        }
    }
}

impl fmt::Display for Audience<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Origin { scheme, authority } => write!(f, "{scheme}://{authority}"),
        }
    }
}

pub(super) struct Cache {
    state: RandomState,
    sets: Box<[Mutex<Vec<Entry>>]>,
}

struct Entry {
    user: RemoteUser,
    audience: Box<str>,
    claims: Box<str>,
    signed_at: Duration,
    token: HeaderValue,
}

impl Entry {
    fn is_for(&self, subject: Subject<'_>) -> bool {
        self.user == *subject.user && subject.audience.is(&self.audience) && *self.claims == *subject.claims
    }
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { state: RandomState::new(), sets: (0..SETS).map(|_| Mutex::default()).collect() }
    }

    /// Returns a token that was signed less than `max_age` ago. One from the future isn't used, because a clock that
    /// was set back would keep it for long.
    pub(super) fn get(&self, subject: Subject<'_>, now: Duration, max_age: Duration) -> Option<HeaderValue> {
        let mut set = self.set(subject);
        let at = set.iter().position(|entry| entry.is_for(subject))?;
        let age = now.checked_sub(set[at].signed_at)?;
        if age >= max_age {
            return None;
        }
        // The last one of a set is the one to go.
        set[..=at].rotate_right(1);
        Some(set[0].token.clone())
    }

    pub(super) fn insert(&self, subject: Subject<'_>, signed_at: Duration, token: HeaderValue) {
        if token.len() > LONGEST {
            return;
        }
        let entry = Entry {
            user: subject.user.clone(),
            audience: subject.audience.to_string().into(),
            claims: subject.claims.into(),
            signed_at,
            token,
        };
        let mut set = self.set(subject);
        // Another request may have signed one meanwhile.
        set.retain(|entry| !entry.is_for(subject));
        set.truncate(TOKENS_OF_A_SET - 1);
        set.insert(0, entry);
    }

    fn set(&self, subject: Subject<'_>) -> MutexGuard<'_, Vec<Entry>> {
        // The remainder is below SETS.
        let at = (self.state.hash_one(subject.user.as_str()) % SETS as u64) as usize;
        self.sets[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn subject<'a>(user: &'a RemoteUser, claims: &'a str) -> Subject<'a> {
        Subject { user, audience: Audience::Origin { scheme: "http", authority: "a:80" }, claims }
    }

    #[test]
    fn a_token_is_for_one_user_audience_and_set_of_claims() {
        let cache = Cache::new();
        let (alice, bob) = (RemoteUser::from("alice"), RemoteUser::from("bob"));
        cache.insert(subject(&alice, "x"), SECOND, HeaderValue::from_static("token"));
        let get = |subject| cache.get(subject, SECOND, SECOND).is_some();
        assert!(get(subject(&alice, "x")));
        for other in [
            subject(&bob, "x"),
            subject(&alice, ""),
            Subject { audience: Audience::Origin { scheme: "https", authority: "a:80" }, ..subject(&alice, "x") },
            Subject { audience: Audience::Origin { scheme: "http", authority: "a" }, ..subject(&alice, "x") },
            Subject { audience: Audience::Named("a:80"), ..subject(&alice, "x") },
        ] {
            assert!(!get(other), "{} {} {}", other.user, other.audience, other.claims);
        }
    }

    #[test]
    fn a_token_is_used_until_its_age_and_not_before_its_time() {
        let cache = Cache::new();
        let alice = RemoteUser::from("alice");
        cache.insert(subject(&alice, ""), 10 * SECOND, HeaderValue::from_static("token"));
        for (now, found) in [(9, false), (10, true), (11, true), (12, false), (1000, false)] {
            assert_eq!(cache.get(subject(&alice, ""), now * SECOND, 2 * SECOND).is_some(), found, "{now}");
        }
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_the_users_of_late() {
        let cache = Cache::new();
        let alice = RemoteUser::from("alice");
        cache.insert(subject(&alice, ""), SECOND, HeaderValue::from_static("token"));
        for number in 0..20_000 {
            let user = RemoteUser::from(format!("user {number}"));
            cache.insert(subject(&user, ""), SECOND, HeaderValue::from_static("token"));
            assert!(cache.get(subject(&alice, ""), SECOND, SECOND).is_some(), "{number}");
        }
        let tokens: usize = cache.sets.iter().map(|set| set.lock().unwrap().len()).sum();
        assert_eq!(tokens, SETS * TOKENS_OF_A_SET);
        assert_eq!(tokens, 2048);
    }

    #[test]
    fn a_token_of_more_than_8_kib_is_not_kept() {
        let cache = Cache::new();
        let alice = RemoteUser::from("alice");
        for (length, is_kept) in [(8193, false), (8192, true)] {
            cache.insert(subject(&alice, ""), SECOND, HeaderValue::try_from("x".repeat(length)).unwrap());
            assert_eq!(cache.get(subject(&alice, ""), SECOND, SECOND).is_some(), is_kept, "{length}");
        }
    }

    #[test]
    fn a_token_that_is_signed_anew_replaces_the_old_one() {
        let cache = Cache::new();
        let alice = RemoteUser::from("alice");
        for (time, token) in [(1, "first"), (2, "second")] {
            cache.insert(subject(&alice, ""), time * SECOND, HeaderValue::from_static(token));
        }
        assert_eq!(cache.get(subject(&alice, ""), 2 * SECOND, SECOND).unwrap(), "second");
        assert_eq!(cache.sets.iter().map(|set| set.lock().unwrap().len()).sum::<usize>(), 1);
    }
}
