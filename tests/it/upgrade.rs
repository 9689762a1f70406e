//! Upgrade requests and their tunnels.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
    middleware::map_response,
    response::Response,
};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc::unbounded_channel,
};
use tower_reverse_proxy::{Client, ReverseProxyLayer, Tunnels};

use crate::support::{
    Wire, answering, ask, backend, client, front, http2, mirror, time_passes, websocket::accept_of, within,
};

const OFFER: &str = "GET /chat?a=%2F HTTP/1.1\r\nHost: front.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

async fn proxied(origin: String) -> SocketAddr {
    front(Router::new().layer(ReverseProxyLayer::new(origin))).await
}

/// A backend that switches protocols, echoes until the client's end, and then sends `bye` and ends.
async fn echo() -> String {
    backend(|mut wire| async move {
        if wire.head().await.is_none() {
            return;
        }
        wire.send(ACCEPT.as_bytes()).await;
        loop {
            match wire.bytes(1).await {
                byte if byte.is_empty() => break,
                byte => wire.send(&byte).await,
            }
        }
        wire.send(b"bye").await;
    })
    .await
}

async fn opened(addr: SocketAddr) -> Wire<TcpStream> {
    let mut wire = client(addr).await;
    wire.send(OFFER.as_bytes()).await;
    let head = wire.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    wire
}

