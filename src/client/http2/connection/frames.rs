//! A parser of the frames that the backend sends (RFC 9113, section 4.1), for what hyper doesn't show of them.

use super::charges::Charges;

/// Parses the octets of one direction, in pieces of any size. It stores a frame's header and one setting, never a
/// payload.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// A frame's header, or a part of its payload, of which `filled` octets have come.
    part: [u8; HEADER],
    filled: usize,
    /// How much of the frame's payload is still to come.
    left: usize,
    payload: Payload,
    peer: BackendSettings,
    /// The size of the field block that is coming, in octets on the wire.
    block: usize,
    /// The largest block since the last call of [`largest_block`](Self::largest_block).
    largest: usize,
    /// Whether the first frame wasn't SETTINGS, because the backend doesn't speak HTTP/2.
    is_foreign: bool,
    charges: Charges,
}

/// The part of a frame's payload that is parsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Payload {
    #[default]
    Nothing,
    Settings,
    GoAway,
    /// The length of a DATA frame's padding.
    Padding,
}

/// What the backend has sent about the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BackendSettings {
    /// How many SETTINGS frames are complete.
    pub(super) settings: u32,
    /// SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113, section 6.5.2).
    pub(super) max_header_list_size: Option<u32>,
    /// The error code of the last GOAWAY.
    pub(super) goaway: Option<u32>,
}

const HEADER: usize = 9;
const SETTING: usize = 6;
/// The last stream's identifier, and the error code.
const LAST_AND_CODE: usize = 8;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;
const MAX_HEADER_LIST_SIZE: u16 = 6;

