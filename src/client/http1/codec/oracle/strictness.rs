//! The classes of responses that hyper accepts and the codec refuses.
//!
//! A reader of its own finds them in the octets. It shares nothing with the codec, and accepts every response.

use http::Method;

use super::response::{Case, Stage};

/// The classes of responses that the codec refuses on purpose, as its documentation lists them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Strictness {
    /// An empty line before the status line.
    EmptyLine,
    /// A line of a head that ends with a bare LF.
    BareLf,
    /// `Transfer-Encoding` together with `Content-Length`.
    LengthAndCoding,
    /// `Transfer-Encoding` that isn't exactly one `chunked`.
    Coding,
    /// A `Content-Length` with more than 19 digits, or of 2⁶³ or more.
    LargeLength,
    /// A line of trailers that ends with a bare LF.
    BareLfInTrailers,
    /// A chunk size of more than 16 digits.
    LongSize,
    /// A control character in a chunk extension.
    ExtensionControl,
    /// Chunk extensions of 16 KiB together with the blanks and semicolons before them.
    Extensions,
    /// `Connection: close` beside octets outside of ASCII.
    HiddenClose,
}

impl Strictness {
    /// The part of an exchange that is refused because of it.
    pub(super) fn stage(self) -> Stage {
        match self {
            Self::EmptyLine | Self::BareLf | Self::LengthAndCoding | Self::Coding | Self::LargeLength => Stage::Head,
            Self::BareLfInTrailers | Self::LongSize | Self::ExtensionControl | Self::Extensions => Stage::Body,
            Self::HiddenClose => Stage::Reuse,
        }
    }
}

/// The classes that a response belongs to.
pub(super) fn classes(case: &Case) -> Vec<Strictness> {
    let mut classes = Vec::new();
    let mut rest = &case.octets[..];
    loop {
        let head = Section::take(&mut rest);
        if head.is_preceded {
            classes.push(Strictness::EmptyLine);
        }
        if head.has_bare_lf {
            classes.push(Strictness::BareLf);
        }
        let status = head.lines.first().and_then(|line| line.get(9..12)).unwrap_or_default();
        if status.starts_with(b"1") && status != b"101" && !rest.is_empty() {
            continue;
        }
        if head.values(b"connection").any(|value| !value.is_ascii() && members(value).any(|member| member == b"close"))
        {
            classes.push(Strictness::HiddenClose);
        }
        let is_empty = matches!(status, b"101" | b"204" | b"304") || case.method == Method::HEAD;
        if !is_empty {
            framing(&head, &mut classes);
            if head
                .values(b"transfer-encoding")
                .last()
                .and_then(|value| members(value).last())
                .is_some_and(|coding| coding == b"chunked")
            {
                chunks(rest, &mut classes);
            }
        }
        classes.dedup();
        return classes;
    }
}

fn framing(head: &Section<'_>, classes: &mut Vec<Strictness>) {
    let codings: Vec<_> = head.values(b"transfer-encoding").collect();
    let mut lengths = head.values(b"content-length").peekable();
    if !codings.is_empty() {
        if lengths.peek().is_some() {
            classes.push(Strictness::LengthAndCoding);
        }
        if codings.len() != 1 || !codings[0].eq_ignore_ascii_case(b"chunked") {
            classes.push(Strictness::Coding);
        }
    }
    let is_large = |digits: &[u8]| {
        let number = digits
            .iter()
            .try_fold(0_i64, |number, digit| number.checked_mul(10)?.checked_add(i64::from(digit.wrapping_sub(b'0'))));
        digits.len() > 19 || number.is_none()
    };
    if lengths.flat_map(members).any(|member| member.iter().all(u8::is_ascii_digit) && is_large(&member)) {
        classes.push(Strictness::LargeLength);
    }
}

