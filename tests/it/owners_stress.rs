//! Identities under stress: many principals and none share a client, while requests are cancelled and connections
//! close. A request must never go over a connection that another principal's credentials have signed in.

use std::{
    collections::HashSet,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{body::Body, extract::Request};
use http_body_util::BodyExt;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{net::TcpStream, task::JoinSet, time::sleep};
use tower::ServiceExt;
use tower_reverse_proxy::{Client, ClientBuilder, Error, ErrorKind, Owner, ReverseProxyLayer};

use crate::support::{Dice, Progress, Wire, backend};

/// Whom requests are for. `raw` has connection-based credentials without an owner, each time of another user.
const WHO: [&str; 9] = ["alice", "alice", "bob", "bob", "carol", "carol", "nobody", "nobody", "raw"];

/// What happened, and what must not.
#[derive(Default)]
struct Tally {
    requests: AtomicUsize,
    cancelled: AtomicUsize,
    failed: AtomicUsize,
    tunnels: AtomicUsize,
    /// Requests over a connection that their own principal's credentials had signed in before.
    reused: AtomicUsize,
    /// Anonymous requests over a connection that had served others.
    shared: AtomicUsize,
    tokens: Mutex<HashSet<String>>,
    violations: Mutex<Vec<String>>,
}

impl Tally {
    fn count(&self, count: fn(&Self) -> &AtomicUsize) -> usize {
        count(self).load(Ordering::Relaxed)
    }

    fn violated(&self, rule: String) {
        self.violations.lock().unwrap().push(rule);
    }
}

fn add(count: &AtomicUsize) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// A backend that takes all requests on a connection for those of the user whose credentials came first. It responds
/// with that user, and ends some connections: after `calm` requests.
async fn bound(tally: Arc<Tally>, calm: usize) -> String {
    let connections = AtomicUsize::new(0);
    backend(move |wire| {
        let connection = connections.fetch_add(1, Ordering::Relaxed);
        let tally = tally.clone();
        async move {
            #[cfg(feature = "http2")]
            {
                let mut preface = [0; 3];
                if matches!(wire.stream.peek(&mut preface).await, Ok(3)) && &preface == b"PRI" {
                    return over_http2(wire.stream, tally).await;
                }
            }
            talk(wire, &tally, connection, calm).await;
        }
    })
    .await
}

async fn talk(mut wire: Wire<TcpStream>, tally: &Tally, connection: usize, calm: usize) {
    let mut dice = Dice::new(connection as u64);
    let (mut speaker, mut served) = (None::<String>, 0);
    // Responses are written in two pieces.
    wire.stream.set_nodelay(true).unwrap();
    while let Some(request) = wire.message().await {
        match request.field("authorization").and_then(|credentials| credentials.strip_prefix("Negotiate ")) {
            Some(token) => {
                let (user, _) = token.split_once('/').unwrap();
                if !tally.tokens.lock().unwrap().insert(token.to_owned()) {
                    tally.violated(format!("{token} came twice"));
                }
                match &speaker {
                    None if served > 0 && !user.starts_with("raw") => {
                        tally.violated(format!("{user} on a connection that had no owner"));
                    }
                    None => {}
                    Some(speaker) if speaker == user && !user.starts_with("raw") => add(&tally.reused),
                    Some(speaker) => tally.violated(format!("{user} on a connection of {speaker}")),
                }
                speaker.get_or_insert_with(|| user.to_owned());
            }
            None if speaker.is_some() => tally.violated(format!("nobody on a connection of {speaker:?}")),
            None if served > 0 => add(&tally.shared),
            None => {}
        }
        served += 1;
        let speaker = speaker.as_deref().unwrap_or("nobody");
        if request.field("upgrade").is_some() {
            wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: who\r\n\r\n").await;
            // Each byte is a question.
            loop {
                match &*wire.bytes(1).await {
                    b"?" => wire.send(format!("{speaker:10}").as_bytes()).await,
                    b"" => return,
                    _ => return tally.violated(format!("a request in a tunnel of {speaker}")),
                }
            }
        }
        let fate = if tally.count(|tally| &tally.requests) < calm { 31 } else { dice.roll(32) };
        dice.pause().await;
        if fate == 0 {
            return;
        }
        let answer = match dice.roll(2) {
            0 => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{speaker}", speaker.len()),
            _ => {
                format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{speaker}\r\n0\r\n\r\n",
                    speaker.len()
                )
            }
        };
        let (first, rest) = answer.split_at(dice.roll(answer.len()));
        wire.send(first.as_bytes()).await;
        dice.pause().await;
        wire.send(rest.as_bytes()).await;
        match fate {
            1..3 => return,
            3 => return sleep(Duration::from_millis(1)).await,
            _ => {}
        }
    }
}

/// A connection that clients share: no credentials may come over it.
#[cfg(feature = "http2")]
async fn over_http2(stream: TcpStream, tally: Arc<Tally>) {
    use axum::response::Response;
    use hyper_util::{rt::TokioExecutor, server::conn::auto};

    let service = tower::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        add(&tally.shared);
        if let Some(credentials) = request.headers().get("authorization")
            && credentials.as_bytes().starts_with(b"Negotiate")
        {
            tally.violated(format!("{credentials:?} over HTTP/2"));
        }
        async { Ok::<_, std::convert::Infallible>(Response::new(Body::from("nobody"))) }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
}

