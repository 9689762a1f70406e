//! `Via` and `Max-Forwards` (RFC 9110, sections 7.6.3 and 7.6.2): the intermediaries that a message has passed, and how
//! many it may still pass.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
};

use http::{
    HeaderMap, HeaderValue, Version,
    header::{MAX_FORWARDS, VIA},
};

use super::members;

/// The name of a proxy in `Via`, with the values that it appends.
#[derive(Clone, Debug)]
pub(crate) struct Pseudonym {
    name: String,
    values: [HeaderValue; 3],
}

impl Pseudonym {
    /// Creates a unique name, so that a proxy detects its own loops and isn't confused with another proxy.
    pub(crate) fn random() -> Self {
        let random = RandomState::new().build_hasher().finish();
        // Consists of token characters, so `new` accepts it.
        Self::new(&format!("tower-reverse-proxy-{random:016x}")).unwrap_or_else(|| unreachable!("a token"))
    }

    /// Uses the given name; `None` if it isn't a token or an authority.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let is_name =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:[]".contains(&b));
        let value = |version| HeaderValue::try_from(format!("{version} {name}")).ok();
        if !is_name {
            return None;
        }
        Some(Self { name: name.to_owned(), values: [value("1.0")?, value("1.1")?, value("2.0")?] })
    }

    /// Whether the message has passed this proxy before.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        members(headers, VIA)
            .filter_map(|member| member.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(1))
            .any(|received_by| received_by.eq_ignore_ascii_case(self.name.as_bytes()))
    }

    /// Appends this proxy, with the version in which the message was received.
    pub(crate) fn append_to(&self, headers: &mut HeaderMap, version: Version) {
        let [http_10, http_11, http_2] = &self.values;
        let value = match version {
            Version::HTTP_09 | Version::HTTP_10 => http_10,
            Version::HTTP_2 => http_2,
            _ => http_11,
        };
        headers.append(VIA, value.clone());
    }
}

/// Decrements `Max-Forwards`. Returns `false` if the message must not be forwarded any more. A value that isn't a
/// number stays unchanged.
pub(crate) fn decrement_max_forwards(headers: &mut HeaderMap) -> bool {
    let Some(left) = headers.get(MAX_FORWARDS).and_then(|value| value.to_str().ok()?.parse::<u64>().ok()) else {
        return true;
    };
    let Some(left) = left.checked_sub(1) else { return false };
    headers.insert(MAX_FORWARDS, left.into());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pseudonym_matches_its_own_entries_only() {
        let (a, b) = (Pseudonym::random(), Pseudonym::random());
        let mut headers = HeaderMap::new();
        a.append_to(&mut headers, Version::HTTP_2);
        assert!(a.is_in(&headers) && !b.is_in(&headers));
        b.append_to(&mut headers, Version::HTTP_11);
        assert!(a.is_in(&headers) && b.is_in(&headers));
        assert_eq!(headers.get_all(VIA).iter().count(), 2);

        let gate = Pseudonym::new("gate").unwrap();
        for (via, seen) in [
            ("1.1 gate", true),
            ("HTTP/1.1  GATE (comment), 1.0 x", true),
            ("1.0 x, 1.1 gate", true),
            ("1.1 gates", false),
            ("gate", false),
            ("1.1 x (gate)", false),
        ] {
            let headers = HeaderMap::from_iter([(VIA, HeaderValue::from_static(via))]);
            assert_eq!(gate.is_in(&headers), seen, "{via}");
        }
    }

    #[test]
    fn names() {
        assert!(Pseudonym::new("gate.example:8080").is_some());
        for name in ["", "a b", "a,b", "a\r\n", "é"] {
            assert!(Pseudonym::new(name).is_none(), "{name:?}");
        }
    }

    #[test]
    fn forwards_are_counted() {
        for (value, goes_on, left) in [("5", true, "4"), ("1", true, "0"), ("0", false, "0"), ("x", true, "x")] {
            let mut headers = HeaderMap::from_iter([(MAX_FORWARDS, HeaderValue::from_static(value))]);
            assert_eq!(decrement_max_forwards(&mut headers), goes_on);
            assert_eq!(headers[MAX_FORWARDS], left);
        }
    }
}
