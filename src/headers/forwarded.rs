//! `X-Forwarded-*`, `Forwarded` (RFC 7239) and `X-Real-IP`, which describe the client and the front to the backend.
//!
//! Those in a request are removed unless the peer is a trusted proxy, because any client can send them.

use std::{
    fmt::Write as _,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED, uri::Scheme};
use ipnet::IpNet;

use super::{eq_folded, is_token_byte, members};
use crate::observe;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Which forwarding fields are sent, and which peers' fields are trusted.
#[derive(Clone, Debug)]
pub(crate) struct ForwardedPolicy {
    /// `X-Forwarded-For`, `-Host`, `-Proto`, and `-Prefix` if the backend doesn't see the public prefix.
    pub(crate) x_forwarded: bool,
    pub(crate) forwarded: bool,
    pub(crate) x_real_ip: bool,
    /// The scheme that clients use to reach the front. A request can't prove it: HTTP/2's `:scheme` is chosen by the
    /// client.
    pub(crate) proto: Option<Scheme>,
    pub(crate) trusted: Vec<IpNet>,
    /// Whether a peer without an address is trusted, such as one on a Unix socket.
    pub(crate) trust_unix: bool,
    /// Whether the missing addresses have been logged. Shared by all clones, so that it's logged once.
    pub(crate) warned_no_address: Arc<AtomicBool>,
}

impl Default for ForwardedPolicy {
    fn default() -> Self {
        Self {
            x_forwarded: true,
            forwarded: false,
            x_real_ip: false,
            proto: None,
            trusted: Vec::new(),
            trust_unix: false,
            warned_no_address: Arc::default(),
        }
    }
}

/// How a request has reached the front, which the fields describe.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Received<'a> {
    pub(crate) peer: Option<IpAddr>,
    /// Whether the peer is trusted. The fields of an untrusted peer must have been removed before.
    pub(crate) is_trusted: bool,
    pub(crate) host: Option<&'a HeaderValue>,
    /// The public prefix, if the backend doesn't see it in the path.
    pub(crate) prefix: Option<&'a str>,
}

impl ForwardedPolicy {
    /// Whether the forwarding fields of this peer are kept.
    pub(crate) fn trusts(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.trust_unix, |peer| self.trusted.iter().any(|net| net.contains(&peer)))
    }

    /// Sets the fields.
    pub(crate) fn apply(&self, headers: &mut HeaderMap, received: Received<'_>) {
        if self.x_forwarded {
            self.apply_x_forwarded(headers, received);
        }
        if self.forwarded {
            let element = self.element(received.peer, received.host);
            append_member(headers, FORWARDED, &element);
        }
        if self.x_real_ip
            && let Some(peer) = received.peer
            && !received.has(headers, &X_REAL_IP)
        {
            headers.insert(X_REAL_IP, ip_value(peer));
        }
    }

    fn apply_x_forwarded(&self, headers: &mut HeaderMap, received: Received<'_>) {
        match received.peer {
            Some(peer) if received.has(headers, &X_FORWARDED_FOR) => {
                append_member(headers, X_FORWARDED_FOR, &peer.to_string());
            }
            Some(peer) => drop(headers.insert(X_FORWARDED_FOR, ip_value(peer))),
            None if self.trust_unix => {}
            None => self.warn_no_address(),
        }
        if let Some(host) = received.host
            && !received.has(headers, &X_FORWARDED_HOST)
        {
            headers.insert(X_FORWARDED_HOST, host.clone());
        }
        if let Some(proto) = &self.proto
            && !received.has(headers, &X_FORWARDED_PROTO)
        {
            headers.insert(X_FORWARDED_PROTO, scheme_value(proto));
        }
        // A trusted proxy in front may have stripped a prefix too. The public prefix is both, one after the other.
        if let Some(prefix) = received.prefix {
            let outer = headers.get(X_FORWARDED_PREFIX).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let whole = [outer.trim_end_matches('/'), prefix].concat();
            if let Ok(value) = HeaderValue::try_from(whole)
                && !value.is_empty()
            {
                headers.insert(X_FORWARDED_PREFIX, value);
            }
        }
    }

    /// Logs once that the backend doesn't get the addresses of its clients, because nothing else shows it.
    #[cold]
    fn warn_no_address(&self) {
        // The load comes first, so that later requests don't write to the shared cache line.
        if !self.warned_no_address.load(Ordering::Relaxed) && !self.warned_no_address.swap(true, Ordering::Relaxed) {
            observe::no_peer_address();
        }
    }

    /// Returns this proxy's element of `Forwarded`. A peer without an address is `unknown` (RFC 7239, section 6.2).
    fn element(&self, peer: Option<IpAddr>, host: Option<&HeaderValue>) -> String {
        let mut element = match peer {
            Some(IpAddr::V4(addr)) => format!("for={addr}"),
            Some(IpAddr::V6(addr)) => format!("for=\"[{addr}]\""),
            None => "for=unknown".to_owned(),
        };
        // `Host` has been checked to be an authority, so it contains nothing that ends a quoted-string.
        if let Some(host) = host.and_then(|host| host.to_str().ok()) {
            let quote = if host.bytes().all(is_token_byte) { "" } else { "\"" };
            let _ = write!(element, ";host={quote}{host}{quote}");
        }
        if let Some(proto) = &self.proto {
            let _ = write!(element, ";proto={proto}");
        }
        element
    }
}

