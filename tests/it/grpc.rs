//! gRPC, with HTTP/2 on both sides: the messages, metadata and statuses of gRPC libraries pass unchanged.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, Request, Response},
};
use http_body_util::{BodyExt, Channel, channel::Sender};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::http2::SendRequest,
};
use tokio::{sync::mpsc, time::timeout};
use tower::BoxError;
use tower_reverse_proxy::{Client, ReverseProxyLayer};

use crate::support::{PATIENCE, front, http2, http2_backends::Http2, refusing, within};

/// A message with its prefix: not compressed, and its length.
fn message(payload: &str) -> Bytes {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0], &length[..], payload.as_bytes()].concat().into()
}

/// Reads the next message. Each test sends one message per frame; an empty frame is the end of the stream.
async fn next(body: &mut Incoming) -> Option<Bytes> {
    let frame = timeout(PATIENCE, body.frame()).await.expect("a message arrives");
    frame.and_then(|frame| frame.unwrap().into_data().ok()).filter(|data| !data.is_empty())
}

/// Reads the trailers, which end the call.
async fn status(body: &mut Incoming) -> HeaderMap {
    let frame = within(body.frame()).await.expect("trailers").unwrap();
    assert!(within(body.frame()).await.is_none());
    frame.into_trailers().expect("trailers")
}

