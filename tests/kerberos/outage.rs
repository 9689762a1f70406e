//! A KDC that accepts connections and doesn't answer, because its process is stopped.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use axum::Router;
use tower_reverse_proxy::{Negotiate, NegotiateLayer};

use super::{
    realm::{BACKEND, FRONT, app, ask, ask_as, unseen, var},
    support::within,
};

/// The KDC is stopped until this is dropped.
struct Stopped;

impl Stopped {
    fn now() -> Self {
        signal("-STOP");
        Self
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("-CONT");
    }
}

fn signal(name: &str) {
    assert!(Command::new("kill").args([name, &var("KIT_KDC_PID")]).status().unwrap().success());
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// Sends a hundred requests at once. All have to fail within 6 s, while `/local` responds, and start no threads.
async fn a_hundred_fail(app: &Router, user: impl Fn(usize) -> Option<String>) {
    let before = threads();
    let started = Instant::now();
    let requests: Vec<_> = (0..100)
        .map(|number| {
            let (app, user) = (app.clone(), user(number));
            tokio::spawn(async move {
                match user {
                    Some(user) => ask_as(&app, "/app/krb/outage", &user).await,
                    None => ask(&app, "/app/krb/outage").await,
                }
            })
        })
        .collect();
    let (mut slowest, mut most) = (Duration::ZERO, 0);
    while !requests.iter().all(tokio::task::JoinHandle::is_finished) {
        let asked = Instant::now();
        assert_eq!(ask(app, "/local").await.text, "local");
        slowest = slowest.max(asked.elapsed());
        most = most.max(threads());
        assert!(started.elapsed() < Duration::from_secs(6), "requests still wait");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for request in requests {
        let answer = within(request).await.unwrap();
        match answer.kind() {
            "CredentialsTimeout" => answer.failed(504, "CredentialsTimeout"),
            _ => answer.failed(503, "CredentialsBusy"),
        }
        *kinds.entry(answer.kind().to_owned()).or_default() += 1;
    }
    println!("{kinds:?} in {:?}; /local {slowest:?}; {before} threads before, {most} at most", started.elapsed());
    assert!(kinds["CredentialsTimeout"] > 0);
    assert!(slowest < Duration::from_millis(500), "/local took {slowest:?}");
    assert!(most <= before + 4, "{before} threads before, {most} during the outage");
    unseen("/krb/outage").await;
}

/// Waits until requests are served again.
async fn recovers(app: &Router, user: Option<&str>, name: &str) {
    let started = Instant::now();
    loop {
        let answer = match user {
            Some(user) => ask_as(app, "/app/krb/recovered", user).await,
            None => ask(app, "/app/krb/recovered").await,
        };
        if answer.status == 200 {
            assert_eq!(answer.user(), name);
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(15), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Lets the library's pending calls end: one that is under way at the exit of the process may abort it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("recovered after {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_requests_of_the_front_fail_in_time_and_recover() {
    let app = app(NegotiateLayer::with_source(Negotiate::own(BACKEND).unwrap()));
    let stopped = Stopped::now();
    a_hundred_fail(&app, |_| None).await;
    drop(stopped);
    recovers(&app, None, FRONT).await;
    // With a cached ticket, requests need no KDC.
    let _stopped = Stopped::now();
    assert_eq!(ask(&app, "/app/krb/warm").await.user(), FRONT);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_hundred_users_fail_in_time_and_recover() {
    let app = app(NegotiateLayer::with_source(Negotiate::on_behalf(BACKEND).unwrap()));
    assert_eq!(ask_as(&app, "/app/krb/warm", "bob").await.user(), "bob@KIT.TEST");
    let stopped = Stopped::now();
    a_hundred_fail(&app, |number| Some(format!("user{number}"))).await;
    // The threads are still in their calls. A user who has a ticket needs none.
    assert_eq!(ask_as(&app, "/app/krb/warm", "bob").await.user(), "bob@KIT.TEST");
    drop(stopped);
    recovers(&app, Some("alice"), "alice@KIT.TEST").await;
}
