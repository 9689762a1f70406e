//! One response, in pieces, and the outcome of reading it.

use std::fmt;

use http::{HeaderMap, Method, StatusCode, Version, header::CONTENT_LENGTH};

use super::{super::Limits, reference, shown, strictness, subject};

/// The octets that a backend sends in answer to one request, and how a client reads them.
#[derive(Clone)]
pub(crate) struct Case {
    /// The method of the request: `GET` or `HEAD`, because the client sends no `CONNECT`.
    pub(crate) method: Method,
    pub(crate) limits: Limits,
    pub(crate) octets: Vec<u8>,
    /// How many octets each read returns, over and over. Empty: one read returns them all.
    pub(crate) pieces: Vec<usize>,
}

/// The outcome of reading a response.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) informational: Vec<Head>,
    pub(crate) head: Option<Head>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) end: End,
    /// Whether the connection may carry another request before the backend ends it.
    pub(crate) is_reusable: bool,
    /// Whether octets of an incomplete head, or of incomplete trailers, are left.
    pub(crate) is_late: bool,
    /// After each piece: how many heads, and how many octets of the body, have come out.
    pub(crate) progress: Vec<(usize, usize)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    pub(crate) version: Version,
    pub(crate) status: StatusCode,
    /// hyper doesn't show that of a 1xx.
    pub(crate) reason: Vec<u8>,
    pub(crate) fields: HeaderMap,
}

/// How the exchange ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum End {
    /// It hasn't yet.
    #[default]
    Open,
    /// The response was complete before the connection ended.
    Complete,
    /// The end of the connection completed the response.
    ByClose,
    /// The connection speaks another protocol. The body is what came after the head.
    Switched,
    /// The connection ended in the midst of the response.
    Cut,
    /// The response was refused before the connection ended.
    Refused,
}

impl Case {
    /// Reads the input of a fuzz target. The first octet chooses the method, the limits and the pieces; the response
    /// follows.
    pub(crate) fn from_octets(data: &[u8]) -> Option<Self> {
        let (&options, octets) = data.split_first()?;
        let size = usize::from(options >> 4) + 1;
        let method = if options & 1 == 0 { Method::GET } else { Method::HEAD };
        let limits =
            if options & 2 == 0 { Limits { bytes: 64 * 1024, fields: 256 } } else { Limits { bytes: 100, fields: 3 } };
        let pieces = match options >> 2 & 3 {
            0 => vec![],
            1 => vec![size],
            2 => vec![size, 1],
            _ => vec![1, 20 * size],
        };
        Some(Self { method, limits, octets: octets.to_vec(), pieces })
    }

