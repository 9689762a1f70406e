//! The simulator and the controls against queueing theory: they have to be right before anything is compared with them.

use std::time::Duration;

use tower_reverse_proxy::simulation::{Report, Simulation};

use crate::{
    controls::{Control, Policy},
    members, ms, second,
};

const MEAN: Duration = Duration::from_secs(1);

/// Requests for members with one worker each, without those of the first 100 s.
async fn simulated(n: usize, load: f64, lasting: Duration, policy: Policy) -> Report {
    let rate = n as f64 * load / MEAN.as_secs_f64();
    let simulation = Simulation::new(7).rate(rate).lasting(lasting).members(members(n, 1, MEAN));
    simulation.run(|members| Control::new(members, policy)).await.during(second(100)..)
}

#[track_caller]
fn assert_near(measured: Duration, expected: f64, tolerance: f64) {
    let measured = measured.as_secs_f64() / MEAN.as_secs_f64();
    assert!((measured / expected - 1.0).abs() < tolerance, "{measured} service times instead of {expected}");
}

#[tokio::test(start_paused = true)]
async fn random_members_are_independent_queues() {
    // M/M/1: response times are exponential, with mean 1 / (1 - ρ).
    let report = simulated(50, 0.8, second(900), Policy::Random).await;
    assert_near(report.mean_latency(), 5.0, 0.1);
    assert_near(report.latency(0.99), 23.0, 0.1);
}

#[tokio::test(start_paused = true)]
async fn the_best_of_d_draws_has_the_tail_of_the_mean_field() {
    // Mitzenmacher's fixed point: a share of ρ^((d^k - 1) / (d - 1)) of the members has k requests or more.
    let (two, five) = (
        simulated(100, 0.8, second(700), Policy::LeastOf(2)).await,
        simulated(100, 0.8, second(700), Policy::LeastOf(5)).await,
    );
    assert_near(two.latency(0.99), 7.4, 0.05);
    assert_near(five.latency(0.99), 5.7, 0.05);
    assert_near(two.mean_latency(), mean(2, 0.8), 0.05);
    assert_near(five.mean_latency(), mean(5, 0.8), 0.05);
}

/// The mean response time of the best of d, for infinitely many members.
fn mean(d: i32, load: f64) -> f64 {
    let exponent = |k: i32| f64::from(d.pow(k as u32) - d) / f64::from(d - 1);
    (1..=6).map(|k| load.powf(exponent(k))).sum()
}

#[tokio::test(start_paused = true)]
async fn the_shortest_of_many_queues_is_empty() {
    let report = simulated(100, 0.8, second(300), Policy::Shortest).await;
    assert_near(report.mean_latency(), 1.0, 0.05);
    assert_near(report.latency(0.99), 100_f64.ln(), 0.05);
}

#[tokio::test(start_paused = true)]
async fn a_run_of_a_seed_has_one_digest() {
    let run = |seed, policy| async move {
        let simulation = Simulation::new(seed).rate(300.0).lasting(second(10)).members(members(5, 10, ms(100)));
        simulation.run(|members| Control::new(members, policy)).await.digest()
    };
    let first = run(1, Policy::LeastOf(2)).await;
    assert_eq!(run(1, Policy::LeastOf(2)).await, first);
    assert_ne!(run(2, Policy::LeastOf(2)).await, first);
    assert_ne!(run(1, Policy::RoundRobin).await, first);
}
