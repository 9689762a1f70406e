//! Replaces three backends, one after the other, while clients send requests. None of these fails.
//!
//! ```sh
//! cargo run --example rolling_deploy
//! ```
#![allow(clippy::print_stdout)]

use std::{collections::BTreeMap, error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request},
    http::StatusCode,
    routing::get,
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::ServiceExt;
use tower_reverse_proxy::{Backends, ReverseProxyLayer, balance::MemberStatus};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_ansi(false).init();
    let mut servers = [Server::start("v1")?, Server::start("v1")?, Server::start("v1")?];
    // A backend that is new begins with a part of its share, because its caches are cold. The default is 10 s.
    let slow_start = Duration::from_secs(1);
    let backends = Backends::builder(servers.iter().map(|server| &server.origin)).slow_start(slow_start).build()?;
    let app = Router::new().layer(ReverseProxyLayer::balanced(&backends).prefix("/shop"));

    let end = Arc::new(Notify::new());
    let clients = tokio::spawn(clients(app, end.clone()));
    for number in 0..servers.len() {
        sleep(slow_start).await;
        replace(&backends, &mut servers, number).await?;
    }
    sleep(slow_start).await;
    end.notify_one();
    for (answer, count) in clients.await? {
        println!("{count} requests: {answer}");
    }
    Ok(())
}

/// Replaces one server. Meanwhile the others get its requests: where they can't, start the new one before the old one
/// drains.
async fn replace(backends: &Backends, servers: &mut [Server], number: usize) -> Result<(), Box<dyn Error>> {
    let old = &servers[number];
    println!("{} drains: {}", old.origin, status(backends));
    // It gets no more requests from here on. A download may take any time, so this doesn't wait for ever.
    match timeout(Duration::from_secs(30), backends.drain(&old.origin)).await {
        Ok(_) => println!("{} has ended its requests", old.origin),
        Err(_) => println!("{} is stopped with requests under way", old.origin),
    }
    // This stops the old one, with its connections.
    servers[number] = Server::start("v2")?;
    backends.set(servers.iter().map(|server| &server.origin))?;
    println!("{} takes its place", servers[number].origin);
    Ok(())
}

fn status(backends: &Backends) -> String {
    let line = |member: &MemberStatus| format!("{} with {} in flight", member.state(), member.in_flight());
    backends.status().iter().map(line).collect::<Vec<_>>().join(", ")
}

/// A backend. It has a runtime of its own, so that its connections end with it, as those of a process do.
struct Server {
    origin: String,
    runtime: Option<Runtime>,
}

impl Server {
    /// Starts a backend that takes a while to answer with its version.
    fn start(version: &'static str) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let origin = format!("http://{}", listener.local_addr()?);
        let answer = async move || {
            sleep(Duration::from_millis(100)).await;
            version
        };
        let app = Router::new().route("/shop/", get(answer));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.spawn(async move { axum::serve(TcpListener::from_std(listener)?, app).await });
        Ok(Self { origin, runtime: Some(runtime) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Sends a request every 5 milliseconds until the end, and counts the answers.
async fn clients(app: Router, end: Arc<Notify>) -> BTreeMap<String, usize> {
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            () = end.notified() => break,
            () = sleep(Duration::from_millis(5)) => drop(requests.spawn(answer(app.clone()))),
        }
    }
    let mut counts = BTreeMap::new();
    for answer in requests.join_all().await {
        *counts.entry(answer).or_default() += 1;
    }
    counts
}

async fn answer(app: Router) -> String {
    let request = Request::builder().uri("/shop/").header("host", "front.example");
    let request = request.extension(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 50_000)))).body(Body::empty());
    let Ok(response) = app.oneshot(request.unwrap_or_default()).await;
    let status = response.status();
    match to_bytes(response.into_body(), 1024).await {
        Ok(version) if status == StatusCode::OK => format!("answered by {}", String::from_utf8_lossy(&version)),
        _ => format!("failed with {status}"),
    }
}
