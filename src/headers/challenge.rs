//! Challenges in `WWW-Authenticate` (RFC 9110, section 11.6.1): the schemes that a server offers, and the steps of a
//! handshake that belongs to the proxy's own credentials.

use http::{HeaderMap, HeaderName, HeaderValue, header::WWW_AUTHENTICATE};

use super::{is_token_byte, remove_where};

static PERSISTENT_AUTH: HeaderName = HeaderName::from_static("persistent-auth");
static PROXY_SUPPORT: HeaderName = HeaderName::from_static("proxy-support");

/// Returns the names of the offered schemes, for an event: each once, at most eight, and nothing else of the field.
pub(crate) fn schemes(headers: &HeaderMap) -> String {
    let mut schemes: Vec<&str> = Vec::new();
    for line in headers.get_all(WWW_AUTHENTICATE) {
        for challenge in challenges(line.as_bytes()) {
            let name = std::str::from_utf8(scheme(challenge)).unwrap_or_default();
            // A longer name isn't a registered scheme, and might be a token without one.
            let is_name = (1..=20).contains(&name.len());
            if is_name && schemes.len() < 8 && !schemes.iter().any(|other| other.eq_ignore_ascii_case(name)) {
                schemes.push(name);
            }
        }
    }
    schemes.join(", ")
}

/// Returns the first token of a `Negotiate` challenge (RFC 4559, section 5), in Base64.
#[cfg(all(unix, feature = "negotiate"))]
pub(crate) fn negotiate_token(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get_all(WWW_AUTHENTICATE).iter().flat_map(|line| challenges(line.as_bytes())).find_map(|challenge| {
        let (scheme, token) = challenge.split_at(scheme(challenge).len());
        let token = token.trim_ascii();
        (scheme.eq_ignore_ascii_case(b"Negotiate") && !token.is_empty()).then_some(token)
    })
}

/// Removes all fields by which a backend responds to credentials: its challenges, and what it signals about the
/// connection.
pub(crate) fn remove_all(headers: &mut HeaderMap) {
    remove_where(headers, is_about_credentials);
}