#[tokio::test]
async fn a_websocket_handshake_is_forwarded_both_ways() {
    let (seen, mut heads) = unbounded_channel();
    let origin = backend(move |mut wire| {
        let seen = seen.clone();
        async move {
            seen.send(wire.head().await.unwrap()).unwrap();
            // The first frame arrives with the head.
            wire.send(&[ACCEPT.as_bytes(), b"hello"].concat()).await;
            assert_eq!(wire.bytes(5).await, b"early");
            wire.send(b"there").await;
        }
    })
    .await;
    let mut wire = client(proxied(origin).await).await;
    // Octets before the 101 are kept for the tunnel.
    wire.send(&[OFFER.as_bytes(), b"early"].concat()).await;
    let answer = wire.message().await.unwrap();
    assert_eq!(answer.start_line(), "HTTP/1.1 101 Switching Protocols");
    assert_eq!((answer.field("connection"), answer.field("upgrade")), (Some("upgrade"), Some("websocket")));
    assert_eq!(answer.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(wire.bytes(10).await, b"hellothere");
    assert!(wire.closed().await);
    let head = within(heads.recv()).await.unwrap().to_ascii_lowercase();
    for line in ["get /chat?a=%2f http/1.1", "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13"] {
        assert!(head.contains(&format!("{line}\r\n")), "{line} in {head}");
    }
}

#[tokio::test]
async fn a_half_close_is_carried_over() {
    let mut wire = opened(proxied(echo().await).await).await;
    wire.send(b"x").await;
    assert_eq!(wire.bytes(1).await, b"x");
    wire.stream.shutdown().await.unwrap();
    assert_eq!(wire.bytes(3).await, b"bye");
    assert!(wire.closed().await);
}

#[tokio::test]
async fn a_switch_to_a_protocol_that_was_not_offered_is_502() {
    for (name, response) in [
        ("another token", ACCEPT.replace("websocket\r\n", "foo\r\n")),
        ("two tokens", ACCEPT.replace("websocket\r\n", "websocket, foo\r\n")),
        ("no token", ACCEPT.replace("Upgrade: websocket\r\n", "")),
        ("no option", ACCEPT.replace("Connection: Upgrade\r\n", "")),
    ] {
        let mut wire = client(proxied(answering(response).await).await).await;
        wire.send(OFFER.as_bytes()).await;
        assert_eq!(wire.message().await.unwrap().status(), 502, "{name}");
    }
    // A 101 without an upgrade request.
    let addr = proxied(answering(ACCEPT).await).await;
    assert_eq!(ask(addr, "GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await.status(), 502);
}

#[tokio::test]
async fn an_invalid_upgrade_request_is_forwarded_without_upgrade() {
    let addr = proxied(mirror().await).await;
    for (name, fields) in [
        ("no option", "Upgrade: websocket\r\n"),
        ("h2c", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"),
        ("not allowed", "Connection: Upgrade\r\nUpgrade: foo\r\n"),
    ] {
        let answer = ask(addr, format!("GET /x HTTP/1.1\r\nHost: front.example\r\n{fields}\r\n")).await.mirrored();
        for field in ["connection", "upgrade", "http2-settings"] {
            assert_eq!(answer.field(field), None, "{name}");
        }
    }
    let answer = ask(addr, OFFER.replace("HTTP/1.1", "HTTP/1.0")).await.mirrored();
    assert_eq!(answer.field("upgrade"), None);
    // Of several protocols, the allowed ones are forwarded.
    let answer = ask(addr, OFFER.replace("websocket\r\n", "h2c, websocket\r\n")).await.mirrored();
    assert_eq!(answer.field("upgrade"), Some("websocket"));
}

#[tokio::test]
async fn an_upgrade_request_with_a_body_is_refused() {
    let addr = proxied(mirror().await).await;
    let offer = OFFER.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(ask(addr, offer).await.status(), 400);
}

#[tokio::test]
async fn a_refused_handshake_is_forwarded_and_the_connection_kept() {
    let origin = answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope").await;
    let mut wire = client(proxied(origin).await).await;
    for _ in 0..2 {
        wire.send(OFFER.as_bytes()).await;
        let answer = wire.message().await.unwrap();
        assert_eq!((answer.status(), &*answer.text()), (403, "nope"));
    }
}

#[tokio::test]
async fn other_protocols_are_opt_in_and_h2c_is_never_forwarded() {
    let origin = answering(ACCEPT.replace("websocket", "foo/2")).await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(origin).allow_upgrade("foo/2"))).await;
    let mut wire = client(addr).await;
    wire.send(OFFER.replace("websocket", "foo/2").as_bytes()).await;
    assert_eq!(wire.message().await.unwrap().field("upgrade"), Some("foo/2"));
    for token in ["h2c", "H2C", "HTTP/2.0", "", "a b", "a,b", "a/b c", "/"] {
        let allowing = || drop(ReverseProxyLayer::new("http://127.0.0.1:1").allow_upgrade(token));
        assert!(std::panic::catch_unwind(allowing).is_err(), "{token:?}");
    }
}

#[tokio::test]
async fn a_reset_of_one_side_closes_the_other() {
    // A reset by the backend.
    let origin = backend(|mut wire| async move {
        wire.head().await;
        wire.send(ACCEPT.as_bytes()).await;
        wire.bytes(1).await;
        wire.stream.set_zero_linger().unwrap();
    })
    .await;
    let mut wire = opened(proxied(origin).await).await;
    wire.send(b"x").await;
    assert!(wire.closed().await);
    // A reset by the client.
    let (ended, mut ends) = unbounded_channel();
    let origin = backend(move |mut wire| {
        let ended = ended.clone();
        async move {
            wire.head().await;
            wire.send(ACCEPT.as_bytes()).await;
            ended.send(wire.closed().await).unwrap();
        }
    })
    .await;
    let wire = opened(proxied(origin).await).await;
    wire.stream.set_zero_linger().unwrap();
    drop(wire);
    assert_eq!(within(ends.recv()).await, Some(true));
}

#[tokio::test]
async fn tunnels_are_counted_and_shut_down() {
    let tunnels = Tunnels::new();
    let layer = ReverseProxyLayer::new(echo().await).tunnels(tunnels.clone());
    let addr = front(Router::new().layer(layer)).await;
    let mut open = Vec::new();
    for count in 1..=3 {
        open.push(opened(addr).await);
        assert_eq!(tunnels.count(), count);
    }
    drop(open.pop());
    within(async {
        while tunnels.count() > 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    tunnels.shut_down();
    for wire in &mut open {
        assert!(wire.closed().await);
    }
    within(tunnels.wait()).await;
    assert_eq!(tunnels.count(), 0);
    // A tunnel that opens after the shutdown is closed at once.
    assert!(opened(addr).await.closed().await);
    within(tunnels.wait()).await;
}

#[tokio::test]
async fn a_tunnel_ends_at_its_idle_timeout_or_maximum_age() {
    let short = Duration::from_millis(100);
    for layer in [
        ReverseProxyLayer::new(echo().await).tunnels(Tunnels::new().idle_timeout(short)),
        ReverseProxyLayer::new(echo().await).tunnels(Tunnels::new().max_age(short)),
    ] {
        assert!(opened(front(Router::new().layer(layer)).await).await.closed().await);
    }
}

#[tokio::test]
async fn an_upgrade_that_never_completes_leaves_no_tunnel() {
    let tunnels = Tunnels::new();
    let layer = ReverseProxyLayer::new(echo().await).tunnels(tunnels.clone());
    // A layer of the application discards the 101.
    let (counted, most) = (tunnels.clone(), Arc::new(AtomicUsize::new(0)));
    let counts = most.clone();
    let discard = map_response(move |_: Response| {
        counts.fetch_max(counted.count(), Ordering::SeqCst);
        async { StatusCode::SERVICE_UNAVAILABLE }
    });
    let addr = front(Router::new().layer(layer).layer(discard)).await;
    for _ in 0..3 {
        assert_eq!(ask(addr, OFFER).await.status(), 503);
        within(tunnels.wait()).await;
        assert_eq!((most.load(Ordering::SeqCst), tunnels.count()), (1, 0));
    }
}

/// An HTTP/1.1 backend that accepts a WebSocket with the right `Sec-WebSocket-Accept` or a wrong one, and echoes.
async fn accepting(right: bool) -> String {
    backend(move |mut wire| async move {
        let Some(head) = wire.head().await else { return };
        let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).expect("a key").to_owned();
        assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
        let accept = accept_of(&key);
        let accept = if right { accept } else { "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".into() };
        wire.send(ACCEPT.replace("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", &accept).as_bytes()).await;
        loop {
            match wire.bytes(1).await {
                byte if byte.is_empty() => return,
                byte => wire.send(&byte).await,
            }
        }
    })
    .await
}

fn connect(target: &str) -> Request<Body> {
    let mut request = Request::connect(format!("http://front.example{target}")).body(Body::empty()).unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    request
}

#[tokio::test]
async fn an_http2_client_opens_a_websocket_by_extended_connect() {
    let mut client = http2(proxied(accepting(true).await).await).await;
    let response = within(client.send_request(connect("/chat"))).await.unwrap();
    assert_eq!(response.status(), 200);
    for field in ["upgrade", "connection", "sec-websocket-accept", "content-length"] {
        assert!(!response.headers().contains_key(field), "{field}");
    }
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"hello");
}

#[tokio::test]
async fn over_http2_no_tunnel_opens_without_a_valid_handshake() {
    for (origin, status) in [
        (accepting(false).await, 502),
        // A page isn't a tunnel, but in response to extended CONNECT a 200 would open one.
        (answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await, 502),
        (answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await, 403),
    ] {
        let mut client = http2(proxied(origin).await).await;
        assert_eq!(within(client.send_request(connect("/chat"))).await.unwrap().status(), status);
    }
    let mut client = http2(proxied(mirror().await).await).await;
    let mut request = connect("/chat");
    request.extensions_mut().insert(Protocol::from_static("connect-udp"));
    assert_eq!(within(client.send_request(request)).await.unwrap().status(), 501);
}

/// An HTTP/2 backend, with or without extended CONNECT, that accepts a WebSocket and echoes. A connection has two
/// streams.
async fn http2_backend(has_connect: bool) -> String {
    use std::convert::Infallible;

    use axum::{body::Bytes, http::Response};
    use http_body_util::Empty;
    use hyper_util::rt::TokioExecutor;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.max_concurrent_streams(2);
            if has_connect {
                server.enable_connect_protocol();
            }
            let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                assert_eq!(request.method(), "CONNECT");
                assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
                assert_eq!(
                    (request.uri().path(), request.headers()["sec-websocket-version"].as_bytes()),
                    ("/chat", &b"13"[..])
                );
                assert!(!request.headers().contains_key("sec-websocket-key"));
                tokio::spawn(async move {
                    let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                    let (mut read, mut write) = tokio::io::split(&mut stream);
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                    write.shutdown().await.unwrap();
                });
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            });
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    origin
}

