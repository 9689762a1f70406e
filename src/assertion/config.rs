//! What a layer does with each request: the removal of the client's assertion, and the user's own, cached or signed.

use std::{sync::Arc, time::Duration};

use http::{Extensions, HeaderName, HeaderValue, Request, StatusCode, Uri, header::AUTHORIZATION};
use serde_json::Value;

use super::{
    cache::{Audience, Cache, Subject},
    claims::Claims,
    keys::{AssertionKeys, now},
};
use crate::{
    authority::without_userinfo,
    error::{Error, ErrorKind},
    headers::owned,
    identity::{CredentialsUser, RemoteUser},
    observe,
};

/// How far `iat` and `nbf` are in the past. Many verifiers refuse a token from the future without any leeway, and the
/// clock of the backend may be a little slow. Whole seconds are cut off, so a millisecond would already matter.
const BACKDATED: Duration = Duration::from_secs(5);

/// The configuration of an [`AssertionLayer`](super::AssertionLayer).
#[derive(Clone)]
pub(super) struct Config {
    pub(super) keys: AssertionKeys,
    /// As a JSON string.
    pub(super) issuer: String,
    pub(super) audience: Option<Box<str>>,
    pub(super) header: HeaderName,
    pub(super) lifetime: Duration,
    pub(super) claims: Vec<Describe>,
    pub(super) per_request: bool,
    pub(super) required: bool,
}

type Describe = Arc<dyn Fn(&Extensions, &mut Claims) + Send + Sync>;

/// The cause of a refused request whose backend the layer doesn't know.
const NO_BACKEND: &str = "an AssertionLayer doesn't know the backend, because the request's URI has no authority: put \
                          the layer around the client of an `Upstream`, or set `AssertionLayer::audience`, and leave \
                          `per_request` off";

impl Config {
    /// Removes the client's own assertion, and sets that of the user.
    pub(super) fn apply<B>(&self, cache: &Cache, request: &mut Request<B>) -> Result<(), Error> {
        owned::remove(request, &self.header);
        CredentialsUser::record(request.extensions_mut());
        let Some(user) = request.extensions().get::<RemoteUser>() else {
            return if self.required { Err(ErrorKind::SignInRequired.into()) } else { Ok(()) };
        };
        // A backend could take an empty `sub` for no user.
        if user.as_str().is_empty() {
            observe::unrepresentable_user(user.as_str(), &self.header);
            return Err(ErrorKind::UnrepresentableUser.into());
        }
        let audience = match &self.audience {
            Some(name) => Audience::Named(name),
            None => origin(request.uri()).ok_or_else(no_backend)?,
        };
        let mut claims = String::new();
        if !self.claims.is_empty() {
            let mut described = Claims::default();
            self.claims.iter().for_each(|describe| describe(request.extensions(), &mut described));
            claims = described.into_members();
        }
        let subject = Subject { user, audience, claims: &claims };
        let now = now();
        let token = if self.per_request {
            self.sign(subject, now, Some(request))?
        } else if let Some(token) = cache.get(subject, now, self.lifetime / 2) {
            token
        } else {
            let token = self.sign::<B>(subject, now, None)?;
            cache.insert(subject, now, token.clone());
            token
        };
        request.headers_mut().insert(&self.header, token);
        Ok(())
    }

    /// Signs a token, for all requests or for one.
    fn sign<B>(&self, subject: Subject<'_>, now: Duration, request: Option<&Request<B>>) -> Result<HeaderValue, Error> {
        let failed = |error| Error::rejected(StatusCode::INTERNAL_SERVER_ERROR, error);
        let key = self.keys.signing(now);
        let mut claims = format!(
            r#"{{"iss":{},"sub":{},"aud":{},"iat":{iat},"nbf":{iat},"exp":{}"#,
            self.issuer,
            json(subject.user.as_str()),
            json(&subject.audience.to_string()),
            // Rounded up, so that no token is valid for less than its lifetime.
            (now + self.lifetime).as_secs() + 1,
            iat = now.saturating_sub(BACKDATED).as_secs(),
        );
        if let Some(request) = request {
            let backend = origin(request.uri()).ok_or_else(no_backend)?;
            claims += &format!(
                r#","jti":"{}","htm":{},"htu":{}"#,
                key.random_id().map_err(failed)?,
                json(request.method().as_str()),
                json(&format!("{backend}{}", request.uri().path())),
            );
        }
        if !subject.claims.is_empty() {
            claims = claims + "," + subject.claims;
        }
        let mut token = key.sign((claims + "}").as_bytes()).map_err(failed)?;
        if self.header == AUTHORIZATION {
            token.insert_str(0, "Bearer ");
        }
        // Can't fail, because base64url and dots are visible characters.
        let mut token =
            HeaderValue::try_from(token).map_err(|error| Error::rejected(StatusCode::INTERNAL_SERVER_ERROR, error))?;
        token.set_sensitive(true);
        Ok(token)
    }
}

/// Returns the origin of the backend that a request is addressed to.
fn origin(uri: &Uri) -> Option<Audience<'_>> {
    Some(Audience::Origin { scheme: uri.scheme_str()?, authority: without_userinfo(uri.authority()?) })
}

fn no_backend() -> Error {
    Error::rejected(StatusCode::INTERNAL_SERVER_ERROR, NO_BACKEND)
}

/// Returns a text as a JSON string.
pub(super) fn json(text: &str) -> String {
    Value::from(text).to_string()
}
