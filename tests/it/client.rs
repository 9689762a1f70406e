//! The client's guarantees: cancelled exchanges are closed, requests that may have been processed aren't sent twice,
//! and exchanges don't see each other's bytes.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::Uri,
    response::Response,
};
use http_body_util::{BodyExt, Channel};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex},
    net::TcpStream,
    sync::mpsc,
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, Error, ErrorKind, ReverseProxy, ReverseProxyLayer};

use crate::support::{PATIENCE, Pipe, Wire, backend, client, front, get, seen_to_be_kept, settled, within};

fn request(method: &str, target: &str, body: impl Into<Body>) -> Request {
    Request::builder().method(method).uri(target).header("host", "front.example").body(body.into()).unwrap()
}

async fn call(proxy: &ReverseProxy, request: Request) -> Response {
    let Ok(response): Result<_, Infallible> = proxy.clone().oneshot(request).await;
    response
}

async fn text(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
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

/// A body of three parts. In real time, because each has to be a read of its own from a socket.
fn upload() -> Body {
    let (mut sender, body) = Channel::<Bytes>::new(1);
    tokio::spawn(async move {
        for part in ["one", "two", "three"] {
            sleep(Duration::from_millis(1)).await;
            // The reader may be dropped already.
            let _ = sender.send_data(part.into()).await;
        }
    });
    Body::new(body)
}

#[tokio::test]
async fn an_exchange_can_be_dropped_at_every_poll() {
    const ANSWER: [&[u8]; 7] = [
        b"HTTP/1.1 100 Cont",
        b"inue\r\n\r\nHTTP/1.1 200 O",
        b"K\r\nTransfer-Enc",
        b"oding: chunked\r\n\r\n3\r\na",
        b"bc\r\n3\r\ndef\r\n",
        b"0\r\nX-Sum: 1\r\n",
        b"\r\n",
    ];
    let opened = Arc::new(AtomicUsize::new(0));
    let (report, mut ended) = mpsc::unbounded_channel();
    let counted = opened.clone();
    let url = backend(move |mut wire| {
        let report = report.clone();
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            'exchanges: while let Some(head) = wire.head().await {
                if head.starts_with("GET /probe") {
                    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nprobe").await;
                    continue;
                }
                for (index, part) in ANSWER[..4].iter().enumerate() {
                    let Some(chunk) = wire.chunk().await else { break 'exchanges };
                    assert_eq!(chunk.is_empty(), index == 3);
                    wire.send(part).await;
                }
                for part in &ANSWER[4..] {
                    // In real time: each part is a read of its own.
                    sleep(Duration::from_millis(1)).await;
                    wire.send(part).await;
                }
            }
            drop(wire);
            let _ = report.send(());
        }
    })
    .await;
    let proxy = ReverseProxy::new(url);
    assert_eq!(text(call(&proxy, request("GET", "/probe", "")).await).await, "probe");
    seen_to_be_kept().await;
    assert_eq!(text(call(&proxy, request("GET", "/probe", "")).await).await, "probe");
    let (mut polls, mut closed) = (0, 0);
    loop {
        let exchange = async { text(call(&proxy, request("POST", "/x", upload())).await).await };
        let outcome = within(polled(polls, exchange)).await;
        // The next exchange is unaffected, and no connection but one idle one stays open.
        assert_eq!(text(call(&proxy, request("GET", "/probe", "")).await).await, "probe", "dropped at {polls}");
        while opened.load(Ordering::SeqCst) - closed > 1 {
            timeout(PATIENCE, ended.recv()).await.expect("the connection is closed").unwrap();
            closed += 1;
        }
        if let Some(text) = outcome {
            assert_eq!(text, "abcdef");
            break;
        }
        polls += 1;
    }
    assert!(polls > 5, "the exchange takes more than {polls} polls");
}

/// Continues at once, yields to other tasks, or sleeps for up to 15 ms. In real time, the sleeps are the moments at
/// which the backend closes.
async fn pause(choice: usize) {
    match choice {
        0..5 => {}
        5..10 => yield_now().await,
        delay => sleep(Duration::from_millis(delay as u64 - 9)).await,
    }
}

