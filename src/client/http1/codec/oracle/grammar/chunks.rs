//! Bodies in chunks, good and bad.

use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    ending,
    fields::{colon, field, name, value},
    line_end, list, rare,
};

#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) data: Vec<u8>,
    /// Before and behind the digits of the size: zeros, blanks, extensions.
    digits: (&'static str, Vec<u8>),
    is_upper: bool,
    /// After the line of the size, and after the data.
    ends: (&'static [u8], &'static [u8]),
}

pub(super) fn body() -> impl Strategy<Value = Vec<Chunk>> {
    vec(chunk(), 0..4)
}

fn chunk() -> impl Strategy<Value = Chunk> {
    let data = prop_oneof![
        20 => vec(any::<u8>(), 1..20),
        2 => Just(Vec::new()),
        2 => (20..300_usize).prop_map(|size| vec![b'd'; size]),
        1 => (4000..20_000_usize).prop_map(|size| vec![b'D'; size]),
    ];
    let before = prop_oneof![
        40 => Just(""),
        2 => select(&["0", "0000", "000000000000000", "0000000000000000", "00000000000000000000"][..]),
        1 => select(&[" ", "+", "0x", "-", "\r\n", "g", "10000000000000000", "F", "FFFFFFFFFFFFFFF"][..]),
    ];
    (data, before, extension(), any::<bool>(), chunk_end(), chunk_end()).prop_map(
        |(data, before, extension, is_upper, end, behind)| Chunk {
            data,
            digits: (before, extension),
            is_upper,
            ends: (end, behind),
        },
    )
}

impl Chunk {
    pub(super) fn encoded(&self) -> Vec<u8> {
        let size = self.data.len();
        let size = if self.is_upper { format!("{size:X}") } else { format!("{size:x}") };
        [self.digits.0.as_bytes(), size.as_bytes(), &self.digits.1, self.ends.0, &self.data, self.ends.1].concat()
    }
}

fn extension() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => Just(Vec::new()),
        2 => list![
            b";a", b";a=b", b";a=\"b;c\"", b";", b";;", b" ;a", b"\t; a = b", b" ",
            b"\t", b" \t ", b";a=\"\\\"\"", b";\xff", b";\x00", b";\x7f",
            b";a\rb", b" 1", b",a", b"h", b".", b";a \t", b"\x0b", b";\x1b", b";=", b";a=\"",
        ],
        1 => prop_oneof![9 => 0..400_usize, 1 => 8000..17_000_usize]
            .prop_map(|size| [b";", &vec![b'e'; size][..]].concat()),
    ]
}

fn chunk_end() -> impl Strategy<Value = &'static [u8]> {
    rare(b"\r\n", &[b"\n", b"\r", b"", b"\r\r\n", b"x", b" \r\n", b"\n\r", b"\rx", b"xx"])
}

/// What follows the last chunk's data: the chunk of size zero, and trailers.
pub(super) fn trailers() -> impl Strategy<Value = Vec<u8>> {
    let last = prop_oneof![
        20 => Just(b"0".to_vec()),
        1 => list![b"00", b"0000000000000000000000", b"", b"0;a", b"0 ", b"0;", b"-0", b"0x0", b"000"],
    ];
    let fields = prop_oneof![
        6 => Just(Vec::new()),
        3 => vec(prop_oneof![
            4 => Just(b"Digest: x\r\n".to_vec()),
            // Larger than most heads.
            2 => (60..300_usize).prop_map(|size| [b"Digest: ", &vec![b'v'; size][..], b"\r\n"].concat()),
            2 => field(),
            1 => (name(), colon(), value(), line_end())
                .prop_map(|(name, colon, value, end)| [&name, &colon, &value, end].concat()),
        ], 1..4),
    ];
    (last, chunk_end(), fields, ending())
        .prop_map(|(last, end, fields, ending)| [&last, end, &fields.concat(), &ending].concat())
}
