//! Members that come back: S8.

use std::{ops::Range, time::Duration};

use tokio::time::{Instant, sleep};
use tower_reverse_proxy::{
    Backends, RetryPolicy,
    balance::{BackendsBuilder, State},
    simulation::{Behaviour, Report, Simulation},
};

use crate::{backends, member, ms, name, second, stack, stack_of};

/// S8: one of ten members is away for four seconds, and slower for the next 14, because its caches are cold.
///
/// Trials follow at some 3, 5 and 9 s. The first one that finds the member back is the last one, slow as it is.
async fn returning(time: Duration, cold: f64, backends: BackendsBuilder) -> Report {
    away_and_cold(18, time, cold).run(stack(backends)).await
}

fn away_and_cold(seed: u64, time: Duration, cold: f64) -> Simulation {
    let member = |index| member(index, 1000, time);
    let returns =
        member(0).during(second(2)..second(6), Behaviour::down()).during(second(6)..second(20), Behaviour::slow(cold));
    Simulation::new(seed).rate(1000.0).lasting(second(40)).member(returns).members((1..10).map(member))
}

/// The share of the member that returns, of each second, and the second in which it's back.
fn shares(report: &Report) -> (Vec<f64>, usize) {
    let share = |at| report.during(second(at)..second(at + 1)).share(&name(0));
    let shares: Vec<_> = (0..40).map(share).collect();
    // More than the trials.
    let back = (6..40).find(|&at| shares[at] > 0.003).unwrap();
    (shares, back)
}

fn most(shares: &[f64], seconds: Range<usize>) -> f64 {
    shares[seconds].iter().copied().fold(0.0, f64::max)
}

/// Shares of single seconds vary: those of members that are up all the time are up to 13 %.
#[tokio::test(start_paused = true)]
async fn a_member_that_returns_gets_no_more_than_its_share_and_costs_no_error() {
    let ours = returning(ms(50), 3.0, backends(10)).await;
    let (shares, back) = shares(&ours);
    assert!(back <= 16, "{shares:.3?}");
    assert!(most(&shares, back..back + 5) <= 0.06 && most(&shares, back..back + 9) <= 0.11, "{shares:.3?}");
    assert_eq!(ours.during(second(6)..).failed(), 0, "{ours}");
    assert!(ours.during(second(30)..).share(&name(0)) >= 0.09, "{ours}");
}

/// Short requests need no slow start: with five in flight at each of the others, a member that returns has as many after
/// five requests. Long ones do. While the others have 300 in flight, it's among those that half of the requests compare,
/// and gets all of these.
///
/// With the slow start, it catches up at the end of it: in one second it gets 1.6 times its share.
#[tokio::test(start_paused = true)]
async fn a_member_that_returns_to_long_requests_gets_them_slowly() {
    let ours = returning(second(3), 1.0, backends(10)).await;
    let (shares, back) = shares(&ours);
    assert!(most(&shares, back..back + 5) <= 0.1 && most(&shares, back..40) <= 0.18, "{shares:.3?}");

    let control = returning(second(3), 1.0, backends(10).slow_start(Duration::ZERO)).await;
    let (shares, back) = self::shares(&control);
    assert!(most(&shares, back..back + 2) >= 0.25, "{shares:.3?}");
}

/// A trial succeeds if the response comes within ten times the usual latency, and at least 2 s, of which its request waits
/// for 250 ms. If only responses within that time were a success, most trials of the slowest one of these would fail.
#[tokio::test(start_paused = true)]
async fn a_member_that_returns_with_cold_caches_is_back_within_two_trials() {
    for (cold, seed) in
        [3.0, 5.0, 8.0].into_iter().flat_map(|cold| (1..=6).map(move |seed| (cold, seed + 10 * cold as u64)))
    {
        let backends = backends(10).seed(seed).build().unwrap();
        let back = tokio::spawn(back_after(second(6), backends.clone()));
        let simulation = away_and_cold(seed, ms(50), cold).rate(400.0).lasting(second(16));
        let ours = simulation.run(stack_of(&backends, RetryPolicy::unsent())).await;
        let back = back.await.unwrap();
        let trials = ours.during(second(6)..back).attempts_of(&name(0));
        assert!(trials <= 2 && back < second(12), "{cold} times slower, seed {seed}: {trials} trials until {back:?}");
        assert_eq!(ours.during(second(6)..).failed(), 0, "{ours}");
    }
}

/// Returns when the first member is back, from a time on when it's out.
async fn back_after(time: Duration, backends: Backends) -> Duration {
    let start = Instant::now();
    sleep(time).await;
    while backends.status()[0].state() != State::Up && start.elapsed() < second(60) {
        sleep(ms(20)).await;
    }
    start.elapsed()
}
