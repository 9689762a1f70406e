//! Cookies (RFC 6265): splits of `Cookie` are joined in requests, and `Domain` and `Path` are mapped to the front in
//! responses.

use http::{
    HeaderMap, HeaderValue,
    header::{COOKIE, Entry, SET_COOKIE},
};

use super::{location::rebase, map_values};
use crate::observe;

/// Joins the `Cookie` lines of an HTTP/2 client that splits them (RFC 9113, section 8.2.3).
pub(crate) fn join_crumbs(headers: &mut HeaderMap) {
    // Fast path: without a second line of any field, no look-up is needed.
    if headers.len() == headers.keys_len() {
        return;
    }
    let mut crumbs = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    if let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) {
        let joined = [first, second].into_iter().chain(crumbs).collect::<Vec<_>>().join(&b"; "[..]);
        let sensitive = headers.get_all(COOKIE).iter().any(HeaderValue::is_sensitive);
        if let Ok(mut value) = HeaderValue::try_from(joined) {
            value.set_sensitive(sensitive);
            headers.insert(COOKIE, value);
        }
    }
}

/// Whether `name` is valid as the name of a cookie, which is a token (RFC 6265, section 4.1.1).
pub(crate) fn is_cookie_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(super::is_token_byte)
}

/// Returns the values of the cookies with this name in a request, as they stand there.
pub(crate) fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|&b| b == b';'));
    pairs.filter_map(move |pair| {
        let equals = pair.iter().position(|&b| b == b'=')?;
        (pair[..equals].trim_ascii() == name.as_bytes()).then(|| pair[equals + 1..].trim_ascii())
    })
}

/// Removes the cookies with these names from a request whose `Cookie` is one line. The others stay unchanged, byte for
/// byte.
///
/// Each semicolon separates cookies, also within quotes, because browsers send no others (RFC 6265, section 5.4).
pub(crate) fn hide(headers: &mut HeaderMap, names: &[String]) {
    if names.is_empty() || !headers.contains_key(COOKIE) {
        return;
    }
    let Entry::Occupied(mut line) = headers.entry(COOKIE) else { return };
    let cookies = line.get().as_bytes();
    let is_hidden = |pair: &&[u8]| is_named(pair, names);
    if !cookies.split(|&b| b == b';').any(|pair| is_hidden(&pair)) {
        return;
    }
    let left = cookies.split(|&b| b == b';').filter(|pair| !is_hidden(pair)).collect::<Vec<_>>().join(&b";"[..]);
    match HeaderValue::from_bytes(left.trim_ascii()) {
        Ok(mut value) if !left.trim_ascii().is_empty() => {
            value.set_sensitive(line.get().is_sensitive());
            line.insert(value);
        }
        _ => drop(line.remove()),
    }
}

/// Removes the `Set-Cookie` lines of a response that set a cookie with one of these names.
pub(crate) fn drop_set(headers: &mut HeaderMap, names: &[String]) {
    if names.is_empty() || !headers.contains_key(SET_COOKIE) {
        return;
    }
    let Entry::Occupied(lines) = headers.entry(SET_COOKIE) else { return };
    let sets_one = |line: &HeaderValue| {
        let pair = line.as_bytes().split(|&b| b == b';').next().unwrap_or_default();
        // Browsers send a cookie without a name as its bare value, so `=id=1` would come back as `id=1`.
        let pair = pair.trim_ascii();
        is_named(pair.strip_prefix(b"=").unwrap_or(pair), names)
    };
    if !lines.iter().any(sets_one) {
        return;
    }
    let (name, all) = lines.remove_entry_mult();
    let kept: Vec<_> = all.filter(|line| !sets_one(line)).collect();
    observe::removed_set_cookie();
    for line in kept {
        headers.append(&name, line);
    }
}

/// Whether a pair, or a name without a value, belongs to one of these cookies.
fn is_named(pair: &[u8], names: &[String]) -> bool {
    let name = pair.split(|&b| b == b'=').next().unwrap_or_default().trim_ascii();
    names.iter().any(|hidden| hidden.as_bytes() == name)
}

