//! HTTP/2 backends: as many connections as the streams need, and the same guarantees as over HTTP/1.1.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Request},
    response::Response,
};
use http_body_util::{BodyExt, Channel};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Barrier, Notify, mpsc},
    task::JoinSet,
    time::timeout,
};
use tower::ServiceExt;
use tower_http::limit::RequestBodyLimitLayer;
use tower_reverse_proxy::{Client, Error, ErrorKind, ReverseProxy, ReverseProxyLayer};

use crate::{
    client::settled,
    support::{PATIENCE, Progress, ask, backend, client, elsewhere, front, tasks_left},
};

const SHORT: Duration = Duration::from_millis(250);

/// A backend served by hyper. It counts its connections, shuts them down gracefully on request, and reports when one
/// ends.
#[derive(Clone)]
pub(crate) struct Http2 {
    pub(crate) connections: Arc<AtomicUsize>,
    leave: Arc<Notify>,
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

fn proxy(url: &str) -> ReverseProxy {
    ReverseProxyLayer::new(Client::builder(url).http2(true)).into_service()
}

fn request(method: &str, body: impl Into<Body>) -> Request {
    Request::builder().method(method).uri("/x").header("host", "front.example").body(body.into()).unwrap()
}

async fn call(proxy: &ReverseProxy, request: Request) -> Response {
    let Ok(response): Result<_, Infallible> = proxy.clone().oneshot(request).await;
    response
}

async fn ok(_: hyper::Request<Incoming>) -> Response {
    Response::new(Body::from("ok"))
}

#[tokio::test]
async fn another_connection_is_opened_when_streams_run_out() {
    const REQUESTS: usize = 6;
    let (url, backend) = together(REQUESTS, 2).await;
    // With a new pool, and with a pool that has a connection.
    for warm in [false, true] {
        backend.connections.store(0, Ordering::SeqCst);
        let proxy = proxy(&url);
        if warm {
            assert_eq!(call(&proxy, request("GET", "")).await.status(), 200);
        }
        for _ in 0..3 {
            all_at_once(&proxy, REQUESTS).await;
            assert_eq!(backend.connections.load(Ordering::SeqCst), REQUESTS / 2, "{warm}");
        }
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
        calls.spawn(async move { call(&proxy, request("POST", "")).await.status() });
    }
    while let Some(status) = timeout(PATIENCE, calls.join_next()).await.expect("no call waits for another") {
        assert_eq!(status.unwrap(), 200);
    }
}

#[tokio::test]
async fn a_graceful_goaway_fails_no_request() {
    let (url, backend, mut ended) = Http2::serve(100, ok).await;
    let proxy = proxy(&url);
    for round in 0..30 {
        let response = call(&proxy, request(if round % 2 == 0 { "GET" } else { "POST" }, "")).await;
        assert_eq!(response.status(), 200, "{round}: {:?}", response.extensions().get::<Error>());
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        backend.leave.notify_waiters();
        // The next request comes after the connection's end, or during its shutdown.
        if round % 3 > 0 {
            timeout(PATIENCE, ended.recv()).await.unwrap().unwrap();
        }
        for _ in 0..round % 5 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_the_next_request_opens_another() {
    let (url, backend, mut ended) = Http2::serve(100, ok).await;
    let proxy = ReverseProxyLayer::new(Client::builder(&url).http2(true).pool_idle_timeout(SHORT)).into_service();
    for count in 1..=3 {
        // Both requests share one connection.
        for method in ["GET", "POST"] {
            let response = call(&proxy, request(method, "")).await;
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        }
        assert_eq!(backend.connections.load(Ordering::SeqCst), count);
        timeout(PATIENCE, ended.recv()).await.expect("it's closed").unwrap();
    }
}

#[tokio::test]
async fn a_connection_with_an_open_stream_is_not_idle() {
    let (url, backend, mut ended) = Http2::serve(100, async |request: hyper::Request<Incoming>| {
        let (mut sender, body) = Channel::<Bytes>::new(1);
        tokio::spawn(async move {
            let _upload = request.into_body().collect().await;
            tokio::time::sleep(SHORT * 3).await;
            sender.send_data("late".into()).await.unwrap();
        });
        Response::new(Body::new(body))
    })
    .await;
    let proxy = ReverseProxyLayer::new(Client::builder(&url).http2(true).pool_idle_timeout(SHORT)).into_service();
    // The upload stalls, and then the response does.
    let (sender, body) = Channel::<Bytes>::new(1);
    let response = call(&proxy, request("POST", Body::new(body))).await;
    tokio::time::sleep(SHORT * 3).await;
    drop(sender);
    // Another request uses the same connection.
    assert_eq!(call(&proxy, request("GET", "")).await.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "late");
    assert!(ended.try_recv().is_err());
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
    timeout(PATIENCE, ended.recv()).await.expect("the idle connection is closed").unwrap();
}

#[tokio::test]
async fn a_request_that_races_with_an_idle_close_succeeds() {
    let (url, backend, _ended) = Http2::serve(100, ok).await;
    for idle in [Duration::ZERO, Duration::from_millis(10)] {
        let proxy = ReverseProxyLayer::new(Client::builder(&url).http2(true).pool_idle_timeout(idle)).into_service();
        let before = backend.connections.load(Ordering::SeqCst);
        let progress = Progress::default();
        let rounds = async {
            for round in 0.. {
                // On a busy machine, it takes more rounds until a connection is closed in between.
                if round >= 100 && backend.connections.load(Ordering::SeqCst) > before + 1 {
                    break;
                }
                assert!(round < 5000, "no connection is closed");
                let response = call(&proxy, request("POST", "body")).await;
                assert_eq!(response.status(), 200, "{round}: {:?}", response.extensions().get::<Error>());
                drop(response.into_body().collect().await.unwrap());
                // As close to the timeout as a timer gets, in real time: the race is with the pool's own timer.
                tokio::time::sleep(Duration::from_micros(9_500 + round % 100 * 20)).await;
                progress.step();
            }
        };
        progress.of(rounds).await;
    }
}

#[tokio::test]
async fn dropping_the_proxy_ends_its_connections_and_tasks() {
    let (url, _backend, mut ended) = elsewhere(Http2::serve(100, ok));
    let proxy = proxy(&url);
    let response = call(&proxy, request("GET", "")).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    drop(proxy);
    timeout(PATIENCE, ended.recv()).await.unwrap().unwrap();
    tasks_left(0).await;
}

#[tokio::test]
async fn dropping_a_call_resets_only_its_stream() {
    /// Reports when it's dropped.
    struct Gone(mpsc::UnboundedSender<()>);
    impl Drop for Gone {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    let (report, mut gone) = mpsc::unbounded_channel();
    let come = Arc::new(Notify::new());
    let comes = come.clone();
    let (url, backend, _ended) = Http2::serve(100, move |request| {
        let (report, come) = (report.clone(), comes.clone());
        async move {
            if request.method() == "POST" {
                let _gone = Gone(report);
                come.notify_one();
                std::future::pending::<()>().await;
            }
            Response::new(Body::from("ok"))
        }
    })
    .await;
    let proxy = proxy(&url);
    for _ in 0..3 {
        let (_sender, body) = Channel::<Bytes>::new(1);
        let dropped = tokio::spawn({
            let proxy = proxy.clone();
            async move { call(&proxy, request("POST", Body::new(body))).await }
        });
        come.notified().await;
        dropped.abort();
        timeout(PATIENCE, gone.recv()).await.expect("its stream is reset").unwrap();
        assert_eq!(call(&proxy, request("GET", "")).await.status(), 200);
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
}

/// A frame (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
/// `:status 200` (RFC 7541, appendix A).
pub(crate) const STATUS_200: &[u8] = &[0x88];

/// A backend that responds to the head of each request with frames. `answer` gets the number of the request, counted
/// over all connections, and its stream.
pub(crate) async fn framing(answer: impl Fn(usize, u32) -> Vec<u8> + Send + Sync + 'static) -> String {
    let (answer, requests) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    backend(move |wire| {
        let (mut stream, answer, requests) = (wire.stream, answer.clone(), requests.clone());
        async move {
            let mut preface = [0; 24];
            stream.read_exact(&mut preface).await.unwrap();
            stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
            let mut head = [0; 9];
            while stream.read_exact(&mut head).await.is_ok() {
                let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                stream.read_exact(&mut payload).await.unwrap();
                let reply = match (head[3], head[4] & 1) {
                    (HEADERS, _) => answer(
                        requests.fetch_add(1, Ordering::SeqCst),
                        u32::from_be_bytes(head[5..].try_into().unwrap()),
                    ),
                    // SETTINGS and PING are acknowledged.
                    (4, 0) => frame(4, 1, 0, &[]),
                    (6, 0) => frame(6, 1, 0, &payload),
                    _ => continue,
                };
                stream.write_all(&reply).await.unwrap();
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_refused_stream_is_retried() {
    const REFUSED_STREAM: &[u8] = &[0, 0, 0, 7];
    // A refused stream wasn't processed, so any method can be retried (RFC 9113, section 8.7).
    for method in ["GET", "POST"] {
        let url = framing(|request, stream| match request {
            0 => frame(RST_STREAM, 0, stream, REFUSED_STREAM),
            _ => frame(HEADERS, 5, stream, STATUS_200),
        })
        .await;
        let response = call(&proxy(&url), request(method, "")).await;
        assert_eq!(response.status(), 200, "{method}: {:?}", response.extensions().get::<Error>());
    }
    // A consumed body can't be replayed, and repeated refusals end in 502.
    let url = framing(|_, stream| frame(RST_STREAM, 0, stream, REFUSED_STREAM)).await;
    for body in ["", "body"] {
        assert_eq!(timeout(PATIENCE, call(&proxy(&url), request("POST", body))).await.unwrap().status(), 502);
    }
}

#[tokio::test]
async fn a_reset_stream_is_a_truncated_response() {
    for reason in [0, 2, 5, 8] {
        let url = framing(move |_, stream| {
            let data = frame(0, 0, stream, b"half");
            [frame(HEADERS, 4, stream, STATUS_200), data, frame(RST_STREAM, 0, stream, &[0, 0, 0, reason])].concat()
        })
        .await;
        let response = call(&proxy(&url), request("GET", "")).await;
        assert_eq!(response.status(), 200);
        let error = response.into_body().collect().await.expect_err("a cut");
        let error = error.into_inner().downcast::<Error>().unwrap();
        assert_eq!(error.kind(), ErrorKind::ResponseBody, "{reason}");
        // A client of the front sees the truncation, too.
        let addr = front(Router::new().fallback_service(proxy(&url))).await;
        let mut wire = client(addr).await;
        wire.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
        if let Some(answer) = wire.message().await {
            assert!(!answer.complete, "{reason}: {answer:?}");
        }
        assert!(wire.closed().await);
    }
}

#[tokio::test]
async fn a_stream_beyond_the_last_stream_id_of_a_goaway_is_retried() {
    // The connection ends, and stream 1 was not processed.
    for (method, status) in [("GET", 200), ("PUT", 200), ("POST", 502)] {
        let url = framing(|request, stream| match request {
            0 => frame(GOAWAY, 0, 0, &[0; 8]),
            _ => frame(HEADERS, 5, stream, STATUS_200),
        })
        .await;
        let response = timeout(PATIENCE, call(&proxy(&url), request(method, ""))).await.unwrap();
        assert_eq!(response.status(), status, "{method}: {:?}", response.extensions().get::<Error>());
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_the_http2_backend_down() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let (url, _backend, _ended) = Http2::serve(100, move |_| {
        let sent = counted.clone();
        let (mut sender, body) = Channel::<Bytes>::new(1);
        tokio::spawn(async move {
            while sender.send_data(vec![b'x'; 0x10000].into()).await.is_ok() {
                sent.fetch_add(0x10000, Ordering::SeqCst);
            }
        });
        async { Response::new(Body::new(body)) }
    })
    .await;
    let addr = front(Router::new().fallback_service(proxy(&url))).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await.unwrap();
    let stopped = settled(&sent).await;
    assert!(stopped < 64 << 20, "{stopped}");
    // Other streams on the same connection make progress meanwhile.
    assert!(ask(addr, "HEAD /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await.start_line().ends_with("200 OK"));
    let mut read = vec![0; 1 << 20];
    for _ in 0..2 * (stopped >> 20) + 8 {
        timeout(PATIENCE, stream.read_exact(&mut read)).await.unwrap().unwrap();
    }
    assert!(sent.load(Ordering::SeqCst) > stopped);
}

/// The status of an upload's response, and the kind of its failure.
async fn outcome(layer: ReverseProxyLayer, limit: usize, upload: &str) -> (u16, Option<ErrorKind>) {
    let (report, mut kinds) = mpsc::unbounded_channel();
    let layer = layer.on_error(move |error| {
        report.send(error.kind()).unwrap();
        error.status()
    });
    let app = Router::new().layer(layer).layer(DefaultBodyLimit::disable()).layer(RequestBodyLimitLayer::new(limit));
    let addr: SocketAddr = front(app).await;
    let head = "POST /x HTTP/1.1\r\nHost: front.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = ask(addr, format!("{head}{upload}")).await;
    (answer.status(), kinds.try_recv().ok())
}

#[tokio::test]
async fn a_failed_upload_is_a_client_error() {
    let (url, _backend, _ended) = Http2::serve(100, async |request: hyper::Request<Incoming>| {
        // The response to a truncated upload doesn't matter.
        let body = request.into_body().collect().await.map(|body| body.to_bytes());
        Response::new(Body::from(body.unwrap_or_default()))
    })
    .await;
    let layer = || ReverseProxyLayer::new(Client::builder(&url).http2(true));
    let short = Duration::from_millis(150);
    for (case, layer, limit, upload, expected) in [
        ("whole", layer(), 100, "4\r\nabcd\r\n0\r\n\r\n", (200, None)),
        ("malformed", layer(), 100, "4\r\nabcd\r\nzz\r\n", (400, Some(ErrorKind::RequestBody))),
        ("slow", layer().body_idle_timeout(short), 100, "4\r\nabcd\r\n", (408, Some(ErrorKind::RequestBodyTimeout))),
        ("large", layer(), 5, "4\r\nabcd\r\n4\r\nefgh\r\n0\r\n\r\n", (413, Some(ErrorKind::RequestBodyTooLarge))),
    ] {
        assert_eq!(outcome(layer, limit, upload).await, expected, "{case}");
    }
}

#[tokio::test]
async fn at_the_connection_limit_requests_wait_for_streams() {
    let (pair, hold) = (Arc::new(Barrier::new(2)), Arc::new(Notify::new()));
    let (come, mut comes) = mpsc::unbounded_channel();
    let (url, backend, _ended) = Http2::serve(2, {
        let hold = hold.clone();
        move |request| {
            let (pair, hold, come) = (pair.clone(), hold.clone(), come.clone());
            async move {
                if request.method() == "POST" {
                    pair.wait().await;
                } else {
                    come.send(()).unwrap();
                    hold.notified().await;
                }
                Response::new(Body::from("ok"))
            }
        }
    })
    .await;
    let client = Client::builder(&*url).http2(true).max_connections(1);
    all_at_once(&ReverseProxy::new(client.clone()), 10).await;
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);

    let proxy = ReverseProxy::new(client.queue_timeout(SHORT * 2));
    let mut held = JoinSet::new();
    for _ in 0..2 {
        let proxy = proxy.clone();
        held.spawn(async move { call(&proxy, request("GET", "")).await.status() });
        // The second request finds a connection and doesn't wait.
        timeout(PATIENCE, comes.recv()).await.unwrap().unwrap();
    }
    assert_eq!(call(&proxy, request("GET", "")).await.status(), 503);
    for _ in 0..2 {
        hold.notify_one();
    }
    while let Some(status) = timeout(PATIENCE, held.join_next()).await.unwrap() {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 2);
}
