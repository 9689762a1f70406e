//! A backend whose tickets sign in connections, and many users of one client.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Uri},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tower::service_fn;
use tower_reverse_proxy::{Client, HostPolicy, Negotiate, NegotiateLayer, RemoteUser, Upstream};

use super::{
    realm::{BACKEND, accesses, app_to, ask_as, origin, send, var},
    support::Progress,
};

const USERS: [Option<&str>; 4] = [Some("alice"), Some("bob"), Some("erin"), None];
const TASKS: u64 = 24;
const REQUESTS: u64 = 10_000;

#[derive(Default)]
struct Counts {
    answered: AtomicUsize,
    cancelled: AtomicUsize,
    closed: AtomicUsize,
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
        0 => Duration::from_micros((random >> 16) % 2000),
        _ => Duration::from_secs(60),
    };
    let Ok(answer) = tokio::time::timeout(patience, send(app, request)).await else {
        counts.cancelled.fetch_add(1, Ordering::Relaxed);
        return;
    };
    if (answer.status.as_u16(), answer.kind()) == (502, "ConnectionClosed") {
        // Apache closes idle connections when its threads are busy, and the request may have been read.
        counts.closed.fetch_add(1, Ordering::Relaxed);
        return;
    }
    counts.answered.fetch_add(1, Ordering::Relaxed);
    match user {
        Some(user) => assert_eq!(answer.user(), format!("{user}@KIT.TEST")),
        None => assert_eq!(answer.status, 401, "nobody is signed in as {answer:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_never_gets_the_connection_of_another() {
    // An address of its own for each connection, because the kernel uses ports again.
    let (apache, number) = (var("KIT_BACKEND_PORT").parse().unwrap(), Arc::new(AtomicUsize::new(0)));
    let connector = service_fn(move |_: Uri| {
        let number = number.fetch_add(1, Ordering::Relaxed) + 2;
        let address = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + u32::try_from(number).unwrap());
        async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind((address, 0).into())?;
            io::Result::Ok(TokioIo::new(socket.connect((Ipv4Addr::LOCALHOST, apache).into()).await?))
        }
    });
    let upstream = Upstream::new(Client::builder(&*origin()).connector(connector)).host(HostPolicy::Backend);
    let app = app_to(upstream, NegotiateLayer::with_source(Negotiate::on_behalf(BACKEND).unwrap()));
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
    let [answered, cancelled, closed] =
        [&counts.answered, &counts.cancelled, &counts.closed].map(|count| count.load(Ordering::Relaxed));
    let outcome = format!("{answered} answered, {cancelled} cancelled, {closed} closed");
    assert!(answered > 5000 && cancelled > 100 && closed < 100, "{outcome}");
    // In Apache's log, each connection has one user.
    let mut owners = std::collections::HashMap::<String, String>::new();
    let log = accesses("/krb-conn/stress", answered).await;
    for access in &log {
        let owner = owners.entry(access.address.clone()).or_insert_with(|| access.user.clone());
        assert_eq!(*owner, access.user, "from {}", access.address);
    }
    println!("{outcome}, over {} connections", owners.len());
}
