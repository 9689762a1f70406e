//! The syntax of an authority, which is the value of `Host` and a part of a URL.

use std::net::Ipv6Addr;

use http::uri::Authority;

/// Whether this is `uri-host [":" port]` (RFC 9110, section 7.2), with a non-empty host and a port below 65,536.
pub(crate) fn is_authority(text: &[u8]) -> bool {
    // Fast path: without a port or an IPv6 address, the host is all there is.
    if is_name(text) {
        return true;
    }
    let (host, port) = match text.iter().rposition(|&b| b == b':') {
        // All colons of an IPv6 address stand before its closing bracket.
        Some(colon) if !text[colon..].contains(&b']') => (&text[..colon], Some(&text[colon + 1..])),
        _ => (text, None),
    };
    let is_port = port.is_none_or(|port| {
        port.is_empty()
            || port.iter().all(u8::is_ascii_digit) && str::from_utf8(port).is_ok_and(|port| port.parse::<u16>().is_ok())
    });
    is_port && is_host(host)
}

/// Returns an authority without its userinfo, which no origin has (RFC 6454, section 4) and which may be a password.
pub(crate) fn without_userinfo(authority: &Authority) -> &str {
    let text = authority.as_str();
    text.rsplit_once('@').map_or(text, |(_, host)| host)
}

fn is_host(host: &[u8]) -> bool {
    match host {
        [b'[', address @ .., b']'] => str::from_utf8(address).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        _ => is_name(host),
    }
}

/// Whether this is a reg-name: unreserved, sub-delims and percent-encoded (RFC 3986, section 3.2.2). The comma is
/// excluded, because it separates the hosts in a list such as X-Forwarded-Host.
fn is_name(host: &[u8]) -> bool {
    !host.is_empty() && host.iter().all(|&b| NAME_BYTES[usize::from(b)])
}

/// A table, because each request has a `Host`.
static NAME_BYTES: [bool; 256] = {
    let (mut table, mut b) = ([false; 256], 0);
    while b < table.len() {
        table[b] = is_name_byte(b as u8);
        b += 1;
    }
    table
};

const fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(b, b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'('..=b'+' | b';' | b'=' | b'%')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_authorities_are_recognised() {
        for good in ["a", "a.example", "a:80", "a:", "[::1]", "[::1]:80", "127.0.0.1:65535", "a_b", "xn--a%20"] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a:b", "a:65536", "a:99999x", "a:+1", "u@a", "a/b", "a b", "[::1", "::1", "[x]", "a,b:1:2", "é",
            "a\\b",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }
}
