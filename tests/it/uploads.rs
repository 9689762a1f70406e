//! Uploads in progress: their truncation, and the idle timeout of an exchange.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::Response,
};
use http_body_util::{BodyExt, Channel};
use tokio::{
    net::TcpStream,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::{Instant, sleep, timeout},
};
use tower::{ServiceExt, service_fn, util::MapRequestLayer};
use tower_http::{limit::RequestBodyLimitLayer, timeout::RequestBodyTimeoutLayer};
use tower_reverse_proxy::{Client, Error, ErrorKind, ReverseProxy, ReverseProxyLayer};

use crate::support::{
    PATIENCE, Wire, backend, client,
    frames::{DATA, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame},
    front, http2,
    pipes::InMemory,
    within,
};

/// Begins a `POST /` without a length and with 5 octets of body, as an HTTP/2 client that writes raw frames.
async fn uploading(addr: SocketAddr) -> Wire<TcpStream> {
    let mut wire = client(addr).await;
    wire.send(PREFACE).await;
    wire.send(&frame(SETTINGS, 0, 0, &[])).await;
    // `:method: POST`, `:scheme: http`, `:path: /`, and `:authority: a`.
    let head = [0x83, 0x86, 0x84, 0x01, 1, b'a'];
    wire.send(&[frame(HEADERS, 4, 1, &head), frame(DATA, 0, 1, b"hello")].concat()).await;
    wire
}

