//! How a response ends: its framing, and what a client sees of a truncated response.

use std::{
    convert::Infallible,
    future::poll_fn,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    BoxError, Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{StatusCode, header::CONTENT_LENGTH},
    response::Response,
};
use http_body_util::{StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::ReverseProxyLayer;

use crate::support::{answering, client, closing, front, http2, mounts, within};

async fn proxied(origin: String) -> std::net::SocketAddr {
    front(Router::new().layer(ReverseProxyLayer::new(origin))).await
}

#[tokio::test]
async fn a_body_of_unknown_length_closes_the_connection_of_an_http_1_0_client() {
    for unknown in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        // An empty body, too.
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        for wish in ["Connection: keep-alive\r\n", "Connection: Keep-Alive, x\r\n", ""] {
            let mut wire = client(proxied(answering(unknown).await).await).await;
            wire.send(format!("GET /x HTTP/1.0\r\nHost: a\r\n{wish}\r\n").as_bytes()).await;
            let answer = wire.message().await.unwrap();
            let body = if unknown.contains("hello") { "hello" } else { "" };
            assert_eq!((answer.status(), &*answer.text()), (200, body));
            let fields = (answer.field("connection"), answer.field("keep-alive"), answer.field("transfer-encoding"));
            let has_length = answer.field("content-length").is_some();
            assert!(has_length || fields == (Some("close"), None, None), "{answer:?}");
            assert!(has_length || wire.closed().await);
        }
    }
    // A close-delimited body.
    let origin = closing("HTTP/1.1 200 OK\r\n\r\nhello").await;
    let mut wire = client(proxied(origin).await).await;
    wire.send(b"GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").await;
    let answer = wire.message().await.unwrap();
    assert_eq!((answer.field("connection"), &*answer.text()), (Some("close"), "hello"));
}

#[tokio::test]
async fn a_body_of_known_length_keeps_the_connection_of_an_http_1_0_client() {
    for (known, method) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "GET"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD"),
        ("HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n", "GET"),
        ("HTTP/1.1 204 No Content\r\n\r\n", "GET"),
    ] {
        let mut wire = client(proxied(answering(known).await).await).await;
        for _ in 0..2 {
            wire.send(format!("{method} /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").as_bytes()).await;
            let answer = wire.message().await.unwrap_or_else(|| panic!("{method} {known}"));
            assert_eq!(answer.field("connection"), Some("keep-alive"), "{known}");
        }
    }
}

#[tokio::test]
async fn the_connection_of_an_http_1_1_client_is_kept_for_any_length() {
    for response in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\n\r\n",
    ] {
        let mut wire = client(proxied(answering(response).await).await).await;
        for _ in 0..2 {
            wire.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(wire.message().await.unwrap().field("connection"), None);
        }
    }
}

#[tokio::test]
async fn a_204_has_no_content_length() {
    for response in ["HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"] {
        // Some of axum's routes add a Content-Length to a response without one.
        for (mount, addr) in mounts(&answering(response).await).await {
            for (method, hops) in [("GET", "9"), ("DELETE", "9"), ("OPTIONS", "9"), ("HEAD", "9"), ("OPTIONS", "0")] {
                let name = format!("{mount}, {method}, {hops}");
                let request = Request::builder().method(method).uri("http://front.example/mydir/x");
                let request = request.header("max-forwards", hops).body(Body::empty()).unwrap();
                let answer = within(http2(addr).await.send_request(request)).await.unwrap();
                let length = answer.headers().get(CONTENT_LENGTH);
                assert_eq!((answer.status(), length), (StatusCode::NO_CONTENT, None), "{name}");
                let mut wire = client(addr).await;
                let request = format!("{method} /mydir/x HTTP/1.1\r\nHost: a\r\nMax-Forwards: {hops}\r\n\r\n");
                wire.send(request.as_bytes()).await;
                let answer = wire.message().await.unwrap();
                assert_eq!((answer.status(), answer.field("content-length")), (204, None), "{name}");
            }
        }
    }
}

/// A body of these frames, available at once, and then an error.
fn cut(frames: &'static [&'static str]) -> UnsyncBoxBody<Bytes, BoxError> {
    let mut frames = frames.iter();
    let stream = futures_util::stream::poll_fn(move |_| {
        Poll::Ready(Some(match frames.next() {
            Some(frame) => Ok(Frame::data(Bytes::from_static(frame.as_bytes()))),
            None => Err(BoxError::from("cut")),
        }))
    });
    UnsyncBoxBody::new(StreamBody::new(Box::pin(stream) as Pin<Box<_>>))
}

#[tokio::test]
async fn data_before_a_truncation_is_delivered() {
    for (frames, arrives) in [(&[][..], ""), (&["abc"], "abc"), (&["abc", "def"], "abcdef")] {
        let upstream = service_fn(move |_: Request| async move { Ok::<_, Infallible>(Response::new(cut(frames))) });
        let addr = front(Router::new().layer(ReverseProxyLayer::with_upstream(upstream))).await;
        for _ in 0..20 {
            let mut wire = client(addr).await;
            wire.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let answer = wire.message().await.expect("a head");
            assert_eq!((answer.status(), &*answer.text(), answer.complete), (200, arrives, false));
        }
    }
}

/// A body that fails and then reports its end, as the body of the crate's client does.
struct Failing {
    over: bool,
}

impl HttpBody for Failing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Poll::Ready((!mem::replace(&mut self.over, true)).then(|| Err("cut".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}

#[tokio::test]
async fn a_failed_body_reports_no_end_before_its_error() {
    let upstream = service_fn(async |_: Request| Ok::<_, Infallible>(Response::new(Failing { over: false })));
    let request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
    let Ok(response) = ReverseProxyLayer::with_upstream(upstream).into_service().oneshot(request).await;
    let mut body = response.into_body();
    assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await.is_pending());
    assert!(!body.is_end_stream());
    assert!(matches!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await, Some(Err(_))));
}
