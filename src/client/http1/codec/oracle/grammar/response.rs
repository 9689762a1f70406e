//! Responses, good and bad.

use http::Method;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

use super::{
    super::{super::Limits, response::Case},
    chunks::{Chunk, body, trailers},
    ending,
    fields::{field, framing},
    line_end, list, rare,
};

pub(crate) fn case() -> impl Strategy<Value = Case> {
    let octets = prop_oneof![
        12 => message(),
        3 => (message(), vec(mutation(), 1..4)).prop_map(|(octets, mutations)| mutate(octets, &mutations)),
        1 => random(),
    ];
    (method(), limits(), octets, pieces()).prop_map(|(method, limits, octets, pieces)| Case {
        method,
        limits: limits.of(&octets),
        octets,
        pieces,
    })
}

fn method() -> impl Strategy<Value = Method> {
    prop_oneof![6 => Just(Method::GET), 1 => Just(Method::HEAD)]
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    Usual,
    Small(usize, usize),
    /// As many bytes as the first head has, or the trailers; and one less or more.
    Bytes(bool, usize),
    /// As many fields; and one less or more.
    Fields(bool, usize),
}

fn limits() -> impl Strategy<Value = Limit> {
    prop_oneof![
        20 => Just(Limit::Usual),
        1 => (16..300_usize, 1..8_usize).prop_map(|(bytes, fields)| Limit::Small(bytes, fields)),
        3 => (any::<bool>(), 0..3_usize).prop_map(|(of_trailers, bytes)| Limit::Bytes(of_trailers, bytes)),
        1 => (any::<bool>(), 0..3_usize).prop_map(|(of_trailers, fields)| Limit::Fields(of_trailers, fields)),
    ]
}

impl Limit {
    fn of(self, octets: &[u8]) -> Limits {
        let usual = Limits { bytes: 256 * 1024, fields: 256 };
        match self {
            Self::Usual => usual,
            Self::Small(bytes, fields) => Limits { bytes, fields },
            Self::Bytes(of_trailers, more) => {
                Limits { bytes: (section(octets, of_trailers).len() + more).saturating_sub(1).max(8), ..usual }
            }
            Self::Fields(of_trailers, more) => {
                let lines = section(octets, of_trailers).iter().filter(|&&octet| octet == b'\n').count();
                // The empty line is no field, and the status line neither.
                Limits { fields: (lines + more).saturating_sub(if of_trailers { 2 } else { 3 }).max(1), ..usual }
            }
        }
    }
}

/// The first head, or what are trailers if the body is chunked.
fn section(octets: &[u8], of_trailers: bool) -> &[u8] {
    let start = if of_trailers { b"\r\n0\r\n" } else { &b""[..] };
    let start =
        octets.windows(start.len().max(1)).position(|part| part.starts_with(start)).map_or(0, |at| at + start.len());
    let octets = &octets[start..];
    let end = octets.windows(4).position(|part| part == b"\r\n\r\n").map_or(octets.len(), |at| at + 4);
    &octets[..end]
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        3 => Just(vec![]),
        2 => vec(1..20_usize, 1..8),
        1 => Just(vec![1]),
        1 => vec(prop_oneof![1..4_usize, 1..300_usize, 8000..20_000_usize], 1..6),
    ]
}

// ---- Messages ----

fn message() -> impl Strategy<Value = Vec<u8>> {
    let interim = prop_oneof![
        8 => Just(Vec::new()),
        1 => vec((interim_line(), vec(field(), 0..3), ending()), 1..4),
    ];
    let head = (
        rare(b"", &[b"\r\n", b"\n", b"\r", b" ", b"\r\n\r\n"]),
        status_line(),
        vec(field(), 0..5),
        any::<Index>(),
        ending(),
    );
    (interim, head, framing(), body(), trailers(), stray()).prop_map(
        |(interim, (before, status_line, mut fields, at, end), framing, body, trailers, stray)| {
            let mut octets = Vec::new();
            for (status_line, fields, end) in interim {
                octets.extend([status_line, fields.concat(), end].concat());
            }
            octets.extend_from_slice(before);
            octets.extend(status_line);
            fields.insert(at.index(fields.len() + 1), framing.lines(body.iter().map(|chunk| chunk.data.len()).sum()));
            octets.extend(fields.concat());
            octets.extend(end);
            if framing.is_chunked() {
                octets.extend(body.iter().flat_map(Chunk::encoded));
                octets.extend(trailers);
            } else {
                octets.extend(body.iter().flat_map(|chunk| &chunk.data));
            }
            octets.extend(stray);
            octets
        },
    )
}

