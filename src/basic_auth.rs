//! A layer that signs in to the backend with Basic credentials (RFC 7617).
//!
//! [`BasicAuthLayer`] replaces the client's `Authorization` by fixed credentials, or by the signed-in user's name with
//! one password for all users.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderValue, Request, header::AUTHORIZATION};
use tower_layer::Layer;
use tower_service::Service;

pub use crate::reject::ResponseFuture;
use crate::{
    error::ErrorKind,
    headers::reserved::remove_folded,
    identity::{CredentialsUser, RemoteUser, is_representable},
    observe,
    service::FromRejection,
};

/// A layer that sends Basic credentials to the backend, in place of the client's own `Authorization`.
///
/// They are fixed ones, or the signed-in user's name with one password for all users, for a backend that leaves the
/// checking to the front.
///
/// It belongs on the upstream side ([`upstream_layer`](crate::ReverseProxyLayer::upstream_layer)). It's an ordinary
/// tower layer and works around any HTTP client whose error is `From<`[`Error`](crate::Error)`>`.
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
#[derive(Clone)]
pub struct BasicAuthLayer {
    credentials: Credentials,
}

#[derive(Clone)]
enum Credentials {
    Fixed(HeaderValue),
    RemoteUser { password: Arc<str> },
}

impl BasicAuthLayer {
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
        match credentials(user, password) {
            Some(value) => Self { credentials: Credentials::Fixed(value) },
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
        Self { credentials: Credentials::RemoteUser { password } }
    }
}

#[track_caller]
fn check_password(password: &str) {
    assert!(
        !password.contains(char::is_control),
        "invalid password for Basic credentials: write one without control characters"
    );
}

impl fmt::Debug for BasicAuthLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicAuthLayer").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for BasicAuthLayer {
    type Service = BasicAuth<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BasicAuth { inner, layer: self.clone() }
    }
}

/// The service of a [`BasicAuthLayer`].
///
/// ```
/// use tower::Layer;
/// use tower_reverse_proxy::{BasicAuthLayer, Client, basic_auth::BasicAuth};
///
/// # fn main() -> Result<(), tower_reverse_proxy::InvalidClient> {
/// let client: BasicAuth<Client> = BasicAuthLayer::new("front", "s3cret").layer("http://127.0.0.1:8000".try_into()?);
/// # let _ = client;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BasicAuth<S> {
    inner: S,
    layer: BasicAuthLayer,
}

impl<S, B> Service<Request<B>> for BasicAuth<S>
where
    S: Service<Request<B>, Error: FromRejection>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.layer.credentials.apply(&mut request) {
            Ok(()) => ResponseFuture::calling(self.inner.call(request)),
            Err(kind) => ResponseFuture::rejected(kind.into()),
        }
    }
}

impl Credentials {
    fn apply<B>(&self, request: &mut Request<B>) -> Result<(), ErrorKind> {
        remove_folded(request.headers_mut(), &AUTHORIZATION);
        let value = match self {
            Self::Fixed(value) => value.clone(),
            Self::RemoteUser { password } => {
                let user = request.extensions().get::<RemoteUser>().cloned();
                request.extensions_mut().insert(CredentialsUser(user.clone()));
                let Some(user) = user else { return Ok(()) };
                credentials(user.as_str(), password).ok_or_else(|| {
                    observe::unrepresentable_in_basic(user.as_str());
                    ErrorKind::UnrepresentableUser
                })?
            }
        };
        request.headers_mut().insert(AUTHORIZATION, value);
        Ok(())
    }
}

/// Returns the value of `Authorization`. `None` for a name that Basic can't represent.
fn credentials(user: &str, password: &str) -> Option<HeaderValue> {
    if user.contains(':') || !is_representable(user) {
        return None;
    }
    let mut value =
        HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode([user, ":", password].concat()))).ok()?;
    value.set_sensitive(true);
    Some(value)
}
