//! The options of connections to one backend.

use super::codec::{Limits, NameStyle};

/// The options of connections to one backend.
#[derive(Clone, Copy, Debug)]
pub(in crate::client) struct Options {
    /// The limits of a response's head, and of its trailers.
    pub(in crate::client) limits: Limits,
    /// The case of field names.
    pub(in crate::client) style: NameStyle,
}

impl Default for Options {
    fn default() -> Self {
        Self { limits: Limits { bytes: 256 * 1024, fields: 256 }, style: NameStyle::Lower }
    }
}
