//! The proxy as a plain hyper service. Runs with every set of features; with `--no-default-features` it shows what remains
//! without axum, HTTP/2 and TLS. The other tests over sockets need the default features.
#![allow(clippy::expect_used, clippy::unwrap_used)] // a missing value fails the test

#[allow(dead_code, unused_imports)] // the other binaries use all of it
#[path = "it/support/mod.rs"]
mod support;

use std::net::SocketAddr;

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tower::ServiceExt;
use tower_reverse_proxy::{ClientAddr, RemoteUser, RemoteUserLayer, ReverseProxy, ReverseProxyLayer};

use self::support::{answering, backend, client, get, mirror};

type Request = http::Request<Incoming>;

/// Serves HTTP/1.1 with the proxy as the whole application; `extend` changes each request first.
async fn front<U>(proxy: ReverseProxy<U>, extend: fn(&mut Request, SocketAddr)) -> SocketAddr
where
    ReverseProxy<U>: tower::Service<
            Request,
            Response = http::Response<axum_core::body::Body>,
            Error = std::convert::Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let proxy = proxy.clone();
            let service = service_fn(move |mut request| {
                extend(&mut request, peer);
                proxy.clone().oneshot(request)
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades());
        }
    });
    addr
}

fn as_it_is(_: &mut Request, _: SocketAddr) {}

#[tokio::test]
async fn a_request_and_its_response_are_forwarded() {
    let origin = mirror().await;
    let addr = front(ReverseProxy::new(origin), |request, peer| {
        request.extensions_mut().insert(ClientAddr::from(peer));
    })
    .await;
    let mut wire = client(addr).await;
    wire.send(b"POST /a%2Fb?c HTTP/1.1\r\nHost: front.example\r\nContent-Length: 5\r\nX-Own: 1\r\n\r\nhello").await;
    let answer = wire.message().await.unwrap();
    let seen = answer.mirrored();
    assert_eq!((seen.start_line(), &*seen.text()), ("POST /a%2Fb?c HTTP/1.1", "hello"));
    assert_eq!((seen.field("host"), seen.field("x-own")), (Some("front.example"), Some("1")));
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    // The connection is kept.
    wire.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    assert_eq!(wire.message().await.unwrap().mirrored().start_line(), "GET /x HTTP/1.1");
}

#[tokio::test]
async fn the_prefix_is_stripped_and_put_before_locations() {
    let origin = answering("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = ReverseProxyLayer::new(origin).prefix("/mydir").strip_prefix().into_service();
    let answer = get(front(proxy, as_it_is).await, "/mydir/x", "").await;
    assert_eq!((answer.status(), answer.field("location")), (302, Some("/mydir/login")));
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/mydir").strip_prefix().into_service();
    let addr = front(proxy, as_it_is).await;
    assert_eq!(get(addr, "/mydir/x?y", "").await.mirrored().start_line(), "GET /x?y HTTP/1.1");
    assert_eq!(get(addr, "/mydirx", "").await.status(), 400);
}

#[tokio::test]
async fn only_the_application_sets_the_signed_in_user() {
    let origin = mirror().await;
    let layer = || ReverseProxyLayer::new(&*origin).upstream_layer(RemoteUserLayer::new());
    let claim = "Remote-User: admin\r\nREMOTE_USER: admin\r\n";
    let anonymous = front(layer().into_service(), as_it_is).await;
    assert!(!get(anonymous, "/x", claim).await.mirrored().head.contains("admin"));
    let alice = front(layer().into_service(), |request, _| {
        request.extensions_mut().insert(RemoteUser::from("alice"));
    })
    .await;
    assert_eq!(get(alice, "/x", claim).await.mirrored().field("remote-user"), Some("alice"));
}

#[tokio::test]
async fn a_websocket_is_tunnelled() {
    let origin = backend(|mut wire| async move {
        assert!(wire.head().await.unwrap().to_ascii_lowercase().contains("\r\nupgrade: websocket\r\n"));
        let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket";
        wire.send(format!("{switch}\r\n{accept}\r\n\r\n").as_bytes()).await;
        let echoed = wire.bytes(5).await;
        wire.send(&echoed).await;
    })
    .await;
    let mut wire = client(front(ReverseProxy::new(origin), as_it_is).await).await;
    let offer = "GET /chat HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    wire.send(offer.as_bytes()).await;
    assert_eq!(wire.message().await.unwrap().status(), 101);
    wire.send(b"hello").await;
    assert_eq!(wire.bytes(5).await, b"hello");
}

#[tokio::test]
async fn failures_have_their_status() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let unreachable = front(ReverseProxy::new(format!("http://{gone}")), as_it_is).await;
    assert_eq!(get(unreachable, "/x", "").await.status(), 502);
    let malformed = front(ReverseProxy::new(answering("nonsense\r\n\r\n").await), as_it_is).await;
    assert_eq!(get(malformed, "/x", "").await.status(), 502);
}

/// Not plaintext instead.
#[cfg(not(feature = "tls"))]
#[test]
fn an_https_backend_is_refused_without_tls() {
    let error = ReverseProxyLayer::try_new("https://backend.example").unwrap_err();
    assert!(error.to_string().contains("`tls-ring`"), "{error}");
}

#[cfg(feature = "tls-ring")]
#[test]
fn an_https_backend_is_accepted_with_tls() {
    assert!(ReverseProxyLayer::try_new("https://backend.example").is_ok());
}

/// axum's connect info is read with the feature `axum` only.
#[tokio::test]
async fn connect_info_is_read_with_axum_only() {
    let addr = front(ReverseProxy::new(mirror().await), |request, peer| {
        request.extensions_mut().insert(axum::extract::ConnectInfo(peer));
    })
    .await;
    let seen = get(addr, "/x", "").await.mirrored();
    assert_eq!(seen.field("x-forwarded-for"), cfg!(feature = "axum").then_some("127.0.0.1"));
}