fn metadata(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// Begins a response.
fn answer(fields: &[(&'static str, &str)]) -> (Sender<Bytes, BoxError>, Response<Body>) {
    let (sender, body) = Channel::new(1);
    let mut response = Response::new(Body::new(body));
    *response.headers_mut() = metadata(fields);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    (sender, response)
}

/// Begins a call through a proxy to a backend.
async fn call(client: &mut SendRequest<Body>, fields: &[(&'static str, &str)]) -> (Sender<Bytes, BoxError>, Answer) {
    let (sender, body) = Channel::new(1);
    let mut request = Request::post("http://front.example/test.Test/Call").body(Body::new(body)).unwrap();
    *request.headers_mut() = metadata(fields);
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc+proto"));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    (sender, Box::pin(client.send_request(request)))
}

type Answer = std::pin::Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

fn layer(origin: String) -> ReverseProxyLayer {
    ReverseProxyLayer::new(Client::builder(origin).http2(true))
}

async fn proxied(layer: ReverseProxyLayer) -> SendRequest<Body> {
    http2(front(Router::new().layer(layer.prefix("/test.Test"))).await).await
}

#[tokio::test]
async fn bidirectional_messages_are_forwarded_one_by_one() {
    // Each message is echoed before the next one is sent, in unary and streaming calls alike.
    let (origin, ..) = Http2::serve(100, async |request: Request<Incoming>| {
        let (mut sender, response) = answer(&[("x-initial", "1")]);
        let mut body = request.into_body();
        tokio::spawn(async move {
            while let Some(received) = next(&mut body).await {
                sender.send_data(received).await.unwrap();
            }
            sender.send_trailers(metadata(&[("grpc-status", "0"), ("x-final-bin", "AP8=")])).await.unwrap();
        });
        response
    })
    .await;
    let mut client = proxied(layer(origin)).await;
    for messages in [&["one"][..], &["one", "two", "", "three"]] {
        let (mut sender, response) = call(&mut client, &[]).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["x-initial"], "1");
        let mut body = response.into_body();
        for sent in messages {
            sender.send_data(message(sent)).await.unwrap();
            assert_eq!(next(&mut body).await.unwrap(), message(sent));
        }
        drop(sender);
        let trailers = status(&mut body).await;
        assert_eq!(trailers, metadata(&[("grpc-status", "0"), ("x-final-bin", "AP8=")]));
    }
}

#[tokio::test]
async fn unidirectional_streams_are_forwarded_one_by_one() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let (origin, ..) = Http2::serve(100, move |request: Request<Incoming>| {
        let report = report.clone();
        async move {
            // The backend sends its messages after the client's last one.
            let mut body = request.into_body();
            let mut count = 0;
            while let Some(received) = next(&mut body).await {
                report.send(received).unwrap();
                count += 1;
            }
            let (mut sender, response) = answer(&[]);
            tokio::spawn(async move {
                for _ in 0..count {
                    sender.send_data(message("back")).await.unwrap();
                }
                sender.send_trailers(metadata(&[("grpc-status", "0")])).await.unwrap();
            });
            response
        }
    })
    .await;
    let mut client = proxied(layer(origin)).await;
    let (mut sender, response) = call(&mut client, &[]).await;
    let response = tokio::spawn(response);
    for sent in ["one", "two", "three"] {
        sender.send_data(message(sent)).await.unwrap();
        assert_eq!(within(reports.recv()).await.unwrap(), message(sent));
    }
    drop(sender);
    let mut body = response.await.unwrap().unwrap().into_body();
    // Messages that arrive together may be one frame.
    let (mut received, sent) = (Vec::new(), message("back").repeat(3));
    while received.len() < sent.len() {
        received.extend_from_slice(&next(&mut body).await.unwrap());
    }
    assert_eq!(received, sent);
    assert_eq!(status(&mut body).await["grpc-status"], "0");
}

#[tokio::test]
async fn metadata_is_forwarded_unchanged() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let (origin, ..) = Http2::serve(100, move |request: Request<Incoming>| {
        seen.lock().unwrap().push(request.headers().clone());
        // A trailers-only response: a status, no body, no trailers.
        let fields =
            [("grpc-status", "5"), ("grpc-message", "not%20found%0A"), ("grpc-status-details-bin", "CAUSAA==")];
        let mut response = Response::new(Body::empty());
        *response.headers_mut() = metadata(&fields);
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        async { response }
    })
    .await;
    let mut client = proxied(layer(origin)).await;
    let sent = [
        ("grpc-timeout", "250m"),
        ("grpc-encoding", "identity"),
        ("authorization", "Bearer t"),
        ("x-key-bin", "AP8"),
        ("x-key-bin", "AAEC,AwQ="),
        ("user-agent", "grpc-test/1"),
    ];
    let (sender, response) = call(&mut client, &sent).await;
    drop(sender);
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "5");
    assert_eq!(response.headers()["grpc-message"], "not%20found%0A");
    assert_eq!(response.headers()["grpc-status-details-bin"], "CAUSAA==");
    assert!(response.body().is_end_stream(), "the response ends with its head");
    let [head] = &heads.lock().unwrap()[..] else { panic!("one request") };
    for (name, _) in sent {
        let sent: Vec<_> = sent.iter().filter(|(same, _)| *same == name).map(|(_, value)| *value).collect();
        assert_eq!(head.get_all(name).iter().collect::<Vec<_>>(), sent, "{name}");
    }
    assert_eq!(head["te"], "trailers");
    assert_eq!(head["content-type"], "application/grpc+proto");
}

/// Why a stream was reset.
fn reason(error: &hyper::Error) -> Option<h2::Reason> {
    std::error::Error::source(error)?.downcast_ref::<h2::Error>()?.reason()
}

#[tokio::test]
async fn cancelling_a_call_ends_it_at_the_backend() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let (origin, ..) = Http2::serve(100, move |request: Request<Incoming>| {
        let report = report.clone();
        let (mut sender, response) = answer(&[]);
        tokio::spawn(async move {
            let mut body = request.into_body();
            let received = next(&mut body).await.unwrap();
            sender.send_data(received).await.unwrap();
            // A reset, not the end of the client's messages. The backend's messages reach no client either.
            let end = body.frame().await;
            while sender.send_data(message("more")).await.is_ok() {}
            report.send(end.map(|end| end.map_err(|error| reason(&error)))).unwrap();
        });
        async { response }
    })
    .await;
    let mut client = proxied(layer(origin)).await;
    let (mut sender, response) = call(&mut client, &[]).await;
    sender.send_data(message("one")).await.unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(next(&mut body).await.unwrap(), message("one"));
    // gRPC libraries cancel like this when the deadline has passed.
    let deadline: BoxError = h2::Error::from(h2::Reason::CANCEL).into();
    sender.abort(deadline);
    let end = timeout(PATIENCE, reports.recv()).await.expect("the call ends").unwrap();
    assert!(matches!(end, Some(Err(Some(_)))), "a reset: {end:?}");
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn a_call_reset_by_the_backend_is_reset_for_the_client() {
    let (origin, ..) = Http2::serve(100, async |request: Request<Incoming>| {
        let (mut sender, response) = answer(&[]);
        tokio::spawn(async move {
            let mut body = request.into_body();
            sender.send_data(next(&mut body).await.unwrap()).await.unwrap();
            next(&mut body).await;
            sender.abort(h2::Error::from(h2::Reason::CANCEL).into());
        });
        response
    })
    .await;
    let mut client = proxied(layer(origin)).await;
    let (mut sender, response) = call(&mut client, &[]).await;
    sender.send_data(message("one")).await.unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(next(&mut body).await.unwrap(), message("one"));
    sender.send_data(message("two")).await.unwrap();
    let end = within(body.frame()).await;
    assert!(matches!(&end, Some(Err(_))), "a reset: {end:?}");
    // Only the call is reset. The connection is kept.
    let (mut sender, response) = call(&mut client, &[]).await;
    sender.send_data(message("one")).await.unwrap();
    assert_eq!(next(&mut response.await.unwrap().into_body()).await.unwrap(), message("one"));
}

#[tokio::test]
async fn failures_of_the_proxy_are_trailers_only_responses() {
    let (silent, ..) =
        Http2::serve(100, async |_: Request<Incoming>| std::future::pending::<Response<Body>>().await).await;
    for (origin, code, text) in [(refusing().await, "14", "Bad Gateway"), (silent, "4", "Gateway Timeout")] {
        let mut client = proxied(layer(origin).header_timeout(Duration::from_millis(150))).await;
        let (mut sender, response) = call(&mut client, &[]).await;
        let _ = sender.send_data(message("one")).await;
        drop(sender);
        let response = within(response).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], code);
        assert_eq!(response.headers()["grpc-message"], text);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert!(response.body().is_end_stream(), "the response ends with its head");
    }
}
