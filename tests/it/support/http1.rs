//! HTTP/1 backends.

use std::{future::Future, mem, sync::Arc};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, unbounded_channel},
    },
};

use super::{Message, Wire};

/// Accepts connections and hands each to `talk`, as raw bytes. Returns the origin to proxy to.
pub(crate) async fn backend<F>(talk: impl Fn(Wire<TcpStream>) -> F + Send + Sync + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(talk(Wire::new(stream)));
        }
    });
    format!("http://{addr}")
}

/// A backend that responds to each request with 200 and the request as received: its head and decoded body.
pub(crate) async fn mirror() -> String {
    backend(|mut wire| async move {
        while let Some(request) = wire.message().await {
            let body = [request.head.as_bytes(), &request.body].concat();
            let head = format!("HTTP/1.1 200 OK\r\nX-Backend: mirror\r\nContent-Length: {}\r\n\r\n", body.len());
            wire.send(head.as_bytes()).await;
            wire.send(&body).await;
        }
    })
    .await
}

/// A backend that responds to each request with these bytes and keeps the connection open.
pub(crate) async fn answering(response: impl AsRef<[u8]> + Send + Sync + 'static) -> String {
    let response = Arc::new(response);
    backend(move |mut wire| {
        let response = response.clone();
        async move {
            while wire.message().await.is_some() {
                wire.send((*response).as_ref()).await;
            }
        }
    })
    .await
}

/// A backend that responds to each request with its name.
pub(crate) async fn named(name: &str) -> String {
    answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len())).await
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

/// A backend that reads a request, responds with these bytes, and closes.
pub(crate) async fn closing(response: impl AsRef<[u8]> + Send + Sync + 'static) -> String {
    let response = Arc::new(response);
    backend(move |mut wire| {
        let response = response.clone();
        async move {
            wire.message().await;
            wire.send((*response).as_ref()).await;
        }
    })
    .await
}

/// A backend that reads a request, sends `first`, waits for a notification, sends `rest`, and closes.
pub(crate) async fn in_two_parts(first: &'static [u8], rest: &'static [u8]) -> (String, Arc<Notify>) {
    let go = Arc::new(Notify::new());
    let going = go.clone();
    let origin = backend(move |mut wire| {
        let going = going.clone();
        async move {
            wire.message().await;
            wire.send(first).await;
            going.notified().await;
            wire.send(rest).await;
        }
    })
    .await;
    (origin, go)
}

/// A backend that reads a request and doesn't respond.
pub(crate) async fn silent() -> String {
    backend(|mut wire| async move {
        wire.message().await;
        wire.closed().await;
    })
    .await
}

/// The origin of a backend that refuses connections.
pub(crate) async fn refusing() -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    // It keeps its port, which another test would get otherwise, and never listens.
    mem::forget(socket);
    format!("http://{addr}")
}