/// Polls a future so many times at most. `None` if that isn't enough: then it's dropped.
async fn at_most<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|cx| {
        polled += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polled >= polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Sends a request, and returns the user that the backend takes its connection for.
async fn speaker(client: Client, request: Request, dice: &mut Dice) -> Result<String, Error> {
    let response = client.oneshot(request).await?;
    dice.pause().await;
    Ok(String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned())
}

/// Opens a tunnel through a front, and returns the user that the backend takes its connection for. `None` if the upgrade
/// failed.
async fn tunnelled(client: Client, request: Request, tally: &Tally, dice: &mut Dice) -> Option<String> {
    let owner = request.extensions().get::<Owner>().cloned();
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    head.push_str(&format!("content-length: {}\r\n\r\n{}", body.len(), String::from_utf8_lossy(&body)));
    let proxy = ReverseProxyLayer::new(client).allow_upgrade("who").into_service();
    let service = tower::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        if let Some(owner) = owner.clone() {
            request.extensions_mut().insert(owner);
        }
        proxy.clone().oneshot(request.map(Body::new))
    });
    let (ours, theirs) = tokio::io::duplex(1024);
    let server = hyper::server::conn::http1::Builder::new();
    tokio::spawn(server.serve_connection(TokioIo::new(theirs), TowerToHyperService::new(service)).with_upgrades());
    let mut wire = Wire::new(ours);
    wire.send(head.as_bytes()).await;
    let head = wire.head().await.unwrap();
    dice.pause().await;
    if !head.starts_with("HTTP/1.1 101") {
        assert!(head.starts_with("HTTP/1.1 502"), "{head}");
        return None;
    }
    add(&tally.tunnels);
    let mut speaker = Vec::new();
    for _ in 0..1 + dice.roll(3) {
        wire.send(b"?").await;
        speaker = wire.bytes(10).await;
        dice.pause().await;
    }
    Some(String::from_utf8_lossy(&speaker).trim().to_owned())
}

/// Sends requests one after the other, each for a random principal.
async fn requests(client: Client, seeds: std::ops::Range<u64>, tally: Arc<Tally>, progress: Progress) {
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let mut who = WHO[dice.roll(WHO.len())].to_owned();
        let builder = Request::builder().uri("/who").header("host", "backend.example");
        let builder = match dice.roll(16) {
            0 => builder.header("connection", "upgrade").header("upgrade", "who"),
            _ => builder,
        };
        let (method, body) = [("GET", ""), ("GET", ""), ("POST", "hi")][dice.roll(3)];
        let mut request = builder.method(method).body(Body::from(body)).unwrap();
        match &*who {
            // Credentials that sign in their request leave the connection without an owner.
            "nobody" if dice.roll(2) == 0 => {
                request.headers_mut().insert("authorization", "Basic YTpi".parse().unwrap());
                request.extensions_mut().insert(Owner::Request);
            }
            "nobody" => {}
            "raw" => who = format!("raw{seed}"),
            _ => drop(request.extensions_mut().insert(Owner::Principal((*who).into()))),
        }
        if who != "nobody" {
            let token = format!("Negotiate {who}/{seed}");
            request.headers_mut().insert("authorization", token.parse().unwrap());
        }
        let polls = if dice.roll(3) == 0 { 1 + dice.roll(6) } else { usize::MAX };
        add(&tally.requests);
        if request.headers().contains_key("upgrade") {
            match at_most(polls, tunnelled(client.clone(), request, &tally, &mut dice)).await {
                None => add(&tally.cancelled),
                Some(Some(speaker)) => assert_eq!(speaker, who, "{seed}"),
                Some(None) => add(&tally.failed),
            }
            progress.step();
            continue;
        }
        match at_most(polls, speaker(client.clone(), request, &mut dice)).await {
            None => add(&tally.cancelled),
            Some(Ok(speaker)) => assert_eq!(speaker, who, "{seed}"),
            Some(Err(error)) => {
                let kind = error.kind();
                assert!(matches!(kind, ErrorKind::ConnectionClosed | ErrorKind::ResponseBody), "{seed}: {error:?}");
                add(&tally.failed);
            }
        }
        progress.step();
    }
}

/// Sends `tasks * each` requests in so many tasks.
async fn no_stranger(tasks: u64, each: u64, options: impl FnOnce(ClientBuilder) -> ClientBuilder) {
    let (tally, progress) = (Arc::<Tally>::default(), Progress::default());
    let total = usize::try_from(tasks * each).unwrap();
    let builder = Client::builder(bound(tally.clone(), total / 2).await).connect_timeout(None).queue_timeout(None);
    let client = options(builder).build().unwrap();
    let mut running = JoinSet::new();
    for task in 0..tasks {
        let seeds = task * each..(task + 1) * each;
        running.spawn(requests(client.clone(), seeds, tally.clone(), progress.clone()));
    }
    progress.of(async { while running.join_next().await.transpose().unwrap().is_some() {} }).await;
    assert_eq!(*tally.violations.lock().unwrap(), <[String; 0]>::default());
    let at_least = |name, count: fn(&Tally) -> &AtomicUsize, least: usize| {
        let count = tally.count(count);
        assert!(count >= least, "{count} {name}, expected {least}");
    };
    // All of it has happened.
    at_least("reused", |tally| &tally.reused, total / 10);
    at_least("shared", |tally| &tally.shared, total / 50);
    at_least("tunnels", |tally| &tally.tunnels, total / 50);
    at_least("cancelled", |tally| &tally.cancelled, total / 50);
    at_least("failed", |tally| &tally.failed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_goes_over_a_connection_of_another_principal() {
    no_stranger(32, 313, |client| client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_goes_over_a_connection_of_another_principal_at_the_connection_limit() {
    no_stranger(32, 100, |client| client.max_connections(6)).await;
}

#[cfg(feature = "http2")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_goes_over_a_connection_of_another_principal_beside_http2() {
    for limit in [None, Some(6)] {
        no_stranger(32, 40, |client| client.http2(true).max_connections(limit)).await;
    }
}
