//! References in a response (`Location`, `Content-Location`, `Refresh`), mapped from the backend to the front.
//!
//! This takes two steps: `Upstream` strips the backend's origin, and the forwarder replaces the backend's prefix by the
//! public one. Both compare bytes and never normalise; a reference that doesn't match stays unchanged.

use http::{
    HeaderMap,
    header::{CONTENT_LOCATION, LOCATION, REFRESH},
    uri::Scheme,
};

use super::map_values;

/// Replaces every reference for which `map` returns `Some`.
pub(crate) fn map_references(headers: &mut HeaderMap, map: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    // Fast path: one pass over the few names costs less than three look-ups.
    if !headers.keys().any(|name| [LOCATION, CONTENT_LOCATION, REFRESH].contains(name)) {
        return;
    }
    map_values(headers, LOCATION, &map);
    map_values(headers, CONTENT_LOCATION, &map);
    map_values(headers, REFRESH, |value| map_refresh(value, &map));
}

/// An origin under which the backend was addressed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) scheme: &'a Scheme,
    pub(crate) authority: &'a [u8],
}

/// Turns a URL of this origin into a path-absolute reference. `None` if it has another origin.
///
/// URLs that only resemble the origin don't match: `http://backend.evil`, `http://backend@evil`,
/// `http://backend:80\@evil`. A path that begins with two slashes doesn't become a reference to another host.
pub(crate) fn strip_origin(url: &[u8], origin: Origin<'_>) -> Option<Vec<u8>> {
    let rest = match url {
        [b'/', b'/', rest @ ..] => rest,
        _ => {
            let (scheme, rest) = url.split_at_checked(origin.scheme.as_str().len())?;
            if !scheme.eq_ignore_ascii_case(origin.scheme.as_str().as_bytes()) {
                return None;
            }
            rest.strip_prefix(b"://")?
        }
    };
    let end = rest.iter().position(|b| b"/?#\\".contains(b)).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let same = same_authority(authority, origin.authority, origin.scheme);
    (same && tail.first() != Some(&b'\\')).then(|| path_absolute(tail))
}

/// Turns a path-absolute reference below the directory `from` into the same one below `to`. `None` if it isn't below
/// `from`, or if it's below `to` already, because the backend evaluates `X-Forwarded-Prefix`.
pub(crate) fn rebase(reference: &[u8], from: &str, to: &str) -> Option<Vec<u8>> {
    if !reference.starts_with(b"/") || is_network_path(reference) {
        return None;
    }
    let is_below = |dir: &str| {
        let rest = reference.strip_prefix(dir.as_bytes());
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b'?' | b'#')))
    };
    if to.len() > from.len() && is_below(to) {
        return None;
    }
    let rest = reference.strip_prefix(from.as_bytes())?;
    match rest.first() {
        None | Some(b'/' | b'?' | b'#') if to.is_empty() => Some(path_absolute(rest)),
        None | Some(b'/' | b'?' | b'#') => Some([to.as_bytes(), rest].concat()),
        _ => None,
    }
}

/// Turns the part of a URL after the authority into a path-absolute reference (RFC 3986, section 4.2).
pub(crate) fn path_absolute(tail: &[u8]) -> Vec<u8> {
    match tail.first() {
        // The dot segment prevents the two slashes from being read as the start of an authority.
        Some(b'/') if is_network_path(tail) => [b"/.", tail].concat(),
        Some(b'/') => tail.to_vec(),
        _ => [b"/", tail].concat(),
    }
}

/// Whether a browser reads an authority at the start: it treats `\` as `/` and ignores tabs (WHATWG URL).
fn is_network_path(reference: &[u8]) -> bool {
    let mut seen = reference.iter().filter(|&&b| b != b'\t');
    let slash = |b: Option<&u8>| matches!(b, Some(b'/' | b'\\'));
    slash(seen.next()) && slash(seen.next())
}

