//! `Host` (RFC 9110, section 7.2): the authority that the client requests.

use http::{HeaderMap, HeaderValue, Uri, Version, header::HOST};

use crate::{authority::is_authority, error::ErrorKind};

/// The authority that a client requests.
#[derive(Debug)]
pub(crate) struct RequestedHost {
    pub(crate) value: HeaderValue,
    /// Whether it's taken from the target, and the field may have another value or be missing.
    pub(crate) is_from_target: bool,
}

/// Returns the authority of a request. Only an HTTP/1.0 request may have none at all.
///
/// The target's own authority (absolute-form, `:authority`) takes precedence over the field (RFC 9112, section 3.2.2;
/// RFC 9113, section 8.3.1). In HTTP/1 the field must be valid nevertheless (RFC 9112, section 3.2); in HTTP/2 it's
/// optional.
///
/// # Errors
///
/// If `Host` is repeated or malformed, or if it's missing in HTTP/1.1.
pub(crate) fn requested(uri: &Uri, version: Version, headers: &HeaderMap) -> Result<Option<RequestedHost>, ErrorKind> {
    let mut lines = headers.get_all(HOST).iter();
    let field = lines.next();
    if lines.next().is_some() {
        return Err(ErrorKind::InvalidHost);
    }
    let host = match (uri.authority(), field) {
        (Some(authority), field) => {
            match field {
                Some(field) if version <= Version::HTTP_11 && !is_authority(field.as_bytes()) => {
                    return Err(ErrorKind::InvalidHost);
                }
                None if version == Version::HTTP_11 => return Err(ErrorKind::InvalidHost),
                _ => {}
            }
            let value = HeaderValue::from_str(authority.as_str()).map_err(|_| ErrorKind::InvalidHost)?;
            RequestedHost { value, is_from_target: true }
        }
        (None, Some(field)) => RequestedHost { value: field.clone(), is_from_target: false },
        (None, None) if version <= Version::HTTP_10 => return Ok(None),
        (None, None) => return Err(ErrorKind::InvalidHost),
    };
    if is_authority(host.value.as_bytes()) { Ok(Some(host)) } else { Err(ErrorKind::InvalidHost) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(uri: &str, version: Version, hosts: &[&str]) -> Result<Option<(String, bool)>, ErrorKind> {
        let headers = hosts.iter().map(|host| (HOST, HeaderValue::from_str(host).unwrap())).collect();
        let host = requested(&uri.parse().unwrap(), version, &headers)?;
        Ok(host.map(|host| (host.value.to_str().unwrap().to_owned(), host.is_from_target)))
    }

    #[test]
    fn the_authority_of_the_target_wins_over_host() {
        use Version as V;
        for (uri, version, hosts, result) in [
            ("/x", V::HTTP_11, &["a.example:80"][..], Ok(Some(("a.example:80", false)))),
            ("http://a.example/x", V::HTTP_11, &["evil.example"], Ok(Some(("a.example", true)))),
            ("http://a.example/x", V::HTTP_2, &[], Ok(Some(("a.example", true)))),
            ("http://a.example/x", V::HTTP_2, &["evil.example"], Ok(Some(("a.example", true)))),
            ("http://a.example/x", V::HTTP_11, &[], Err(ErrorKind::InvalidHost)),
            ("http://a.example/x", V::HTTP_11, &[""], Err(ErrorKind::InvalidHost)),
            ("http://a.example/x", V::HTTP_11, &["a.example evil"], Err(ErrorKind::InvalidHost)),
            ("http://a.example/x", V::HTTP_10, &[], Ok(Some(("a.example", true)))),
            ("http://a.example/x", V::HTTP_10, &["a/evil"], Err(ErrorKind::InvalidHost)),
            ("/x", V::HTTP_10, &[], Ok(None)),
            ("/x", V::HTTP_11, &[], Err(ErrorKind::InvalidHost)),
            ("/x", V::HTTP_2, &[], Err(ErrorKind::InvalidHost)),
            ("/x", V::HTTP_11, &["a", "a"], Err(ErrorKind::InvalidHost)),
            ("http://a.example/x", V::HTTP_11, &["a.example", "a.example"], Err(ErrorKind::InvalidHost)),
            ("/x", V::HTTP_11, &[""], Err(ErrorKind::InvalidHost)),
            ("/x", V::HTTP_11, &["a.example/evil"], Err(ErrorKind::InvalidHost)),
            ("/x", V::HTTP_11, &["a.example evil"], Err(ErrorKind::InvalidHost)),
            ("/x", V::HTTP_11, &["a.example:99999x"], Err(ErrorKind::InvalidHost)),
            ("http://u:p@a.example/x", V::HTTP_11, &["a.example"], Err(ErrorKind::InvalidHost)),
        ] {
            assert_eq!(
                ask(uri, version, hosts),
                result.map(|host| host.map(|(host, from)| (host.to_owned(), from))),
                "{uri} {hosts:?}"
            );
        }
    }
}
