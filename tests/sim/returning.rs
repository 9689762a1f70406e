//! Members that come back: S8.

use std::{ops::Range, time::Duration};

use tower_reverse_proxy::{
    balance::BackendsBuilder,
    simulation::{Behaviour, Report, Simulation},
};

use crate::{backends, member, ms, name, second, stack};

/// S8: one of ten members is away for four seconds, and slower for the next 14, because its caches are cold.
///
/// A trial succeeds if the response comes within four times the usual latency, and at least 250 ms. The next one comes
/// after twice the time. So the member isn't back at 6 s, but when a trial finds it fast enough.
async fn returning(time: Duration, cold: f64, backends: BackendsBuilder) -> Report {
    let member = |index| member(index, 1000, time);
    let returns =
        member(0).during(second(2)..second(6), Behaviour::down()).during(second(6)..second(20), Behaviour::slow(cold));
    let simulation = Simulation::new(18).rate(1000.0).lasting(second(40)).member(returns).members((1..10).map(member));
    simulation.run(stack(backends)).await
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
