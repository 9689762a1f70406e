//! The balancer under simulated load: many members, seeded arrivals, failures at certain times, in paused time.
//!
//! Each case also runs its control, a policy that others have or a setting that is off, and the control must fail. So a
//! case can't pass because its load is too easy.

#![allow(clippy::expect_used, clippy::unwrap_used)] // a missing value fails the test

mod changing;
mod closed_forms;
mod controls;
mod failing;
mod overload;
mod picking;
mod replicas;
mod returning;

use std::time::Duration;

use tower_reverse_proxy::{
    Backends, Retry, RetryPolicy,
    balance::{BackendsBuilder, Balance},
    simulation::{ServiceTime, Simulated, SimulatedMember, SimulatedMembers},
};

fn second(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn name(index: usize) -> String {
    format!("http://10.0.{}.{}:8000", index / 250, index % 250 + 1)
}

/// A member with exponential service times.
fn member(index: usize, workers: usize, mean: Duration) -> SimulatedMember {
    SimulatedMember::new(name(index)).workers(workers).service_time(ServiceTime::exponential(mean))
}

/// Members that are alike.
fn members(n: usize, workers: usize, mean: Duration) -> Vec<SimulatedMember> {
    (0..n).map(|index| member(index, workers, mean)).collect()
}

/// The set of these members, whose draws are the same in every run.
fn backends(n: usize) -> BackendsBuilder {
    Backends::builder((0..n).map(name)).seed(1)
}

/// The stack of an application, with the default policy for retries.
fn stack(backends: BackendsBuilder) -> impl FnOnce(&SimulatedMembers) -> Retry<Balance<Simulated>> {
    stack_of(&backends.build().unwrap(), RetryPolicy::unsent())
}

fn stack_of(
    backends: &Backends,
    policy: RetryPolicy,
) -> impl FnOnce(&SimulatedMembers) -> Retry<Balance<Simulated>> + use<> {
    let backends = backends.clone();
    move |members| {
        let members = members.clone();
        Retry::new(Balance::new(&backends, move |member| members.service(member.name())), policy)
    }
}
