//! One queue for both protocols: requests for HTTP/1.1, for streams of HTTP/2, and for HTTP/2 connections of their own.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, http::Method};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinHandle, JoinSet},
    time::{Instant, sleep},
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, Owner};

use crate::support::{Pipe, others_run, within};

/// How a request demands its connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Demand {
    /// HTTP/1.1, because its connection belongs to an owner.
    Owned(&'static str),
    /// A stream of an HTTP/2 connection.
    Shared,
    /// An HTTP/2 connection of its own, for a WebSocket. The backend refuses it.
    Alone,
}

impl Demand {
    fn request(self, target: &str) -> Request {
        let mut request = Request::get(target).header("host", "backend.example").body(Body::empty()).unwrap();
        match self {
            Self::Owned(owner) => drop(request.extensions_mut().insert(Owner::Principal(owner.into()))),
            Self::Shared => {}
            Self::Alone => {
                for (name, value) in [
                    ("connection", "upgrade"),
                    ("upgrade", "websocket"),
                    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                    ("sec-websocket-version", "13"),
                ] {
                    request.headers_mut().insert(name, value.parse().unwrap());
                }
            }
        }
        request
    }

    async fn send(self, client: Client, target: String) {
        let response = client.oneshot(self.request(&target)).await.unwrap();
        let status = if self == Self::Alone { StatusCode::FORBIDDEN } else { StatusCode::OK };
        assert_eq!(response.status(), status, "{target}");
        response.into_body().collect().await.unwrap();
    }
}

