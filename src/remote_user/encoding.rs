//! The text of a field's value: which names a field can represent, and how they are written.

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::identity::is_representable;

/// How a [`RemoteUserLayer`](crate::RemoteUserLayer::encoding) writes the names in its header fields.
///
/// Servers don't agree on the octets of a field that aren't ASCII: PHP reads `jörg` from UTF-8, WSGI and Node read
/// `jÃ¶rg`. A misread name isn't an error at the backend, it's a second account. Two different names are never written
/// alike, whatever the encoding is.
///
/// An encoding doesn't extend the names that can be sent. An empty name, surrounding whitespace and control characters
/// refuse the request in each of them, because a backend that decodes them would get them.
///
/// ```
/// use tower_reverse_proxy::{RemoteUserLayer, remote_user::Encoding};
///
/// // `jörg` becomes `j%C3%B6rg`.
/// let layer = RemoteUserLayer::new().encoding(Encoding::Percent);
/// # let _ = layer;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// The octets of UTF-8, as they are. The default.
    #[default]
    Utf8,
    /// Percent-encoded UTF-8 (RFC 3986, section 2.1): `j%C3%B6rg`. All octets are escaped but letters, digits and
    /// `-._~`, thus `%` itself and `+`, which some decoders read as a space.
    Percent,
    /// An encoded-word (RFC 2047) with Q encoding in UTF-8: `=?UTF-8?Q?j=C3=B6rg?=`. A long name is written as several
    /// words with spaces between them, which a decoder removes. A name in ASCII is sent as it is, unless it has `=?` in
    /// it, as an encoded-word has.
    Rfc2047,
    /// Base64 of the UTF-8 (RFC 4648, section 4), with padding: `asO2cmc=`. Names in ASCII are encoded, too.
    Base64,
}

impl Encoding {
    /// Encodes a name or another value. `None` if it isn't [representable](is_representable).
    pub(super) fn encode(self, text: &str) -> Option<Cow<'_, str>> {
        is_representable(text).then(|| match self {
            Self::Utf8 => text.into(),
            Self::Percent => percent(text).into(),
            Self::Rfc2047 if text.is_ascii() && !text.contains("=?") => text.into(),
            Self::Rfc2047 => encoded_words(text).into(),
            Self::Base64 => BASE64_STANDARD.encode(text).into(),
        })
    }

    /// Whether an encoding can insert the character into a value that doesn't contain it.
    pub(super) fn may_insert(c: char) -> bool {
        c.is_ascii_alphanumeric() || " %+-/=?".contains(c)
    }
}

fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for b in text.bytes() {
        push_escaped(&mut encoded, '%', b, b.is_ascii_alphanumeric() || b"-._~".contains(&b));
    }
    encoded
}

/// Encoded-words of at most 75 octets, each with whole characters (RFC 2047, sections 2 and 5).
fn encoded_words(text: &str) -> String {
    const START: &str = "=?UTF-8?Q?";
    const END: &str = "?=";
    let mut encoded = START.to_owned();
    let (mut length, mut word) = (START.len() + END.len(), String::new());
    for c in text.chars() {
        word.clear();
        for &b in c.encode_utf8(&mut [0; 4]).as_bytes() {
            // The octets that stand for themselves in every place of a header field (section 5, rule 3).
            push_escaped(&mut word, '=', b, b.is_ascii_alphanumeric() || b"!*-".contains(&b));
        }
        if length + word.len() > 75 {
            encoded.extend([END, " ", START]);
            length = START.len() + END.len();
        }
        encoded.push_str(&word);
        length += word.len();
    }
    encoded + END
}

