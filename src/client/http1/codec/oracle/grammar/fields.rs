//! Field lines, good and bad, and those that frame a message.

use proptest::{collection::vec, prelude::*, sample::select};

use super::{line_end, list};

pub(super) fn field() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => list![
            b"Date: Thu, 26 Nov 2026 22:38:40 GMT\r\n", b"Server: x\r\n", b"Set-Cookie: a=b; Path=/\r\n",
            b"set-cookie: c=d\r\n",
            b"Content-Type: text/plain\r\n", b"ETag: \"1\"\r\n", b"Trailer: Digest\r\n", b"Via: 1.1 a\r\n",
            b"Vary: *\r\n",
        ],
        4 => connection(),
        4 => (name(), colon(), value(), line_end())
            .prop_map(|(name, colon, value, end)| [&name, &colon, &value, end].concat()),
        1 => framing_field(),
    ]
}

fn connection() -> impl Strategy<Value = Vec<u8>> {
    list![
        b"Connection: keep-alive\r\n",
        b"Connection: close\r\n",
        b"connection: Close\r\n",
        b"Connection: Keep-Alive\r\n",
        b"Connection: keep-alive, close\r\n",
        b"Connection: close, keep-alive\r\n",
        b"Connection: x,close\r\n",
        b"Connection: x , close ,\r\n",
        b"Connection: closed\r\n",
        b"Connection: \"close\"\r\n",
        b"Connection: close;q=1\r\n",
        b"Connection:\r\n",
        b"Connection: ,\r\n",
        b"Connection: upgrade\r\nUpgrade: x\r\n",
        b"Connection: close\xff\r\n",
        b"Connection: close, \xff\r\n",
        b"Connection: \xff, keep-alive\r\n",
        b"Connection : close\r\n",
        b"Proxy-Connection: close\r\n",
        b"Keep-Alive: timeout=5\r\n",
    ]
}

pub(super) fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        50 => list![b"X", b"x-a", b"A", b"X_A", b"!#$%&'*+-.^_`|~", b"0"],
        3 => list![
            b"", b"X\xff", b"X A", b"\tX", b" X", b"X\x00", b"X\r", b"X(", b"\"X\"", b"X/", b"X[", b"\x7f", b"@",
        ],
        1 => vec(any::<u8>(), 0..6),
        1 => (1..400_usize).prop_map(|size| vec![b'x'; size]),
    ]
}

pub(super) fn colon() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        30 => Just(b": ".to_vec()),
        2 => list![
            b":", b":\t", b":  \t ", b" :", b" : ", b"\t: ", b" \t \t:", b"::", b"", b"\r\n:", b"\x0b: ", b":\x0c", b" ",
        ],
    ]
}

pub(super) fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => "[ -~]{0,12}".prop_map(String::into_bytes),
        3 => list![
            b"", b" ", b"a ", b"a\t ", b"\xff", b"a\xe9b", b"a\tb", b"\x80",
            b"a\r\n b", b"a\r\n\tb", b"\r\n b", b"a\n b", b"a\r\n ", b"a\rb", b"a\x00b", b"a\x7fb", b"a\x1bb",
            b"a\x0bb", b"\x0c", b"a\r",
        ],
        1 => vec(any::<u8>(), 0..12),
        1 => (0..600_usize).prop_map(|size| vec![b'v'; size]),
    ]
}

/// A field that frames or nearly does, where the message has another one.
fn framing_field() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![length_lines("5"), length_lines("0"), coding_lines()]
}

#[derive(Clone, Debug)]
pub(super) enum Framing {
    /// A `Content-Length`, so many octets more than the body has, written in a way of [`LENGTHS`].
    Length(i64, usize),
    Chunked(Vec<u8>),
    Close,
    /// Lines of both kinds, and whether the body is chunked.
    Mixed(Vec<u8>, bool),
}

