//! More requests than the members can work on: S9, S14.

use tower_reverse_proxy::{
    Retry, RetryPolicy,
    balance::{BackendsBuilder, Balance},
    simulation::{Report, ServiceTime, SimulatedMembers, Simulation},
};

use crate::{
    backends,
    controls::{Control, Policy, insistent, with_deadline},
    member, ms, second, stack,
};

/// S9: for ten seconds, 1.3 times what the members can work on. Each gives up on a request after a second, and works on
/// it all the same.
#[tokio::test(start_paused = true)]
async fn a_storm_of_requests_ends_with_the_storm() {
    let simulation = Simulation::new(19)
        .rate(800.0)
        .rate_from(second(10), 1300.0)
        .rate_from(second(20), 800.0)
        .lasting(second(40))
        .members((0..4).map(|index| member(index, 25, ms(100))));
    let ours = |backends: BackendsBuilder| {
        let backends = backends.build().unwrap();
        move |members: &SimulatedMembers| {
            let members = members.clone();
            let balance = Balance::new(&backends, move |member| with_deadline(members.service(member.name())));
            Retry::new(balance, RetryPolicy::idempotent())
        }
    };
    // At most as many as are worked on in 100 ms wait at the members, and the others in the queue of the set.
    let capped = simulation.run(ours(backends(4).max_requests(50))).await;
    assert!(amplification(&capped) <= 1.1, "{capped}");
    assert!(good(&capped.during(second(25)..)) >= 0.99, "{}", capped.during(second(25)..));
    // Without a limit, the members work on requests that they have given up. It lasts as long as the backlog, which isn't
    // the fault of the retries.
    let budget = simulation.run(ours(backends(4))).await;
    assert!(amplification(&budget) <= 1.1, "{budget}");

    let control =
        |members: &SimulatedMembers| insistent(Control::over(members.iter().map(with_deadline), Policy::LeastOf(4)));
    let control = simulation.run(control).await;
    assert!(good(&control.during(second(25)..)) <= 0.5, "{control}");
}

/// The highest number of attempts for a request, from the start to any second.
fn amplification(report: &Report) -> f64 {
    let until = |at| {
        let report = report.during(..second(at));
        report.attempts() as f64 / report.offered() as f64
    };
    (1..40).map(until).fold(0.0, f64::max)
}

fn good(report: &Report) -> f64 {
    report.succeeded() as f64 / report.offered() as f64
}

/// S14: twice as many requests as the members can work on, for 20 seconds. Clients leave after three.
#[tokio::test(start_paused = true)]
async fn caps_keep_the_members_at_their_capacity() {
    let simulation = Simulation::new(24)
        .rate(150.0)
        .rate_from(second(5), 600.0)
        .rate_from(second(25), 150.0)
        .lasting(second(40))
        .patience(second(3))
        .members((0..3).map(|index| member(index, 10, ms(100)).service_time(ServiceTime::fixed(ms(100)))));
    let goodput = |report: &Report| report.during(second(5)..second(25)).succeeded() as f64 / (20.0 * 300.0);

    let ours = simulation.run(stack(backends(3).max_requests(10))).await;
    assert!(goodput(&ours) >= 0.95, "{ours}");
    // A second in the queue, a tenth at the member, and the resolution of timers.
    assert!(ours.latency(1.0) <= ms(1105), "{ours}");
    let after = ours.during(second(26)..);
    assert!(after.succeeded() == after.offered() && after.latency(0.99) <= ms(105), "{after}");

    let control = simulation.run(stack(backends(3))).await;
    assert!(goodput(&control) <= 0.5, "{control}");
}
