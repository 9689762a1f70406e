//! How large a head may be.

/// The limits of a response's head, and of its trailers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The maximum size, with the status line and the empty line at the end.
    pub(crate) bytes: usize,
    /// The maximum number of field lines.
    pub(crate) fields: usize,
}

impl Limits {
    /// The part of the input that a head, or trailers, may occupy.
    pub(super) fn section<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        &input[..input.len().min(self.bytes)]
    }
}
