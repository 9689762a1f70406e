//! The keys of a front, and their rotation.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use super::{invalid::InvalidKey, jwks::Jwks, key::Key};

/// How much longer than the lifetime of its last token a key is published. A verifier accepts an expired token for its
/// leeway, which is rarely more.
const LEEWAY: Duration = Duration::from_secs(60);

/// The keys that sign a front's assertions. Clones share the keys and their rotation.
///
/// A key is a private key of the curve P-256, which signs with `ES256`, or an Ed25519 key, which signs with `EdDSA`.
/// [`jwks`](Self::jwks) publishes the public half. The id of a key (`kid`) is its thumbprint (RFC 7638).
///
/// ```
/// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
/// use axum::Router;
/// use tower_reverse_proxy::AssertionKeys;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pem = rcgen::KeyPair::generate()?.serialize_pem();
/// // PEM, as it's read from a file.
/// let keys = AssertionKeys::from_pem(pem)?;
/// let app: Router = Router::new().route_service("/.well-known/jwks.json", keys.jwks());
/// # let _ = app;
/// # Ok(())
/// # }
/// # main().unwrap();
/// # }
/// ```
///
/// # Rotation
///
/// [`rotate`](Self::rotate) introduces the next key in three steps: it's published, later it signs, and the previous
/// one is retired when its last token has expired. The steps follow from the clock at each use; there is no background
/// task.
///
/// # Several instances
///
/// Instances of a front behind one name need the same keys, because a backend may fetch the keys from one instance and
/// get a token of another. The same holds for a restart. To start with a new key while tokens of the previous one are
/// valid, load the previous one, and rotate:
///
/// ```
/// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
/// use std::time::Duration;
/// use tower_reverse_proxy::AssertionKeys;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let previous = rcgen::KeyPair::generate()?.serialize_pem();
/// # let next = rcgen::KeyPair::generate()?.serialize_pem();
/// let keys = AssertionKeys::from_pem(previous)?;
/// keys.rotate(AssertionKeys::from_pem(next)?, Duration::from_secs(600));
/// # Ok(())
/// # }
/// # main().unwrap();
/// # }
/// ```
#[derive(Clone)]
pub struct AssertionKeys {
    schedule: Arc<Mutex<Schedule>>,
}

impl AssertionKeys {
    /// Reads one private key, as PKCS #8 in PEM, not encrypted. `pem` is the contents of a file, not its path.
    ///
    /// The provider of cryptography is that of [TLS](crate::Tls#the-provider): the process's own, or that of the
    /// feature `tls-aws-lc-rs` or `tls-ring`.
    ///
    /// Such a key is made by
    /// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out assertion.pem`, or by
    /// `openssl genpkey -algorithm ED25519 -out assertion.pem`.
    ///
    /// ```
    /// use tower_reverse_proxy::AssertionKeys;
    ///
    /// # fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let keys = AssertionKeys::from_pem(std::fs::read("assertion.pem")?)?;
    /// # let _ = keys;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If it contains no private key, or more than one, or an encrypted one, or one of another kind or format, or if
    /// there is no provider. The error contains nothing of the key.
    pub fn from_pem(pem: impl AsRef<[u8]>) -> Result<Self, InvalidKey> {
        let key = Arc::new(Key::from_pem(pem.as_ref())?);
        let schedule = Schedule { lifetime: Duration::ZERO, keys: vec![Entry { key, signs_from: Duration::ZERO }] };
        Ok(Self { schedule: Arc::new(Mutex::new(schedule)) })
    }

    /// Rotates to the key that `next` signs with.
    ///
    /// It's published from now on, and signs after `published_for`. The keys before it are retired when their last
    /// token has expired: the [lifetime](crate::AssertionLayer::lifetime) of a token after that, and 60 s for a
    /// verifier's leeway.
    ///
    /// `published_for` has to be at least as long as backends cache the keys: 300 s by default,
    /// and what [`Jwks::max_age`] sets. A backend that doesn't fetch the keys again for an unknown `kid` would refuse
    /// the new key's tokens until its copy expires. Zero replaces the key at once.
    ///
    /// A rotation to the newest key can only hasten it, so that a task can reload a file at intervals. A rotation to
    /// another key while one is pending leaves that one's time; the newest key whose time has come signs.
    ///
    /// ```
    /// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
    /// use std::time::Duration;
    /// use tower_reverse_proxy::AssertionKeys;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let [pem, next] = [rcgen::KeyPair::generate()?.serialize_pem(), rcgen::KeyPair::generate()?.serialize_pem()];
    /// let keys = AssertionKeys::from_pem(pem)?;
    /// // Later, in a task of the application's own.
    /// keys.rotate(AssertionKeys::from_pem(next)?, Duration::from_secs(600));
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    ///
    /// # Security
    ///
    /// Tokens of a key that has leaked are valid while it's published, also if `published_for` is zero. Restart the
    /// front with another key alone, and have backends that cache the keys fetch them again.
    #[expect(clippy::needless_pass_by_value, reason = "the key moves on; a set that is rotated away signs no more")]
    pub fn rotate(&self, next: Self, published_for: Duration) {
        let now = now();
        // Not under the lock of `self`, because both may be the same.
        let key = next.signing(now);
        self.lock().rotate(key, now, published_for);
    }

