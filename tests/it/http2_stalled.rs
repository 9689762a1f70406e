//! Backends that never open the window of a stream. When its client is gone, it costs neither the connection nor its permit.

use std::{net::SocketAddr, time::Duration};

use axum::Router;
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};
use tower_reverse_proxy::{Client, ReverseProxyLayer, Tunnels};

use crate::support::{
    PATIENCE, backend, client,
    frames::{END_HEADERS, HEADERS, STATUS_200, frame},
    front,
    http2_backends::{greet, read_frame},
    within,
};

/// `MAX_CONCURRENT_STREAMS` of 1, `INITIAL_WINDOW_SIZE` of 0, and `ENABLE_CONNECT_PROTOCOL`.
const SETTINGS: &[u8] = &[0, 3, 0, 0, 0, 1, 0, 4, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1];

/// A backend that begins to answer each request, and takes nothing of it. It reports the end of each connection.
async fn stalled() -> (String, UnboundedReceiver<()>) {
    let (report, ended) = unbounded_channel();
    let url = backend(move |wire| {
        let (mut stream, report) = (wire.stream, report.clone());
        async move {
            greet(&mut stream, SETTINGS).await;
            while let Some(received) = read_frame(&mut stream).await {
                let reply = match received.kind {
                    HEADERS => frame(HEADERS, END_HEADERS, received.stream, STATUS_200),
                    _ => received.acknowledgement(),
                };
                if stream.write_all(&reply).await.is_err() {
                    break;
                }
            }
            report.send(()).unwrap();
        }
    })
    .await;
    (url, ended)
}

const SHORT: Duration = Duration::from_millis(10);
const UPLOAD: &[u8] = b"POST /x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 6\r\n\r\n";

/// A front whose client has a single connection.
async fn front_of(url: String) -> SocketAddr {
    let backend = Client::builder(url).http2(true).pool_idle_timeout(SHORT).max_connections(1).queue_timeout(PATIENCE);
    let layer = ReverseProxyLayer::new(backend).tunnels(Tunnels::new().half_closed_timeout(SHORT));
    front(Router::new().layer(layer.header_timeout(SHORT * 50))).await
}

/// Begins two exchanges, one after the other, that the backend never lets end.
async fn assert_no_connection_is_lost(request: &[u8], status: &str) {
    let (url, mut ended) = stalled().await;
    let addr = front_of(url).await;
    for _ in 0..2 {
        let mut wire = client(addr).await;
        wire.send(request).await;
        assert!(wire.head().await.unwrap().starts_with(status));
        wire.send(b"octets").await;
        drop(wire);
        within(ended.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn an_upload_without_a_window_ends_with_its_client() {
    assert_no_connection_is_lost(UPLOAD, "HTTP/1.1 200").await;
}

/// hyper's driver waits for the stream, and doesn't notice that nothing needs it any more.
#[tokio::test]
async fn a_request_behind_a_stream_without_a_window_ends_with_its_client() {
    let (url, mut ended) = stalled().await;
    let addr = front_of(url).await;
    let mut stalled = client(addr).await;
    stalled.send(UPLOAD).await;
    assert!(stalled.head().await.unwrap().starts_with("HTTP/1.1 200"));
    stalled.send(b"octets").await;
    let mut waiting = client(addr).await;
    waiting.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    drop(stalled);
    assert!(waiting.head().await.unwrap().starts_with("HTTP/1.1 504"));
    drop(waiting);
    within(ended.recv()).await.unwrap();
}

#[tokio::test]
async fn a_websocket_without_a_window_ends_with_its_client() {
    let request = b"GET /x HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    assert_no_connection_is_lost(request, "HTTP/1.1 101").await;
}
