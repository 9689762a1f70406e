//! The options of the layer.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};

use super::{
    config::Config,
    encoding::Encoding,
    field::{Field, is_separator},
    layer::RemoteUserLayer,
};
use crate::{
    headers::{is_token_byte, owned},
    identity::RemoteUser,
};

/// A name that the panics show.
const EXAMPLE: &str = "X-Remote-User";

impl RemoteUserLayer {
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
    /// If it isn't the name of a header field (RFC 9110, section 5.1), or is that of a field of the connection or the
    /// message, such as `Host` or `Content-Length`, or if the layer has another field of this name.
    #[must_use]
    #[track_caller]
    pub fn header(mut self, name: impl TryInto<HeaderName>) -> Self {
        self.config_mut().header = owned::field_name(name, EXAMPLE);
        self.with_distinct_names()
    }

    /// Sets how the names are written, and further fields without an [encoding of their own](Self::encoding_of). Default:
    /// [`Encoding::Utf8`].
    ///
    /// ```
    /// use tower_reverse_proxy::{RemoteUserLayer, remote_user::Encoding};
    ///
    /// // For a backend that decodes RFC 2047: `jörg` becomes `=?UTF-8?Q?j=C3=B6rg?=`.
    /// let layer = RemoteUserLayer::new().encoding(Encoding::Rfc2047);
    /// # let _ = layer;
    /// ```
    #[doc(alias = "UTF-8")]
    #[doc(alias = "umlaut")]
    #[must_use]
    pub fn encoding(mut self, encoding: Encoding) -> Self {
        self.config_mut().encoding = encoding;
        self
    }

    /// Sets how one of the further fields is written. Default: the layer's [`encoding`](Self::encoding).
    ///
    /// ```
    /// use tower_reverse_proxy::{RemoteUserLayer, remote_user::Encoding};
    ///
    /// # #[derive(Clone)]
    /// # struct Claims { sub: String, name: String }
    /// // The backend decodes the display name, and nothing else.
    /// let layer = RemoteUserLayer::from_extension(|claims: &Claims| Some(claims.sub.clone()))
    ///     .also("X-Display-Name", |claims: &Claims| Some(claims.name.clone()))
    ///     .encoding_of("X-Display-Name", Encoding::Base64);
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// If the layer has no such field yet: it's added by [`also`](Self::also) or [`also_list`](Self::also_list) first.
    #[must_use]
    #[track_caller]
    pub fn encoding_of(mut self, name: impl TryInto<HeaderName>, encoding: Encoding) -> Self {
        let name = owned::field_name(name, EXAMPLE);
        let Some(field) = self.config_mut().also.iter_mut().find(|field| field.name == name) else {
            panic!("no field {name} in the layer: add it before, by `also` or `also_list`")
        };
        field.encoding = Some(encoding);
        self
    }

    /// Sets which name the field has for a user. Default: the user's own.
    ///
    /// The [`RemoteUser`] stays as it is, for other layers and for `map` itself. `None` refuses the request with 403
    /// ([`UnrepresentableUser`](crate::ErrorKind::UnrepresentableUser)) and an event at error level. It never means
    /// that no user is signed in.
    ///
    /// ```
    /// use tower_reverse_proxy::{RemoteUser, RemoteUserLayer};
    ///
    /// // The backend knows `CORP\alice` as `alice`, and no users of other domains.
    /// let layer = RemoteUserLayer::new().map(|user| user.as_str().strip_prefix("CORP\\").map(str::to_owned));
    /// # let _ = layer;
    /// ```
    ///
    /// # Security
    ///
    /// Two users that are mapped to one name are one user for the backend.
    #[must_use]
    pub fn map(mut self, name: impl Fn(&RemoteUser) -> Option<String> + Send + Sync + 'static) -> Self {
        self.config_mut().map = Some(Arc::new(name));
        self
    }

