//! HTTP/1.1 connections to a backend, read and write by read and write.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, http::Uri, response::Response};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, Error, ErrorKind, ReverseProxy, ReverseProxyLayer};

use crate::support::{Pipe, Wire, backend, client, front, within};

/// What the backend's connection does, call by call.
#[derive(Clone, Copy)]
enum Step {
    /// Accepts a write of so many octets at most.
    Take(usize),
    /// Fails a write.
    Refuse(io::ErrorKind),
    /// Returns these octets from a read.
    Give(&'static str),
    End,
}

/// Everything that is written.
const ALL: Step = Step::Take(usize::MAX);

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[derive(Default)]
struct Script {
    steps: VecDeque<Step>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// A connection that follows a script. Calls other than the next step's are pending. It records each write, with the
/// connection's number.
struct Scripted {
    number: usize,
    script: Arc<Mutex<Script>>,
    writes: Writes,
}

type Writes = Arc<Mutex<Vec<(usize, Vec<u8>)>>>;

impl Scripted {
    fn step<T>(&self, cx: &mut Context<'_>, reads: bool, act: impl FnOnce(Step) -> Option<T>) -> Poll<T> {
        let mut script = self.script.lock().unwrap();
        let Some(done) = script.steps.front().copied().and_then(act) else {
            let waker = if reads { &mut script.reader } else { &mut script.writer };
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        script.steps.pop_front();
        let waiting = [script.reader.take(), script.writer.take()];
        drop(script);
        waiting.into_iter().flatten().for_each(Waker::wake);
        Poll::Ready(done)
    }
}

impl Connection for Scripted {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Scripted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.step(cx, true, |step| match step {
            Step::Give(text) => {
                // What is longer than the buffer is lost: a test that reads it fails.
                buf.put_slice(&text.as_bytes()[..text.len().min(buf.remaining())]);
                Some(Ok(()))
            }
            Step::End => Some(Ok(())),
            _ => None,
        })
    }
}

impl Write for Scripted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.step(cx, false, |step| match step {
            Step::Take(most) => {
                let size = most.min(buf.len());
                self.writes.lock().unwrap().push((self.number, buf[..size].to_vec()));
                Some(Ok(size))
            }
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

/// A proxy whose connections follow these scripts, one at a time, and what is written to them.
fn scripted(scripts: &[&[Step]]) -> (ReverseProxy, Writes) {
    let (scripts, writes) = (scripts.iter().map(|steps| steps.to_vec()).collect::<Vec<_>>(), Writes::default());
    let (number, written) = (AtomicUsize::new(0), writes.clone());
    let number = Arc::new(number);
    let connector = service_fn(move |_: Uri| {
        let number = number.fetch_add(1, Ordering::SeqCst);
        let steps = scripts.get(number).expect("so many connections").iter().copied().collect();
        let script = Arc::new(Mutex::new(Script { steps, ..Script::default() }));
        let scripted = Scripted { number, script, writes: written.clone() };
        async move { Ok::<_, io::Error>(scripted) }
    });
    let client = Client::builder("http://backend.example").connector(connector).max_connections(1);
    (ReverseProxyLayer::new(client).into_service(), writes)
}

/// The status of the response, and its body or the kind of its failure.
async fn call(proxy: &ReverseProxy, method: &str, body: impl Into<Body>) -> (u16, Result<String, ErrorKind>) {
    let request =
        Request::builder().method(method).uri("/x").header("host", "front.example").body(body.into()).unwrap();
    let Ok(response): Result<Response, Infallible> = within(proxy.clone().oneshot(request)).await;
    let status = response.status().as_u16();
    if let Some(error) = response.extensions().get::<Error>() {
        return (status, Err(error.kind()));
    }
    let body = within(response.into_body().collect()).await;
    let body = body.map(|body| String::from_utf8(body.to_bytes().into()).unwrap());
    (status, body.map_err(|error| error.into_inner().downcast::<Error>().unwrap().kind()))
}

fn answered(status: u16, text: &str) -> (u16, Result<String, ErrorKind>) {
    (status, Ok(text.to_owned()))
}

fn refused(kind: ErrorKind) -> (u16, Result<String, ErrorKind>) {
    (502, Err(kind))
}

/// A body of these pieces, all of which are there, and of unknown length.
fn pieces(pieces: &'static [&'static str]) -> Body {
    let frames = pieces.iter().map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece.as_bytes()))));
    let mut frames: VecDeque<_> = frames.collect();
    Body::new(StreamBody::new(futures(move || frames.pop_front())))
}

