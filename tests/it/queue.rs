//! Requests that wait for a connection: their order, the connection limit, and custom connectors.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use http_body_util::BodyExt;
use tokio::{
    io::AsyncWriteExt,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tower::ServiceExt;
use tower_reverse_proxy::{Client, Error, ErrorKind, ReverseProxy, ReverseProxyLayer, Tunnels};

use crate::support::{Memory, PATIENCE, Wire, others_run, within};

/// The status of the response, its text, and the kind of its failure.
type Outcome = (u16, String, Option<ErrorKind>);

async fn get(proxy: ReverseProxy, target: &'static str) -> Outcome {
    let request = Request::builder().uri(target).header("host", "front.example").body(Body::empty()).unwrap();
    let call = timeout(PATIENCE, proxy.oneshot(request));
    let Ok(response): Result<Response, Infallible> = call.await.expect("an answer");
    let (status, kind) = (response.status().as_u16(), response.extensions().get::<Error>().map(Error::kind));
    (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap(), kind)
}

/// Begins an exchange, and lets it proceed as far as it can.
async fn begin(proxy: &ReverseProxy, target: &'static str) -> JoinHandle<Outcome> {
    let exchange = tokio::spawn(get(proxy.clone(), target));
    others_run().await;
    exchange
}

fn ok(text: &str) -> Outcome {
    (200, text.to_owned(), None)
}

#[tokio::test(start_paused = true)]
async fn a_custom_connector_is_used() {
    let memory = Memory::new(9);
    let proxy = ReverseProxy::new(memory.client());
    for _ in 0..2 {
        assert_eq!(get(proxy.clone(), "/x").await, ok("1"));
    }
    memory.connects.close();
    let held = begin(&proxy, "/held").await;
    let (status, _, kind) = get(proxy, "/x").await;
    assert_eq!((status, kind), (502, Some(ErrorKind::Connect)));
    memory.answers.add_permits(1);
    assert_eq!(held.await.unwrap(), ok("1"));
}

#[tokio::test(start_paused = true)]
async fn a_queued_request_takes_the_first_connection_returned_or_opened() {
    let memory = Memory::new(1);
    let proxy = ReverseProxy::new(memory.client());
    let held = begin(&proxy, "/held").await;
    // Two connects that don't complete.
    let (second, third) = (begin(&proxy, "/held").await, begin(&proxy, "/x").await);
    assert_eq!(memory.asked(), 3);
    memory.answers.add_permits(2);
    for exchange in [held, second, third] {
        assert_eq!(timeout(PATIENCE, exchange).await.expect("it waits for no connect").unwrap().0, 200);
    }
    assert_eq!(memory.open.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_burst_opens_no_more_connections_than_it_needs() {
    let memory = Memory::new(1);
    let proxy = ReverseProxy::new(memory.client());
    let mut held = begin(&proxy, "/held").await;
    for round in 0..10 {
        // Each request waits, and gets the connection that the one before it returns. Its own connect is left for the
        // next request.
        let next = begin(&proxy, "/held").await;
        memory.answers.add_permits(1);
        assert_eq!(within(held).await.unwrap(), ok("1"), "{round}");
        others_run().await;
        held = next;
    }
    assert_eq!(memory.asked(), 2);
    // The connection is kept when its connect completes at last.
    memory.connects.add_permits(1);
    others_run().await;
    assert_eq!(get(proxy, "/x").await.0, 200);
    assert_eq!((memory.asked(), memory.open.load(Ordering::SeqCst)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_connection_opened_too_late_is_not_kept_for_long() {
    let memory = Memory::new(1);
    let proxy = ReverseProxy::new(memory.client().pool_idle_timeout(None));
    let (held, late) = (begin(&proxy, "/held").await, begin(&proxy, "/x").await);
    memory.answers.add_permits(1);
    for exchange in [held, late] {
        assert_eq!(within(exchange).await.unwrap(), ok("1"));
    }
    memory.connects.add_permits(1);
    others_run().await;
    assert_eq!(memory.open.load(Ordering::SeqCst), 2);
    let closes = async {
        while memory.open.load(Ordering::SeqCst) > 1 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, closes).await.expect("the unused connection is closed");
    assert_eq!((get(proxy, "/x").await, memory.asked()), (ok("1"), 2));
}

#[tokio::test(start_paused = true)]
async fn max_connections_is_never_exceeded() {
    let memory = Memory::new(99);
    let proxy = ReverseProxy::new(memory.client().max_connections(2));
    let mut exchanges = Vec::new();
    for _ in 0..10 {
        exchanges.push(begin(&proxy, "/held").await);
    }
    // The queue is first come, first served.
    for exchange in exchanges {
        assert_eq!(memory.open.load(Ordering::SeqCst), 2);
        memory.answers.add_permits(1);
        assert_eq!(timeout(PATIENCE, exchange).await.expect("it's this one's turn").unwrap().0, 200);
        others_run().await;
    }
    assert_eq!((memory.asked(), memory.most.load(Ordering::SeqCst)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn posts_reuse_connections_at_the_limit() {
    async fn posts(proxy: ReverseProxy) {
        for _ in 0..50 {
            let request = Request::post("/x").header("host", "front.example").body(Body::from("hi")).unwrap();
            let call = timeout(PATIENCE, proxy.clone().oneshot(request));
            let Ok(response): Result<Response, Infallible> = call.await.expect("an answer");
            assert_eq!(response.status(), 200);
            response.into_body().collect().await.unwrap();
        }
    }

    let memory = Memory::new(999);
    let proxy = ReverseProxy::new(memory.client().max_connections(2));
    // One client, and more clients than connections.
    for clients in [1, 8] {
        let clients: Vec<_> = (0..clients).map(|_| tokio::spawn(posts(proxy.clone()))).collect();
        for client in clients {
            client.await.unwrap();
        }
    }
    assert_eq!(memory.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_queued_beyond_the_queue_timeout_is_503() {
    let memory = Memory::new(99);
    let proxy = ReverseProxy::new(memory.client().max_connections(1).queue_timeout(Duration::from_millis(50)));
    let held = begin(&proxy, "/held").await;
    let (status, text, kind) = get(proxy.clone(), "/x").await;
    assert_eq!((status, &*text, kind), (503, "Service Unavailable", Some(ErrorKind::Overloaded)));
    memory.answers.add_permits(1);
    assert_eq!(held.await.unwrap(), ok("1"));
    // The request has left the queue.
    assert_eq!(get(proxy, "/x").await, ok("1"));
    assert_eq!(memory.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn cancelling_a_queued_request_frees_its_place() {
    let memory = Memory::new(0);
    let proxy = ReverseProxy::new(memory.client().max_connections(1));
    // The request is cancelled before its connection is made, and as it is made.
    for round in 0..3 {
        let (first, second) = (begin(&proxy, "/x").await, begin(&proxy, "/x").await);
        if round < 2 {
            first.abort();
        }
        if round == 0 {
            others_run().await;
        }
        if memory.open.load(Ordering::SeqCst) == 0 {
            memory.connects.add_permits(1);
        }
        if round > 0 {
            let _ = first.await;
        }
        assert_eq!(timeout(PATIENCE, second).await.expect("it's this one's turn").unwrap(), ok("1"), "{round}");
    }
    assert_eq!(memory.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_makes_room_for_a_new_one() {
    let memory = Memory::new(99);
    let proxy = ReverseProxy::new(memory.client().max_connections(1));
    for round in 0..5 {
        // The backend closes after its response. The pool notices before or during the next request.
        assert_eq!(get(proxy.clone(), "/last").await.0, 200, "{round}");
        let (first, second) = (begin(&proxy, "/x").await, begin(&proxy, "/last").await);
        for exchange in [first, second] {
            assert_eq!(timeout(PATIENCE, exchange).await.expect("there's room").unwrap().0, 200, "{round}");
        }
    }
    assert_eq!(memory.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_connect_fails_only_its_own_request() {
    let memory = Memory::new(1);
    let proxy = ReverseProxy::new(memory.client().max_connections(2));
    let held = begin(&proxy, "/held").await;
    let waiting = [begin(&proxy, "/x").await, begin(&proxy, "/x").await, begin(&proxy, "/x").await];
    // One connect is in progress. When it fails, the next one starts.
    memory.connects.close();
    for exchange in waiting {
        let (status, _, kind) = timeout(PATIENCE, exchange).await.expect("it has failed").unwrap();
        assert_eq!((status, kind), (502, Some(ErrorKind::Connect)));
    }
    assert_eq!(memory.asked(), 4);
    memory.answers.add_permits(1);
    assert_eq!(held.await.unwrap(), ok("1"));
}

#[tokio::test]
async fn a_tunnel_counts_towards_the_connection_limit() {
    use tokio::net::TcpStream;

    let (memory, tunnels) = (Memory::new(99), Tunnels::new());
    let client = memory.client().max_connections(1).queue_timeout(Duration::from_millis(50));
    let layer = ReverseProxyLayer::new(client).tunnels(tunnels.clone());
    let proxy = layer.into_service();
    let addr = crate::support::front(axum::Router::new().fallback_service(proxy.clone())).await;
    let mut client = TcpStream::connect(addr).await.unwrap();
    let offer = "GET /upgrade HTTP/1.1\r\nHost: front.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(offer.as_bytes()).await.unwrap();
    let mut client = Wire::new(client);
    assert_eq!(client.message().await.unwrap().status(), 101);
    assert_eq!(get(proxy.clone(), "/x").await.2, Some(ErrorKind::Overloaded));
    drop(client);
    within(tunnels.wait()).await;
    assert_eq!(get(proxy, "/x").await, ok("2"));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_pool_opens_no_connections() {
    let memory = Memory::new(0);
    let proxy = ReverseProxy::new(memory.client().connect_timeout(None));
    let exchange = begin(&proxy, "/x").await;
    exchange.abort();
    drop(proxy);
    let waits = async {
        // The future of the connect holds a reference.
        while Arc::strong_count(&memory.connects) > 1 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, waits).await.expect("the connect is dropped");
}

#[test]
#[should_panic(expected = "write `None`")]
fn a_connection_limit_of_zero_is_refused() {
    let _ = ReverseProxyLayer::new(Client::builder("http://backend.example").max_connections(0));
}
