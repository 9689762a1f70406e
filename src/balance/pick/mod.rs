//! How a member is picked for a request.

mod consistent;
mod hash;
mod maglev;
mod round_robin;

use std::{fmt, mem, sync::Arc};

use axum_core::body::Body;
use http::{Request, request::Parts};

pub use self::hash::stable_hash;
pub(super) use self::{
    consistent::{ConsistentHash, HashedMember},
    round_robin::Turns,
};
use crate::identity::RemoteUser;

/// How a member is picked for a request. Default: [`LeastRequests`](Self::LeastRequests).
///
/// ```
/// use tower_reverse_proxy::{Backends, balance::Pick};
///
/// # fn main() -> Result<(), tower_reverse_proxy::balance::InvalidBackends> {
/// let backends = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
///     .pick(Pick::RoundRobin)
///     .build()?;
/// # let _ = backends;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[doc(alias("lb_policy", "balance", "load balancing policy", "least_conn", "leastconn", "random", "p2c"))]
pub enum Pick {
    /// Picks the member with the fewest requests in flight for its weight, of up to five that are drawn.
    ///
    /// A request is in flight to the end of its response's body, or of its tunnel. A recent failure counts as load, so
    /// that a member which fails fast doesn't attract requests. Among members with equally many requests, one that
    /// is much slower than another comes after it.
    #[default]
    LeastRequests,
    /// Picks each member in turn, smoothly by weight: with the weights 2, 1 and 1, the first, the second, the first,
    /// the third.
    ///
    /// It's for members whose requests all take the same time. Slow members get as many requests as fast ones, and so
    /// their requests pile up.
    #[doc(alias("round_robin", "roundrobin", "rr", "wrr"))]
    RoundRobin,
    /// Picks the member that a key of the request belongs to: see [`hash_by_path`](Self::hash_by_path),
    /// [`hash_by_user`](Self::hash_by_user) and [`hash`](Self::hash).
    #[doc(alias("ip_hash", "uri hash", "ring_hash", "maglev", "ketama", "consistent hashing", "rendezvous"))]
    Hash(RequestKey),
}

/// # Hashes
///
/// Each key belongs to one member, in every replica of the application that has the same members. If a member is out,
/// its keys move to all the others, and return with it; the other keys stay. Requests without a key go to
/// the member with the fewest requests.
///
/// A member that has more than 1.25 times the average of the requests in flight hands its keys on, so that one popular
/// key doesn't overload it. A key whose requests come one at a time therefore never moves, and one whose requests come
/// at once may. Where every request of a user has to reach the same member, use [`Sticky`](super::Sticky) instead.
///
/// Up to 64 members, a key belongs to a member by weighted rendezvous hashing; above, by a Maglev table. With the
/// table, a change of the set moves about one key in a hundred more than it has to.
impl Pick {
    /// Picks by the path of the request, without the query: each page is in the cache of one member only.
    ///
    /// It's the path that the backend gets, byte for byte. `/a` and `/%61` are two keys.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::Pick};
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::balance::InvalidBackends> {
    /// let members = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"];
    /// let backends = Backends::builder(members).pick(Pick::hash_by_path()).build()?;
    /// # let _ = backends;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn hash_by_path() -> Self {
        Self::Hash(RequestKey(Key::Path))
    }

    /// Picks by the signed-in user, which is the extension [`RemoteUser`]: what a backend caches of a user is at one
    /// member only. Requests without it go to the member with the fewest requests.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::Pick};
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::balance::InvalidBackends> {
    /// let members = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"];
    /// let backends = Backends::builder(members).pick(Pick::hash_by_user()).build()?;
    /// # let _ = backends;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn hash_by_user() -> Self {
        Self::Hash(RequestKey(Key::User))
    }

    /// Picks by a key that a closure finds in the request's head, such as a tenant. Requests without one go to the
    /// member with the fewest requests.
    ///
    /// Replicas of the application agree if their closures do: see [`stable_hash`].
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::{Pick, stable_hash}};
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::balance::InvalidBackends> {
    /// let members = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"];
    /// let by_tenant = Pick::hash(|parts| parts.headers.get("x-tenant").map(stable_hash));
    /// let backends = Backends::builder(members).pick(by_tenant).build()?;
    /// # let _ = backends;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn hash(key: impl Fn(&Parts) -> Option<u64> + Send + Sync + 'static) -> Self {
        Self::Hash(RequestKey(Key::By(KeyFn::new(key))))
    }
}

/// What [`Pick::Hash`] finds in a request: its path, its user, or the result of a closure.
#[derive(Clone, Debug)]
pub struct RequestKey(Key);

#[derive(Clone, Debug)]
enum Key {
    Path,
    User,
    By(KeyFn),
}

impl RequestKey {
    pub(super) fn of(&self, request: &mut Request<Body>) -> Option<u64> {
        match &self.0 {
            Key::Path => Some(stable_hash(request.uri().path())),
            Key::User => request.extensions().get::<RemoteUser>().map(|user| stable_hash(user.as_str())),
            Key::By(key) => key.of(request),
        }
    }
}

/// A closure that finds a key in the head of a request.
#[derive(Clone)]
pub(super) struct KeyFn(Arc<FindKey>);

type FindKey = dyn Fn(&Parts) -> Option<u64> + Send + Sync;

impl KeyFn {
    pub(super) fn new(find: impl Fn(&Parts) -> Option<u64> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }

    pub(super) fn of(&self, request: &mut Request<Body>) -> Option<u64> {
        let (parts, body) = mem::take(request).into_parts();
        let key = (self.0)(&parts);
        *request = Request::from_parts(parts, body);
        key
    }
}

impl fmt::Debug for KeyFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFn").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pick: &Pick, request: &mut Request<Body>) -> Option<u64> {
        let Pick::Hash(key) = pick else { panic!("{pick:?} has no key") };
        key.of(request)
    }

    #[test]
    fn the_key_is_the_path_without_the_query() {
        let of = |uri: &str| key(&Pick::hash_by_path(), &mut Request::get(uri).body(Body::empty()).unwrap());
        assert_eq!(of("/app/x?a=1"), Some(stable_hash("/app/x")));
        assert_eq!(of("http://front.example/app/x"), of("/app/x"));
        assert_ne!(of("/app/x/"), of("/app/x"));
    }

    #[test]
    fn the_key_is_the_signed_in_user() {
        let mut request = Request::new(Body::empty());
        assert_eq!(key(&Pick::hash_by_user(), &mut request), None);
        request.extensions_mut().insert(RemoteUser::new("alice"));
        assert_eq!(key(&Pick::hash_by_user(), &mut request), Some(stable_hash("alice")));
    }

    #[test]
    fn a_closure_reads_the_head_and_the_request_stays() {
        let by_tenant = Pick::hash(|parts| parts.headers.get("x-tenant").map(stable_hash));
        let mut request = Request::post("/app").header("x-tenant", "7").body(Body::from("body")).unwrap();
        request.extensions_mut().insert(RemoteUser::new("alice"));
        assert_eq!(key(&by_tenant, &mut request), Some(stable_hash("7")));
        assert_eq!(http_body::Body::size_hint(request.body()).exact(), Some(4));
        assert_eq!((request.method().as_str(), request.uri().path(), request.headers().len()), ("POST", "/app", 1));
        assert!(request.extensions().get::<RemoteUser>().is_some());
        assert_eq!(key(&by_tenant, &mut Request::new(Body::empty())), None);
    }
}
