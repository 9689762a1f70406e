//! Prefixes and request targets: which requests are the backend's, and what it is asked for.
//!
//! Everything here works on the raw path. Nothing is decoded, normalised or encoded again: whatever reads a path after
//! us would have to agree with our reading, and none does (RFC 3986, section 6, allows many).

use std::{borrow::Cow, error, fmt, str::FromStr, sync::Arc};

use http::{Uri, uri::PathAndQuery};

use crate::error::ErrorKind;

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
        let plain: Vec<&str> = self
            .given
            .split(['?', '#'])
            .next()
            .unwrap_or_default()
            .split('/')
            .filter(|segment| !segment.is_empty() && !has_dots(segment) && !segment.contains(['{', '*', '\\']))
            .collect();
        let plain = if plain.is_empty() { "/mydir".to_owned() } else { format!("/{}", plain.join("/")) };
        write!(
            f,
            "invalid prefix {:?}: a prefix is the literal path of a directory, without captures, query, empty or dot \
             segments, and without a slash at its end; write {plain:?}",
            self.given
        )
    }
}

/// The same text: it's what an error that a `main` returns shows.
impl fmt::Debug for InvalidPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for InvalidPrefix {}

impl From<std::convert::Infallible> for InvalidPrefix {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// What becomes of the public prefix on the way to the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum PathPolicy {
    /// The same layout on both sides.
    #[default]
    Keep,
    /// Another directory, or the root, stands in its place.
    Replace(Prefix),
}

/// A request target, taken apart where the public prefix ends.
///
/// The public prefix is what outer routers have stripped, and then the layer's own prefix: the directory as the client
/// sees it.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    outer: &'a str,
    prefix: &'a str,
    rest: &'a str,
    /// Path and query as they are, when nothing is taken away.
    whole: Option<&'a PathAndQuery>,
    query: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Takes the target of a request apart.
    ///
    /// # Errors
    ///
    /// A target that isn't in origin-form, and one whose dot segments would leave the public prefix: the backend, or
    /// anything between, may resolve them (RFC 3986, section 5.2.4) after our check.
    pub(crate) fn parse(current: &'a Uri, nest: Option<Nest<'a>>, prefix: &'a Prefix) -> Result<Self, ErrorKind> {
        let path = current.path();
        if !path.starts_with('/') {
            return Err(ErrorKind::Target);
        }
        let mut target = Self {
            outer: "",
            prefix: prefix.as_str(),
            rest: prefix.rest(path).ok_or(ErrorKind::Target)?,
            whole: current.path_and_query(),
            query: current.query(),
        };
        if let Some(Nest { original, segments }) = nest {
            let (outer, below) = original.path().split_at(end_of(original.path(), segments));
            target.outer = outer;
            // The bare directory arrives as `/`, and of two slashes behind it one is gone: only the original tells.
            let same = below == path || below.is_empty() && path == "/" || below.strip_prefix('/') == Some(path);
            if same && target.prefix.is_empty() {
                target.rest = below;
            }
            // The original as a whole, unless the application has rewritten what is below.
            target.whole = original.path_and_query().filter(|_| same && original.query() == current.query());
        }
        // A nest with captures has the client's text in it.
        if target.outer.split('/').any(has_dots) || leaves(target.rest) { Err(ErrorKind::Target) } else { Ok(target) }
    }

    /// Returns the directory as the client sees it, without a slash at its end.
    pub(crate) fn public_prefix(&self) -> Cow<'a, str> {
        match (self.outer, self.prefix) {
            (outer, "") => Cow::Borrowed(outer),
            ("", prefix) => Cow::Borrowed(prefix),
            (outer, prefix) => Cow::Owned([outer, prefix].concat()),
        }
    }

    /// Returns the target to ask the backend for.
    ///
    /// # Errors
    ///
    /// A target that is longer than what a [`Uri`] holds (65,534 bytes).
    pub(crate) fn for_backend(&self, policy: &PathPolicy) -> Result<PathAndQuery, ErrorKind> {
        let Self { outer, prefix, rest, .. } = *self;
        let path = match (policy, self.whole) {
            (PathPolicy::Keep, Some(whole)) => return Ok(whole.clone()),
            (PathPolicy::Keep, None) => [outer, prefix, rest].concat(),
            (PathPolicy::Replace(with), _) => match [with.as_str(), rest].concat() {
                path if path.is_empty() => "/".to_owned(),
                path => path,
            },
        };
        let target = match self.query {
            Some(query) => [&path, "?", query].concat(),
            None => path,
        };
        PathAndQuery::from_maybe_shared(target).map_err(|_| ErrorKind::TargetTooLong)
    }
}

