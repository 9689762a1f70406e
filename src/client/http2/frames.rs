//! The frames that a peer sends (RFC 9113, section 4.1), followed in passing: hyper shows neither the peer's limit for request
//! heads nor what its small frames cost.

/// Follows the octets of one direction, in pieces of any size. It keeps a frame's head and one setting, never a payload.
#[derive(Debug, Default)]
pub(in super::super) struct Frames {
    /// A frame's head, or a part of its payload, as far as it has come.
    part: [u8; HEAD],
    have: usize,
    /// How much of the frame's payload is to come.
    left: usize,
    payload: Payload,
    peer: Peer,
    /// How large the head of an answer is that comes, in octets as they are sent.
    block: usize,
    /// The largest one since this was asked last.
    largest: usize,
    /// The first frame wasn't SETTINGS: the peer doesn't speak HTTP/2.
    is_foreign: bool,
    charges: Charges,
}

/// What h2 charges a connection for DATA frames, as it counts (0.4.20, `proto/streams/counts.rs`). It ends a connection that is
/// charged half of its window, or that has had more than 100 empty frames.
#[derive(Debug, Default)]
struct Charges {
    /// For small frames that are unread, or that came on streams that had been reset: h2 never takes those back.
    open: usize,
    /// For small frames at all, since this was asked last.
    fresh: usize,
    empty: usize,
}

/// What is read of a frame's payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Payload {
    #[default]
    Nothing,
    Settings,
    GoAway,
    /// How much padding a DATA frame has.
    Padding,
}

/// What the peer has set (RFC 9113, section 6.5) and said of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Peer {
    /// How many SETTINGS frames have come whole.
    pub(super) frames: u32,
    pub(super) max_header_list_size: Option<u32>,
    /// Why it ends the connection: the code of its last GOAWAY.
    pub(super) goes_for: Option<u32>,
}

const HEAD: usize = 9;
const SETTING: usize = 6;
/// The last stream, and the error code.
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

/// What h2 takes for the least payload of a DATA frame that is worth its head.
pub(super) const WORTHWHILE: usize = 256;

