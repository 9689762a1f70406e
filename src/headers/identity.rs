//! Names that a backend reads as somebody's identity or as its own variables, in every spelling that it folds into one.

use http::{HeaderMap, HeaderName, header::TRAILER};

use super::{remove_where, retain_members};

/// Whether a client may not say this field at all.
///
/// `Remote-User` is the front's to say. `Proxy` becomes `HTTP_PROXY` in a CGI (CVE-2016-5385).
pub(crate) fn is_reserved(name: &HeaderName) -> bool {
    let name = name.as_str();
    name == "proxy" || reads_as(name.as_bytes(), "remote-user")
}

/// Whether a WSGI or CGI server reads the name as if it had hyphens: `Remote_User` is `HTTP_REMOTE_USER` as well, and
/// `SCRIPT_NAME` is a variable of the server's own.
pub(crate) fn is_underscored(name: &HeaderName) -> bool {
    name.as_str().bytes().any(|b| b == b'_')
}

/// Removes a field in every spelling that a server folds into the same variable, and from the trailers announced.
pub(crate) fn remove_every_spelling(headers: &mut HeaderMap, name: &HeaderName) {
    remove_where(headers, |other| reads_as(other.as_str().as_bytes(), name.as_str()));
    retain_members(headers, TRAILER, |member| !reads_as(member, name.as_str()));
}

/// Whether a server may read both names as the same variable: they differ in nothing but case and what is neither letter
/// nor digit. Most fold `-` into `_`, some (PHP) `.` too, some (lighttpd) everything.
pub(super) fn reads_as(name: &[u8], other: &str) -> bool {
    fn folded(byte: &u8) -> u8 {
        if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
    }
    name.len() == other.len() && name.iter().map(folded).eq(other.as_bytes().iter().map(folded))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn spellings() {
        for name in
            ["remote-user", "remote_user", "remote.user", "Remote-User", "REMOTE_USER", "remote~user", "remote!user"]
        {
            assert!(reads_as(name.as_bytes(), "remote-user"), "{name}");
            assert!(reads_as(name.as_bytes(), "Remote_User"), "{name}");
        }
        for name in ["remote-users", "x-remote-user", "remoteuser", ""] {
            assert!(!reads_as(name.as_bytes(), "remote-user"), "{name}");
        }
    }

    #[test]
    fn every_spelling_goes_from_fields_and_trailers() {
        let mut headers = HeaderMap::new();
        for name in ["x-user", "x_user", "x.user", "x-users"] {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("admin"));
        }
        headers.append(TRAILER, HeaderValue::from_static("x-ok, X_User"));
        headers.append(TRAILER, HeaderValue::from_static("x-user"));
        remove_every_spelling(&mut headers, &HeaderName::from_static("x-user"));
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>().len(), 2);
        assert!(headers.contains_key("x-users"));
        assert_eq!(headers[TRAILER], "x-ok");
    }
}