/// Appends an octet, or the character that introduces an escape and its two hex digits.
fn push_escaped(text: &mut String, escape: char, b: u8, stands_for_itself: bool) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if stands_for_itself {
        text.push(b.into());
    } else {
        text.extend([escape, DIGITS[usize::from(b >> 4)].into(), DIGITS[usize::from(b & 15)].into()]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const ALL: [Encoding; 4] = [Encoding::Utf8, Encoding::Percent, Encoding::Rfc2047, Encoding::Base64];

    #[test]
    fn names_are_encoded() {
        for (name, percent, rfc2047, base64) in [
            ("alice", "alice", "alice", "YWxpY2U="),
            ("jörg", "j%C3%B6rg", "=?UTF-8?Q?j=C3=B6rg?=", "asO2cmc="),
            ("CORP\\alice", "CORP%5Calice", "CORP\\alice", "Q09SUFxhbGljZQ=="),
            ("a b+c%41", "a%20b%2Bc%2541", "a b+c%41", "YSBiK2MlNDE="),
            (
                "=?UTF-8?Q?x?=",
                "%3D%3FUTF-8%3FQ%3Fx%3F%3D",
                "=?UTF-8?Q?=3D=3FUTF-8=3FQ=3Fx=3F=3D?=",
                "PT9VVEYtOD9RP3g/PQ==",
            ),
            ("名", "%E5%90%8D", "=?UTF-8?Q?=E5=90=8D?=", "5ZCN"),
        ] {
            let encoded = ALL.map(|encoding| encoding.encode(name).unwrap().into_owned());
            assert_eq!(encoded, [name, percent, rfc2047, base64]);
        }
    }

    #[test]
    fn the_same_names_are_refused_in_every_encoding() {
        for name in ["", " ", "alice ", " alice", "a\r\nX: 1", "a\0", "\u{a0}a", "a\u{85}b", "\t"] {
            for encoding in ALL {
                assert_eq!(encoding.encode(name), None, "{name:?} in {encoding:?}");
            }
        }
    }

    /// Decodes a value as its readers do.
    fn decode(encoding: Encoding, value: &str) -> String {
        fn unescaped(text: &str, escape: char) -> Vec<u8> {
            let mut bytes = Vec::new();
            let mut chars = text.chars();
            while let Some(c) = chars.next() {
                if c == escape {
                    let digits: String = chars.by_ref().take(2).collect();
                    bytes.push(u8::from_str_radix(&digits, 16).unwrap());
                } else {
                    bytes.push(c.try_into().unwrap());
                }
            }
            bytes
        }
        let bytes = match encoding {
            Encoding::Utf8 => value.into(),
            Encoding::Percent => unescaped(value, '%'),
            Encoding::Rfc2047 if !value.starts_with("=?") => value.into(),
            Encoding::Rfc2047 => {
                let words = value.split(' ').map(|word| {
                    assert!(word.len() <= 75, "{word}");
                    let text = word.strip_prefix("=?UTF-8?Q?").unwrap().strip_suffix("?=").unwrap();
                    assert!(!text.contains(['?', '_', ' ']), "{word}");
                    // Each word is valid by itself.
                    String::from_utf8(unescaped(text, '=')).unwrap()
                });
                words.collect::<String>().into()
            }
            Encoding::Base64 => BASE64_STANDARD.decode(value).unwrap(),
        };
        String::from_utf8(bytes).unwrap()
    }

    proptest! {
        #[test]
        fn every_name_is_decoded_to_itself(name in "[a-zé名%=?_+ ,\\\\@🦀]{1,60}") {
            prop_assume!(is_representable(&name));
            for encoding in ALL {
                let value = encoding.encode(&name).unwrap();
                prop_assert_eq!(&decode(encoding, &value), &name);
                prop_assert!(encoding == Encoding::Utf8 || value.is_ascii());
            }
        }

        #[test]
        fn no_two_names_are_written_alike(names in prop::collection::hash_set("[ab%=?_Q3D6É]{1,5}", 2..60)) {
            for encoding in ALL {
                let mut written = HashMap::new();
                for name in &names {
                    let other = written.insert(encoding.encode(name).unwrap(), name);
                    prop_assert!(other.is_none(), "{:?} and {:?} in {:?}", name, other, encoding);
                }
            }
        }

        #[test]
        fn no_encoding_inserts_a_character_that_may_separate(name in "[a-zé名%=?🦀]{1,60}") {
            for encoding in ALL {
                let value = encoding.encode(&name).unwrap();
                for c in value.chars().filter(|c| !name.contains(*c)) {
                    prop_assert!(Encoding::may_insert(c), "{:?} in {:?}", c, value);
                }
            }
        }
    }
}