/// A backend in memory that speaks both protocols, with extended CONNECT.
#[derive(Clone, Default)]
struct BothProtocols {
    /// The targets, in the order in which the requests came.
    targets: Arc<Mutex<Vec<String>>>,
    /// Lets the responses to `/held` go.
    let_go: Arc<Notify>,
    open: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    /// The tasks of the connections, in the order in which these were opened.
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl BothProtocols {
    /// A client of the backend, whose HTTP/2 connections have so many streams, and whose responses take so long.
    fn client(&self, connections: usize, streams: u32, takes: Duration) -> Client {
        let this = self.clone();
        let connector = service_fn(move |_| {
            let (ours, theirs) = Pipe::pair();
            let handler = this.clone();
            let app = Router::new().fallback(move |request: Request| handler.clone().respond(request, takes));
            let counted = Counted::new(&this);
            let connection = tokio::spawn(async move {
                let _counted = counted;
                let mut server = auto::Builder::new(TokioExecutor::new());
                server.http2().enable_connect_protocol().max_concurrent_streams(streams);
                let _ = server.serve_connection(TokioIo::new(theirs), TowerToHyperService::new(app)).await;
            });
            this.connections.lock().unwrap().push(connection.abort_handle());
            async { Ok::<_, io::Error>(ours) }
        });
        let client = Client::builder("http://backend.example").connector(connector).http2(true);
        client.max_connections(connections).queue_timeout(None).pool_idle_timeout(None).build().unwrap()
    }

    async fn respond(self, request: Request, takes: Duration) -> StatusCode {
        let target = request.uri().path().to_owned();
        self.targets.lock().unwrap().push(target.clone());
        if target == "/held" {
            self.let_go.notified().await;
        }
        sleep(takes).await;
        // The extended CONNECT of a WebSocket.
        if request.method() == Method::CONNECT { StatusCode::FORBIDDEN } else { StatusCode::OK }
    }
}

/// One of the open connections.
struct Counted(BothProtocols);

impl Counted {
    fn new(backend: &BothProtocols) -> Self {
        backend.most.fetch_max(backend.open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Self(backend.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Begins a request, and lets it proceed as far as it can.
async fn begin(client: &Client, demand: Demand, target: &str) -> JoinHandle<()> {
    let exchange = tokio::spawn(demand.send(client.clone(), target.to_owned()));
    others_run().await;
    exchange
}

#[tokio::test(start_paused = true)]
async fn requests_of_both_protocols_wait_in_one_queue() {
    let backend = BothProtocols::default();
    let client = backend.client(1, 100, Duration::ZERO);
    let mut exchanges = vec![begin(&client, Demand::Shared, "/held").await];
    exchanges.push(begin(&client, Demand::Owned("alice"), "/alice").await);
    for number in 0..11 {
        exchanges.push(begin(&client, Demand::Shared, &format!("/{number}")).await);
    }
    exchanges.push(begin(&client, Demand::Alone, "/websocket").await);
    exchanges.push(begin(&client, Demand::Owned("bob"), "/bob").await);
    exchanges.push(begin(&client, Demand::Shared, "/last").await);
    // The connection has free streams, but later requests overtake the first one of the queue eight times only.
    let overtaking = ["/held", "/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7"];
    assert_eq!(*backend.targets.lock().unwrap(), overtaking);
    backend.let_go.notify_one();
    for exchange in exchanges {
        within(exchange).await.unwrap();
    }
    // The stream of the last one was free before it was the WebSocket's turn.
    let in_order = ["/alice", "/8", "/9", "/10", "/last", "/websocket", "/bob"];
    assert_eq!(backend.targets.lock().unwrap()[overtaking.len()..], in_order);
    assert_eq!(backend.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_request_at_the_front_no_longer_delays_later_ones() {
    let backend = BothProtocols::default();
    let client = backend.client(1, 100, Duration::ZERO);
    let held = begin(&client, Demand::Shared, "/held").await;
    let first = begin(&client, Demand::Owned("alice"), "/alice").await;
    let mut exchanges = Vec::new();
    for number in 0..11 {
        exchanges.push(begin(&client, Demand::Shared, &format!("/{number}")).await);
    }
    assert_eq!(backend.targets.lock().unwrap().len(), 9);
    first.abort();
    for exchange in exchanges {
        within(exchange).await.unwrap();
    }
    backend.let_go.notify_one();
    within(held).await.unwrap();
    assert_eq!(backend.targets.lock().unwrap().len(), 12);
}

#[tokio::test(start_paused = true)]
async fn an_unused_connection_makes_room_also_behind_a_closed_one() {
    for closed in [0, 1] {
        let backend = BothProtocols::default();
        // One stream a connection.
        let client = backend.client(2, 1, Duration::ZERO);
        let held = [begin(&client, Demand::Shared, "/held").await, begin(&client, Demand::Shared, "/held").await];
        for exchange in held {
            backend.let_go.notify_one();
            within(exchange).await.unwrap();
        }
        assert_eq!(backend.open.load(Ordering::SeqCst), 2);
        backend.connections.lock().unwrap()[closed].abort();
        others_run().await;
        // One takes the permit of the closed connection, and one needs that of the other.
        let alice = begin(&client, Demand::Owned("alice"), "/held").await;
        let bob = begin(&client, Demand::Owned("bob"), "/bob").await;
        within(bob).await.unwrap();
        backend.let_go.notify_one();
        within(alice).await.unwrap();
        assert_eq!(backend.most.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn no_kind_of_request_starves() {
    const KINDS: [Demand; 4] = [Demand::Owned("alice"), Demand::Owned("bob"), Demand::Shared, Demand::Alone];
    for (connections, endless) in (1..=3).flat_map(|connections| KINDS.map(|kind| (connections, kind))) {
        let backend = BothProtocols::default();
        let client = backend.client(connections, 4, Duration::from_millis(2));
        let is_over = Arc::new(AtomicBool::new(false));
        let mut load = JoinSet::new();
        for number in 0..8 {
            let (client, is_over) = (client.clone(), is_over.clone());
            load.spawn(async move {
                // They overlap, so that there is always one under way, and one that waits.
                sleep(Duration::from_micros(number * 700)).await;
                while !is_over.load(Ordering::SeqCst) {
                    endless.send(client.clone(), "/endless".to_owned()).await;
                }
            });
        }
        sleep(Duration::from_millis(50)).await;
        let mut others = JoinSet::new();
        for kind in KINDS.into_iter().filter(|kind| *kind != endless) {
            let client = client.clone();
            others.spawn(async move {
                for _ in 0..10 {
                    let before = Instant::now();
                    kind.send(client.clone(), "/other".to_owned()).await;
                    let waited = before.elapsed();
                    assert!(waited < Duration::from_millis(200), "{kind:?} waits {waited:?} beside {endless:?}");
                }
            });
        }
        while let Some(other) = within(others.join_next()).await {
            other.unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
        while let Some(load) = within(load.join_next()).await {
            load.unwrap();
        }
        assert!(backend.most.load(Ordering::SeqCst) <= connections);
    }
}