impl Received<'_> {
    /// Whether the peer has set a field. Without a look-up for an untrusted peer, whose fields have been removed.
    fn has(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        self.is_trusted && headers.contains_key(name)
    }
}

/// Returns the hosts in `X-Forwarded-Host`, which a proxy in front has set.
pub(crate) fn hosts(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    members(headers, X_FORWARDED_HOST)
}

/// Whether the field is one of the forwarding fields, in any spelling that a server folds into the same variable.
pub(crate) fn is_forwarding_field(name: &str) -> bool {
    // Nearly all of them begin with an `x`, and few other fields do.
    let name = name.as_bytes();
    match name.first() {
        Some(b'x') => {
            ["x-forwarded", "x-real-ip"].iter().any(|claim| eq_folded(name, claim))
                || name.get(.."x-forwarded-".len()).is_some_and(|start| eq_folded(start, "x-forwarded-"))
        }
        _ => name == b"forwarded",
    }
}

/// Appends a member to a list field, and joins its lines to one.
fn append_member(headers: &mut HeaderMap, name: HeaderName, member: &str) {
    let mut line = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]);
    if !line.is_empty() {
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(member.as_bytes());
    if let Ok(value) = HeaderValue::try_from(line) {
        headers.insert(name, value);
    }
}

/// Formats an address. IPv4 is formatted by hand, because every request needs it and `fmt` costs ten times as much.
fn ip_value(ip: IpAddr) -> HeaderValue {
    let value = match ip {
        IpAddr::V4(ip) => {
            let (mut text, mut length) = ([0; 15], 0);
            let mut push = |byte| {
                text[length] = byte;
                length += 1;
            };
            for (index, octet) in ip.octets().into_iter().enumerate() {
                if index > 0 {
                    push(b'.');
                }
                if octet >= 100 {
                    push(b'0' + octet / 100);
                }
                if octet >= 10 {
                    push(b'0' + octet / 10 % 10);
                }
                push(b'0' + octet % 10);
            }
            HeaderValue::from_bytes(&text[..length])
        }
        IpAddr::V6(ip) => HeaderValue::try_from(ip.to_string()),
    };
    value.unwrap_or(HeaderValue::from_static("unknown"))
}

