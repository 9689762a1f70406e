//! The cases of the property tests. Every list begins with its simplest member, because a failure shrinks to that.

use proptest::{prelude::*, sample::select};

mod chunks;
mod fields;
pub(super) mod request;
pub(crate) mod response;

/// One of the list.
macro_rules! list {
    ($($octets:expr),* $(,)?) => {{
        const LIST: &[&[u8]] = &[$($octets),*];
        proptest::strategy::Strategy::prop_map(proptest::sample::select(LIST), <[u8]>::to_vec)
    }};
}

use list;

/// The usual, and in one of 60 cases another one of the list.
fn rare(usual: &'static [u8], others: &'static [&'static [u8]]) -> impl Strategy<Value = &'static [u8]> {
    prop_oneof![60 => Just(usual), 1 => select(others)]
}

/// The end of a line.
fn line_end() -> impl Strategy<Value = &'static [u8]> {
    rare(b"\r\n", &[b"\n", b"\r", b"\r\r\n", b"", b" \r\n", b"\n\r", b"\x00\r\n"])
}

/// The empty line that ends a head.
fn ending() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        40 => Just(b"\r\n".to_vec()),
        1 => list![b"\n", b"\r", b"", b" \r\n", b"\r\r\n", b"\r\n\r\n", b"\n\r\n", b"\r\nx"],
    ]
}
