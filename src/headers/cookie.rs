//! Cookies: crumbs joined on the way in, the backend's `Domain` and `Path` made the front's on the way out (RFC 6265).

use http::{
    HeaderMap, HeaderValue,
    header::{COOKIE, SET_COOKIE},
};

use super::{location::with_prefix, map_values};

/// Joins the `Cookie` fields that HTTP/2 may split (RFC 9113, section 8.2.3).
pub(crate) fn join_crumbs(headers: &mut HeaderMap) {
    // Mostly no field has a second line, and that's seen without a look-up.
    if headers.len() == headers.keys_len() {
        return;
    }
    let mut crumbs = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    if let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) {
        let joined = [first, second].into_iter().chain(crumbs).collect::<Vec<_>>().join(&b"; "[..]);
        if let Ok(value) = HeaderValue::try_from(joined) {
            headers.insert(COOKIE, value);
        }
    }
}

/// Drops a `Domain` that names the backend: the browser would refuse it from the front. The cookie becomes the front's own.
pub(crate) fn drop_domain<'a>(headers: &mut HeaderMap, host: impl Fn() -> &'a str) {
    map_values(headers, SET_COOKIE, |cookie| {
        map_attribute(cookie, b"domain", |domain| {
            let domain = domain.strip_prefix(b".").unwrap_or(domain);
            domain.eq_ignore_ascii_case(host().as_bytes()).then_some(Attribute::Drop)
        })
    });
}

/// Moves a `Path` below the directory `from` to the same one below `to`.
///
/// A cookie whose name begins with `__Host-` is bound to `Path=/` and stays.
pub(crate) fn map_path(headers: &mut HeaderMap, from: &str, to: &str) {
    map_values(headers, SET_COOKIE, |cookie| {
        if cookie.get(..7).is_some_and(|name| name.eq_ignore_ascii_case(b"__Host-")) {
            return None;
        }
        map_attribute(cookie, b"path", |path| {
            let mut mapped = with_prefix(path, from, to)?;
            // `/mydir` matches the directory itself too, `/mydir/` doesn't (RFC 6265, section 5.1.4).
            if mapped.len() == to.len() + 1 && mapped.len() > 1 {
                mapped.pop();
            }
            Some(Attribute::Value(mapped))
        })
    });
}

enum Attribute {
    Drop,
    Value(Vec<u8>),
}

/// Maps the attributes of one name, leaving every other octet as it is.
fn map_attribute(cookie: &[u8], name: &[u8], map: impl Fn(&[u8]) -> Option<Attribute>) -> Option<Vec<u8>> {
    let mut parts = cookie.split(|&b| b == b';');
    let mut mapped = parts.next()?.to_vec();
    let mut changed = false;
    for part in parts {
        let change = part.iter().position(|&b| b == b'=').and_then(|equals| {
            let (key, value) = (part[..equals].trim_ascii(), part[equals + 1..].trim_ascii());
            if key.eq_ignore_ascii_case(name) { Some((&part[..=equals], map(value)?)) } else { None }
        });
        changed |= change.is_some();
        match change {
            None => mapped.extend_from_slice(&[b";", part].concat()),
            Some((key, Attribute::Value(value))) => mapped.extend_from_slice(&[b";", key, &*value].concat()),
            Some((_, Attribute::Drop)) => {}
        }
    }
    changed.then_some(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cookie: &str) -> HeaderMap {
        HeaderMap::from_iter([(SET_COOKIE, HeaderValue::from_str(cookie).unwrap())])
    }

    #[test]
    fn crumbs_are_joined() {
        let crumbs = ["a=1", "b=2", "c=3"].map(|crumb| (COOKIE, HeaderValue::from_static(crumb)));
        let mut headers = HeaderMap::from_iter(crumbs);
        join_crumbs(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }

    #[test]
    fn the_backends_domain_goes() {
        for (cookie, result) in [
            ("a=1; Domain=backend; Path=/", "a=1; Path=/"),
            ("a=1;domain=.BACKEND ;HttpOnly", "a=1;HttpOnly"),
            ("a=1; Domain=backend.evil", "a=1; Domain=backend.evil"),
            ("a=domain=backend; Secure", "a=domain=backend; Secure"),
        ] {
            let mut headers = set(cookie);
            drop_domain(&mut headers, || "backend");
            assert_eq!(headers[SET_COOKIE], result);
        }
    }

    #[test]
    fn paths_move() {
        for (cookie, from, to, result) in [
            ("a=1; Path=/; HttpOnly", "", "/mydir", "a=1; Path=/mydir; HttpOnly"),
            ("a=1; path=/sub/", "", "/mydir", "a=1; path=/mydir/sub/"),
            ("a=1; Path=/old/x", "/old", "/mydir", "a=1; Path=/mydir/x"),
            ("a=1; Path=/older", "/old", "/mydir", "a=1; Path=/older"),
            ("a=1; Path=/old", "/old", "", "a=1; Path=/"),
            ("a=1", "", "/mydir", "a=1"),
            ("__Host-a=1; Path=/; Secure", "", "/mydir", "__Host-a=1; Path=/; Secure"),
        ] {
            let mut headers = set(cookie);
            map_path(&mut headers, from, to);
            assert_eq!(headers[SET_COOKIE], result, "{from} {to}");
        }
    }

    #[test]
    fn cookies_stay_apart_and_in_order() {
        let mut headers = HeaderMap::new();
        for cookie in ["b=2; Path=/", "a=1", "b=3; Path=/"] {
            headers.append(SET_COOKIE, HeaderValue::from_static(cookie));
        }
        map_path(&mut headers, "", "/mydir");
        let cookies: Vec<_> = headers.get_all(SET_COOKIE).iter().collect();
        assert_eq!(cookies, ["b=2; Path=/mydir", "a=1", "b=3; Path=/mydir"]);
    }
}
