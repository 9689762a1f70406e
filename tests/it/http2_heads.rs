//! Request heads that are too large for an HTTP/2 backend: they fail without ending other exchanges.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderName, HeaderValue, header::COOKIE},
    response::Response,
};
use http_body_util::{BodyExt, Channel};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};
use tower::ServiceExt;
use tower_reverse_proxy::{Client, Error, ErrorKind, ReverseProxy, ReverseProxyLayer};

use crate::support::{
    backend,
    frames::{CONTINUATION, DATA, END_HEADERS, GOAWAY, HEADERS, STATUS_200, frame},
    http2_backends::{Http2, greet, read_frame},
    within,
};

const ENHANCE_YOUR_CALM: u8 = 11;

/// Behaves like nginx: it announces no limit, and ends the connection for a head of more than `most` octets. The first
/// response of the first connection completes when a second request has arrived.
async fn like_nginx(most: usize) -> (String, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let url = backend(move |wire| {
        let (mut stream, number) = (wire.stream, counted.fetch_add(1, Ordering::SeqCst));
        async move {
            greet(&mut stream, &[]).await;
            let (mut block, mut requests) = (0, 0);
            while let Some(received) = read_frame(&mut stream).await {
                let id = received.stream;
                match (received.kind, received.flags & END_HEADERS != 0) {
                    (HEADERS | CONTINUATION, is_whole) => {
                        block += received.payload.len();
                        if block > most {
                            let last = [&id.to_be_bytes()[..], &[0, 0, 0, ENHANCE_YOUR_CALM]].concat();
                            stream.write_all(&frame(GOAWAY, 0, 0, &last)).await.unwrap();
                            // Unread octets would cause a reset, and the frame would be lost.
                            stream.shutdown().await.unwrap();
                            let _ = stream.read_to_end(&mut Vec::new()).await;
                            return;
                        }
                        if !is_whole {
                            continue;
                        }
                        block = 0;
                        requests += 1;
                        let mut answer = frame(HEADERS, END_HEADERS, id, STATUS_200);
                        if number > 0 || requests > 1 {
                            answer.extend(frame(DATA, 1, id, format!("connection {number}").as_bytes()));
                        }
                        if number == 0 && requests == 2 {
                            answer.extend(frame(DATA, 1, 1, b"whole"));
                        }
                        stream.write_all(&answer).await.unwrap();
                    }
                    _ => stream.write_all(&received.acknowledgement()).await.unwrap(),
                }
            }
        }
    })
    .await;
    (url, connections)
}

fn request() -> Request {
    Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap()
}

fn cookie(length: usize) -> Request {
    let mut request = request();
    request.headers_mut().insert(COOKIE, HeaderValue::try_from("c".repeat(length)).unwrap());
    request
}

async fn call(proxy: &ReverseProxy, request: Request) -> Response {
    let Ok(response): Result<_, Infallible> = within(proxy.clone().oneshot(request)).await;
    response
}

/// The status of the response, the kind of its failure, and its body.
async fn outcome(proxy: &ReverseProxy, request: Request) -> (u16, Option<ErrorKind>, String) {
    let response = call(proxy, request).await;
    let (status, kind) = (response.status().as_u16(), response.extensions().get::<Error>().map(Error::kind));
    let text = within(response.into_body().collect()).await.unwrap().to_bytes();
    (status, kind, String::from_utf8(text.into()).unwrap())
}

