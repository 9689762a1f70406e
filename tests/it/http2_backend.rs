//! HTTP/2 backends: as many connections as the streams need, and the same guarantees as over HTTP/1.1.

use std::{
    convert::Infallible,
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
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Barrier, Notify, mpsc},
    task::JoinSet,
    time::timeout,
};
use tower::ServiceExt;
use tower_http::limit::RequestBodyLimitLayer;
use tower_reverse_proxy::{Client, Error, ErrorKind, ReverseProxy, ReverseProxyLayer};

use crate::support::{
    PATIENCE, Progress, ask, client, elsewhere,
    frames::{DATA, GOAWAY, HEADERS, RST_STREAM, STATUS_200, frame},
    front,
    http2_backends::{Http2, all_at_once, framing, together},
    others_run, settled, tasks_left, time_passes, within,
};

const SHORT: Duration = Duration::from_millis(250);

fn proxy(url: &str) -> ReverseProxy {
    ReverseProxyLayer::new(Client::builder(url).http2(true)).into_service()
}

fn request(method: &str, body: impl Into<Body>) -> Request {
    Request::builder().method(method).uri("/x").header("host", "front.example").body(body.into()).unwrap()
}

async fn call(proxy: &ReverseProxy, request: Request) -> Response {
    let Ok(response): Result<_, Infallible> = within(proxy.clone().oneshot(request)).await;
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

#[tokio::test]
async fn a_graceful_goaway_fails_no_request() {
    let (url, backend, mut ended) = Http2::serve(100, ok).await;
    let proxy = proxy(&url);
    for round in 0..30 {
        let response = call(&proxy, request(if round % 2 == 0 { "GET" } else { "POST" }, "")).await;
        assert_eq!(response.status(), 200, "{round}: {:?}", response.extensions().get::<Error>());
        assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes(), "ok");
        backend.leave.notify_waiters();
        // The next request comes after the connection's end, or during its shutdown.
        if round % 3 > 0 {
            within(ended.recv()).await.unwrap();
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
            assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes(), "ok");
        }
        assert_eq!(backend.connections.load(Ordering::SeqCst), count);
        timeout(PATIENCE, ended.recv()).await.expect("it's closed").unwrap();
    }
}

#[tokio::test]
async fn a_connection_with_an_open_stream_is_not_idle() {
    let late = Arc::new(Notify::new());
    let going = late.clone();
    let (url, backend, mut ended) = Http2::serve(100, move |request: hyper::Request<Incoming>| {
        let (mut sender, body) = Channel::<Bytes>::new(1);
        let going = going.clone();
        tokio::spawn(async move {
            let _upload = request.into_body().collect().await;
            going.notified().await;
            sender.send_data("late".into()).await.unwrap();
        });
        async { Response::new(Body::new(body)) }
    })
    .await;
    let proxy = ReverseProxyLayer::new(Client::builder(&url).http2(true).pool_idle_timeout(SHORT)).into_service();
    // The upload stalls, and then the response does.
    let (sender, body) = Channel::<Bytes>::new(1);
    let response = call(&proxy, request("POST", Body::new(body))).await;
    time_passes(SHORT * 3).await;
    drop(sender);
    time_passes(SHORT * 3).await;
    // Another request uses the same connection.
    assert_eq!(call(&proxy, request("GET", "")).await.status(), 200);
    for _ in 0..2 {
        late.notify_one();
        others_run().await;
    }
    assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes(), "late");
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
                drop(within(response.into_body().collect()).await.unwrap());
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
    assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes(), "ok");
    drop(proxy);
    within(ended.recv()).await.unwrap();
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
        assert_eq!(within(call(&proxy(&url), request("POST", body))).await.status(), 502);
    }
}

#[tokio::test]
async fn a_reset_stream_is_a_truncated_response() {
    for reason in [0, 2, 5, 8] {
        let half = |stream| [frame(HEADERS, 4, stream, STATUS_200), frame(DATA, 0, stream, b"half")].concat();
        let reset = move |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, reason]);
        let url = framing(move |_, stream| [half(stream), reset(stream)].concat()).await;
        let response = call(&proxy(&url), request("GET", "")).await;
        assert_eq!(response.status(), 200);
        let error = within(response.into_body().collect()).await.expect_err("a truncated body");
        let error = error.into_inner().downcast::<Error>().unwrap();
        assert_eq!(error.kind(), ErrorKind::ResponseBody, "{reason}");
        // A client of the front sees the truncation, too. The second request triggers the reset of the first stream.
        let url = framing(move |request, stream| match request {
            0 => half(stream),
            _ => [reset(1), frame(HEADERS, 5, stream, STATUS_200)].concat(),
        })
        .await;
        let addr = front(Router::new().fallback_service(proxy(&url))).await;
        let mut wire = client(addr).await;
        wire.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"), "{reason}");
        assert_eq!(wire.chunk().await.unwrap(), b"half", "{reason}");
        assert_eq!(ask(addr, "GET /y HTTP/1.1\r\nHost: front.example\r\n\r\n").await.status(), 200);
        assert!(wire.closed().await, "{reason}");
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
        let response = within(call(&proxy(&url), request(method, ""))).await;
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
        within(stream.read_exact(&mut read)).await.unwrap();
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
        let body = within(request.into_body().collect()).await.map(|body| body.to_bytes());
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
        within(comes.recv()).await.unwrap();
    }
    assert_eq!(call(&proxy, request("GET", "")).await.status(), 503);
    for _ in 0..2 {
        hold.notify_one();
    }
    while let Some(status) = within(held.join_next()).await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 2);
}