pub(super) fn same_authority(one: &[u8], other: &[u8], scheme: &Scheme) -> bool {
    let default = if *scheme == Scheme::HTTPS { &b"443"[..] } else { b"80" };
    let ((host, port), (other_host, other_port)) = (host_and_port(one, default), host_and_port(other, default));
    !host.is_empty() && host.eq_ignore_ascii_case(other_host) && port == other_port
}

fn host_and_port<'a>(authority: &'a [u8], default: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    match authority.iter().rposition(|&b| b == b':') {
        Some(colon) if !authority[colon..].contains(&b']') => match &authority[colon + 1..] {
            [] => (&authority[..colon], default),
            port => (&authority[..colon], port),
        },
        _ => (authority, default),
    }
}

/// Maps the URL in a `Refresh`.
fn map_refresh(value: &[u8], map: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let (time, url) = split_refresh(value)?;
    Some([time, b" url=", &map(url)?].concat())
}

/// Splits `5; url=…` into the time with its delimiter and the URL, as browsers do (HTML, "shared declarative refresh
/// steps"): whitespace is a delimiter too, and `url=` is optional.
fn split_refresh(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let time = value.trim_ascii_start();
    let rest = &time[time.iter().take_while(|&&b| b.is_ascii_digit() || b == b'.').count()..];
    if rest.len() == time.len() || !matches!(rest.first()?, b';' | b',' | b' ' | b'\t') {
        return None;
    }
    let mut target = rest.trim_ascii_start();
    if let [b';' | b',', rest @ ..] = target {
        target = rest.trim_ascii_start();
    }
    let time = value[..value.len() - target.len()].trim_ascii_end();
    let named = target.split_at_checked(3).filter(|(name, _)| name.eq_ignore_ascii_case(b"url"));
    let named = named.and_then(|(_, rest)| rest.trim_ascii_start().strip_prefix(b"="));
    let url = match named.unwrap_or(target).trim_ascii() {
        [quote @ (b'"' | b'\''), url @ ..] => url.split(|b| b == quote).next()?.trim_ascii(),
        url => url,
    };
    Some((time, url))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const BACKEND: Origin<'static> = Origin { scheme: &Scheme::HTTP, authority: b"backend:9000" };

    fn mapped(url: &str) -> Option<String> {
        strip_origin(url.as_bytes(), BACKEND).map(|url| String::from_utf8(url).unwrap())
    }

    #[test]
    fn the_origin_of_the_backend_is_stripped() {
        for (url, reference) in [
            ("http://backend:9000/mydir/x?y#z", "/mydir/x?y#z"),
            ("HTTP://BACKEND:9000/x", "/x"),
            ("//backend:9000/x", "/x"),
            ("http://backend:9000", "/"),
            ("http://backend:9000?a=b", "/?a=b"),
            ("http://backend:9000#f", "/#f"),
            ("http://backend:9000/", "/"),
            ("http://backend:9000//evil.example/x", "/.//evil.example/x"),
            ("http://backend:9000/\\evil.example/x", "/./\\evil.example/x"),
            ("http://backend:9000/\t/evil.example/x", "/./\t/evil.example/x"),
        ] {
            assert_eq!(mapped(url).as_deref(), Some(reference), "{url}");
        }
    }

    #[test]
    fn look_alikes_stay() {
        for url in [
            "http://other.example/x",
            "https://backend:9000/x",
            "http://backend/x",
            "http://backend:90000/x",
            "http://backend:9000.evil.example/x",
            "http://backend:9000@evil.example/x",
            "http://u:p@backend:9000/x",
            "http://backend:9000\\@evil.example/x",
            "http://backend:9000 /x",
            "http:/backend:9000/x",
            "http:\\\\backend:9000/x",
            "http://[::1/%zz",
            "y?z=1",
            "/x",
            "",
            "http://",
            "é",
        ] {
            assert_eq!(mapped(url), None, "{url}");
        }
    }

    #[test]
    fn a_default_port_is_the_same_origin() {
        for (scheme, authority, url, same) in [
            (&Scheme::HTTP, "backend", "http://backend:80/x", true),
            (&Scheme::HTTP, "backend:80", "http://backend/x", true),
            (&Scheme::HTTPS, "backend", "https://backend:443/x", true),
            (&Scheme::HTTPS, "backend", "https://backend:80/x", false),
            (&Scheme::HTTP, "[::1]", "http://[::1]:80/x", true),
            (&Scheme::HTTP, "[::1]:8000", "http://[::1]:8000/x", true),
            (&Scheme::HTTP, "[::1]:8000", "http://[::1]/x", false),
        ] {
            let origin = Origin { scheme, authority: authority.as_bytes() };
            assert_eq!(strip_origin(url.as_bytes(), origin).is_some(), same, "{authority} {url}");
        }
    }

    #[test]
    fn prefixes_are_exchanged() {
        for (reference, from, to, result) in [
            ("/x?y", "", "/mydir", Some("/mydir/x?y")),
            ("/", "", "/mydir", Some("/mydir/")),
            ("/.//evil.example", "", "/mydir", Some("/mydir/.//evil.example")),
            ("/mydir/x", "", "/mydir", None),
            ("/mydirx", "", "/mydir", Some("/mydir/mydirx")),
            ("//other/x", "", "/mydir", None),
            ("/\\other/x", "", "/mydir", None),
            ("x", "", "/mydir", None),
            ("http://other/x", "", "/mydir", None),
            ("/old/x", "/old", "/mydir", Some("/mydir/x")),
            ("/old", "/old", "/mydir", Some("/mydir")),
            ("/old?x", "/old", "/mydir", Some("/mydir?x")),
            ("/older", "/old", "/mydir", None),
            ("/elsewhere", "/old", "/mydir", None),
            ("/old//evil.example", "/old", "", Some("/.//evil.example")),
            ("/old", "/old", "", Some("/")),
        ] {
            let result_is = rebase(reference.as_bytes(), from, to).map(|r| String::from_utf8(r).unwrap());
            assert_eq!(result_is.as_deref(), result, "{reference} {from} {to}");
        }
    }

    #[test]
    fn refresh_holds_a_reference() {
        for (value, result) in [
            ("5; url=http://backend:9000/x", Some("5; url=/x")),
            ("0;URL='http://backend:9000/x'", Some("0; url=/x")),
            ("0, url = \"http://backend:9000/x\" ", Some("0, url=/x")),
            ("5 url=http://backend:9000/x", Some("5 url=/x")),
            ("5;http://backend:9000/x", Some("5; url=/x")),
            (".5 , 'http://backend:9000/x'y", Some(".5 , url=/x")),
            ("5", None),
            ("5x; url=http://backend:9000/x", None),
            ("url=http://backend:9000/x", None),
            ("5; url=http://other/; url=http://backend:9000/x", None),
            ("5; url=http://other/x", None),
            ("5; ur", None),
            ("5; url", None),
        ] {
            let mut headers = HeaderMap::from_iter([(REFRESH, HeaderValue::from_static(value))]);
            map_references(&mut headers, |url| strip_origin(url, BACKEND));
            assert_eq!(headers[REFRESH], result.unwrap_or(value));
        }
    }

    proptest! {
        #[test]
        fn a_mapped_reference_stays_at_the_front(url in "(http:)?//(backend:9000)?[/\\\\@:.#?\ta-z]{0,20}") {
            if let Some(reference) = mapped(&url) {
                prop_assert!(reference.starts_with('/') && !is_network_path(reference.as_bytes()), "{reference}");
            }
        }

        #[test]
        fn a_url_of_the_backend_keeps_its_path(path in "/[a-z0-9._~%-][a-z0-9._~%/?&=;-]{0,20}") {
            let url = format!("http://backend:9000{path}");
            prop_assert_eq!(mapped(&url), Some(path));
        }
    }
}
