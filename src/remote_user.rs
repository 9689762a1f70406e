//! A layer that sends the signed-in user's name to the backend, in a header field that no client can set.
//!
//! [`RemoteUserLayer`] reads the user from the request's extensions, where the application has put it, and sets
//! `Remote-User`.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Extensions, HeaderName, HeaderValue, Request, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

pub use crate::reject::ResponseFuture;
use crate::{
    error::{Error, ErrorKind},
    headers::{is_token_byte, reserved::remove_folded, trailers::ForbiddenTrailers},
    identity::{CredentialsUser, RemoteUser},
    observe,
    service::FromRejection,
};

/// A layer that sends the signed-in user's name to the backend in `Remote-User`.
///
/// It belongs on the upstream side ([`upstream_layer`](crate::ReverseProxyLayer::upstream_layer)): hop-by-hop fields
/// have been removed there, so a client can't use `Connection` to strip the field. It's an ordinary tower layer and
/// works around any HTTP client whose error is `From<`[`Error`]`>`: the crate's own, and every one with a
/// [`BoxError`](axum_core::BoxError).
///
/// The layer removes the client's own field, whether a user is signed in or not, in every spelling that a server folds
/// into the same variable: `remote-user`, `Remote_User`, `remote.user`. Below a proxy of this crate, that holds for the
/// request's trailers, too, for every such layer and any upstream service. Without such a proxy around it, the layer
/// removes the field, and its name from `Trailer`, but doesn't see the body: an HTTP/2 client would send the caller's
/// trailers as they are.
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
/// # Switched by the configuration
///
/// Keep the layer, and let the configuration switch what [`from_extension`](Self::from_extension) returns. The layer
/// also removes what the client sent, so without it the client's own value of a [`header`](Self::header) other than
/// `Remote-User` can reach the backend:
///
/// ```
/// use tower_reverse_proxy::{RemoteUserLayer, ReverseProxyLayer};
///
/// # #[derive(Clone)]
/// # struct Session { user: Option<String> }
/// # let send_user = true;
/// let user = RemoteUserLayer::from_extension(move |session: &Session| session.user.clone().filter(|_| send_user));
/// let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(user.header("X-App-User"));
/// # let _ = legacy;
/// ```
///
/// With the default `Remote-User`, [`tower::util::option_layer`]`(want.then(RemoteUserLayer::new))` is as safe, because
/// the proxy removes that field from every request.
///
/// # Security
///
/// The backend must be reachable through the proxy only, because a client that reaches it directly can set any name.
///
/// A name that a header field can't represent (control characters, surrounding whitespace, an empty name) is refused
/// with 403 and an error in the log. It's never changed into another name. Names outside of ASCII are sent as UTF-8.
#[doc(alias = "X-Remote-User")]
#[doc(alias = "REMOTE_USER")]
#[doc(alias = "auth_request_set")]
#[derive(Clone)]
pub struct RemoteUserLayer {
    config: Arc<Config>,
}

#[derive(Clone)]
struct Config {
    header: HeaderName,
    required: bool,
    challenge: Option<HeaderValue>,
    user: Reader,
}

/// Reads the user from a request's extensions. `None` to use the [`RemoteUser`] that the application has inserted.
type Reader = Option<Arc<dyn Fn(&Extensions) -> Option<RemoteUser> + Send + Sync>>;

impl RemoteUserLayer {
    /// Takes the name from the request extension [`RemoteUser`].
    ///
    /// ```
    /// use axum::{Extension, Router};
    /// use tower_reverse_proxy::{RemoteUser, RemoteUserLayer, ReverseProxyLayer};
    ///
    /// let app: Router = Router::new()
    ///     .layer(ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(RemoteUserLayer::new()))
    ///     // In place of a middleware that signs users in: added later, it sees the request first.
    ///     .layer(Extension(RemoteUser::new("alice")));
    /// # let _ = app;
    /// ```
    #[must_use]
    pub fn new() -> Self {
        let header = HeaderName::from_static("remote-user");
        Self { config: Arc::new(Config { header, required: false, challenge: None, user: None }) }
    }

