//! The state of one HTTP/2 connection, without I/O: how many streams it carries, and whether it takes another one.
//!
//! ```text
//!            SETTINGS               a stream gets no response, and nothing is read
//! Opening ─────────────> Open ───────────────────────────────────────────────────> Silent
//!                         │ <───────────────────────────────────────────────────────  │
//!                         │                   something is read                       │
//!                         │ h2 is about to end it                                     │
//!                         └───────────────────────> Retired <─────────────────────────┘
//! ```
//!
//! Each of them becomes `Closed` when the connection's task ends.

use std::time::Duration;

use h2::Reason;
use tokio::time::Instant;

use super::frames::BackendSettings;

/// The state of one HTTP/2 connection.
#[derive(Debug)]
pub(super) struct State {
    phase: Phase,
    /// The streams that requests hold.
    streams: usize,
    /// How many streams there may be: 0 before the backend's SETTINGS.
    max_streams: usize,
    /// When the last stream ended.
    unused_since: Instant,
    /// How often something was read.
    reads: u64,
    /// Whether a SETTINGS frame of the backend has come. A connection that closes without one didn't speak HTTP/2.
    has_settings: bool,
    /// Whether the backend offers extended CONNECT. Final with the first SETTINGS (RFC 8441, section 3).
    can_connect: bool,
    /// The largest head of a request that the backend accepts, if it has set a limit.
    max_request_head: Option<usize>,
    /// Whether the head of a response has come that may be larger than allowed.
    has_large_head: bool,
    /// The error code of the backend's last GOAWAY.
    goaway: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The backend's SETTINGS, which limit the number of streams, haven't been applied.
    Opening,
    Open,
    /// A stream waited in vain for its response, and nothing was read meanwhile: the backend may be frozen. The
    /// connection takes no request before something is read, except where it can't have a substitute.
    Silent,
    /// h2 is about to end the connection. The open streams go on as long as they can.
    Retired,
    Closed,
}

/// The facts about a connection at the time when it admitted a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Admission {
    /// How often something had been read by then.
    pub(in super::super) reads: u64,
    pub(in super::super) max_request_head: Option<usize>,
}

/// How long a stream waits at least for its response before its cancellation, with nothing read on its connection,
/// counts as the backend's silence. Below it, clients that leave early would cost connections.
pub(in super::super) const SILENCE: Duration = Duration::from_secs(1);

impl State {
    /// A connection whose handshake has begun, with one stream: that of the request for which it's opened.
    pub(super) fn opening(now: Instant) -> Self {
        Self {
            phase: Phase::Opening,
            streams: 1,
            max_streams: 0,
            unused_since: now,
            reads: 0,
            has_settings: false,
            can_connect: false,
            max_request_head: None,
            has_large_head: false,
            goaway: None,
        }
    }

    /// Records SETTINGS of the backend.
    pub(super) fn set(&mut self, peer: BackendSettings) {
        self.has_settings = peer.settings > 0;
        self.max_request_head = peer.max_header_list_size.map(|size| size as usize);
    }

    /// Sets what h2 has applied of the SETTINGS. Returns whether there may be more streams than before.
    pub(super) fn allow(&mut self, max_streams: usize, can_connect: bool) -> bool {
        if self.phase == Phase::Opening && max_streams > 0 {
            self.phase = Phase::Open;
        }
        self.can_connect = can_connect;
        std::mem::replace(&mut self.max_streams, max_streams) < max_streams
    }

    /// Returns whether the connection has been opened: with `false`, it has closed before the backend sent SETTINGS.
    /// `None`: it's opening.
    pub(super) fn is_opened(&self) -> Option<bool> {
        (self.max_streams > 0 || self.phase == Phase::Closed).then_some(self.has_settings)
    }

    /// Counts a stream, if the connection takes one. With `even_silent`, it may be frozen.
    pub(super) fn begin_stream(&mut self, even_silent: bool) -> Option<Admission> {
        let is_open = match self.phase {
            Phase::Open => true,
            Phase::Silent => even_silent,
            Phase::Opening | Phase::Retired | Phase::Closed => false,
        };
        if !is_open || self.streams >= self.max_streams {
            return None;
        }
        self.streams += 1;
        Some(self.admission())
    }

    pub(super) fn admission(&self) -> Admission {
        Admission { reads: self.reads, max_request_head: self.max_request_head }
    }

    /// Ends a stream that waited so long without a response, or got one (`None`). Returns whether no stream is left.
    pub(super) fn end_stream(&mut self, admission: Admission, waited: Option<Duration>, now: Instant) -> bool {
        if self.phase == Phase::Open && is_silence(waited, self.reads - admission.reads) {
            self.phase = Phase::Silent;
        }
        self.streams -= 1;
        self.unused_since = now;
        self.streams == 0
    }

    /// Records that something was read. Returns whether that ended a silence.
    pub(super) fn read(&mut self) -> bool {
        self.reads += 1;
        let was_silent = self.phase == Phase::Silent;
        if was_silent {
            self.phase = Phase::Open;
        }
        was_silent
    }

