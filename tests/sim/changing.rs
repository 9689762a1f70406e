//! Sets that change: S11, S12.

use tokio::time::sleep;
use tower_reverse_proxy::{
    Backends, RetryPolicy,
    balance::Member,
    simulation::{Report, Simulation},
};

use crate::{members, ms, name, second, stack_of};

/// S11: every ten seconds, 100 of 1,000 members are replaced.
#[tokio::test(start_paused = true)]
async fn members_that_come_and_go_lose_no_request() {
    let set = |step: usize| (step * 100..step * 100 + 1000).map(|index| Member::named(name(index)));
    let simulation = Simulation::new(21).rate(1000.0).lasting(second(50)).members(members(1400, 4, ms(50)));
    let backends = Backends::builder(set(0)).seed(1).build().unwrap();
    let changes = tokio::spawn({
        let backends = backends.clone();
        async move {
            for step in 1..=4 {
                sleep(second(10)).await;
                backends.set(set(step)).unwrap();
            }
        }
    });
    let report = simulation.run(stack_of(&backends, RetryPolicy::unsent())).await;
    changes.await.unwrap();
    assert_eq!(report.succeeded(), report.offered(), "{report}");
    for step in 1..=4 {
        let attempts = |part: &Report| -> usize {
            (step * 100 - 100..step * 100).map(|index| part.attempts_of(&name(index))).sum()
        };
        let change = second(10 * step as u64);
        assert!(attempts(&report.during(..change)) > 500, "{report}");
        // From the millisecond after the change on.
        assert_eq!(attempts(&report.during(change + ms(2)..)), 0, "the members that go in step {step}");
    }
    // Those that were removed are forgotten when their last exchange has ended.
    assert_eq!(backends.status().len(), 1000);
}
