//! The tokens: credentials of the front and of users, their renewal, and the memory of failures. Its calls block.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    mechanism::{Acquired, Failure, Holder, Mechanism, Reason},
    users::Users,
};
use crate::observe;

/// After this time, a credential of the front is acquired anew, or earlier at half of its life: the library renews only
/// then, and notices a new keytab.
const RENEWAL: Duration = Duration::from_secs(5 * 60);
/// A failure answers further requests for the same credentials for this time, so that they don't load the KDC.
const FAILURE_MEMORY: Duration = Duration::from_secs(1);
const MAX_FAILURES: usize = 256;

/// Whom a token is for.
pub(super) enum Initiator<C> {
    /// The front's own account.
    Own,
    /// The user of this credential, and of this name if there is one.
    Delegated { credential: Arc<Forwarded<C>>, meant: Option<Arc<str>> },
    /// A user of this name, for whom the front acquires a credential.
    User(Arc<str>),
}

/// A credential that the application has handed over.
pub(super) struct Forwarded<C> {
    pub(super) cred: C,
    /// Tells credentials apart, because asking for the name of one may block.
    pub(super) id: u64,
    /// Whom it speaks for, once that is established.
    principal: OnceLock<Arc<str>>,
}

impl<C> Forwarded<C> {
    pub(super) fn new(cred: C) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { cred, id: NEXT.fetch_add(1, Ordering::Relaxed), principal: OnceLock::new() }
    }
}

/// A token, and the context that verifies the backend's answer to it.
pub(super) struct Minted<C> {
    pub(super) token: Vec<u8>,
    pub(super) context: C,
    pub(super) principal: Arc<str>,
}

/// Makes tokens, from any of its threads.
pub(super) struct Minter<M: Mechanism> {
    mechanism: M,
    front: Mutex<Option<Front<M::Cred>>>,
    users: Mutex<Users<M::Cred>>,
    failures: Mutex<HashMap<Key, (Failure, Instant)>>,
}

#[derive(Clone)]
struct Front<C> {
    acquired: Acquired<C>,
    /// How many were acquired before.
    number: u64,
    renew_at: Instant,
    expires_at: Instant,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Own,
    Delegated(u64),
    User(Arc<str>),
}

impl<M: Mechanism> Minter<M> {
    pub(super) fn new(mechanism: M) -> Self {
        Self { mechanism, front: Mutex::default(), users: Mutex::new(Users::new()), failures: Mutex::default() }
    }

    pub(super) fn now(&self) -> Instant {
        self.mechanism.now()
    }

    pub(super) fn limit_users(&self, users: usize, age: Duration) {
        lock(&self.users).limit(users, age);
    }

    /// Whether a ticket for the backend is cached with the user's credential, because it has made a token before. As a
    /// rule, the next one needs no call of the KDC.
    pub(super) fn has_ticket(&self, initiator: &Initiator<M::Cred>) -> bool {
        match initiator {
            Initiator::Own => false,
            Initiator::Delegated { credential, .. } => credential.principal.get().is_some(),
            Initiator::User(name) => lock(&self.users).has(name, self.now()),
        }
    }

    /// Acquires the front's own credential.
    pub(super) fn acquire(&self) -> Result<(), Failure> {
        self.front(None).map(drop)
    }

    /// Makes a token. A failure is remembered for a second.
    pub(super) fn mint(&self, initiator: &Initiator<M::Cred>) -> Result<Minted<M::Context>, Failure> {
        let key = match initiator {
            Initiator::Own => Key::Own,
            Initiator::Delegated { credential, .. } => Key::Delegated(credential.id),
            Initiator::User(name) => Key::User(name.clone()),
        };
        if let Some((failure, until)) = lock(&self.failures).get(&key)
            && self.now() < *until
        {
            return Err(failure.clone());
        }
        let minted = match initiator {
            Initiator::Own => self.own(),
            Initiator::Delegated { credential, meant } => self.delegated(credential, meant.as_deref()),
            Initiator::User(name) => self.user(name).map_err(|failure| failure.of_user(name)),
        };
        if let Err(failure) = &minted {
            self.remember(key, failure.clone());
        }
        minted
    }

    fn remember(&self, key: Key, failure: Failure) {
        let now = self.now();
        let mut failures = lock(&self.failures);
        if failures.len() >= MAX_FAILURES {
            failures.retain(|_, (_, until)| now < *until);
        }
        if failures.len() < MAX_FAILURES {
            failures.insert(key, (failure, now + FAILURE_MEMORY));
        }
    }

    fn own(&self) -> Result<Minted<M::Context>, Failure> {
        self.with_front(|front| {
            let (token, context) = self.mechanism.initiate(&front.cred, Holder::Front)?;
            Ok(Minted { token, context, principal: front.principal.clone() })
        })
    }

