//! The layer that sends an assertion with each request.

use std::{fmt, sync::Arc, time::Duration};

use http::{Extensions, HeaderName};
use tower_layer::Layer;

use super::{
    Assertion,
    claims::Claims,
    config::{Config, json},
    keys::AssertionKeys,
};
use crate::{headers::owned, identity::ExpectedExtension};

/// A layer that sends a signed assertion of the signed-in user to the backend: a JWT (RFC 7519) that the backend can
/// verify with the keys at a [route](AssertionKeys::jwks) of the front.
///
/// It belongs on the upstream side ([`upstream_layer`](crate::ReverseProxyLayer::upstream_layer)). It's an ordinary
/// tower layer and works around any HTTP client whose error is `From<`[`Error`](crate::Error)`>`.
///
/// The user is the [`RemoteUser`](crate::RemoteUser) in the request's extensions. Where the application inserts it, no
/// [`RemoteUserLayer`](crate::RemoteUserLayer) is needed. Next to
/// [`RemoteUserLayer::from_extension`](crate::RemoteUserLayer::from_extension), which makes the `RemoteUser`, that one
/// has to see the request first, so it's added last, or stands first in a [`ServiceBuilder`](tower::ServiceBuilder). In
/// the wrong order, the request is refused with 500.
///
/// ```
/// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
/// use axum::Router;
/// use tower::ServiceBuilder;
/// use tower_reverse_proxy::{AssertionKeys, AssertionLayer, RemoteUserLayer, ReverseProxyLayer};
///
/// #[derive(Clone)]
/// struct Session {
///     user: Option<String>,
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pem = rcgen::KeyPair::generate()?.serialize_pem();
/// let keys = AssertionKeys::from_pem(pem)?;
/// let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/legacy").upstream_layer(
///     ServiceBuilder::new()
///         .layer(RemoteUserLayer::from_extension(|session: &Session| session.user.clone()))
///         .layer(AssertionLayer::new(keys.clone(), "https://front.example")),
/// );
/// let app: Router = Router::new().route_service("/.well-known/jwks.json", keys.jwks()).layer(legacy);
/// # let _ = app;
/// # Ok(())
/// # }
/// # main().unwrap();
/// # }
/// ```
///
/// # The token
///
/// | claim | value |
/// |---|---|
/// | `iss` | the issuer, as it is configured |
/// | `sub` | the user's name, unchanged |
/// | `aud` | the [audience](Self::audience): the origin of the configured backend, such as `http://127.0.0.1:8000` |
/// | `iat`, `nbf` | 5 s before it was signed, because many verifiers refuse a token of a clock that is a little ahead |
/// | `exp` | when its [lifetime](Self::lifetime) ends |
/// | `jti`, `htm`, `htu` | with [`per_request`](Self::per_request) only |
/// | others | of [`claims`](Self::claims) |
///
/// A token is used for the first half of its lifetime, for all requests of the same user to the same audience with the
/// same claims. Each one that the backend gets therefore is valid for the other half. About 2,000 tokens are kept, and
/// none of more than 8 KiB.
///
/// # Security
///
/// The client's own field is always removed, in every spelling that a server folds into the same variable, as a trailer
/// and also when no user is signed in. The token is marked [sensitive](http::HeaderValue::set_sensitive); neither `Debug`
/// nor the log shows it.
///
/// The backend has to verify the signature with one pinned algorithm (`ES256`, or `EdDSA`), `iss`, `aud` and `exp`, and
/// to refuse a request without a token. A backend that accepts a token for any audience accepts those for other
/// backends, which these could send to it. The audience is never taken from the client's request.
///
/// The clocks of front and backend have to agree within the 5 s and the leeway that the verifier has.
#[doc(alias("JWT", "JWS", "X-JWT-Assertion", "jwt assertion", "signed header"))]
#[derive(Clone)]
pub struct AssertionLayer {
    config: Arc<Config>,
}

impl AssertionLayer {
    /// Signs with `keys` as `issuer`, a name of the front that backends compare `iss` with, usually its URL.
    ///
    /// ```
    /// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
    /// use tower_reverse_proxy::{AssertionKeys, AssertionLayer};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
    /// let layer = AssertionLayer::new(keys, "https://front.example");
    /// # let _ = layer;
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If the issuer is empty.
    #[must_use]
    #[track_caller]
    pub fn new(keys: AssertionKeys, issuer: &str) -> Self {
        assert!(!issuer.is_empty(), "invalid issuer: write a name of the front, such as \"https://front.example\"");
        Self {
            config: Arc::new(Config {
                keys,
                issuer: json(issuer),
                audience: None,
                header: HeaderName::from_static("x-jwt-assertion"),
                lifetime: Duration::from_secs(120),
                claims: Vec::new(),
                per_request: false,
                required: false,
            }),
        }
    }

    /// Sets the audience (`aud`), a name of the backend that it compares with. Default: the origin of the backend as
    /// it's configured, such as `http://127.0.0.1:8000` or `https://backend.example`.
    ///
    /// A backend at a Unix socket has the origin `http://localhost`, as any other one has. Therefore it should get an
    /// audience of its own.
    ///
    /// ```
    /// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
    /// use tower_reverse_proxy::{AssertionKeys, AssertionLayer};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
    /// let layer = AssertionLayer::new(keys, "https://front.example").audience("wiki");
    /// # let _ = layer;
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    ///
    /// # Security
    ///
    /// Two backends need two audiences. With the same one, each can send a user's token to the other.
    ///
    /// # Panics
    ///
    /// If it's empty.
    #[must_use]
    #[track_caller]
    pub fn audience(mut self, audience: &str) -> Self {
        assert!(!audience.is_empty(), "invalid audience: write a name of the backend, such as \"wiki\"");
        self.config_mut().audience = Some(audience.into());
        self
    }

