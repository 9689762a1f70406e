//! Backends that violate HTTP/2: raw frames (RFC 9113, section 4.1).

use axum::Router;
use tower_reverse_proxy::{Client, ReverseProxyLayer};

use crate::support::{Wire, backend, client, front, get};

const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const DATA: u8 = 0;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A backend that reads the head of a request and responds with these bytes.
async fn answering_in_frames(frames: Vec<u8>) -> String {
    backend(move |mut wire: Wire<_>| {
        let frames = frames.clone();
        async move {
            // The connection preface, and the first frames.
            wire.bytes(24).await;
            wire.send(&frame(SETTINGS, 0, 0, &[])).await;
            loop {
                let head = wire.bytes(9).await;
                let [a, b, c, kind, ..] = head[..] else { return };
                wire.bytes(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)).await;
                if kind == HEADERS {
                    break;
                }
            }
            wire.send(&frames).await;
            while !wire.bytes(1).await.is_empty() {}
        }
    })
    .await
}

#[tokio::test]
async fn a_backend_that_breaks_the_protocol_is_502() {
    // `:status: 200`, indexed.
    let ok = frame(HEADERS, 4, 1, &[0x88]);
    for (name, frames) in [
        ("no HTTP/2 at all", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("a head that can't be decoded", frame(HEADERS, 4, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
        ("a head without a status", frame(HEADERS, 4, 1, &[0x82])),
        ("a head on a stream that isn't open", frame(HEADERS, 4, 7, &[0x88])),
        ("a window that grows by nothing", frame(WINDOW_UPDATE, 0, 1, &[0; 4])),
        ("a body before the head", frame(DATA, 0, 1, b"body")),
        ("a frame that is too long", frame(DATA, 0, 1, &vec![0; 20_000])),
    ] {
        let layer = ReverseProxyLayer::new(Client::builder(answering_in_frames(frames).await).http2(true));
        let addr = front(Router::new().layer(layer)).await;
        assert_eq!(get(addr, "/x", "").await.status(), 502, "{name}");
    }
    // With the head out, it's an abort.
    let frames = [ok, frame(DATA, 0, 1, b"part"), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat();
    let layer = ReverseProxyLayer::new(Client::builder(answering_in_frames(frames).await).http2(true));
    let mut wire = client(front(Router::new().layer(layer)).await).await;
    wire.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    let answer = wire.message().await;
    assert!(answer.as_ref().is_none_or(|answer| answer.status() == 502 || !answer.complete), "{answer:?}");
}