    /// Adds a field that is sent along with a user: a mail address, a display name, a role.
    ///
    /// The value is read from a request extension. The field isn't sent without a user, without the extension, or when
    /// `value` returns `None`. A value that the field can't represent, an empty one included, refuses the request with
    /// 403 ([`UnrepresentableUser`](crate::ErrorKind::UnrepresentableUser)) and an event at error level. The value has
    /// the layer's [`encoding`](Self::encoding).
    ///
    /// As with the user's field, the client's own is always removed.
    ///
    /// ```
    /// use tower_reverse_proxy::RemoteUserLayer;
    ///
    /// #[derive(Clone)]
    /// struct Claims {
    ///     sub: String,
    ///     email: Option<String>,
    /// }
    ///
    /// let layer = RemoteUserLayer::from_extension(|claims: &Claims| Some(claims.sub.clone()))
    ///     .also("Remote-Email", |claims: &Claims| claims.email.clone());
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't the name of a header field (RFC 9110, section 5.1), or is that of a field of the connection or the
    /// message, such as `Host` or `Content-Length`, or if the layer has another field of this name.
    #[doc(alias = "Remote-Email")]
    #[doc(alias = "Remote-Name")]
    #[must_use]
    #[track_caller]
    pub fn also<T>(
        mut self,
        name: impl TryInto<HeaderName>,
        value: impl Fn(&T) -> Option<String> + Send + Sync + 'static,
    ) -> Self
    where
        T: Send + Sync + 'static,
    {
        let field = Field::value(owned::field_name(name, EXAMPLE), value);
        self.config_mut().also.push(field);
        self.with_distinct_names()
    }

    /// Adds a field with a list that is sent along with a user: groups, roles.
    ///
    /// It's as [`also`](Self::also), with the members joined by `separator`, without blanks around it. The field isn't
    /// sent if there are none. A member that contains the separator refuses the request, because a group named
    /// `dev,admin` isn't the groups `dev` and `admin`. So does one that is empty, or has control characters or
    /// surrounding whitespace. The [encoding](Self::encoding_of) is applied to each member.
    ///
    /// ```
    /// use tower_reverse_proxy::RemoteUserLayer;
    ///
    /// #[derive(Clone)]
    /// struct Claims {
    ///     sub: String,
    ///     groups: Vec<String>,
    /// }
    ///
    /// // `Remote-Groups: staff,editors`. Jenkins separates them by `|`.
    /// let layer = RemoteUserLayer::from_extension(|claims: &Claims| Some(claims.sub.clone()))
    ///     .also_list("Remote-Groups", ',', |claims: &Claims| claims.groups.clone());
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't the name of a header field (RFC 9110, section 5.1), or is that of a field of the connection or the
    /// message, such as `Host` or `Content-Length`, or if the layer has another field of this name.
    /// If the separator isn't a punctuation mark of ASCII, or one of `%+-/=?`, which encodings insert.
    #[doc(alias = "Remote-Groups")]
    #[doc(alias = "roles")]
    #[must_use]
    #[track_caller]
    pub fn also_list<T>(
        mut self,
        name: impl TryInto<HeaderName>,
        separator: char,
        members: impl Fn(&T) -> Vec<String> + Send + Sync + 'static,
    ) -> Self
    where
        T: Send + Sync + 'static,
    {
        assert!(
            is_separator(separator),
            "invalid separator {separator:?}: write a punctuation mark, such as ',' or '|'"
        );
        let field = Field::list(owned::field_name(name, EXAMPLE), separator, members);
        self.config_mut().also.push(field);
        self.with_distinct_names()
    }

    /// Sets whether a request without a signed-in user is refused with 403, and not sent to the backend. Default:
    /// `false`, it's sent without the field.
    ///
    /// The status is 401 if there is a [`challenge`](Self::challenge), because a 401 has to carry one (RFC 9110,
    /// section 15.5.2).
    ///
    /// A request without the extension that an [`also`](Self::also) field is read from is refused, too, with 503,
    /// because the value is unknown then.
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
        self.config_mut().required = required;
        self
    }

    /// Sets how long the lookup of [`from_extension_async`](Self::from_extension_async) may take. Default: 10 s. On
    /// expiry, the request is refused with 503 ([`IdentityUnknown`](crate::ErrorKind::IdentityUnknown)).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_reverse_proxy::RemoteUserLayer;
    ///
    /// # #[derive(Clone)]
    /// # struct Token;
    /// # async fn look_up(_: Token) -> Result<Option<String>, std::io::Error> { Ok(None) }
    /// let layer = RemoteUserLayer::from_extension_async(look_up).deadline(Duration::from_secs(2));
    /// # let _: RemoteUserLayer = layer;
    /// ```
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.config_mut().deadline = deadline;
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
        self.config_mut().challenge = Some(value);
        self
    }

    fn config_mut(&mut self) -> &mut Config {
        Arc::make_mut(&mut self.config)
    }

    #[track_caller]
    fn with_distinct_names(self) -> Self {
        assert!(!self.config.repeats_a_name(), "two fields of one name: give each field of the layer its own name");
        self
    }
}
