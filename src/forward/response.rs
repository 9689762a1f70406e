//! The response half: turns the upstream's response into the one for the client.

use axum_core::{BoxError, body::Body};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH},
    uri::Scheme,
};

use super::{body::ResponseBody, config::ForwardConfig, request::RequestContext, upload::ExchangeUpload};
use crate::{
    abandoned::abandon,
    error::{Error, ErrorKind},
    headers::{self, cookie, framing, front_cookie::FrontCookie, hop, location, present::Present, trailers},
    path::PathPolicy,
};

/// Turns the upstream's response into the one for the client. The steps are numbered as in the crate's documentation.
///
/// `upload` is the request's body, if it had one.
pub(super) fn finish<B>(
    config: &ForwardConfig,
    context: &mut RequestContext,
    mut response: Response<B>,
    upload: Option<ExchangeUpload>,
) -> Result<Response<Body>, Error>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    // 12  a switch of protocols, to an offered one only
    let upgrade = match (response.status(), context.offer.take()) {
        (StatusCode::SWITCHING_PROTOCOLS, Some(offer)) => match offer.accept(&mut response) {
            Ok(upgrade) => Some(upgrade),
            Err(kind) => return Err(unusable(response, kind)),
        },
        (StatusCode::SWITCHING_PROTOCOLS, None) => {
            return Err(unusable(response, ErrorKind::UnexpectedUpgrade));
        }
        (status, Some(offer)) if offer.is_opened_by(status) => {
            return Err(unusable(response, ErrorKind::UnexpectedUpgrade));
        }
        _ => None,
    };
    let version = response.version();
    if version > Version::HTTP_11 {
        headers::trim_values(response.headers_mut());
    }
    // 13  one framing, the version, `Via`. The framing is read from `Transfer-Encoding`, which is removed afterwards.
    let has = Present::in_response(response.headers());
    let is_bodiless = is_bodiless(&context.method, response.status());
    let length = if is_bodiless { None } else { response.body().size_hint().exact() };
    framing::reconcile_response(response.headers_mut(), has, length)?;
    // A 204 must not have one (RFC 9110, section 8.6), and hyper would send it over HTTP/2.
    if response.status() == StatusCode::NO_CONTENT {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    if has.unwanted {
        hop::remove_from_response(response.headers_mut());
    }
    if has.trailer {
        trailers::filter_announced_in_response(response.headers_mut());
    }
    if let Some(via) = &config.via {
        via.append_to(response.headers_mut(), version);
    }
    *response.version_mut() = Version::HTTP_11;

    // 14  the front's own cookies, and the paths in references and cookies
    cookie::drop_set(response.headers_mut(), &config.hidden_cookies);
    if let (PathPolicy::Replace(from), Some(public)) = (&config.path, &context.public) {
        let (from, to) = (from.as_str(), &*public.prefix);
        location::map_references(response.headers_mut(), |url| match public.front.strip_origin(url) {
            // The backend knows the front's origin from the forwarding fields, and doesn't know its prefix.
            Some(reference) => location::rebase(&reference, from, to),
            None => location::rebase(url, from, to),
        });
        cookie::map_path(response.headers_mut(), from, to);
    }

    if response.extensions().get::<FrontCookie>().is_some() {
        set_front_cookie(config, &mut response);
    }

    if let Some(upgrade) = upgrade {
        // The client's connection is upgraded after the request's body, which may have failed since the backend
        // answered.
        if let Some(failure) = upload.and_then(|upload| upload.failure()) {
            return Err(failure);
        }
        upgrade.start_tunnel(&mut response, &config.tunnels);
        return Ok(response.map(|_| Body::empty()));
    }

    // 15  the body
    let has_length = |headers: &HeaderMap| headers.contains_key(CONTENT_LENGTH);
    if context.version == Version::HTTP_10 && !is_bodiless && length.is_none() && !has_length(response.headers()) {
        // Such a body ends with the connection. To an HTTP/1.0 client that asks for it, hyper's server announces
        // `keep-alive` on any response of version 1.1, regardless of its length and its `Connection`.
        *response.version_mut() = Version::HTTP_10;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let hide_length = is_bodiless && !has_length(response.headers());
    Ok(response.map(|body| Body::new(ResponseBody::new(body, config.body_idle_timeout, hide_length, upload))))
}

#[cold]
fn set_front_cookie<B>(config: &ForwardConfig, response: &mut Response<B>) {
    let Some(cookie) = response.extensions_mut().remove::<FrontCookie>() else { return };
    let (status, is_secure) = (response.status(), config.forwarded.proto == Some(Scheme::HTTPS));
    cookie.set(status, response.headers_mut(), config.prefix.as_str(), is_secure);
}

/// Drops a response that no client can get. A balancer learns by it that the member has failed.
#[cold]
fn unusable<B>(response: Response<B>, kind: ErrorKind) -> Error {
    let ((), member) = abandon(|| drop(response));
    Error::from(kind).with_member(member)
}

/// Whether the response has no body regardless of its length (RFC 9112, section 6.3).
///
/// axum's routes add `Content-Length: 0` to an empty body of known length. In a response to HEAD, that would be a wrong
/// length for the GET, and a 204 must not have the field.
fn is_bodiless(method: &Method, status: StatusCode) -> bool {
    method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Returns an empty body of unknown length, for a response that must not have a `Content-Length`, such as a 204: axum's
/// routes add the field if the length is known.
pub(super) fn no_body() -> Body {
    Body::new(ResponseBody::new(Body::empty(), None, true, None))
}
