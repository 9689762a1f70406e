//! HTTP/2 clients and backends.

use std::net::SocketAddr;

use axum::{
    body::{Body, Bytes},
    http::{Request, Response},
};
use http_body_util::{BodyExt, Collected};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::within;

/// Connects to a front as an HTTP/2 client with prior knowledge.
pub(crate) async fn http2(addr: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = within(handshake(TokioExecutor::new(), TokioIo::new(stream))).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends `GET target` for `front.example` over HTTP/2 and returns the response, with its body and trailers.
pub(crate) async fn http2_get(addr: SocketAddr, target: &str) -> Response<Collected<Bytes>> {
    let request = Request::get(format!("http://front.example{target}")).body(Body::empty()).unwrap();
    let (head, body) = within(http2(addr).await.send_request(request)).await.unwrap().into_parts();
    Response::from_parts(head, within(body.collect()).await.unwrap())
}
