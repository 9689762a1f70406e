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
}

#[tokio::test]
async fn a_protocol_error_after_the_head_aborts_the_response() {
    let url = framing(|request, stream| match request {
        0 => [frame(HEADERS, END_HEADERS, stream, STATUS_200), frame(DATA, 0, stream, b"part")].concat(),
        // A window that grows by nothing, which h2 treats as an error of the connection.
        _ => frame(WINDOW_UPDATE, 0, 1, &[0; 4]),
    })
    .await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(Client::builder(url).http2(true)))).await;
    let mut wire = client(addr).await;
    wire.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(wire.chunk().await.unwrap(), b"part");
    assert_eq!(get(addr, "/y", "").await.status(), 502);
    assert!(wire.closed().await);
}