impl Frames {
    /// Follows what was read next.
    pub(in super::super) fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_foreign {
            let part = match self.payload {
                Payload::Nothing => usize::MAX,
                Payload::Settings => SETTING,
                Payload::GoAway => LAST_AND_CODE,
                Payload::Padding => 1,
            };
            if self.left == 0 {
                if self.fill(&mut bytes, HEAD) {
                    self.begin();
                }
            } else if self.left + self.have >= part {
                let before = self.have;
                let is_whole = self.fill(&mut bytes, part);
                self.left -= if is_whole { part } else { self.have } - before;
                if is_whole {
                    self.set();
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

    /// Collects a part of so many octets; `true` if it's whole.
    fn fill(&mut self, bytes: &mut &[u8], size: usize) -> bool {
        let (taken, rest) = bytes.split_at(bytes.len().min(size - self.have));
        self.part[self.have..self.have + taken.len()].copy_from_slice(taken);
        *bytes = rest;
        self.have += taken.len();
        let is_whole = self.have == size;
        if is_whole {
            self.have = 0;
        }
        is_whole
    }

    /// Reads a frame's head.
    fn begin(&mut self) {
        let [a, b, c, kind, flags, stream @ ..] = self.part;
        self.left = u32::from_be_bytes([0, a, b, c]) as usize;
        self.payload = match kind {
            SETTINGS if flags & ACK == 0 => Payload::Settings,
            GOAWAY => Payload::GoAway,
            _ => Payload::Nothing,
        };
        if self.peer.frames == 0 && !(self.payload == Payload::Settings && stream == [0; 4]) {
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

    fn set(&mut self) {
        let [a, b, c, d, e, f, g, h, _] = self.part;
        match self.payload {
            Payload::GoAway => {
                self.peer.goes_for = Some(u32::from_be_bytes([e, f, g, h]));
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

    fn end(&mut self) {
        if self.left > 0 {
            return;
        }
        self.have = 0;
        if self.payload == Payload::Settings {
            self.peer.frames = self.peer.frames.saturating_add(1);
        }
        self.payload = Payload::Nothing;
    }

    /// Returns how large the largest head of an answer is that has come, or is coming, since this was asked last, in octets as they
    /// are sent; 0 if there is none. What follows it in the same read doesn't hide it.
    pub(super) fn largest_block(&mut self) -> usize {
        std::mem::take(&mut self.largest)
    }

    /// Whether small frames have been charged so much since it was asked last.
    pub(super) fn is_charged(&mut self, allowance: usize) -> bool {
        let is_charged = self.charges.fresh >= allowance;
        if is_charged {
            self.charges.fresh = 0;
        }
        is_charged
    }

    /// Takes back what was charged for frames that have been read.
    pub(super) fn release(&mut self, charge: usize) {
        self.charges.open = self.charges.open.saturating_sub(charge);
    }

    /// Returns what is charged.
    pub(super) fn charged(&self) -> usize {
        self.charges.open
    }

    /// Returns how many empty frames have come.
    pub(super) fn empty(&self) -> usize {
        self.charges.empty
    }

    /// Returns what the peer has set.
    pub(in super::super) fn peer(&self) -> Peer {
        self.peer
    }
}

impl Charges {
    fn add(&mut self, payload: usize) {
        if payload == 0 {
            self.empty = self.empty.saturating_add(1);
        } else if payload < WORTHWHILE {
            self.open = self.open.saturating_add(WORTHWHILE - payload);
            self.fresh = self.fresh.saturating_add(WORTHWHILE - payload);
        } else {
            self.open = self.open.saturating_sub(payload - WORTHWHILE);
        }
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
            // One octet too many: it's h2's to refuse.
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
            assert_eq!(frames.peer(), Peer { frames: 4, max_header_list_size: Some(8), goes_for: Some(11) }, "{size}");
            assert!(!frames.is_foreign && seen.is_sorted_by_key(|peer| peer.frames), "{size}");
            if size == 1 {
                let first = Peer { frames: 1, max_header_list_size: Some(0x0102_0304), goes_for: None };
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
            assert_eq!(frames.peer(), Peer::default());
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
    fn small_frames_are_counted_as_h2_counts_them() {
        let padded = |padding: u8, data: usize| [&[padding][..], &vec![0; data + usize::from(padding)]].concat();
        for (flags, payload, cost, empty) in [
            (0, vec![0; 1], 255, 0),
            (0, vec![0; 16], 240, 0),
            (0, vec![0; 256], 0, 0),
            (0, vec![], 0, 1),
            (1, vec![0; 1], 0, 0),
            (1, vec![], 0, 0),
            (8, padded(0, 1), 255, 0),
            (8, padded(100, 56), 200, 0),
            (8, padded(255, 0), 0, 1),
            (8, padded(9, 4000), 0, 0),
        ] {
            for size in [1, 7, 10_000] {
                let mut frames = Frames::default();
                frames.read(&frame(SETTINGS, 0, 0, &[]));
                for piece in frame(DATA, flags, 1, &payload).chunks(size) {
                    frames.read(piece);
                }
                let seen = (frames.charged(), frames.charges.fresh, frames.empty());
                assert_eq!(seen, (cost, cost, empty), "{flags} {payload:?}");
            }
        }
        // Large frames take back, and so does what was read.
        let mut frames = Frames::default();
        frames.read(&frame(SETTINGS, 0, 0, &[]));
        frames.read(&frame(DATA, 0, 1, &[0]).repeat(10));
        frames.read(&frame(DATA, 0, 1, &[0; 300]));
        assert_eq!(frames.charged(), 2550 - 44);
        frames.release(2550);
        assert_eq!(frames.charged(), 0);
        assert!(frames.is_charged(2550) && !frames.is_charged(1));
    }

    proptest! {
        /// Whatever comes: nothing panics, and what shows doesn't depend on how it's read.
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
