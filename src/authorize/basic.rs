//! Basic credentials (RFC 7617): fixed ones, or the signed-in user's name with a password.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use axum_core::BoxError;
use base64::{Engine, prelude::BASE64_STANDARD};
use http::HeaderValue;

use super::{Ask, AuthorizationLayer, CredentialSource, Credentials, CredentialsFuture, source::missing_for_user};
use crate::{
    error::{Error, ErrorKind},
    identity::{RemoteUser, is_representable},
    observe,
};

/// A layer that sends Basic credentials to the backend, in place of the client's own `Authorization`.
///
/// They are fixed ones, or the signed-in user's name: with one password for all users, for a backend that leaves the
/// checking to the front, or with a password for each user.
///
/// It belongs on the upstream side ([`upstream_layer`](crate::ReverseProxyLayer::upstream_layer)). It's an ordinary
/// tower layer and works around any HTTP client whose error is `From<`[`Error`]`>`.
///
/// [`remote_user`](Self::remote_user) reads the [`RemoteUser`] in the request's extensions. Where the application
/// inserts it, no [`RemoteUserLayer`](crate::RemoteUserLayer) is needed, and next to one the order doesn't matter. The
/// order matters with [`RemoteUserLayer::from_extension`](crate::RemoteUserLayer::from_extension), which makes the
/// `RemoteUser`: it has to see the request first, so it's added last, or stands first in a
/// [`ServiceBuilder`](tower::ServiceBuilder).
///
/// ```
/// use tower::ServiceBuilder;
/// use tower_reverse_proxy::{BasicAuthLayer, RemoteUserLayer, ReverseProxyLayer};
///
/// #[derive(Clone)]
/// struct Session {
///     user: Option<String>,
/// }
///
/// // From top to bottom: the user is read from the application's session, and then the credentials are set.
/// let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/legacy").upstream_layer(
///     ServiceBuilder::new()
///         .layer(RemoteUserLayer::from_extension(|session: &Session| session.user.clone()))
///         .layer(BasicAuthLayer::remote_user("s3cret")),
/// );
/// # let _ = legacy;
/// ```
///
/// What becomes of a 401 of the backend is an option of every [`AuthorizationLayer`]. By default, the client gets 502
/// if the credentials are fixed ones, and 403 otherwise: a browser would answer a 401 with a prompt for a password that
/// isn't the front's.
///
/// # Security
///
/// The client's `Authorization` is always removed, also when no user is signed in. The value is marked
/// [sensitive](HeaderValue::set_sensitive); neither `Debug` nor the log shows it. Name and password are sent as UTF-8.
///
/// In the wrong order, with a `RemoteUserLayer` behind this layer that sets another user, the request is refused with
/// 500.
///
/// A user name with a colon can't be encoded, because the backend would read another name. Nor can one with control
/// characters or surrounding whitespace, or an empty one. Such a request is refused with 403 and an error in the log.
#[doc(alias = "basicPwd")]
#[doc(alias = "Authorization")]
pub type BasicAuthLayer = AuthorizationLayer<Basic>;

/// The [`CredentialSource`] of a [`BasicAuthLayer`].
///
/// ```
/// use tower::Layer;
/// use tower_reverse_proxy::{BasicAuthLayer, Client, authorize::{Authorization, Basic}};
///
/// # fn main() -> Result<(), tower_reverse_proxy::InvalidClient> {
/// let client: Authorization<Basic, Client> =
///     BasicAuthLayer::new("front", "s3cret").layer("http://127.0.0.1:8000".try_into()?);
/// # let _ = client;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Basic {
    passwords: Passwords,
}

#[derive(Clone)]
enum Passwords {
    /// The whole value.
    Fixed(HeaderValue),
    ForAll(Arc<str>),
    OfEach(Lookup),
}

type Lookup =
    Arc<dyn Fn(RemoteUser) -> Pin<Box<dyn Future<Output = Result<Option<String>, BoxError>> + Send>> + Send + Sync>;

impl AuthorizationLayer<Basic> {
    /// Sends these credentials with every request.
    ///
    /// ```
    /// use tower_reverse_proxy::{BasicAuthLayer, ReverseProxyLayer};
    ///
    /// let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(BasicAuthLayer::new("front", "s3cret"));
    /// # let _ = legacy;
    /// ```
    ///
    /// # Panics
    ///
    /// If the name contains a colon or is empty, or if either contains control characters: Basic can't represent them
    /// (RFC 7617, section 2).
    #[track_caller]
    #[must_use]
    pub fn new(user: &str, password: &str) -> Self {
        check_password(password);
        match value(user, password) {
            Some(value) => Self::with_source(Basic { passwords: Passwords::Fixed(value) }),
            // Without the name, because `name:password` in its place is a likely mistake.
            None => panic!(
                "invalid user name for Basic credentials: write one without a colon, control characters and \
                 surrounding whitespace"
            ),
        }
    }