    /// Sets the name of the field, as `&str` or [`HeaderName`]. Default: `X-JWT-Assertion`. Its value is the token
    /// alone.
    ///
    /// In `Authorization`, the token is a bearer token (RFC 6750, section 2.1), as resource servers of OAuth 2.0 read
    /// it.
    ///
    /// ```
    /// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
    /// use tower_reverse_proxy::{AssertionKeys, AssertionLayer};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
    /// let layer = AssertionLayer::new(keys, "https://front.example").header("X-Front-Assertion");
    /// # let _ = layer;
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't the name of a header field (RFC 9110, section 5.1), or is that of a field of the connection or the
    /// message, such as `Host` or `Content-Length`.
    #[must_use]
    #[track_caller]
    pub fn header(mut self, name: impl TryInto<HeaderName>) -> Self {
        self.config_mut().header = owned::field_name(name, "X-JWT-Assertion");
        self
    }

    /// Sets how long a token is valid, in whole seconds. Default: 120 s.
    ///
    /// A token is used for the first half of it. A request that waits in a queue of the backend for longer than the
    /// other half is refused there.
    ///
    /// ```
    /// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
    /// use std::time::Duration;
    /// use tower_reverse_proxy::{AssertionKeys, AssertionLayer};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
    /// let layer = AssertionLayer::new(keys, "https://front.example").lifetime(Duration::from_secs(600));
    /// # let _ = layer;
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If it's less than 1 s or more than a day. A user who signs out, or a key that is replaced, is valid at the
    /// backend until then.
    #[must_use]
    #[track_caller]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        let seconds = lifetime.as_secs();
        assert!(
            (1..=24 * 3600).contains(&seconds),
            "invalid lifetime of an assertion: write from one second to a day, such as `Duration::from_secs(120)`"
        );
        self.config_mut().lifetime = Duration::from_secs(seconds);
        self
    }

    /// Adds claims from a request extension of the application's own. Default: none. Called again, it adds others.
    ///
    /// Without the extension, `describe` isn't called, and the first such request of a signed-in user is an event at
    /// warn level, because the layer that inserts it may be in the wrong place. It's called for every request with a
    /// signed-in user, because a token with other claims is another token.
    ///
    /// ```
    /// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
    /// use tower_reverse_proxy::{AssertionKeys, AssertionLayer};
    ///
    /// #[derive(Clone)]
    /// struct Session {
    ///     email: String,
    ///     groups: Vec<String>,
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
    /// let layer = AssertionLayer::new(keys, "https://front.example").claims(|session: &Session, claims| {
    ///     claims.set("email", session.email.as_str());
    ///     claims.set("groups", session.groups.clone());
    /// });
    /// # let _ = layer;
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    #[must_use]
    pub fn claims<T>(mut self, describe: impl Fn(&T, &mut Claims) + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
    {
        let expected = ExpectedExtension::new();
        let describe = move |extensions: &Extensions, claims: &mut Claims| {
            if let Some(extension) = expected.find(extensions) {
                describe(extension, claims);
            }
        };
        self.config_mut().claims.push(Arc::new(describe));
        self
    }

    /// Sets whether each request gets a token of its own, bound to it. Default: `false`.
    ///
    /// The token has a random `jti`, the method in `htm`, and the URL at the backend without its query in `htu`, as in
    /// RFC 9449, section 4.2. A backend that compares them refuses a leaked token for another resource. The body isn't
    /// bound. Each request is signed, which takes about 20 µs.
    ///
    /// If the client repeats a request because a connection was closed, both attempts have the same token.
    ///
    /// ```
    /// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
    /// use tower_reverse_proxy::{AssertionKeys, AssertionLayer};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
    /// let layer = AssertionLayer::new(keys, "https://front.example").per_request(true);
    /// # let _ = layer;
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    #[must_use]
    pub fn per_request(mut self, per_request: bool) -> Self {
        self.config_mut().per_request = per_request;
        self
    }

    /// Sets whether a request without a signed-in user is refused with 403, and not sent to the backend. Default:
    /// `false`, it's sent without the field.
    ///
    /// ```
    /// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
    /// use tower_reverse_proxy::{AssertionKeys, AssertionLayer};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
    /// let layer = AssertionLayer::new(keys, "https://front.example").required(true);
    /// # let _ = layer;
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    #[must_use]
    pub fn required(mut self, required: bool) -> Self {
        self.config_mut().required = required;
        self
    }

    fn config_mut(&mut self) -> &mut Config {
        Arc::make_mut(&mut self.config)
    }
}

impl fmt::Debug for AssertionLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AssertionLayer")
            .field("keys", &self.config.keys)
            .field("issuer", &self.config.issuer)
            .field("audience", &self.config.audience)
            .field("header", &self.config.header)
            .field("lifetime", &self.config.lifetime)
            .field("per_request", &self.config.per_request)
            .field("required", &self.config.required)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for AssertionLayer {
    type Service = Assertion<S>;

    fn layer(&self, inner: S) -> Self::Service {
        self.config.keys.sign_for(self.config.lifetime);
        Assertion::new(inner, self.config.clone())
    }
}