    /// Keeps further requests off the connection. Returns whether it took some.
    pub(super) fn retire(&mut self) -> bool {
        let is_retired = matches!(self.phase, Phase::Retired | Phase::Closed);
        if !is_retired {
            self.phase = Phase::Retired;
        }
        !is_retired
    }

    /// Records that the connection's task has ended.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closed;
    }

    /// Returns whether the connection never takes a request again: it has been retired or closed, or it's silent and
    /// has no stream whose response could end that.
    pub(super) fn is_lost(&self) -> bool {
        match self.phase {
            Phase::Retired | Phase::Closed => true,
            Phase::Silent => self.streams == 0,
            Phase::Opening | Phase::Open => false,
        }
    }

    /// Returns since when there has been no stream; `None` if there is one.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        (self.streams == 0).then_some(self.unused_since)
    }

    pub(super) fn can_connect(&self) -> bool {
        self.can_connect
    }

    pub(super) fn large_head(&mut self) {
        self.has_large_head = true;
    }

    /// Returns whether the head of a response has come that may be larger than allowed, since the last call: h2 doesn't
    /// show why it resets a stream.
    pub(super) fn take_large_head(&mut self) -> bool {
        std::mem::take(&mut self.has_large_head)
    }

    pub(super) fn goaway(&mut self, code: u32) {
        self.goaway = Some(code);
    }

    /// Returns whether the backend ended the connection because a request was too much for it.
    pub(super) fn is_overwhelmed(&self) -> bool {
        self.goaway == Some(u32::from(Reason::ENHANCE_YOUR_CALM))
    }
}

