//! Dot segments (RFC 3986, section 5.2.4), in every way that a server behind us might read them.

/// Whether dot segments lead out of the directory that `rest` is relative to, in any way that a server behind us might read
/// it.
///
/// `%2e` is a dot, `..;x` is `..` with a parameter (Tomcat), and each of `\`, `%2f` and `%5c` may separate segments or not. So
/// a segment between slashes that has dots in it, however separated, counts for the way up alone; empty ones count for
/// nothing, as servers merge slashes.
pub(super) fn leaves(rest: &str) -> bool {
    // Without a dot, raw or encoded, there's no way up.
    if !rest.bytes().any(|b| matches!(b, b'.' | b'%')) {
        return false;
    }
    let mut depth = 0_usize;
    for segment in rest.split('/') {
        let ups = ups(segment);
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

/// Whether each `%` begins two hex digits (RFC 3986, section 2.1) that aren't those of NUL.
///
/// Decoders differ in what they make of others: `%u002e` is a dot to IIS, and a path may end at NUL.
pub(super) fn is_decodable(path: &str) -> bool {
    let bytes = path.as_bytes();
    // Mostly there is none, and a path is short.
    bytes.iter().enumerate().filter(|(_, b)| **b == b'%').all(|(at, _)| match bytes.get(at + 1..at + 3) {
        Some(digits) => digits.iter().all(u8::is_ascii_hexdigit) && digits != b"00",
        None => false,
    })
}

/// How many pieces of the segment are `..`.
pub(super) fn ups(segment: &str) -> usize {
    pieces(segment).filter(|piece| dots(piece) == Some(2)).count()
}

/// Whether any piece of the segment is `.` or `..`.
pub(super) fn has_dots(segment: &str) -> bool {
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
