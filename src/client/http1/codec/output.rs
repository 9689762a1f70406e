//! The output of a connection.

use std::io::IoSlice;

use bytes::Bytes;

/// Octets that are to be written.
///
/// A head and small data behind it are copied into one buffer, because one `send` of both costs less than a vectored
/// write. Large data isn't copied.
#[derive(Debug, Default)]
pub(crate) struct Output {
    octets: Vec<u8>,
    /// So many of `octets` are written.
    written: usize,
    /// Large data. It belongs between the first `before` of `octets` and the rest.
    data: Bytes,
    before: usize,
}

/// The maximum of octets that are copied together.
const COPIED: usize = 8 * 1024;

/// The maximum capacity that an idle connection keeps.
const KEPT: usize = 4 * 1024;

impl Output {
    pub(crate) fn is_empty(&self) -> bool {
        self.octets.len() == self.written && self.data.is_empty()
    }

    /// Whether it should be written before more is added.
    pub(crate) fn is_full(&self) -> bool {
        !self.data.is_empty() || self.octets.len() - self.written >= COPIED
    }

    /// The octets that are left, in order. The slices behind the count are empty.
    pub(crate) fn slices(&self) -> ([IoSlice<'_>; 3], usize) {
        if self.data.is_empty() {
            return ([&self.octets[self.written..], &[], &[]].map(IoSlice::new), 1);
        }
        let before = self.before.max(self.written);
        let (head, tail) = (&self.octets[self.written..before], &self.octets[before..]);
        match (head.is_empty(), tail.is_empty()) {
            (false, false) => ([head, &self.data, tail].map(IoSlice::new), 3),
            (false, true) => ([head, &self.data, &[]].map(IoSlice::new), 2),
            (true, false) => ([&self.data, tail, &[]].map(IoSlice::new), 2),
            (true, true) => ([&self.data[..], &[], &[]].map(IoSlice::new), 1),
        }
    }

    /// Removes the first `size` octets, because they are written.
    pub(crate) fn advance(&mut self, size: usize) {
        let mut left = size;
        if !self.data.is_empty() {
            let head = left.min(self.before.saturating_sub(self.written));
            self.written += head;
            left -= head;
            let data = left.min(self.data.len());
            // An empty slice would keep the memory.
            self.data = if data == self.data.len() { Bytes::new() } else { self.data.slice(data..) };
            left -= data;
        }
        self.written = self.octets.len().min(self.written + left);
        if self.is_empty() {
            self.octets.clear();
            self.written = 0;
        } else if self.data.is_empty() && self.written >= COPIED {
            // Otherwise, the buffer of an output that is never empty would grow.
            self.octets.drain(..self.written);
            self.written = 0;
        }
    }

    /// The buffer to which the next octets are appended.
    pub(crate) fn octets_mut(&mut self) -> &mut Vec<u8> {
        &mut self.octets
    }

    /// Appends data: copied if it's small, uncopied if it's large.
    pub(super) fn push(&mut self, data: Bytes) {
        // Only one piece of large data is held. A caller that respects `is_full` has no second one.
        if !self.data.is_empty() || self.octets.len() - self.written + data.len() <= COPIED {
            self.octets.extend_from_slice(&data);
        } else {
            self.before = self.octets.len();
            self.data = data;
        }
    }

    /// Discards what is left, and keeps little memory.
    pub(crate) fn clear_and_shrink(&mut self) {
        self.octets.clear();
        self.octets.shrink_to(KEPT);
        self.written = 0;
        self.data = Bytes::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes all of the output, at most `size` octets at once.
    fn write(output: &mut Output, size: usize) -> Vec<u8> {
        let mut written = Vec::new();
        while !output.is_empty() {
            assert!(written.len() < 100_000, "the output doesn't get empty");
            let (slices, count) = output.slices();
            for (position, slice) in slices.iter().enumerate() {
                assert_eq!(slice.is_empty(), position >= count);
            }
            let octets = slices.map(|slice| slice.to_vec()).concat();
            let size = size.min(octets.len());
            written.extend_from_slice(&octets[..size]);
            output.advance(size);
        }
        written
    }

    #[test]
    fn octets_are_written_in_order_in_pieces_of_any_size() {
        let large = vec![b'x'; 2 * COPIED];
        for size in [1, 2, 3, 100, COPIED, usize::MAX] {
            let mut output = Output::default();
            output.octets_mut().extend_from_slice(b"head");
            output.push(Bytes::from_static(b"small"));
            output.push(large.clone().into());
            output.octets_mut().extend_from_slice(b"tail");
            // A caller that doesn't respect `is_full`.
            output.push(large.clone().into());
            output.push(Bytes::from_static(b"end"));
            let expected = [b"headsmall", &large[..], b"tail", &large, b"end"].concat();
            assert!(write(&mut output, size) == expected, "{size}");
            assert!(output.octets.is_empty() && output.written == 0 && output.data.is_empty());
        }
    }

    #[test]
    fn small_data_is_copied_behind_the_head_and_large_data_isnt() {
        for (size, count) in [(COPIED - 4, 1), (COPIED - 3, 2)] {
            let mut output = Output::default();
            output.octets_mut().extend_from_slice(b"head");
            assert!(!output.is_full());
            let data = Bytes::from(vec![b'x'; size]);
            output.push(data.clone());
            let (slices, written) = output.slices();
            assert_eq!((written, output.is_full()), (count, true));
            assert_eq!(slices[1].as_ptr() == data.as_ptr(), count == 2);
        }
    }

    #[test]
    fn memory_is_bounded_although_the_output_is_never_empty() {
        let mut output = Output::default();
        output.octets_mut().push(b'x');
        for _ in 0..1000 {
            output.push(Bytes::from(vec![b'x'; 1000]));
            output.advance(1000);
        }
        assert!(!output.is_empty() && output.octets.capacity() <= 4 * COPIED, "{}", output.octets.capacity());
        output.clear_and_shrink();
        assert!(output.is_empty() && output.octets.capacity() <= KEPT, "{}", output.octets.capacity());
    }
}