/// Returns whether the end of a stream shows that the backend is silent: it waited so long in vain for its response,
/// and so many reads happened on the connection meanwhile.
fn is_silence(waited: Option<Duration>, reads: u64) -> bool {
    waited.is_some_and(|waited| waited >= SILENCE) && reads == 0
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{
        Phase::{Closed, Open, Opening, Retired, Silent},
        *,
    };

    const MAX: usize = 2;

    fn opening() -> State {
        State::opening(Instant::now())
    }

    /// A connection whose first stream has ended.
    fn open() -> State {
        let mut state = opening();
        state.set(BackendSettings { settings: 1, ..BackendSettings::default() });
        assert!(state.allow(MAX, false));
        end(&mut state, None);
        state
    }

    /// Ends a stream that was the only one to read.
    fn end(state: &mut State, waited: Option<Duration>) -> bool {
        state.end_stream(state.admission(), waited, Instant::now())
    }

    fn silent() -> State {
        let mut state = open();
        for _ in 0..MAX {
            state.begin_stream(false).unwrap();
        }
        assert!(!end(&mut state, Some(SILENCE)));
        state
    }

    fn retired() -> State {
        let mut state = open();
        assert!(state.retire());
        state
    }

    fn closed() -> State {
        let mut state = open();
        state.close();
        state
    }

    #[test]
    fn the_phase_decides_which_requests_the_connection_takes() {
        type Make = fn() -> State;
        let cases: [(Make, Phase, bool, bool, bool); 5] = [
            (opening, Phase::Opening, false, false, false),
            (open, Phase::Open, true, true, false),
            (silent, Phase::Silent, false, true, false),
            (retired, Phase::Retired, false, false, true),
            (closed, Phase::Closed, false, false, true),
        ];
        for (make, phase, takes, takes_silent, is_lost) in cases {
            assert_eq!((make().phase, make().is_lost()), (phase, is_lost));
            for (even_silent, expected) in [(false, takes), (true, takes_silent)] {
                assert_eq!(make().begin_stream(even_silent).is_some(), expected, "{phase:?} {even_silent}");
            }
        }
    }

    #[test]
    fn each_event_leads_to_one_phase() {
        type Make = fn() -> State;
        type Event = fn(&mut State);
        let events: [(&str, Event); 4] = [
            ("read", |state| _ = state.read()),
            ("allow", |state| _ = state.allow(MAX, false)),
            ("retire", |state| _ = state.retire()),
            ("close", State::close),
        ];
        let states: [(Make, [Phase; 4]); 5] = [
            (opening, [Opening, Open, Retired, Closed]),
            (open, [Open, Open, Retired, Closed]),
            (silent, [Open, Silent, Retired, Closed]),
            (retired, [Retired, Retired, Retired, Closed]),
            (closed, [Closed, Closed, Closed, Closed]),
        ];
        for (make, expected) in states {
            for ((name, event), expected) in events.iter().zip(expected) {
                let mut state = make();
                let before = state.phase;
                event(&mut state);
                assert_eq!(state.phase, expected, "{before:?} {name}");
            }
        }
    }

    #[test]
    fn a_stream_shows_silence_if_it_waited_and_nothing_was_read() {
        let less = SILENCE - Duration::from_millis(1);
        for (waited, reads, expected) in [
            (None, 0, false),
            (Some(less), 0, false),
            (Some(SILENCE), 0, true),
            (Some(SILENCE * 100), 0, true),
            (Some(SILENCE), 1, false),
        ] {
            assert_eq!(is_silence(waited, reads), expected, "{waited:?} {reads}");
        }
        // Reads before the stream don't count.
        let mut state = open();
        state.read();
        state.begin_stream(false).unwrap();
        let late = state.begin_stream(false).unwrap();
        assert!(!state.end_stream(late, Some(SILENCE), Instant::now()));
        assert_eq!(state.phase, Phase::Silent);
        // Nor does one stream's silence, if another one gets its response.
        assert!(state.read());
        assert!(!state.read());
        assert_eq!(state.phase, Phase::Open);
    }

    #[test]
    fn a_silent_connection_without_streams_is_lost() {
        let mut state = silent();
        assert!(!state.is_lost());
        assert!(end(&mut state, Some(SILENCE)));
        assert!(state.is_lost());
    }

    #[test]
    fn streams_are_counted_up_to_the_backends_limit() {
        let mut state = opening();
        assert!(state.begin_stream(true).is_none());
        assert!(!state.allow(0, false));
        assert!(state.allow(3, true) && state.can_connect());
        assert!(state.begin_stream(false).is_some() && state.begin_stream(false).is_some());
        assert!(state.begin_stream(false).is_none());
        // The backend lowers its limit below what is open, and raises it.
        assert!(!state.allow(1, true));
        assert!(!end(&mut state, None) && !end(&mut state, None));
        assert!(state.begin_stream(false).is_none());
        assert!(state.unused_since().is_none());
        assert!(end(&mut state, None));
        assert!(state.unused_since().is_some());
        assert!(state.begin_stream(false).is_some());
        assert!(state.allow(2, true));
        assert!(state.begin_stream(false).is_some());
    }

    #[test]
    fn a_connection_is_opened_when_settings_are_applied_or_it_closes() {
        let mut state = opening();
        assert_eq!(state.is_opened(), None);
        state.set(BackendSettings { settings: 1, ..BackendSettings::default() });
        assert_eq!(state.is_opened(), None);
        state.allow(1, false);
        assert_eq!(state.is_opened(), Some(true));
        // Not HTTP/2.
        let mut state = opening();
        state.close();
        assert_eq!(state.is_opened(), Some(false));
        // SETTINGS, and then the end: a request finds that by itself.
        let mut state = opening();
        state.set(BackendSettings { settings: 1, ..BackendSettings::default() });
        state.close();
        assert_eq!(state.is_opened(), Some(true));
        // It may be retired by what comes behind the SETTINGS.
        let mut state = opening();
        state.set(BackendSettings { settings: 1, ..BackendSettings::default() });
        assert!(state.retire());
        assert_eq!(state.is_opened(), None);
        state.allow(1, false);
        assert_eq!(state.is_opened(), Some(true));
        assert!(state.is_lost());
    }

    #[test]
    fn only_enhance_your_calm_shows_that_a_request_was_too_much() {
        for (code, expected) in [(None, false), (Some(0), false), (Some(1), false), (Some(11), true)] {
            let mut state = open();
            if let Some(code) = code {
                state.goaway(code);
            }
            assert_eq!(state.is_overwhelmed(), expected, "{code:?}");
        }
    }

    #[test]
    fn a_large_head_is_reported_once() {
        let mut state = open();
        assert!(!state.take_large_head());
        state.large_head();
        assert!(state.take_large_head());
        assert!(!state.take_large_head());
    }

    proptest! {
        /// Whatever happens in any order: streams begin within the limit only, none after the connection is retired or
        /// closed, and none is counted twice.
        #[test]
        fn no_order_of_events_breaks_the_count_of_streams(events in vec((0..8_u8, any::<u8>()), 0..100)) {
            let mut state = opening();
            let mut streams = vec![state.admission()];
            let (mut max_streams, mut is_over) = (0, false);
            for (event, value) in events {
                match event {
                    0 => {
                        max_streams = usize::from(value % 5);
                        state.allow(max_streams, false);
                    }
                    1 => {
                        if let Some(admission) = streams.pop() {
                            let waited = (value % 2 == 0).then_some(SILENCE);
                            prop_assert_eq!(state.end_stream(admission, waited, Instant::now()), streams.is_empty());
                        }
                    }
                    2 => _ = state.read(),
                    3 if value < 30 => {
                        is_over = true;
                        state.retire();
                    }
                    4 if value < 30 => {
                        is_over = true;
                        state.close();
                    }
                    _ => {
                        if let Some(admission) = state.begin_stream(value % 2 == 0) {
                            prop_assert!(streams.len() < max_streams && !is_over);
                            streams.push(admission);
                        }
                    }
                }
                prop_assert_eq!(state.unused_since().is_some(), streams.is_empty());
                prop_assert!(state.is_lost() || !is_over);
            }
            // A connection without streams that isn't lost takes a request when it may.
            while let Some(admission) = streams.pop() {
                state.end_stream(admission, None, Instant::now());
            }
            prop_assert_eq!(state.begin_stream(false).is_some(), !state.is_lost() && max_streams > 0);
        }
    }
}
