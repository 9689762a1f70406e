//! What the property tests feed to both sides. Every list begins with what is usual, because it shrinks to it.

use proptest::{prelude::*, sample::select};

pub(super) mod request;
pub(super) mod response;

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
