//! What h2 charges a connection for small DATA frames, counted as h2 counts it (0.4.20, `proto/streams/counts.rs`).
//!
//! h2 charges a DATA frame of fewer than 256 octets with the difference, until it's read, and ends the whole connection
//! when the charges exceed half of its window, or after more than 100 empty frames. One slow client or one chatty
//! response would thereby end the exchanges of all others.

use super::super::options::Windows;

/// The charges of one connection.
#[derive(Debug, Default)]
pub(super) struct Charges {
    /// For frames that are unread, or that came on streams that had been reset: h2 never takes those back.
    open: usize,
    /// For all frames since the last call of [`is_due`](Self::is_due).
    fresh: usize,
    /// How many empty frames have come.
    empty: usize,
}

/// The payload from which on a DATA frame costs nothing.
pub(in super::super) const FREE_PAYLOAD: usize = 256;

/// How many empty DATA frames a connection may have had and still get requests.
const MAX_EMPTY: usize = 50;

impl Charges {
    /// Counts a DATA frame that doesn't end its stream.
    pub(super) fn add(&mut self, payload: usize) {
        if payload == 0 {
            self.empty = self.empty.saturating_add(1);
        } else if payload < FREE_PAYLOAD {
            self.open = self.open.saturating_add(FREE_PAYLOAD - payload);
            self.fresh = self.fresh.saturating_add(FREE_PAYLOAD - payload);
        } else {
            self.open = self.open.saturating_sub(payload - FREE_PAYLOAD);
        }
    }

    /// Takes back the charges of frames that have been read.
    pub(super) fn release(&mut self, charge: usize) {
        self.open = self.open.saturating_sub(charge);
    }

    /// Returns whether the connection has to read ahead, because so much has been charged since it did last.
    pub(super) fn is_due(&mut self, windows: Windows) -> bool {
        let is_due = self.fresh >= windows.allowance();
        if is_due {
            self.fresh = 0;
        }
        is_due
    }

    /// Returns whether half of what h2 allows has been charged.
    pub(super) fn is_high(&self, windows: Windows) -> bool {
        self.open > 4 * windows.allowance()
    }

    /// Returns whether the connection has had so many empty frames that it gets no more requests.
    pub(super) fn has_many_empty(&self) -> bool {
        self.empty > MAX_EMPTY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An allowance of 1024, and a limit of 4096.
    const WINDOWS: Windows = Windows { connection: 16 << 10, stream: 1 << 10 };

    #[test]
    fn small_frames_are_charged_what_they_lack_to_256_octets() {
        for (payloads, open, fresh, empty) in [
            (&[1][..], 255, 255, 0),
            (&[16], 240, 240, 0),
            (&[255], 1, 1, 0),
            (&[256], 0, 0, 0),
            (&[0], 0, 0, 1),
            (&[1, 1, 0, 0], 510, 510, 2),
            // Large frames take back, but never below nothing.
            (&[1, 1, 300], 466, 510, 0),
            (&[1, 16_384], 0, 255, 0),
            (&[16_384, 1], 255, 255, 0),
        ] {
            let mut charges = Charges::default();
            payloads.iter().for_each(|payload| charges.add(*payload));
            assert_eq!((charges.open, charges.fresh, charges.empty), (open, fresh, empty), "{payloads:?}");
        }
    }

    #[test]
    fn the_connection_reads_ahead_after_each_allowance() {
        let mut charges = Charges::default();
        for round in 0..20 {
            // 255 each: four don't reach the allowance.
            for _ in 0..4 {
                assert!(!charges.is_due(WINDOWS), "{round}");
                charges.add(1);
            }
            charges.add(1);
            assert!(charges.is_due(WINDOWS), "{round}");
            assert!(!charges.is_due(WINDOWS), "{round}");
        }
    }

    #[test]
    fn unread_charges_are_high_beyond_half_of_h2s_limit() {
        let mut charges = Charges::default();
        for _ in 0..16 {
            charges.add(1);
            assert!(!charges.is_high(WINDOWS));
        }
        charges.add(1);
        assert!(charges.is_high(WINDOWS));
        charges.release(255);
        assert!(!charges.is_high(WINDOWS));
        charges.release(usize::MAX);
        assert_eq!(charges.open, 0);
    }

    #[test]
    fn empty_frames_are_many_at_half_of_h2s_limit() {
        let mut charges = Charges::default();
        for _ in 0..MAX_EMPTY {
            charges.add(0);
            assert!(!charges.has_many_empty());
        }
        charges.add(0);
        assert!(charges.has_many_empty());
    }
}
