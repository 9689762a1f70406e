//! The origin of the front, as the fields of a request describe it to the backend. A backend that trusts these fields
//! uses the origin in its references.

use http::{
    HeaderMap, HeaderValue,
    header::{FORWARDED, HOST},
    uri::Scheme,
};

use super::{
    forwarded::{X_FORWARDED_HOST, X_FORWARDED_PROTO},
    location::{Origin, strip_origin},
    members,
};

/// The schemes that the fields of a request name. Behind several proxies, there may be both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Schemes {
    http: bool,
    https: bool,
}

impl Schemes {
    /// Reads `X-Forwarded-Proto`, and `proto` in `Forwarded` (RFC 7239, section 5.4).
    pub(crate) fn forwarded_in(headers: &HeaderMap) -> Self {
        let mut schemes = Self::default();
        members(headers, X_FORWARDED_PROTO).for_each(|scheme| schemes.add(scheme));
        for line in headers.get_all(FORWARDED) {
            protos(line.as_bytes(), |scheme| schemes.add(scheme));
        }
        schemes
    }

    fn add(&mut self, scheme: &[u8]) {
        self.http |= scheme.eq_ignore_ascii_case(b"http");
        self.https |= scheme.eq_ignore_ascii_case(b"https");
    }

    /// Turns a URL with one of these schemes and this authority into a path-absolute reference. `None` if it has
    /// another origin.
    pub(crate) fn strip_origin(self, url: &[u8], authority: &[u8]) -> Option<Vec<u8>> {
        let schemes = [(self.http, Scheme::HTTP), (self.https, Scheme::HTTPS)];
        let mut known = schemes.into_iter().filter(|(is_known, _)| *is_known);
        known.find_map(|(_, scheme)| strip_origin(url, Origin { scheme: &scheme, authority }))
    }
}

/// Calls `each` with the value of every `proto` parameter of a `Forwarded` line.
fn protos(line: &[u8], mut each: impl FnMut(&[u8])) {
    let mut is_quoted = false;
    let parameters = line.split(|&b| {
        is_quoted ^= b == b'"';
        !is_quoted && matches!(b, b';' | b',')
    });
    for parameter in parameters {
        if let Some((name, value)) = parameter.trim_ascii().split_at_checked(b"proto=".len())
            && name.eq_ignore_ascii_case(b"proto=")
        {
            each(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value));
        }
    }
}

/// Whether clients use `https`, as the fields of a request say. `None` if no field names a scheme.
///
/// The first scheme is the one of the client. Those after it are of proxies between the client and this one.
pub(crate) fn is_https(headers: &HeaderMap) -> Option<bool> {
    let is_https = |scheme: &[u8]| scheme.eq_ignore_ascii_case(b"https");
    members(headers, X_FORWARDED_PROTO).next().map(is_https).or_else(|| {
        let mut first = None;
        headers.get_all(FORWARDED).iter().for_each(|line| {
            protos(line.as_bytes(), |scheme| first = first.or(Some(is_https(scheme))));
        });
        first
    })
}

/// The front's schemes and hosts in the fields of a request.
#[derive(Debug)]
pub(crate) struct Front {
    schemes: Schemes,
    host: Option<HeaderValue>,
    forwarded_host: Option<HeaderValue>,
}

impl Front {
    /// Reads the fields of a request as it's sent to the upstream.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self {
            schemes: Schemes::forwarded_in(headers),
            host: headers.get(HOST).cloned(),
            forwarded_host: headers.get(X_FORWARDED_HOST).cloned(),
        }
    }

    /// Turns a URL of the front into a path-absolute reference. `None` if it has another origin, or if no field names a
    /// scheme.
    pub(crate) fn strip_origin(&self, url: &[u8]) -> Option<Vec<u8>> {
        let forwarded = self.forwarded_host.iter().flat_map(|hosts| hosts.as_bytes().split(|&b| b == b','));
        let mut hosts = self.host.iter().map(HeaderValue::as_bytes).chain(forwarded);
        hosts.find_map(|host| self.schemes.strip_origin(url, host.trim_ascii()))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |&(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn schemes_are_read_where_they_are_forwarded() {
        for (lines, http, https) in [
            (&[][..], false, false),
            (&[("x-forwarded-proto", "https")], false, true),
            (&[("x-forwarded-proto", "HTTPS, http")], true, true),
            (&[("x-forwarded-proto", "wss")], false, false),
            (&[("forwarded", "for=1.2.3.4;host=a;proto=https")], false, true),
            (&[("forwarded", "for=_a;Proto=\"http\", for=\"[::1]:1\" ; proto=https")], true, true),
            (&[("forwarded", "host=\"a;proto=https;b\";by=x")], false, false),
            (&[("forwarded", "host=\"a, proto=https\", xproto=https")], false, false),
        ] {
            assert_eq!(Schemes::forwarded_in(&map(lines)), Schemes { http, https }, "{lines:?}");
        }
    }

    #[test]
    fn the_scheme_of_the_client_is_the_first_one() {
        for (lines, https) in [
            (&[][..], None),
            (&[("x-forwarded-host", "https")], None),
            (&[("x-forwarded-proto", "http")], Some(false)),
            (&[("x-forwarded-proto", "HTTPS, http")], Some(true)),
            (&[("x-forwarded-proto", "http, https")], Some(false)),
            (&[("forwarded", "for=_a, for=_b;proto=https;by=_c, proto=http")], Some(true)),
            (&[("forwarded", "proto=http"), ("x-forwarded-proto", "https")], Some(true)),
        ] {
            assert_eq!(is_https(&map(lines)), https, "{lines:?}");
        }
    }

    #[test]
    fn urls_of_the_front_lose_their_origin() {
        let front = Front::of(&map(&[
            ("host", "backend:8000"),
            ("x-forwarded-host", "front.example, inner:8080"),
            ("x-forwarded-proto", "https"),
        ]));
        for (url, path) in [
            ("https://front.example/login", Some("/login")),
            ("HTTPS://Front.Example:443/login?a#b", Some("/login?a#b")),
            ("https://inner:8080", Some("/")),
            ("https://backend:8000/x", Some("/x")),
            ("https://front.example//evil.example", Some("/.//evil.example")),
            ("http://front.example/login", None),
            ("https://front.example.evil/login", None),
            ("https://front.example@evil/login", None),
            ("https://front.example:8443/login", None),
            ("https://front.example\\@evil/login", None),
            ("https:///login", None),
            ("/login", None),
        ] {
            let mapped = front.strip_origin(url.as_bytes());
            assert_eq!(mapped.as_deref(), path.map(str::as_bytes), "{url}");
        }
        let front = Front::of(&map(&[("host", "front.example")]));
        assert_eq!(front.strip_origin(b"https://front.example/login"), None, "no scheme was forwarded");
    }
}
