//! Hop-by-hop fields (RFC 9110, section 7.6.1), which apply to a single connection and aren't forwarded.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        ALT_SVC, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
};

use super::members;

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes the hop-by-hop fields of a request, and the fields for which `also` returns `true`.
///
/// `TE: trailers` stays, because the response's trailers are forwarded.
pub(crate) fn remove_from_request(headers: &mut HeaderMap, also: impl Fn(&HeaderName) -> bool) {
    let trailers = members(headers, TE).any(accepts_trailers);
    remove(headers, |name| is_hop_by_hop(name) || also(name));
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes the hop-by-hop fields of a response, and `Alt-Svc`.
///
/// `Alt-Svc` names ports and protocols of the backend, and clients would use them with the front's host (RFC 7838,
/// section 2). Fields about the whole host (`Strict-Transport-Security`, `Clear-Site-Data`) are forwarded, because the
/// backend serves a part of that host.
pub(crate) fn remove_from_response(headers: &mut HeaderMap) {
    remove(headers, |name| is_hop_by_hop(name) || name == ALT_SVC);
}

/// Removes the fields for whose names `unwanted` returns `true`, and those that `Connection` nominates.
fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let mut names = headers.keys().filter(|name| unwanted(name)).cloned();
    // A list is an allocation, and many messages have no other such field than `Connection`.
    let (first, others) = (names.next(), names.collect::<Vec<_>>());
    for name in nominated(headers).into_iter().chain(first).chain(others) {
        headers.remove(name);
    }
}

/// Returns the fields that the `Connection` lines nominate.
///
/// `Content-Length` and `Host` can't be nominated, because removing them would enable request smuggling and routing to
/// another host. `Trailer` can't either, because the trailers that it announces are forwarded.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    members(headers, CONNECTION)
        .filter(|member| !is_option(member))
        .filter_map(|member| HeaderName::from_bytes(member).ok())
        .filter(|name| ![CONTENT_LENGTH, HOST, TRAILER].contains(name))
        .collect()
}

/// Whether an option names no field, or one that is removed anyway. Most `Connection` lines contain no others.
fn is_option(member: &[u8]) -> bool {
    [&b"close"[..], b"keep-alive", b"upgrade", b"te"].iter().any(|option| member.eq_ignore_ascii_case(option))
}

/// Whether the field is hop-by-hop. Compares names that the `http` crate knows by their number.
pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE].contains(name)
        || [HTTP2_SETTINGS, KEEP_ALIVE, PROXY_AUTHENTICATION_INFO, PROXY_CONNECTION].contains(name)
}

/// Whether the field is the connection's or the message's own, in any spelling that a server folds into its name, so
/// that no layer may give it a user's name.
pub(crate) fn is_framing(name: &HeaderName) -> bool {
    let folded = name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    HeaderName::try_from(folded)
        .is_ok_and(|name| is_hop_by_hop(&name) || [CONTENT_LENGTH, EXPECT, HOST, TRAILER].contains(&name))
}

/// Whether a member of `TE` is `trailers`, with or without a weight.
fn accepts_trailers(member: &[u8]) -> bool {
    let coding = member.split(|&b| b == b';').next().unwrap_or_default();
    coding.trim_ascii().eq_ignore_ascii_case(b"trailers")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(lines: &[(&str, &[u8])]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value).unwrap()))
            .collect()
    }

    fn left(lines: &[(&str, &[u8])]) -> Vec<String> {
        let mut headers = map(lines);
        remove_from_request(&mut headers, |_| false);
        let mut names: Vec<_> = headers.keys().map(|name| name.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn standard_fields_go() {
        assert_eq!(
            left(&[
                ("connection", b"close"),
                ("keep-alive", b"timeout=99"),
                ("proxy-connection", b"keep-alive"),
                ("proxy-authorization", b"Basic eDp5"),
                ("proxy-authenticate", b"Basic"),
                ("te", b"gzip"),
                ("transfer-encoding", b"chunked"),
                ("upgrade", b"h2c"),
                ("http2-settings", b"AAMAAABkAAQAoAAA"),
                ("trailer", b"x"),
                ("accept", b"*/*"),
            ]),
            ["accept", "trailer"]
        );
    }

    #[test]
    fn alt_svc_is_removed_from_responses() {
        let mut headers =
            map(&[("alt-svc", b"h3=\":443\""), ("alt-svc", b"clear"), ("strict-transport-security", b"max-age=1")]);
        remove_from_response(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["strict-transport-security"]);
    }

    #[test]
    fn nominated_fields_go_whatever_the_line() {
        for connection in
            [&b"x-hop"[..], b"close, X-HOP", b" , ,x-hop\t,", b"\xff\xfe, x-hop", b"keep-alive,bad name,x-hop"]
        {
            assert_eq!(left(&[("connection", connection), ("x-hop", b"1"), ("x-stay", b"1")]), ["x-stay"]);
        }
        let lines: &[(&str, &[u8])] =
            &[("connection", b""), ("connection", b"x-hop"), ("x-hop", b"1"), ("x-hop", b"2")];
        assert!(left(lines).is_empty());
    }

    #[test]
    fn framing_cannot_be_nominated_away() {
        let lines: &[(&str, &[u8])] = &[
            ("connection", b"content-length, host, trailer, te"),
            ("content-length", b"5"),
            ("host", b"a"),
            ("trailer", b"x"),
            ("te", b"trailers"),
        ];
        assert_eq!(left(lines), ["content-length", "host", "te", "trailer"]);
    }

    #[test]
    fn te_keeps_trailers_only() {
        for (te, stays) in
            [(&b"trailers"[..], true), (b"gzip, Trailers;q=0.5", true), (b"gzip", false), (b"xtrailers", false)]
        {
            let mut headers = map(&[("te", te)]);
            remove_from_request(&mut headers, |_| false);
            assert_eq!(headers.get(TE).map(HeaderValue::as_bytes), stays.then_some(&b"trailers"[..]));
        }
    }

    proptest! {
        #[test]
        fn no_nominated_field_survives(
            names in prop::collection::vec("[a-z][a-z0-9-]{0,8}", 1..6),
            pad in "[ \t]{0,3}",
            junk in prop::collection::vec(128_u8.., 0..4),
        ) {
            let names: Vec<_> = names.into_iter().map(|name| format!("x-{name}")).collect();
            let mut value = junk;
            for name in &names {
                value.extend_from_slice(format!(",{pad}{}{pad}", name.to_uppercase()).as_bytes());
            }
            let mut headers: HeaderMap = names
                .iter()
                .map(|name| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("1")))
                .collect();
            headers.append(CONNECTION, HeaderValue::from_bytes(&value).unwrap());
            remove_from_request(&mut headers, |_| false);
            prop_assert!(headers.is_empty(), "{headers:?}");
        }
    }
}
