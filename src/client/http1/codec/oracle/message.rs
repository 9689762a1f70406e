//! A request as a strict server reads it. It shares nothing with the codec.

/// Names and values.
pub(super) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A request that was read.
pub(super) struct Message {
    pub(super) line: Vec<u8>,
    pub(super) fields: Fields,
    pub(super) is_chunked: bool,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Fields,
    pub(super) is_complete: bool,
}

impl Message {
    /// `None` if it isn't a request, or if something is behind it.
    pub(super) fn read(octets: &[u8]) -> Option<Self> {
        let mut rest = octets;
        let line = take_line(&mut rest)?.to_vec();
        let fields = take_fields(&mut rest)?;
        let values = |name: &str| {
            let fields = fields.iter().filter(move |field| field.0.eq_ignore_ascii_case(name.as_bytes()));
            fields.map(|(_, value)| value.clone()).collect::<Vec<_>>()
        };
        let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
        let mut message = Self {
            line,
            fields,
            is_chunked: !codings.is_empty(),
            body: Vec::new(),
            trailers: Vec::new(),
            is_complete: false,
        };
        match (&lengths[..], &codings[..]) {
            ([], []) => message.is_complete = true,
            ([length], []) => {
                let digits = str::from_utf8(length).ok()?;
                let length = digits.parse::<u64>().ok().filter(|number| number.to_string() == digits)?;
                message.is_complete = rest.len() as u64 == length;
                if rest.len() as u64 > length {
                    return None;
                }
                message.body = std::mem::take(&mut rest).to_vec();
            }
            ([], [.., last]) if last.to_ascii_lowercase().ends_with(b"chunked") => message.chunks(&mut rest)?,
            _ => return None,
        }
        rest.is_empty().then_some(message)
    }

    fn chunks(&mut self, rest: &mut &[u8]) -> Option<()> {
        while !rest.is_empty() {
            let size = usize::from_str_radix(str::from_utf8(take_line(rest)?).ok()?, 16).ok()?;
            if size == 0 {
                self.trailers = take_fields(rest)?;
                self.is_complete = true;
                break;
            }
            self.body.extend_from_slice(rest.get(..size)?);
            *rest = rest[size..].strip_prefix(b"\r\n")?;
        }
        Some(())
    }

    /// The request with its fields sorted by name, and what is behind its head as it is.
    pub(super) fn sorted(octets: &[u8]) -> Option<(Vec<u8>, Fields, Vec<u8>)> {
        let mut rest = octets;
        let line = take_line(&mut rest)?.to_vec();
        let mut fields = take_fields(&mut rest)?;
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        Some((line, fields, rest.to_vec()))
    }
}

/// Takes fields and the empty line.
fn take_fields(rest: &mut &[u8]) -> Option<Fields> {
    let mut fields = Vec::new();
    loop {
        let line = take_line(rest)?;
        if line.is_empty() {
            return Some(fields);
        }
        let colon = line.windows(2).position(|octets| octets == b": ")?;
        fields.push((line[..colon].to_vec(), line[colon + 2..].to_vec()));
    }
}

fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|octets| octets == b"\r\n")?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    (!line.contains(&b'\r') && !line.contains(&b'\n')).then_some(line)
}
