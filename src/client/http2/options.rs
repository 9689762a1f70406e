//! The options of HTTP/2 connections to a backend.

use std::time::Duration;

/// The options of the connections to one backend.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Options {
    pub(in super::super) windows: Windows,
    pub(in super::super) keep_alive: KeepAlive,
    /// The size that the operator allows to the head of a request, in bytes as RFC 9113, section 6.5.2, counts them.
    pub(in super::super) max_request_head: Option<usize>,
    pub(in super::super) max_response_head: ResponseHeadLimit,
    /// How long a connection may be without a stream.
    pub(in super::super) idle_timeout: Option<Duration>,
}

impl Options {
    /// Sets the options that both protocols have in common.
    pub(in super::super) fn with_limits(
        self,
        idle_timeout: Option<Duration>,
        max_response_head: ResponseHeadLimit,
    ) -> Self {
        Self { idle_timeout, max_response_head, ..self }
    }
}

/// The size that the head of a response may have.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct ResponseHeadLimit {
    pub(in super::super) bytes: usize,
    pub(in super::super) fields: usize,
}

impl ResponseHeadLimit {
    /// Returns whether a head with a block of this size on the wire may be larger than the limit.
    ///
    /// The limit counts decoded fields and 32 octets for each (RFC 9113, section 6.5.2). HPACK's encoding is up to
    /// about eight times smaller than that.
    pub(super) fn may_be_exceeded(self, block: usize) -> bool {
        block > self.bytes / 8
    }
}

/// How often an open connection is pinged, and whether it is while no stream is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeepAlive {
    pub(crate) interval: Option<Duration>,
    pub(crate) while_idle: bool,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { interval: Some(Duration::from_secs(20)), while_idle: false }
    }
}

/// How long the acknowledgement of a ping may take.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The flow-control windows (RFC 9113, section 5.2), in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    pub(crate) connection: u32,
    pub(crate) stream: u32,
}

impl Default for Windows {
    fn default() -> Self {
        Self { connection: 16 << 20, stream: 256 << 10 }
    }
}

impl Windows {
    /// Returns how many unread streams fit into the connection's window.
    ///
    /// More streams than that would let clients that don't read block the streams of those that do.
    pub(super) fn max_streams(self) -> usize {
        (self.connection / self.stream.max(1)).max(1) as usize
    }

    /// Returns how much h2 may charge for small frames before the connection reads ahead: an eighth of h2's own limit.
    pub(super) fn allowance(self) -> usize {
        (self.connection as usize / 16).max(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_window_bounds_streams_and_small_frames() {
        for (connection, stream, streams, allowance) in [
            (16 << 20, 256 << 10, 64, 1 << 20),
            (2 << 20, 16 << 10, 128, 128 << 10),
            (65_535, 1 << 20, 1, 4095),
            (65_535, 0, 65_535, 4095),
            (1, 1, 1, 1024),
        ] {
            let windows = Windows { connection, stream };
            assert_eq!((windows.max_streams(), windows.allowance()), (streams, allowance), "{windows:?}");
        }
    }

    #[test]
    fn a_block_of_an_eighth_of_the_limit_may_be_a_head_that_exceeds_it() {
        let limit = ResponseHeadLimit { bytes: 8000, fields: 10 };
        for (block, expected) in [(0, false), (1000, false), (1001, true), (8000, true)] {
            assert_eq!(limit.may_be_exceeded(block), expected, "{block}");
        }
    }
}
