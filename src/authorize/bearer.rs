//! Bearer tokens (RFC 6750): a fixed one, the user's own, or one that is refreshed.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use axum_core::BoxError;
use http::{Extensions, HeaderValue};

use super::{
    Ask, AuthorizationLayer, CredentialSource, Credentials, CredentialsFuture,
    refresh::{Fetch, Refresher},
    source::missing_for_user,
};
use crate::identity::ExpectedExtension;

/// A layer that sends a bearer token to the backend, in place of the client's own `Authorization`.
///
/// ```
/// use tower_reverse_proxy::{BearerLayer, ReverseProxyLayer};
///
/// /// A request extension that the application's sign-in inserts.
/// #[derive(Clone)]
/// struct Session {
///     access_token: Option<String>,
/// }
///
/// // The user's own token, which the application got when the user signed in.
/// let api = ReverseProxyLayer::new("http://127.0.0.1:8000")
///     .upstream_layer(BearerLayer::from_extension(|session: &Session| session.access_token.clone()).required(true));
/// # let _ = api;
/// ```
///
/// What becomes of a 401 of the backend is an option of every [`AuthorizationLayer`]. By default, the client gets 502
/// for a token of the front, and 403 for one of a user.
///
/// # Security
///
/// The client's `Authorization` is always removed. Neither `Debug` nor errors nor events show a token. A token must
/// have the characters of RFC 6750, section 2.1, so that it can't become another field or parameter.
#[doc(alias("token", "OAuth", "access_token", "client_credentials", "api key"))]
pub type BearerLayer = AuthorizationLayer<Bearer>;

/// The [`CredentialSource`] of a [`BearerLayer`].
///
/// ```
/// use tower::Layer;
/// use tower_reverse_proxy::{BearerLayer, Client, authorize::{Authorization, Bearer}};
///
/// # fn main() -> Result<(), tower_reverse_proxy::InvalidClient> {
/// let client: Authorization<Bearer, Client> = BearerLayer::fixed("s3cret").layer("http://127.0.0.1:8000".try_into()?);
/// # let _ = client;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Bearer {
    tokens: Tokens,
}

#[derive(Clone)]
enum Tokens {
    /// The whole value.
    Fixed(HeaderValue),
    OfUser(Reader),
    Refreshing(Arc<Refresher>),
}

type Reader = Arc<dyn Fn(&Extensions) -> Option<String> + Send + Sync>;

/// A token with its life, as a server for tokens issues it (RFC 6749, section 5.1), for [`BearerLayer::refreshing`].
///
/// Its `Debug` doesn't show the token.
///
/// ```
/// use std::time::Duration;
/// use tower_reverse_proxy::authorize::Token;
///
/// let token = Token { value: "s3cret".to_owned(), expires_in: Duration::from_secs(3600) };
/// assert!(!format!("{token:?}").contains("s3cret"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token, without `Bearer`.
    pub value: String,
    /// How long the backend accepts it, from the time at which it was requested.
    pub expires_in: Duration,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

impl AuthorizationLayer<Bearer> {
    /// Sends this token of the front with every request.
    ///
    /// ```
    /// use tower_reverse_proxy::BearerLayer;
    ///
    /// let layer = BearerLayer::fixed("s3cret");
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't a token (RFC 6750, section 2.1): letters, digits and `-._~+/`, then any number of `=`.
    #[track_caller]
    #[must_use]
    pub fn fixed(token: &str) -> Self {
        match value(token) {
            Some(value) => Self::with_source(Bearer { tokens: Tokens::Fixed(value) }),
            // Without the token, which is a secret.
            None => panic!(
                "invalid bearer token: write it without \"Bearer\" and blanks, of letters, digits and \"-._~+/\", then \
                 any number of \"=\""
            ),
        }
    }