/// Responds to one request, reports it if it's a `POST`, and closes at the moment that `choice` selects: at once, or
/// within 20 ms.
async fn answer_and_close<S>(mut wire: Wire<S>, choice: usize, posts: mpsc::UnboundedSender<String>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(request) = wire.message().await else { return };
    if request.head.starts_with("POST") {
        assert_eq!(request.text(), "hi");
        posts.send(request.head.split(' ').nth(1).unwrap().to_owned()).unwrap();
    }
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    pause(choice % 30).await;
}

/// Sends requests one after the other, with pauses. Returns the targets of those that succeed, and of those that fail.
async fn in_sequence(proxy: &ReverseProxy, of: usize) -> (Vec<String>, Vec<String>) {
    let (mut answered, mut failed) = (Vec::new(), Vec::new());
    for round in 0..60 {
        pause((round * 11 + of) % 25).await;
        let (method, body) = if round % 3 == 0 { ("GET", "") } else { ("POST", "hi") };
        let target = format!("/{method}/{of}/{round}");
        let response = timeout(PATIENCE, call(proxy, request(method, &target, body))).await.expect("an answer");
        match response.status().as_u16() {
            200 => {
                assert_eq!(text(response).await, "ok");
                answered.push(target);
            }
            502 => failed.push(target),
            status => panic!("{target}: {status}"),
        }
    }
    (answered, failed)
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_closes_idle_connections_at_any_moment_fails_no_request() {
    for of in 0..8 {
        let opened = Arc::new(AtomicUsize::new(0));
        let (seen, mut posts) = mpsc::unbounded_channel();
        let layer =
            ReverseProxyLayer::new(Client::builder("http://backend.example").connector(service_fn(move |_: Uri| {
                let (ours, theirs) = duplex(64 * 1024);
                let choice = opened.fetch_add(1, Ordering::SeqCst) * 7 + of;
                tokio::spawn(answer_and_close(Wire::new(theirs), choice, seen.clone()));
                async { Ok::<_, io::Error>(Pipe::new(ours)) }
            })));
        let proxy = layer.into_service();
        let (mut answered, failed) = in_sequence(&proxy, of).await;
        assert_eq!(failed, [""; 0]);
        answered.retain(|target| target.starts_with("/POST"));
        drop(proxy);
        assert_eq!(std::iter::from_fn(|| posts.try_recv().ok()).collect::<Vec<_>>(), answered);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_closes_at_any_moment_fails_no_get_and_receives_no_post_twice() {
    async fn sequence(of: usize) {
        let opened = AtomicUsize::new(0);
        let (seen, mut posts) = mpsc::unbounded_channel();
        let url =
            backend(move |wire| answer_and_close(wire, opened.fetch_add(1, Ordering::SeqCst) * 7 + of, seen.clone()))
                .await;
        let (answered, failed) = in_sequence(&ReverseProxy::new(url), of).await;
        // On a busy machine the backend closes late. The pool has then observed long idle times, and may lose a POST.
        assert!(failed.iter().all(|target| target.starts_with("/POST")), "{failed:?}");
        let seen: Vec<_> = std::iter::from_fn(|| posts.try_recv().ok()).collect();
        for target in answered.iter().filter(|target| target.starts_with("/POST")) {
            assert_eq!(seen.iter().filter(|seen| *seen == target).count(), 1, "{target}");
        }
        for target in failed {
            assert!(seen.iter().filter(|seen| **seen == target).count() <= 1, "{target}");
        }
    }

    let mut sequences = JoinSet::new();
    (0..8).for_each(|of| drop(sequences.spawn(sequence(of))));
    while let Some(outcome) = sequences.join_next().await {
        outcome.unwrap();
    }
}

/// How a backend ends a connection instead of responding.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// It has read the request, so the connection ends with FIN.
    Close,
    /// It leaves the request unread, so the connection is reset.
    Reset,
}

/// A backend that responds to `/warm` and ends the connection on any other request: on all connections (`always`) or on
/// the first only. It reports the number of the connection and the start line of each request.
async fn dying(death: Death, always: bool) -> (String, mpsc::UnboundedReceiver<(usize, String)>) {
    let (report, reports) = mpsc::unbounded_channel();
    let connections = AtomicUsize::new(0);
    let url = backend(move |mut wire: Wire<TcpStream>| {
        let (connection, report) = (connections.fetch_add(1, Ordering::SeqCst), report.clone());
        async move {
            loop {
                let mut peeked = [0; 1024];
                let Ok(count @ 1..) = wire.stream.peek(&mut peeked).await else { break };
                let start_line = peeked[..count].split(|&b| b == b'\r').next().unwrap().escape_ascii().to_string();
                let dies = !start_line.contains("/warm") && (always || connection == 0);
                if !start_line.contains("/warm") {
                    report.send((connection, start_line)).unwrap();
                }
                if !dies || matches!(death, Death::Close) {
                    wire.message().await;
                }
                if dies {
                    break;
                }
                wire.send(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            }
        }
    })
    .await;
    (url, reports)
}

/// Opens a connection that the pool reuses for any next request.
async fn warm(proxy: &ReverseProxy) {
    assert_eq!(call(proxy, request("GET", "/warm", "")).await.status(), 204);
    seen_to_be_kept().await;
    assert_eq!(call(proxy, request("GET", "/warm", "")).await.status(), 204);
}

#[tokio::test]
async fn idempotent_requests_without_a_body_are_retried_once() {
    async fn case(death: Death, method: &str, body: &'static str, repeated: bool) {
        let case = format!("{method} {body:?} {death:?}");
        let start_line = format!("{method} /x?y HTTP/1.1");
        // The reused connection dies, and the retry on a new connection succeeds.
        let (url, mut reports) = dying(death, false).await;
        let proxy = ReverseProxy::new(url);
        warm(&proxy).await;
        let status = call(&proxy, request(method, "/x?y", body)).await.status();
        assert_eq!(within(reports.recv()).await.unwrap(), (0, start_line.clone()), "{case}");
        if repeated {
            assert_eq!(status, 204, "{case}");
            assert_eq!(within(reports.recv()).await.unwrap(), (1, start_line.clone()), "{case}");
        } else {
            assert_eq!(status, 502, "{case}");
        }
        assert!(reports.try_recv().is_err(), "{case}");

        // The retry dies too. There is no second one.
        let (url, mut reports) = dying(death, true).await;
        let proxy = ReverseProxy::new(url);
        warm(&proxy).await;
        assert_eq!(call(&proxy, request(method, "/x?y", body)).await.status(), 502, "{case}");
        for connection in 0..if repeated { 2 } else { 1 } {
            assert_eq!(within(reports.recv()).await.unwrap(), (connection, start_line.clone()), "{case}");
        }
        assert!(reports.try_recv().is_err(), "{case}");

        // A request that fails on a new connection isn't retried, because the request may be the cause.
        let (url, mut reports) = dying(death, true).await;
        let response = call(&ReverseProxy::new(url), request(method, "/x?y", body)).await;
        assert_eq!(response.extensions().get::<Error>().unwrap().kind(), ErrorKind::ConnectionClosed, "{case}");
        assert_eq!(within(reports.recv()).await.unwrap(), (0, start_line), "{case}");
        assert!(reports.try_recv().is_err(), "{case}");
    }

    for death in [Death::Close, Death::Reset] {
        for (method, body, repeated) in [
            ("GET", "", true),
            ("HEAD", "", true),
            ("OPTIONS", "", true),
            ("PUT", "", true),
            ("DELETE", "", true),
            ("POST", "", false),
            ("PATCH", "", false),
            ("get", "", false),
            ("UNKNOWN", "", false),
            ("GET", "body", false),
            ("PUT", "body", false),
            ("POST", "body", false),
        ] {
            case(death, method, body, repeated).await;
        }
    }
}

#[tokio::test]
async fn requests_with_connection_based_credentials_are_not_retried() {
    for death in [Death::Close, Death::Reset] {
        for (credentials, repeated) in
            [("Negotiate YII=", false), ("\tntlm TlRM", false), ("Basic YTpi", true), ("Bearer x", true)]
        {
            let case = format!("{credentials} {death:?}");
            let (url, mut reports) = dying(death, false).await;
            let proxy = ReverseProxy::new(url);
            warm(&proxy).await;
            let mut request = request("GET", "/x", "");
            request.headers_mut().insert("authorization", credentials.parse().unwrap());
            assert_eq!(call(&proxy, request).await.status(), if repeated { 204 } else { 502 }, "{case}");
            assert_eq!(within(reports.recv()).await.unwrap().0, 0, "{case}");
            assert_eq!(reports.try_recv().is_ok(), repeated, "{case}");
        }
    }
}

#[tokio::test]
async fn a_connection_with_an_early_response_is_not_reused() {
    // The rest of the upload, sent after the response, reads like a request. A backend that took it for one would
    // respond.
    const LATER: &str = "GET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    let later = format!("{:x}\r\n{LATER}\r\n0\r\n\r\n", LATER.len());
    let sized = format!("Content-Length: {}", 4 + LATER.len());
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n",
        "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly",
    ] {
        for (framing, first, rest) in
            [("Transfer-Encoding: chunked", "4\r\nabcd\r\n", &*later), (&*sized, "abcd", LATER)]
        {
            let (report, mut reports) = mpsc::unbounded_channel();
            let connections = AtomicUsize::new(0);
            let url = backend(move |mut wire| {
                let (connection, report) = (connections.fetch_add(1, Ordering::SeqCst), report.clone());
                async move {
                    while let Some(head) = wire.head().await {
                        report.send(format!("{connection} {}", head.lines().next().unwrap())).unwrap();
                        if head.starts_with("POST") {
                            wire.send(answer.as_bytes()).await;
                            // The rest of the upload, until the connection ends.
                            wire.bytes(usize::MAX).await;
                            report.send(format!("{connection} end")).unwrap();
                            return;
                        }
                        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother").await;
                    }
                }
            })
            .await;
            let addr = front(Router::new().layer(ReverseProxyLayer::new(url))).await;
            let mut wire = client(addr).await;
            let head = format!("POST /x HTTP/1.1\r\nHost: front.example\r\n{framing}\r\n\r\n{first}");
            wire.send(head.as_bytes()).await;
            let early = wire.message().await.unwrap();
            assert_eq!((&*early.text(), early.complete), ("early", true), "{answer} {framing}");
            assert_eq!(within(reports.recv()).await.unwrap(), "0 POST /x HTTP/1.1");
            // The client sends the rest of its upload, and another request.
            wire.send(rest.as_bytes()).await;
            wire.send(b"GET /same HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
            let other = get(addr, "/other", "").await;
            assert_eq!((other.status(), &*other.text()), (200, "other"), "{answer} {framing}");
            if let Some(same) = wire.message().await {
                assert_eq!((same.status(), &*same.text()), (200, "other"), "{answer} {framing}");
            }
            let mut seen = Vec::new();
            while !(seen.contains(&"0 end".to_owned()) && seen.iter().any(|seen| seen.contains("/other"))) {
                seen.push(within(reports.recv()).await.unwrap());
            }
            let foreign =
                |seen: &&String| !seen.ends_with("GET /other HTTP/1.1") && !seen.ends_with("GET /same HTTP/1.1");
            assert_eq!(seen.iter().filter(foreign).collect::<Vec<_>>(), ["0 end"], "{answer} {framing}");
            assert!(!seen.iter().any(|seen| seen.starts_with("0 GET")), "{seen:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_the_backend_down() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let url = backend(move |mut wire| {
        let sent = counted.clone();
        async move {
            wire.head().await;
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            let chunk = [b"10000\r\n", &[b'x'; 0x10000][..], b"\r\n"].concat();
            while wire.stream.write_all(&chunk).await.is_ok() {
                sent.fetch_add(0x10000, Ordering::SeqCst);
            }
        }
    })
    .await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(url))).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await.unwrap();
    // The download stops when the kernel's buffers are full.
    let stopped = settled(&sent).await;
    assert!(stopped < 64 << 20, "{stopped}");
    // It continues when the client reads.
    let mut read = vec![0; 1 << 20];
    for _ in 0..2 * (stopped >> 20) + 8 {
        within(stream.read_exact(&mut read)).await.unwrap();
    }
    assert!(sent.load(Ordering::SeqCst) > stopped);
}
