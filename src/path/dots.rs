//! Dot segments (RFC 3986, section 5.2.4), in every spelling that some server resolves.

/// Whether the dot segments of `rest` lead out of the directory that it's relative to, for any server that might read
/// it.
///
/// Servers differ: `%2e` is a dot, `..;x` is `..` with a parameter (Tomcat), and each of `\`, `%2f` and `%5c` may or
/// may not separate segments. The count is therefore pessimistic: a segment between two slashes that has dot segments
/// inside, however separated, counts for its parent steps only. Empty segments don't count, because servers merge
/// slashes.
pub(super) fn escapes(rest: &str) -> bool {
    // Fast path: a parent step needs a dot, raw or encoded.
    if !rest.bytes().any(|b| matches!(b, b'.' | b'%')) {
        return false;
    }
    let mut depth = 0_usize;
    for segment in rest.split('/') {
        let parents = parent_count(segment);
        match depth.checked_sub(parents) {
            None => return true,
            Some(left) if parents > 0 => depth = left,
            Some(_) if segment.is_empty() || has_no_name(segment) => {}
            Some(_) => depth += 1,
        }
    }
    false
}

/// Whether each `%` begins two hex digits (RFC 3986, section 2.1), and none of them encodes NUL.
///
/// Decoders disagree about anything else: IIS reads `%u002e` as a dot, and some servers end a path at NUL.
pub(super) fn is_decodable(path: &str) -> bool {
    let bytes = path.as_bytes();
    // A plain scan: paths are short, and most have no `%`.
    bytes.iter().enumerate().filter(|(_, b)| **b == b'%').all(|(at, _)| match bytes.get(at + 1..at + 3) {
        Some(digits) => digits.iter().all(u8::is_ascii_hexdigit) && digits != b"00",
        None => false,
    })
}

/// The number of `..` that a server could read in the segment.
pub(super) fn parent_count(segment: &str) -> usize {
    decoded_segments(segment).filter(|inner| dot_count(inner) == Some(2)).count()
}

/// Whether a server could read `.` or `..` in the segment.
pub(super) fn has_dot_segment(segment: &str) -> bool {
    decoded_segments(segment).any(|inner| dot_count(inner).is_some())
}

/// Whether nothing in the segment is the name of a directory or file.
fn has_no_name(segment: &str) -> bool {
    decoded_segments(segment).all(|inner| inner.is_empty() || dot_count(inner).is_some())
}

/// Splits a segment as a server does that decodes before it splits, and drops the parameters.
fn decoded_segments(segment: &str) -> impl Iterator<Item = &[u8]> {
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
        let inner = &bytes[..end];
        Some(&inner[..inner.iter().position(|&b| b == b';').unwrap_or(end)])
    })
}

/// The number of dots, raw or encoded, if the segment is nothing but one or two of them.
fn dot_count(segment: &[u8]) -> Option<usize> {
    let mut rest = segment;
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