/// Applications around a proxy: one that leaves the request body as it is, and some whose layers hide how it ended.
fn around(layer: &ReverseProxyLayer) -> [(&'static str, Router); 4] {
    fn rebuild(request: Request) -> Request {
        request.map(|body| Body::from_stream(body.into_data_stream()))
    }
    let router = || Router::new().layer(layer.clone());
    [
        ("as it is", router()),
        ("limited", router().layer(RequestBodyLimitLayer::new(1 << 20))),
        ("in time", router().layer(RequestBodyTimeoutLayer::new(PATIENCE))),
        ("a stream", router().layer(MapRequestLayer::new(rebuild))),
    ]
}

/// A backend that reports the first chunk of each upload, and then whether the upload is complete. With `early`, it
/// responds in between.
async fn reading(early: bool) -> (String, UnboundedReceiver<&'static str>) {
    let (report, reports) = unbounded_channel();
    let origin = backend(move |mut wire| {
        let report = report.clone();
        async move {
            while let Some(head) = wire.head().await {
                assert!(head.to_ascii_lowercase().contains("transfer-encoding: chunked"), "{head}");
                assert_eq!(wire.chunk().await.unwrap(), b"hello");
                if early {
                    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await;
                }
                report.send("begun").unwrap();
                let whole = wire.chunk().await.is_some_and(|last| last.is_empty());
                report.send(if whole { "whole" } else { "cut" }).unwrap();
                wire.send(if early { b"0\r\n\r\n" } else { b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" }).await;
            }
        }
    })
    .await;
    (origin, reports)
}

/// Waits for a report of the backend.
async fn sees(reports: &mut UnboundedReceiver<&'static str>, expected: &str, name: &str) {
    let seen = timeout(PATIENCE, reports.recv()).await.unwrap_or_else(|_| panic!("{name}: {expected} wasn't seen"));
    assert_eq!(seen, Some(expected), "{name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_reset_without_an_error_is_never_complete_at_the_backend() {
    for early in [false, true] {
        let (origin, mut reports) = reading(early).await;
        for (name, app) in around(&ReverseProxyLayer::new(origin)) {
            let addr = front(app).await;
            for _ in 0..20 {
                let mut wire = uploading(addr).await;
                sees(&mut reports, "begun", name).await;
                wire.send(&frame(RST_STREAM, 0, 1, &[0; 4])).await;
                sees(&mut reports, "cut", name).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_reset_without_an_error_is_never_complete_at_an_upstream_service() {
    // The upstream reads in a task of its own, as HTTP/2 clients do.
    let (report, mut reports) = unbounded_channel();
    let upstream = service_fn(move |request: Request| {
        let report = report.clone();
        let mut body = request.into_body();
        async move {
            let (answer, answered) = tokio::sync::oneshot::channel::<()>();
            tokio::spawn(async move {
                let first = body.frame().await.unwrap().unwrap();
                assert_eq!(first.into_data().unwrap(), "hello");
                report.send("begun").unwrap();
                let rest = body.collect().await;
                report.send(if rest.is_ok() { "whole" } else { "cut" }).unwrap();
                drop(answer);
            });
            let _ = answered.await;
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    });
    for (name, app) in around_upstream(ReverseProxyLayer::with_upstream(upstream)) {
        let addr = front(app).await;
        for _ in 0..20 {
            let mut wire = uploading(addr).await;
            sees(&mut reports, "begun", name).await;
            wire.send(&frame(RST_STREAM, 0, 1, &[0; 4])).await;
            sees(&mut reports, "cut", name).await;
        }
    }
}

/// A proxy, and a proxy behind a layer that hides how the request body ended.
fn around_upstream<U>(layer: ReverseProxyLayer<U>) -> [(&'static str, Router); 2]
where
    ReverseProxyLayer<U>: Clone,
    ReverseProxy<U>:
        tower::Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static,
{
    let router = Router::new().fallback_service(layer.into_service());
    [("as it is", router.clone()), ("in time", router.layer(RequestBodyTimeoutLayer::new(PATIENCE)))]
}

#[cfg(feature = "http2")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_reset_without_an_error_is_never_complete_at_an_http2_backend() {
    let (report, mut reports) = unbounded_channel();
    let backend = Router::new().fallback(async move |request: Request| {
        let mut body = request.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        // In a task of its own, because the server drops the handler when the stream is reset.
        let handle = tokio::spawn(async move {
            report.send("begun").unwrap();
            let whole = loop {
                match body.frame().await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => break false,
                    None => break axum::body::HttpBody::is_end_stream(&body),
                }
            };
            report.send(if whole { "whole" } else { "cut" }).unwrap();
        });
        handle.await.unwrap();
    });
    let origin = format!("http://{}", front(backend).await);
    for (name, app) in around(&ReverseProxyLayer::new(Client::builder(origin).http2(true))) {
        let addr = front(app).await;
        for _ in 0..20 {
            let mut wire = uploading(addr).await;
            sees(&mut reports, "begun", name).await;
            wire.send(&frame(RST_STREAM, 0, 1, &[0; 4])).await;
            sees(&mut reports, "cut", name).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_upload_is_complete_behind_any_wrapper() {
    for early in [false, true] {
        let (origin, mut reports) = reading(early).await;
        for (name, app) in around(&ReverseProxyLayer::new(origin)) {
            let addr = front(app).await;
            for _ in 0..20 {
                let (mut sender, body) = Channel::<Bytes>::new(1);
                let request = Request::post("http://a/").body(Body::new(body)).unwrap();
                let mut client = http2(addr).await;
                let answer = client.send_request(request);
                sender.send_data(Bytes::from_static(b"hello")).await.unwrap();
                let answer = tokio::spawn(answer);
                sees(&mut reports, "begun", name).await;
                drop(sender);
                sees(&mut reports, "whole", name).await;
                let answer = within(answer).await.unwrap().unwrap();
                let body = within(answer.into_body().collect()).await.unwrap().to_bytes();
                assert_eq!(body, if early { "ok" } else { "" }, "{name}");
            }
        }
    }
}

const FRAMES: u32 = 5;
/// Shorter than the idle timeout; two pauses are longer.
const PAUSE: Duration = Duration::from_secs(200);

/// The sender of a request's body, and the request.
fn request() -> (http_body_util::channel::Sender<Bytes>, Request) {
    let (sender, body) = Channel::<Bytes>::new(1);
    (sender, Request::post("/x").header("host", "front.example").body(Body::new(body)).unwrap())
}

/// The sender of each response's body, and the outcome of reading the request's body.
type Streams =
    UnboundedReceiver<(http_body_util::channel::Sender<Bytes>, tokio::task::JoinHandle<Result<Bytes, ErrorKind>>)>;

/// A proxy whose upstream responds with a body that the test sends, and reads the request's body at the same time.
fn streaming() -> (impl tower::Service<Request, Response = Response, Error = Infallible, Future: Send>, Streams) {
    let (report, reports) = unbounded_channel();
    let proxy = ReverseProxy::with_upstream(service_fn(move |request: Request| {
        let report = report.clone();
        async move {
            let upload = tokio::spawn(async move {
                let read = request.into_body().collect().await;
                read.map(|body| body.to_bytes()).map_err(|error| {
                    let source = std::error::Error::source(&error).unwrap();
                    source.downcast_ref::<Error>().unwrap().kind()
                })
            });
            let (sender, body) = Channel::<Bytes>::new(1);
            report.send((sender, upload)).unwrap();
            Ok::<_, Infallible>(Response::new(Body::new(body)))
        }
    }));
    (proxy, reports)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_only_receives_is_not_cut_while_the_response_flows() {
    let (proxy, mut streams) = streaming();
    let (upload, request) = request();
    let Ok(response) = proxy.oneshot(request).await;
    let (mut answers, read) = streams.recv().await.unwrap();
    let body = tokio::spawn(response.into_body().collect());
    for _ in 0..FRAMES {
        sleep(PAUSE).await;
        answers.send_data(Bytes::from_static(b"x")).await.unwrap();
    }
    drop((answers, upload));
    assert_eq!(body.await.unwrap().unwrap().to_bytes(), "xxxxx");
    assert_eq!(read.await.unwrap(), Ok(Bytes::new()));
}

#[tokio::test(start_paused = true)]
async fn a_flowing_upload_is_not_cut_while_the_response_is_silent() {
    let (proxy, mut streams) = streaming();
    let (mut upload, request) = request();
    let Ok(response) = proxy.oneshot(request).await;
    let (mut answers, read) = streams.recv().await.unwrap();
    let body = tokio::spawn(response.into_body().collect());
    for _ in 0..FRAMES {
        sleep(PAUSE).await;
        upload.send_data(Bytes::from_static(b"x")).await.unwrap();
    }
    drop(upload);
    assert_eq!(read.await.unwrap().unwrap(), "xxxxx");
    sleep(PAUSE).await;
    answers.send_data(Bytes::from_static(b"ok")).await.unwrap();
    drop(answers);
    assert_eq!(body.await.unwrap().unwrap().to_bytes(), "ok");
}

#[tokio::test(start_paused = true)]
async fn an_exchange_silent_in_both_directions_is_cut() {
    for (last_is_the_clients, expected) in
        [(true, ErrorKind::ResponseBodyTimeout), (false, ErrorKind::ResponseBodyTimeout)]
    {
        let (proxy, mut streams) = streaming();
        let (mut upload, request) = request();
        let Ok(response) = proxy.oneshot(request).await;
        let (mut answers, read) = streams.recv().await.unwrap();
        let body = tokio::spawn(response.into_body().collect());
        let begun = Instant::now();
        sleep(PAUSE).await;
        let sender = if last_is_the_clients { &mut upload } else { &mut answers };
        sender.send_data(Bytes::from_static(b"x")).await.unwrap();
        let error = body.await.unwrap().unwrap_err();
        let kind = std::error::Error::source(&error).unwrap().downcast_ref::<Error>().unwrap().kind();
        assert_eq!(kind, expected, "{last_is_the_clients}");
        // The clock is paused, so it advances by timers only.
        let late = begun.elapsed().saturating_sub(PAUSE + Duration::from_secs(300));
        assert!(begun.elapsed() >= Duration::from_secs(499) && late < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert!(read.await.unwrap().is_err());
        drop((upload, answers));
    }
}

#[tokio::test(start_paused = true)]
async fn over_the_wire_either_direction_keeps_an_exchange_alive() {
    let mut memory = InMemory::new(|layer| layer);
    let mut client = memory.client();
    client.send(b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nu\r\n").await;
    let mut backend = memory.backend().await;
    backend.head().await.unwrap();
    assert_eq!(backend.chunk().await.unwrap(), b"u");
    backend.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    client.head().await.unwrap();
    for _ in 0..FRAMES {
        sleep(PAUSE).await;
        backend.send(b"1\r\nd\r\n").await;
        assert_eq!(client.chunk().await.unwrap(), b"d");
    }
    for _ in 0..FRAMES {
        sleep(PAUSE).await;
        client.send(b"1\r\nu\r\n").await;
        assert_eq!(backend.chunk().await.unwrap(), b"u");
    }
    client.send(b"0\r\n\r\n").await;
    assert_eq!(backend.chunk().await.unwrap(), b"");
    sleep(PAUSE).await;
    backend.send(b"0\r\n\r\n").await;
    assert_eq!(client.chunk().await.unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn over_the_wire_an_exchange_silent_in_both_directions_is_cut() {
    let mut memory = InMemory::new(|layer| layer);
    let mut client = memory.client();
    client.send(b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nu\r\n").await;
    let mut backend = memory.backend().await;
    backend.head().await.unwrap();
    assert_eq!(backend.chunk().await.unwrap(), b"u");
    backend.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    client.head().await.unwrap();
    sleep(Duration::from_secs(301)).await;
    assert!(client.closed().await);
    assert!(backend.closed().await);
}
