//! Connections with an owner: which requests may use them, how many are kept, and what is resent.

use std::{
    future::Future,
    io,
    sync::atomic::Ordering,
    task::{Context, Waker},
    time::Duration,
};

use axum::{Extension, Router, body::Body, extract::Request};
use http_body_util::BodyExt;
use tokio::{
    io::DuplexStream,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinHandle,
    time::sleep,
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, ClientBuilder, Error, ErrorKind, Owner, ReverseProxy, ReverseProxyLayer, Tunnels};

use crate::support::{Memory, Pipe, Wire, client as connect, front, others_run, pipes::Hook, within};

fn request(target: &str, owner: Option<&str>, token: usize) -> Request {
    let mut request = Request::get(target).header("host", "backend.example").body(Body::empty()).unwrap();
    if let Some(owner) = owner {
        request.headers_mut().insert("authorization", format!("Negotiate {owner}-{token}").parse().unwrap());
        request.extensions_mut().insert(Owner::Principal(owner.into()));
    }
    request
}

async fn send(client: Client, request: Request) -> Result<String, Error> {
    let response = within(client.oneshot(request)).await?;
    assert_eq!(response.status(), 200);
    Ok(String::from_utf8(within(response.into_body().collect()).await?.to_bytes().into()).unwrap())
}

/// Returns the number of the connection.
async fn get(client: &Client, owner: Option<&str>) -> String {
    send(client.clone(), request("/x", owner, 0)).await.unwrap()
}

/// Begins an exchange, and lets it proceed as far as it can.
async fn begin(client: &Client, target: &str, owner: Option<&str>) -> JoinHandle<Result<String, Error>> {
    let exchange = tokio::spawn(send(client.clone(), request(target, owner, 0)));
    others_run().await;
    exchange
}

/// Lets the pool observe that the backend keeps idle connections. Without that, it reuses none for requests that
/// can't be replayed.
async fn observe(client: &Client) {
    get(client, None).await;
    sleep(Duration::from_millis(1900)).await;
}