/// Removes the steps of a handshake, and what the backend signals about the connection. Other challenges remain.
pub(crate) fn remove_handshakes(headers: &mut HeaderMap) {
    remove_where(headers, |name| name != WWW_AUTHENTICATE && is_about_credentials(name));
    let has_handshake = |line: &HeaderValue| challenges(line.as_bytes()).into_iter().any(is_handshake);
    if !headers.get_all(WWW_AUTHENTICATE).iter().any(has_handshake) {
        return;
    }
    let lines: Vec<_> = headers.get_all(WWW_AUTHENTICATE).iter().cloned().collect();
    headers.remove(WWW_AUTHENTICATE);
    for line in lines {
        let others: Vec<_> =
            challenges(line.as_bytes()).into_iter().filter(|challenge| !is_handshake(challenge)).collect();
        if let Ok(value) = HeaderValue::from_bytes(&others.join(&b", "[..]))
            && !others.is_empty()
        {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
}

/// `Persistent-Auth` and `Proxy-Support` signal how a connection is authenticated (MS-NTHT, RFC 4559).
fn is_about_credentials(name: &HeaderName) -> bool {
    // Names are compared as values, because most of a response's are standard ones, which differ from these at once.
    *name == WWW_AUTHENTICATE || *name == PERSISTENT_AUTH || *name == PROXY_SUPPORT
}

/// Whether a challenge is a step of a handshake on the connection to the backend: `Negotiate` or `NTLM` with a token.
/// In a line with an open quotation mark, clients differ in where its challenges begin, so that any occurrence counts.
fn is_handshake(challenge: &[u8]) -> bool {
    let scheme = scheme(challenge);
    let names: [&[u8]; 2] = [b"negotiate", b"ntlm"];
    if commas(challenge).1 {
        let lower = challenge.to_ascii_lowercase();
        return names.iter().any(|name| lower.windows(name.len()).any(|part| part == *name));
    }
    names.iter().any(|name| scheme.eq_ignore_ascii_case(name)) && scheme.len() < challenge.len()
}

/// Returns the name of a challenge's scheme. Empty if it doesn't begin with a token.
fn scheme(challenge: &[u8]) -> &[u8] {
    let end = challenge.iter().position(|&b| !is_token_byte(b)).unwrap_or(challenge.len());
    &challenge[..end]
}

/// Splits a line into its challenges, each with its parameters. Commas separate both, so that an element which isn't a
/// parameter begins the next challenge.
fn challenges(line: &[u8]) -> Vec<&[u8]> {
    let mut challenges: Vec<(usize, usize)> = Vec::new();
    let mut start = 0;
    for end in commas(line).0.into_iter().chain([line.len()]) {
        let element = line[start..end].trim_ascii();
        match challenges.last_mut() {
            _ if element.is_empty() => {}
            Some(last) if is_parameter(element) => last.1 = end,
            _ => challenges.push((start, end)),
        }
        start = end + 1;
    }
    challenges.into_iter().map(|(start, end)| line[start..end].trim_ascii()).collect()
}

/// Whether an element is a parameter of the challenge before it: a token, then `=`, with optional blanks around it.
fn is_parameter(element: &[u8]) -> bool {
    element[scheme(element).len()..].trim_ascii_start().starts_with(b"=")
}

/// Returns the positions of the commas outside of quoted strings, and whether a quoted string has no end.
fn commas(line: &[u8]) -> (Vec<usize>, bool) {
    let (mut commas, mut quoted, mut escaped) = (Vec::new(), false, false);
    for (at, &b) in line.iter().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => commas.push(at),
            _ => {}
        }
    }
    (commas, quoted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(lines: &[&str]) -> HeaderMap {
        let lines = lines.iter().map(|line| (WWW_AUTHENTICATE, HeaderValue::from_str(line).unwrap()));
        HeaderMap::from_iter(lines)
    }

    /// Lines of `WWW-Authenticate`, the schemes in them, and what is left without the handshakes.
    const LINES: &[(&[&str], &str, &[&str])] = &[
        (&["Basic realm=\"x\""], "Basic", &["Basic realm=\"x\""]),
        (&["Negotiate"], "Negotiate", &["Negotiate"]),
        (&["Negotiate oYG3MIG0"], "Negotiate", &[]),
        (&["negotiate\toYG3MIG0=="], "negotiate", &[]),
        (&["Negotiate", "NTLM"], "Negotiate, NTLM", &["Negotiate", "NTLM"]),
        (&["NTLM TlRMTVNTUAAC"], "NTLM", &[]),
        (
            &["Negotiate oYG3, Basic realm=\"a, b\", charset=\"UTF-8\""],
            "Negotiate, Basic",
            &["Basic realm=\"a, b\", charset=\"UTF-8\""],
        ),
        (&["Basic realm=\"a, Negotiate oYG3\""], "Basic", &["Basic realm=\"a, Negotiate oYG3\""]),
        (&["Basic realm=\"a\\\", b\", Negotiate oYG3,"], "Basic, Negotiate", &["Basic realm=\"a\\\", b\""]),
        (
            &["Digest realm = \"x\" , qop=\"auth,auth-int\",, Negotiate oYG3==", "Bearer"],
            "Digest, Negotiate, Bearer",
            &["Digest realm = \"x\" , qop=\"auth,auth-int\"", "Bearer"],
        ),
        (&["Basic realm=\"open, Negotiate oYG3"], "Basic", &[]),
        (&["Basic realm=\"open"], "Basic", &["Basic realm=\"open"]),
        (&["Basic", "BASIC, bAsIc"], "Basic", &["Basic", "BASIC, bAsIc"]),
        (&["YIIGRgYGKwYBBQUCoIIGOjCCBjagDTAL"], "", &["YIIGRgYGKwYBBQUCoIIGOjCCBjagDTAL"]),
        (&["=, \"x\""], "", &["=, \"x\""]),
        (&["a, b, c, d, e, f, g, h, i, j"], "a, b, c, d, e, f, g, h", &["a, b, c, d, e, f, g, h, i, j"]),
        (&[""], "", &[""]),
        (&[], "", &[]),
    ];

    #[cfg(all(unix, feature = "negotiate"))]
    #[test]
    fn the_token_of_a_handshake_is_found_among_the_challenges() {
        for (challenges, token) in [
            (&[][..], None),
            (&["Negotiate"], None),
            (&["Negotiate "], None),
            (&["Negotiated b2s="], None),
            (&["Basic realm=\"a\""], None),
            (&["Negotiate b2s="], Some("b2s=")),
            (&["nEGOTIATE   b2s= "], Some("b2s=")),
            (&["Basic realm=\"a, b\", Negotiate b2s=, Bearer"], Some("b2s=")),
            (&["Basic realm=\"a\"", "Negotiate b2s="], Some("b2s=")),
            (&["Basic realm=\"a, Negotiate b2s=\""], None),
        ] {
            assert_eq!(negotiate_token(&map(challenges)), token.map(str::as_bytes), "{challenges:?}");
        }
    }

    #[test]
    fn challenges_are_told_apart() {
        for (lines, names, left) in LINES {
            let mut headers = map(lines);
            assert_eq!(schemes(&headers), *names, "{lines:?}");
            remove_handshakes(&mut headers);
            assert_eq!(headers.get_all(WWW_AUTHENTICATE).iter().collect::<Vec<_>>(), *left, "{lines:?}");
        }
    }

    #[test]
    fn fields_about_credentials_are_removed() {
        let mut headers = map(&["Basic", "Negotiate oYG3"]);
        for name in ["persistent-auth", "proxy-support", "x-ok", "proxy-authenticate"] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        let mut rest = headers.clone();
        remove_all(&mut headers);
        assert_eq!(headers.len(), 2);
        assert!(headers.contains_key("x-ok") && headers.contains_key("proxy-authenticate"));
        remove_handshakes(&mut rest);
        assert_eq!(rest.len(), 3);
        assert_eq!(rest[WWW_AUTHENTICATE], "Basic");
    }

    proptest! {
        /// Lines of everything that separates challenges, parameters and quoted strings.
        #[test]
        fn no_handshake_is_left_and_others_stay(
            lines in prop::collection::vec("(Negotiate|NTLM|Basic|x|=|,| |\t|\"|\\\\|realm=\"|oYG3|é){0,12}", 0..4),
        ) {
            let mut headers = HeaderMap::new();
            for line in &lines {
                headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(line.as_bytes()).unwrap());
            }
            let of = |headers: &HeaderMap| -> Vec<Vec<u8>> {
                let lines = headers.get_all(WWW_AUTHENTICATE).iter();
                lines.flat_map(|line| challenges(line.as_bytes()).into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>()).collect()
            };
            let mut others = of(&headers);
            others.retain(|challenge| !is_handshake(challenge));
            remove_handshakes(&mut headers);
            prop_assert_eq!(of(&headers), others);
        }
    }
}