/// Reads chunks and trailers.
fn chunks(mut rest: &[u8], classes: &mut Vec<Strictness>) {
    let mut extensions = 0;
    loop {
        let line = take_line(&mut rest);
        let digits = line.iter().take_while(|octet| octet.is_ascii_hexdigit()).count();
        if digits > 16 {
            classes.push(Strictness::LongSize);
        }
        let extension = line[digits..].strip_suffix(b"\n").unwrap_or(&line[digits..]);
        let extension = extension.strip_suffix(b"\r").unwrap_or(extension);
        if extension.iter().any(|&octet| octet.is_ascii_control() && octet != b'\t') {
            classes.push(Strictness::ExtensionControl);
        }
        extensions += extension.len();
        if extensions >= 16 * 1024 {
            classes.push(Strictness::Extensions);
        }
        let size = line[..digits].iter().fold(0_usize, |size, digit| {
            let digit = char::from(*digit).to_digit(16).unwrap_or_default();
            size.saturating_mul(16).saturating_add(digit as usize)
        });
        if size == 0 {
            break;
        }
        rest = rest.get(size.saturating_add(2)..).unwrap_or_default();
    }
    if Section::take(&mut rest).has_bare_lf {
        classes.push(Strictness::BareLfInTrailers);
    }
}

/// A head, or trailers.
struct Section<'a> {
    /// Without their ends.
    lines: Vec<&'a [u8]>,
    is_preceded: bool,
    has_bare_lf: bool,
}

impl<'a> Section<'a> {
    /// Takes the lines up to the empty one.
    fn take(rest: &mut &'a [u8]) -> Self {
        let mut section = Self { lines: Vec::new(), is_preceded: false, has_bare_lf: false };
        while !rest.is_empty() {
            let line = take_line(rest);
            section.has_bare_lf |= line.ends_with(b"\n") && !line.ends_with(b"\r\n");
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.is_empty() {
                section.lines.push(line);
            } else if section.lines.is_empty() {
                section.is_preceded = true;
            } else {
                break;
            }
        }
        section
    }

    /// The values of the fields of this name.
    fn values(&self, name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
        self.lines.iter().filter_map(move |line| {
            let colon = line.iter().position(|&octet| octet == b':')?;
            line[..colon].trim_ascii().eq_ignore_ascii_case(name).then(|| line[colon + 1..].trim_ascii())
        })
    }
}

fn take_line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = rest.iter().position(|&octet| octet == b'\n').map_or(rest.len(), |at| at + 1);
    let (line, behind) = rest.split_at(end);
    *rest = behind;
    line
}

fn members(value: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    value.split(|&octet| octet == b',').map(|member| member.trim_ascii().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            super::Limits,
            reference,
            response::{Difference, End},
            subject,
        },
        *,
    };

    /// A response that belongs to this class alone.
    fn example(class: Strictness) -> Vec<u8> {
        let long =
            [&b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1"[..], &[b' '; 16 * 1024], b"\r\na\r\n0\r\n\r\n"];
        let example: &[u8] = match class {
            Strictness::EmptyLine => b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            Strictness::BareLf => b"HTTP/1.1 200 OK\r\nX: y\nContent-Length: 0\r\n\r\n",
            Strictness::LengthAndCoding => {
                b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            }
            Strictness::Coding => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            Strictness::LargeLength => b"HTTP/1.1 200 OK\r\nContent-Length: 00000000000000000000\r\n\r\n",
            Strictness::BareLfInTrailers => {
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: b\n\r\nc: d\r\n\r\n"
            }
            Strictness::LongSize => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000000\r\n\r\n",
            Strictness::ExtensionControl => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0;\x00\r\n\r\n",
            Strictness::Extensions => &long.concat(),
            Strictness::HiddenClose => b"HTTP/1.1 200 OK\r\nConnection: \xff, close\r\nContent-Length: 0\r\n\r\n",
        };
        example.to_vec()
    }

    #[test]
    fn every_class_has_an_example_that_hyper_accepts() {
        for class in [
            Strictness::EmptyLine,
            Strictness::BareLf,
            Strictness::LengthAndCoding,
            Strictness::Coding,
            Strictness::LargeLength,
            Strictness::BareLfInTrailers,
            Strictness::LongSize,
            Strictness::ExtensionControl,
            Strictness::Extensions,
            Strictness::HiddenClose,
        ] {
            let limits = Limits { bytes: 64 * 1024, fields: 256 };
            let case = Case { method: Method::GET, limits, octets: example(class), pieces: Vec::new() };
            let (hyper, ours) = (reference::read(&case), subject::read(&case));
            assert_eq!(hyper.end, End::Complete, "{class:?}: {hyper:?}");
            assert_eq!(case.difference(&hyper, &ours), Err(Difference::Strict(class.stage())), "{class:?}: {ours:?}");
            assert_eq!(classes(&case), [class]);
        }
    }
}
