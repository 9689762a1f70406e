//! Request targets: how the client's path maps to the backend's.

use std::borrow::Cow;

use http::{Uri, uri::PathAndQuery};

use super::{
    dots::{escapes, has_dot_segment, is_decodable},
    prefix::Prefix,
};
use crate::error::ErrorKind;

/// How the public prefix is mapped on the way to the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum PathPolicy {
    /// The path stays as it is: both sides have the same layout.
    #[default]
    Keep,
    /// Another directory, or the root, replaces it.
    Replace(Prefix),
}

/// A request target, split where the public prefix ends.
///
/// The public prefix is the directory as the client sees it: the part that outer routers have stripped, followed by the
/// layer's own prefix.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    outer: &'a str,
    prefix: &'a str,
    rest: &'a str,
    /// The unchanged path and query, which [`PathPolicy::Keep`] forwards; `None` if they have to be put together again.
    whole: Option<&'a PathAndQuery>,
    query: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Splits the target of a request.
    ///
    /// # Errors
    ///
    /// If the target isn't in origin-form, if its path contains a `%` that doesn't begin two hex digits (RFC 3986,
    /// section 2.1) or an encoded NUL, or if its dot segments would leave the public prefix: the backend, or a server
    /// on the way to it, may resolve them (section 5.2.4) after this check.
    pub(crate) fn parse(current: &'a Uri, nest: Option<Nest<'a>>, prefix: &'a Prefix) -> Result<Self, ErrorKind> {
        let path = current.path();
        if !path.starts_with('/') {
            return Err(ErrorKind::InvalidTarget);
        }
        let mut target = Self {
            outer: "",
            prefix: prefix.as_str(),
            rest: prefix.rest(path).ok_or(ErrorKind::InvalidTarget)?,
            whole: current.path_and_query(),
            query: current.query(),
        };
        if let Some(nest) = nest {
            let original = nest.original;
            target.outer = nest.outer();
            let below = &original.path()[target.outer.len()..];
            // axum turns the bare directory into `/`, and removes one of two slashes behind it. The original has both.
            let same = below == path || below.is_empty() && path == "/" || below.strip_prefix('/') == Some(path);
            if same && target.prefix.is_empty() {
                target.rest = below;
            }
            // The original is forwarded unchanged, unless the application has rewritten the part below the nest.
            target.whole = original.path_and_query().filter(|_| same && original.query() == current.query());
        }
        // A nest with captures matches text that the client chooses.
        let decodable = is_decodable(target.outer) && is_decodable(target.rest);
        if !decodable || target.outer.split('/').any(has_dot_segment) || escapes(target.rest) {
            Err(ErrorKind::InvalidTarget)
        } else {
            Ok(target)
        }
    }

    /// Returns the directory as the client sees it, without a trailing slash.
    pub(crate) fn public_prefix(&self) -> Cow<'a, str> {
        match (self.outer, self.prefix) {
            (outer, "") => Cow::Borrowed(outer),
            ("", prefix) => Cow::Borrowed(prefix),
            (outer, prefix) => Cow::Owned([outer, prefix].concat()),
        }
    }

    /// Maps another path of the client, with its query, to the backend's, as the target itself is mapped.
    ///
    /// # Errors
    ///
    /// If the path isn't below the public prefix, or could leave it.
    pub(crate) fn rebase(&self, target: &str, policy: &PathPolicy) -> Result<String, ErrorKind> {
        let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
        let public = self.public_prefix();
        let rest = path.strip_prefix(&*public).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let rest = rest.ok_or(ErrorKind::ForeignDestination)?;
        if !is_decodable(rest) || escapes(rest) {
            return Err(ErrorKind::InvalidDestination);
        }
        Ok(match policy {
            PathPolicy::Keep => target.to_owned(),
            PathPolicy::Replace(with) if with.as_str().is_empty() && rest.is_empty() => ["/", query].concat(),
            PathPolicy::Replace(with) => [with.as_str(), rest, query].concat(),
        })
    }

    /// Returns the target of the request to the backend.
    ///
    /// # Errors
    ///
    /// If the target is longer than a [`Uri`] can be (65,534 bytes).
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

/// The part of a request's path that nested routers have stripped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nest<'a> {
    /// The URI before the first router stripped it.
    pub(crate) original: &'a Uri,
    /// The number of segments that were stripped from its path.
    pub(crate) segments: usize,
}