    /// Reads the response with hyper and with the codec.
    ///
    /// # Errors
    ///
    /// If the outcomes differ and no class of [`Strictness`](strictness::Strictness) explains that, or if the codec's
    /// outcome depends on the pieces.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (hyper, mut ours) = (reference::read(self), subject::read(self));
        let whole = subject::read(&Self { pieces: Vec::new(), ..self.clone() });
        if let Some(what) = whole.is_unlike(&ours) {
            return Err(format!("{what}\n{self:?}\nread at once: {whole:?}\nours: {ours:?}"));
        }
        // A section that comes in pieces isn't parsed anew with each of them.
        if ours.is_late && whole.end == End::Refused {
            ours.end = End::Refused;
        }
        let Err(what) = self.compare(&hyper, &ours) else { return Ok(()) };
        // hyper refuses trailers that have as many bytes as the limit allows.
        if ours.trailers.is_some() {
            let limits = Limits { bytes: self.limits.bytes + 1, ..self.limits };
            if self.compare(&reference::read(&Self { limits, ..self.clone() }), &ours).is_ok() {
                return Ok(());
            }
        }
        Err(format!("{what}\n{self:?}\nhyper: {hyper:?}\nours: {ours:?}"))
    }

    /// Reads the response with the codec. The informational heads and the progress are left out.
    #[cfg(test)]
    pub(crate) fn read(&self) -> Seen {
        Seen { informational: Vec::new(), progress: Vec::new(), ..subject::read(self) }
    }

    /// Compares the outcomes. A refusal is excused if the response belongs to a class of refused ones.
    fn compare(&self, hyper: &Seen, ours: &Seen) -> Result<(), &'static str> {
        match self.difference(hyper, ours) {
            Ok(()) => Ok(()),
            Err(Difference::Strict(stage)) if strictness::classes(self).iter().any(|class| class.stage() == stage) => {
                Ok(())
            }
            Err(Difference::Strict(Stage::Head)) => Err("a head is refused"),
            Err(Difference::Strict(Stage::Body)) => Err("a body is refused"),
            Err(Difference::Strict(Stage::Reuse)) => Err("a connection is closed"),
            Err(Difference::Lax(what)) => Err(what),
        }
    }

    /// Compares the outcomes.
    pub(super) fn difference(&self, hyper: &Seen, ours: &Seen) -> Result<(), Difference> {
        let lax = |what| Err(Difference::Lax(what));
        for (hyper, ours) in hyper.informational.iter().zip(&ours.informational) {
            if hyper.status != ours.status || hyper.version != ours.version || hyper.fields != ours.fields {
                return lax("informational heads differ");
            }
        }
        let heads = |seen: &Seen| seen.informational.len() + usize::from(seen.head.is_some());
        match (heads(hyper), heads(ours)) {
            (hyper, ours) if hyper < ours => return lax("a head that hyper refuses"),
            // hyper parses a head again only when it may be complete, and the codec only when it has grown.
            (theirs, count)
                if theirs == count && ours.head.is_none() && ours.end.is_failure() && hyper.end.is_failure() =>
            {
                return Ok(());
            }
            (hyper, count) if hyper > count && ours.end.is_failure() => return Err(Difference::Strict(Stage::Head)),
            (hyper, ours) if hyper > ours => return lax("a head is missing"),
            _ => {}
        }
        if let (Some(hyper), Some(ours)) = (&hyper.head, &ours.head)
            && !self.is_same_head(hyper, ours)
        {
            return lax("the heads differ");
        }
        match (hyper.end, ours.end) {
            (hyper, ours) if hyper == ours => {}
            // The codec looks at trailers before they are complete.
            (End::Cut, End::Refused) => {}
            (hyper, ours) if !hyper.is_failure() && ours.is_failure() => return Err(Difference::Strict(Stage::Body)),
            _ => return lax("the ends differ"),
        }
        if ours.end.is_failure() {
            if !hyper.body.starts_with(&ours.body) && !ours.body.starts_with(&hyper.body) {
                return lax("the bodies differ before they fail");
            }
        } else if hyper.body != ours.body {
            return lax("the bodies differ");
        } else if hyper.trailers != ours.trailers {
            return lax("the trailers differ");
        }
        let mut progress = hyper.progress.iter().zip(&ours.progress);
        if !matches!(ours.end, End::Refused | End::Switched)
            && progress.any(|(hyper, ours)| hyper.0 > ours.0 || hyper.1 > ours.1)
        {
            return lax("something comes out later");
        }
        match (hyper.is_reusable, ours.is_reusable) {
            (true, false) => Err(Difference::Strict(Stage::Reuse)),
            (false, true) => lax("a connection is kept"),
            _ => Ok(()),
        }
    }

    fn is_same_head(&self, hyper: &Head, ours: &Head) -> bool {
        let is_same_reason = match ours.reason.is_ascii() {
            true => hyper.reason == ours.reason,
            // hyper drops it.
            false => hyper.reason.is_empty() && self.has_line_end(&ours.reason),
        };
        let mut fields = hyper.fields.clone();
        // A list of equal lengths is forwarded as one of them, where it frames the body.
        if fields.get_all(CONTENT_LENGTH) != ours.fields.get_all(CONTENT_LENGTH)
            && let Some(length) = length(&fields)
        {
            fields.insert(CONTENT_LENGTH, length.into());
        }
        is_same_reason && (hyper.version, hyper.status, &fields) == (ours.version, ours.status, &ours.fields)
    }

    /// Whether a line ends with these octets, behind a blank.
    fn has_line_end(&self, end: &[u8]) -> bool {
        let end = [b" ", end, b"\r\n"].concat();
        self.octets.windows(end.len()).any(|octets| octets == end)
    }

    /// Calls the function for each piece.
    pub(crate) fn each_piece(&self, mut f: impl FnMut(&[u8])) {
        let mut rest = &self.octets[..];
        let mut sizes = self.pieces.iter().cycle();
        while !rest.is_empty() {
            let size = sizes.next().map_or(rest.len(), |size| (*size).clamp(1, rest.len()));
            let (piece, behind) = rest.split_at(size);
            f(piece);
            rest = behind;
        }
    }
}

/// How the codec differs from hyper.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Difference {
    /// The codec refuses it, and hyper doesn't.
    Strict(Stage),
    /// Every other difference.
    Lax(&'static str),
}

/// The part of an exchange that is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    Head,
    /// The body, behind a head that was accepted.
    Body,
    /// The connection is closed after the response.
    Reuse,
}

impl Seen {
    /// Compares two outcomes of the codec, which read the same octets in other pieces.
    pub(crate) fn is_unlike(&self, other: &Self) -> Option<&'static str> {
        let is_same_end = self.end == other.end || (self.end.is_failure() && other.end.is_failure());
        if self.informational != other.informational || self.head != other.head {
            Some("the heads differ")
        } else if !is_same_end || self.is_reusable != other.is_reusable {
            Some("the ends differ")
        } else if self.body != other.body || self.trailers != other.trailers {
            Some("the bodies differ")
        } else {
            None
        }
    }
}

/// The number that every member of every `Content-Length` is.
fn length(fields: &HeaderMap) -> Option<u64> {
    let mut numbers = fields.get_all(CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|&b| b == b','));
    let parse = |member: &[u8]| str::from_utf8(member.trim_ascii()).ok()?.parse::<u64>().ok();
    let first = parse(numbers.next()?)?;
    numbers.all(|member| parse(member) == Some(first)).then_some(first)
}

impl End {
    pub(super) fn is_failure(self) -> bool {
        matches!(self, Self::Cut | Self::Refused)
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { informational, head, body, trailers, end, is_reusable, is_late: _, progress } = self;
        for head in informational.iter().chain(head) {
            let Head { version, status, reason, fields } = head;
            write!(f, "\n    {version:?} {} \"{}\" {fields:?}", status.as_u16(), reason.escape_ascii())?;
        }
        write!(f, "\n    {} {trailers:?}", shown(body))?;
        write!(f, "\n    {end:?}, reusable: {is_reusable}, {progress:?}")
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, limits, octets, pieces } = self;
        write!(f, "{method}, at most {} bytes and {} fields, read in {pieces:?}:", limits.bytes, limits.fields)?;
        for line in octets.split_inclusive(|&b| b == b'\n') {
            write!(f, "\n    {}", shown(line))?;
        }
        Ok(())
    }
}