    /// Sends the token that `token` reads from a request extension of the application's own, such as the access token
    /// in the user's session.
    ///
    /// Without the extension, or if it returns `None`, no credentials are sent. The first request without the extension
    /// is an event at warn level, because the layer that inserts it may be in the wrong place. If it isn't a token (RFC
    /// 6750, section 2.1), the client gets 403 ([`CredentialsMissing`](crate::ErrorKind::CredentialsMissing)).
    ///
    /// ```
    /// use tower_reverse_proxy::BearerLayer;
    ///
    /// #[derive(Clone)]
    /// struct Session {
    ///     access_token: Option<String>,
    /// }
    ///
    /// let layer = BearerLayer::from_extension(|session: &Session| session.access_token.clone());
    /// # let _ = layer;
    /// ```
    pub fn from_extension<T>(token: impl Fn(&T) -> Option<String> + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
    {
        let expected = ExpectedExtension::new();
        let token = move |extensions: &Extensions| token(expected.find(extensions)?);
        Self::with_source(Bearer { tokens: Tokens::OfUser(Arc::new(token)) })
    }

    /// Sends a token of the front that `fetch` gets from a server for tokens, such as by the client credentials grant
    /// of OAuth (RFC 6749, section 4.4).
    ///
    /// - Requests without a token wait for one fetch, which they share.
    /// - After 80 % of the token's life, the next request starts a fetch in the background, and is sent with the old
    ///   token.
    /// - A token with a life of less than 1 s is sent for 1 s, so that not every request starts a fetch.
    /// - If the backend answers 401, the next request waits for a new token, unless the token is younger than 1 s.
    /// - A fetch runs in a task of its own: a request that is cancelled doesn't cancel it. It's given up after 30 s.
    /// - If a fetch fails, the old token is kept while it's valid. Without one, the client gets 502
    ///   ([`CredentialsMissing`](crate::ErrorKind::CredentialsMissing)). For 1 s, no further fetch is started. The log
    ///   has the error at the level `WARN`, once for each fetch.
    ///
    /// The clones of a layer share the token, and so do the services that it makes.
    ///
    /// ```
    /// use std::{io, time::Duration};
    ///
    /// use tower_reverse_proxy::{BearerLayer, authorize::Token};
    ///
    /// /// Asks the server for tokens, with an HTTP client of the application's own.
    /// async fn fetch() -> io::Result<Token> {
    ///     Ok(Token { value: "s3cret".to_owned(), expires_in: Duration::from_secs(3600) })
    /// }
    ///
    /// let layer = BearerLayer::refreshing(fetch);
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// The layer's service panics outside of a tokio runtime, as the client does.
    ///
    /// # Security
    ///
    /// The error's text is logged, so it must not contain a token or the client's secret.
    pub fn refreshing<F, E>(fetch: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Token, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let fetch = move || -> Fetch {
            let token = fetch();
            Box::pin(async move { token.await.map_err(Into::into) })
        };
        Self::with_source(Bearer { tokens: Tokens::Refreshing(Arc::new(Refresher::new(fetch))) })
    }
}

impl CredentialSource for Bearer {
    type Proof = ();
    type Future = CredentialsFuture;

    fn credentials(&self, ask: &Ask<'_>) -> Self::Future {
        match &self.tokens {
            Tokens::Fixed(value) => CredentialsFuture::ready(Ok(Some(Credentials::of_front(value.clone())))),
            Tokens::OfUser(read) => {
                let missing = || missing_for_user("the user's token has characters that a bearer token can't have");
                let token = read(ask.extensions());
                let credentials = token.map(|token| value(&token).map(Credentials::of_user).ok_or_else(missing));
                CredentialsFuture::ready(credentials.transpose())
            }
            Tokens::Refreshing(refresher) => Refresher::credentials(refresher, ask.was_refused()),
        }
    }
}

/// Returns the value of `Authorization`. `None` if it isn't a token (`b64token`, RFC 6750, section 2.1).
pub(super) fn value(token: &str) -> Option<HeaderValue> {
    let characters = token.trim_end_matches('=');
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b);
    if characters.is_empty() || !characters.bytes().all(is_token) {
        return None;
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bearer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_the_characters_of_rfc_6750() {
        for token in ["a", "mF_9.B5f-4.1JqM", "YWxpY2U=", "a==", "~+/", "0"] {
            assert_eq!(value(token).unwrap(), format!("Bearer {token}"));
            assert!(value(token).unwrap().is_sensitive());
        }
        for token in ["", "=", "a b", "Bearer a", "a=b", "a\r\nX: 1", "a,b", "ä", "a\0", " a", "a\"", "a:b"] {
            assert_eq!(value(token), None, "{token:?}");
        }
    }
}
