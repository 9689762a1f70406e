//! Where credentials come from, and what they are.

use std::{cell::Cell, fmt, future::Future};

use axum_core::BoxError;
use http::{Extensions, HeaderMap, HeaderValue, StatusCode, uri::Authority};

use crate::{
    error::{Error, ErrorKind},
    identity::{Owner, RemoteUser},
};

/// A source of credentials for the backend, for an [`AuthorizationLayer`](super::AuthorizationLayer).
///
/// The [module](crate::authorize) has an example. A clone of it shares its state, such as a cached token.
pub trait CredentialSource: Clone + Send + Sync + 'static {
    /// What the response to these credentials proves. `()` if it proves nothing, as with Basic and Bearer.
    type Proof: Proof;

    /// The future of the credentials. It owns what it needs of the [`Ask`], so that it can outlive the request's
    /// borrow.
    ///
    /// `Ok(None)` means that there are no credentials for this request, usually because no user is signed in. The
    /// request is sent without `Authorization`, or refused if they are
    /// [required](super::AuthorizationLayer::required). An error is returned by the layer's service. A source that
    /// can't get the credentials makes one with [`Error::rejected`].
    type Future: Future<Output = Result<Option<Credentials<Self::Proof>>, Error>> + Send + 'static;

    /// Returns the credentials for one attempt.
    ///
    /// It's called anew for every attempt: below a retry layer, a request that is sent again gets new credentials. A
    /// future that is ready at once costs one poll. If it's pending for longer than the layer's
    /// [deadline](super::AuthorizationLayer::deadline), it's dropped, as it is when the client disconnects.
    fn credentials(&self, ask: &Ask<'_>) -> Self::Future;
}

/// What a response proves about the backend, by the credentials that it responds to.
///
/// ```
/// use axum::http::{HeaderMap, StatusCode};
/// use tower_reverse_proxy::{Error, authorize::Proof};
///
/// /// The backend repeats a nonce that was sent with the credentials.
/// struct Nonce(String);
///
/// impl Proof for Nonce {
///     fn verify(self, response: &HeaderMap) -> Result<(), Error> {
///         match response.get("x-nonce") {
///             Some(nonce) if nonce == self.0.as_str() => Ok(()),
///             _ => Err(Error::rejected(StatusCode::BAD_GATEWAY, "the backend didn't repeat the nonce")),
///         }
///     }
/// }
///
/// assert!(Nonce("17".into()).verify(&HeaderMap::new()).is_err());
/// ```
pub trait Proof: Send + 'static {
    /// Verifies the head of a response, before the layer removes the challenges from it. It's called for responses of
    /// every status. It must not block.
    ///
    /// # Errors
    ///
    /// If the response isn't the one of the backend that the credentials were made for. It's dropped with its body
    /// unread, and the error is returned in its place.
    fn verify(self, response: &HeaderMap) -> Result<(), Error>;
}

/// Credentials that prove nothing about the backend.
impl Proof for () {
    fn verify(self, _: &HeaderMap) -> Result<(), Error> {
        Ok(())
    }
}

/// What a [`CredentialSource`] is asked: the request for which the credentials are.
#[non_exhaustive]
pub struct Ask<'a> {
    extensions: &'a Extensions,
    backend: Option<&'a Authority>,
    was_refused: bool,
    read_user: Cell<bool>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(extensions: &'a Extensions, backend: Option<&'a Authority>, was_refused: bool) -> Self {
        Self { extensions, backend, was_refused, read_user: Cell::new(false) }
    }

    /// Returns the signed-in user. `None` if no user is signed in.
    ///
    /// The layer records that the credentials are this user's. A [`RemoteUserLayer`](crate::RemoteUserLayer) that sees
    /// the request later and sets another user refuses it with 500, because the layers are in the wrong order.
    #[must_use]
    pub fn user(&self) -> Option<&'a RemoteUser> {
        self.read_user.set(true);
        self.extensions.get()
    }

    /// Returns the request's extensions, such as the application's session. Read the user by [`user`](Self::user), for
    /// the check of the layers' order.
    #[must_use]
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }

    /// Returns the authority of the backend, from the URI that [`Upstream`](crate::Upstream) has set. `None` if the URI
    /// has none, because the layer is around another client.
    ///
    /// It's the configured one. The client can't choose it: it isn't read from `Host`.
    #[must_use]
    pub fn backend(&self) -> Option<&'a Authority> {
        self.backend
    }

    /// Returns whether the backend has refused the last credentials of this layer with 401, so that a cached token
    /// should be replaced.
    ///
    /// After a refusal, it's `true` once. The refused credentials may be those of another request.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        self.was_refused
    }

    /// Whether the source has read the user.
    pub(super) fn has_read_user(&self) -> bool {
        self.read_user.get()
    }
}