    /// Sends the name of the [`RemoteUser`] in the request's extensions, with this password for all users. Without a
    /// `RemoteUser`, it sends no credentials.
    ///
    /// ```
    /// use tower_reverse_proxy::BasicAuthLayer;
    ///
    /// let layer = BasicAuthLayer::remote_user("s3cret");
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// If the password contains control characters: Basic can't represent them (RFC 7617, section 2).
    #[track_caller]
    pub fn remote_user(password: impl Into<Arc<str>>) -> Self {
        let password = password.into();
        check_password(&password);
        Self::with_source(Basic { passwords: Passwords::ForAll(password) })
    }

    /// Sends the name of the [`RemoteUser`] in the request's extensions, with the password that `password` returns for
    /// this user, such as one from a vault. Without a `RemoteUser`, it sends no credentials.
    ///
    /// If it returns `None`, or a password that Basic can't represent, the client gets 403
    /// ([`CredentialsMissing`](ErrorKind::CredentialsMissing)); if it fails, 503
    /// ([`IdentityUnknown`](ErrorKind::IdentityUnknown)), and the log has the error. After the
    /// [`deadline`](Self::deadline) of 10 s, the client gets 504. In none of these cases anything is sent to the
    /// backend.
    ///
    /// It's called for every attempt. A cache, and a limit on concurrent lookups, are part of the closure.
    ///
    /// ```
    /// use std::{collections::HashMap, io, sync::Arc};
    ///
    /// use tower_reverse_proxy::BasicAuthLayer;
    ///
    /// let vault = Arc::new(HashMap::from([("alice".to_owned(), "s3cret".to_owned())]));
    /// let layer = BasicAuthLayer::passwords(move |user| {
    ///     let vault = vault.clone();
    ///     async move { Ok::<_, io::Error>(vault.get(user.as_str()).cloned()) }
    /// });
    /// # let _ = layer;
    /// ```
    ///
    /// # Security
    ///
    /// The error's text is logged, so it must not contain the password.
    pub fn passwords<F, E>(password: impl Fn(RemoteUser) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Option<String>, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let lookup: Lookup = Arc::new(move |user| {
            let password = password(user);
            Box::pin(async move { password.await.map_err(Into::into) })
        });
        Self::with_source(Basic { passwords: Passwords::OfEach(lookup) })
    }
}

#[track_caller]
fn check_password(password: &str) {
    assert!(is_password(password), "invalid password for Basic credentials: write one without control characters");
}

fn is_password(password: &str) -> bool {
    !password.contains(char::is_control)
}

impl CredentialSource for Basic {
    type Proof = ();
    type Future = CredentialsFuture;

    fn credentials(&self, ask: &Ask<'_>) -> Self::Future {
        let user = || ask.user();
        match &self.passwords {
            Passwords::Fixed(value) => CredentialsFuture::ready(Ok(Some(Credentials::of_front(value.clone())))),
            Passwords::ForAll(password) => {
                CredentialsFuture::ready(user().map(|user| of_user(user.as_str(), password)).transpose())
            }
            Passwords::OfEach(lookup) => {
                let Some(user) = user().cloned() else { return CredentialsFuture::ready(Ok(None)) };
                // A name that can't be sent isn't looked up.
                if let Err(error) = of_user(user.as_str(), "") {
                    return CredentialsFuture::ready(Err(error));
                }
                let password = lookup(user.clone());
                CredentialsFuture::pending(async move {
                    let unknown = |error| Error::with_source(ErrorKind::IdentityUnknown, error);
                    match password.await.map_err(unknown)? {
                        Some(password) if is_password(&password) => of_user(user.as_str(), &password).map(Some),
                        Some(_) => {
                            Err(missing_for_user("the user's password can't be represented in Basic credentials"))
                        }
                        None => Err(missing_for_user("the application has no password for the user")),
                    }
                })
            }
        }
    }
}

fn of_user(user: &str, password: &str) -> Result<Credentials, Error> {
    value(user, password).map(Credentials::of_user).ok_or_else(|| {
        observe::unrepresentable_in_basic(user);
        ErrorKind::UnrepresentableUser.into()
    })
}

/// Returns the value of `Authorization`. `None` for a name that Basic can't represent.
fn value(user: &str, password: &str) -> Option<HeaderValue> {
    if user.contains(':') || !is_representable(user) {
        return None;
    }
    let mut value =
        HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode([user, ":", password].concat()))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for Basic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Basic").finish_non_exhaustive()
    }
}