/// What nested routers have stripped from a request's path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nest<'a> {
    /// The URI as it was before.
    pub(crate) original: &'a Uri,
    /// How many of its path's segments are gone.
    pub(crate) segments: usize,
}

/// Where the first so many segments of a path end.
fn end_of(path: &str, segments: usize) -> usize {
    // The slash that begins the next one.
    path.match_indices('/').nth(segments).map_or(path.len(), |(slash, _)| slash)
}

/// Whether dot segments lead out of the directory that `rest` is relative to, in any way that a server behind us might read
/// it.
///
/// `%2e` is a dot, `..;x` is `..` with a parameter (Tomcat), and each of `\`, `%2f` and `%5c` may separate segments or not. So
/// a segment between slashes that has dots in it, however separated, counts for the way up alone; empty ones count for
/// nothing, as servers merge slashes.
fn leaves(rest: &str) -> bool {
    let mut depth = 0_usize;
    for segment in rest.split('/') {
        let ups = pieces(segment).filter(|piece| dots(piece) == Some(2)).count();
        match depth.checked_sub(ups) {
            None => return true,
            Some(left) if ups > 0 => depth = left,
            Some(_) if segment.is_empty() || pieces(segment).all(|piece| piece.is_empty() || dots(piece).is_some()) => {
            }
            Some(_) => depth += 1,
        }
    }
    false
}

/// Whether any piece of the segment is `.` or `..`.
fn has_dots(segment: &str) -> bool {
    pieces(segment).any(|piece| dots(piece).is_some())
}

/// What a segment falls into, for servers that decode it before they split, without parameters.
fn pieces(segment: &str) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(segment.as_bytes());
    std::iter::from_fn(move || {
        let bytes = rest?;
        let separator = (0..bytes.len()).find_map(|at| match &bytes[at..] {
            [b'\\', ..] => Some((at, at + 1)),
            [b'%', b'2', b'f' | b'F', ..] | [b'%', b'5', b'c' | b'C', ..] => Some((at, at + 3)),
            _ => None,
        });
        let (end, next) = separator.unwrap_or((bytes.len(), bytes.len()));
        rest = separator.map(|_| &bytes[next..]);
        let piece = &bytes[..end];
        Some(&piece[..piece.iter().position(|&b| b == b';').unwrap_or(end)])
    })
}

