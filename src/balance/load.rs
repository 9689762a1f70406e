//! The load of a member: its attempts in flight, the debt of its failures, and its latency; and how two loads compare.
//!
//! Requests write and read the counters without a lock. Each is by itself: no other memory depends on one of them.

use std::{
    cell::Cell,
    cmp,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// In how many milliseconds a debt falls to 37 %. A failure counts as an attempt in flight that takes as long.
const DEBT_DECAY: f32 = 5_000.0;
/// After so many milliseconds, 5 % of a debt are left, and it ends. Among idle members, any debt keeps requests away.
const DEBT_LIFE: u32 = 15_000;
/// The milliseconds over which latencies are averaged.
const LATENCY_WINDOW: f32 = 10_000.0;
/// How many milliseconds a latency is valid for. The member of an older one is compared without it, so that it gets a
/// request again and can show that it has become faster.
const LATENCY_LIFE: u32 = 3_000;
/// How many responses an average needs before it's compared.
const SAMPLES: u32 = 10;
/// By how many milliseconds two latencies must differ, besides the factor of two.
const LATENCY_FLOOR: f32 = 5.0;

/// In the count of attempts in flight: the member is removed from its set.
const LEAVING: u32 = 1 << 31;

/// The counters of a member, on a cache line of their own, because each of its attempts writes them.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Load {
    in_flight: AtomicU32,
    requests: AtomicU64,
    /// The [`Successes`] of a second.
    successes: AtomicU64,
    /// The debt as `f32`, and the milliseconds when it had that value. 0 is no debt, whose age is of no interest.
    debt: AtomicU64,
    /// The average latency in milliseconds as `f32`, and a [`Stamp`] of its last sample.
    latency: AtomicU64,
}

/// How many successes there were in a second since the set was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Successes {
    pub(super) second: u32,
    pub(super) count: u32,
}

impl Successes {
    fn of(word: u64) -> Self {
        Self { second: (word >> 32) as u32, count: word as u32 }
    }
}

/// What became of the count when an attempt began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Counted,
    /// The member is leaving its set.
    Leaving,
    /// The member is leaving its set, and no attempt is in flight any more.
    Left,
}

