//! A cookie of the front's own in a response, as a response extension. Its attributes depend on the mount, which is
//! known to the forwarder only.

use std::{fmt, sync::Arc};

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, SET_COOKIE},
};

use super::members;

/// A cookie that the upstream side sets for the whole mount. The forwarder adds its attributes.
#[derive(Clone)]
pub(crate) struct FrontCookie {
    /// A token.
    pub(crate) name: Arc<str>,
    /// Of the octets that a cookie's value may have.
    pub(crate) value: Box<str>,
    /// The path that outer routers have stripped from the request.
    pub(crate) nest: Option<Box<str>>,
    /// Whether clients use `https`. `None`: the request has no forwarding field for it.
    pub(crate) is_secure: Option<bool>,
}

impl FrontCookie {
    /// Adds the cookie to a response. It's valid for the directory `prefix`, below the nest, and for the session.
    ///
    /// A response that a shared cache may store is left as it is, because the cache would hand one client's cookie to
    /// the others; and so is a 304, whose fields update those of a stored response (RFC 9111, section 4.3.4).
    pub(crate) fn set(&self, status: StatusCode, headers: &mut HeaderMap, prefix: &str, is_secure: bool) {
        if status == StatusCode::NOT_MODIFIED || is_shared(headers) {
            return;
        }
        let directory = [self.nest.as_deref().unwrap_or_default(), prefix].concat();
        let path = path(&directory);
        let secure = if self.is_secure.unwrap_or(is_secure) { "; Secure" } else { "" };
        let cookie = format!("{}={}; Path={path}; HttpOnly; SameSite=Lax{secure}", self.name, self.value);
        if let Ok(mut cookie) = HeaderValue::try_from(cookie) {
            cookie.set_sensitive(true);
            headers.append(SET_COOKIE, cookie);
        }
    }
}

impl fmt::Debug for FrontCookie {
    /// The value isn't shown, because it leads a client to the same member.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontCookie").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whether a response names itself storable by shared caches (RFC 9111, section 5.2.2).
fn is_shared(headers: &HeaderMap) -> bool {
    members(headers, CACHE_CONTROL).any(|directive| {
        let name = directive.split(|&b| b == b'=').next().unwrap_or_default().trim_ascii();
        name.eq_ignore_ascii_case(b"public") || name.eq_ignore_ascii_case(b"s-maxage")
    })
}

/// Returns the `Path` for a directory. A semicolon ends the attribute, and with a nest that captures, clients choose the
/// text: the path is then the nearest directory above it.
fn path(directory: &str) -> &str {
    let path = match directory.find(|c: char| c == ';' || c.is_ascii_control()) {
        Some(end) => directory[..end].rsplit_once('/').map_or("", |(above, _)| above),
        None => directory,
    };
    if path.is_empty() { "/" } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie() -> FrontCookie {
        FrontCookie { name: "backend".into(), value: "x-_1".into(), nest: None, is_secure: None }
    }

    fn set(cookie: &FrontCookie, status: u16, control: &[&'static str], prefix: &str, is_secure: bool) -> Vec<String> {
        let control = control.iter().map(|line| (CACHE_CONTROL, HeaderValue::from_static(line)));
        let mut headers = HeaderMap::from_iter(control);
        headers.append(SET_COOKIE, HeaderValue::from_static("a=1"));
        cookie.set(StatusCode::from_u16(status).unwrap(), &mut headers, prefix, is_secure);
        let mut cookies = headers.get_all(SET_COOKIE).iter().map(|line| line.to_str().unwrap().to_owned());
        assert_eq!(cookies.next().as_deref(), Some("a=1"));
        cookies.collect()
    }

    #[test]
    fn the_cookie_is_for_the_mount_and_the_session() {
        for (nest, prefix, path) in [
            (None, "/app", "/app"),
            (None, "", "/"),
            (Some("/outer"), "", "/outer"),
            (Some("/outer"), "/app", "/outer/app"),
            (Some("/a;Domain=evil"), "/app", "/"),
            (Some("/a/b;c"), "/app", "/a"),
            (None, "/app/v;1", "/app"),
        ] {
            let cookie = FrontCookie { nest: nest.map(Into::into), ..cookie() };
            assert_eq!(
                set(&cookie, 200, &[], prefix, false),
                [format!("backend=x-_1; Path={path}; HttpOnly; SameSite=Lax")]
            );
        }
    }

    #[test]
    fn it_is_secure_where_clients_use_https() {
        for (forwarded, configured, is_secure) in
            [(None, false, false), (None, true, true), (Some(true), false, true), (Some(false), true, false)]
        {
            let cookie = FrontCookie { is_secure: forwarded, ..cookie() };
            let secure = if is_secure { "; Secure" } else { "" };
            assert_eq!(
                set(&cookie, 200, &[], "/app", configured),
                [format!("backend=x-_1; Path=/app; HttpOnly; SameSite=Lax{secure}")]
            );
        }
    }

    #[test]
    fn responses_for_shared_caches_do_not_get_it() {
        for (status, control, is_set) in [
            (200, &[][..], true),
            (101, &[], true),
            (404, &[], true),
            (500, &["no-store"], true),
            (200, &["private, max-age=60"], true),
            (200, &["max-age=60, publicity"], true),
            (304, &[], false),
            (304, &["private"], false),
            (200, &["public"], false),
            (200, &["max-age=60, Public"], false),
            (200, &["no-cache", "max-age=60 ,PUBLIC"], false),
            (200, &["s-maxage=60"], false),
        ] {
            assert_eq!(
                set(&cookie(), status, control, "/app", false).len(),
                usize::from(is_set),
                "{status} {control:?}"
            );
        }
    }
}
