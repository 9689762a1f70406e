//! Tunnels: their beginning after a request body, and their end when one side has ended.

use std::time::Duration;

use axum::Router;
use bytes::BufMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::TcpStream,
    sync::mpsc::unbounded_channel,
    time::{sleep, timeout},
};
use tower_reverse_proxy::{ReverseProxyLayer, Tunnels};

use crate::support::{PATIENCE, Wire, answering, ask, backend, client, front, pipes::InMemory, within};

const OFFER: &[u8] = b"GET /chat HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ACCEPT: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Opens a tunnel, and returns its two ends.
async fn opened(memory: &mut InMemory) -> (Wire<DuplexStream>, Wire<DuplexStream>) {
    let mut client = memory.client();
    client.send(OFFER).await;
    let mut backend = memory.backend().await;
    backend.head().await.unwrap();
    backend.send(ACCEPT).await;
    assert_eq!(client.message().await.unwrap().status(), 101);
    (client, backend)
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_tunnel_ends_after_a_minute_without_a_byte() {
    let tunnels = Tunnels::new();
    let account = tunnels.clone();
    let mut memory = InMemory::new(|layer| layer.tunnels(account));
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(opened(&mut memory).await);
    }
    // A silent tunnel that is open both ways doesn't end.
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(tunnels.count(), 10);
    for (client, backend) in &mut open {
        client.stream.shutdown().await.unwrap();
        assert!(backend.closed().await);
    }
    sleep(Duration::from_secs(59)).await;
    assert_eq!(tunnels.count(), 10);
    // A byte restarts the timeout.
    let (client, backend) = &mut open[0];
    backend.send(b"x").await;
    assert_eq!(client.bytes(1).await, b"x");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(tunnels.count(), 1);
    sleep(Duration::from_secs(56)).await;
    assert_eq!(tunnels.count(), 1);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(tunnels.count(), 0);
    for (client, _) in &mut open {
        assert!(client.closed().await);
    }
}

