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
            && text[1..].split('/').all(|segment| !segment.is_empty() && !is_dots(segment))
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
#[derive(Clone, Debug)]
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
            .filter(|segment| !segment.is_empty() && !is_dots(segment) && !segment.contains(['{', '*', '\\']))
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
    /// `original` is the URI as it was before nested routers stripped it, if any did.
    ///
    /// # Errors
    ///
    /// A target that isn't in origin-form, and one whose dot segments would leave the public prefix: the backend, or
    /// anything between, may resolve them (RFC 3986, section 5.2.4) after our check.
    pub(crate) fn parse(current: &'a Uri, original: Option<&'a Uri>, prefix: &'a Prefix) -> Result<Self, ErrorKind> {
        let path = current.path();
        if !path.starts_with('/') {
            return Err(ErrorKind::Target);
        }
        let rest = prefix.rest(path).ok_or(ErrorKind::Target)?;
        let prefix = prefix.as_str();
        let stripped = original.and_then(|original| Some((stripped(original.path(), path)?, original)));
        let target = match stripped {
            Some((outer, original)) => {
                // A bare nest prefix arrives as `/`, and axum takes the first of two slashes along with it: where the
                // directory ends, only the original tells.
                let (outer, rest) = match prefix {
                    "" => original.path().split_at(outer.trim_end_matches('/').len()),
                    _ => (outer, rest),
                };
                let whole = original.path_and_query().filter(|_| original.query() == current.query());
                Self { outer, prefix, rest, whole, query: current.query() }
            }
            None => Self { outer: "", prefix, rest, whole: current.path_and_query(), query: current.query() },
        };
        if leaves(target.rest) { Err(ErrorKind::Target) } else { Ok(target) }
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

/// Returns what outer routers have taken from `original` to make `current`: what precedes it, on a segment boundary.
///
/// `None`: they did more than that, and the current path is what the application wants.
fn stripped<'a>(original: &'a str, current: &str) -> Option<&'a str> {
    // `/` stands for the bare prefix too.
    original.strip_suffix(current).or_else(|| (current == "/").then_some(original))
}

/// Whether dot segments lead out of the directory that `rest` is relative to.
///
/// Looked at in every way that a server behind us might: `%2e` is a dot, `..;x` is `..` with a parameter (Tomcat), and
/// `\`, `%2f` and `%5c` may separate segments or not. Empty segments count for nothing, as servers merge slashes.
fn leaves(rest: &str) -> bool {
    // Only a dot, raw or encoded, can make a dot segment.
    if !rest.contains("..") && !rest.contains("%2") {
        return false;
    }
    leaves_by(rest.split('/')) || {
        let lower = rest.to_ascii_lowercase();
        let separated = lower.replace("%2f", "/").replace("%5c", "/").replace('\\', "/");
        leaves_by(separated.split('/'))
    }
}

fn leaves_by<'a>(segments: impl Iterator<Item = &'a str>) -> bool {
    let mut depth = 0_usize;
    for segment in segments {
        match segment.split(';').next().unwrap_or_default() {
            "" => {}
            name if is_dots(name) => {
                if undotted(name) == ".." {
                    let Some(up) = depth.checked_sub(1) else { return true };
                    depth = up;
                }
            }
            _ => depth += 1,
        }
    }
    false
}

/// Whether this is `.` or `..`, raw or encoded.
fn is_dots(segment: &str) -> bool {
    segment.len() <= 6 && matches!(&*undotted(segment), "." | "..")
}

fn undotted(segment: &str) -> String {
    segment.to_ascii_lowercase().replace("%2e", ".")
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

    fn target(current: &str, original: Option<&str>, at: &str, policy: &PathPolicy) -> Result<String, ErrorKind> {
        let (current, original) = (current.parse::<Uri>().unwrap(), original.map(|uri| uri.parse::<Uri>().unwrap()));
        let prefix = prefix(at);
        let target = Target::parse(&current, original.as_ref(), &prefix)?;
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
        for (current, original) in [
            ("/", "/mydir"),
            ("/", "/mydir/"),
            ("/?a", "/mydir?a"),
            ("/x/y", "/mydir/x/y"),
            ("/x", "/a/mydir/x"),
            ("/mydir/x", "/mydir/mydir/x"),
        ] {
            assert_eq!(target(current, Some(original), "/", &PathPolicy::Keep).as_deref(), Ok(original));
        }
        // The application rewrote the query, or the path: that counts.
        assert_eq!(target("/x?b", Some("/mydir/x?a"), "/", &PathPolicy::Keep).as_deref(), Ok("/mydir/x?b"));
        assert_eq!(target("/y", Some("/mydir/x"), "/", &PathPolicy::Keep).as_deref(), Ok("/y"));
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
            ("/", Some("/mydir"), "/", "/", "/other/dir"),
            ("/", Some("/mydir/"), "/", "/", "/other/dir/"),
            ("/x", Some("/mydir/x"), "/", "/x", "/other/dir/x"),
            ("/mydir/x", Some("/outer/mydir/x"), "/mydir", "/x", "/other/dir/x"),
            ("/x", Some("/mydir//x"), "/", "//x", "/other/dir//x"),
            ("/", Some("/mydir//"), "/", "//", "/other/dir//"),
        ] {
            assert_eq!(target(current, original, at, &strip).as_deref(), Ok(stripped), "{current} {original:?}");
            assert_eq!(target(current, original, at, &other).as_deref(), Ok(replaced), "{current} {original:?}");
        }
    }

    #[test]
    fn the_public_prefix_has_no_slash_at_its_end() {
        for (current, original, at, public) in [
            ("/mydir/x", None, "/mydir", "/mydir"),
            ("/", Some("/mydir"), "/", "/mydir"),
            ("/", Some("/mydir/"), "/", "/mydir"),
            ("/", Some("/mydir//"), "/", "/mydir"),
            ("/x", Some("/mydir//x"), "/", "/mydir"),
            ("/sub/x", Some("/mydir/sub/x"), "/sub", "/mydir/sub"),
            ("/x", None, "/", ""),
        ] {
            let (current, original) = (current.parse().unwrap(), original.map(|uri: &str| uri.parse().unwrap()));
            let prefix = prefix(at);
            let target = Target::parse(&current, original.as_ref(), &prefix).unwrap();
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
        ] {
            assert_eq!(target(path, None, "/mydir", &PathPolicy::Keep), Err(ErrorKind::Target), "{path}");
        }
        for path in
            ["/mydir/a/../b", "/mydir/...", "/mydir/a/..b", "/mydir/.", "/mydir/a..", "/mydir/%2e", "/mydir/a/%2e%2e"]
        {
            assert_eq!(target(path, None, "/mydir", &PathPolicy::Keep).as_deref(), Ok(path));
        }
        assert_eq!(target("/..", None, "/", &PathPolicy::Keep), Err(ErrorKind::Target));
        assert_eq!(target("/../x", Some("/mydir/../x"), "/", &PathPolicy::Keep), Err(ErrorKind::Target));
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
                // The reading of RFC 3986, section 5.2.4, stays inside.
                let mut stack = Vec::new();
                for segment in sent.path()[1..].split('/') {
                    match segment { "." => {}, ".." => { stack.pop(); }, other => stack.push(other) }
                }
                prop_assert_eq!(stack.first(), Some(&"mydir"));
            }
        }
    }
}
