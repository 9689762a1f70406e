//! The limits that the documentation lists: each behaves as described.

use std::sync::Arc;

use axum::{Router, body::Body, extract::Request, routing::get as route};
use http_body_util::BodyExt;
use tokio::sync::Notify;
use tower_reverse_proxy::ReverseProxyLayer;

use crate::support::{answering, backend, client, front, get, http2, mirror, within};

fn app(origin: &str) -> Router {
    Router::new().route("/", route(async || "home")).layer(ReverseProxyLayer::new(origin).prefix("/mydir"))
}

#[tokio::test]
async fn a_folded_field_line_in_a_response_is_502() {
    let origin = answering("HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(get(front(app(&origin)).await, "/mydir/x", "").await.status(), 502);
    // The server in front refuses a folded line of a request.
    assert_eq!(get(front(app(&mirror().await)).await, "/mydir/x", "X-A: 1\r\n 2\r\n").await.status(), 400);
}

#[tokio::test]
async fn a_percent_encoded_prefix_is_another_path() {
    let addr = front(app(&mirror().await)).await;
    for (target, status) in [("/mydir/x", 200), ("/%6dydir/x", 404), ("/mydir%2fx", 404), ("/MYDIR/x", 404)] {
        assert_eq!(get(addr, target, "").await.status(), status, "{target}");
    }
}

#[tokio::test]
async fn a_location_below_the_public_prefix_is_not_mapped_again() {
    for (location, mapped) in [("/x", "/mydir/x"), ("/mydir/x", "/mydir/x"), ("/mydirx", "/mydir/mydirx")] {
        let origin =
            answering(format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")).await;
        let layer = ReverseProxyLayer::new(origin).prefix("/mydir").strip_prefix();
        let answer = get(front(Router::new().layer(layer)).await, "/mydir/", "").await;
        assert_eq!(answer.field("location"), Some(mapped));
    }
}

#[tokio::test]
async fn an_http_1_0_client_cannot_detect_a_truncated_response_without_a_length() {
    let truncate = Arc::new(Notify::new());
    let is_truncated = truncate.clone();
    let origin = backend(move |mut wire| {
        let is_truncated = is_truncated.clone();
        async move {
            wire.message().await;
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
            is_truncated.notified().await;
        }
    })
    .await;
    let mut wire = client(front(app(&origin)).await).await;
    wire.send(b"GET /mydir/x HTTP/1.0\r\nHost: a\r\n\r\n").await;
    let head = wire.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.0 200") && !head.contains("content-length"), "{head}");
    assert_eq!(wire.bytes(5).await, b"hello");
    // A truncation that arrives with the head would be a 502.
    truncate.notify_one();
    assert!(wire.closed().await);
}

#[tokio::test]
async fn the_server_in_front_limits_the_fields_of_an_http2_request() {
    let addr = front(app(&mirror().await)).await;
    let cookie = format!("a={}", "x".repeat(20_000));
    assert_eq!(get(addr, "/mydir/x", &format!("Cookie: {cookie}\r\n")).await.status(), 200);
    let request = Request::get("http://front.example/mydir/x").header("cookie", cookie).body(Body::empty()).unwrap();
    let answer = within(http2(addr).await.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), 431);
}

#[tokio::test]
async fn unannounced_trailers_reach_http2_clients_only() {
    let origin =
        answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n").await;
    let addr = front(app(&origin)).await;
    let answer = get(addr, "/mydir/x", "Connection: TE\r\nTE: trailers\r\n").await;
    assert_eq!((&*answer.text(), &*answer.trailers, answer.complete), ("hello", "", true));
    let request = Request::get("http://front.example/mydir/x").body(Body::empty()).unwrap();
    let answer = within(http2(addr).await.send_request(request)).await.unwrap();
    let body = within(answer.into_body().collect()).await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "5");
}
