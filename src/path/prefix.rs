//! The directory that the proxy serves.

use std::{convert::Infallible, error, fmt, str::FromStr, sync::Arc};

use http::uri::PathAndQuery;

use super::dots::{has_dot_segment, is_decodable, parent_count};

/// A directory of the application whose requests go to the backend: `/mydir` matches `/mydir`, `/mydir/` and every path
/// below.
///
/// A prefix ends at a segment, so `/mydir` doesn't match `/mydirx`. It's compared with the raw path byte for byte, so
/// `/%6dydir` is another path, as it is for axum's own routes. `/` matches everything.
///
/// [`ReverseProxyLayer::prefix`](crate::ReverseProxyLayer::prefix) and
/// [`replace_prefix`](crate::ReverseProxyLayer::replace_prefix) take it, or a `&str` or `String` that parses.
///
/// ```
/// use tower_reverse_proxy::Prefix;
///
/// let prefix: Prefix = "/mydir".parse()?;
/// assert_eq!(prefix.to_string(), "/mydir");
///
/// // The text of the error is what to write instead.
/// let error = "mydir/".parse::<Prefix>().unwrap_err();
/// assert!(error.to_string().contains("write \"/mydir\""));
/// # Ok::<_, tower_reverse_proxy::InvalidPrefix>(())
/// ```
#[doc(alias("mount", "location", "directory", "subdirectory", "base path", "path prefix", "virtual directory"))]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// The prefix that matches every path.
    pub(crate) fn root() -> Self {
        Self(Arc::from(""))
    }

    /// Returns the prefix without a trailing slash, which is empty for `/`.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the part of `path` that follows the prefix: empty, or a path. `None` if the path isn't below the prefix.
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
            && text[1..].split('/').all(|segment| !segment.is_empty() && !has_dot_segment(segment))
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

/// The error returned when a [`Prefix`] isn't a plain path. Its text contains what to write instead.
///
/// `Debug` shows the same text, because that is how an error returned from `main` is printed.
///
/// ```
/// use tower_reverse_proxy::Prefix;
///
/// let error = "/my dir/".parse::<Prefix>().unwrap_err();
/// assert!(error.to_string().ends_with("write \"/my%20dir\""));
/// ```
#[derive(Clone)]
pub struct InvalidPrefix {
    given: String,
}

impl fmt::Display for InvalidPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "invalid prefix {:?}: a prefix is the literal path of a directory as it stands in a URL, without \
             captures, query, empty segments, dot segments or trailing slash; write {:?}",
            self.given,
            suggestion(&self.given)
        )
    }
}

/// Returns the valid prefix closest to the given one: dot segments are resolved (RFC 3986, section 5.2.4), the rest is
/// encoded.
fn suggestion(given: &str) -> String {
    let path = given.split(['?', '#']).next().unwrap_or_default();
    // Of a URL, the path is meant.
    let path = path.split_once("://").map_or(path, |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
    let mut segments = Vec::new();
    for segment in path.split('/') {
        if has_dot_segment(segment) {
            segments.truncate(segments.len().saturating_sub(parent_count(segment)));
        } else if !segment.is_empty() && !segment.contains(['{', '*', '\\']) {
            segments.push(percent_encoded(segment));
        }
    }
    if segments.is_empty() { "/mydir".to_owned() } else { format!("/{}", segments.join("/")) }
}

/// Percent-encodes the characters that a path segment can't contain (RFC 3986, section 3.3).
fn percent_encoded(segment: &str) -> String {
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
    fn errors_contain_what_to_write_instead() {
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
            ("http://backend:8000/a/b/", "write \"/a/b\""),
            ("http://backend", "write \"/mydir\""),
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
        fn stripping_a_prefix_undoes_joining_it(
            dir in "(/[a-z0-9._~-]{1,8}){1,3}",
            rest in "(/[!-.0-9:;=@-~]{0,8}){0,4}",
        ) {
            prop_assume!(dir.parse::<Prefix>().is_ok());
            let prefix = prefix(&dir);
            let joined = format!("{dir}{rest}");
            prop_assert_eq!(prefix.rest(&joined), Some(&*rest));
            let longer = format!("{dir}x{rest}");
            prop_assert_eq!(prefix.rest(&longer), None);
        }
    }
}
