//! Response heads: their limits, and the leniency in parsing them.

use axum::Router;
use http::{Response, StatusCode};
use tower::ServiceExt;
use tower_reverse_proxy::{Client, ClientBuilder, Error, ErrorKind, ReverseProxy, ReverseProxyLayer};

use crate::support::{answering, front, get, ok, within};

/// A response with `Content-Length` and `count` more fields.
fn fields(count: usize) -> String {
    let fields: String = (0..count).map(|number| format!("X-{number}: y\r\n")).collect();
    format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nhi")
}

/// A response whose head has exactly `count` bytes, in fields of at most 8 KiB.
fn bytes(count: usize) -> String {
    const FIXED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
    const LINE: &str = "X-A: \r\n";
    let mut left = count - FIXED.len();
    let mut fields = String::new();
    while left > 0 {
        let line = if left > 2 * 8192 { 8192 } else { left };
        fields += &format!("X-A: {}\r\n", "y".repeat(line - LINE.len()));
        left -= line;
    }
    let answer = FIXED.replacen("\r\n\r\n", &format!("\r\n{fields}\r\n"), 1);
    assert_eq!(answer.len(), count);
    answer + "hi"
}

async fn answer(change: impl FnOnce(ClientBuilder) -> ClientBuilder, response: String) -> Result<usize, Error> {
    let proxy = ReverseProxyLayer::new(change(Client::builder(answering(response).await)));
    let request = http::Request::get("/x").header("host", "front.example").body(axum::body::Body::empty()).unwrap();
    let service = tower::ServiceBuilder::new().layer(proxy).service(ok());
    let response: Response<_> = within(service.oneshot(request)).await.unwrap();
    match response.extensions().get::<Error>() {
        Some(error) => Err(error.clone()),
        None => {
            assert_eq!(response.status(), StatusCode::OK);
            Ok(response.headers().len())
        }
    }
}

#[track_caller]
fn assert_too_large(outcome: Result<usize, Error>) {
    let error = outcome.unwrap_err();
    assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::ResponseHeadTooLarge, 502));
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("message head is too large"), "{cause}");
}

#[tokio::test]
async fn a_head_has_up_to_256_fields_and_256_kib() {
    assert!(answer(|client| client, fields(255)).await.is_ok());
    assert_too_large(answer(|client| client, fields(256)).await);
    assert!(answer(|client| client, bytes(256 * 1024)).await.is_ok());
    assert_too_large(answer(|client| client, bytes(256 * 1024 + 1)).await);
}

#[tokio::test]
async fn the_limits_of_a_head_are_options() {
    assert!(answer(|client| client.max_response_fields(1), fields(0)).await.is_ok());
    assert_too_large(answer(|client| client.max_response_fields(1), fields(1)).await);
    assert!(answer(|client| client.max_response_fields(2000), fields(1999)).await.is_ok());
    assert_too_large(answer(|client| client.max_response_head(100), bytes(101)).await);
    assert!(answer(|client| client.max_response_head(100), bytes(100)).await.is_ok());
    // Larger than hyper's default buffer.
    assert!(answer(|client| client.max_response_head(1024 * 1024), bytes(1024 * 1024)).await.is_ok());
    assert_too_large(answer(|client| client.max_response_head(1024 * 1024), bytes(1024 * 1024 + 1)).await);
}

#[tokio::test]
async fn a_large_response_head_is_forwarded_complete() {
    let addr = front(Router::new().fallback_service(ReverseProxy::new(answering(bytes(200_000)).await))).await;
    for _ in 0..2 {
        let answer = get(addr, "/x", "").await;
        assert_eq!((answer.status(), &*answer.text()), (200, "hi"));
        assert!(answer.head.len() > 200_000, "{}", answer.head.len());
    }
}

#[tokio::test]
async fn whitespace_before_a_colon_is_removed() {
    let response =
        "HTTP/1.1 200 OK\r\nX-A : 1\r\nX-B\t \t: 2\r\nContent-Length : 2\r\nConnection : x-c\r\nX-C : 3\r\n\r\nhi";
    let addr = front(Router::new().fallback_service(ReverseProxy::new(answering(response).await))).await;
    let answer = get(addr, "/x", "").await;
    assert_eq!((answer.status(), &*answer.text()), (200, "hi"), "{answer:?}");
    assert_eq!((answer.field("x-a"), answer.field("x-b")), (Some("1"), Some("2")), "{answer:?}");
    // `X-C` is removed as a hop-by-hop field, so `Connection :` was read as `Connection`.
    assert_eq!(answer.field("x-c"), None, "{answer:?}");
    assert_eq!(answer.field("content-length"), Some("2"), "{answer:?}");
}

#[tokio::test]
async fn a_head_with_the_largest_number_of_fields_has_room_for_those_of_the_proxy() {
    // Each name is another one, because a map has room for fewer names than values.
    let count = answer(|client| client.max_response_fields(24_000).max_response_head(1 << 20), fields(23_999)).await;
    // `Content-Length` and `Via`.
    assert_eq!(count.unwrap(), 23_999 + 2);
}

#[test]
#[should_panic(expected = "write 1 to 24000")]
fn a_limit_of_zero_response_fields_is_refused() {
    let _ = ReverseProxyLayer::new(Client::builder("http://127.0.0.1:8000").max_response_fields(0));
}

#[test]
#[should_panic(expected = "write a number such as")]
fn a_limit_of_zero_response_head_bytes_is_refused() {
    let _ = ReverseProxyLayer::new(Client::builder("http://127.0.0.1:8000").max_response_head(0));
}
