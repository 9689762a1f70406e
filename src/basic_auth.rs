//! Signs in to the backend with Basic credentials (RFC 7617).

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    error::ErrorKind,
    headers::identity::remove_every_spelling,
    identity::{RemoteUser, is_sayable},
    refuse::{RefusableBody, RefusableFuture},
};

/// A layer that sends Basic credentials to the backend, in place of the client's own `Authorization`.
///
/// Either fixed ones, or the signed-in user's name with one password for all: a backend that leaves the checking to the
/// front, as many did behind IIS.
///
/// It belongs on the upstream side ([`upstream_layer`](crate::ReverseProxyLayer::upstream_layer)), behind a
/// [`RemoteUserLayer`](crate::RemoteUserLayer) that reads the user. It's an ordinary tower layer and works around any HTTP
/// client.
///
/// ```
/// use tower_reverse_proxy::{BasicAuthLayer, RemoteUser, RemoteUserLayer, ReverseProxyLayer};
///
/// let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000")
///     .prefix("/legacy")
///     // The application inserts a `RemoteUser` into the request's extensions.
///     .upstream_layer(RemoteUserLayer::new())
///     .upstream_layer(BasicAuthLayer::remote_user("s3cret"));
/// # let _ = legacy;
/// ```
///
/// # Security
///
/// The client's `Authorization` is removed always, also when nobody is signed in. The value is marked
/// [sensitive](HeaderValue::set_sensitive); neither `Debug` nor the log shows it. Name and password are sent as UTF-8.
///
/// A name with a colon can't be said: the backend would read another name. Nor can one with control characters, outer
/// blanks, or nothing in it. Such a request is refused with 403 and an error in the log.
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
    /// # Panics
    ///
    /// If the name has a colon or is empty, or if either has control characters: Basic can't say them (RFC 7617,
    /// section 2).
    #[track_caller]
    pub fn new(user: &str, password: &str) -> Self {
        check_password(password);
        match credentials(user, password) {
            Some(value) => Self { credentials: Credentials::Fixed(value) },
            None => panic!(
                "invalid user name {user:?} for Basic credentials: write one without colon, control characters and outer blanks"
            ),
        }
    }

    /// Sends the name of the [`RemoteUser`] in the request's extensions, with this password for everybody.
    ///
    /// # Panics
    ///
    /// If the password has control characters: Basic can't say them (RFC 7617, section 2).
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
#[derive(Clone, Debug)]
pub struct BasicAuth<S> {
    inner: S,
    layer: BasicAuthLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for BasicAuth<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Response = Response<RefusableBody<ResBody>>;
    type Error = S::Error;
    type Future = RefusableFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        match self.layer.credentials.apply(&mut request) {
            Ok(()) => RefusableFuture::calling(self.inner.call(request)),
            Err(kind) => RefusableFuture::refused(kind),
        }
    }
}

impl Credentials {
    fn apply<B>(&self, request: &mut Request<B>) -> Result<(), ErrorKind> {
        remove_every_spelling(request.headers_mut(), &AUTHORIZATION);
        let value = match self {
            Self::Fixed(value) => value.clone(),
            Self::RemoteUser { password } => {
                let Some(user) = request.extensions().get::<RemoteUser>() else { return Ok(()) };
                credentials(user.as_str(), password).ok_or_else(|| {
                    tracing::error!(
                        target: "tower_reverse_proxy",
                        user = ?user.as_str(),
                        "a user name that can't be said in Basic credentials: the request is refused"
                    );
                    ErrorKind::UnrepresentableUser
                })?
            }
        };
        request.headers_mut().insert(AUTHORIZATION, value);
        Ok(())
    }
}

/// The value of `Authorization`; `None` for a name that Basic can't say.
fn credentials(user: &str, password: &str) -> Option<HeaderValue> {
    if user.contains(':') || !is_sayable(user) {
        return None;
    }
    let mut value =
        HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode([user, ":", password].concat()))).ok()?;
    value.set_sensitive(true);
    Some(value)
}