fn status_line() -> impl Strategy<Value = Vec<u8>> {
    let version = prop_oneof![
        40 => Just(b"HTTP/1.1 ".to_vec()),
        8 => Just(b"HTTP/1.0 ".to_vec()),
        1 => list![
            b"HTTP/1.1  ", b"HTTP/1.1\t", b"HTTP/1.1", b"HTTP/1.2 ", b"HTTP/2.0 ", b"HTTP/0.9 ",
            b"http/1.1 ", b"HTTP/11 ",
            b"HTTP/1.1\r ", b"HTTP/ 1.1 ", b"ICY ", b"", b" HTTP/1.1 ", b"HTTP/01.1 ",
        ],
    ];
    let code = prop_oneof![
        30 => Just(b"200".to_vec()),
        10 => list![b"204", b"304", b"101", b"404", b"500", b"206", b"205", b"401", b"407", b"299"],
        2 => list![
            b"100", b"103", b"199", b"999", b"600", b"099", b"000", b"20", b"2000", b"2 0", b"+20", b"-20", b"abc",
            b"", b"0x0",
            b"20\x00", b"\xb2\xb0\xb0",
        ],
    ];
    let reason = prop_oneof![
        20 => Just(b" OK".to_vec()),
        6 => list![
            b"", b" ", b" Not Found", b" OK ", b"  OK", b" \tOK", b" Tr\xe8s bien", b" \xff", b" OK\x00", b" O\x7fK",
            b" O\x1bK",
            b"\tOK", b"OK", b" O\rK",
        ],
        1 => vec(any::<u8>(), 0..12).prop_map(|reason| [b" ", &reason[..]].concat()),
    ];
    (version, code, reason, line_end())
        .prop_map(|(version, code, reason, end)| [&version, &code, &reason, end].concat())
}

fn interim_line() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => list![
            b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 103 Early Hints\r\n", b"HTTP/1.1 102 Processing\r\n",
            b"HTTP/1.1 199 \r\n",
            b"HTTP/1.0 100 Continue\r\n", b"HTTP/1.1 100\r\n",
        ],
        1 => status_line(),
    ]
}

/// What comes after the message.
fn stray() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => Just(Vec::new()),
        1 => list![
            b"\r\n", b"\n", b"\r", b" ", b"x", b"\x00", b"0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
        ],
    ]
}

fn random() -> impl Strategy<Value = Vec<u8>> {
    let octet = prop_oneof![2 => any::<u8>(), 3 => select(&b"\r\n \t:;,0123456789abcHTP/.chunked"[..])];
    let start = list![
        b"",
        b"HTTP/1.1 ",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
    ];
    (start, vec(octet, 0..60)).prop_map(|(start, octets)| [start, octets].concat())
}

// ---- Mutations ----

#[derive(Clone, Debug)]
enum Mutation {
    Cut(Index),
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let octet = prop_oneof![2 => select(&b"\r\n \t\x00:;,0123456789"[..]), 1 => any::<u8>()];
    prop_oneof![
        any::<Index>().prop_map(Mutation::Cut),
        (any::<Index>(), octet.clone()).prop_map(|(at, octet)| Mutation::Set(at, octet)),
        (any::<Index>(), vec(octet, 1..4)).prop_map(|(at, octets)| Mutation::Insert(at, octets)),
        (any::<Index>(), 1..10_usize).prop_map(|(at, size)| Mutation::Remove(at, size)),
        (any::<Index>(), 1..40_usize).prop_map(|(at, size)| Mutation::Repeat(at, size)),
    ]
}

fn mutate(mut octets: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        let len = octets.len();
        if len == 0 {
            break;
        }
        match mutation {
            Mutation::Cut(at) => octets.truncate(at.index(len)),
            Mutation::Set(at, octet) => octets[at.index(len)] = *octet,
            Mutation::Insert(at, new) => drop(octets.splice(at.index(len)..at.index(len), new.iter().copied())),
            Mutation::Remove(at, size) => drop(octets.drain(at.index(len)..len.min(at.index(len) + size))),
            Mutation::Repeat(at, size) => {
                let range = at.index(len)..len.min(at.index(len) + size);
                let again = octets[range.clone()].to_vec();
                drop(octets.splice(range.start..range.start, again));
            }
        }
    }
    octets
}
