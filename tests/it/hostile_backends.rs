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
    Router,
    body::Body,
    http::{Request, Response, Uri},
};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    sync::{mpsc, oneshot},
    task::yield_now,
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, ClientBuilder, Error, ErrorKind, ReverseProxyLayer, client::ResponseBody};

use crate::support::{Dice, Pipe, Progress, Wire, backend, client, front, settled, within};

// ---- Connections ----

/// A connection that is awkward in every way that its traits allow: each call is pending first, and reads and writes transfer
/// few octets at once.
struct Awkward<S> {
    stream: S,
    /// The maximum number of octets of one call.
    most: usize,
    /// How many calls of each kind are pending before one is ready.
    pending: u8,
    read: u8,
    write: u8,
    flush: u8,
}

impl<S> Awkward<S> {
    fn new(stream: S, most: usize, pending: u8) -> Self {
        Self { stream, most, pending, read: 0, write: 0, flush: 0 }
    }
}

/// Pending so often, with a wake-up each time.
fn poll_delay(calls: &mut u8, pending: u8, cx: &mut Context<'_>) -> Poll<()> {
    *calls += 1;
    if *calls <= pending {
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    *calls = 0;
    Poll::Ready(())
}

impl<S> Connection for Awkward<S> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl<S: AsyncRead + Unpin> Read for Awkward<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(poll_delay(&mut this.read, this.pending, cx));
        let mut octets = vec![0; this.most.min(buf.remaining())];
        let mut read = ReadBuf::new(&mut octets);
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
        buf.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Write for Awkward<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(poll_delay(&mut this.write, this.pending, cx));
        Pin::new(&mut this.stream).poll_write(cx, &buf[..this.most.min(buf.len())])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(poll_delay(&mut this.flush, this.pending, cx));
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

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
    Data(Vec<u8>),
    /// Pending once, with a wake-up.
    Yield,
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

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.steps.next() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data.into())))),
            Some(Step::Yield) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
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

/// The backend doesn't read the upload, which is of no use to it.
#[tokio::test]
async fn a_switch_that_was_not_offered_ends_the_upload() {
    let (client, mut backends) = in_memory(|client| client);
    let response = tokio::spawn(client.oneshot(post(scripted([Step::Stall]))));
    let mut wire = within(backends.recv()).await.unwrap();
    within(wire.head()).await.unwrap();
    wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    let response = within(response).await.unwrap().unwrap();
    assert_eq!(response.status(), 101);
    drop(response);
    assert!(within(wire.closed()).await);
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

/// The tunnel's first octets come with the 101, and each side sends more than the other has room for.
#[tokio::test]
async fn a_tunnel_over_an_awkward_connection_carries_every_octet() {
    for (most, pending, room) in [(1, 0, 64), (7, 1, 5), (100_000, 3, 3000)] {
        let up: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).take(30_000).collect();
        let down: Vec<u8> = up.iter().rev().copied().collect();
        let (expected, sent) = (up.clone(), down.clone());
        let client_of_backend = Client::builder("http://backend.example").connector(service_fn(move |_: Uri| {
            let (ours, theirs) = duplex(room);
            let (expected, sent) = (expected.clone(), sent.clone());
            tokio::spawn(async move {
                let mut wire = Wire::new(theirs);
                wire.head().await.unwrap();
                let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
                wire.send(&[&head[..], &sent].concat()).await;
                assert!(wire.bytes(expected.len()).await == expected);
                // The end is passed on, too.
                assert!(wire.closed().await);
            });
            async move { Ok::<_, io::Error>(Awkward::new(ours, most, pending)) }
        }));
        let addr =
            front(Router::new().fallback_service(ReverseProxyLayer::new(client_of_backend).into_service())).await;
        let mut wire = client(addr).await;
        wire.send(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        assert!(within(wire.head()).await.unwrap().starts_with("HTTP/1.1 101 "));
        assert!(wire.bytes(down.len()).await == down);
        wire.send(&up).await;
        let _ = wire.stream.shutdown().await;
        assert!(wire.closed().await);
    }
}

// ---- A soak ----

/// Text that is a request to a backend that takes the rest of a body for one.
const EVIL: &[u8] = b"\r\n\r\nGET /evil HTTP/1.1\r\nHost: evil\r\n\r\n";

/// What a backend does with a request. The first ones answer it correctly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    ReadThenAnswer,
    AnswerThenRead,
    HalfThenReadThenHalf,
    ChunksWhileReading,
    InformThenAnswer,
    HeadOctetByOctet,
    // It closes the connection.
    AnswerUntilClose,
    EndThenRead,
    AnswerAndReset,
    // The response fails.
    Close,
    CloseInHead,
    CloseInBody,
    CloseInChunk,
    Garbage,
    SwitchUnasked,
}

const ACTS: [Act; 15] = {
    use Act::*;
    [
        ReadThenAnswer,
        AnswerThenRead,
        HalfThenReadThenHalf,
        ChunksWhileReading,
        InformThenAnswer,
        HeadOctetByOctet,
        AnswerUntilClose,
        EndThenRead,
        AnswerAndReset,
        Close,
        CloseInHead,
        CloseInBody,
        CloseInChunk,
        Garbage,
        SwitchUnasked,
    ]
};

