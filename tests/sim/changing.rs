//! Sets that change: S11, S12.

use std::{convert::Infallible, future::ready};

use axum::{
    body::{Body, to_bytes},
    http::{Request, Response},
};
use tokio::time::sleep;
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{
    Backends, BoxUpstream, RetryPolicy, ReverseProxy, ReverseProxyLayer,
    balance::{Balance, Member, Pick, Sticky},
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

/// Members that respond with their name, behind the proxy, which sets the cookies.
fn named(backends: &Backends) -> ReverseProxy<BoxUpstream> {
    let balance = Balance::new(backends, |member| {
        let name = member.name().to_owned();
        service_fn(move |_: Request<Body>| ready(Ok::<_, Infallible>(Response::new(Body::from(name.clone())))))
    });
    ReverseProxyLayer::with_upstream(balance).boxed().into_service()
}

/// Sends the request of a session. Returns the member that responded, and the cookie if one is set.
async fn visit(proxy: &ReverseProxy<BoxUpstream>, session: usize, cookie: Option<&str>) -> (String, Option<String>) {
    let mut request = Request::get(format!("/{session}")).header("host", "front.example");
    if let Some(cookie) = cookie {
        request = request.header("cookie", cookie);
    }
    let Ok(response) = proxy.clone().oneshot(request.body(Body::empty()).unwrap()).await;
    let set =
        response.headers().get("set-cookie").map(|set| set.to_str().unwrap().split(';').next().unwrap().to_owned());
    let body = to_bytes(response.into_body(), 1000).await.unwrap();
    (String::from_utf8(body.to_vec()).unwrap(), set)
}

const SESSIONS: usize = 10_000;

/// Ten members, of which the fourth is replaced by another one.
fn before_and_after() -> [Vec<String>; 2] {
    let before: Vec<_> = (0..10).map(name).collect();
    let after = (0..11).filter(|index| *index != 3).map(name).collect();
    [before, after]
}

/// S12, with cookies.
#[tokio::test(start_paused = true)]
async fn only_the_sessions_of_a_removed_member_move() {
    let [before, after] = before_and_after();
    let sticky = Sticky::cookie("backend", [7; 32]).unwrap();
    let backends = Backends::builder(before).sticky(sticky).seed(1).build().unwrap();
    let proxy = named(&backends);
    let mut sessions = Vec::new();
    for session in 0..SESSIONS {
        let (member, cookie) = visit(&proxy, session, None).await;
        sessions.push((member, cookie.unwrap()));
    }
    backends.set(after).unwrap();
    let mut moved = 0;
    for (session, (member, cookie)) in sessions.iter().enumerate() {
        let (now, set) = visit(&proxy, session, Some(cookie)).await;
        assert_eq!(now != *member, *member == name(3), "{member} {now}");
        assert_eq!(set.is_some(), now != *member);
        moved += usize::from(now != *member);
    }
    assert!((900..1_100).contains(&moved), "{moved}");
}

/// S12, by the path of the request. The keys of the removed member move, and of each other member one in eleven goes to the
/// new one.
#[tokio::test(start_paused = true)]
async fn few_keys_move_when_a_member_is_replaced() {
    let [before, after] = before_and_after();
    let backends = Backends::builder(&before).pick(Pick::hash_by_path()).seed(1).build().unwrap();
    let proxy = named(&backends);
    let mut members = Vec::new();
    for session in 0..SESSIONS {
        members.push(visit(&proxy, session, None).await.0);
    }
    backends.set(&after).unwrap();
    let (mut moved, mut gone) = (0, 0);
    for (session, member) in members.iter().enumerate() {
        let now = visit(&proxy, session, None).await.0;
        if *member == name(3) {
            gone += 1;
        } else if now != *member {
            assert_eq!(now, name(10));
            moved += 1;
        }
    }
    let share = |count: usize| count as f64 / SESSIONS as f64;
    assert!((share(gone) - 0.1).abs() < 0.02 && share(moved) <= 1.0 / 11.0 + 0.02, "{gone} {moved}");

    // The control: the key modulo the number of members, after one of ten is gone.
    let nine: Vec<_> = before.iter().filter(|member| **member != name(3)).collect();
    let by_remainder = (0..SESSIONS).filter(|session| before[session % 10] != *nine[session % 9]).count();
    assert!(share(by_remainder) >= 0.8, "{by_remainder}");
}

/// S12: half of the requests have one key. Its member hands on what is more than 1.25 times the average of that time, which
/// falls when requests end. Without the limit, it would have 5.5 times the average.
#[tokio::test(start_paused = true)]
async fn a_popular_key_overloads_no_member() {
    let request = |number: u64| {
        let path = if number.is_multiple_of(2) { "/popular".to_owned() } else { format!("/{number}") };
        Request::get(path).body(Body::empty()).unwrap()
    };
    let simulation =
        Simulation::new(22).rate(1000.0).lasting(second(10)).request(request).members(members(10, 500, ms(200)));
    let backends = Backends::builder((0..10).map(name)).pick(Pick::hash_by_path()).seed(1).build().unwrap();
    let most = tokio::spawn({
        let backends = backends.clone();
        async move {
            let mut most = 0.0_f64;
            for _ in 0..70 {
                sleep(ms(100)).await;
                let counts: Vec<_> = backends.status().iter().map(|member| f64::from(member.in_flight())).collect();
                let average = counts.iter().sum::<f64>() / 10.0;
                // The limit is rounded up.
                if average > 10.0 {
                    most = most.max((counts.iter().copied().fold(0.0, f64::max) - 1.0) / average);
                }
            }
            most
        }
    });
    let report = simulation.run(stack_of(&backends, RetryPolicy::unsent())).await;
    let most = most.await.unwrap();
    assert_eq!(report.failed(), 0);
    assert!(most <= 1.4, "{most}");
}
