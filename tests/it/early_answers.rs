//! Responses that arrive before the request has ended: none is lost, and none stops the upload.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, http::Uri, response::Response};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, Error, ErrorKind, ReverseProxy, ReverseProxyLayer};

use crate::support::{PATIENCE, Wire, backend, client, front, get, within};

/// A body without end or length.
struct Endless;

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 16 * 1024])))))
    }
}

/// The status of the response, and its body or the kind of its failure.
async fn call(proxy: ReverseProxy, method: &str, body: Body) -> (u16, Result<String, ErrorKind>) {
    let request = Request::builder().method(method).uri("/x").header("host", "front.example").body(body).unwrap();
    let Ok(response): Result<Response, Infallible> =
        timeout(PATIENCE, proxy.oneshot(request)).await.expect("an answer");
    let status = response.status().as_u16();
    if let Some(error) = response.extensions().get::<Error>() {
        return (status, Err(error.kind()));
    }
    let body = timeout(PATIENCE, response.into_body().collect()).await.expect("the body ends");
    let body = body.map(|body| String::from_utf8(body.to_bytes().into()).unwrap());
    let kind = |error: axum::Error| error.into_inner().downcast::<Error>().unwrap().kind();
    (status, body.map_err(kind))
}

/// What the backend's connection does, call by call.
#[derive(Clone, Copy)]
enum Step {
    /// Accepts a write.
    Take,
    /// Fails a write.
    Refuse(io::ErrorKind),
    /// Returns these bytes from a read.
    Give(&'static str),
    End,
    Reset,
}

/// A connection that follows a script. Calls other than the next step's are pending.
struct Scripted(Arc<Mutex<(VecDeque<Step>, Option<Waker>)>>);

impl Scripted {
    /// Takes the next step if `act` accepts it, and wakes the call that waits for the step after it.
    fn step<T>(&self, cx: &mut Context<'_>, act: impl FnOnce(Step) -> Option<T>) -> Poll<T> {
        let mut script = self.0.lock().unwrap();
        match script.0.front().copied().and_then(act) {
            Some(done) => {
                script.0.pop_front();
                cx.waker().wake_by_ref();
                if let Some(waiting) = script.1.take() {
                    waiting.wake();
                }
                Poll::Ready(done)
            }
            None => {
                script.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Connection for Scripted {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Scripted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.step(cx, |step| match step {
            Step::Give(text) => {
                buf.put_slice(text.as_bytes());
                Some(Ok(()))
            }
            Step::End => Some(Ok(())),
            Step::Reset => Some(Err(io::ErrorKind::ConnectionReset.into())),
            _ => None,
        })
    }
}

impl Write for Scripted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.step(cx, |step| match step {
            Step::Take => Some(Ok(buf.len())),
            Step::Refuse(kind) => Some(Err(kind.into())),
            _ => None,
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn scripted(steps: &[Step]) -> ReverseProxy {
    let steps: VecDeque<_> = steps.iter().copied().collect();
    let connector = service_fn(move |_: Uri| {
        let scripted = Scripted(Arc::new(Mutex::new((steps.clone(), None))));
        async move { Ok::<_, io::Error>(scripted) }
    });
    ReverseProxyLayer::new(Client::builder("http://backend.example").connector(connector)).into_service()
}

const REFUSAL: &str = "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 4\r\n\r\nwho?";

#[tokio::test]
async fn a_response_is_read_after_a_failed_write() {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    let unlengthed = "HTTP/1.1 413 Too Large\r\n\r\ntoo";
    for kind in [BrokenPipe, ConnectionReset] {
        let refuse = Step::Refuse(kind);
        for (steps, expected) in [
            (&[Step::Take, refuse, Step::Give(REFUSAL)][..], (401, Ok("who?"))),
            (&[Step::Take, Step::Take, refuse, Step::Give(REFUSAL), Step::Reset], (401, Ok("who?"))),
            // The response arrives in pieces, with the reset in between.
            (
                &[Step::Take, Step::Give(&REFUSAL[..30]), refuse, Step::Give(&REFUSAL[30..]), Step::End],
                (401, Ok("who?")),
            ),
            (
                &[Step::Take, Step::Give(&REFUSAL[..REFUSAL.len() - 4]), refuse, Step::Give("who?"), Step::Reset],
                (401, Ok("who?")),
            ),
            // After a reset, the end of the connection may be a truncation; after `BrokenPipe`, it's the backend's own
            // end.
            (
                &[Step::Take, refuse, Step::Give(unlengthed), Step::End],
                if kind == BrokenPipe { (413, Ok("too")) } else { (502, Err(ErrorKind::ResponseBody)) },
            ),
            (&[Step::Take, refuse, Step::Give(unlengthed), Step::Reset], (502, Err(ErrorKind::ResponseBody))),
            // There is no response.
            (&[Step::Take, refuse, Step::Reset], (502, Err(ErrorKind::ConnectionClosed))),
            (&[Step::Take, refuse, Step::End], (502, Err(ErrorKind::ConnectionClosed))),
            (&[Step::Take, refuse, Step::Give(&REFUSAL[..30]), Step::End], (502, Err(ErrorKind::ConnectionClosed))),
            // No byte of the request has been written, so the bytes can't be its response.
            (&[refuse, Step::Give(REFUSAL)], (502, Err(ErrorKind::ConnectionClosed))),
        ] {
            let (status, body) = call(scripted(steps), "POST", Body::new(Endless)).await;
            assert_eq!((status, body.as_deref().map_err(|&kind| kind)), expected, "{kind:?} {}", steps.len());
        }
    }
}

#[tokio::test]
async fn the_response_to_a_refused_upload_survives_a_reset() {
    for status in ["401 Unauthorized", "413 Too Large"] {
        for body in [|| Body::new(Endless), || Body::from(vec![b'x'; 4 * 1024 * 1024])] {
            let proxy = ReverseProxy::new(refusing(status).await);
            for round in 0..20 {
                let (answered, body) = call(proxy.clone(), "POST", body()).await;
                assert_eq!(status[..3], answered.to_string(), "{round}");
                assert_eq!(body.as_deref(), Ok("no"), "{status} {round}");
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_keeps_sending_gets_the_response_despite_a_reset() {
    let url = refusing("413 Too Large").await;
    let addr = front(Router::new().fallback_service(ReverseProxy::new(url))).await;
    for round in 0..40 {
        let (reading, mut writing) = tokio::io::split(client(addr).await.stream);
        let upload = tokio::spawn(async move {
            let head = "POST /x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 1048576\r\n\r\n";
            let _ = writing.write_all(head.as_bytes()).await;
            let _ = writing.write_all(&[b'x'; 1024 * 1024]).await;
        });
        let answer = Wire::new(tokio::io::join(reading, tokio::io::sink())).message().await;
        let answer = answer.unwrap_or_else(|| panic!("no answer in round {round}"));
        assert_eq!((answer.status(), &*answer.text()), (413, "no"), "{round}");
        upload.abort();
    }
}

/// A client that sends its whole upload before it reads can do so, though the backend has responded and reset.
#[tokio::test]
async fn an_upload_can_be_completed_after_a_reset() {
    const SIZE: usize = 24 << 20;
    let origin = backend(|mut wire| async move {
        wire.head().await;
        // More than the buffers on the way to a client that doesn't read.
        let body = vec![b'a'; 64 << 20];
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        wire.stream.write_all(head.as_bytes()).await.unwrap();
        // The backend closes with octets of the upload unread, which resets the connection. In real time: the buffers
        // fill up.
        let _ = timeout(Duration::from_millis(300), wire.stream.write_all(&body)).await;
    })
    .await;
    let mut wire = client(front(Router::new().layer(ReverseProxyLayer::new(origin).prefix("/mydir"))).await).await;
    let head = format!("POST /mydir/x HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
    wire.send(head.as_bytes()).await;
    // `send` fails the test if the front doesn't read the upload.
    wire.send(&vec![b'x'; SIZE]).await;
    let answer = wire.message().await.unwrap();
    assert_eq!((answer.status(), answer.complete), (200, false));
}

/// A backend that reads the head only. The body that it leaves in its socket resets the connection.
async fn refusing(status: &'static str) -> String {
    backend(move |mut wire| async move {
        wire.head().await;
        // The part of the body that was read with the head isn't in the socket any more.
        let _ = timeout(PATIENCE, wire.stream.readable()).await;
        wire.send(format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno").as_bytes()).await;
    })
    .await
}

#[tokio::test]
async fn a_response_truncated_along_with_its_head_is_502() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let cut_chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n";
    for steps in [
        &[Step::Take, Step::Give("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), Step::End][..],
        &[Step::Take, Step::Give("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"), Step::Reset],
        &[Step::Take, Step::Give(chunked), Step::End],
        &[Step::Take, Step::Give(cut_chunks)],
    ] {
        let (status, body) = call(scripted(steps), "GET", Body::empty()).await;
        assert_eq!((status, body), (502, Err(ErrorKind::ResponseBody)));
    }
}

/// The sizes of upload and download in the tests below.
const UPLOAD: usize = 24 * 1024 * 1024;
const DOWNLOAD: usize = 24 * 1024 * 1024;

/// A backend that responds at once, and reads and writes at the same time. It reports how much of each request it has
/// read.
async fn streaming() -> (String, mpsc::UnboundedReceiver<usize>) {
    let (report, read) = mpsc::unbounded_channel();
    let url = backend(move |mut wire| {
        let report = report.clone();
        async move {
            // Octet by octet, because the octets of the upload are counted.
            let mut head = String::new();
            while let Ok(Ok(octet)) = timeout(PATIENCE, wire.stream.read_u8()).await {
                head.push(octet.into());
                if !head.ends_with("\r\n\r\n") {
                    continue;
                }
                if std::mem::take(&mut head).starts_with("GET") {
                    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nkept").await;
                    continue;
                }
                let (mut reading, mut writing) = wire.stream.into_split();
                let answer = tokio::spawn(async move {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {DOWNLOAD}\r\n\r\n");
                    writing.write_all(head.as_bytes()).await.unwrap();
                    for _ in 0..DOWNLOAD / 65536 {
                        if writing.write_all(&[b'y'; 65536]).await.is_err() {
                            break;
                        }
                    }
                    writing
                });
                let (mut count, mut buffer) = (0, vec![0; 65536]);
                while count < UPLOAD {
                    match timeout(PATIENCE, reading.read(&mut buffer)).await.expect("the upload goes on") {
                        Ok(0) | Err(_) => break,
                        Ok(more) => count += more,
                    }
                }
                report.send(count).unwrap();
                wire = Wire::new(answer.await.unwrap().reunite(reading).unwrap());
            }
        }
    })
    .await;
    (url, read)
}

#[tokio::test]
async fn an_upload_continues_while_its_response_is_not_read() {
    let (url, mut read) = streaming().await;
    let addr = front(Router::new().fallback_service(ReverseProxy::new(url))).await;
    let mut wire = client(addr).await;
    wire.send(format!("POST /x HTTP/1.1\r\nHost: front.example\r\nContent-Length: {UPLOAD}\r\n\r\n").as_bytes()).await;
    for _ in 0..UPLOAD / 65536 {
        wire.send(&[b'x'; 65536]).await;
    }
    assert!(within(read.recv()).await.unwrap() >= UPLOAD);
    let answer = wire.message().await.unwrap();
    assert_eq!((answer.status(), answer.body.len(), answer.complete), (200, DOWNLOAD, true));
    // Both connections are reused.
    wire.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    assert_eq!(wire.message().await.unwrap().text(), "kept");
    assert_eq!(get(addr, "/x", "").await.text(), "kept");
}

#[tokio::test]
async fn a_disconnecting_client_ends_an_upload_whose_response_has_begun() {
    let (url, mut read) = streaming().await;
    let addr = front(Router::new().fallback_service(ReverseProxy::new(url))).await;
    let mut wire = client(addr).await;
    wire.send(format!("POST /x HTTP/1.1\r\nHost: front.example\r\nContent-Length: {UPLOAD}\r\n\r\nabc").as_bytes())
        .await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
    drop(wire);
    assert!(within(read.recv()).await.unwrap() < UPLOAD);
}

#[tokio::test]
async fn dropping_the_response_ends_an_unfinished_upload() {
    let (url, mut read) = streaming().await;
    let (frames, body) = http_body_util::channel::Channel::<Bytes, Infallible>::new(1);
    let request = Request::post("/x").header("host", "front.example").body(Body::new(body)).unwrap();
    let proxy = ReverseProxy::new(url);
    let Ok(response) = timeout(PATIENCE, proxy.oneshot(request)).await.expect("an early answer");
    assert_eq!(response.status(), 200);
    drop(response);
    assert_eq!(within(read.recv()).await.unwrap(), 0);
    drop(frames);
}