/// How many of them answer correctly.
const CORRECT: usize = 9;

/// The body of a response: its request's number, and more.
fn answer_to(number: usize) -> Vec<u8> {
    format!("{number}:").repeat(1 + number * 37 % 900).into_bytes()
}

/// Reads the rest of a body. Its size, or `None` if it's cut.
async fn read_body<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, head: &str) -> Option<usize> {
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if let Some(length) = field("content-length:") {
        let length = length.parse().unwrap();
        return (wire.bytes(length).await.len() == length).then_some(length);
    }
    if field("transfer-encoding:").is_none() {
        return Some(0);
    }
    let mut length = 0;
    loop {
        match wire.chunk().await? {
            chunk if chunk.is_empty() => return Some(length),
            chunk => length += chunk.len(),
        }
    }
}

/// A backend that reads the act and the number of each request in its target.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(mut wire: Wire<S>, evil: Arc<AtomicUsize>) -> Option<()> {
    loop {
        let head = wire.head().await?;
        let target = head.split(' ').nth(1).unwrap_or_default();
        let mut parts = target.split('/').skip(1).map(|part| part.parse::<usize>());
        let (Some(Ok(act)), Some(Ok(number))) = (parts.next(), parts.next()) else {
            evil.fetch_add(1, Ordering::SeqCst);
            return None;
        };
        let (act, body) = (ACTS[act], answer_to(number));
        let with_length = |more: &str| {
            let head = format!("HTTP/1.1 200 OK\r\n{more}Content-Length: {}\r\n\r\n", body.len());
            [head.as_bytes(), &body].concat()
        };
        match act {
            Act::ReadThenAnswer => {
                read_body(&mut wire, &head).await?;
                wire.send(&with_length("")).await;
            }
            Act::AnswerThenRead => {
                wire.send(&with_length("")).await;
                read_body(&mut wire, &head).await?;
            }
            Act::HalfThenReadThenHalf => {
                let answer = with_length("");
                let (one, other) = answer.split_at(answer.len() - body.len() / 2);
                wire.send(one).await;
                read_body(&mut wire, &head).await?;
                wire.send(other).await;
            }
            Act::ChunksWhileReading => {
                wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: a\r\n\r\n").await;
                let (one, other) = body.split_at(body.len() / 2);
                for octet in one {
                    wire.send(&[b'1', b'\r', b'\n', *octet, b'\r', b'\n']).await;
                }
                read_body(&mut wire, &head).await?;
                wire.send(format!("{:x};a=\"b\"\r\n", other.len()).as_bytes()).await;
                wire.send(other).await;
                wire.send(b"\r\n0\r\na: b\r\n\r").await;
                yield_now().await;
                wire.send(b"\n").await;
            }
            Act::InformThenAnswer => {
                let hints = "HTTP/1.1 103 Early Hints\r\n\r\n";
                wire.send([hints.as_bytes(), b"HTTP/1.1 100 Continue\r\n\r\n"].concat().as_slice()).await;
                read_body(&mut wire, &head).await?;
                wire.send(&[hints.as_bytes(), &with_length("")].concat()).await;
            }
            Act::HeadOctetByOctet => {
                for octet in with_length("").chunks(1) {
                    wire.send(octet).await;
                }
                read_body(&mut wire, &head).await?;
            }
            Act::AnswerUntilClose => {
                read_body(&mut wire, &head).await?;
                wire.send(&[b"HTTP/1.1 200 OK\r\n\r\n", &body[..]].concat()).await;
                return None;
            }
            Act::EndThenRead => {
                wire.send(&with_length("Connection: close\r\n")).await;
                let _ = wire.stream.shutdown().await;
                read_body(&mut wire, &head).await?;
                return None;
            }
            Act::AnswerAndReset => {
                wire.send(&with_length("Connection: close\r\n")).await;
                return None;
            }
            Act::Close => return None,
            Act::CloseInHead => {
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n").await;
                return None;
            }
            Act::CloseInBody => {
                let answer = with_length("");
                wire.send(&answer[..answer.len() - 1]).await;
                return None;
            }
            Act::CloseInChunk => {
                wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n").await;
                return None;
            }
            Act::Garbage => {
                wire.send(b"SSH-2.0-OpenSSH_9.6\r\n").await;
                read_body(&mut wire, &head).await?;
                return None;
            }
            Act::SwitchUnasked => {
                wire.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n").await;
                read_body(&mut wire, &head).await?;
                return None;
            }
        }
    }
}