fn open(memory: &Memory) -> usize {
    memory.open.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_reused_by_its_owner_only() {
    let memory = Memory::new(99);
    let client = memory.client().build().unwrap();
    observe(&client).await;
    for _ in 0..3 {
        for (owner, connection) in [(Some("alice"), "2"), (Some("bob"), "3"), (None, "1"), (Some("Alice"), "4")] {
            assert_eq!(get(&client, owner).await, connection, "{owner:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_owner_is_not_the_credentials() {
    let memory = Memory::new(99);
    let client = memory.client().build().unwrap();
    observe(&client).await;
    let with = |owner: Option<Owner>, credentials: &'static str| {
        let mut request = request("/x", None, 0);
        request.headers_mut().insert("authorization", credentials.parse().unwrap());
        if let Some(owner) = owner {
            request.extensions_mut().insert(owner);
        }
        send(client.clone(), request)
    };
    let alice = || Some(Owner::Principal("alice".into()));
    // Each request has other credentials, which is what Negotiate does.
    assert_eq!(with(alice(), "Negotiate YII1").await.unwrap(), "2");
    assert_eq!(with(alice(), "Negotiate YII2").await.unwrap(), "2");
    assert_eq!(with(alice(), "Basic YTpi").await.unwrap(), "2");
    // Credentials that sign in a request share all connections.
    assert_eq!(with(Some(Owner::Request), "Basic YTpi").await.unwrap(), "1");
    assert_eq!(with(None, "Basic YzpkCg==").await.unwrap(), "1");
    // Connection-based credentials without an owner are used on a connection that is closed afterwards.
    assert_eq!(with(Some(Owner::Request), "Negotiate YII3").await.unwrap(), "1");
    assert_eq!(with(None, "Basic YTpi").await.unwrap(), "3");
    assert_eq!(with(alice(), "Negotiate YII4").await.unwrap(), "2");
    others_run().await;
    assert_eq!(open(&memory), 2);
}

#[tokio::test(start_paused = true)]
async fn four_connections_of_an_owner_stay_idle() {
    for (max_idle, each) in [(64, 4), (2, 2), (0, 0)] {
        let memory = Memory::new(99);
        let client = memory.client().pool_max_idle(max_idle).build().unwrap();
        let mut exchanges = Vec::new();
        for owner in ["alice", "bob"] {
            for _ in 0..7 {
                exchanges.push(begin(&client, "/held", Some(owner)).await);
            }
        }
        assert_eq!(open(&memory), 14);
        memory.answers.add_permits(14);
        for exchange in exchanges {
            within(exchange).await.unwrap().unwrap();
        }
        // Surplus connections aren't closed at once, because under load they are all reused.
        others_run().await;
        assert_eq!(open(&memory), if max_idle == 0 { 0 } else { 14 });
        sleep(Duration::from_secs(3)).await;
        assert_eq!(open(&memory), 2 * each, "{max_idle}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_reuse_no_connection_leave_four_idle() {
    let memory = Memory::new(99);
    let client = memory.client().build().unwrap();
    // Before the pool has observed anything, each request needs a new connection.
    for connection in 1..20 {
        assert_eq!(get(&client, Some("alice")).await, connection.to_string());
        others_run().await;
        assert!(open(&memory) <= 5, "{}", open(&memory));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_an_owner_is_idle_for_ten_seconds() {
    for (timeout, open_for) in [(None, 10), (Some(30), 10), (Some(4), 4)] {
        let memory = Memory::new(99);
        let client = memory.client().pool_idle_timeout(timeout.map(Duration::from_secs)).build().unwrap();
        get(&client, Some("alice")).await;
        sleep(Duration::from_millis(1500)).await;
        get(&client, Some("bob")).await;
        // The pool closes idle connections once a second.
        sleep(Duration::from_millis(open_for * 1000 - 2000)).await;
        assert_eq!(open(&memory), 2, "{timeout:?}");
        sleep(Duration::from_millis(1700)).await;
        assert_eq!(open(&memory), 1, "{timeout:?}");
        sleep(Duration::from_millis(1000)).await;
        assert_eq!(open(&memory), 0, "{timeout:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_owner_unused_for_longest_gives_way_beyond_256() {
    let memory = Memory::new(999);
    let client = memory.client().build().unwrap();
    observe(&client).await;
    let names: Vec<_> = (0..257).map(|name| name.to_string()).collect();
    for name in &names[..256] {
        get(&client, Some(name)).await;
        sleep(Duration::from_micros(1)).await;
    }
    // A second exchange makes the first owner the last one. Its connection was the second.
    assert_eq!(get(&client, Some(&names[0])).await, "2");
    others_run().await;
    assert_eq!(open(&memory), 257);
    assert_eq!(get(&client, Some(&names[256])).await, "258");
    others_run().await;
    assert_eq!(open(&memory), 257);
    // The connection of the second owner was closed.
    assert_eq!(get(&client, Some(&names[0])).await, "2");
    assert_eq!(get(&client, Some(&names[2])).await, "4");
    assert_eq!(get(&client, Some(&names[1])).await, "259");
    assert_eq!(get(&client, None).await, "1");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_one_owner_makes_room_for_another() {
    let memory = Memory::new(99);
    let client = memory.client().max_connections(1).build().unwrap();
    // At the limit, connections are reused at once.
    for (owner, connection) in [
        (Some("alice"), "1"),
        (Some("alice"), "1"),
        (Some("bob"), "2"),
        (None, "3"),
        (None, "3"),
        (Some("bob"), "4"),
        (Some("alice"), "5"),
        (Some("alice"), "5"),
    ] {
        assert_eq!(get(&client, owner).await, connection, "{owner:?}");
        others_run().await;
        assert_eq!(open(&memory), 1);
    }
    assert_eq!(memory.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_idle_connection_of_all_makes_room() {
    let memory = Memory::new(99);
    let client = memory.client().max_connections(3).build().unwrap();
    for owner in [Some("alice"), None, Some("bob")] {
        get(&client, owner).await;
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(get(&client, Some("carol")).await, "4");
    sleep(Duration::from_millis(10)).await;
    assert_eq!(get(&client, Some("bob")).await, "3");
    // That of alice was closed, and now that without an owner is.
    sleep(Duration::from_millis(10)).await;
    assert_eq!(get(&client, Some("alice")).await, "5");
    assert_eq!(get(&client, Some("carol")).await, "4");
    assert_eq!(get(&client, Some("bob")).await, "3");
    others_run().await;
    assert_eq!(open(&memory), 3);
}

#[tokio::test(start_paused = true)]
async fn a_returned_connection_goes_to_a_waiter_of_its_owner() {
    let memory = Memory::new(99);
    let client = memory.client().max_connections(1).build().unwrap();
    let held = begin(&client, "/held", Some("alice")).await;
    let nobody = begin(&client, "/held", None).await;
    let bob = begin(&client, "/held", Some("bob")).await;
    let alice = begin(&client, "/held", Some("alice")).await;
    memory.answers.add_permits(4);
    for (exchange, connection) in [(held, "1"), (alice, "1"), (nobody, "2"), (bob, "3")] {
        assert_eq!(within(exchange).await.unwrap().unwrap(), connection);
    }
    assert_eq!(memory.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_busy_owner_does_not_keep_others_waiting() {
    for (busy, other) in [(None, Some("alice")), (Some("alice"), None), (Some("alice"), Some("bob"))] {
        let memory = Memory::new(99);
        let client = memory.client().max_connections(2).queue_timeout(None).build().unwrap();
        // Two connections that are never idle, because more requests of the same owner always wait.
        let mut queue = Vec::new();
        for _ in 0..4 {
            queue.push(begin(&client, "/held", busy).await);
        }
        let waiting = begin(&client, "/x", other).await;
        let mut released = 0;
        while !waiting.is_finished() {
            queue.push(begin(&client, "/held", busy).await);
            memory.answers.add_permits(1);
            others_run().await;
            released += 1;
            assert!(released < 20, "{busy:?} keeps {other:?} waiting");
        }
        waiting.await.unwrap().unwrap();
        memory.answers.add_permits(99);
        for exchange in queue {
            within(exchange).await.unwrap().unwrap();
        }
        assert_eq!(memory.most.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_made_for_a_cancelled_request_goes_to_any_owner() {
    let memory = Memory::new(0);
    let client = memory.client().max_connections(1).build().unwrap();
    let (alice, bob) = (begin(&client, "/x", Some("alice")).await, begin(&client, "/x", Some("bob")).await);
    alice.abort();
    memory.connects.add_permits(1);
    // Nothing was sent over it yet.
    assert_eq!(within(bob).await.unwrap().unwrap(), "1");
    assert_eq!(memory.asked(), 1);
}

/// A client, and the backend's ends of its connections.
fn manual() -> (Client, UnboundedReceiver<Wire<DuplexStream>>) {
    hooked(Hook::default(), |client| client)
}

/// The same, with options, and a function that the next read of a connection calls.
fn hooked(
    hook: Hook,
    options: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> (Client, UnboundedReceiver<Wire<DuplexStream>>) {
    let (report, connections) = unbounded_channel();
    let connector = service_fn(move |_| {
        let (ours, theirs) = Pipe::pair();
        report.send(Wire::new(theirs)).unwrap();
        let hook = hook.clone();
        async { Ok::<_, io::Error>(ours.on_read(hook)) }
    });
    (options(Client::builder("http://backend.example").connector(connector)).build().unwrap(), connections)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Opens a connection of alice's that her next request reuses.
async fn warm(client: &Client, connections: &mut UnboundedReceiver<Wire<DuplexStream>>) -> Wire<DuplexStream> {
    let mut wire = None;
    for token in 0..2 {
        let exchange = tokio::spawn(send(client.clone(), request("/x", Some("alice"), token)));
        let mut next = within(connections.recv()).await.unwrap();
        assert!(next.message().await.unwrap().head.contains(&format!("alice-{token}")));
        next.send(OK).await;
        within(exchange).await.unwrap().unwrap();
        if token == 0 {
            sleep(Duration::from_millis(1900)).await;
        }
        // The first one was idle for too long.
        wire = Some(next);
    }
    wire.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_written_is_not_sent_again() {
    // The backend closes without a response, or in the middle of one.
    for part in ["", "HTTP/1.1 200"] {
        for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
            let (client, mut connections) = manual();
            let mut wire = warm(&client, &mut connections).await;
            let mut request = request("/x", Some("alice"), 7);
            *request.method_mut() = method.parse().unwrap();
            let exchange = tokio::spawn(send(client, request));
            assert!(wire.message().await.unwrap().head.contains("alice-7"), "{method}");
            wire.send(part.as_bytes()).await;
            drop(wire);
            let mut error = within(exchange).await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "{method} {part}");
            assert!(!error.is_unsent() && error.take_request().is_none(), "{method} {part}");
            others_run().await;
            assert!(connections.try_recv().is_err(), "{method} {part}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_not_written_is_sent_over_a_new_connection() {
    for method in ["GET", "POST"] {
        let (client, mut connections) = manual();
        let wire = warm(&client, &mut connections).await;
        drop(wire);
        let mut request = request("/x", Some("alice"), 7);
        *request.method_mut() = method.parse().unwrap();
        let exchange = tokio::spawn(send(client.clone(), request));
        let mut wire = within(connections.recv()).await.unwrap();
        assert!(wire.message().await.unwrap().head.contains("alice-7"), "{method}");
        wire.send(OK).await;
        assert_eq!(within(exchange).await.unwrap().unwrap(), "ok");
        // The connection is alice's. The pool has observed that the backend closes others soon.
        let exchange = tokio::spawn(send(client.clone(), self::request("/x", None, 0)));
        let mut other = within(connections.recv()).await.unwrap();
        assert!(!other.message().await.unwrap().head.contains("alice"), "{method}");
        other.send(OK).await;
        assert_eq!(within(exchange).await.unwrap().unwrap(), "ok");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_during_the_idle_check_gets_a_connection() {
    for (owner, is_reused) in [(Some("alice"), true), (Some("bob"), false), (None, false)] {
        let hook = Hook::default();
        // Idle connections are checked every 200 ms, and the limit is reached: the request waits for the one that is.
        let (client, mut connections) = hooked(hook.clone(), |client| {
            client.max_connections(1).queue_timeout(None).pool_idle_timeout(Duration::from_millis(400))
        });
        let first = tokio::spawn(send(client.clone(), request("/x", Some("alice"), 0)));
        let mut wire = within(connections.recv()).await.unwrap();
        wire.message().await.unwrap();
        wire.send(OK).await;
        within(first).await.unwrap().unwrap();
        let (begun, mut exchanges) = unbounded_channel();
        *hook.lock().unwrap() = Some(Box::new(move || {
            let mut exchange = Box::pin(send(client, request("/x", owner, 1)));
            assert!(exchange.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            begun.send(exchange).unwrap();
        }));
        let exchange = tokio::spawn(within(exchanges.recv()).await.unwrap());
        if !is_reused {
            assert!(wire.closed().await);
            wire = within(connections.recv()).await.unwrap();
        }
        wire.message().await.unwrap();
        wire.send(OK).await;
        assert_eq!(within(exchange).await.unwrap().unwrap(), "ok", "{owner:?}");
        assert!(connections.try_recv().is_err(), "{owner:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_proxy_passes_the_owner_to_the_client() {
    let memory = Memory::new(99);
    // At the limit, connections are reused at once.
    let client = memory.client().max_connections(1).build().unwrap();
    let proxy = ReverseProxy::new(client.clone());
    for (owner, connection) in [(Some("alice"), "1"), (Some("alice"), "1"), (Some("bob"), "2"), (None, "3")] {
        let response = within(proxy.clone().oneshot(request("/x", owner, 0))).await.unwrap();
        assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes(), connection, "{owner:?}");
        assert_eq!(get(&client, owner).await, connection, "{owner:?}");
    }
}

#[tokio::test]
async fn a_tunnel_keeps_the_connection_of_its_owner() {
    let (memory, tunnels) = (Memory::new(99), Tunnels::new());
    let client = memory.client().build().unwrap();
    let layer = ReverseProxyLayer::new(client.clone()).tunnels(tunnels.clone());
    let app = Router::new().layer(layer).layer(Extension(Owner::Principal("alice".into())));
    let mut wire = connect(front(app).await).await;
    wire.send(b"GET /upgrade HTTP/1.1\r\nHost: front.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert_eq!(wire.message().await.unwrap().status(), 101);
    assert_eq!(get(&client, Some("alice")).await, "2");
    assert_eq!(open(&memory), 2);
    drop(wire);
    within(tunnels.wait()).await;
    within(async {
        while open(&memory) > 1 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