    /// Returns the public halves, for a route of the front's own.
    ///
    /// ```
    /// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
    /// use axum::Router;
    /// use tower_reverse_proxy::AssertionKeys;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
    /// let app: Router = Router::new().route_service("/.well-known/jwks.json", keys.jwks());
    /// # let _ = app;
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    #[must_use]
    pub fn jwks(&self) -> Jwks {
        Jwks::new(self.clone())
    }

    /// Returns the key that signs.
    pub(super) fn signing(&self, now: Duration) -> Arc<Key> {
        self.lock().signing(now).clone()
    }

    /// Returns the keys that a verifier needs.
    pub(super) fn published(&self, now: Duration) -> Vec<Arc<Key>> {
        self.lock().published(now).cloned().collect()
    }

    /// Records that there are tokens of this lifetime, until whose end a key is published.
    pub(super) fn sign_for(&self, lifetime: Duration) {
        let mut schedule = self.lock();
        schedule.lifetime = schedule.lifetime.max(lifetime);
    }

    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for AssertionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lock().keys.iter().map(|entry| &entry.key)).finish()
    }
}

/// Returns the time since the epoch, in which a token's times are counted. The steps of a rotation are, too, so that
/// both move together when the clock is set.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The keys in the order of their rotation. All times are since the epoch.
struct Schedule {
    keys: Vec<Entry>,
    /// The longest lifetime of a token.
    lifetime: Duration,
}

struct Entry {
    key: Arc<Key>,
    signs_from: Duration,
}

impl Schedule {
    fn rotate(&mut self, key: Arc<Key>, now: Duration, published_for: Duration) {
        let signs_from = now.saturating_add(published_for);
        if let Some(newest) = self.keys.last_mut().filter(|newest| newest.key.kid == key.kid) {
            newest.signs_from = newest.signs_from.min(signs_from);
            return;
        }
        let first = self.first_published(now);
        self.keys.drain(..first);
        self.keys.push(Entry { key, signs_from });
    }

    /// The newest key whose time has come. The first one signs before that: the clock may have been set back.
    fn signing(&self, now: Duration) -> &Arc<Key> {
        let newest = self.keys.iter().rev().find(|entry| entry.signs_from <= now);
        &newest.unwrap_or(&self.keys[0]).key
    }

    /// The keys that sign, will sign, or have signed tokens that may be valid. Each key once.
    fn published(&self, now: Duration) -> impl Iterator<Item = &Arc<Key>> {
        let keys = &self.keys[self.first_published(now)..];
        keys.iter()
            .enumerate()
            .filter(|(at, entry)| keys[..*at].iter().all(|before| before.key.kid != entry.key.kid))
            .map(|(_, entry)| &entry.key)
    }

    /// The index of the first key that isn't retired. A key signs its last token when a later one begins to sign.
    fn first_published(&self, now: Duration) -> usize {
        let is_replaced = |entry: &Entry| entry.signs_from.saturating_add(self.lifetime + LEEWAY) <= now;
        self.keys.iter().rposition(is_replaced).unwrap_or(0)
    }
}

#[cfg(test)]
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
mod tests {
    use super::*;

    const START: u64 = 1_000_000;

    fn at(second: u64) -> Duration {
        Duration::from_secs(START + second)
    }

