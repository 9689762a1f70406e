//! The route that publishes the keys.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
    time::Duration,
};

use axum_core::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
};
use tower_service::Service;

use super::keys::{AssertionKeys, now};

/// The public halves of a front's keys, as a JWK Set (RFC 7517, section 5) at a route of the front's own.
///
/// It's a tower service for `route_service`, which answers `GET` and `HEAD`, with 304 for a copy that is current, and
/// any other method with 405. It's also a response, for a handler that does more. [`AssertionKeys::jwks`] makes it.
///
/// The response has the media type `application/jwk-set+json` (RFC 7517, section 8.5.2), and an `ETag` that names the
/// keys. Its cost doesn't depend on the request; nothing is signed for it.
///
/// ```
/// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
/// use axum::{Router, routing::get};
/// use tower_reverse_proxy::AssertionKeys;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
/// let jwks = keys.jwks();
/// let app: Router = Router::new()
///     .route_service("/.well-known/jwks.json", jwks.clone())
///     // A handler, with a field for scripts of other origins.
///     .route("/keys", get(|| async move { ([("access-control-allow-origin", "*")], jwks.clone()) }));
/// # let _ = app;
/// # Ok(())
/// # }
/// # main().unwrap();
/// # }
/// ```
///
/// # Security
///
/// The route needs no sign-in, because public keys are public. The private halves are in no response. A backend has to
/// fetch the keys from the front itself: over `https`, or in a network without strangers, because it trusts whatever
/// keys it gets there. For the same reason, no mounted backend may cover the route: beside a proxy for `/`, the route
/// belongs on the outer router, or on one that is asked before the proxy.
#[derive(Clone, Debug)]
pub struct Jwks {
    keys: AssertionKeys,
    max_age: Duration,
}

impl Jwks {
    pub(super) fn new(keys: AssertionKeys) -> Self {
        Self { keys, max_age: Duration::from_secs(300) }
    }

    /// Sets how long backends may cache the keys (`max-age` of `Cache-Control`), in whole seconds. Default: 300 s.
    ///
    /// A [rotation](AssertionKeys::rotate) has to publish a key for that long before it signs.
    ///
    /// ```
    /// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
    /// use std::time::Duration;
    /// use tower_reverse_proxy::AssertionKeys;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
    /// let jwks = keys.jwks().max_age(Duration::from_secs(3600));
    /// # let _ = jwks;
    /// # Ok(())
    /// # }
    /// # main().unwrap();
    /// # }
    /// ```
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    fn answer(&self, method: &Method, request: &HeaderMap) -> Response {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")]).into_response();
        }
        let mut response = self.clone().into_response();
        let etag = response.headers().get(ETAG);
        if etag.is_some_and(|etag| has_current(request, etag)) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response.headers_mut().remove(CONTENT_TYPE);
            response.headers_mut().remove(CONTENT_LENGTH);
            *response.body_mut() = Body::empty();
        } else if *method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }
}

/// Whether the request has a current copy: its `If-None-Match` contains the tag (RFC 9110, section 13.1.2).
fn has_current(request: &HeaderMap, etag: &HeaderValue) -> bool {
    request.get_all(IF_NONE_MATCH).iter().any(|value| {
        // The tag contains no comma.
        value
            .as_bytes()
            .split(|&b| b == b',')
            .map(<[u8]>::trim_ascii)
            .any(|tag| tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes())
    })
}

impl IntoResponse for Jwks {
    fn into_response(self) -> Response {
        let keys = self.keys.published(now());
        let join = |parts: Vec<&str>, separator| parts.join(separator);
        let body = format!(r#"{{"keys":[{}]}}"#, join(keys.iter().map(|key| &*key.jwk).collect(), ","));
        // The ids are thumbprints, so they determine the body.
        let etag = format!("\"{}\"", join(keys.iter().map(|key| &*key.kid).collect(), "."));
        let headers = [
            (CONTENT_TYPE, "application/jwk-set+json".to_owned()),
            (CONTENT_LENGTH, body.len().to_string()),
            (CACHE_CONTROL, format!("public, max-age={}", self.max_age.as_secs())),
            (ETAG, etag),
        ];
        (headers, body).into_response()
    }
}

impl<B> Service<Request<B>> for Jwks {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.answer(request.method(), request.headers())))
    }
}