impl Frames {
    /// Parses the octets that were read next.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_foreign {
            let part = match self.payload {
                Payload::Nothing => usize::MAX,
                Payload::Settings => SETTING,
                Payload::GoAway => LAST_AND_CODE,
                Payload::Padding => 1,
            };
            if self.left == 0 {
                if self.fill(&mut bytes, HEADER) {
                    self.begin();
                }
            } else if self.left + self.filled >= part {
                let before = self.filled;
                let is_whole = self.fill(&mut bytes, part);
                self.left -= if is_whole { part } else { self.filled } - before;
                if is_whole {
                    self.parse_payload();
                }
                self.end();
            } else {
                let skipped = self.left.min(bytes.len());
                bytes = &bytes[skipped..];
                self.left -= skipped;
                self.end();
            }
        }
    }

    /// Collects a part of so many octets. Returns whether it's complete.
    fn fill(&mut self, bytes: &mut &[u8], size: usize) -> bool {
        let (taken, rest) = bytes.split_at(bytes.len().min(size - self.filled));
        self.part[self.filled..self.filled + taken.len()].copy_from_slice(taken);
        *bytes = rest;
        self.filled += taken.len();
        let is_whole = self.filled == size;
        if is_whole {
            self.filled = 0;
        }
        is_whole
    }

    /// Parses a frame's header.
    fn begin(&mut self) {
        let [a, b, c, kind, flags, stream @ ..] = self.part;
        self.left = u32::from_be_bytes([0, a, b, c]) as usize;
        self.payload = match kind {
            SETTINGS if flags & ACK == 0 => Payload::Settings,
            GOAWAY => Payload::GoAway,
            _ => Payload::Nothing,
        };
        if self.peer.settings == 0 && !(self.payload == Payload::Settings && stream == [0; 4]) {
            self.is_foreign = true;
            return;
        }
        match kind {
            HEADERS => self.block = self.left,
            CONTINUATION => self.block = self.block.saturating_add(self.left),
            _ => self.block = 0,
        }
        self.largest = self.largest.max(self.block);
        if kind == DATA && flags & END_STREAM == 0 {
            if flags & PADDED != 0 {
                self.payload = Payload::Padding;
            } else {
                self.charges.add(self.left);
            }
        }
        self.end();
    }

    /// Parses a part of a frame's payload.
    fn parse_payload(&mut self) {
        let [a, b, c, d, e, f, g, h, _] = self.part;
        match self.payload {
            Payload::GoAway => {
                self.peer.goaway = Some(u32::from_be_bytes([e, f, g, h]));
                self.payload = Payload::Nothing;
            }
            Payload::Padding => {
                self.charges.add(self.left.saturating_sub(a.into()));
                self.payload = Payload::Nothing;
            }
            _ if u16::from_be_bytes([a, b]) == MAX_HEADER_LIST_SIZE => {
                self.peer.max_header_list_size = Some(u32::from_be_bytes([c, d, e, f]));
            }
            _ => {}
        }
    }

    /// Ends the frame, if all of its payload has come.
    fn end(&mut self) {
        if self.left > 0 {
            return;
        }
        self.filled = 0;
        if self.payload == Payload::Settings {
            self.peer.settings = self.peer.settings.saturating_add(1);
        }
        self.payload = Payload::Nothing;
    }

    /// Returns the size of the largest field block that has come, or is coming, since the last call, in octets on the
    /// wire; 0 if there was none. Frames that follow it in the same read don't hide it.
    pub(super) fn largest_block(&mut self) -> usize {
        std::mem::take(&mut self.largest)
    }

    pub(super) fn charges(&mut self) -> &mut Charges {
        &mut self.charges
    }

    pub(super) fn peer(&self) -> BackendSettings {
        self.peer
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn setting(id: u16, value: u32) -> Vec<u8> {
        [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
    }

    #[test]
    fn settings_are_parsed_in_pieces_of_any_size() {
        let bytes = [
            frame(SETTINGS, 0, 0, &[setting(3, 100), setting(6, 0x0102_0304)].concat()),
            frame(SETTINGS, ACK, 0, &[]),
            frame(8, 0, 0, &[0; 4]),
            frame(DATA, 0, 1, &setting(6, 9)),
            frame(SETTINGS, 0, 0, &[]),
            // One octet too many, which h2 refuses.
            frame(SETTINGS, 0, 0, &[&setting(6, 7)[..], &[1]].concat()),
            frame(SETTINGS, 0, 0, &setting(6, 8)),
            frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 11, b'w', b'h', b'y']),
            frame(GOAWAY, 0, 0, &[0; 3]),
        ]
        .concat();
        for size in 1..=bytes.len() {
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(size) {
                frames.read(piece);
                seen.push(frames.peer());
            }
            assert_eq!(
                frames.peer(),
                BackendSettings { settings: 4, max_header_list_size: Some(8), goaway: Some(11) },
                "{size}"
            );
            assert!(!frames.is_foreign && seen.is_sorted_by_key(|peer| peer.settings), "{size}");
            if size == 1 {
                let first = BackendSettings { settings: 1, max_header_list_size: Some(0x0102_0304), goaway: None };
                assert!(seen.contains(&first));
            }
        }
    }

    #[test]
    fn other_protocols_are_ignored() {
        for bytes in
            [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &frame(SETTINGS, ACK, 0, &[]), &frame(SETTINGS, 0, 1, &[])]
        {
            let mut frames = Frames::default();
            frames.read(bytes);
            frames.read(&frame(SETTINGS, 0, 0, &[]));
            assert_eq!(frames.peer(), BackendSettings::default());
            assert!(frames.is_foreign);
        }
    }

    #[test]
    fn the_size_of_a_head_is_the_sum_of_its_frames() {
        let mut frames = Frames::default();
        let blocks = [(SETTINGS, 0, 0), (HEADERS, 20, 20), (CONTINUATION, 30, 50), (DATA, 9, 0), (HEADERS, 5, 5)];
        let bytes = blocks.map(|(kind, payload, _)| frame(kind, 0, u32::from(kind != SETTINGS), &vec![0; payload]));
        for (bytes, (kind, _, block)) in bytes.iter().zip(blocks) {
            frames.read(bytes);
            assert_eq!(frames.largest_block(), block, "{kind}");
        }
        // All in one read.
        frames.read(&bytes.concat());
        assert_eq!((frames.largest_block(), frames.largest_block()), (50, 0));
    }

    #[test]
    fn data_frames_are_charged_for_their_payload_without_padding() {
        let padded = |padding: u8, data: usize| [&[padding][..], &vec![0; data + usize::from(padding)]].concat();
        for (flags, payload, charged) in [
            (0, vec![0; 1], &[1][..]),
            (0, vec![0; 256], &[256]),
            (0, vec![], &[0]),
            // The end of a stream costs nothing.
            (1, vec![0; 1], &[]),
            (1, vec![], &[]),
            (8, padded(0, 1), &[1]),
            (8, padded(100, 56), &[56]),
            (8, padded(255, 0), &[0]),
            (8, padded(9, 4000), &[4000]),
        ] {
            let mut expected = Charges::default();
            charged.iter().for_each(|payload| expected.add(*payload));
            for size in [1, 7, 10_000] {
                let mut frames = Frames::default();
                frames.read(&frame(SETTINGS, 0, 0, &[]));
                for piece in frame(DATA, flags, 1, &payload).chunks(size) {
                    frames.read(piece);
                }
                assert_eq!(format!("{:?}", frames.charges), format!("{expected:?}"), "{flags} {payload:?}");
            }
        }
    }

    proptest! {
        /// Arbitrary octets cause no panic, and the result doesn't depend on the pieces in which they come.
        #[test]
        fn frames_are_parsed_the_same_in_any_pieces(bytes in vec(any::<u8>(), 0..200), size in 1..50_usize, is_http2: bool) {
            let start = if is_http2 { frame(SETTINGS, 0, 0, &[]) } else { Vec::new() };
            let (mut whole, mut pieces) = (Frames::default(), Frames::default());
            whole.read(&[&start[..], &bytes].concat());
            pieces.read(&start);
            for piece in bytes.chunks(size) {
                pieces.read(piece);
            }
            prop_assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
        }
    }
}
