//! Tells the backend who is signed in, by a field that no client can set.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Extensions, HeaderName, HeaderValue, Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    error::{Error, ErrorKind},
    headers::{identity::remove_every_spelling, is_token_byte, trailers::ForbiddenTrailers},
    identity::{RemoteUser, is_sayable},
    refuse::{RefusableBody, RefusableFuture},
};

/// A layer that tells the backend the signed-in user's name in `Remote-User`.
///
/// It belongs on the upstream side ([`upstream_layer`](crate::ReverseProxyLayer::upstream_layer)): there everything that the
/// client had to say of `Connection` is over, and nothing of it can undo the field. It's an ordinary tower layer and works
/// around any HTTP client.
///
/// The client's own copy is removed, signed in or not, in every spelling that a server folds into the same variable:
/// `remote-user`, `Remote_User`, `remote.user`. Below a proxy of this crate, that holds for the request's trailers too, of
/// every layer and whatever the upstream service is. Without such a proxy around it, the layer removes the field, and its
/// name from `Trailer`, but has no part in the body: an HTTP/2 client would send the caller's trailers as they are.
///
/// ```
/// use tower_reverse_proxy::{RemoteUserLayer, ReverseProxyLayer};
///
/// #[derive(Clone)]
/// struct Session {
///     user: Option<String>,
/// }
///
/// let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000")
///     .prefix("/legacy")
///     .upstream_layer(RemoteUserLayer::from_extension(|session: &Session| session.user.clone()));
/// # let _ = legacy;
/// ```
///
/// # Security
///
/// The backend has to be reachable through the proxy only: whoever else reaches it can say any name.
///
/// A name that a field can't say (control characters, outer blanks, none at all) is refused with 403 and an error in the
/// log. It is never bent into another name. Names outside of ASCII are sent as UTF-8.
#[derive(Clone)]
pub struct RemoteUserLayer {
    rules: Arc<Rules>,
}

#[derive(Clone)]
struct Rules {
    header: HeaderName,
    required: bool,
    challenge: Option<HeaderValue>,
    user: Reader,
}

/// Reads the user out of a request's extensions; `None`: the [`RemoteUser`] that is there.
type Reader = Option<Arc<dyn Fn(&Extensions) -> Option<RemoteUser> + Send + Sync>>;

impl RemoteUserLayer {
    /// Takes the name from the request extension [`RemoteUser`].
    pub fn new() -> Self {
        let header = HeaderName::from_static("remote-user");
        Self { rules: Arc::new(Rules { header, required: false, challenge: None, user: None }) }
    }

    /// Takes the name from a request extension of the application's: a session, claims, the peer of a TLS connection.
    ///
    /// Without the extension, or when `user` returns `None`, nobody is signed in. The name becomes the [`RemoteUser`] for
    /// what follows, such as [`BasicAuthLayer::remote_user`](crate::BasicAuthLayer::remote_user).
    pub fn from_extension<T, U>(user: impl Fn(&T) -> Option<U> + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
        U: Into<RemoteUser>,
    {
        let mut layer = Self::new();
        let user = move |extensions: &Extensions| Some(user(extensions.get::<T>()?)?.into());
        Arc::make_mut(&mut layer.rules).user = Some(Arc::new(user));
        layer
    }

    /// Sets the name of the field. Default: `Remote-User`.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        Arc::make_mut(&mut self.rules).header = name;
        self
    }

    /// Answers 403 when nobody is signed in, without asking the backend. Default: the request goes on without the field.
    ///
    /// The status is 401 if there is a [`challenge`](Self::challenge): an answer with 401 has to say how to sign in (RFC 9110,
    /// section 15.5.2).
    ///
    /// A browser sends a CORS preflight (`OPTIONS` with `Access-Control-Request-Method`) without credentials: nobody is signed
    /// in, and it is refused too. A backend that is called from other origins needs a layer that answers preflights in front of
    /// this one, such as tower-http's `CorsLayer`, added to the router after the proxy.
    #[must_use]
    pub fn required(mut self) -> Self {
        Arc::make_mut(&mut self.rules).required = true;
        self
    }

    /// Sets the `WWW-Authenticate` of the answer when nobody is signed in, which makes its status 401. Default: none, 403. It
    /// applies only if a user is [`required`](Self::required).
    ///
    /// The application has to read the credentials that it asks for; this layer reads none.
    ///
    /// ```
    /// use tower_reverse_proxy::RemoteUserLayer;
    ///
    /// let layer = RemoteUserLayer::new().required().challenge("Basic realm=\"front\", charset=\"UTF-8\"");
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// If it doesn't begin with a scheme, or has characters that a field can't have (RFC 9110, section 11.6.1).
    #[must_use]
    #[track_caller]
    pub fn challenge(mut self, challenge: &str) -> Self {
        let scheme = challenge.split(' ').next().unwrap_or_default();
        let value = HeaderValue::from_str(challenge).ok();
        let value =
            value.filter(|_| !scheme.is_empty() && scheme.bytes().all(is_token_byte) && !challenge.ends_with(' '));
        let Some(value) = value else {
            panic!(
                "invalid challenge {challenge:?}: write a scheme and its parameters, such as \"Basic realm=\\\"front\\\"\""
            );
        };
        Arc::make_mut(&mut self.rules).challenge = Some(value);
        self
    }
}

impl Default for RemoteUserLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RemoteUserLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteUserLayer")
            .field("header", &self.rules.header)
            .field("required", &self.rules.required)
            .field("challenge", &self.rules.challenge)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for RemoteUserLayer {
    type Service = RemoteUserService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RemoteUserService { inner, layer: self.clone() }
    }
}

/// The service of a [`RemoteUserLayer`].
#[derive(Clone, Debug)]
pub struct RemoteUserService<S> {
    inner: S,
    layer: RemoteUserLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RemoteUserService<S>
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
        match self.layer.rules.apply(&mut request) {
            Ok(()) => RefusableFuture::calling(self.inner.call(request)),
            Err(error) => RefusableFuture::refused(error),
        }
    }
}

impl Rules {
    fn apply<B>(&self, request: &mut Request<B>) -> Result<(), Error> {
        remove_every_spelling(request.headers_mut(), &self.header);
        ForbiddenTrailers::add(request.extensions(), &self.header);
        if let Some(read) = &self.user {
            // What follows has to speak of the same user, or of nobody.
            match read(request.extensions()) {
                Some(user) => drop(request.extensions_mut().insert(user)),
                None => drop(request.extensions_mut().remove::<RemoteUser>()),
            }
        }
        let Some(user) = request.extensions().get::<RemoteUser>() else {
            return if self.required { Err(self.sign_in_required()) } else { Ok(()) };
        };
        match HeaderValue::from_bytes(user.as_str().as_bytes()) {
            Ok(value) if is_sayable(user.as_str()) => {
                request.headers_mut().insert(&self.header, value);
                Ok(())
            }
            _ => {
                tracing::error!(
                    target: "tower_reverse_proxy",
                    user = ?user.as_str(),
                    header = %self.header,
                    "a user name that can't be said in a header field: the request is refused"
                );
                Err(ErrorKind::UnrepresentableUser.into())
            }
        }
    }

    fn sign_in_required(&self) -> Error {
        match &self.challenge {
            Some(challenge) => Error::with_challenge(ErrorKind::SignInRequired, challenge.clone()),
            None => ErrorKind::SignInRequired.into(),
        }
    }
}