#[cfg(test)]
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
mod tests {
    use http_body_util::BodyExt;
    use jsonwebtoken::jwk::JwkSet;

    use super::*;

    fn keys() -> AssertionKeys {
        AssertionKeys::from_pem(rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap()
    }

    fn ask(jwks: &Jwks, method: &Method, tags: &[&str]) -> Response {
        let mut request = HeaderMap::new();
        for tag in tags {
            request.append(IF_NONE_MATCH, tag.parse().unwrap());
        }
        jwks.answer(method, &request)
    }

    async fn body(response: Response) -> Vec<u8> {
        response.into_body().collect().await.unwrap().to_bytes().to_vec()
    }

    #[tokio::test]
    async fn the_set_has_each_published_key() {
        let keys = keys();
        let jwks = keys.jwks();
        let before = ask(&jwks, &Method::GET, &[]);
        assert_eq!(before.status(), StatusCode::OK);
        assert_eq!(before.headers()[CONTENT_TYPE], "application/jwk-set+json");
        assert_eq!(before.headers()[CACHE_CONTROL], "public, max-age=300");
        let etag = before.headers()[ETAG].clone();
        let length: usize = before.headers()[CONTENT_LENGTH].to_str().unwrap().parse().unwrap();
        let text = body(before).await;
        assert_eq!(text.len(), length);
        assert_eq!(serde_json::from_slice::<JwkSet>(&text).unwrap().keys.len(), 1);

        keys.rotate(self::keys(), Duration::from_secs(300));
        let after = ask(&jwks.max_age(Duration::from_millis(7900)), &Method::GET, &[etag.to_str().unwrap()]);
        assert_eq!(after.status(), StatusCode::OK);
        assert_eq!(after.headers()[CACHE_CONTROL], "public, max-age=7");
        let set: JwkSet = serde_json::from_slice(&body(after).await).unwrap();
        let ids: Vec<_> = set.keys.iter().map(|key| key.common.key_id.clone().unwrap()).collect();
        assert_eq!(ids.len(), 2);
        assert_eq!(format!("\"{}\"", ids[0]), etag.to_str().unwrap());
    }

    #[tokio::test]
    async fn a_current_copy_is_not_sent_again() {
        let jwks = keys().jwks();
        let etag = ask(&jwks, &Method::GET, &[]).headers()[ETAG].to_str().unwrap().to_owned();
        let weak = format!("W/{etag}");
        let list = format!("\"a\" , {weak},\"b\"");
        for tags in [&[&*etag][..], &[&weak], &[&list], &["*"], &["\"x\"", &etag]] {
            for method in [Method::GET, Method::HEAD] {
                let response = ask(&jwks, &method, tags);
                assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{tags:?}");
                assert_eq!(response.headers()[ETAG], *etag);
                assert_eq!(response.headers()[CACHE_CONTROL], "public, max-age=300");
                assert!(!response.headers().contains_key(CONTENT_LENGTH));
                assert!(body(response).await.is_empty());
            }
        }
        for tags in [&["\"x\""][..], &[etag.trim_matches('"')], &[""], &["w/*"], &[&etag.to_lowercase()]] {
            assert_eq!(ask(&jwks, &Method::GET, tags).status(), StatusCode::OK, "{tags:?}");
        }
    }

    #[tokio::test]
    async fn other_methods_are_refused_and_head_has_the_fields_of_get() {
        let jwks = keys().jwks();
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let response = ask(&jwks, &method, &["*"]);
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(response.headers()[ALLOW], "GET, HEAD");
        }
        let (get, head) = (ask(&jwks, &Method::GET, &[]), ask(&jwks, &Method::HEAD, &[]));
        assert_eq!(get.headers(), head.headers());
        assert!(body(head).await.is_empty());
    }
}
