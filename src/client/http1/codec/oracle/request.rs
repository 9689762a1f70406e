//! One request, and the octets that a client makes of it.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{CONNECTION, CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING},
};
use http_body::{Body, Frame, SizeHint};

use super::{
    message::{Fields, Message},
    reference, shown, subject,
};

/// A request, and how its octets are written.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) fields: Fields,
    /// The frames of the body.
    pub(crate) data: Vec<Vec<u8>>,
    pub(crate) trailers: Option<Fields>,
    /// The length that the body announces.
    pub(crate) length: Option<u64>,
    /// Whether the body announces its end before it's polled for a further frame.
    pub(crate) knows_its_end: bool,
    /// Whether the names of fields begin with capitals.
    pub(crate) is_titled: bool,
    /// How many octets each write takes, over and over. Empty: one write takes them all.
    pub(crate) writes: Vec<usize>,
}

/// The octets that a client made of a request.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) octets: Vec<u8>,
    /// Whether the body came to its end.
    pub(super) is_complete: bool,
    /// Whether the request lets the connection be used again.
    pub(super) keep_alive: bool,
}

/// The intended differences between the requests that hyper and the codec write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Difference {
    /// A `Content-Length` that the body contradicts is replaced by the body's length. hyper sends it.
    StaleLength,
    /// Equal lengths, and those with zeros before them, become one number. hyper sends them as they are.
    RepeatedLength,
    /// A body of unknown length is sent with `GET` and `HEAD`, too. hyper leaves it out.
    UnknownSize,
    /// A body that isn't as long as it announced is an error. hyper cuts it, or ends the message early.
    WrongSize,
    /// The members of `Connection`, `Trailer` and `Transfer-Encoding` count beside octets outside of ASCII. hyper
    /// ignores the whole line.
    ObsText,
}

impl Case {
    /// Reads the input of a fuzz target. Three octets choose the method, the body's length and the writes. Three
    /// sections of lines follow, with a NUL between them: target and fields, the frames of the body, and trailers.
    pub(crate) fn from_octets(data: &[u8]) -> Option<Self> {
        let (&[options, more, size], rest) = data.split_first_chunk()?;
        let methods = [Method::GET, Method::POST, Method::HEAD, Method::PUT];
        let mut sections = rest.splitn(3, |&octet| octet == 0);
        let mut head = lines(sections.next()?);
        let target = String::from_utf8(head.next()?.to_vec()).ok()?;
        // `Uri` drops a fragment, and takes the rest for an authority.
        if !(target.starts_with('/') || target == "*") || target.contains('#') {
            return None;
        }
        let data: Vec<_> = sections.next().into_iter().flat_map(lines).map(<[u8]>::to_vec).collect();
        let total = data.iter().map(|data| data.len() as u64).sum::<u64>();
        let trailers = match sections.next() {
            Some(section) => Some(lines(section).map(field).collect::<Option<_>>()?),
            None => None,
        };
        Some(Self {
            method: methods[usize::from(options & 3)].clone(),
            target,
            fields: head.map(field).collect::<Option<_>>()?,
            trailers,
            length: (options & 4 != 0).then(|| total.saturating_add_signed(i64::from(more as i8))),
            data,
            knows_its_end: options & 8 != 0,
            is_titled: options & 16 != 0,
            writes: if size == 0 { Vec::new() } else { vec![usize::from(size)] },
        })
    }

