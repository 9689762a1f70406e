//! Field lines of a head or of trailers: when they are parsed, and how they become a [`HeaderMap`].

use std::mem;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::Header;

/// The number of field lines that are parsed without an allocation.
pub(super) const FEW: usize = 64;

/// The least number of fields that a map has room for.
///
/// hyper's server reads a request into the map of the response before it. The smallest maps hold six fields. With those
/// that a proxy adds, most requests have more, and the map would grow for each of them.
const ROOM: usize = 12;

/// The positions of field lines in the octets that were parsed.
///
/// The parser's slices borrow the input, which has to be split before the values can share it. The positions outlive
/// the borrow.
pub(super) struct Lines {
    few: [Line; FEW],
    many: Vec<Line>,
    count: usize,
}

#[derive(Clone, Copy, Default)]
struct Line {
    name: (u32, u32),
    value: (u32, u32),
}

impl Lines {
    #[inline]
    pub(super) fn new() -> Self {
        Self { few: [Line::default(); FEW], many: Vec::new(), count: 0 }
    }

    /// Records the lines that a parser has found in `octets`. Returns whether a CR follows each value directly.
    #[inline]
    pub(super) fn record(&mut self, octets: &[u8], headers: &[Header<'_>]) -> bool {
        let position = |part: &[u8]| {
            // The limit of a section is below 4 GiB: `HeadDecoder::new`.
            let start = (part.as_ptr() as usize - octets.as_ptr() as usize) as u32;
            (start, start + part.len() as u32)
        };
        self.count = headers.len();
        let lines = if headers.len() > FEW {
            self.many.resize(headers.len(), Line::default());
            &mut self.many[..]
        } else {
            &mut self.few[..]
        };
        let mut has_cr = true;
        for (line, header) in lines.iter_mut().zip(headers) {
            *line = Line { name: position(header.name.as_bytes()), value: position(header.value) };
            has_cr &= octets.get(line.value.1 as usize) == Some(&b'\r');
        }
        has_cr
    }

    /// Makes a map of the lines, whose values share `octets`. It calls `read` with each field.
    ///
    /// `None` if a name has more than 64 KiB, or if the map can't hold so many fields.
    #[inline]
    pub(super) fn to_map(&self, octets: &Bytes, mut read: impl FnMut(&HeaderName, &[u8])) -> Option<HeaderMap> {
        let lines = if self.count > FEW { &self.many[..] } else { &self.few[..self.count] };
        // An intermediary adds `Via`, for which a full map would grow. The largest map has no room for one more.
        let map = HeaderMap::try_with_capacity((lines.len() + 1).max(ROOM));
        let mut map = map.or_else(|_| HeaderMap::try_with_capacity(lines.len())).ok()?;
        for line in lines {
            let name = HeaderName::from_bytes(&octets[line.name.0 as usize..line.name.1 as usize]).ok()?;
            let value = octets.slice(line.value.0 as usize..line.value.1 as usize);
            read(&name, &value);
            map.try_append(name, HeaderValue::from_maybe_shared(value).ok()?).ok()?;
        }
        Some(map)
    }
}

/// Whether each LF ends a line together with a CR.
///
/// The parser accepts a bare LF as the end of a line, which RFC 9112, section 2.2, allows. An intermediary mustn't let
/// it pass, because a recipient that doesn't accept it reads other lines out of the same octets.
#[inline]
pub(super) fn has_whole_line_ends(octets: &[u8]) -> bool {
    let pairs = octets.iter().zip(octets.iter().skip(1));
    // Without an early return, the loop is vectorised.
    let bare = pairs.fold(false, |bare, (&before, &octet)| bare | ((octet == b'\n') & (before != b'\r')));
    !bare && octets.first() != Some(&b'\n')
}

/// The attempts to parse a section that comes in pieces.
///
/// A section is parsed again only if its end may have come, or if its length has doubled since the last attempt. Work
/// is therefore linear in its length, even if the backend sends it octet by octet.
#[derive(Debug, Default)]
pub(super) struct ParseAttempts {
    /// The length at the last attempt.
    parsed: usize,
    /// The length up to which an end was searched.
    searched: usize,
    #[cfg(test)]
    pub(super) count: usize,
}

impl ParseAttempts {
    /// The length below which a section is parsed again with each octet, so that a backend that doesn't speak HTTP/1 is
    /// detected at its first line.
    const SHORT: usize = 32;

    /// Whether an attempt to parse `octets`, of which there are at most `limit`, may have another outcome than the
    /// last.
    #[inline]
    pub(super) fn is_due(&mut self, octets: &[u8], limit: usize) -> bool {
        self.is_new() || self.is_due_again(octets, limit)
    }

    #[cold]
    fn is_due_again(&mut self, octets: &[u8], limit: usize) -> bool {
        let length = octets.len();
        let searched = mem::replace(&mut self.searched, length);
        length > searched
            && (length < Self::SHORT
                || length >= self.parsed.saturating_mul(2)
                || length == limit
                || has_end(&octets[searched.saturating_sub(2)..]))
    }

    /// Records that `length` octets were parsed, and that the end wasn't among them.
    #[cold]
    pub(super) fn incomplete(&mut self, length: usize) {
        self.parsed = length;
        self.searched = length;
        #[cfg(test)]
        {
            self.count += 1;
        }
    }

    /// Whether nothing of the section was parsed.
    pub(super) fn is_new(&self) -> bool {
        self.parsed == 0
    }

    pub(super) fn reset(&mut self) {
        self.parsed = 0;
    }
}

/// Whether there is an empty line. One that ends with a bare LF counts, so that the attempt comes to the error.
fn has_end(octets: &[u8]) -> bool {
    let mut ends = octets.iter().enumerate().filter(|&(_, &octet)| octet == b'\n').map(|(at, _)| &octets[at + 1..]);
    ends.any(|next| next.starts_with(b"\n") || next.starts_with(b"\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lf_follows_a_cr() {
        for (octets, is_whole) in [
            (&b""[..], true),
            (b"a", true),
            (b"\r\n", true),
            (b"a\r\nb\r\n\r\n", true),
            (b"\n", false),
            (b"a\n", false),
            (b"\r\n\n", false),
            (b"a\r\nb\nc\r\n", false),
        ] {
            assert_eq!(has_whole_line_ends(octets), is_whole, "{octets:?}");
        }
    }

    #[test]
    fn a_section_is_parsed_again_at_its_end_its_limit_or_twice_its_length() {
        let mut attempts = ParseAttempts::default();
        let mut octets = b"x".repeat(100);
        assert!(attempts.is_new() && attempts.is_due(&octets, 1000));
        attempts.incomplete(100);
        let mut is_due_with = |more: &[u8]| {
            octets.extend_from_slice(more);
            attempts.is_due(&octets, 1000)
        };
        assert!(!is_due_with(b""));
        assert!(!is_due_with(b"x\r"));
        assert!(!is_due_with(b"\nx\r\n"));
        assert!(!is_due_with(b"\r"));
        assert!(is_due_with(b"\n"));
        attempts.incomplete(101);
        assert!(attempts.is_due(b"\nx\n\n".repeat(30).as_slice(), 1000));
        attempts.incomplete(100);
        assert!(!attempts.is_due(&b"x".repeat(199), 1000));
        assert!(attempts.is_due(&b"x".repeat(200), 1000));
        attempts.incomplete(999);
        assert!(attempts.is_due(&b"x".repeat(1000), 1000));
    }
}