/// How many dots this is, raw or encoded, if it's one or two and nothing else.
fn dots(piece: &[u8]) -> Option<usize> {
    let mut rest = piece;
    let mut count = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return None,
        };
        count += 1;
    }
    matches!(count, 1 | 2).then_some(count)
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
            ("/a/../b", "\"/a/b\""),
            ("/a/%2E%2e/b", "\"/a/b\""),
            ("/a?x", "\"/a\""),
            ("/a#x", "\"/a\""),
            ("/a/{id}", "\"/a\""),
            ("/a/*rest", "\"/a\""),
            ("/a b", "invalid prefix"),
        ] {
            let error = text.parse::<Prefix>().unwrap_err().to_string();
            assert!(error.contains(write), "{text}: {error}");
        }
    }

    /// `nest` is the original URI, and how many of its segments a router has stripped.
    fn target(current: &str, nest: Option<(&str, usize)>, at: &str, policy: &PathPolicy) -> Result<String, ErrorKind> {
        let current = current.parse::<Uri>().unwrap();
        let nest = nest.map(|(original, segments)| (original.parse::<Uri>().unwrap(), segments));
        let nest = nest.as_ref().map(|(original, segments)| Nest { original, segments: *segments });
        let prefix = prefix(at);
        let target = Target::parse(&current, nest, &prefix)?;
        Ok(target.for_backend(policy)?.to_string())
    }

    #[test]
    fn targets_pass_as_they_are() {
        for path in [
            "/mydir",
            "/mydir/",
            "/mydir?",
            "/mydir?a=b;c&&x=%zz",
            "/mydir//x/a%2Fb%5c;v=1/",
            "/mydir/%252e%252e/%25%32",
        ] {
            assert_eq!(target(path, None, "/mydir", &PathPolicy::Keep).as_deref(), Ok(path));
        }
        assert_eq!(target("http://evil.example/mydir/x", None, "/mydir", &PathPolicy::Keep).as_deref(), Ok("/mydir/x"));
    }

    #[test]
    fn nested_targets_are_restored() {
        for (current, original, segments) in [
            ("/", "/mydir", 1),
            ("/", "/mydir/", 1),
            ("/?a", "/mydir?a", 1),
            ("/x/y", "/mydir/x/y", 1),
            ("//x", "/mydir//x", 1),
            ("/x", "/a/mydir/x", 2),
            ("/mydir/x", "/mydir/mydir/x", 1),
        ] {
            assert_eq!(target(current, Some((original, segments)), "/", &PathPolicy::Keep).as_deref(), Ok(original));
        }
        // The application rewrote the query, or the path, inside of the nest or before it: that counts.
        for (current, original, sent) in [
            ("/x?b", "/mydir/x?a", "/mydir/x?b"),
            ("/y", "/mydir/x", "/mydir/y"),
            ("/", "/mydir/page", "/mydir/"),
            ("/x", "/mydir/x/", "/mydir/x"),
            ("/x", "/mydir/v1/x", "/mydir/x"),
        ] {
            assert_eq!(target(current, Some((original, 1)), "/", &PathPolicy::Keep).as_deref(), Ok(sent), "{current}");
        }
    }

    #[test]
    fn the_prefix_can_be_replaced() {
        let strip = PathPolicy::Replace(Prefix::root());
        let other = PathPolicy::Replace(prefix("/other/dir"));
        for (current, original, at, stripped, replaced) in [
            ("/mydir", None, "/mydir", "/", "/other/dir"),
            ("/mydir?a", None, "/mydir", "/?a", "/other/dir?a"),
            ("/mydir/", None, "/mydir", "/", "/other/dir/"),
            ("/mydir/x%2F", None, "/mydir", "/x%2F", "/other/dir/x%2F"),
            ("/mydir//evil.example/x", None, "/mydir", "//evil.example/x", "/other/dir//evil.example/x"),
            ("/", Some(("/mydir", 1)), "/", "/", "/other/dir"),
            ("/", Some(("/mydir/", 1)), "/", "/", "/other/dir/"),
            ("/x", Some(("/mydir/x", 1)), "/", "/x", "/other/dir/x"),
            ("/mydir/x", Some(("/outer/mydir/x", 1)), "/mydir", "/x", "/other/dir/x"),
            ("/x", Some(("/mydir//x", 1)), "/", "//x", "/other/dir//x"),
            ("/", Some(("/mydir//", 1)), "/", "//", "/other/dir//"),
        ] {
            assert_eq!(target(current, original, at, &strip).as_deref(), Ok(stripped), "{current} {original:?}");
            assert_eq!(target(current, original, at, &other).as_deref(), Ok(replaced), "{current} {original:?}");
        }
    }

    #[test]
    fn the_public_prefix_has_no_slash_at_its_end() {
        for (current, nest, at, public) in [
            ("/mydir/x", None, "/mydir", "/mydir"),
            ("/", Some("/mydir"), "/", "/mydir"),
            ("/", Some("/mydir/"), "/", "/mydir"),
            ("/", Some("/mydir//"), "/", "/mydir"),
            ("/x", Some("/mydir//x"), "/", "/mydir"),
            ("/sub/x", Some("/mydir/sub/x"), "/sub", "/mydir/sub"),
            ("/x", None, "/", ""),
        ] {
            let (current, original) = (current.parse().unwrap(), nest.map(|uri: &str| uri.parse().unwrap()));
            let prefix = prefix(at);
            let nest = original.as_ref().map(|original| Nest { original, segments: 1 });
            let target = Target::parse(&current, nest, &prefix).unwrap();
            assert_eq!(target.public_prefix(), public, "{current} {original:?}");
        }
    }

    #[test]
    fn dot_segments_that_leave_are_refused() {
        for path in [
            "/mydir/..",
            "/mydir/../admin",
            "/mydir/%2e%2e/admin",
            "/mydir/%2E./admin",
            "/mydir/.%2e/admin",
            "/mydir/a/../../admin",
            "/mydir/..;/admin",
            "/mydir/..;x=1/admin",
            "/mydir/%2e%2e;/admin",
            "/mydir/..%2fadmin",
            "/mydir/..%5Cadmin",
            "/mydir//../admin",
            "/mydir/./../admin",
            "/mydir/a%2f../../..",
            "/mydir/x/../..",
            "/mydir/a%5cb%2f..%2f..%2fadmin",
            "/mydir/a%5Cb/..%2f../admin",
            "/mydir/a%2fb%5c..%5c../admin",
        ] {
            assert_eq!(target(path, None, "/mydir", &PathPolicy::Keep), Err(ErrorKind::Target), "{path}");
        }
        for path in
            ["/mydir/a/../b", "/mydir/...", "/mydir/a/..b", "/mydir/.", "/mydir/a..", "/mydir/%2e", "/mydir/a/%2e%2e"]
        {
            assert_eq!(target(path, None, "/mydir", &PathPolicy::Keep).as_deref(), Ok(path));
        }
        assert_eq!(target("/..", None, "/", &PathPolicy::Keep), Err(ErrorKind::Target));
        assert_eq!(target("/../x", Some(("/mydir/../x", 1)), "/", &PathPolicy::Keep), Err(ErrorKind::Target));
        // A nest that captures: the client's text is in what was stripped.
        for original in ["/apps/../admin", "/apps/%2e%2e/admin", "/apps/..", "/apps/x%2f..%2f../admin"] {
            let nest = Some((original, 2));
            assert_eq!(target("/admin", nest, "/", &PathPolicy::Keep), Err(ErrorKind::Target), "{original}");
        }
    }

    #[test]
    fn a_target_that_grows_too_long_is_an_error() {
        let path = format!("/mydir/{}", "p".repeat(65_000));
        let with = PathPolicy::Replace(prefix(&format!("/{}", "q".repeat(1_000))));
        assert_eq!(target(&path, None, "/mydir", &with), Err(ErrorKind::TargetTooLong));
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

        #[test]
        fn no_target_panics_or_leaves(path in "/mydir/[./%2eEfF5cC;\\\\a]{0,24}") {
            let Ok(uri) = path.parse::<Uri>() else { return Ok(()) };
            let mydir = prefix("/mydir");
            if let Ok(target) = Target::parse(&uri, None, &mydir) {
                let sent = target.for_backend(&PathPolicy::Keep).unwrap();
                prop_assert_eq!(sent.as_str(), &*path);
                // Whatever a server takes for a slash and for a dot, by the rules of RFC 3986, section 5.2.4, it stays inside.
                let lower = sent.path().to_ascii_lowercase().replace("%2e", ".");
                for slashes in 0..8 {
                    let separators = [("%2f", 1), ("%5c", 2), ("\\", 4)];
                    let read = separators.iter().fold(lower.clone(), |path, (separator, bit)| {
                        if slashes & bit == 0 { path } else { path.replace(separator, "/") }
                    });
                    let mut stack = Vec::new();
                    for segment in read.split('/').map(|segment| segment.split(';').next().unwrap()) {
                        match segment {
                            "" | "." => {}
                            ".." => drop(stack.pop()),
                            other => stack.push(other),
                        }
                    }
                    prop_assert_eq!(stack.first(), Some(&"mydir"), "{} read as {}", path, read);
                }
            }
        }
    }
}