impl Load {
    pub(super) const fn new() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            successes: AtomicU64::new(0),
            debt: AtomicU64::new(0),
            latency: AtomicU64::new(0),
        }
    }

    // ---- In flight ----

    /// Counts an attempt that begins. [`Count::Leaving`]: it mustn't begin, and has to be [ended](Self::end).
    pub(super) fn begin(&self) -> Count {
        if self.in_flight.fetch_add(1, Ordering::Relaxed) & LEAVING != 0 {
            return Count::Leaving;
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        Count::Counted
    }

    /// Counts an attempt that begins where another one has ended.
    pub(super) fn pass_on(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of an attempt.
    pub(super) fn end(&self) -> Count {
        match self.in_flight.fetch_sub(1, Ordering::Relaxed) {
            before if before == LEAVING | 1 => Count::Left,
            before if before & LEAVING != 0 => Count::Leaving,
            _ => Count::Counted,
        }
    }

    /// Makes every later [`begin`](Self::begin) return [`Count::Leaving`].
    ///
    /// The mark is in the same word as the count, so that of the last end and this call one sees the other.
    pub(super) fn leave(&self) -> Count {
        match self.in_flight.fetch_or(LEAVING, Ordering::Relaxed) & !LEAVING {
            0 => Count::Left,
            _ => Count::Leaving,
        }
    }

    /// Takes [`leave`](Self::leave) back. Returns whether there was anything to take back.
    pub(super) fn stay(&self) -> bool {
        self.in_flight.fetch_and(!LEAVING, Ordering::Relaxed) & LEAVING != 0
    }

    /// Returns the number of attempts whose response, or tunnel, hasn't ended.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed) & !LEAVING
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) & LEAVING != 0
    }

    /// Returns how many attempts have begun.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    // ---- Successes ----

    /// Counts a success in a second since the set was made, which isn't of a [`Millis`], because that begins again.
    /// Returns those of an earlier second, which are no longer counted here.
    pub(super) fn succeeded(&self, second: u32) -> Option<Successes> {
        if Successes::of(self.successes.load(Ordering::Relaxed)).second == second {
            self.successes.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Successes::of(self.successes.swap(u64::from(second) << 32 | 1, Ordering::Relaxed)))
    }

    /// Returns the successes that haven't been returned yet.
    pub(super) fn take_successes(&self) -> Successes {
        Successes::of(self.successes.swap(0, Ordering::Relaxed))
    }

    // ---- Failures ----

    /// Adds a failure of this weight to the debt.
    pub(super) fn fail(&self, weight: f32, now: Millis) {
        let mut word = self.debt.load(Ordering::Relaxed);
        loop {
            let next = pack(decayed(word, now) + weight, now.0);
            match self.debt.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(current) => word = current,
            }
        }
    }

    /// Forgets the debt, because the member has shown that it's well.
    pub(super) fn forgive(&self) {
        self.debt.store(0, Ordering::Relaxed);
    }

    /// Returns what is left of the debt. The clock is read only if there is one.
    #[inline]
    fn debt(&self, clock: &Clock) -> f32 {
        match self.debt.load(Ordering::Relaxed) {
            0 => 0.0,
            word => self.debt_of(word, clock),
        }
    }

    #[cold]
    fn debt_of(&self, word: u64, clock: &Clock) -> f32 {
        let debt = decayed(word, clock.now());
        if debt == 0.0 {
            // If it fails, there is a new debt.
            let _ = self.debt.compare_exchange(word, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        debt
    }

    // ---- Latency ----

    /// Adds a sample to the average latency. Samples that other attempts add meanwhile may get lost.
    pub(super) fn responded(&self, after: Duration, now: Millis) {
        let word = self.latency.load(Ordering::Relaxed);
        let (average, stamp) = (f32::from_bits((word >> 32) as u32), Stamp(word as u32));
        let sample = after.as_secs_f32() * 1_000.0;
        let samples = stamp.samples();
        // By time and not by number, so that the average of a busy member doesn't follow its last few responses.
        let elapsed = stamp.age(now).max(1) as f32;
        let share = (elapsed / (LATENCY_WINDOW + elapsed)).max(1.0 / (samples + 1) as f32 * is_few(samples));
        let average = if samples == 0 { sample } else { share.mul_add(sample - average, average) };
        self.latency.store(pack(average, Stamp::new(samples + 1, now).0), Ordering::Relaxed);
    }

    /// Returns the average latency in milliseconds, whatever its age. `None` if there are too few samples.
    pub(super) fn latency(&self) -> Option<f32> {
        let word = self.latency.load(Ordering::Relaxed);
        (Stamp(word as u32).samples() >= SAMPLES).then(|| f32::from_bits((word >> 32) as u32))
    }

    /// Returns the average latency in milliseconds, of as many samples as there are.
    fn average(&self) -> f32 {
        f32::from_bits((self.latency.load(Ordering::Relaxed) >> 32) as u32)
    }

    fn latency_age(&self, now: Millis) -> u32 {
        Stamp(self.latency.load(Ordering::Relaxed) as u32).age(now)
    }

    // ---- The comparison ----

    /// Returns what a new attempt would find here, before it's divided by the weight. An idle member has 0, so that
    /// idle members are equal, whatever their weights are.
    #[inline]
    pub(super) fn pressure(&self, clock: &Clock) -> f32 {
        let busy = self.in_flight() as f32 + self.debt(clock);
        if busy == 0.0 { 0.0 } else { busy + 1.0 }
    }

    /// Compares the latencies of two members that are loaded alike: the greater one is much slower. Small differences
    /// don't count, because an idle set would follow their noise to one member.
    #[inline]
    pub(super) fn compare_latency(&self, other: &Self, clock: &Clock) -> cmp::Ordering {
        let (own, theirs) = (self.average(), other.average());
        // First, because nearly all members of an idle set are alike.
        if (own - theirs).abs() <= LATENCY_FLOOR || own.max(theirs) <= 2.0 * own.min(theirs) {
            return cmp::Ordering::Equal;
        }
        self.compare_valid(other, clock)
    }

    #[cold]
    fn compare_valid(&self, other: &Self, clock: &Clock) -> cmp::Ordering {
        let is_valid = |load: &Self| load.latency().is_some() && load.latency_age(clock.now()) <= LATENCY_LIFE;
        if is_valid(self) && is_valid(other) {
            self.average().total_cmp(&other.average())
        } else {
            cmp::Ordering::Equal
        }
    }
}

/// 1 as long as the average is that of all samples, and 0 afterwards.
fn is_few(samples: u32) -> f32 {
    if samples < SAMPLES { 1.0 } else { 0.0 }
}

fn pack(value: f32, low: u32) -> u64 {
    u64::from(value.to_bits()) << 32 | u64::from(low)
}

/// Returns what is left of a debt.
fn decayed(word: u64, now: Millis) -> f32 {
    let age = now.since(word as u32);
    if age > DEBT_LIFE { 0.0 } else { f32::from_bits((word >> 32) as u32) * (-(age as f32) / DEBT_DECAY).exp() }
}

/// The number of samples, up to 15, and the time of the last one, in 28 bits: its age is wrong once every three days,
/// when a request may find a latency that hasn't been valid for so long.
#[derive(Clone, Copy, Debug)]
struct Stamp(u32);

impl Stamp {
    const BITS: u32 = 28;
    const MASK: u32 = (1 << Self::BITS) - 1;

    fn new(samples: u32, at: Millis) -> Self {
        Self(samples.min(15) << Self::BITS | at.0 & Self::MASK)
    }

    fn samples(self) -> u32 {
        self.0 >> Self::BITS
    }

    fn age(self, now: Millis) -> u32 {
        elapsed(now.0.wrapping_sub(self.0) & Self::MASK, Self::MASK)
    }
}

/// Milliseconds since the set was made. They begin again after 49 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Millis(u32);

impl Millis {
    pub(super) fn between(epoch: Instant, now: Instant) -> Self {
        Self::after(now.saturating_duration_since(epoch))
    }

    /// Returns the time at which the set has this age.
    pub(super) fn after(age: Duration) -> Self {
        Self(age.as_millis() as u32)
    }

    fn since(self, earlier: u32) -> u32 {
        elapsed(self.0.wrapping_sub(earlier), u32::MAX)
    }
}

/// Returns an age. A time that is later than the clock's has been written by a thread that read the clock just after
/// this one, and its age is 0: the difference is close to the largest one.
fn elapsed(difference: u32, largest: u32) -> u32 {
    /// By how many milliseconds it may be later.
    const LATER: u32 = 60_000;
    if difference > largest - LATER { 0 } else { difference }
}

/// The time, read at most once a pick, and only if a member has a debt, or if latencies are compared.
#[derive(Debug)]
pub(super) struct Clock {
    epoch: Instant,
    now: Cell<Option<Millis>>,
}

impl Clock {
    pub(super) fn new(epoch: Instant) -> Self {
        Self { epoch, now: Cell::new(None) }
    }

    pub(super) fn now(&self) -> Millis {
        self.now.get().unwrap_or_else(|| {
            let now = Millis::between(self.epoch, Instant::now());
            self.now.set(Some(now));
            now
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(now: u32) -> Clock {
        Clock { epoch: Instant::now(), now: Cell::new(Some(Millis(now))) }
    }

    #[test]
    fn attempts_count_until_they_end() {
        let load = Load::new();
        assert_eq!((load.begin(), load.begin(), load.in_flight()), (Count::Counted, Count::Counted, 2));
        assert_eq!((load.end(), load.in_flight(), load.requests()), (Count::Counted, 1, 2));
    }

    #[test]
    fn the_last_attempt_of_a_leaving_member_is_seen_once() {
        let load = Load::new();
        load.begin();
        load.begin();
        assert_eq!((load.leave(), load.is_leaving()), (Count::Leaving, true));
        // A request that had an old snapshot.
        assert_eq!((load.begin(), load.end()), (Count::Leaving, Count::Leaving));
        assert_eq!((load.end(), load.end()), (Count::Leaving, Count::Left));
        assert_eq!((load.requests(), load.in_flight()), (2, 0));
        assert_eq!(Load::new().leave(), Count::Left);
    }

    #[test]
    fn a_member_that_stays_counts_as_before() {
        let load = Load::new();
        load.begin();
        load.leave();
        load.stay();
        assert_eq!(
            (load.begin(), load.end(), load.end(), load.in_flight()),
            (Count::Counted, Count::Counted, Count::Counted, 0)
        );
    }

    #[test]
    fn successes_are_counted_by_the_second_and_taken_once() {
        let load = Load::new();
        let of = |second, count| Successes { second, count };
        assert_eq!((load.succeeded(0), load.succeeded(0)), (None, None));
        assert_eq!((load.succeeded(1), load.succeeded(1)), (Some(of(0, 2)), None));
        assert_eq!((load.take_successes(), load.take_successes()), (of(1, 2), of(0, 0)));
        assert_eq!((load.succeeded(1), load.take_successes()), (Some(of(0, 0)), of(1, 1)));
    }

    #[test]
    fn a_debt_adds_up_and_decays() {
        let load = Load::new();
        for _ in 0..4 {
            load.fail(1.0, Millis(1_000));
        }
        let at = |now| load.debt(&clock(now));
        assert!((at(1_000) - 4.0).abs() < 0.001);
        assert!((-4.0f32).mul_add((-1.0f32).exp(), at(6_000)).abs() < 0.001);
        assert_eq!((at(1_000 + DEBT_LIFE + 1), load.debt.load(Ordering::Relaxed)), (0.0, 0));
    }

    #[test]
    fn a_debt_survives_the_wrap_of_the_clock() {
        let load = Load::new();
        load.fail(1.0, Millis(u32::MAX - 999));
        assert!((load.debt(&clock(4_000)) - (-1.0f32).exp()).abs() < 0.001);
    }

    #[test]
    fn a_clock_that_was_read_before_another_thread_wrote_ends_no_debt_and_no_average() {
        let load = responding(10, 10);
        load.responded(Duration::from_millis(1_000), Millis(5));
        let average = load.latency().unwrap();
        load.responded(Duration::from_millis(1_000), Millis(4));
        assert!(load.latency().unwrap() < average + 1.0, "{average} {:?}", load.latency());
        load.fail(1.0, Millis(5));
        load.fail(1.0, Millis(4));
        assert!((load.debt(&clock(3)) - 2.0).abs() < 0.001);
        assert!((load.debt(&clock(5)) - 2.0).abs() < 0.01);
    }

    #[test]
    fn a_failure_is_as_much_as_an_attempt_in_flight() {
        let (busy, failed, now) = (Load::new(), Load::new(), clock(0));
        busy.begin();
        failed.fail(1.0, Millis(0));
        assert_eq!((busy.pressure(&now), failed.pressure(&now), Load::new().pressure(&now)), (2.0, 2.0, 0.0));
    }

    /// A member with so many responses of so many milliseconds each, the last one at time 0.
    fn responding(count: u32, latency: u64) -> Load {
        let load = Load::new();
        for _ in 0..count {
            load.responded(Duration::from_millis(latency), Millis(0));
        }
        load
    }

    #[test]
    fn a_much_slower_member_is_known_after_ten_responses_and_for_three_seconds() {
        let fast = responding(10, 10);
        for (other, latency, now, expected) in [
            (responding(10, 21), Some(21.0), 0, true),
            (responding(10, 21), Some(21.0), 3_000, true),
            (responding(10, 21), Some(21.0), 3_001, false),
            (responding(9, 500), None, 0, false),
            (responding(10, 19), Some(19.0), 0, false),
            (responding(10, 10), Some(10.0), 0, false),
        ] {
            assert_eq!(other.latency().map(f32::round), latency);
            let expected = if expected { cmp::Ordering::Greater } else { cmp::Ordering::Equal };
            assert_eq!(other.compare_latency(&fast, &clock(now)), expected, "{latency:?} {now}");
            assert_eq!(fast.compare_latency(&other, &clock(now)), expected.reverse(), "{latency:?} {now}");
        }
        // Twice as slow, but not by five milliseconds.
        assert_eq!(responding(10, 5).compare_latency(&responding(10, 1), &clock(0)), cmp::Ordering::Equal);
    }

    #[test]
    fn an_average_follows_the_last_ten_seconds() {
        let load = responding(10, 100);
        load.responded(Duration::from_millis(10), Millis(1));
        assert!(load.latency().unwrap() > 99.0);
        load.responded(Duration::from_millis(10), Millis(10_001));
        let latency = load.latency().unwrap();
        assert!((50.0..60.0).contains(&latency), "{latency}");
    }
}
