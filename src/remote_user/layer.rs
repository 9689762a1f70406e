//! The layer: where the user comes from.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use axum_core::BoxError;
use http::{HeaderName, request::Parts};

use super::{config::Config, encoding::Encoding, source::Source};
use crate::identity::RemoteUser;

/// A layer that sends the signed-in user's name to the backend in `Remote-User`.
///
/// It belongs on the upstream side ([`upstream_layer`](crate::ReverseProxyLayer::upstream_layer)): hop-by-hop fields
/// have been removed there, so a client can't use `Connection` to strip the field. It's an ordinary tower layer and
/// works around any HTTP client whose error is `From<`[`Error`](crate::Error)`>`: the crate's own, and every one with a
/// [`BoxError`](axum_core::BoxError).
///
/// The layer removes the client's own field, whether a user is signed in or not, in every spelling that a server folds
/// into the same variable: `remote-user`, `Remote_User`, `remote.user`. The same holds for further fields, which
/// [`also`](Self::also) and [`also_list`](Self::also_list) add. Below a proxy of this crate, that holds for the
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
/// # Where the user comes from
///
/// | the application has the user | constructor |
/// |---|---|
/// | in the extension [`RemoteUser`] | [`new`](Self::new) |
/// | in another extension: a session's user, claims, a peer's certificate | [`from_extension`](Self::from_extension) |
/// | behind a query: in a session's store | [`from_extension_async`](Self::from_extension_async) |
/// | in the request's head: a typed header field, several extensions | [`from_parts`](Self::from_parts) |
///
/// A closure that reads an extension gets none if it's missing. The first time, an event at warn level names its type,
/// because it has one of two causes that are otherwise hard to see: the layer that inserts the extension sees the
/// request after the proxy, or it's of another version of its crate, whose type has the same name. With
/// [`required(true)`](Self::required), such a request is refused.
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
/// with 403 and an error in the log. It's never changed into another name. Names outside of ASCII are sent as UTF-8, or
/// in another [`encoding`](Self::encoding).
#[doc(alias = "X-Remote-User")]
#[doc(alias = "REMOTE_USER")]
#[doc(alias = "auth_request_set")]
#[derive(Clone)]
pub struct RemoteUserLayer {
    pub(super) config: Arc<Config>,
}

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
        Self::with_source(Source::Inserted)
    }

    /// Takes the name from a request extension of the application's own: a session, claims, the peer of a TLS
    /// connection.
    ///
    /// Without the extension, or when `user` returns `None`, no user is signed in. The name becomes the [`RemoteUser`]
    /// for the layers that follow, such as [`BasicAuthLayer::remote_user`](crate::BasicAuthLayer::remote_user).
    ///
    /// The closure returns an owned name, such as a `String` or an `Arc<str>`. A name that is borrowed from the
    /// extension doesn't compile ("lifetime may not live long enough").
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
        Self::with_source(Source::extension(user))
    }

    /// Looks the user up with a clone of a request extension, such as the handle of a session in a database.
    ///
    /// Without the extension, or when the lookup returns `Ok(None)`, no user is signed in. When it returns an error,
    /// the request is refused with 503 ([`IdentityUnknown`](crate::ErrorKind::IdentityUnknown)) and the error in the
    /// log, also if no user is [`required`](Self::required), because an unknown user isn't the same as no user. The
    /// same happens after the [`deadline`](Self::deadline).
    ///
    /// The lookup boxes one future for each request. Where the application has the user already,
    /// [`from_extension`](Self::from_extension) has no such cost.
    ///
    /// ```
    /// use tower_reverse_proxy::RemoteUserLayer;
    /// use tower_sessions::Session;
    ///
    /// // The name that the application has inserted at sign-in.
    /// let layer = RemoteUserLayer::from_extension_async(|session: Session| async move {
    ///     session.get::<String>("user").await
    /// });
    /// # let _ = layer;
    /// ```
    ///
    /// # Cancel safety
    ///
    /// The lookup is dropped with the request, and after the deadline.
    #[doc(alias = "tower-sessions")]
    #[doc(alias = "session store")]
    pub fn from_extension_async<T, U, E, F>(user: impl Fn(T) -> F + Send + Sync + 'static) -> Self
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<Option<U>, E>> + Send + 'static,
        U: Into<RemoteUser>,
        E: Into<BoxError>,
    {
        Self::with_source(Source::lookup(user))
    }

    /// Takes the name from the head of the request: from a header field, or from several extensions.
    ///
    /// When `user` returns `None`, no user is signed in. The name becomes the [`RemoteUser`] for the layers that
    /// follow. The closure returns an owned name.
    ///
    /// The head is that of the request to the backend, without the fields that the proxy and this layer remove. A layer
    /// that replaces `Authorization` has to see the request after this one. With axum-extra's typed header fields,
    /// Basic credentials that the application checks itself:
    ///
    /// ```
    /// use axum::http::request::Parts;
    /// use axum_extra::headers::{Authorization, HeaderMapExt, authorization::Basic};
    /// use tower_reverse_proxy::RemoteUserLayer;
    ///
    /// let layer = RemoteUserLayer::from_parts(|parts: &Parts| {
    ///     let Authorization(basic) = parts.headers.typed_get::<Authorization<Basic>>()?;
    ///     is_right(basic.username(), basic.password()).then(|| basic.username().to_owned())
    /// });
    /// # let _ = layer;
    /// # fn is_right(_: &str, _: &str) -> bool { true }
    /// ```
    ///
    /// # Security
    ///
    /// A header field is what the client has sent, unless a trusted proxy in front sets it. The closure has to verify
    /// it.
    #[doc(alias = "TypedHeader")]
    pub fn from_parts<U>(user: impl Fn(&Parts) -> Option<U> + Send + Sync + 'static) -> Self
    where
        U: Into<RemoteUser>,
    {
        Self::with_source(Source::parts(user))
    }

    fn with_source(source: Source) -> Self {
        let config = Config {
            source,
            deadline: Duration::from_secs(10),
            header: HeaderName::from_static("remote-user"),
            encoding: Encoding::default(),
            map: None,
            also: Vec::new(),
            required: false,
            challenge: None,
        };
        Self { config: Arc::new(config) }
    }
}

impl Default for RemoteUserLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RemoteUserLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { header, encoding, also, required, challenge, .. } = &*self.config;
        let also: Vec<_> = also.iter().map(|field| &field.name).collect();
        f.debug_struct("RemoteUserLayer")
            .field("header", header)
            .field("encoding", encoding)
            .field("also", &also)
            .field("required", required)
            .field("challenge", challenge)
            .finish_non_exhaustive()
    }
}
