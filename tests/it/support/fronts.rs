//! Fronts, and clients that write raw HTTP/1.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::{Request, connect_info::IntoMakeServiceWithConnectInfo},
    routing::{any, any_service},
};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;
use tower_reverse_proxy::{ReverseProxy, ReverseProxyLayer};

use super::{Message, Wire, watch};

/// Serves an app on loopback, with the peer's address known.
pub(crate) async fn front(app: Router) -> SocketAddr {
    watch();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    front_on(listener, app);
    addr
}

/// Serves an app on the given listener.
pub(crate) fn front_on(listener: TcpListener, app: Router) {
    let service: IntoMakeServiceWithConnectInfo<Router, SocketAddr> = app.into_make_service_with_connect_info();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
}

/// The ways to mount a proxy at `/mydir`. Some of axum's services change responses without a body.
pub(crate) async fn mounts(origin: &str) -> Vec<(&'static str, SocketAddr)> {
    let proxy = ReverseProxy::new(origin);
    let handler = {
        let proxy = proxy.clone();
        any(move |request: Request| proxy.oneshot(request))
    };
    let layer = ReverseProxyLayer::new(origin).prefix("/mydir");
    vec![
        ("layer", front(Router::new().layer(layer)).await),
        ("nest_service", front(Router::new().nest_service("/mydir", proxy.clone())).await),
        ("fallback_service", front(Router::new().fallback_service(proxy.clone())).await),
        ("route_service", front(Router::new().route_service("/mydir/{*rest}", proxy.clone())).await),
        ("any_service", front(Router::new().route("/mydir/{*rest}", any_service(proxy))).await),
        ("handler", front(Router::new().route("/mydir/{*rest}", handler)).await),
    ]
}

/// Connects to a front as a client that writes bytes.
pub(crate) async fn client(addr: SocketAddr) -> Wire<TcpStream> {
    Wire::new(TcpStream::connect(addr).await.unwrap())
}

/// Sends one request and returns the response. The connection is closed after it.
pub(crate) async fn ask(addr: SocketAddr, request: impl AsRef<[u8]>) -> Message {
    let mut wire = client(addr).await;
    wire.send(request.as_ref()).await;
    wire.message().await.expect("an answer")
}

/// Sends `GET target` with `Host: front.example` and these further field lines (each ended by `\r\n`).
pub(crate) async fn get(addr: SocketAddr, target: &str, fields: &str) -> Message {
    ask(addr, format!("GET {target} HTTP/1.1\r\nHost: front.example\r\n{fields}\r\n")).await
}

/// An upstream in memory that is always ready and answers 200 at once.
pub(crate) fn ok() -> Ok200 {
    Ok200
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Ok200;

impl tower::Service<axum::extract::Request> for Ok200 {
    type Response = axum::response::Response;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: axum::extract::Request) -> Self::Future {
        std::future::ready(Ok(axum::response::Response::default()))
    }
}
