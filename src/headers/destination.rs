//! `Destination` (RFC 4918, section 10.3): the target of a `COPY` or `MOVE`, mapped in requests as `Location` is in
//! responses.

use std::borrow::Cow;

use http::{HeaderName, Method, uri::Scheme};

use super::location::same_authority;
use crate::error::ErrorKind;

pub(crate) const DESTINATION: HeaderName = HeaderName::from_static("destination");

/// Whether a method has a `Destination`.
pub(crate) fn is_for(method: &Method) -> bool {
    matches!(method.as_str(), "COPY" | "MOVE")
}

/// Returns the path and query of a `Destination` at the front, in either form of RFC 4918, section 8.3.
///
/// `hosts` are the authorities of the front. Both `http` and `https` are accepted, because a server behind TLS doesn't
/// know which scheme its clients use.
///
/// # Errors
///
/// If the value isn't a URL or an absolute path, or if it names another server, because a backend could take it for its
/// own.
pub(crate) fn path_and_query<'a, 'h>(
    value: &'a [u8],
    hosts: impl IntoIterator<Item = &'h [u8]>,
) -> Result<Cow<'a, str>, ErrorKind> {
    let text = str::from_utf8(value).map_err(|_| ErrorKind::InvalidDestination)?;
    if text.contains('#') {
        return Err(ErrorKind::InvalidDestination);
    }
    if text.starts_with('/') {
        // Parsers of URLs read an authority after `//` and `/\`, so neither begins an absolute path.
        let is_path = !matches!(text.as_bytes().get(1), Some(b'/' | b'\\'));
        return if is_path { Ok(Cow::Borrowed(text)) } else { Err(ErrorKind::InvalidDestination) };
    }
    let (scheme, rest) = text.split_once("://").ok_or(ErrorKind::InvalidDestination)?;
    let scheme = [Scheme::HTTP, Scheme::HTTPS].into_iter().find(|known| scheme.eq_ignore_ascii_case(known.as_str()));
    let scheme = scheme.ok_or(ErrorKind::ForeignDestination)?;
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '\\']).unwrap_or(rest.len()));
    if !hosts.into_iter().any(|host| same_authority(authority.as_bytes(), host, &scheme)) {
        return Err(ErrorKind::ForeignDestination);
    }
    match tail.as_bytes().first() {
        Some(b'/') => Ok(Cow::Borrowed(tail)),
        Some(b'\\') => Err(ErrorKind::InvalidDestination),
        _ => Ok(Cow::Owned(["/", tail].concat())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_of_the_front_are_paths() {
        use ErrorKind as E;
        for (value, result) in [
            ("/mydir/y", Ok("/mydir/y")),
            ("/mydir/a%20b?c=/d", Ok("/mydir/a%20b?c=/d")),
            ("http://front.example/mydir/y", Ok("/mydir/y")),
            ("https://FRONT.example:443/mydir/y", Ok("/mydir/y")),
            ("http://public.example:8443//x", Ok("//x")),
            ("http://front.example", Ok("/")),
            ("http://front.example?a", Ok("/?a")),
            ("http://front.example:81/y", Err(E::ForeignDestination)),
            ("http://other.example/y", Err(E::ForeignDestination)),
            ("http://front.example.evil/y", Err(E::ForeignDestination)),
            ("http://front.example@evil/y", Err(E::ForeignDestination)),
            ("http://u:p@front.example/y", Err(E::ForeignDestination)),
            ("ftp://front.example/y", Err(E::ForeignDestination)),
            ("http:///y", Err(E::ForeignDestination)),
            ("http://front.example\\y", Err(E::InvalidDestination)),
            ("//front.example/y", Err(E::InvalidDestination)),
            ("/\\front.example/y", Err(E::InvalidDestination)),
            ("/y#z", Err(E::InvalidDestination)),
            ("y", Err(E::InvalidDestination)),
            ("", Err(E::InvalidDestination)),
            ("*", Err(E::InvalidDestination)),
        ] {
            let hosts = [&b"front.example"[..], b"public.example:8443"];
            assert_eq!(path_and_query(value.as_bytes(), hosts).as_deref(), result.as_deref(), "{value}");
        }
        assert_eq!(path_and_query(b"/\xff", []), Err(E::InvalidDestination));
    }
}
