//! The directory that is the backend's.

use std::{convert::Infallible, error, fmt, str::FromStr, sync::Arc};

use http::uri::PathAndQuery;

use super::dots::{has_dots, is_decodable, ups};

/// A directory of the application that is the backend's: `/mydir` stands for `/mydir`, `/mydir/` and all below.
///
/// It ends at a segment: `/mydirx` is not in it. It's compared with the raw path, byte for byte: `/%6dydir` is another
/// path, as it is for axum's own routes. `/` stands for everything.
///
/// ```
/// use tower_reverse_proxy::Prefix;
///
/// let prefix: Prefix = "/mydir".parse()?;
/// let error = "mydir/".parse::<Prefix>().unwrap_err();
/// assert!(error.to_string().contains("write \"/mydir\""));
/// # Ok::<_, tower_reverse_proxy::InvalidPrefix>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// The prefix of everything.
    pub(crate) fn root() -> Self {
        Self(Arc::from(""))
    }

    /// Returns the prefix without a slash at its end: empty for `/`.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns what follows the prefix in `path`: empty, or a path. `None`: the path isn't below the prefix.
    pub(crate) fn rest<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(&*self.0)?;
        (rest.starts_with('/') || (rest.is_empty() && !self.0.is_empty())).then_some(rest)
    }
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "/" {
            return Ok(Self::root());
        }
        let is_path = text.starts_with('/')
            && text[1..].split('/').all(|segment| !segment.is_empty() && !has_dots(segment))
            && PathAndQuery::try_from(text).is_ok_and(|parsed| parsed.as_str() == text && parsed.query().is_none())
            && text.is_ascii()
            && is_decodable(text)
            && !text.contains(['{', '}', '*', '\\', '#']);
        if is_path { Ok(Self(text.into())) } else { Err(InvalidPrefix { given: text.into() }) }
    }
}

impl TryFrom<&str> for Prefix {
    type Error = InvalidPrefix;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for Prefix {
    type Error = InvalidPrefix;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<&String> for Prefix {
    type Error = InvalidPrefix;

    fn try_from(text: &String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

/// The error of a prefix that isn't a plain path; its text says what to write instead.
#[derive(Clone)]
pub struct InvalidPrefix {
    given: String,
}

impl fmt::Display for InvalidPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "invalid prefix {:?}: a prefix is the literal path of a directory as it is in a URL, without captures, query, empty or \
             dot segments, and without a slash at its end; write {:?}",
            self.given,
            plain(&self.given)
        )
    }
}

/// The prefix that may have been meant: dot segments resolved (RFC 3986, section 5.2.4), the rest encoded.
fn plain(given: &str) -> String {
    let path = given.split(['?', '#']).next().unwrap_or_default();
    let mut segments = Vec::new();
    for segment in path.split('/') {
        if has_dots(segment) {
            segments.truncate(segments.len().saturating_sub(ups(segment)));
        } else if !segment.is_empty() && !segment.contains(['{', '*', '\\']) {
            segments.push(encoded(segment));
        }
    }
    if segments.is_empty() { "/mydir".to_owned() } else { format!("/{}", segments.join("/")) }
}

/// A segment of a path with what it can't hold percent-encoded (RFC 3986, section 3.3).
fn encoded(segment: &str) -> String {
    let mut encoded = String::new();
    for (at, c) in segment.char_indices() {
        let stays = match c {
            '%' => is_decodable(segment[at..].get(..3).unwrap_or("%")),
            _ => c.is_ascii_alphanumeric() || "-._~!$&'()+,;=:@".contains(c),
        };
        if stays {
            encoded.push(c);
        } else {
            let mut octets = [0; 4];
            encoded.extend(c.encode_utf8(&mut octets).bytes().map(|octet| format!("%{octet:02X}")));
        }
    }
    encoded
}

/// The same text: it's what an error that a `main` returns shows.
impl fmt::Debug for InvalidPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for InvalidPrefix {}

impl From<Infallible> for InvalidPrefix {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let mydir = prefix("/mydir");
        for (path, rest) in [
            ("/mydir", Some("")),
            ("/mydir/", Some("/")),
            ("/mydir/x", Some("/x")),
            ("/mydir//x", Some("//x")),
            ("/mydirx", None),
            ("/mydi", None),
            ("/", None),
            ("//mydir/x", None),
            ("/%6dydir/x", None),
            ("/MYDIR", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(mydir.rest(path), rest, "{path}");
        }
        for (path, rest) in [("/", Some("/")), ("/x", Some("/x")), ("*", None), ("", None)] {
            assert_eq!(Prefix::root().rest(path), rest, "{path}");
        }
    }

    #[test]
    fn prefixes_that_are_none_say_what_to_write() {
        for (text, write) in [
            ("mydir", "\"/mydir\""),
            ("/mydir/", "\"/mydir\""),
            ("", "\"/mydir\""),
            ("/a//b", "\"/a/b\""),
            ("/a/../b", "write \"/b\""),
            ("/a/%2E%2e/b", "write \"/b\""),
            ("/a/./b/..", "write \"/a\""),
            ("/../..", "write \"/mydir\""),
            ("/a?x", "\"/a\""),
            ("/a#x", "\"/a\""),
            ("/a/{id}", "\"/a\""),
            ("/a/*rest", "\"/a\""),
            ("/my dir", "write \"/my%20dir\""),
            ("/mü/x\"", "write \"/m%C3%BC/x%22\""),
            ("/100%/%20%zz%00", "write \"/100%25/%20%25zz%2500\""),
        ] {
            let error = text.parse::<Prefix>().unwrap_err().to_string();
            assert!(error.contains(write), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_joined_comes_apart_again(dir in "(/[a-z0-9._~-]{1,8}){1,3}", rest in "(/[!-.0-9:;=@-~]{0,8}){0,4}") {
            prop_assume!(dir.parse::<Prefix>().is_ok());
            let prefix = prefix(&dir);
            let joined = format!("{dir}{rest}");
            prop_assert_eq!(prefix.rest(&joined), Some(&*rest));
            let longer = format!("{dir}x{rest}");
            prop_assert_eq!(prefix.rest(&longer), None);
        }
    }
}