    fn delegated(&self, credential: &Forwarded<M::Cred>, meant: Option<&str>) -> Result<Minted<M::Context>, Failure> {
        let principal = match credential.principal.get() {
            Some(principal) => principal.clone(),
            None => {
                let principal = self.mechanism.initiator(&credential.cred)?;
                let name = self.mechanism.name(&credential.cred)?;
                if principal != name {
                    return Err(wrong_speaker(&name, &principal));
                }
                credential.principal.get_or_init(|| principal).clone()
            }
        };
        if let Some(meant) = meant {
            let meant = self.mechanism.canonical(meant)?;
            if !is_same(&meant, &principal) {
                return Err(wrong_speaker(&meant, &principal));
            }
        }
        let (token, context) = self.mechanism.initiate(&credential.cred, Holder::User)?;
        Ok(Minted { token, context, principal })
    }

    fn user(&self, name: &Arc<str>) -> Result<Minted<M::Context>, Failure> {
        let now = self.now();
        // In a statement of its own, so that the lock is released.
        let cached = lock(&self.users).get(name, now);
        if let Some((cred, principal)) = cached {
            match self.mechanism.initiate(&cred, Holder::User) {
                Ok((token, context)) => return Ok(Minted { token, context, principal }),
                Err(failure) if matches!(failure.reason, Reason::Front | Reason::Unreachable) => return Err(failure),
                Err(_) => lock(&self.users).remove(name),
            }
        }
        let meant = self.mechanism.canonical(name)?;
        let user = self.with_front(|front| self.impersonate(front, name, &meant))?;
        let (token, context) = self.mechanism.initiate(&user.cred, Holder::User)?;
        let principal = user.principal.clone();
        lock(&self.users).insert(name.clone(), user, self.now());
        Ok(Minted { token, context, principal })
    }

    /// Acquires a user's credential, and establishes for whom it speaks before any token of it leaves.
    fn impersonate(&self, front: &Acquired<M::Cred>, name: &str, meant: &str) -> Result<Acquired<M::Cred>, Failure> {
        if is_same(meant, &front.principal) {
            let text = format!("{meant} is the front's own account, and a user is meant");
            return Err(Failure::new(Reason::WrongSpeaker, text));
        }
        let user = self.mechanism.impersonate(&front.cred, name)?;
        let principal = self.mechanism.initiator(&user.cred)?;
        match is_same(&principal, meant) {
            true => Ok(Acquired { principal, ..user }),
            false => Err(wrong_speaker(meant, &principal)),
        }
    }

    /// Calls with the front's credential. A failed call is repeated once with a new credential, unless it had a new
    /// one.
    fn with_front<T>(&self, call: impl Fn(&Acquired<M::Cred>) -> Result<T, Failure>) -> Result<T, Failure> {
        let (front, is_new) = self.front(None)?;
        match call(&front.acquired) {
            // An unreachable KDC isn't called twice, because each call takes the library's whole timeout.
            Err(failure) if failure.reason == Reason::Refused && !is_new => {
                call(&self.front(Some(front.number))?.0.acquired)
            }
            outcome => outcome,
        }
    }

    /// Returns the front's credential, and whether this call has acquired it. With `after`, it's a later one than that.
    ///
    /// The lock is held while it's acquired, so that one thread acquires it for all.
    fn front(&self, after: Option<u64>) -> Result<(Front<M::Cred>, bool), Failure> {
        let mut slot = lock(&self.front);
        let now = self.now();
        if let Some(front) = &*slot
            && now < front.renew_at
            && after.is_none_or(|number| front.number > number)
        {
            return Ok((front.clone(), false));
        }
        match (self.mechanism.acquire(), &mut *slot) {
            (Ok(acquired), slot) => {
                let now = self.now();
                let front = Front {
                    number: slot.as_ref().map_or(0, |front| front.number + 1),
                    renew_at: now + renewal(acquired.lifetime),
                    expires_at: now + acquired.lifetime,
                    acquired,
                };
                Ok((slot.insert(front).clone(), true))
            }
            // The previous one is still valid, and the ticket for the backend may be cached with it.
            (Err(failure), Some(front)) if after.is_none() && now < front.expires_at => {
                observe::credentials_not_renewed(&front.acquired.principal, &failure);
                let now = self.now();
                front.renew_at = now + renewal(front.expires_at.saturating_duration_since(now));
                Ok((front.clone(), true))
            }
            (Err(failure), _) => Err(failure.of_front()),
        }
    }
}

/// Returns how long a credential with this lifetime is used.
fn renewal(lifetime: Duration) -> Duration {
    // At least a second, because the library doesn't always have one that lives longer.
    (lifetime / 2).clamp(Duration::from_secs(1), RENEWAL)
}

/// Whether the KDC takes both for one principal, which Active Directory does with names in another case.
fn is_same(principal: &str, other: &str) -> bool {
    principal == other || principal.to_lowercase() == other.to_lowercase()
}

fn wrong_speaker(meant: &str, principal: &str) -> Failure {
    Failure::new(Reason::WrongSpeaker, format!("the credentials are those of {principal}, and {meant} is meant"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