impl fmt::Debug for Ask<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask")
            .field("backend", &self.backend)
            .field("was_refused", &self.was_refused)
            .finish_non_exhaustive()
    }
}

/// A value for `Authorization`, with what it means for the connection and for the response.
///
/// Its `Debug` doesn't show the value.
///
/// ```
/// use axum::http::HeaderValue;
/// use tower_reverse_proxy::authorize::Credentials;
///
/// let credentials = Credentials::of_front(HeaderValue::from_static("ApiKey s3cret"));
/// assert!(!format!("{credentials:?}").contains("s3cret"));
/// ```
pub struct Credentials<P = ()> {
    pub(super) authorization: HeaderValue,
    pub(super) party: Party,
    pub(super) owner: Owner,
    pub(super) proof: P,
}

/// The party that credentials identify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    Front,
    User,
}

impl Credentials {
    /// Creates credentials of the front itself: an account of its own at the backend.
    ///
    /// If the backend refuses them, the client gets 502 and the event has the level `ERROR`, because the configuration
    /// is wrong. The value is marked as [sensitive](HeaderValue::set_sensitive).
    ///
    /// ```
    /// use axum::http::HeaderValue;
    /// use tower_reverse_proxy::authorize::Credentials;
    ///
    /// let credentials = Credentials::of_front(HeaderValue::from_static("ApiKey s3cret"));
    /// # let _ = credentials;
    /// ```
    #[must_use]
    pub fn of_front(authorization: HeaderValue) -> Self {
        Self::new(authorization, Party::Front)
    }

    /// Creates credentials of the signed-in user.
    ///
    /// If the backend refuses them, the client gets 403 and the event has the level `WARN`, because the backend doesn't
    /// admit each user that the front knows. The value is marked as [sensitive](HeaderValue::set_sensitive).
    ///
    /// ```
    /// use axum::http::HeaderValue;
    /// use tower_reverse_proxy::authorize::Credentials;
    ///
    /// let credentials = Credentials::of_user(HeaderValue::from_static("ApiKey alice:s3cret"));
    /// # let _ = credentials;
    /// ```
    #[must_use]
    pub fn of_user(authorization: HeaderValue) -> Self {
        Self::new(authorization, Party::User)
    }

    fn new(mut authorization: HeaderValue, party: Party) -> Self {
        authorization.set_sensitive(true);
        Self { authorization, party, owner: Owner::Request, proof: () }
    }
}

/// The failure of a request whose user has no credentials for the backend. It's the user's: 403 and not 502.
pub(super) fn missing_for_user(cause: impl Into<BoxError>) -> Error {
    Error::with_status(ErrorKind::CredentialsMissing, StatusCode::FORBIDDEN, cause)
}

impl<P> Credentials<P> {
    /// Sets for whom the connection speaks once the credentials went over it. Default: [`Owner::Request`], they sign in
    /// this request only.
    ///
    /// ```
    /// use axum::http::HeaderValue;
    /// use tower_reverse_proxy::{Owner, authorize::Credentials};
    ///
    /// let credentials = Credentials::of_front(HeaderValue::from_static("Negotiate YIIGRg=="))
    ///     .owner(Owner::Principal("front@REALM.EXAMPLE".into()));
    /// # let _ = credentials;
    /// ```
    #[must_use]
    pub fn owner(mut self, owner: Owner) -> Self {
        self.owner = owner;
        self
    }

    /// Sets what the response has to prove. Default: nothing.
    ///
    /// ```
    /// use axum::http::{HeaderMap, HeaderValue};
    /// use tower_reverse_proxy::{Error, authorize::{Credentials, Proof}};
    ///
    /// struct Verified;
    ///
    /// impl Proof for Verified {
    ///     fn verify(self, _: &HeaderMap) -> Result<(), Error> {
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let credentials: Credentials<Verified> =
    ///     Credentials::of_front(HeaderValue::from_static("ApiKey s3cret")).proof(Verified);
    /// # let _ = credentials;
    /// ```
    #[must_use]
    pub fn proof<Q: Proof>(self, proof: Q) -> Credentials<Q> {
        Credentials { authorization: self.authorization, party: self.party, owner: self.owner, proof }
    }
}

impl<P> fmt::Debug for Credentials<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("party", &self.party).field("owner", &self.owner).finish_non_exhaustive()
    }
}
