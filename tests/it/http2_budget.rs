//! Frames that h2 charges to a whole connection for good: small frames after a reset, and empty frames. Before h2 ends
//! the connection for them, the pool sends it no more requests; exchanges in progress are unaffected.

use std::sync::{Arc, Mutex};

use axum::{body::Body, extract::Request, response::Response};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};
use tower::ServiceExt;
use tower_reverse_proxy::{Client, ReverseProxy, ReverseProxyLayer};

use crate::support::{
    PATIENCE, backend,
    frames::{DATA, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, STATUS_200, frame},
    http2_backends::read_frame,
    within,
};

/// A backend that reacts to the frames of its clients with bytes, and writes the bytes that the test gives it.
struct Backend {
    url: String,
    /// One per connection.
    writers: Arc<Mutex<Vec<UnboundedSender<Vec<u8>>>>>,
    /// Reports that a ping of the backend was acknowledged: the client has read everything sent before it.
    pongs: UnboundedReceiver<()>,
}

impl Backend {
    /// `react` gets the number of the request on its connection, the kind of the frame, and its stream.
    async fn new(react: impl Fn(usize, u8, u32) -> Vec<u8> + Clone + Send + Sync + 'static) -> Self {
        let (pong, pongs) = unbounded_channel();
        let writers = Arc::<Mutex<Vec<_>>>::default();
        let kept = writers.clone();
        let url = backend(move |wire| {
            let (mut read, mut write) = wire.stream.into_split();
            let (writer, mut written) = unbounded_channel::<Vec<u8>>();
            kept.lock().unwrap().push(writer.clone());
            tokio::spawn(async move {
                while let Some(bytes) = written.recv().await {
                    if write.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            });
            let (react, pong) = (react.clone(), pong.clone());
            async move {
                let _ = read.read_exact(&mut [0; PREFACE.len()]).await;
                writer.send(frame(SETTINGS, 0, 0, &[])).unwrap();
                let mut requests = 0;
                while let Some(frame) = read_frame(&mut read).await {
                    let reply = match (frame.kind, frame.flags & 1) {
                        (SETTINGS, _) | (PING, 0) => frame.acknowledgement(),
                        (PING, _) => {
                            let _ = pong.send(());
                            continue;
                        }
                        (kind, _) => {
                            requests += usize::from(kind == HEADERS);
                            react(requests, kind, frame.stream)
                        }
                    };
                    let _ = writer.send(reply);
                }
            }
        })
        .await;
        Self { url, writers, pongs }
    }

    fn write(&self, connection: usize, bytes: Vec<u8>) {
        self.writers.lock().unwrap()[connection].send(bytes).unwrap();
    }

    fn connections(&self) -> usize {
        self.writers.lock().unwrap().len()
    }
}

async fn call(proxy: &ReverseProxy) -> Response {
    let request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
    let response = timeout(PATIENCE, proxy.clone().oneshot(request)).await.expect("an answer").unwrap();
    assert_eq!(response.status(), 200);
    response
}

async fn text(response: Response) -> String {
    let body = within(response.into_body().collect()).await.expect("it's whole");
    String::from_utf8(body.to_bytes().into()).unwrap()
}

#[tokio::test]
async fn small_frames_after_a_reset_end_no_other_stream() {
    let mut backend = Backend::new(|_, kind, id| match kind {
        HEADERS => frame(HEADERS, 4, id, STATUS_200),
        // The backend sent these frames before it read the reset.
        RST_STREAM => [frame(DATA, 0, id, b"e").repeat(1000), frame(PING, 0, 0, &[0; 8])].concat(),
        _ => Vec::new(),
    })
    .await;
    // Windows in which h2 allows small frames to cost 1 MiB: 4112 of them.
    let client = Client::builder(&*backend.url).http2(true).http2_connection_window(2 << 20);
    let proxy = ReverseProxy::new(client.http2_stream_window(16 << 10));
    let held = call(&proxy).await;
    for _ in 0..12 {
        drop(call(&proxy).await);
        timeout(PATIENCE, backend.pongs.recv()).await.expect("they're read").unwrap();
    }
    backend.write(0, frame(DATA, 1, 1, b"whole"));
    assert_eq!(text(held).await, "whole");
    assert!((2..12).contains(&backend.connections()), "{}", backend.connections());
}

#[tokio::test]
async fn empty_frames_end_no_other_stream() {
    let backend = Backend::new(|request, kind, id| match (kind, request) {
        (HEADERS, 1) => frame(HEADERS, 4, id, STATUS_200),
        (HEADERS, _) => {
            let empty = frame(DATA, 0, id, b"").repeat(3);
            [frame(HEADERS, 4, id, STATUS_200), empty, frame(DATA, 1, id, b"ok")].concat()
        }
        _ => Vec::new(),
    })
    .await;
    let proxy = ReverseProxyLayer::new(Client::builder(&*backend.url).http2(true)).into_service();
    let mut first_of = vec![call(&proxy).await];
    for _ in 0..120 {
        // The first request of a connection is held.
        let (response, connections) = (call(&proxy).await, backend.connections());
        if connections == first_of.len() {
            assert_eq!(text(response).await, "ok");
        } else {
            first_of.push(response);
        }
    }
    for (connection, held) in first_of.into_iter().enumerate() {
        backend.write(connection, frame(DATA, 1, 1, b"whole"));
        assert_eq!(text(held).await, "whole");
    }
    assert!((2..20).contains(&backend.connections()), "{}", backend.connections());
}
