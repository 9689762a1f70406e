//! Backends that violate HTTP/2: raw frames (RFC 9113, section 4.1).

use axum::Router;
use tower_reverse_proxy::{Client, ReverseProxyLayer};

use crate::support::{
    client,
    frames::{DATA, END_HEADERS, HEADERS, STATUS_200, WINDOW_UPDATE, frame},
    front, get,
    http2_backends::framing,
};

#[tokio::test]
async fn a_backend_that_breaks_the_protocol_is_502() {
    let ok = frame(HEADERS, END_HEADERS, 1, STATUS_200);
    for (name, frames) in [
        ("no HTTP/2 at all", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("a head that can't be decoded", frame(HEADERS, END_HEADERS, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
        ("a head without a status", frame(HEADERS, END_HEADERS, 1, &[0x82])),
        ("a head on a stream that isn't open", frame(HEADERS, END_HEADERS, 7, STATUS_200)),
        ("a window that grows by nothing", frame(WINDOW_UPDATE, 0, 1, &[0; 4])),
        ("a body before the head", frame(DATA, 0, 1, b"body")),
        ("a frame that is too long", frame(DATA, 0, 1, &vec![0; 20_000])),
    ] {
        let layer = ReverseProxyLayer::new(Client::builder(framing(move |_, _| frames.clone()).await).http2(true));
        let addr = front(Router::new().layer(layer)).await;
        assert_eq!(get(addr, "/x", "").await.status(), 502, "{name}");
    }
    // With the head out, it's an abort.
    let frames = [ok, frame(DATA, 0, 1, b"part"), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat();
    let layer = ReverseProxyLayer::new(Client::builder(framing(move |_, _| frames.clone()).await).http2(true));
    let mut wire = client(front(Router::new().layer(layer)).await).await;
    wire.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    let answer = wire.message().await;
    assert!(answer.as_ref().is_none_or(|answer| answer.status() == 502 || !answer.complete), "{answer:?}");
}
