//! More peers: a front on a given listener, an HTTP/2 client, a recording backend.

use std::{future::Future, net::SocketAddr, thread};

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

/// Serves an app on the given listener.
pub(crate) fn front_on(listener: TcpListener, app: Router) {
    let service: IntoMakeServiceWithConnectInfo<Router, SocketAddr> = app.into_make_service_with_connect_info();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
}

/// A backend that responds to each request with these bytes and reports the request.
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

/// Connects to a front as an HTTP/2 client with prior knowledge.
pub(crate) async fn http2(addr: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends `GET target` for `front.example` over HTTP/2 and returns the response, with its body and trailers.
pub(crate) async fn http2_get(addr: SocketAddr, target: &str) -> Response<Collected<Bytes>> {
    let request = Request::get(format!("http://front.example{target}")).body(Body::empty()).unwrap();
    let (head, body) = http2(addr).await.send_request(request).await.unwrap().into_parts();
    Response::from_parts(head, body.collect().await.unwrap())
}

/// Makes a peer in a runtime of its own, so that the test's runtime has the proxy's tasks only.
pub(crate) fn elsewhere<T: Send + 'static>(make: impl Future<Output = T> + Send + 'static) -> T {
    let (report, made) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            report.send(make.await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    made.recv().unwrap()
}

/// Waits until the test's runtime has at most `count` tasks.
pub(crate) async fn tasks_left(count: usize) {
    let metrics = tokio::runtime::Handle::current().metrics();
    let fewer = async {
        while metrics.num_alive_tasks() > count {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(super::PATIENCE, fewer).await.expect("the tasks end");
    assert_eq!(metrics.num_alive_tasks(), count);
}