#[tokio::test(start_paused = true)]
async fn the_half_closed_timeout_starts_at_the_end_of_the_backend_side_too() {
    let tunnels = Tunnels::new();
    let account = tunnels.clone();
    let mut memory = InMemory::new(|layer| layer.tunnels(account.half_closed_timeout(Duration::from_secs(10))));
    let (mut client, mut backend) = opened(&mut memory).await;
    backend.stream.shutdown().await.unwrap();
    assert!(client.closed().await);
    sleep(Duration::from_secs(9)).await;
    assert_eq!(tunnels.count(), 1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(tunnels.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_half_closed_timeout_can_be_turned_off() {
    let tunnels = Tunnels::new();
    let account = tunnels.clone();
    let mut memory = InMemory::new(|layer| layer.tunnels(account.half_closed_timeout(None)));
    let (mut client, mut backend) = opened(&mut memory).await;
    client.stream.shutdown().await.unwrap();
    assert!(backend.closed().await);
    sleep(Duration::from_secs(24 * 3600)).await;
    backend.send(b"late").await;
    assert_eq!(client.bytes(4).await, b"late");
    drop(backend);
    tunnels.wait().await;
}

#[tokio::test]
async fn bytes_go_both_ways_at_once_to_slow_readers() {
    const SIZE: usize = 4 << 20;
    /// Sends bytes of its own and compares what arrives; it reads late, and in small pieces.
    async fn exchange(stream: TcpStream, own: u8, other: u8) {
        let (mut read, mut write) = stream.into_split();
        let send = async {
            within(write.write_all(&sequence(own))).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let receive = async {
            let mut got = Vec::with_capacity(SIZE);
            // By now, the sockets are full, and the tunnel holds what it couldn't write.
            sleep(Duration::from_millis(200)).await;
            while within(read.read_buf(&mut (&mut got).limit(3000))).await.unwrap() > 0 {}
            assert!(got == sequence(other), "{} bytes", got.len());
        };
        tokio::join!(send, receive);
    }
    fn sequence(seed: u8) -> Vec<u8> {
        (0..SIZE).map(|i| (i % 251) as u8 ^ seed).collect()
    }
    let origin = backend(|mut wire| async move {
        wire.head().await;
        wire.send(ACCEPT).await;
        exchange(wire.stream, 1, 2).await;
    })
    .await;
    let tunnels = Tunnels::new();
    let addr = front(Router::new().layer(ReverseProxyLayer::new(origin).tunnels(tunnels.clone()))).await;
    let mut wire = client(addr).await;
    wire.send(OFFER).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(wire.stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    exchange(wire.stream, 2, 1).await;
    within(tunnels.wait()).await;
}

#[tokio::test(start_paused = true)]
async fn the_backend_may_end_first_and_read_on() {
    let mut memory = InMemory::new(|layer| layer);
    let (mut client, mut backend) = opened(&mut memory).await;
    backend.send(b"bye").await;
    backend.stream.shutdown().await.unwrap();
    assert_eq!(client.bytes(3).await, b"bye");
    assert!(client.closed().await);
    client.send(b"late").await;
    assert_eq!(backend.bytes(4).await, b"late");
    client.stream.shutdown().await.unwrap();
    assert!(backend.closed().await);
}

#[tokio::test(start_paused = true)]
async fn the_half_closed_timeout_applies_although_a_longer_timeout_runs() {
    let tunnels = Tunnels::new().idle_timeout(Duration::from_secs(3600)).max_age(Duration::from_secs(24 * 3600));
    let account = tunnels.clone();
    let mut memory = InMemory::new(|layer| layer.tunnels(account));
    let (mut client, mut backend) = opened(&mut memory).await;
    sleep(Duration::from_secs(3599)).await;
    client.send(b"x").await;
    assert_eq!(backend.bytes(1).await, b"x");
    // A byte restarts the idle timeout.
    sleep(Duration::from_secs(10)).await;
    assert_eq!(tunnels.count(), 1);
    client.stream.shutdown().await.unwrap();
    assert!(backend.closed().await);
    sleep(Duration::from_secs(59)).await;
    assert_eq!(tunnels.count(), 1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(tunnels.count(), 0);
}

#[tokio::test]
async fn dead_clients_leave_no_tunnels() {
    // The backend ignores the client's FIN.
    let origin = backend(|mut wire| async move {
        wire.head().await;
        wire.send(ACCEPT).await;
        std::future::pending::<()>().await;
    })
    .await;
    let tunnels = Tunnels::new();
    let layer = ReverseProxyLayer::new(origin).tunnels(tunnels.clone().half_closed_timeout(Duration::from_millis(50)));
    let addr = front(Router::new().layer(layer)).await;
    let mut open = Vec::new();
    for _ in 0..10 {
        let mut wire = client(addr).await;
        wire.send(OFFER).await;
        assert_eq!(wire.message().await.unwrap().status(), 101);
        wire.stream.shutdown().await.unwrap();
        open.push(wire);
    }
    timeout(PATIENCE, tunnels.wait()).await.expect("the tunnels end");
}

/// The head of a `docker exec` request, which has a body and upgrades.
fn exec(fields: &str) -> String {
    format!(
        "POST /exec/1/start HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
         Content-Type: application/json\r\n{fields}\r\n"
    )
}

const UPGRADED: &[u8] = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n\
    Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n";

async fn exec_front(origin: String) -> std::net::SocketAddr {
    front(Router::new().layer(ReverseProxyLayer::new(origin).allow_upgrade("tcp"))).await
}

#[tokio::test]
async fn a_tunnel_begins_after_the_body_of_its_upgrade_request() {
    for (size, is_chunked) in [2, 64 * 1024 + 1, 1 << 20].into_iter().flat_map(|size| [(size, false), (size, true)]) {
        let (report, mut reports) = unbounded_channel();
        let origin = backend(move |mut wire| {
            let report = report.clone();
            async move {
                let Some(request) = wire.message().await else { return };
                report.send(request).unwrap();
                wire.send(&[UPGRADED, b"hello"].concat()).await;
                let got = wire.bytes(5).await;
                wire.send(&got).await;
            }
        })
        .await;
        let mut wire = client(exec_front(origin).await).await;
        let body = "x".repeat(size);
        // The octets after the body belong to the tunnel.
        let offer = if is_chunked {
            exec("Transfer-Encoding: chunked\r\n") + &format!("{size:x}\r\n{body}\r\n0\r\n\r\nearly")
        } else {
            exec(&format!("Content-Length: {size}\r\n")) + &body + "early"
        };
        wire.send(offer.as_bytes()).await;
        let answer = wire.message().await.unwrap();
        assert_eq!(answer.start_line(), "HTTP/1.1 101 UPGRADED");
        assert_eq!((answer.field("upgrade"), answer.field("connection")), (Some("tcp"), Some("upgrade")));
        assert_eq!(answer.field("content-type"), Some("application/vnd.docker.raw-stream"));
        assert_eq!(wire.bytes(10).await, b"helloearly");
        assert!(wire.closed().await);
        let request = within(reports.recv()).await.unwrap();
        assert_eq!((request.field("upgrade"), request.field("connection")), (Some("tcp"), Some("upgrade")));
        assert_eq!(request.field("content-length"), (!is_chunked).then_some(&*size.to_string()));
        assert!(request.complete && request.text() == body);
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_accepts_early_still_gets_the_body_first() {
    let mut memory = InMemory::new(|layer| layer.allow_upgrade("tcp"));
    let mut client = memory.client();
    client.send((exec("Content-Length: 6\r\n") + "abc").as_bytes()).await;
    let mut backend = memory.backend().await;
    backend.head().await.unwrap();
    assert_eq!(backend.bytes(3).await, b"abc");
    backend.send(UPGRADED).await;
    // The proxy reads the 101 before the rest of the body arrives.
    sleep(Duration::from_secs(1)).await;
    client.send(b"defearly").await;
    assert_eq!(client.message().await.unwrap().status(), 101);
    assert_eq!(backend.bytes(8).await, b"defearly");
    backend.send(b"late").await;
    assert_eq!(client.bytes(4).await, b"late");
}

#[tokio::test(start_paused = true)]
async fn no_tunnel_opens_for_a_truncated_body() {
    let tunnels = Tunnels::new();
    let counted = tunnels.clone();
    let mut memory = InMemory::new(|layer| layer.allow_upgrade("tcp").tunnels(counted));
    let mut client = memory.client();
    client.send((exec("Content-Length: 6\r\n") + "abc").as_bytes()).await;
    let mut backend = memory.backend().await;
    backend.head().await.unwrap();
    assert_eq!(backend.bytes(3).await, b"abc");
    backend.send(UPGRADED).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(tunnels.count(), 0);
    drop(client);
    assert!(backend.closed().await);
    assert_eq!(tunnels.count(), 0);
}

#[tokio::test]
async fn a_refused_upgrade_request_with_a_body_is_a_normal_exchange() {
    let addr = exec_front(answering("HTTP/1.1 409 Conflict\r\nContent-Length: 4\r\n\r\nnope").await).await;
    let mut wire = client(addr).await;
    for _ in 0..2 {
        wire.send((exec("Content-Length: 2\r\n") + "{}").as_bytes()).await;
        let answer = wire.message().await.unwrap();
        assert_eq!((answer.status(), &*answer.text()), (409, "nope"));
    }
}

#[tokio::test]
async fn a_websocket_handshake_with_a_body_is_refused() {
    let addr = exec_front(answering(UPGRADED).await).await;
    // Nor may a request that offers WebSocket beside another protocol.
    for tokens in ["websocket", "tcp, websocket"] {
        let offer = exec("Content-Length: 2\r\n").replace("Upgrade: tcp", &format!("Upgrade: {tokens}")) + "{}";
        assert_eq!(ask(addr, offer).await.status(), 400, "{tokens}");
    }
}