async fn proxied_to_http2(origin: String) -> SocketAddr {
    front(Router::new().layer(ReverseProxyLayer::new(Client::builder(origin).http2(true)))).await
}

#[tokio::test]
async fn a_tunnel_outlives_the_idle_timeout_of_its_http2_connection() {
    let short = Duration::from_millis(50);
    let layer = ReverseProxyLayer::new(Client::builder(http2_backend(true).await).http2(true).pool_idle_timeout(short));
    let mut wire = client(front(Router::new().layer(layer)).await).await;
    wire.send(OFFER.replace("/chat?a=%2F", "/chat").as_bytes()).await;
    assert_eq!(wire.message().await.unwrap().status(), 101);
    for _ in 0..3 {
        time_passes(short * 3).await;
        wire.send(b"hello").await;
        assert_eq!(wire.bytes(5).await, b"hello");
    }
}

#[tokio::test]
async fn an_http2_backend_gets_a_websocket_by_extended_connect() {
    let addr = proxied_to_http2(http2_backend(true).await).await;
    // From an HTTP/1.1 client, which gets a 101.
    let mut wire = client(addr).await;
    wire.send(OFFER.replace("/chat?a=%2F", "/chat").as_bytes()).await;
    let answer = wire.message().await.unwrap();
    assert_eq!((answer.status(), answer.field("upgrade")), (101, Some("websocket")));
    assert_eq!(answer.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    wire.send(b"hello").await;
    assert_eq!(wire.bytes(5).await, b"hello");
    wire.stream.shutdown().await.unwrap();
    assert!(wire.closed().await);
    // From an HTTP/2 client, which gets a 200.
    let mut client = http2(addr).await;
    let response = within(client.send_request(connect("/chat"))).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"hello");
}

#[tokio::test]
async fn a_tunnel_counts_as_a_stream_of_its_http2_connection() {
    let addr = proxied_to_http2(http2_backend(true).await).await;
    let mut wires = [client(addr).await, client(addr).await, client(addr).await];
    for wire in &mut wires {
        wire.send(OFFER.replace("/chat?a=%2F", "/chat").as_bytes()).await;
        assert_eq!(wire.message().await.unwrap().status(), 101);
    }
    for wire in &mut wires {
        wire.send(b"hello").await;
        assert_eq!(wire.bytes(5).await, b"hello");
    }
}

#[tokio::test]
async fn without_extended_connect_a_websocket_falls_back_to_http1() {
    // A backend with both protocols, without extended CONNECT.
    let app = Router::new().fallback(|| async { (axum::http::StatusCode::UPGRADE_REQUIRED, "in HTTP/1.1") });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper_util::service::TowerToHyperService::new(app.clone());
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    });
    let answer = ask(proxied_to_http2(origin).await, OFFER).await;
    assert_eq!((answer.status(), &*answer.text()), (426, "in HTTP/1.1"));
    // A backend with HTTP/2 only.
    assert_eq!(ask(proxied_to_http2(http2_backend(false).await).await, OFFER).await.status(), 502);
}
