//! Members that come back: S8.

use std::{ops::Range, time::Duration};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use tokio::time::{Instant, sleep};
use tower_reverse_proxy::{
    Backends, RetryPolicy,
    balance::{BackendsBuilder, Pick, State},
    simulation::{Behaviour, Simulation},
};

use crate::{backends, member, ms, name, second, stack, stack_of};

/// S8: one of ten members is away for four seconds, and slower for a while after that, because its caches are cold.
///
/// Trials follow at some 3, 5 and 9 s. The first one that finds the member back is the last one, slow as it is.
fn away_and_cold(seed: u64, time: Duration, cold: f64) -> Simulation {
    let member = |index| member(index, 1000, time);
    let returns =
        member(0).during(second(2)..second(6), Behaviour::down()).during(second(6)..second(15), Behaviour::slow(cold));
    let request = |number| Request::get(format!("/{number}")).body(Body::empty()).unwrap();
    Simulation::new(seed).rate(1000.0).lasting(second(32)).request(request).member(returns).members((1..10).map(member))
}

/// The part of its fair share that the member that returns gets, in each second since it's back.
struct Ramp(Vec<f64>);

impl Ramp {
    /// Of some runs together: in a single one, members that are up all the time get up to 1.3 times their share in a
    /// second.
    async fn of(runs: u64, simulation: impl Fn(u64) -> Simulation, backends: impl Fn() -> BackendsBuilder) -> Self {
        let mut counts = [[0; 2]; 20];
        for seed in 1..=runs {
            let backends = backends().seed(seed).build().unwrap();
            let back = tokio::spawn(back_after(second(6), backends.clone()));
            let report = simulation(seed).run(stack_of(&backends, RetryPolicy::unsent())).await;
            let back = back.await.unwrap();
            assert_eq!(report.during(second(6)..).failed(), 0, "{report}");
            for ([own, all], at) in counts.iter_mut().zip(0..) {
                let report = report.during(back + second(at)..back + second(at + 1));
                *own += report.attempts_of(&name(0));
                *all += report.attempts();
            }
        }
        Self(counts.iter().map(|[own, all]| 10.0 * *own as f64 / *all as f64).collect())
    }

    fn most(&self, seconds: Range<usize>) -> f64 {
        self.0[seconds].iter().copied().fold(0.0, f64::max)
    }

    fn mean(&self, seconds: Range<usize>) -> f64 {
        let seconds = &self.0[seconds];
        seconds.iter().sum::<f64>() / seconds.len() as f64
    }

    /// Little at first, the whole in the end, and never more.
    #[track_caller]
    fn assert_gentle(&self) {
        let Self(shares) = self;
        assert!(self.mean(0..2) <= 0.25 && self.mean(3..6) <= 0.6, "{shares:.2?}");
        assert!(self.most(0..20) <= 1.1 && self.mean(10..20) >= 0.75, "{shares:.2?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_returns_gets_no_more_than_its_share_and_costs_no_error() {
    Ramp::of(3, |seed| away_and_cold(seed, ms(50), 3.0), || backends(10)).await.assert_gentle();
}

/// Short requests hardly need a slow start: with five in flight at each of the others, a member that returns has as
/// many after five requests. Long ones do. While the others have 300 in flight, it's among those that half of the
/// requests compare, and gets all of these. With a load that is divided by the ramp alone, it would have 1.3 times its
/// share at the ramp's end, and with a draw alone 1.6 times.
#[tokio::test(start_paused = true)]
async fn a_member_that_returns_to_long_requests_gets_them_slowly() {
    let simulation = |seed| away_and_cold(seed, second(3), 1.0);
    Ramp::of(3, simulation, || backends(10)).await.assert_gentle();
    let control = Ramp::of(1, simulation, || backends(10).slow_start(Duration::ZERO)).await;
    assert!(control.most(0..2) >= 2.5, "{:.2?}", control.0);
}

/// Idle members are loaded alike, so that the ramp is that of the weights.
#[tokio::test(start_paused = true)]
async fn a_member_that_returns_to_an_idle_set_gets_its_share_slowly() {
    let simulation = |seed| away_and_cold(seed, ms(5), 1.0).rate_from(second(5), 100.0);
    let ramp = Ramp::of(8, simulation, || backends(10)).await;
    assert!(ramp.mean(0..2) <= 0.3 && ramp.mean(3..6) <= 0.6 && ramp.mean(10..20) >= 0.8, "{:.2?}", ramp.0);
    let control = Ramp::of(8, simulation, || backends(10).slow_start(Duration::ZERO)).await;
    assert!(control.mean(0..2) >= 0.7, "{:.2?}", control.0);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_returns_gets_its_turns_and_its_keys_slowly() {
    let simulation = |seed| away_and_cold(seed, ms(50), 1.0);
    for pick in [Pick::RoundRobin, Pick::hash_by_path()] {
        let backends = || backends(10).pick(pick.clone());
        Ramp::of(2, simulation, backends).await.assert_gentle();
        let control = Ramp::of(1, simulation, || backends().slow_start(Duration::ZERO)).await;
        assert!(control.mean(0..2) >= 0.8, "{pick:?}: {:.2?}", control.0);
    }
}

/// A trial succeeds if the response comes within ten times the usual latency, and at least 2 s, of which its request
/// waits for 250 ms. If only responses within that time were a success, most trials of the slowest one of these would
/// fail.
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

/// Requests that no trial may use bring a member back by a connect, after ten seconds more than its time out. In the
/// simulation, a connect always succeeds.
#[tokio::test(start_paused = true)]
async fn a_member_that_only_gets_posts_is_back_without_a_loss_if_it_is_well() {
    let post = |_| Request::post("/").body(Body::from("an order")).unwrap();
    let posts = |until, fails| {
        let ill = member(0, 50, ms(50)).during(second(2)..second(until), fails);
        let simulation = Simulation::new(26).rate(300.0).lasting(second(60)).request(post);
        simulation.member(ill).members((1..4).map(|index| member(index, 50, ms(50))))
    };
    let fails = Behaviour::status(StatusCode::SERVICE_UNAVAILABLE);
    let well = posts(8, fails).run(stack(backends(4))).await;
    // Out at 2 s, for a second, and connected to ten seconds later.
    assert_eq!((well.during(second(3)..).failed(), well.during(second(4)..second(12)).attempts_of(&name(0))), (0, 0));
    assert!(well.during(second(30)..).share(&name(0)) >= 0.2, "{well}");
    // While it's ill, each return costs those requests that are sent before the first one has failed, and it's out for
    // twice as long.
    let ill = posts(100, fails).run(stack(backends(4))).await;
    let later = ill.during(second(3)..);
    assert!((1..=5).contains(&later.failed()) && later.attempts_of(&name(0)) == later.failed(), "{later}");
    // One that can't be reached costs none, because nothing was sent.
    let refuses = posts(100, Behaviour::down()).run(stack(backends(4))).await;
    assert_eq!(refuses.during(second(3)..).failed(), 0, "{refuses}");
}