#[tokio::test]
async fn a_head_that_makes_the_backend_close_fails_no_other_exchange() {
    let (url, connections) = like_nginx(8000).await;
    let proxy = ReverseProxyLayer::new(Client::builder(url).http2(true)).into_service();
    let held = call(&proxy, request()).await;
    let mut path = request();
    *path.uri_mut() = format!("/{}", "p".repeat(20_000)).parse().unwrap();
    for (large, text) in [(cookie(20_000), "cookie"), (path, "path")] {
        let (status, kind, _) = outcome(&proxy, large).await;
        assert_eq!((status, kind), (431, Some(ErrorKind::RequestHeadTooLarge)), "{text}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 3);
    // Nothing of this request is sent.
    let mut fields = request();
    for number in 0..90 {
        let name = HeaderName::try_from(format!("x-{number}")).unwrap();
        fields.headers_mut().insert(name, HeaderValue::try_from("f".repeat(4000)).unwrap());
    }
    assert_eq!(outcome(&proxy, fields).await.0, 431);
    assert_eq!(outcome(&proxy, request()).await, (200, None, "connection 0".into()));
    assert_eq!(connections.load(Ordering::SeqCst), 3);
    let whole = within(held.into_body().collect()).await.unwrap();
    assert_eq!(whole.to_bytes(), "whole");
}

#[tokio::test]
async fn large_heads_share_connections_once_the_backend_accepts_them() {
    let (url, connections) = like_nginx(usize::MAX).await;
    let proxy = ReverseProxyLayer::new(Client::builder(url).http2(true)).into_service();
    let _held = call(&proxy, request()).await;
    for (length, connection) in [(7000, 0), (16_000, 1), (16_000, 0), (10_000, 0), (17_000, 2), (17_000, 0)] {
        let expected = (200, None, format!("connection {connection}"));
        assert_eq!(outcome(&proxy, cookie(length)).await, expected, "{length}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_large_head_waits_at_the_connection_limit() {
    let (url, connections) = like_nginx(usize::MAX).await;
    let proxy = ReverseProxyLayer::new(Client::builder(url).http2(true).max_connections(1)).into_service();
    drop(call(&proxy, request()).await);
    // The existing connection isn't used.
    assert_eq!(outcome(&proxy, cookie(16_000)).await, (200, None, "connection 1".into()));
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_settings_limit_of_a_dedicated_connection_applies() {
    let (connections, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, seen) = (connections.clone(), heads.clone());
    let url = backend(move |wire| {
        let (mut stream, number, seen) = (wire.stream, counted.fetch_add(1, Ordering::SeqCst), seen.clone());
        async move {
            // SETTINGS_MAX_HEADER_LIST_SIZE of 10,000, except on the first connection.
            greet(&mut stream, if number == 0 { &[] } else { &[0, 6, 0, 0, 0x27, 0x10] }).await;
            while let Some(received) = read_frame(&mut stream).await {
                if received.kind == HEADERS {
                    seen.fetch_add(1, Ordering::SeqCst);
                    stream.write_all(&frame(HEADERS, 5, received.stream, STATUS_200)).await.unwrap();
                }
            }
        }
    })
    .await;
    let proxy = ReverseProxyLayer::new(Client::builder(url).http2(true)).into_service();
    assert_eq!(outcome(&proxy, request()).await.0, 200);
    let (status, kind, _) = outcome(&proxy, cookie(20_000)).await;
    assert_eq!((status, kind), (431, Some(ErrorKind::RequestHeadTooLarge)));
    assert_eq!((connections.load(Ordering::SeqCst), heads.load(Ordering::SeqCst)), (2, 1));
}

#[tokio::test]
async fn head_limits_of_the_backend_and_the_operator_are_enforced() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    // hyper's server accepts 16 KiB, and announces that.
    let (url, backend, _ended) = Http2::serve(100, move |_: hyper::Request<Incoming>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Response::new(Body::from("ok")) }
    })
    .await;
    let client = || Client::builder(&url).http2(true);
    let too_large = Some(ErrorKind::RequestHeadTooLarge);
    for (client, length, kind) in [
        (client(), 15_000, None),
        (client(), 17_000, too_large),
        (client().http2_max_request_head(1000), 100, None),
        (client().http2_max_request_head(1000), 1000, too_large),
        (client().http2_max_request_head(100_000), 17_000, too_large),
    ] {
        let (status, failed, _) = outcome(&ReverseProxy::new(client), cookie(length)).await;
        assert_eq!((status, failed), (if kind.is_some() { 431 } else { 200 }, kind), "{length}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    assert_eq!(backend.connections.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn response_heads_are_limited_in_size() {
    let second = Arc::new(Notify::new());
    let let_go = second.clone();
    let (url, backend, _ended) = Http2::serve(100, move |request: hyper::Request<Incoming>| {
        let second = second.clone();
        async move {
            let (count, length) = request.uri().path()[1..].split_once('/').unwrap();
            let (count, length): (usize, usize) = (count.parse().unwrap(), length.parse().unwrap());
            let (mut sender, body) = Channel::<Bytes>::new(1);
            tokio::spawn(async move {
                if count == 0 {
                    second.notified().await;
                }
                let _ = sender.send_data("ok".into()).await;
            });
            let mut response = Response::new(Body::new(body));
            for number in 0..count {
                let name = HeaderName::try_from(format!("x-{number}")).unwrap();
                response.headers_mut().insert(name, HeaderValue::try_from("f".repeat(length)).unwrap());
            }
            response
        }
    })
    .await;
    let client = Client::builder(url).http2(true);
    let proxy = ReverseProxy::new(client.clone());
    let get = |path: &str| Request::get(path).header("host", "front.example").body(Body::empty()).unwrap();
    // Another exchange on the same connection, all the while.
    let held = call(&proxy, get("/0/0")).await;
    let ok = (200, None, "ok".to_owned());
    let too_large = (502, Some(ErrorKind::ResponseHeadTooLarge), "Bad Gateway".to_owned());
    for (path, expected) in [
        ("/1/20000", &ok),
        ("/60/1000", &ok),
        ("/200/1000", &ok),
        ("/250/10", &ok),
        ("/300/10", &too_large),
        ("/100/3000", &too_large),
        ("/1/290000", &too_large),
        ("/1/1", &ok),
    ] {
        assert_eq!(&outcome(&proxy, get(path)).await, expected, "{path}");
    }
    let_go.notify_one();
    assert_eq!(within(held.into_body().collect()).await.unwrap().to_bytes(), "ok");
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
    // A head of this size ends the connection. The failure has the same kind.
    assert_eq!(outcome(&proxy, get("/100/10000")).await, too_large);
    // A lower limit, and a higher one.
    let narrow = ReverseProxy::new(client.clone().max_response_head(1000).max_response_fields(5));
    for (path, expected) in [("/1/1000", &too_large), ("/6/1", &too_large), ("/1/100", &ok)] {
        assert_eq!(&outcome(&narrow, get(path)).await, expected, "{path}");
    }
    let wide = ReverseProxy::new(client.max_response_head(1 << 20).max_response_fields(400));
    for (path, expected) in [("/1/290000", &ok), ("/300/10", &ok)] {
        assert_eq!(&outcome(&wide, get(path)).await, expected, "{path}");
    }
}