/// A stream of what the function returns.
fn futures<T>(next: impl FnMut() -> Option<T> + Unpin) -> impl futures_util::Stream<Item = T> {
    struct Next<F>(F);
    impl<T, F: FnMut() -> Option<T> + Unpin> futures_util::Stream for Next<F> {
        type Item = T;

        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<T>> {
            Poll::Ready((self.0)())
        }
    }
    Next(next)
}

#[tokio::test]
async fn a_head_and_a_small_body_leave_in_one_write() {
    let (proxy, writes) = scripted(&[&[ALL, Step::Give(OK), ALL, Step::Give(OK)]]);
    assert_eq!(call(&proxy, "POST", "x".repeat(1024)).await, answered(200, "ok"));
    assert_eq!(call(&proxy, "POST", pieces(&["one", "", "three"])).await, answered(200, "ok"));
    let writes = writes.lock().unwrap().clone();
    let [(0, first), (0, second)] = &writes[..] else { panic!("{} writes", writes.len()) };
    assert!(first.ends_with(format!("\r\n\r\n{}", "x".repeat(1024)).as_bytes()));
    assert!(second.ends_with(b"\r\n\r\n3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"), "{}", second.escape_ascii());
}

#[tokio::test]
async fn a_small_upload_over_the_wire_leaves_in_one_write() {
    let (proxy, writes) = scripted(&[&[ALL, Step::Give(OK), ALL, Step::Give(OK)]]);
    let mut wire = client(front(Router::new().fallback_service(proxy)).await).await;
    for _ in 0..2 {
        let head = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1024\r\n\r\n";
        wire.send((head.to_owned() + &"x".repeat(1024)).as_bytes()).await;
        assert_eq!(wire.message().await.unwrap().text(), "ok");
    }
    assert_eq!(writes.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_request_arrives_complete_in_writes_of_any_size() {
    let body = "0123456789".repeat(4096);
    for size in [1000, 8192, 40_000, usize::MAX] {
        let steps: Vec<_> = std::iter::repeat_n(Step::Take(size), 100).collect();
        let (proxy, writes) = scripted(&[&steps]);
        let request = Request::post("/x").header("host", "a").body(Body::from(body.clone())).unwrap();
        let exchange = tokio::spawn(proxy.oneshot(request));
        let written = within(async {
            loop {
                let written = writes.lock().unwrap().iter().flat_map(|(_, write)| write.clone()).collect::<Vec<_>>();
                if written.ends_with(body.as_bytes()) {
                    return String::from_utf8(written).unwrap();
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        exchange.abort();
        assert!(written.starts_with("POST /x HTTP/1.1\r\n") && written.ends_with(&format!("\r\n\r\n{body}")), "{size}");
    }
}

#[tokio::test]
async fn a_request_of_which_nothing_could_be_written_is_sent_again_with_its_body() {
    for content in ["x".repeat(1024), String::new()] {
        for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset] {
            let (proxy, writes) = scripted(&[&[ALL, Step::Give(OK), Step::Refuse(kind)], &[ALL, Step::Give(OK)]]);
            assert_eq!(call(&proxy, "GET", "").await, answered(200, "ok"));
            assert_eq!(call(&proxy, "POST", content.clone()).await, answered(200, "ok"));
            let writes = writes.lock().unwrap().clone();
            let [(0, _), (1, again)] = &writes[..] else { panic!("{} writes", writes.len()) };
            assert!(again.starts_with(b"POST /x ") && again.ends_with(format!("\r\n\r\n{content}").as_bytes()));
        }
    }
}

#[tokio::test]
async fn a_request_with_a_body_of_which_something_was_written_is_not_sent_again() {
    let (proxy, writes) = scripted(&[&[ALL, Step::Give(OK), Step::Take(10), Step::End]]);
    assert_eq!(call(&proxy, "GET", "").await, answered(200, "ok"));
    assert_eq!(call(&proxy, "PUT", "body").await, refused(ErrorKind::ConnectionClosed));
    assert_eq!(writes.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn octets_before_the_request_are_no_response_to_it() {
    let (proxy, writes) = scripted(&[&[Step::Give(OK), ALL, Step::Give(OK)]]);
    assert_eq!(call(&proxy, "GET", "").await, refused(ErrorKind::ConnectionClosed));
    assert_eq!(writes.lock().unwrap().len(), 0);

    // As from a server that reports its keep-alive timeout.
    const TIMEOUT: &str = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (proxy, writes) = scripted(&[&[ALL, Step::Give(OK), Step::Give(TIMEOUT)], &[ALL, Step::Give(OK)]]);
    assert_eq!(call(&proxy, "GET", "").await, answered(200, "ok"));
    assert_eq!(call(&proxy, "POST", "body").await, answered(200, "ok"));
    assert_eq!(writes.lock().unwrap().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn octets_behind_a_response_close_the_connection() {
    const STRAY: &str =
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let (proxy, writes) = scripted(&[&[ALL, Step::Give(STRAY)], &[ALL, Step::Give(OK)]]);
    for _ in 0..2 {
        assert_eq!(call(&proxy, "GET", "").await, answered(200, "ok"));
    }
    assert_eq!(writes.lock().unwrap().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn a_response_that_ends_the_connection_is_the_last_one_on_it() {
    for last in [
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ] {
        let (proxy, writes) = scripted(&[&[ALL, Step::Give(last)], &[ALL, Step::Give(OK)]]);
        for _ in 0..2 {
            assert_eq!(call(&proxy, "GET", "").await, answered(200, "ok"));
        }
        assert_eq!(writes.lock().unwrap().last().unwrap().0, 1, "{last}");
    }
    let (proxy, writes) = scripted(&[
        &[ALL, Step::Give("HTTP/1.1 200 OK\r\n\r\nu"), Step::Give("ntil"), Step::End],
        &[ALL, Step::Give(OK)],
    ]);
    assert_eq!(call(&proxy, "GET", "").await, answered(200, "until"));
    assert_eq!(call(&proxy, "GET", "").await, answered(200, "ok"));
    assert_eq!(writes.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn informational_responses_are_limited_in_number() {
    const HINT: Step = Step::Give("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    for (hints, expected) in [(100, answered(200, "ok")), (101, refused(ErrorKind::InvalidResponse))] {
        let mut steps = vec![ALL];
        steps.extend(std::iter::repeat_n(HINT, hints));
        steps.push(Step::Give(OK));
        let (proxy, _) = scripted(&[&steps]);
        assert_eq!(call(&proxy, "GET", "").await, expected, "{hints}");
    }
}

#[tokio::test]
async fn small_chunks_that_arrive_together_are_one_frame() {
    const CHUNKS: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n1\r\nd\r\n";
    let (proxy, _) = scripted(&[&[ALL, Step::Give(CHUNKS), Step::Give("1\r\ne\r\n1\r\nf\r\n0\r\n\r\n")]]);
    let request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
    let Ok(response) = within(proxy.oneshot(request)).await;
    let mut body = response.into_body();
    let mut frames = Vec::new();
    while let Some(frame) = within(body.frame()).await {
        frames.push(frame.unwrap().into_data().unwrap());
    }
    assert_eq!(frames, ["abcd", "ef"]);
}

#[tokio::test]
async fn a_switch_of_protocols_waits_for_the_whole_request() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let url = backend(move |mut wire| {
        let report = report.clone();
        async move {
            wire.head().await.unwrap();
            wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\nearly").await;
            report.send(wire.bytes(9).await).unwrap();
        }
    })
    .await;
    let layer = ReverseProxyLayer::new(url).allow_upgrade("raw");
    let mut wire = client(front(Router::new().layer(layer)).await).await;
    let head = "POST /x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: raw\r\nContent-Length: 4\r\n\r\n";
    wire.send(format!("{head}ab").as_bytes()).await;
    wire.send(b"cd").await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
    wire.send(b"hello").await;
    assert_eq!(wire.bytes(5).await, b"early");
    assert_eq!(within(reports.recv()).await.unwrap(), b"abcdhello");
}

/// Polls a future at most `times` times. Returns `None` if the future was dropped unfinished.
async fn polled<F: Future>(mut times: usize, future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    poll_fn(|cx| {
        if times == 0 {
            return Poll::Ready(None);
        }
        times -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

/// A backend that responds while it receives the request: both directions are under way at once, in small pieces.
async fn talk(stream: DuplexStream) {
    let mut wire = Wire::new(stream);
    while let Some(head) = wire.head().await {
        if head.starts_with("GET") {
            wire.send(OK.as_bytes()).await;
            continue;
        }
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while let Some(chunk) = wire.chunk().await {
            if chunk.is_empty() {
                break;
            }
            if wire.stream.write_all(b"4\r\necho\r\n").await.is_err() {
                return;
            }
        }
        if wire.stream.write_all(b"0\r\n\r\n").await.is_err() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_exchange_in_both_directions_can_be_dropped_at_every_poll() {
    let (report, mut ended) = mpsc::unbounded_channel();
    let connector = service_fn(move |_: Uri| {
        let (ours, theirs) = duplex(16);
        let report = report.clone();
        tokio::spawn(async move {
            talk(theirs).await;
            let _ = report.send(());
        });
        async { Ok::<_, io::Error>(Pipe::new(ours)) }
    });
    // A permit that an exchange keeps is missed by the next one.
    let client = Client::builder("http://backend.example").connector(connector).max_connections(1);
    let proxy = ReverseProxyLayer::new(client).into_service();
    let mut polls = 0;
    loop {
        let exchange = async {
            let request = Request::post("/x").header("host", "a").body(slow()).unwrap();
            let Ok(response) = proxy.clone().oneshot(request).await;
            let status = response.status();
            (status, response.into_body().collect().await.map(|body| body.to_bytes()))
        };
        let outcome = within(polled(polls, exchange)).await;
        assert_eq!(call(&proxy, "GET", "").await, answered(200, "ok"), "dropped at {polls}");
        if let Some((status, body)) = outcome {
            assert_eq!((status.as_u16(), &*body.unwrap()), (200, &b"echoechoecho"[..]));
            break;
        }
        polls += 1;
    }
    assert!(polls > 5, "the exchange takes more than {polls} polls");
    // Of all connections, one is left, which serves the last request.
    drop(proxy);
    within(ended.recv()).await.unwrap();
}

/// A body of three pieces, with a pause before each.
fn slow() -> Body {
    let (mut sender, body) = http_body_util::Channel::<Bytes>::new(1);
    tokio::spawn(async move {
        for piece in ["one", "two", "three"] {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let _ = sender.send_data(piece.into()).await;
        }
    });
    Body::new(body)
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_declared_is_not_sent() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let url = backend(move |mut wire| {
        let report = report.clone();
        async move {
            let mut octets = Vec::new();
            let _ = wire.stream.read_to_end(&mut octets).await;
            report.send(octets).unwrap();
        }
    })
    .await;
    let client = Client::builder(url).build().unwrap();
    for (declared, body) in [(4, pieces(&["ab"])), (2, pieces(&["abc"]))] {
        let request = Request::post("/x").header("host", "a").header("content-length", declared).body(body).unwrap();
        let error = within(client.clone().oneshot(request)).await.unwrap_err();
        assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::RequestBody, 400), "{declared}");
        let octets = within(reports.recv()).await.unwrap();
        assert_eq!(octets.escape_ascii().to_string(), "", "{declared}");
    }
}
