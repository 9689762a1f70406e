//! A backend whose tickets sign in connections, and many users of one client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, http::Request};
use tower_reverse_proxy::{Negotiate, NegotiateLayer, RemoteUser};

use super::{
    realm::{BACKEND, accesses, app, ask_as, send},
    support::Progress,
};

const USERS: [Option<&str>; 4] = [Some("alice"), Some("bob"), Some("erin"), None];
const TASKS: u64 = 24;
const REQUESTS: u64 = 10_000;

#[derive(Default)]
struct Counts {
    answered: AtomicUsize,
    cancelled: AtomicUsize,
}

/// Sends a request of a random user, with or without a body, and cancels some of the requests.
async fn request(app: &Router, random: u64, counts: &Counts) {
    let user = USERS[(random % 4) as usize];
    let builder =
        if random & 16 == 0 { Request::get("/app/krb-conn/stress") } else { Request::post("/app/krb-conn/stress") };
    let body = if random & 16 == 0 { Body::empty() } else { Body::from("x".repeat((random >> 8) as usize % 3000)) };
    let mut request = builder.body(body).unwrap();
    if let Some(user) = user {
        request.extensions_mut().insert(RemoteUser::from(user));
    }
    let patience = match random & 0b1100_0000 {
        0 => Duration::from_micros((random >> 16) % 4000),
        _ => Duration::from_secs(60),
    };
    let Ok(answer) = tokio::time::timeout(patience, send(app, request)).await else {
        counts.cancelled.fetch_add(1, Ordering::Relaxed);
        return;
    };
    counts.answered.fetch_add(1, Ordering::Relaxed);
    match user {
        Some(user) => assert_eq!(answer.user(), format!("{user}@KIT.TEST")),
        None => assert_eq!(answer.status, 401, "nobody is signed in as {answer:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_never_gets_the_connection_of_another() {
    let app = app(NegotiateLayer::with_source(Negotiate::on_behalf(BACKEND).unwrap()));
    for user in USERS.into_iter().flatten() {
        ask_as(&app, "/app/krb-conn/warm", user).await.user();
    }
    let (counts, progress) = (Arc::new(Counts::default()), Progress::default());
    let tasks = (0..TASKS).map(|task| {
        let (app, counts, progress) = (app.clone(), counts.clone(), progress.clone());
        tokio::spawn(async move {
            let mut random = 0x9e37_79b9_7f4a_7c15 ^ (task + 1);
            for _ in 0..REQUESTS / TASKS {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                request(&app, random, &counts).await;
                progress.step();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        progress.of(task).await.unwrap();
    }
    let (answered, cancelled) = (counts.answered.load(Ordering::Relaxed), counts.cancelled.load(Ordering::Relaxed));
    assert!(answered > 5000 && cancelled > 300, "{answered} answered, {cancelled} cancelled");
    // In Apache's log, each connection has one user.
    let mut owners = std::collections::HashMap::<usize, String>::new();
    let log = accesses("/krb-conn/stress", answered).await;
    for access in &log {
        let owner = owners.entry(access.connection).or_insert_with(|| access.user.clone());
        assert_eq!(*owner, access.user, "on connection {}", access.connection);
    }
    println!("{answered} answered, {cancelled} cancelled, over {} connections", owners.len());
}
