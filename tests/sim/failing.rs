//! Members that fail: S4, S5, S7, S10, S13.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use tokio::{task::JoinHandle, time::sleep};
use tower_reverse_proxy::{
    Backends, RetryPolicy,
    balance::{Balance, Eject, State},
    simulation::{Behaviour, Outcome, Report, SimulatedMembers, Simulation},
};

use crate::{
    backends,
    controls::{Breakers, Control, Policy, poisonable},
    member, members, ms, name, second, stack, stack_of,
};

fn error_rate(report: &Report) -> f64 {
    report.failed() as f64 / report.offered() as f64
}

/// S4: one of the members responds with 503 in a millisecond. Without a memory of failures, the fastest member gets
/// most of the requests.
///
/// The debt of a member stays at the load of the others, 5 of ten members or 25 of three. It's decaying by a fifth of
/// that per second, which are the faults that go on: 0.1 % or 0.5 % of 1,000 a second, and the 5 or 25 at the
/// beginning.
async fn black_hole(n: usize, by_debt: f64, without_memory: f64) {
    let hole = member(0, 50, ms(50)).during(.., Behaviour::status(StatusCode::SERVICE_UNAVAILABLE));
    let others = (1..n).map(|index| member(index, 50, ms(50)));
    let simulation = Simulation::new(14).rate(1000.0).lasting(second(20)).member(hole).members(others);
    let debt = simulation.run(stack(backends(n).eject(Eject::never()))).await;
    assert!(error_rate(&debt) <= by_debt, "{debt}");
    let ejection = simulation.run(stack(backends(n))).await;
    assert!(ejection.failed() <= 15, "{ejection}");
    let retried = simulation.run(stack_of(&backends(n).build().unwrap(), RetryPolicy::idempotent())).await;
    assert_eq!(retried.failed(), 0, "{retried}");
    let control = simulation.run(|members| Control::new(members, Policy::LeastOf(5))).await;
    assert!(error_rate(&control) >= without_memory, "{control}");
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_of_three_gets_next_to_nothing() {
    black_hole(3, 0.009, 0.6).await;
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_of_ten_gets_next_to_nothing() {
    black_hole(10, 0.002, 0.45).await;
}

/// S5: a member that fails a third of its requests.
#[tokio::test(start_paused = true)]
async fn a_member_that_fails_now_and_then_costs_few_errors() {
    let flaky = member(0, 50, ms(50)).during(.., Behaviour::status(StatusCode::BAD_GATEWAY).share(0.3));
    let others = (1..10).map(|index| member(index, 50, ms(50)));
    let simulation = Simulation::new(15).rate(1000.0).lasting(second(30)).member(flaky).members(others);
    let ours = simulation.run(stack(backends(10))).await;
    assert!(error_rate(&ours) <= 0.009, "{ours}");
    let control = simulation.run(|members| Control::new(members, Policy::LeastOf(5))).await;
    assert!(error_rate(&control) >= 0.03, "{control}");
}

/// S7: a process that stands still fails no request. Its clients leave after ten seconds.
#[tokio::test(start_paused = true)]
async fn a_hung_member_loses_few_clients() {
    let hung = member(0, 50, ms(50)).during(second(5).., Behaviour::hang());
    let simulation = Simulation::new(17)
        .rate(1000.0)
        .lasting(second(65))
        .patience(second(10))
        .member(hung)
        .members((1..3).map(|index| member(index, 50, ms(50))));
    let lost = |report: &Report| report.during(second(7)..).left();
    let ours = simulation.run(stack(backends(3))).await;
    assert!(lost(&ours) <= 10, "{ours}");
    let control = simulation.run(|members| Control::new(members, Policy::LeastOf(5))).await;
    assert!(lost(&control) >= 60, "{control}");
}

/// S10: all members respond with 503 for five seconds. None of them is to blame. With these seeds, one or two are
/// ejected before the others have failed as often.
async fn failure_of_all(n: usize, seed: u64) {
    let fails = Behaviour::status(StatusCode::SERVICE_UNAVAILABLE);
    let all = (0..n).map(|index| member(index, 50, ms(50)).during(second(10)..second(15), fails));
    let simulation = Simulation::new(seed).rate(70.0 * n as f64).lasting(second(40)).members(all);

    let backends = backends(n).build().unwrap();
    let out = watch(&backends);
    let ours = simulation.run(stack_of(&backends, RetryPolicy::unsent())).await;
    let out = out.await.unwrap();
    assert!(out.iter().all(|(_, out)| *out <= n / 2), "{out:?}");
    assert!(out.iter().all(|(at, out)| *at < second(25) || *out == 0), "{out:?}");
    let after = ours.during(second(17)..);
    assert!(after.succeeded() as f64 >= 0.99 * after.offered() as f64, "{after}");
    // Nor do the faults divert the requests to a member that was out meanwhile. Up to half of the members are in their
    // slow start for ten seconds, and the others have up to twice their share.
    let most = |from: u64| {
        let report = ours.during(second(from)..second(from + 5));
        (0..n).map(|index| report.share(&name(index))).fold(0.0, f64::max)
    };
    let most = [20, 25, 30, 35].map(most);
    assert!(most[0] <= 2.0 / n as f64 && most[1..].iter().all(|share| *share <= 1.5 / n as f64), "{most:?}");

    let control = |members: &SimulatedMembers| Breakers::new(members.iter(), |status| status.is_server_error());
    let control = simulation.lasting(second(20)).run(control).await;
    let after = control.during(second(17)..second(18));
    assert!(after.succeeded() as f64 <= 0.5 * after.offered() as f64, "{after}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_all_ejects_at_most_half_and_leaves_no_trace() {
    failure_of_all(6, 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_three_ejects_at_most_one_and_leaves_no_trace() {
    failure_of_all(3, 2).await;
}

/// S13: most requests are for a URL that every member answers with 500.
#[tokio::test(start_paused = true)]
async fn a_poisonous_url_ejects_no_member() {
    let poison = |number| Request::get(if number % 10 < 8 { "/poison" } else { "/" }).body(Body::empty()).unwrap();
    let simulation =
        Simulation::new(23).rate(300.0).lasting(second(20)).request(poison).members(members(3, 50, ms(50)));

    let backends = backends(3).build().unwrap();
    let out = watch(&backends);
    let ours = simulation
        .run(|members| {
            let members = members.clone();
            Balance::new(&backends, move |member| poisonable(members.service(member.name())))
        })
        .await;
    let out = out.await.unwrap();
    assert!(out.iter().all(|(_, out)| *out == 0), "{out:?}");
    assert_eq!(ours.succeeded() + ours.count(Outcome::Status(StatusCode::INTERNAL_SERVER_ERROR)), ours.offered());

    let mut handle = None;
    let breakers = |members: &SimulatedMembers| {
        let breakers = Breakers::new(members.iter().map(poisonable), |status| status.is_server_error());
        handle.insert(breakers).clone()
    };
    simulation.run(breakers).await;
    assert_eq!(handle.unwrap().most_open(), 3);
}

/// S13, where the members close the connection of a third of the requests: a URL ends the worker process. Five in a row come
/// by chance, several times in this minute, and breakers take every member out.
#[tokio::test(start_paused = true)]
async fn a_url_that_closes_connections_everywhere_ejects_no_member() {
    let fails = Behaviour::close().share(0.33);
    let all = (0..4).map(|index| member(index, 50, ms(50)).during(.., fails));
    let simulation = Simulation::new(25).rate(300.0).lasting(second(25)).members(all);
    let backends = backends(4).build().unwrap();
    let out = watch(&backends);
    let ours = simulation.run(stack_of(&backends, RetryPolicy::none())).await;
    let out = out.await.unwrap();
    assert!(out.iter().all(|(_, out)| *out == 0), "{out:?}");
    assert!((0.3..0.36).contains(&error_rate(&ours)), "{ours}");
}

/// Everything draws from seeds: the picks, the times of ejections, the waits before retries.
#[tokio::test(start_paused = true)]
async fn the_whole_stack_has_one_digest_for_a_seed() {
    let run = async |seed| {
        let fails = Behaviour::status(StatusCode::BAD_GATEWAY).share(0.5);
        let all = (0..6).map(|index| match index {
            0 => member(0, 20, ms(50)).during(second(3)..second(6), Behaviour::down()),
            1 => member(1, 20, ms(50)).during(second(5).., fails),
            2 => member(2, 20, ms(50)).during(second(7)..second(9), Behaviour::hang()),
            _ => member(index, 20, ms(50)),
        });
        let simulation = Simulation::new(7).rate(400.0).lasting(second(15)).patience(second(2)).members(all);
        let backends = backends(6).max_requests(30).seed(seed).build().unwrap();
        simulation.run(stack_of(&backends, RetryPolicy::idempotent().seed(seed))).await.digest()
    };
    let first = run(1).await;
    assert_eq!(run(1).await, first);
    assert_ne!(run(2).await, first);
}

/// Counts the members that are out, ten times a second, for 25 s.
fn watch(backends: &Backends) -> JoinHandle<Vec<(Duration, usize)>> {
    let backends = backends.clone();
    tokio::spawn(async move {
        let mut seen = Vec::new();
        for tenth in 0..255 {
            sleep(ms(100)).await;
            let out = backends.status().iter().filter(|member| member.state() != State::Up).count();
            seen.push((ms(100 * tenth), out));
        }
        seen
    })
}
