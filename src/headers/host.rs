//! `Host` (RFC 9110, section 7.2): whom the client wanted to reach.

use http::{HeaderMap, HeaderValue, Uri, Version, header::HOST};

use crate::{backend::is_authority, error::ErrorKind};

/// Returns the authority that the request is for; `None` if an HTTP/1.0 client named none.
///
/// The target's own authority (absolute-form, `:authority`) wins over the field (RFC 9112, section 3.2.2; RFC 9113,
/// section 8.3.1).
///
/// # Errors
///
/// `Host` repeated, malformed, or missing after HTTP/1.0.
pub(crate) fn authority(uri: &Uri, version: Version, headers: &HeaderMap) -> Result<Option<HeaderValue>, ErrorKind> {
    let mut lines = headers.get_all(HOST).iter();
    let field = lines.next();
    if lines.next().is_some() {
        return Err(ErrorKind::Host);
    }
    let authority = match (uri.authority(), field) {
        (Some(authority), _) => HeaderValue::from_str(authority.as_str()).map_err(|_| ErrorKind::Host)?,
        (None, Some(field)) => field.clone(),
        (None, None) if version <= Version::HTTP_10 => return Ok(None),
        (None, None) => return Err(ErrorKind::Host),
    };
    if is_authority(authority.as_bytes()) { Ok(Some(authority)) } else { Err(ErrorKind::Host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(uri: &str, version: Version, hosts: &[&str]) -> Result<Option<String>, ErrorKind> {
        let headers = hosts.iter().map(|host| (HOST, HeaderValue::from_str(host).unwrap())).collect();
        let authority = authority(&uri.parse().unwrap(), version, &headers)?;
        Ok(authority.map(|value| value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn one_host_and_the_targets_own_wins() {
        use Version as V;
        for (uri, version, hosts, result) in [
            ("/x", V::HTTP_11, &["a.example:80"][..], Ok(Some("a.example:80"))),
            ("http://a.example/x", V::HTTP_11, &["evil.example"], Ok(Some("a.example"))),
            ("http://a.example/x", V::HTTP_2, &[], Ok(Some("a.example"))),
            ("/x", V::HTTP_10, &[], Ok(None)),
            ("/x", V::HTTP_11, &[], Err(ErrorKind::Host)),
            ("/x", V::HTTP_2, &[], Err(ErrorKind::Host)),
            ("/x", V::HTTP_11, &["a", "a"], Err(ErrorKind::Host)),
            ("http://a.example/x", V::HTTP_11, &["a.example", "a.example"], Err(ErrorKind::Host)),
            ("/x", V::HTTP_11, &[""], Err(ErrorKind::Host)),
            ("/x", V::HTTP_11, &["a.example/evil"], Err(ErrorKind::Host)),
            ("/x", V::HTTP_11, &["a.example evil"], Err(ErrorKind::Host)),
            ("/x", V::HTTP_11, &["a.example:99999x"], Err(ErrorKind::Host)),
            ("http://u:p@a.example/x", V::HTTP_11, &["a.example"], Err(ErrorKind::Host)),
        ] {
            assert_eq!(ask(uri, version, hosts), result.map(|host| host.map(str::to_owned)), "{uri} {hosts:?}");
        }
    }
}