    fn key() -> Arc<Key> {
        Arc::new(Key::from_pem(rcgen::KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap())
    }

    fn schedule(key: &Arc<Key>) -> Schedule {
        let lifetime = Duration::from_secs(120);
        Schedule { lifetime, keys: vec![Entry { key: key.clone(), signs_from: Duration::ZERO }] }
    }

    /// The names of the keys at that time: the one that signs, and those that are published.
    fn names(schedule: &Schedule, keys: &[Arc<Key>], second: u64) -> (char, String) {
        let name = |key: &Arc<Key>| (b'a' + keys.iter().position(|other| other.kid == key.kid).unwrap() as u8) as char;
        (name(schedule.signing(at(second))), schedule.published(at(second)).map(name).collect())
    }

    #[test]
    fn a_key_is_published_then_signs_and_its_predecessor_is_retired_one_lifetime_later() {
        let keys = [key(), key()];
        let mut schedule = schedule(&keys[0]);
        assert_eq!(names(&schedule, &keys, 0), ('a', "a".to_owned()));
        schedule.rotate(keys[1].clone(), at(0), Duration::from_secs(300));
        for (second, signs, published) in [
            (0, 'a', "ab"),
            (299, 'a', "ab"),
            (300, 'b', "ab"),
            // The last token of `a` expires 120 s later, and 60 s are the verifier's leeway.
            (479, 'b', "ab"),
            (480, 'b', "b"),
            (1_000_000, 'b', "b"),
        ] {
            assert_eq!(names(&schedule, &keys, second), (signs, published.to_owned()), "{second}");
        }
    }

    #[test]
    fn a_key_is_published_for_the_longest_lifetime_of_a_token() {
        let keys = [key(), key()];
        let all = AssertionKeys { schedule: Arc::new(Mutex::new(schedule(&keys[0]))) };
        all.lock().rotate(keys[1].clone(), at(0), Duration::ZERO);
        all.sign_for(Duration::from_secs(600));
        all.sign_for(Duration::from_secs(1));
        assert_eq!(all.published(at(659)).len(), 2);
        assert_eq!(all.published(at(660)).len(), 1);
        assert_eq!(all.signing(at(0)).kid, keys[1].kid);
    }

    #[test]
    fn rotations_may_overlap() {
        let keys = [key(), key(), key()];
        let mut schedule = schedule(&keys[0]);
        schedule.rotate(keys[1].clone(), at(0), Duration::from_secs(300));
        // In haste: the newest key signs at once, and the pending one never does.
        schedule.rotate(keys[2].clone(), at(10), Duration::ZERO);
        for (second, signs, published) in [(10, 'c', "abc"), (300, 'c', "c"), (189, 'c', "abc"), (190, 'c', "c")] {
            assert_eq!(names(&schedule, &keys, second), (signs, published.to_owned()), "{second}");
        }
    }

    #[test]
    fn a_rotation_to_the_newest_key_changes_nothing_and_one_back_publishes_it_once() {
        let keys = [key(), key()];
        let mut schedule = schedule(&keys[0]);
        schedule.rotate(keys[0].clone(), at(0), Duration::from_secs(300));
        assert_eq!(schedule.keys.len(), 1);
        schedule.rotate(keys[1].clone(), at(0), Duration::from_secs(300));
        schedule.rotate(keys[1].clone(), at(200), Duration::from_secs(300));
        assert_eq!(names(&schedule, &keys, 300), ('b', "ab".to_owned()));
        schedule.rotate(keys[0].clone(), at(310), Duration::from_secs(10));
        assert_eq!(names(&schedule, &keys, 319), ('b', "ab".to_owned()));
        assert_eq!(names(&schedule, &keys, 320), ('a', "ab".to_owned()));
    }

    #[test]
    fn a_pending_key_can_be_hastened_and_not_delayed() {
        let keys = [key(), key()];
        let mut schedule = schedule(&keys[0]);
        schedule.rotate(keys[1].clone(), at(0), Duration::from_secs(300));
        schedule.rotate(keys[1].clone(), at(5), Duration::MAX);
        assert_eq!(names(&schedule, &keys, 10), ('a', "ab".to_owned()));
        schedule.rotate(keys[1].clone(), at(10), Duration::ZERO);
        for (second, published) in [(10, "ab"), (189, "ab"), (190, "b")] {
            assert_eq!(names(&schedule, &keys, second), ('b', published.to_owned()), "{second}");
        }
        schedule.rotate(keys[1].clone(), at(200), Duration::ZERO);
        assert_eq!(schedule.keys.len(), 2);
    }

    #[test]
    fn retired_keys_are_forgotten_and_a_clock_that_was_set_back_finds_a_key() {
        let keys = [key(), key(), key()];
        let mut schedule = schedule(&keys[0]);
        schedule.rotate(keys[1].clone(), at(0), Duration::ZERO);
        schedule.rotate(keys[2].clone(), at(1000), Duration::from_secs(300));
        assert_eq!(schedule.keys.len(), 2);
        assert_eq!(schedule.signing(Duration::ZERO).kid, keys[1].kid);
        // No duration is too long.
        schedule.rotate(keys[0].clone(), at(1000), Duration::MAX);
        assert_eq!(names(&schedule, &keys, 1300), ('c', "bca".to_owned()));
    }

    #[test]
    fn a_set_may_be_rotated_to_itself() {
        let keys = AssertionKeys { schedule: Arc::new(Mutex::new(schedule(&key()))) };
        keys.rotate(keys.clone(), Duration::ZERO);
        assert_eq!(keys.published(now()).len(), 1);
    }
}