    /// Takes the name from a request extension of the application's own: a session, claims, the peer of a TLS
    /// connection.
    ///
    /// Without the extension, or when `user` returns `None`, no user is signed in. The name becomes the [`RemoteUser`]
    /// for the layers that follow, such as [`BasicAuthLayer::remote_user`](crate::BasicAuthLayer::remote_user).
    ///
    /// ```
    /// use tower_reverse_proxy::RemoteUserLayer;
    ///
    /// #[derive(Clone)]
    /// struct Claims {
    ///     sub: String,
    /// }
    ///
    /// let layer = RemoteUserLayer::from_extension(|claims: &Claims| Some(claims.sub.clone()));
    /// # let _ = layer;
    /// ```
    pub fn from_extension<T, U>(user: impl Fn(&T) -> Option<U> + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
        U: Into<RemoteUser>,
    {
        let mut layer = Self::new();
        let user = move |extensions: &Extensions| Some(user(extensions.get::<T>()?)?.into());
        Arc::make_mut(&mut layer.config).user = Some(Arc::new(user));
        layer
    }

    /// Sets the name of the field, as `&str` or [`HeaderName`]. Default: `Remote-User`.
    ///
    /// ```
    /// use tower_reverse_proxy::RemoteUserLayer;
    ///
    /// // Grafana's default for `[auth.proxy] header_name`.
    /// let layer = RemoteUserLayer::new().header("X-WEBAUTH-USER");
    /// # let _ = layer;
    /// ```
    ///
    /// # Security
    ///
    /// Only this layer removes a client's field of another name than `Remote-User`. A mount of the same backend without
    /// the layer forwards it, unless it's one of the
    /// [identity claims](crate::guide::identity#what-is-removed-from-the-clients-request) that the proxy removes.
    ///
    /// # Panics
    ///
    /// If it isn't the name of a header field (RFC 9110, section 5.1).
    #[must_use]
    #[track_caller]
    pub fn header(mut self, name: impl TryInto<HeaderName>) -> Self {
        let Ok(name) = name.try_into() else {
            panic!("invalid name of a header field: write letters, digits and hyphens, such as \"X-Remote-User\"")
        };
        Arc::make_mut(&mut self.config).header = name;
        self
    }

    /// Sets whether a request without a signed-in user is refused with 403, and not sent to the backend. Default:
    /// `false`, it's sent without the field.
    ///
    /// The status is 401 if there is a [`challenge`](Self::challenge), because a 401 has to carry one (RFC 9110,
    /// section 15.5.2).
    ///
    /// A browser sends a CORS preflight (`OPTIONS` with `Access-Control-Request-Method`) without credentials, so it's
    /// refused, too. A backend that is called from other origins needs a layer that answers preflights in front of this
    /// one, such as tower-http's `CorsLayer`, added to the router after the proxy.
    ///
    /// ```
    /// use tower_reverse_proxy::RemoteUserLayer;
    ///
    /// let layer = RemoteUserLayer::new().required(true);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn required(mut self, required: bool) -> Self {
        Arc::make_mut(&mut self.config).required = required;
        self
    }

    /// Sets the `WWW-Authenticate` of the response to a request without a signed-in user, which makes its status 401.
    /// Default: none, and 403. It applies only if a user is [`required`](Self::required).
    ///
    /// The application has to read the credentials that the challenge asks for; this layer reads none.
    ///
    /// ```
    /// use tower_reverse_proxy::RemoteUserLayer;
    ///
    /// let layer = RemoteUserLayer::new().required(true).challenge("Basic realm=\"front\", charset=\"UTF-8\"");
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
                "invalid challenge {challenge:?}: write a scheme and its parameters, such as \
                 \"Basic realm=\\\"front\\\"\""
            );
        };
        Arc::make_mut(&mut self.config).challenge = Some(value);
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
            .field("header", &self.config.header)
            .field("required", &self.config.required)
            .field("challenge", &self.config.challenge)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for RemoteUserLayer {
    type Service = SetRemoteUser<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SetRemoteUser { inner, layer: self.clone() }
    }
}

/// The service of a [`RemoteUserLayer`].
///
/// ```
/// use tower::Layer;
/// use tower_reverse_proxy::{Client, RemoteUserLayer, remote_user::SetRemoteUser};
///
/// # fn main() -> Result<(), tower_reverse_proxy::InvalidClient> {
/// let client: SetRemoteUser<Client> = RemoteUserLayer::new().layer("http://127.0.0.1:8000".try_into()?);
/// # let _ = client;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SetRemoteUser<S> {
    inner: S,
    layer: RemoteUserLayer,
}

impl<S, B> Service<Request<B>> for SetRemoteUser<S>
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
        match self.layer.config.apply(&mut request) {
            Ok(()) => ResponseFuture::calling(self.inner.call(request)),
            Err(error) => ResponseFuture::rejected(error),
        }
    }
}

/// The cause of a refused request whose credentials are for another user than `Remote-User`.
const WRONG_ORDER: &str = "a BasicAuthLayer has set the credentials of another user than this RemoteUserLayer. If it saw \
                           the request first, add the RemoteUserLayer last, or put it first into the ServiceBuilder. \
                           If it belongs to another upstream, which couldn't be reached, let both upstreams name the \
                           user alike, or put the layers around the balancer";

impl Config {
    fn apply<B>(&self, request: &mut Request<B>) -> Result<(), Error> {
        remove_folded(request.headers_mut(), &self.header);
        ForbiddenTrailers::add(request.extensions(), &self.header);
        if let Some(read) = &self.user {
            // The later layers act for the same user, or for none.
            match read(request.extensions()) {
                Some(user) => drop(request.extensions_mut().insert(user)),
                None => drop(request.extensions_mut().remove::<RemoteUser>()),
            }
            if let Some(CredentialsUser(user)) = request.extensions().get()
                && user.as_ref() != request.extensions().get::<RemoteUser>()
            {
                return Err(Error::rejected(StatusCode::INTERNAL_SERVER_ERROR, WRONG_ORDER));
            }
        }
        let Some(user) = request.extensions().get::<RemoteUser>() else {
            return if self.required { Err(self.sign_in_required()) } else { Ok(()) };
        };
        match user.to_field_value() {
            Some(value) => {
                request.headers_mut().insert(&self.header, value);
                Ok(())
            }
            None => {
                observe::unrepresentable_user(user.as_str(), &self.header);
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