/// A body that is complete after all steps, or isn't.
fn upload(dice: &mut Dice) -> (Request<Body>, bool) {
    let pieces = dice.roll(6);
    if pieces == 0 {
        return (Request::new(Body::empty()), true);
    }
    let (mut steps, mut length) = (Vec::new(), 0);
    for _ in 0..pieces {
        if dice.roll(2) == 0 {
            steps.push(Step::Yield);
        }
        let data = EVIL.repeat(dice.roll(3) * dice.roll(60) * dice.roll(4));
        length += data.len();
        steps.push(Step::Data(data));
    }
    let place = dice.roll(steps.len() + 1);
    let is_complete = match dice.roll(8) {
        0 => {
            steps.insert(place, Step::Fail);
            false
        }
        1 => {
            steps.insert(place, Step::Panic);
            false
        }
        2 => {
            steps.insert(place, Step::Stall);
            false
        }
        _ => true,
    };
    let mut request = Request::new(scripted(steps));
    *request.method_mut() = "POST".parse().unwrap();
    match dice.roll(4) {
        0 if length > 0 => {
            // It's longer than its length.
            request.headers_mut().insert("content-length", (length - 1).into());
            (request, false)
        }
        1 => {
            request.headers_mut().insert("content-length", (length + 1).into());
            (request, false)
        }
        2 => {
            request.headers_mut().insert("content-length", length.into());
            (request, is_complete)
        }
        _ => (request, is_complete),
    }
}

/// One exchange, which may be given up at any time. A response is always that of its request.
async fn exchange(client: Client, seed: usize) {
    let mut dice = Dice::new(seed as u64);
    let act = dice.roll(ACTS.len());
    let (mut request, is_complete) = upload(&mut dice);
    *request.uri_mut() = format!("/{act}/{seed}").parse().unwrap();
    let has_body = request.method() == "POST";
    let patience = if dice.roll(3) == 0 || !is_complete { dice.roll(400) } else { usize::MAX };
    // A complete body isn't given up: its outcome is certain.
    let is_certain = is_complete && patience == usize::MAX;
    let what = format!("{:?}, seed {seed}, body {has_body}", ACTS[act]);
    let exchange = async {
        let response = match client.oneshot(request).await {
            Ok(response) => response,
            Err(error) => return Err(error),
        };
        if response.status() == 101 {
            return Ok(None);
        }
        let mut body = response.into_body();
        let (mut text, mut frames) = (Vec::new(), if is_certain { usize::MAX } else { dice.roll(12) });
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                text.extend_from_slice(&data);
            }
            if frames == 0 {
                return Ok(None);
            }
            frames -= 1;
        }
        Ok(Some(text))
    };
    let mut exchange = Box::pin(exchange);
    let mut polls = 0;
    // Spurious polls, too.
    let outcome = std::future::poll_fn(|cx| {
        polls += 1;
        match exchange.as_mut().poll(cx) {
            Poll::Pending if polls > patience => Poll::Ready(None),
            Poll::Pending => {
                if patience < usize::MAX || polls % 3 == 0 {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        }
    })
    .await;
    match outcome {
        Some(Ok(Some(text))) => {
            assert!(act < CORRECT, "{what}: it ends cleanly");
            assert!(text == answer_to(seed), "{what}: another response");
        }
        Some(Err(error)) if is_certain => {
            // A reset may discard the response, or reach the request first.
            let may_fail = act >= CORRECT || (ACTS[act] == Act::AnswerAndReset && has_body);
            assert!(may_fail, "{what}: {error:?}");
        }
        _ => {}
    }
}

async fn soak(client: Client, evil: Arc<AtomicUsize>, rounds: usize) {
    let progress = Progress::default();
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (client, progress) = (client.clone(), progress.clone());
            tokio::spawn(async move {
                for round in 0..rounds {
                    // Bodies that panic end their task only.
                    let seed = task * 1000 + round;
                    let outcome = tokio::spawn(exchange(client.clone(), seed)).await;
                    if let Err(error) = outcome {
                        let panic = error.into_panic();
                        let text = panic.downcast_ref::<String>().cloned();
                        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
                        assert_eq!(text.as_deref(), Some("the body panics"), "seed {seed}");
                    }
                    progress.step();
                }
            })
        })
        .collect();
    for task in tasks {
        progress.of(task).await.unwrap();
    }
    // All permits are there again.
    let request = Request::get("/0/7").body(Body::empty()).unwrap();
    assert!(text(within(client.oneshot(request)).await).await.is_ok());
    assert_eq!(evil.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn exchanges_that_go_wrong_harm_no_others_over_awkward_connections() {
    for (most, pending, room) in [(1, 0, 64), (7, 1, 5), (100_000, 3, 3000)] {
        let evil = Arc::new(AtomicUsize::new(0));
        let seen = evil.clone();
        let client = Client::builder("http://backend.example")
            .connector(service_fn(move |_: Uri| {
                let (ours, theirs) = duplex(room);
                tokio::spawn(talk(Wire::new(theirs), seen.clone()));
                async move { Ok::<_, io::Error>(Awkward::new(ours, most, pending)) }
            }))
            .max_connections(3)
            .queue_timeout(None)
            .build()
            .unwrap();
        soak(client, evil, 40).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn exchanges_that_go_wrong_harm_no_others_over_tcp() {
    let evil = Arc::new(AtomicUsize::new(0));
    let seen = evil.clone();
    let origin = backend(move |wire| {
        let seen = seen.clone();
        async move {
            talk(wire, seen).await;
        }
    })
    .await;
    let client = Client::builder(&*origin).max_connections(3).queue_timeout(None).build().unwrap();
    soak(client, evil, 150).await;
}
