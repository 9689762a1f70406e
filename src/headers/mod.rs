//! Header fields: pure functions over a [`HeaderMap`], one module for each duty that RFC 9110 gives an intermediary.

pub(crate) mod challenge;
pub(crate) mod cookie;
pub(crate) mod destination;
pub(crate) mod forwarded;
pub(crate) mod framing;
pub(crate) mod front;
pub(crate) mod front_cookie;
pub(crate) mod grpc;
pub(crate) mod hop;
pub(crate) mod host;
pub(crate) mod location;
pub(crate) mod owned;
pub(crate) mod present;
pub(crate) mod reserved;
pub(crate) mod trailers;
pub(crate) mod via;
#[cfg(feature = "http2")]
pub(crate) mod websocket;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AsHeaderName, Entry},
};

/// Returns the members of a comma-separated list over all its lines, without surrounding whitespace (RFC 9110, section
/// 5.6.1).
///
/// They are bytes, because `HeaderValue::to_str` fails on a line with a single 8-bit octet and would hide its other
/// members.
pub(crate) fn members(headers: &HeaderMap, name: impl AsHeaderName) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

/// Whether an octet is allowed in a token (RFC 9110, section 5.6.2).
pub(crate) fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Replaces each value of a field for which `map` returns `Some`, and keeps the order of the lines.
pub(crate) fn map_values(headers: &mut HeaderMap, name: HeaderName, mut map: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
    // Fast path: `entry` reserves space for one more field, even if there is none to map.
    if !headers.contains_key(&name) {
        return;
    }
    let Entry::Occupied(mut lines) = headers.entry(name) else { return };
    for line in lines.iter_mut() {
        if let Some(value) = map(line.as_bytes()).and_then(|mapped| HeaderValue::try_from(mapped).ok()) {
            *line = value;
        }
    }
}

/// Removes the leading and trailing whitespace of each value (RFC 9110, section 5.5).
///
/// HTTP/2 servers may leave it in (RFC 9113, section 8.2.1), and every later reader of a value would have to trim it in
/// the same way.
pub(crate) fn trim_values(headers: &mut HeaderMap) {
    fn is_blank(b: Option<&u8>) -> bool {
        matches!(b, Some(b' ' | b'\t'))
    }
    for value in headers.values_mut() {
        let bytes = value.as_bytes();
        // Fast path: most values have none.
        if !is_blank(bytes.first()) && !is_blank(bytes.last()) {
            continue;
        }
        if let Ok(mut trimmed) = HeaderValue::from_bytes(bytes.trim_ascii()) {
            trimmed.set_sensitive(value.is_sensitive());
            *value = trimmed;
        }
    }
}

/// Removes every field for whose name `unwanted` returns `true`.
pub(crate) fn remove_where(headers: &mut HeaderMap, mut unwanted: impl FnMut(&HeaderName) -> bool) {
    // Nothing is allocated if no name matches, which is the usual case.
    let names: Vec<_> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Whether a server may read both names as the same variable: they differ only in case and in characters that are
/// neither letters nor digits. Most servers fold `-` into `_`, some (PHP) `.` too, some (lighttpd) every such
/// character.
pub(super) fn eq_folded(name: &[u8], other: &str) -> bool {
    fn folded(byte: &u8) -> u8 {
        if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
    }
    name.len() == other.len() && name.iter().map(folded).eq(other.as_bytes().iter().map(folded))
}

/// Removes the members of a list field for which `keep` returns `false`, and the field if no member is left.
pub(crate) fn retain_members(headers: &mut HeaderMap, name: HeaderName, mut keep: impl FnMut(&[u8]) -> bool) {
    if members(headers, &name).all(&mut keep) {
        return;
    }
    let left = members(headers, &name).filter(|member| keep(member)).collect::<Vec<_>>().join(&b", "[..]);
    headers.remove(&name);
    if let Ok(value) = HeaderValue::from_bytes(&left)
        && !left.is_empty()
    {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use http::header::AUTHORIZATION;

    use super::*;

    #[test]
    fn values_lose_their_outer_blanks_alone() {
        for (value, trimmed) in [
            (" Negotiate x", "Negotiate x"),
            ("\t \tNegotiate  x\t ", "Negotiate  x"),
            ("a\tb", "a\tb"),
            (" ", ""),
            ("", ""),
        ] {
            for sensitive in [true, false] {
                let mut value = HeaderValue::from_static(value);
                value.set_sensitive(sensitive);
                let mut headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
                headers.append(AUTHORIZATION, HeaderValue::from_static("\tsecond"));
                trim_values(&mut headers);
                assert_eq!(headers.get_all(AUTHORIZATION).iter().collect::<Vec<_>>(), [trimmed, "second"]);
                assert_eq!(headers[AUTHORIZATION].is_sensitive(), sensitive);
            }
        }
    }
}
