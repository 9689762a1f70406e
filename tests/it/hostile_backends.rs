//! Backends, connections and request bodies that do the unexpected: nothing hangs, and no response reaches another request.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    http::{Request, Response, Uri},
};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    sync::{mpsc, oneshot},
    task::yield_now,
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, ClientBuilder, Error, ErrorKind, client::ResponseBody};

use crate::support::{Pipe, Wire, backend, settled, within};

/// A client of one connection in memory, and its other end.
fn in_memory(
    change: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> (Client, mpsc::UnboundedReceiver<Wire<DuplexStream>>) {
    let (report, backends) = mpsc::unbounded_channel();
    let builder = Client::builder("http://backend.example").connector(service_fn(move |_: Uri| {
        let (ours, theirs) = Pipe::pair();
        report.send(Wire::new(theirs)).unwrap();
        async { Ok::<_, io::Error>(ours) }
    }));
    (change(builder).build().unwrap(), backends)
}

// ---- Bodies ----

/// What a body does next.
#[derive(Clone, Debug)]
enum Step {
    /// Pending without a wake-up.
    Stall,
    Fail,
    Panic,
}

/// A body that follows a script.
struct Scripted {
    steps: std::vec::IntoIter<Step>,
}

impl http_body::Body for Scripted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.steps.next() {
            None => Poll::Ready(None),
            Some(Step::Stall) => {
                self.steps = vec![Step::Stall].into_iter();
                Poll::Pending
            }
            Some(Step::Fail) => Poll::Ready(Some(Err(io::Error::other("the body fails")))),
            Some(Step::Panic) => panic!("the body panics"),
        }
    }
}

impl Scripted {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect::<Vec<_>>().into_iter() }
    }
}

fn scripted(steps: impl IntoIterator<Item = Step>) -> Body {
    Body::new(Scripted::new(steps))
}

/// A body that waits for a signal, and then follows a script.
struct AfterSignal {
    signal: Option<oneshot::Receiver<()>>,
    rest: Scripted,
}

impl http_body::Body for AfterSignal {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(signal) = &mut self.signal {
            let _ = ready!(Pin::new(signal).poll(cx));
            self.signal = None;
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }
}

fn post(body: Body) -> Request<Body> {
    Request::post("/x").header("host", "backend.example").body(body).unwrap()
}

/// The text of a response, or the kind of its failure.
async fn text(response: Result<Response<ResponseBody>, Error>) -> Result<String, ErrorKind> {
    let response = response.map_err(|error| error.kind())?;
    let body = within(response.into_body().collect()).await.map_err(|error| error.kind())?;
    Ok(String::from_utf8(body.to_bytes().into()).unwrap())
}

const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab";

// ---- Tests ----

/// The backend waits for the rest of the request before it ends its response, and the rest never comes.
#[tokio::test]
async fn an_early_response_ends_with_a_request_body_that_panics_or_fails() {
    for (step, panics) in [(Step::Panic, true), (Step::Fail, false)] {
        let (client, mut backends) = in_memory(|client| client.max_connections(1).queue_timeout(None));
        let (go, gone) = oneshot::channel::<()>();
        let body = Body::new(AfterSignal { signal: Some(gone), rest: Scripted::new([step]) });
        let response = tokio::spawn(client.clone().oneshot(post(body)));
        let mut wire = within(backends.recv()).await.unwrap();
        within(wire.head()).await.unwrap();
        wire.send(HALF).await;
        let response = within(response).await.unwrap();
        go.send(()).unwrap();
        assert_eq!(text(response).await, Err(ErrorKind::RequestBody), "panics: {panics}");
        // The connection is closed, so that there is a permit for the next.
        drop(wire);
        let next = tokio::spawn(client.oneshot(Request::get("/y").body(Body::empty()).unwrap()));
        let mut wire = within(backends.recv()).await.unwrap();
        within(wire.head()).await.unwrap();
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(text(within(next).await.unwrap()).await.as_deref(), Ok("ok"));
    }
}

/// The rest of the request is sent by a task of the request's runtime; the response may be read on another.
#[tokio::test]
async fn an_early_response_ends_with_the_runtime_of_its_request() {
    let (client, mut backends) = in_memory(|client| client.max_connections(1).queue_timeout(None));
    let (report, response) = oneshot::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let response = runtime.block_on(client.oneshot(post(scripted([Step::Stall]))));
        drop(runtime);
        report.send(response).unwrap();
        let _ = stopped.recv();
    });
    let mut wire = within(backends.recv()).await.unwrap();
    within(wire.head()).await.unwrap();
    wire.send(HALF).await;
    let response = within(response).await.unwrap();
    assert_eq!(text(response).await, Err(ErrorKind::RequestBody));
    assert!(within(wire.closed()).await);
    drop(stop);
    thread.join().unwrap();
}

