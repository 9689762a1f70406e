//! Trailers (RFC 9110, section 6.5): the ones that are safe to forward.
//!
//! A recipient may merge trailers into the header fields, so a trailer that has a meaning there isn't forwarded,
//! whether `Trailer` announces it or not: HTTP/2 sends trailers without an announcement.

use std::sync::{Arc, Mutex, PoisonError};

use http::{Extensions, HeaderMap, HeaderName, header::TRAILER};

use super::{
    eq_folded, remove_where,
    reserved::{KeptFields, is_for_the_proxy_only},
    retain_members, trim_values,
};

/// The names of fields that upstream layers set, and that must not be repeated by a trailer of the client. A request
/// extension.
///
/// The forwarder inserts it for a request whose body may end in trailers. The body shares the list and reads it when
/// its trailers arrive, after every layer has added its names.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForbiddenTrailers {
    names: Arc<Mutex<Vec<HeaderName>>>,
}

impl ForbiddenTrailers {
    /// Adds a name to the list in a request's extensions, if there is one: a body that can't end in trailers needs
    /// none.
    pub(crate) fn add(extensions: &Extensions, name: &HeaderName) {
        let Some(this) = extensions.get::<Self>() else { return };
        let mut names = this.names.lock().unwrap_or_else(PoisonError::into_inner);
        // A retry layer calls the inner layers again for the same request.
        if !names.contains(name) {
            names.push(name.clone());
        }
    }

    /// Removes the trailers of a request that aren't safe to forward, and those on the list in every spelling.
    pub(crate) fn remove_from(&self, trailers: &mut HeaderMap) {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        remove_where(trailers, |trailer| {
            !is_allowed_in_request(trailer)
                || names.iter().any(|name| eq_folded(trailer.as_str().as_bytes(), name.as_str()))
        });
        trim_values(trailers);
    }
}

/// Removes from a request's `Trailer` the names that aren't forwarded as trailers.
pub(crate) fn filter_announced_in_request(headers: &mut HeaderMap) {
    filter_announced(headers, is_allowed_in_request);
}

/// Removes from a response's `Trailer` the names that aren't forwarded as trailers.
pub(crate) fn filter_announced_in_response(headers: &mut HeaderMap) {
    filter_announced(headers, is_allowed_in_response);
}

/// Removes the trailers of a response that aren't safe to forward.
pub(crate) fn remove_from_response(trailers: &mut HeaderMap) {
    remove_where(trailers, |name| !is_allowed_in_response(name));
    trim_values(trailers);
}

fn filter_announced(headers: &mut HeaderMap, is_allowed: impl Fn(&HeaderName) -> bool) {
    if headers.contains_key(TRAILER) {
        retain_members(headers, TRAILER, |member| HeaderName::from_bytes(member).is_ok_and(|name| is_allowed(&name)));
    }
}

/// Whether the field is unsafe as a trailer in either direction, because it delimits, routes or describes a message
/// (RFC 9110, section 6.5.1) or applies to a single connection (RFC 9113, section 8.2.2).
fn is_control(name: &str) -> bool {
    matches!(
        name,
        "cache-control"
            | "connection"
            | "content-encoding"
            | "content-length"
            | "content-range"
            | "content-type"
            | "host"
            | "http2-settings"
            | "keep-alive"
            | "pragma"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "proxy-connection"
            | "set-cookie"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "via"
    )
}

/// Excludes framing, routing, credentials and identity, which would mislead a server that merges trailers.
fn is_allowed_in_request(name: &HeaderName) -> bool {
    !is_control(name.as_str())
        && !matches!(
            name.as_str(),
            "authorization" | "cookie" | "expect" | "max-forwards" | "origin" | "range" | "referer"
        )
        && !name.as_str().starts_with("if-")
        && !is_for_the_proxy_only(name, KeptFields::default())
}

/// Excludes framing, response control and credentials, which would mislead a client that merges trailers; and
/// references and cookies, which would be forwarded without being mapped.
fn is_allowed_in_response(name: &HeaderName) -> bool {
    !is_control(name.as_str())
        && !matches!(
            name.as_str(),
            "age"
                | "alt-svc"
                | "clear-site-data"
                | "content-location"
                | "date"
                | "expires"
                | "location"
                | "refresh"
                | "retry-after"
                | "strict-transport-security"
                | "vary"
                | "warning"
                | "www-authenticate"
        )
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(names: &[&str]) -> HeaderMap {
        names.iter().map(|name| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("1"))).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn trailers_of_a_request_that_would_mislead_go() {
        let mut headers = HeaderMap::new();
        headers.append(TRAILER, HeaderValue::from_static("X-Ok, Remote_User, remote-user, content-length"));
        headers.append(TRAILER, HeaderValue::from_static("grpc-status"));
        filter_announced_in_request(&mut headers);
        assert_eq!(headers[TRAILER], "X-Ok, grpc-status");
        let mut headers = HeaderMap::from_iter([(TRAILER, HeaderValue::from_static("Authorization"))]);
        filter_announced_in_request(&mut headers);
        assert!(headers.is_empty());
        let mut trailers =
            map(&["x-ok", "cookie", "host", "x-forwarded-for", "x_a", "remote.user", "if-match", "script_name"]);
        ForbiddenTrailers::default().remove_from(&mut trailers);
        assert_eq!(names(&trailers), ["x-ok"]);
    }

    #[test]
    fn trailers_that_a_layer_forbids_go_in_every_spelling() {
        let mut extensions = Extensions::new();
        let name = HeaderName::from_static("x-user");
        ForbiddenTrailers::add(&extensions, &name);
        let list = ForbiddenTrailers::default();
        extensions.insert(list.clone());
        for name in ["x-user", "x-other", "x-user"] {
            ForbiddenTrailers::add(&extensions, &HeaderName::from_static(name));
        }
        let mut trailers = map(&["x-user", "x.user", "x-other", "x-users"]);
        list.remove_from(&mut trailers);
        assert_eq!(names(&trailers), ["x-users"]);
        assert_eq!(list.names.lock().unwrap().len(), 2);
    }

    #[test]
    fn trailers_of_a_response_that_would_mislead_go() {
        let passing = [
            "grpc-status",
            "grpc-message",
            "grpc-status-details-bin",
            "server-timing",
            "digest",
            "content-digest",
            "repr-digest",
            "etag",
            "authentication-info",
            "x-custom",
        ];
        let mut trailers = map(&passing);
        for name in ["content-length", "set-cookie", "connection", "keep-alive", "transfer-encoding", "location", "te"]
        {
            trailers.insert(name, HeaderValue::from_static("0"));
        }
        remove_from_response(&mut trailers);
        let mut left = names(&trailers);
        left.sort_unstable();
        let mut passing = passing;
        passing.sort_unstable();
        assert_eq!(left, passing);
        let mut headers = HeaderMap::from_iter([(TRAILER, HeaderValue::from_static("X-Sum, Set-Cookie, b ad"))]);
        filter_announced_in_response(&mut headers);
        assert_eq!(headers[TRAILER], "X-Sum");
    }
}
