//! HTTP/2 backends: one served by hyper, and raw frames.

use std::{
    convert::Infallible,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{body::Body, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::{Barrier, Notify, mpsc},
    task::JoinSet,
};
use tower::ServiceExt;
use tower_reverse_proxy::ReverseProxy;

use super::{
    backend,
    frames::{HEADERS, PING, PREFACE, SETTINGS, frame},
    within,
};

/// A backend served by hyper. It counts its connections, shuts them down gracefully on request, and reports when one
/// ends.
#[derive(Clone)]
pub(crate) struct Http2 {
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) leave: Arc<Notify>,
    over: mpsc::UnboundedSender<()>,
}

impl Http2 {
    pub(crate) async fn serve<F>(
        streams: u32,
        answer: impl Fn(hyper::Request<Incoming>) -> F + Clone + Send + 'static,
    ) -> (String, Self, mpsc::UnboundedReceiver<()>)
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (over, ended) = mpsc::unbounded_channel();
        let this = Self { connections: Arc::default(), leave: Arc::default(), over };
        let backend = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                backend.connections.fetch_add(1, Ordering::SeqCst);
                let (answer, backend) = (answer.clone(), backend.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = answer(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let mut connection = std::pin::pin!(
                        http2::Builder::new(TokioExecutor::new())
                            .timer(TokioTimer::new())
                            .max_concurrent_streams(streams)
                            .serve_connection(TokioIo::new(stream), service)
                    );
                    tokio::select! {
                        _ = &mut connection => {}
                        () = backend.leave.notified() => {
                            connection.as_mut().graceful_shutdown();
                            let _ = connection.await;
                        }
                    }
                    let _ = backend.over.send(());
                });
            }
        });
        (url, this, ended)
    }
}

/// A backend that allows so many streams a connection, and responds to POSTs when so many have arrived.
pub(crate) async fn together(requests: usize, streams: u32) -> (String, Http2) {
    let together = Arc::new(Barrier::new(requests));
    let (url, backend, _ended) = Http2::serve(streams, move |request| {
        let together = together.clone();
        async move {
            if request.method() == "POST" {
                together.wait().await;
            }
            Response::new(Body::from("ok"))
        }
    })
    .await;
    (url, backend)
}

/// Makes calls whose responses come when all of them have arrived.
pub(crate) async fn all_at_once(proxy: &ReverseProxy, count: usize) {
    let mut calls = JoinSet::new();
    for _ in 0..count {
        let proxy = proxy.clone();
        let request = Request::post("/x").header("host", "front.example").body(Body::empty()).unwrap();
        calls.spawn(async move { proxy.oneshot(request).await.unwrap().status() });
    }
    while let Some(status) = within(calls.join_next()).await {
        assert_eq!(status.unwrap(), 200);
    }
}

/// A backend that responds to the head of each request with frames. `answer` gets the number of the request, counted
/// over all connections, and its stream.
pub(crate) async fn framing(answer: impl Fn(usize, u32) -> Vec<u8> + Send + Sync + 'static) -> String {
    let (answer, requests) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    backend(move |wire| {
        let (mut stream, answer, requests) = (wire.stream, answer.clone(), requests.clone());
        async move {
            greet(&mut stream, &[]).await;
            while let Some(frame) = read_frame(&mut stream).await {
                let reply = match frame.kind {
                    HEADERS => answer(requests.fetch_add(1, Ordering::SeqCst), frame.stream),
                    _ => frame.acknowledgement(),
                };
                if stream.write_all(&reply).await.is_err() {
                    break;
                }
            }
        }
    })
    .await
}

/// A frame, as received.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The frame that acknowledges SETTINGS or PING; nothing for other frames.
    pub(crate) fn acknowledgement(&self) -> Vec<u8> {
        match (self.kind, self.flags & 1) {
            (SETTINGS, 0) => frame(SETTINGS, 1, 0, &[]),
            (PING, 0) => frame(PING, 1, 0, &self.payload),
            _ => Vec::new(),
        }
    }
}

/// Reads a client's preface, and sends these settings.
pub(crate) async fn greet(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), settings: &[u8]) {
    let _ = stream.read_exact(&mut [0; PREFACE.len()]).await;
    let _ = stream.write_all(&frame(SETTINGS, 0, 0, settings)).await;
}

/// Reads a frame; `None` at the end of the connection.
pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some(Frame { kind, flags, stream: u32::from_be_bytes(id), payload })
}
