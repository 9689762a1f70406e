//! Single fields of requests and responses, each as it arrives on the other side.

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request},
};
use http_body_util::BodyExt;
use tower_reverse_proxy::ReverseProxyLayer;

use crate::support::{Message, answering, front, get, http2, mirror};

fn layer(origin: &str) -> ReverseProxyLayer {
    ReverseProxyLayer::new(origin).prefix("/mydir")
}

/// Sends a request without a body over HTTP/2, with these fields, and returns what a mirror saw.
async fn mirrored_over_http2(layer: ReverseProxyLayer, fields: &[(&'static str, &'static str)]) -> Message {
    let mut request = Request::get("http://front.example/mydir/x");
    for &(name, value) in fields {
        request = request.header(name, HeaderValue::from_static(value));
    }
    let mut sender = http2(front(Router::new().layer(layer)).await).await;
    let response = sender.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes().to_vec();
    let head = "HTTP/1.1 200 OK\r\n\r\n".to_owned();
    Message { head, body, trailers: String::new(), complete: true }.mirrored()
}

#[tokio::test]
async fn hidden_cookies_reach_no_backend() {
    let origin = mirror().await;
    let addr = front(Router::new().layer(layer(&origin).hide_cookies(["id", "__Host-sid"]))).await;
    for (fields, left) in [
        ("Cookie: a=1; id=secret; b=\"x\"\r\n", Some("a=1; b=\"x\"")),
        ("Cookie: id=secret\r\nCookie: a=1;b=2\r\n", Some("a=1;b=2")),
        ("Cookie: id=secret; __Host-sid=secret\r\n", None),
        ("Cookie: idx=1; ID=2\r\n", Some("idx=1; ID=2")),
        ("", None),
    ] {
        let mirrored = get(addr, "/mydir/x", fields).await.mirrored();
        assert_eq!(mirrored.field("cookie"), left);
        assert!(!mirrored.head.contains("secret"), "{}", mirrored.head);
    }
    let seen = get(front(Router::new().layer(layer(&origin))).await, "/mydir/x", "Cookie: id=1\r\n").await.mirrored();
    assert_eq!(seen.field("cookie"), Some("id=1"), "none is hidden unless said");
}

#[tokio::test]
async fn hidden_cookies_go_from_crumbs_too() {
    let layer = layer(&mirror().await).hide_cookies(["id"]);
    let crumbs = [("cookie", "a=1"), ("cookie", "id=secret"), ("cookie", "b=2")];
    assert_eq!(mirrored_over_http2(layer.clone(), &crumbs).await.field("cookie"), Some("a=1; b=2"));
    assert_eq!(mirrored_over_http2(layer, &crumbs[1..2]).await.field("cookie"), None);
}

#[tokio::test]
async fn a_backend_sets_no_hidden_cookie() {
    let origin = answering(
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: id=evil; Path=/\r\nSet-Cookie: =id=evil\r\n\
         Set-Cookie: ids=2\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let addr = front(Router::new().layer(layer(&origin).hide_cookies(["id"]))).await;
    assert_eq!(get(addr, "/mydir/x", "").await.all("set-cookie"), ["a=1; Path=/", "ids=2"]);
}

#[tokio::test]
#[should_panic(expected = "invalid cookie name \"id=1\": write the name alone")]
async fn a_cookie_is_hidden_by_its_name_alone() {
    let _ = layer("http://127.0.0.1:9").hide_cookies(["id=1"]);
}