fn scheme_value(scheme: &Scheme) -> HeaderValue {
    HeaderValue::from_str(scheme.as_str()).unwrap_or(HeaderValue::from_static("http"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn applied(
        policy: &ForwardedPolicy,
        lines: &[(&'static str, &str)],
        peer: &str,
        prefix: Option<&str>,
    ) -> HeaderMap {
        let mut headers: HeaderMap = lines
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect();
        let host = headers.get("host").cloned();
        let peer = Some(peer.parse().unwrap());
        policy.apply(&mut headers, Received { peer, is_trusted: true, host: host.as_ref(), prefix });
        headers
    }

    #[test]
    fn the_known_forwarding_fields_are_set() {
        let policy = ForwardedPolicy {
            forwarded: true,
            x_real_ip: true,
            proto: Some(Scheme::HTTPS),
            ..ForwardedPolicy::default()
        };
        let headers = applied(&policy, &[("host", "front.example:8443")], "2001:db8::1", Some("/mydir"));
        assert_eq!(headers["x-forwarded-for"], "2001:db8::1");
        assert_eq!(headers["x-forwarded-host"], "front.example:8443");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-prefix"], "/mydir");
        assert_eq!(headers["x-real-ip"], "2001:db8::1");
        assert_eq!(headers["forwarded"], r#"for="[2001:db8::1]";host="front.example:8443";proto=https"#);
        let headers = applied(&policy, &[("host", "front.example")], "192.0.2.1", None);
        assert_eq!(headers["forwarded"], "for=192.0.2.1;host=front.example;proto=https");
        assert!(!headers.contains_key("x-forwarded-prefix"));
    }

    #[test]
    fn lists_are_appended_to() {
        let lines = [
            ("x-forwarded-for", "203.0.113.9, 198.51.100.1"),
            ("x-forwarded-for", "198.51.100.2"),
            ("x-forwarded-host", "outer"),
        ];
        let headers = applied(&ForwardedPolicy::default(), &lines, "192.0.2.1", None);
        assert_eq!(headers["x-forwarded-for"], "203.0.113.9, 198.51.100.1, 198.51.100.2, 192.0.2.1");
        assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(headers["x-forwarded-host"], "outer");
    }

    #[test]
    fn an_untrusted_peer_has_no_say() {
        let mut headers = HeaderMap::new();
        for name in [X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REAL_IP] {
            headers.insert(name, HeaderValue::from_static("forged"));
        }
        let policy = ForwardedPolicy { x_real_ip: true, proto: Some(Scheme::HTTPS), ..ForwardedPolicy::default() };
        let host = HeaderValue::from_static("front.example");
        let peer = Some([192, 0, 2, 1].into());
        policy.apply(&mut headers, Received { peer, host: Some(&host), ..Received::default() });
        let values = [X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REAL_IP].map(|name| &headers[name]);
        assert_eq!(values, ["192.0.2.1", "front.example", "https", "192.0.2.1"]);
        assert_eq!(headers.len(), 4);
    }

    #[test]
    fn peers_are_trusted_by_block() {
        let policy = ForwardedPolicy {
            trusted: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ..ForwardedPolicy::default()
        };
        for (peer, trusted) in [("10.1.2.3", true), ("11.0.0.1", false), ("fd00::1", true), ("fe80::1", false)] {
            assert_eq!(policy.trusts(Some(peer.parse().unwrap())), trusted, "{peer}");
        }
        assert!(!policy.trusts(None));
        assert!(ForwardedPolicy { trust_unix: true, ..ForwardedPolicy::default() }.trusts(None));
    }

    #[test]
    fn claims() {
        for name in [
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-anything",
            "x_forwarded_for",
            "x.forwarded-host",
            "x-real-ip",
            "x_real_ip",
            "x-forwarded",
            "x~forwarded~for",
        ] {
            assert!(is_forwarding_field(&name.to_ascii_lowercase()), "{name}");
        }
        for name in ["x-forward", "x-real-ips", "x-original-host", "forwarded-by", "accept", "x-original-host"] {
            assert!(!is_forwarding_field(&name.to_ascii_lowercase()), "{name}");
        }
    }

    proptest! {
        #[test]
        fn an_address_is_written_as_its_display(ip: IpAddr) {
            prop_assert_eq!(ip_value(ip), ip.to_string());
        }

        #[test]
        fn forwarded_is_always_one_element(host in "[a-z0-9.-]{1,20}(:[0-9]{1,4})?", ip: IpAddr) {
            let policy = ForwardedPolicy { forwarded: true, ..ForwardedPolicy::default() };
            let headers = applied(&policy, &[("host", &host)], &ip.to_string(), None);
            let value = headers["forwarded"].to_str().unwrap();
            prop_assert!(!value.contains(',') && value.matches(';').count() == 1, "{value}");
            prop_assert!(value.matches('"').count().is_multiple_of(2), "{value}");
        }
    }
}
