//! Peers beyond the raw ones: a front where one is wanted, a client of HTTP/2, a backend that tells.

use std::net::SocketAddr;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::connect_info::IntoMakeServiceWithConnectInfo,
    http::{Request, Response},
};
use http_body_util::{BodyExt, Collected};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

use super::{Message, backend};

/// Serves an app on a listener of the test's own.
pub(crate) fn front_on(listener: TcpListener, app: Router) {
    let service: IntoMakeServiceWithConnectInfo<Router, SocketAddr> = app.into_make_service_with_connect_info();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
}

/// A backend that answers each request with these bytes and hands out what it got.
pub(crate) async fn recording(response: &'static str) -> (String, UnboundedReceiver<Message>) {
    let (seen, requests) = unbounded_channel();
    let origin = backend(move |mut wire| {
        let seen = seen.clone();
        async move {
            while let Some(request) = wire.message().await {
                let _ = seen.send(request);
                wire.send(response.as_bytes()).await;
            }
        }
    })
    .await;
    (origin, requests)
}

/// Connects to a front as a client of HTTP/2 with prior knowledge.
pub(crate) async fn http2(addr: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends `GET target` for `front.example` over HTTP/2 and returns the answer, with its body and trailers.
pub(crate) async fn http2_get(addr: SocketAddr, target: &str) -> Response<Collected<Bytes>> {
    let request = Request::get(format!("http://front.example{target}")).body(Body::empty()).unwrap();
    let (head, body) = http2(addr).await.send_request(request).await.unwrap().into_parts();
    Response::from_parts(head, body.collect().await.unwrap())
}