    /// Writes the request with hyper and with the codec, and reads what the codec wrote.
    ///
    /// # Errors
    ///
    /// If the octets differ and no [`Difference`] explains that, or if a server would read another request.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Some(request) = self.request() else { return Ok(()) };
        let ours = subject::write(self, request);
        let fail = |what: &str| format!("{what}\n{self:?}\nours: {ours:?}");
        self.read_back(&ours).map_err(fail)?;
        if !self.differences().is_empty() {
            return Ok(());
        }
        let hyper = self.request().map(|request| reference::write(self, request));
        let Some(hyper) = hyper else { return Ok(()) };
        let what = if hyper.is_complete != ours.is_complete {
            "the ends differ"
        } else if hyper.keep_alive != ours.keep_alive {
            "one of both keeps the connection"
        } else if Message::sorted(&hyper.octets) != Message::sorted(&ours.octets) {
            "the octets differ"
        } else {
            return Ok(());
        };
        Err(format!("{}\nhyper: {hyper:?}", fail(what)))
    }

    /// `None` if it has parts that `http` refuses.
    pub(super) fn request(&self) -> Option<Request<Frames>> {
        let mut frames: VecDeque<_> = self.data.iter().map(|data| Frame::data(Bytes::from(data.clone()))).collect();
        if let Some(trailers) = &self.trailers {
            frames.push_back(Frame::trailers(map(trailers)?));
        }
        let mut request = Request::new(Frames { frames, length: self.length, knows_its_end: self.knows_its_end });
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.parse::<Uri>().ok()?;
        *request.headers_mut() = map(&self.fields)?;
        Some(request)
    }

    /// The differences that the request has.
    pub(super) fn differences(&self) -> Vec<Difference> {
        let mut differences = Vec::new();
        let size = self.data.iter().map(|data| data.len() as u64).sum::<u64>();
        let has_no_body = self.knows_its_end && self.data.is_empty() && self.trailers.is_none();
        let values = |name: &HeaderName| {
            let name = name.as_str().as_bytes();
            let fields = self.fields.iter().filter(move |field| field.0.eq_ignore_ascii_case(name));
            fields.map(|(_, value)| value.trim_ascii()).collect::<Vec<_>>()
        };
        let lengths = values(&CONTENT_LENGTH);
        let is_coded = !values(&TRANSFER_ENCODING).is_empty();
        let numbers: Option<Vec<u64>> = lengths
            .iter()
            .flat_map(|value| value.split(|&octet| octet == b','))
            .map(|member| {
                str::from_utf8(member.trim_ascii()).ok().filter(|member| !member.starts_with('+'))?.parse().ok()
            })
            .collect();
        let declared = numbers
            .filter(|numbers| numbers.windows(2).all(|pair| pair[0] == pair[1]))
            .and_then(|numbers| numbers.first().copied());
        let announced = if has_no_body { Some(0) } else { self.length };
        if (!is_coded || has_no_body) && !lengths.is_empty() {
            if announced.is_some_and(|announced| declared != Some(announced)) {
                differences.push(Difference::StaleLength);
            }
            if lengths.len() > 1 || declared.is_some_and(|declared| lengths[0] != declared.to_string().as_bytes()) {
                differences.push(Difference::RepeatedLength);
            }
        }
        let names = [CONNECTION, TRAILER, TRANSFER_ENCODING];
        if names.iter().flat_map(values).any(|value| !value.is_ascii()) {
            differences.push(Difference::ObsText);
        }
        let length = announced.or(declared);
        if !is_coded && length.is_none() && matches!(self.method, Method::GET | Method::HEAD) {
            differences.push(Difference::UnknownSize);
        }
        if !is_coded && length.is_some_and(|length| length != size) {
            differences.push(Difference::WrongSize);
        }
        differences
    }

    /// Reads what was written, and compares it with the request.
    fn read_back(&self, written: &Written) -> Result<(), &'static str> {
        let message = Message::read(&written.octets).ok_or("it can't be read back")?;
        if message.line != format!("{} {} HTTP/1.1", self.method, self.target).into_bytes() {
            return Err("another request line");
        }
        let is_framing = |name: &[u8]| {
            [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|other| name.eq_ignore_ascii_case(other.as_str().as_bytes()))
        };
        let mut expected: Fields =
            self.fields.iter().map(|(name, value)| (self.styled(name), value.trim_ascii().to_vec())).collect();
        let mut found = message.fields.clone();
        for fields in [&mut expected, &mut found] {
            fields.retain(|(name, _)| !is_framing(name));
            fields.sort_by(|a, b| a.0.cmp(&b.0));
        }
        if expected != found {
            return Err("other fields");
        }
        let data = self.data.concat();
        if !written.is_complete {
            return if data.starts_with(&message.body) || message.body.is_empty() {
                Ok(())
            } else {
                Err("another body before it failed")
            };
        }
        if !message.is_complete {
            return Err("an incomplete body");
        }
        // When its length is reached, the codec doesn't poll the body again.
        let is_cut = self.differences().contains(&Difference::WrongSize) && data.starts_with(&message.body);
        if message.body != data && !is_cut {
            return Err("another body");
        }
        let announced: Vec<u8> = self
            .fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(TRAILER.as_str().as_bytes()))
            .flat_map(|(_, value)| [b",", &value[..]].concat())
            .collect();
        let is_announced = |name: &[u8]| {
            announced.split(|&octet| octet == b',').any(|member| member.trim_ascii().eq_ignore_ascii_case(name))
        };
        let mut trailers: Fields = self.trailers.iter().flatten().cloned().collect();
        trailers.retain(|(name, _)| {
            message.is_chunked && is_announced(name) && !is_framing(name) && !is_never_trailer(name)
        });
        for (name, value) in &mut trailers {
            *name = self.styled(name);
            *value = value.trim_ascii().to_vec();
        }
        trailers.sort_by(|a, b| a.0.cmp(&b.0));
        let mut found = message.trailers;
        found.sort_by(|a, b| a.0.cmp(&b.0));
        if trailers == found { Ok(()) } else { Err("other trailers") }
    }

    /// The name as it is to be written.
    fn styled(&self, name: &[u8]) -> Vec<u8> {
        let mut name = name.to_ascii_lowercase();
        if self.is_titled {
            name.split_mut(|&octet| octet == b'-').for_each(|word| {
                if let [first, ..] = word {
                    first.make_ascii_uppercase();
                }
            });
        }
        name
    }
}

