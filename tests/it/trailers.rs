//! Trailers, which HTTP/2 sends without announcing them: in both directions, fields with a meaning in the head are
//! removed.

use std::convert::Infallible;

use axum::{
    BoxError, Router,
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue},
    response::Response,
};
use http_body_util::{BodyExt, channel::Channel};
use tokio::sync::mpsc::unbounded_channel;
use tower::{Service, ServiceBuilder, service_fn};
use tower_reverse_proxy::{Client, RemoteUserLayer, ReverseProxyLayer};

use crate::support::{answering, ask, front, get, http2, http2_get, recording, within};

fn trailers(names: &[&str]) -> HeaderMap {
    names.iter().map(|name| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("root"))).collect()
}

fn names(trailers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

fn named(name: &'static str) -> RemoteUserLayer {
    RemoteUserLayer::new().header(HeaderName::from_static(name))
}

/// Sends an upload with these trailers to a front over HTTP/2.
async fn upload(app: Router, names: &[&str]) {
    let (mut sender, body) = Channel::<Bytes>::new(1);
    let request = Request::post("http://front.example/x").body(Body::new(body)).unwrap();
    let mut client = http2(front(app).await).await;
    let answer = client.send_request(request);
    sender.send_trailers(trailers(names)).await.unwrap();
    drop(sender);
    assert_eq!(within(answer).await.unwrap().status(), 200);
}

/// A service that reports the trailers of its requests.
fn reporting() -> (
    impl Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static,
    tokio::sync::mpsc::UnboundedReceiver<HeaderMap>,
) {
    let (report, reports) = unbounded_channel();
    let service = service_fn(move |request: Request| {
        let report = report.clone();
        async move {
            let body = within(request.into_body().collect()).await.unwrap();
            report.send(body.trailers().cloned().unwrap_or_default()).unwrap();
            Ok(Response::default())
        }
    });
    (service, reports)
}

const SENT: &[&str] = &["x-user", "x.user", "x-group", "X_Group", "x-role", "x-ok", "remote-user", "authorization"];

#[cfg(feature = "http2")]
#[tokio::test]
async fn several_layers_forbid_their_names_as_trailers_of_an_http2_backend() {
    let (service, mut reports) = reporting();
    let origin = format!("http://{}", front(Router::new().fallback_service(service)).await);
    let layers = ServiceBuilder::new().layer(named("x-user")).layer(named("x-group")).layer(named("x-role"));
    upload(
        Router::new().layer(ReverseProxyLayer::new(Client::builder(origin).http2(true)).upstream_layer(layers)),
        SENT,
    )
    .await;
    assert_eq!(names(&within(reports.recv()).await.unwrap()), ["x-ok"]);
}

#[tokio::test]
async fn layers_forbid_their_names_as_trailers_whatever_the_upstream_service_is() {
    let (service, mut reports) = reporting();
    let layers = ServiceBuilder::new().layer(named("x-user")).layer(named("x-group")).layer(named("x-role"));
    upload(
        Router::new().layer(ReverseProxyLayer::with_upstream(layers.map_err(BoxError::from).service(service))),
        SENT,
    )
    .await;
    assert_eq!(names(&within(reports.recv()).await.unwrap()), ["x-ok"]);
}

#[tokio::test]
async fn an_upload_ends_properly_when_all_its_trailers_are_removed() {
    let (service, mut reports) = reporting();
    let layer = ReverseProxyLayer::with_upstream(
        ServiceBuilder::new().layer(named("x-user")).map_err(BoxError::from).service(service),
    );
    upload(Router::new().layer(layer), &["x-user"]).await;
    assert!(within(reports.recv()).await.unwrap().is_empty());
    // Over HTTP/1.1, the body ends with the last chunk.
    let (origin, mut requests) = recording("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    upload(Router::new().layer(ReverseProxyLayer::new(origin)), &["cookie"]).await;
    let got = within(requests.recv()).await.unwrap();
    assert!(got.complete && got.trailers.is_empty(), "{got:?}");
}

/// Fields that have a meaning in the head of a response, and fields that may be trailers.
const ANSWERED: &str = "Content-Length: 0\r\nSet-Cookie: a=b\r\nConnection: close\r\nKeep-Alive: timeout=5\r\n\
    Transfer-Encoding: gzip\r\nProxy-Connection: close\r\nUpgrade: x\r\nTE: trailers\r\nLocation: http://backend/\r\n\
    Content-Encoding: gzip\r\nWWW-Authenticate: Basic\r\nHost: b\r\nTrailer: x\r\nCache-Control: no-store\r\n\
    Grpc-Status: 0\r\nGrpc-Message: ok\r\nServer-Timing: db;dur=5\r\nContent-Digest: sha-256=:AA==:\r\nETag: \"1\"\r\nX-Own: 1\r\n";
const PASSING: [&str; 6] = ["content-digest", "etag", "grpc-message", "grpc-status", "server-timing", "x-own"];

fn announced() -> String {
    ANSWERED.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn misleading_trailers_of_an_http1_backend_are_removed() {
    let announced = announced();
    let head = format!("HTTP/1.1 200 OK\r\nTrailer: {announced}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let origin = answering(format!("{head}5\r\nhello\r\n0\r\n{ANSWERED}\r\n")).await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(origin))).await;
    let answer = within(http2_get(addr, "/x")).await;
    assert_eq!(answer.headers()["trailer"], "Grpc-Status, Grpc-Message, Server-Timing, Content-Digest, ETag, X-Own");
    assert_eq!(names(answer.body().trailers().unwrap()), PASSING);
    assert_eq!(answer.into_body().to_bytes(), "hello");

    let answer = get(addr, "/x", "Connection: TE\r\nTE: trailers\r\n").await;
    let mut names: Vec<_> =
        answer.trailers.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!((names, answer.complete), (PASSING.to_vec(), true));
}

#[tokio::test]
async fn a_response_ends_properly_when_all_its_trailers_are_removed() {
    let head = "HTTP/1.1 200 OK\r\nTrailer: Set-Cookie\r\nTransfer-Encoding: chunked\r\n\r\n";
    let origin = answering(format!("{head}5\r\nhello\r\n0\r\nSet-Cookie: a=b\r\n\r\n")).await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(origin))).await;
    let answer = within(http2_get(addr, "/x")).await;
    assert_eq!((answer.headers().get("trailer"), answer.body().trailers()), (None, None));
    assert_eq!(answer.into_body().to_bytes(), "hello");
    let answer = ask(addr, "GET /x HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: trailers\r\n\r\n").await;
    assert_eq!((&*answer.text(), &*answer.trailers, answer.complete), ("hello", "", true));
}

#[cfg(feature = "http2")]
#[tokio::test]
async fn misleading_trailers_of_an_http2_backend_are_removed() {
    let backend = Router::new().fallback(async || {
        let trailers = trailers(&["content-length", "set-cookie", "location", "grpc-status", "x-own"]);
        Response::new(Body::new(
            http_body_util::Full::from("hello").with_trailers(std::future::ready(Some(Ok(trailers)))),
        ))
    });
    let origin = format!("http://{}", front(backend).await);
    let addr = front(Router::new().layer(ReverseProxyLayer::new(Client::builder(origin).http2(true)))).await;
    let answer = within(http2_get(addr, "/x")).await;
    assert_eq!(names(answer.body().trailers().unwrap()), ["grpc-status", "x-own"]);
}