pub(super) fn framing() -> impl Strategy<Value = Framing> {
    let delta = prop_oneof![20 => Just(0_i64), 1 => -3..4_i64, 1 => Just(1000)];
    let spelling = prop_oneof![8 => Just(0_usize), 1 => 0..LENGTHS.len()];
    let coding = prop_oneof![8 => Just(b"Transfer-Encoding: chunked\r\n".to_vec()), 1 => coding_lines()];
    prop_oneof![
        10 => (delta, spelling).prop_map(|(delta, spelling)| Framing::Length(delta, spelling)),
        10 => coding.prop_map(Framing::Chunked),
        4 => Just(Framing::Close),
        2 => (vec(framing_field(), 1..4), any::<bool>())
            .prop_map(|(lines, chunked)| Framing::Mixed(lines.concat(), chunked)),
    ]
}

impl Framing {
    /// The lines for a body of this size.
    pub(super) fn lines(&self, size: usize) -> Vec<u8> {
        match self {
            Self::Length(more, spelling) => {
                let length = i64::try_from(size).unwrap() + more;
                LENGTHS[*spelling].replace('#', &length.max(0).to_string()).into_bytes()
            }
            Self::Chunked(lines) | Self::Mixed(lines, _) => lines.clone(),
            Self::Close => Vec::new(),
        }
    }

    pub(super) fn is_chunked(&self) -> bool {
        matches!(self, Self::Chunked(_) | Self::Mixed(_, true))
    }
}

/// `#` is the length.
const LENGTHS: [&str; 29] = [
    "Content-Length: #\r\n",
    "content-length:#\r\n",
    "Content-Length: \t # \t\r\n",
    "Content-Length: #\r\nContent-Length: #\r\n",
    "Content-Length: #, #\r\n",
    "Content-Length: #,#\r\nContent-Length: #\r\n",
    "Content-Length: 00#\r\n",
    "Content-Length: #, 0#\r\n",
    "Content-Length: #\r\nContent-Length: 1#\r\n",
    "Content-Length: 1#\r\nContent-Length: #\r\n",
    "Content-Length: #, 1#\r\n",
    "Content-Length: #,\r\n",
    "Content-Length: ,#\r\n",
    "Content-Length: #,,#\r\n",
    "Content-Length:\r\n",
    "Content-Length:\r\nContent-Length: #\r\n",
    "Content-Length: +#\r\n",
    "Content-Length: -#\r\n",
    "Content-Length: # #\r\n",
    "Content-Length: #.0\r\n",
    "Content-Length: 0x#\r\n",
    "Content-Length: #;\r\n",
    "Content-Length: \"#\"\r\n",
    "Content-Length: #\u{ff}\r\n",
    "Content-Length: 18446744073709551615\r\n",
    "Content-Length: 18446744073709551613\r\n",
    "Content-Length: 18446744073709551616\r\n",
    "Content-Length: 18446744073709551#\r\n",
    "Content-Length : #\r\n",
];

fn length_lines(length: &'static str) -> impl Strategy<Value = Vec<u8>> {
    select(&LENGTHS[..]).prop_map(move |lines| lines.replace('#', length).into_bytes())
}

fn coding_lines() -> impl Strategy<Value = Vec<u8>> {
    list![
        b"Transfer-Encoding: chunked\r\n",
        b"transfer-encoding:Chunked\r\n",
        b"Transfer-Encoding: \tchunked \t\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: identity, chunked\r\n",
        b"Transfer-Encoding: chunked;q=1\r\n",
        b"Transfer-Encoding: \"chunked\"\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: x chunked\r\n",
        b"Transfer-Encoding: chunkedx\r\n",
        b"Transfer-Encoding: ,chunked\r\n",
        b"Transfer-Encoding: chunked,\r\n",
        b"Transfer-Encoding: ,\r\n",
        b"Transfer-Encoding:\r\n",
        b"Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\xff\r\n",
        b"Transfer-Encoding: \xff, chunked\r\n",
        b"Transfer-Encoding: chunked\x0b\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer_Encoding: chunked\r\n",
    ]
}