impl<'a> Nest<'a> {
    /// Returns the path that was stripped, without a trailing slash.
    pub(crate) fn outer(&self) -> &'a str {
        self.original.path().split_at(end_of_segments(self.original.path(), self.segments)).0
    }
}

/// Returns the index at which the first `segments` segments of a path end.
fn end_of_segments(path: &str, segments: usize) -> usize {
    // The next segment begins with this slash.
    path.match_indices('/').nth(segments).map_or(path.len(), |(slash, _)| slash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    /// `nest` is the original URI, and the number of its segments that a router has stripped.
    fn target(current: &str, nest: Option<(&str, usize)>, at: &str, policy: &PathPolicy) -> Result<String, ErrorKind> {
        let current = current.parse::<Uri>().unwrap();
        let nest = nest.map(|(original, segments)| (original.parse::<Uri>().unwrap(), segments));
        let nest = nest.as_ref().map(|(original, segments)| Nest { original, segments: *segments });
        let prefix = prefix(at);
        let target = Target::parse(&current, nest, &prefix)?;
        Ok(target.for_backend(policy)?.to_string())
    }

    #[test]
    fn targets_pass_unchanged() {
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
        // Where the application rewrote the query or the path, inside the nest or before it, the rewritten one is
        // forwarded.
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
    fn the_public_prefix_has_no_trailing_slash() {
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
    fn another_path_is_mapped_as_the_target_is() {
        use ErrorKind as E;
        let strip = PathPolicy::Replace(Prefix::root());
        let other = PathPolicy::Replace(prefix("/other"));
        for (path, kept, stripped, replaced) in [
            ("/outer/mydir/y", Ok("/outer/mydir/y"), Ok("/y"), Ok("/other/y")),
            (
                "/outer/mydir/a%2Fb/?c=/../d",
                Ok("/outer/mydir/a%2Fb/?c=/../d"),
                Ok("/a%2Fb/?c=/../d"),
                Ok("/other/a%2Fb/?c=/../d"),
            ),
            ("/outer/mydir", Ok("/outer/mydir"), Ok("/"), Ok("/other")),
            ("/outer/mydir?q", Ok("/outer/mydir?q"), Ok("/?q"), Ok("/other?q")),
            ("/outer/mydir//x", Ok("/outer/mydir//x"), Ok("//x"), Ok("/other//x")),
            ("/outer/mydirx", Err(E::ForeignDestination), Err(E::ForeignDestination), Err(E::ForeignDestination)),
            ("/outer/y", Err(E::ForeignDestination), Err(E::ForeignDestination), Err(E::ForeignDestination)),
            ("/mydir/y", Err(E::ForeignDestination), Err(E::ForeignDestination), Err(E::ForeignDestination)),
            ("/outer/mydir/../y", Err(E::InvalidDestination), Err(E::InvalidDestination), Err(E::InvalidDestination)),
            (
                "/outer/mydir/a/%2e%2e%2f../y",
                Err(E::InvalidDestination),
                Err(E::InvalidDestination),
                Err(E::InvalidDestination),
            ),
            (
                "/outer/mydir/%u002e/",
                Err(E::InvalidDestination),
                Err(E::InvalidDestination),
                Err(E::InvalidDestination),
            ),
        ] {
            let (current, original) = ("/mydir/x".parse().unwrap(), "/outer/mydir/x".parse().unwrap());
            let prefix = prefix("/mydir");
            let nest = Some(Nest { original: &original, segments: 1 });
            let target = Target::parse(&current, nest, &prefix).unwrap();
            for (policy, result) in [(&PathPolicy::Keep, kept), (&strip, stripped), (&other, replaced)] {
                assert_eq!(target.rebase(path, policy), result.map(str::to_owned), "{path} {policy:?}");
            }
        }
        let (current, root) = ("/x".parse().unwrap(), Prefix::root());
        let target = Target::parse(&current, None, &root).unwrap();
        assert_eq!(target.rebase("/any/y", &PathPolicy::Keep).as_deref(), Ok("/any/y"));
    }

    #[test]
    fn paths_that_decoders_read_differently_are_rejected() {
        for path in [
            "/mydir/%",
            "/mydir/%2",
            "/mydir/%/x",
            "/mydir/%zz",
            "/mydir/%2g/x",
            "/mydir/%%2e",
            "/mydir/100%",
            "/mydir/%u002e%u002e/",
            "/mydir/%U002E/x",
            "/mydir/%00",
            "/mydir/..%00/x",
            "/mydir/x%00.png",
        ] {
            for policy in [PathPolicy::Keep, PathPolicy::Replace(Prefix::root())] {
                assert_eq!(target(path, None, "/mydir", &policy), Err(ErrorKind::InvalidTarget), "{path}");
                let (_, below) = path.split_at("/mydir".len());
                assert_eq!(target(below, Some((path, 1)), "/", &policy), Err(ErrorKind::InvalidTarget), "{path}");
            }
        }
        // A nest captures text that the client chooses.
        assert_eq!(target("/x", Some(("/apps/%u002e/x", 2)), "/", &PathPolicy::Keep), Err(ErrorKind::InvalidTarget));
        for path in ["/mydir/%25%32e", "/mydir/%C3%bc%0a", "/mydir/%2500", "/mydir/x?%&%00&%u002e&100%"] {
            assert_eq!(target(path, None, "/mydir", &PathPolicy::Keep).as_deref(), Ok(path));
        }
    }

    #[test]
    fn dot_segments_that_leave_the_prefix_are_rejected() {
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
            assert_eq!(target(path, None, "/mydir", &PathPolicy::Keep), Err(ErrorKind::InvalidTarget), "{path}");
        }
        for path in
            ["/mydir/a/../b", "/mydir/...", "/mydir/a/..b", "/mydir/.", "/mydir/a..", "/mydir/%2e", "/mydir/a/%2e%2e"]
        {
            assert_eq!(target(path, None, "/mydir", &PathPolicy::Keep).as_deref(), Ok(path));
        }
        assert_eq!(target("/..", None, "/", &PathPolicy::Keep), Err(ErrorKind::InvalidTarget));
        assert_eq!(target("/../x", Some(("/mydir/../x", 1)), "/", &PathPolicy::Keep), Err(ErrorKind::InvalidTarget));
        // A nest captures text that the client chooses, so the stripped part is checked too.
        for original in ["/apps/../admin", "/apps/%2e%2e/admin", "/apps/..", "/apps/x%2f..%2f../admin"] {
            let nest = Some((original, 2));
            assert_eq!(target("/admin", nest, "/", &PathPolicy::Keep), Err(ErrorKind::InvalidTarget), "{original}");
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
        fn no_target_panics_or_leaves_the_prefix(path in "/mydir/[./%2eEfF5cC;\\\\a]{0,24}") {
            let Ok(uri) = path.parse::<Uri>() else { return Ok(()) };
            let mydir = prefix("/mydir");
            if let Ok(target) = Target::parse(&uri, None, &mydir) {
                let sent = target.for_backend(&PathPolicy::Keep).unwrap();
                prop_assert_eq!(sent.as_str(), &*path);
                for read in readings(sent.path()) {
                    let inside = resolved(&read).first() == Some(&"mydir");
                    prop_assert!(inside, "{} read as {}", path, read);
                }
            }
        }

        #[test]
        fn no_destination_panics_or_leaves_the_prefix(path in "/mydir/[./%2eEfF5cC;\\\\a0uü?]{0,24}") {
            let (current, mydir) = ("/mydir/x".parse().unwrap(), prefix("/mydir"));
            let target = Target::parse(&current, None, &mydir).unwrap();
            if let Ok(sent) = target.rebase(&path, &PathPolicy::Keep) {
                prop_assert_eq!(&sent, &path);
                for read in readings(sent.split('?').next().unwrap()) {
                    let inside = resolved(&read).first() == Some(&"mydir");
                    prop_assert!(inside, "{} read as {}", path, read);
                }
                let stripped = target.rebase(&path, &PathPolicy::Replace(Prefix::root())).unwrap();
                prop_assert_eq!(format!("/mydir{stripped}"), path);
            }
        }
    }

    /// Every reading of a path, for servers that differ in what they take for a slash and for a dot.
    fn readings(path: &str) -> impl Iterator<Item = String> {
        let lower = path.to_ascii_lowercase().replace("%2e", ".");
        (0..8).map(move |slashes| {
            [("%2f", 1), ("%5c", 2), ("\\", 4)].iter().fold(lower.clone(), |path, (separator, bit)| {
                if slashes & bit == 0 { path } else { path.replace(separator, "/") }
            })
        })
    }

    /// The segments of a path, by the rules of RFC 3986, section 5.2.4.
    fn resolved(path: &str) -> Vec<&str> {
        let mut stack = Vec::new();
        for segment in path.split('/').map(|segment| segment.split(';').next().unwrap()) {
            match segment {
                "" | "." => {}
                ".." => drop(stack.pop()),
                other => stack.push(other),
            }
        }
        stack
    }
}