/// Whether the field must not be a trailer, although it's announced (RFC 9110, section 6.5.1).
fn is_never_trailer(name: &[u8]) -> bool {
    let names = [
        "authorization",
        "cache-control",
        "content-encoding",
        "content-range",
        "content-type",
        "host",
        "max-forwards",
        "set-cookie",
        "te",
        "trailer",
    ];
    names.iter().any(|never| name.eq_ignore_ascii_case(never.as_bytes()))
}

fn map(fields: &Fields) -> Option<HeaderMap> {
    let pair = |(name, value): &(Vec<u8>, Vec<u8>)| {
        Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value.trim_ascii()).ok()?))
    };
    fields.iter().map(pair).collect()
}

/// The body of a request.
pub(super) struct Frames {
    frames: VecDeque<Frame<Bytes>>,
    length: Option<u64>,
    knows_its_end: bool,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.frames.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.knows_its_end && self.frames.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map(SizeHint::with_exact).unwrap_or_default()
    }
}

/// The lines of a section of a fuzz target's input. An empty section has none.
fn lines(section: &[u8]) -> impl Iterator<Item = &[u8]> {
    section.split(|&octet| octet == b'\n').filter(|line| !section.is_empty() || !line.is_empty())
}

/// A line as name and value.
fn field(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let colon = line.iter().position(|&octet| octet == b':')?;
    Some((line[..colon].to_vec(), line[colon + 1..].to_vec()))
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, target, fields, data, trailers, length, knows_its_end, is_titled, writes } = self;
        write!(f, "{method} {target}, titled: {is_titled}, written in {writes:?}")?;
        for (name, value) in fields {
            write!(f, "\n    {}: {}", name.escape_ascii(), shown(value))?;
        }
        write!(f, "\n  a body of {length:?}, knows its end: {knows_its_end}")?;
        for data in data {
            write!(f, "\n    {}", shown(data))?;
        }
        for (name, value) in trailers.iter().flatten() {
            write!(f, "\n    {}: {}", name.escape_ascii(), shown(value))?;
        }
        if trailers.is_some() { f.write_str(" (trailers)") } else { Ok(()) }
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { octets, is_complete, keep_alive } = self;
        write!(f, "complete: {is_complete}, keep-alive: {keep_alive}")?;
        for line in octets.split_inclusive(|&b| b == b'\n') {
            write!(f, "\n    {}", shown(line))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that is written differently.
    fn example(difference: Difference) -> Case {
        let case = |method: Method, fields: &[(&str, &str)], data: &str, length| Case {
            method,
            target: "/".to_owned(),
            fields: fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect(),
            data: vec![data.as_bytes().to_vec()],
            trailers: None,
            length,
            knows_its_end: false,
            is_titled: false,
            writes: Vec::new(),
        };
        match difference {
            Difference::StaleLength => case(Method::POST, &[("content-length", "9")], "abc", Some(3)),
            Difference::RepeatedLength => case(Method::POST, &[("content-length", "3, 03")], "abc", None),
            Difference::UnknownSize => case(Method::GET, &[], "abc", None),
            Difference::WrongSize => case(Method::POST, &[], "abc", Some(2)),
            Difference::ObsText => case(Method::POST, &[("transfer-encoding", "\u{e9}, chunked")], "abc", None),
        }
    }

    #[test]
    fn every_difference_from_hyper_has_an_example() {
        for difference in [
            Difference::StaleLength,
            Difference::RepeatedLength,
            Difference::UnknownSize,
            Difference::WrongSize,
            Difference::ObsText,
        ] {
            let case = example(difference);
            let (hyper, ours) =
                (reference::write(&case, case.request().unwrap()), subject::write(&case, case.request().unwrap()));
            assert_eq!(case.differences(), [difference]);
            assert!(
                hyper.octets != ours.octets || hyper.is_complete != ours.is_complete,
                "{case:?}: {hyper:?}, {ours:?}"
            );
            case.check().unwrap();
        }
    }
}