#[tokio::test]
async fn a_connector_that_panics_fails_the_requests_that_wait_for_it() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let client = Client::builder("http://backend.example")
        .connector(service_fn(move |_: Uri| {
            let counted = counted.clone();
            async move {
                yield_now().await;
                assert!(counted.fetch_add(1, Ordering::SeqCst) > 100, "the connector panics");
                Err::<Pipe, _>(io::Error::other("no more"))
            }
        }))
        .max_connections(2)
        .queue_timeout(None)
        .build()
        .unwrap();
    let requests: Vec<_> =
        (0..5).map(|_| tokio::spawn(client.clone().oneshot(Request::get("/x").body(Body::empty()).unwrap()))).collect();
    for request in requests {
        let error = within(request).await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.is_unsent()), (ErrorKind::Connect, true));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn informational_responses_are_limited() {
    for (count, expected) in [(0, Ok("ok")), (3, Ok("ok")), (100, Ok("ok")), (101, Err(ErrorKind::InvalidResponse))] {
        for in_one_segment in [true, false] {
            let origin = backend(move |mut wire| async move {
                wire.message().await;
                let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
                let last = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                if in_one_segment {
                    wire.send((hints.repeat(count) + last).as_bytes()).await;
                } else {
                    for _ in 0..count {
                        wire.send(hints.as_bytes()).await;
                        yield_now().await;
                    }
                    wire.send(last.as_bytes()).await;
                }
                wire.closed().await;
            })
            .await;
            let client = Client::builder(&*origin).build().unwrap();
            let response = within(client.oneshot(post(Body::from("upload")))).await;
            assert_eq!(text(response).await.as_deref(), expected.as_ref().copied(), "{count}");
        }
    }
}

/// Octets behind a response that has no body, or directly behind its end.
#[tokio::test]
async fn octets_behind_a_response_close_its_connection() {
    for (method, response) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil"),
        ("GET", "HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: b\r\n\r\nevil"),
        ("GET", "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n0"),
    ] {
        let (client, mut backends) = in_memory(|client| client.max_connections(1).queue_timeout(None));
        let request = Request::builder().method(method).uri("/x").body(Body::empty()).unwrap();
        let first = tokio::spawn(client.clone().oneshot(request));
        let mut wire = within(backends.recv()).await.unwrap();
        within(wire.head()).await.unwrap();
        wire.send(response.as_bytes()).await;
        assert_eq!(text(within(first).await.unwrap()).await.as_deref(), Ok(""), "{method} {response}");
        assert!(within(wire.closed()).await, "{method} {response}");
        let next = tokio::spawn(client.oneshot(Request::get("/y").body(Body::empty()).unwrap()));
        let mut wire = within(backends.recv()).await.unwrap();
        within(wire.head()).await.unwrap();
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(text(within(next).await.unwrap()).await.as_deref(), Ok("ok"));
    }
}

/// A body that counts what is taken from it.
struct Counting(Arc<AtomicUsize>);

impl http_body::Body for Counting {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.fetch_add(1000, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 1000])))))
    }
}

/// What is held of an upload, and of a response, while its peer takes nothing.
const HELD: usize = 1024 * 1024;

#[tokio::test]
async fn an_upload_that_the_backend_does_not_read_is_held_back() {
    for is_early in [false, true] {
        let (client, mut backends) = in_memory(|client| client);
        let taken = Arc::new(AtomicUsize::new(0));
        let response = tokio::spawn(client.oneshot(post(Body::new(Counting(taken.clone())))));
        let mut wire = within(backends.recv()).await.unwrap();
        let mut response = if is_early {
            wire.send(HALF).await;
            Ok(within(response).await.unwrap().unwrap())
        } else {
            Err(response)
        };
        assert!(settled(&taken).await < HELD, "early: {is_early}");
        if let Err(response) = &mut response {
            response.abort();
        }
    }
}

#[tokio::test]
async fn a_response_that_is_not_read_is_held_back() {
    for framing in ["Content-Length: 100000000000", "Transfer-Encoding: chunked", "Connection: close"] {
        for is_early in [false, true] {
            let (client, mut backends) = in_memory(|client| client);
            let body = if is_early { scripted([Step::Stall]) } else { Body::empty() };
            let response = tokio::spawn(client.oneshot(post(body)));
            let mut wire = within(backends.recv()).await.unwrap();
            within(wire.head()).await.unwrap();
            wire.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes()).await;
            let sent = Arc::new(AtomicUsize::new(0));
            let counted = sent.clone();
            let sending = tokio::spawn(async move {
                // Two chunks, or octets.
                while wire.stream.write_all(b"1\r\nx\r\n2\r\nxx\r\n").await.is_ok() {
                    counted.fetch_add(13, Ordering::SeqCst);
                }
            });
            let response = within(response).await.unwrap().unwrap();
            let before = settled(&sent).await;
            assert!(before < HELD, "{framing} {before}");
            // Each read frees room for more, and dropping the body ends it.
            let mut body = response.into_body();
            for _ in 0..100 {
                assert!(within(body.frame()).await.unwrap().unwrap().is_data());
            }
            assert!(settled(&sent).await > before);
            drop(body);
            within(sending).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_complete_response_ends_once() {
    let origin = backend(|mut wire| async move {
        while let Some(request) = wire.message().await {
            let framing = request.start_line().split(['/', ' ']).nth(2).unwrap().to_owned();
            match &*framing {
                "length" => wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await,
                "chunked" => {
                    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
                }
                _ => return wire.send(b"HTTP/1.1 200 OK\r\n\r\nok").await,
            }
        }
    })
    .await;
    let client = Client::builder(&*origin).build().unwrap();
    for framing in ["length", "chunked", "close"] {
        let request = Request::get(format!("/{framing}")).body(Body::empty()).unwrap();
        let mut body = within(client.clone().oneshot(request)).await.unwrap().into_body();
        let mut text = Vec::new();
        while let Some(frame) = within(body.frame()).await {
            text.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        assert_eq!(text, b"ok", "{framing}");
        for _ in 0..3 {
            assert!(within(body.frame()).await.is_none());
        }
        assert!(http_body::Body::is_end_stream(&body));
    }
}