/// Removes a `Domain` that names the backend, because browsers reject it from another host. Without it, the cookie is
/// bound to the front's host.
pub(crate) fn drop_domain<'a>(headers: &mut HeaderMap, host: impl Fn() -> &'a str) {
    map_values(headers, SET_COOKIE, |cookie| {
        map_attribute(cookie, b"domain", |domain| {
            let domain = domain.strip_prefix(b".").unwrap_or(domain);
            domain.eq_ignore_ascii_case(host().as_bytes()).then_some(Attribute::Drop)
        })
    });
}

/// Maps a `Path` below the directory `from` to the same path below `to`.
///
/// A cookie whose name begins with `__Host-` stays unchanged, because it requires `Path=/`.
pub(crate) fn map_path(headers: &mut HeaderMap, from: &str, to: &str) {
    map_values(headers, SET_COOKIE, |cookie| {
        if cookie.get(..7).is_some_and(|name| name.eq_ignore_ascii_case(b"__Host-")) {
            return None;
        }
        map_attribute(cookie, b"path", |path| {
            let mut mapped = rebase(path, from, to)?;
            // `/mydir` matches the directory itself too, and `/mydir/` doesn't (RFC 6265, section 5.1.4).
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

/// Maps the attributes with one name, and leaves every other octet unchanged.
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
    fn values_are_found_by_name() {
        let mut headers = HeaderMap::new();
        for line in ["a=1; id=2;id = x=y ;b", "ID=3; id; xid=4", "\tid=; id=\"z\""] {
            headers.append(COOKIE, HeaderValue::from_static(line));
        }
        assert_eq!(values(&headers, "id").collect::<Vec<_>>(), [&b"2"[..], b"x=y", b"", b"\"z\""]);
        assert_eq!(values(&headers, "none").count(), 0);
    }

    #[test]
    fn hidden_cookies_go_and_others_stay_byte_for_byte() {
        let names = ["id", "__Host-sid"].map(str::to_owned);
        for (cookies, left) in [
            ("a=1; b=2", Some("a=1; b=2")),
            ("id=1", None),
            ("id=1;", None),
            ("id=1; id=2 ; id", None),
            ("a=1; id=2; b=3", Some("a=1; b=3")),
            ("id=2; a=1", Some("a=1")),
            ("a=1;  b=\"x y\" ;c; id=\"q; z\"; __Host-sid=9;d=id=1", Some("a=1;  b=\"x y\" ;c; z\";d=id=1")),
            ("a=1; \tid \t= 2", Some("a=1")),
            ("ID=1; ids=2; xid=3; a=id; i d=4; =id", Some("ID=1; ids=2; xid=3; a=id; i d=4; =id")),
        ] {
            let mut value = HeaderValue::from_str(cookies).unwrap();
            value.set_sensitive(true);
            let mut headers = HeaderMap::from_iter([(COOKIE, value)]);
            hide(&mut headers, &names);
            assert_eq!(headers.get(COOKIE).map(|value| value.to_str().unwrap()), left, "{cookies}");
            assert!(headers.get(COOKIE).is_none_or(HeaderValue::is_sensitive));
            hide(&mut headers, &[]);
        }
    }

    #[test]
    fn hidden_cookies_are_not_set() {
        let names = ["id".to_owned()];
        let mut headers = HeaderMap::new();
        for cookie in ["a=1; Path=/id", "id=2; Path=/", " id = 3", "id", "=id=4", "ID=5", "b=6; id=7"] {
            headers.append(SET_COOKIE, HeaderValue::from_static(cookie));
        }
        drop_set(&mut headers, &names);
        let left: Vec<_> = headers.get_all(SET_COOKIE).iter().collect();
        assert_eq!(left, ["a=1; Path=/id", "ID=5", "b=6; id=7"]);
    }

    #[test]
    fn the_domain_of_the_backend_is_removed() {
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
