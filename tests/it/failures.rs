//! Failures: the status, the typed error, and an aborted response once its head has been sent.

use std::{
    convert::Infallible,
    future::{pending, ready},
    io,
    net::SocketAddr,
    pin::pin,
    task::Poll,
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::Body,
    extract::Request,
    middleware::map_response,
    response::{Html, Response},
    routing::get,
};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Channel};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};
use tower::{
    ServiceExt, limit::ConcurrencyLimitLayer, load_shed::LoadShedLayer, service_fn, timeout::TimeoutLayer,
    util::MapRequestLayer,
};
use tower_reverse_proxy::{Client, Error, ErrorKind, Failure, Phase, ReverseProxy, ReverseProxyLayer};

use crate::support::{
    Message, PATIENCE, Pipe, Wire, answering, ask, backend, client, closing, front, get as ask_get, http2,
    in_two_parts, mirror, refusing, silent, within,
};

const SHORT: Duration = Duration::from_millis(150);

/// Serves an application whose outermost middleware puts the error of a response's extensions into `X-Failure`.
async fn showing_failures(app: Router) -> SocketAddr {
    async fn show(mut response: Response) -> Response {
        if let Some(error) = response.extensions().get::<Error>() {
            let failure = format!("{:?} {:?}", error.phase(), error.kind());
            response.headers_mut().insert("x-failure", failure.parse().unwrap());
        }
        response
    }
    front(app.layer(map_response(show))).await
}

async fn proxied(proxy: ReverseProxyLayer) -> SocketAddr {
    showing_failures(Router::new().layer(proxy)).await
}

/// Status, phase and kind of a failure.
fn failure(answer: &Message) -> String {
    format!("{} {}", answer.status(), answer.field("x-failure").unwrap_or("no failure"))
}

#[tokio::test]
async fn each_failure_of_a_backend_has_its_status_kind_and_phase() {
    // Longer than a DNS label: resolvers refuse it without a query.
    let unknown = format!("http://{}.example", "x".repeat(64));
    let cases = [
        (refusing().await, "502 Connect Connect", "14"),
        (unknown, "502 Connect Connect", "14"),
        (closing(b"").await, "502 ResponseHead ConnectionClosed", "14"),
        (closing(b"HTTP/1.1 200 OK\r\nContent-").await, "502 ResponseHead ConnectionClosed", "14"),
        (closing(b"garbage\r\n\r\n").await, "502 ResponseHead InvalidResponse", "14"),
        (closing(b"HTTP/1.1 2000 OK\r\n\r\n").await, "502 ResponseHead InvalidResponse", "14"),
        (closing(b"HTTP/1.1 200 OK\r\nb ad: x\r\n\r\n").await, "502 ResponseHead InvalidResponse", "14"),
        (
            closing(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab").await,
            "502 ResponseHead InvalidResponse",
            "14",
        ),
        (
            answering("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").await,
            "502 ResponseHead UnexpectedUpgrade",
            "14",
        ),
        (silent().await, "504 ResponseHead HeaderTimeout", "4"),
    ];
    for (url, expected, grpc_status) in cases {
        let header_timeout = if expected.starts_with("504") { SHORT } else { PATIENCE };
        let addr = proxied(ReverseProxyLayer::new(&url).header_timeout(header_timeout)).await;
        for (method, fields) in [("GET", ""), ("POST", "Content-Length: 2\r\n")] {
            let body = if method == "POST" { "hi" } else { "" };
            let answer = ask(addr, format!("{method} /x HTTP/1.1\r\nHost: front.example\r\n{fields}\r\n{body}")).await;
            assert_eq!(failure(&answer), expected, "{method} {url}");
            let status = StatusCode::from_u16(answer.status()).unwrap();
            assert_eq!(answer.text(), status.canonical_reason().unwrap());
            let origin = url.trim_start_matches("http://");
            assert!(!format!("{answer:?}").contains(origin), "{answer:?}");
        }
        let grpc = ask_get(addr, "/x", "Content-Type: application/grpc+proto\r\n").await;
        assert_eq!((grpc.status(), grpc.field("grpc-status")), (200, Some(grpc_status)), "{url}");
        assert_eq!((grpc.field("content-type"), &*grpc.text()), (Some("application/grpc"), ""));
        assert!(grpc.field("x-failure").is_some());
    }
}

#[tokio::test]
async fn each_refused_request_has_its_status_kind_and_phase() {
    let url = mirror().await;
    let proxy = ReverseProxyLayer::new(&url).prefix("/p").via("front.example");
    let addr = showing_failures(Router::new().layer(proxy)).await;
    for (request, expected) in [
        ("GET /p/../x HTTP/1.1\r\nHost: a\r\n\r\n", "400 Request InvalidTarget"),
        ("GET /p/x HTTP/1.1\r\nHost: a b\r\n\r\n", "400 Request InvalidHost"),
        ("GET /p/x HTTP/1.1\r\n\r\n", "400 Request InvalidHost"),
        ("TRACE /p/x HTTP/1.1\r\nHost: a\r\n\r\n", "501 Request UnsupportedMethod"),
        ("GET /p/x HTTP/1.1\r\nHost: a\r\nVia: 1.1 front.example\r\n\r\n", "508 Request LoopDetected"),
        (
            "POST /p/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "501 Request UnsupportedTransferCoding",
        ),
    ] {
        assert_eq!(failure(&ask(addr, request).await), expected, "{request}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_backend_that_accepts_no_connection_is_a_connect_timeout() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    // The listener accepts nothing. Its backlog is full when connects keep waiting.
    let (mut held, mut waiting) = (Vec::new(), 0);
    while waiting < 3 {
        match timeout(SHORT, TcpStream::connect(addr)).await {
            Ok(connected) => held.push(connected.unwrap()),
            Err(_) => waiting += 1,
        }
    }
    let front =
        proxied(ReverseProxyLayer::new(Client::builder(format!("http://{addr}")).connect_timeout(SHORT / 2))).await;
    assert_eq!(failure(&ask_get(front, "/x", "").await), "504 Connect ConnectTimeout");
}

#[tokio::test]
async fn refusals_of_upstream_layers_have_their_own_statuses() {
    let shedding = ReverseProxyLayer::new(silent().await)
        .upstream_layer(ConcurrencyLimitLayer::new(0))
        .upstream_layer(LoadShedLayer::new());
    let late = ReverseProxyLayer::new(silent().await).upstream_layer(TimeoutLayer::new(SHORT));
    let broken = ReverseProxyLayer::with_upstream(service_fn(async |_| Err::<Response, BoxError>("broken".into())));
    let app =
        Router::new().layer(shedding.prefix("/shedding")).layer(late.prefix("/late")).layer(broken.prefix("/broken"));
    let addr = showing_failures(app).await;
    for (target, expected) in [
        ("/shedding", "503 Connect Overloaded"),
        ("/late", "504 ResponseHead HeaderTimeout"),
        ("/broken", "502 ResponseHead Upstream"),
    ] {
        assert_eq!(failure(&ask_get(addr, target, "").await), expected, "{target}");
    }
}

#[tokio::test]
async fn on_error_makes_the_response() {
    let proxy = ReverseProxyLayer::new(refusing().await)
        .on_error(|error| (StatusCode::IM_A_TEAPOT, [("x-own", "1")], Html(format!("{error}"))));
    let addr = showing_failures(Router::new().layer(proxy)).await;
    let answer = ask_get(addr, "/x", "").await;
    assert_eq!(failure(&answer), "418 Connect Connect");
    assert_eq!((answer.field("x-own"), &*answer.text()), (Some("1"), "the backend can't be reached"));
}

#[tokio::test]
async fn on_error_sees_the_request_as_the_client_sent_it() {
    fn page(failure: &Failure) -> (StatusCode, String) {
        let json = failure.headers().get("accept").is_some_and(|accept| accept == "application/json");
        let kind = if json { "json" } else { "html" };
        (failure.status(), format!("{} {} {kind} {:?}", failure.method(), failure.uri(), failure.error().kind()))
    }
    let url = refusing().await;
    let proxy = || ReverseProxyLayer::new(&url).on_error(page);
    // Failures before and after forwarding, and below a nest.
    let nested = Router::new().nest_service("/nest", proxy().strip_prefix().into_service());
    for (app, target, kind) in [
        (Router::new().layer(proxy().prefix("/p").strip_prefix()), "/p/x?q", "Connect"),
        (Router::new().layer(proxy().prefix("/p")), "/p/../x", "InvalidTarget"),
        (nested, "/nest/x", "Connect"),
    ] {
        let addr = showing_failures(app).await;
        for (accept, page) in [("application/json", "json"), ("text/html", "html")] {
            let fields = format!("Accept: {accept}\r\nConnection: accept\r\nContent-Length: 2\r\n");
            let answer = ask(addr, format!("POST {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\nhi")).await;
            assert_eq!(answer.text(), format!("POST {target} {page} {kind}"));
        }
    }
}

#[tokio::test]
async fn a_failure_displays_nothing_of_the_request() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let proxy = ReverseProxyLayer::new(refusing().await).on_error(move |failure| {
        assert_eq!(failure.headers()["authorization"], "s3cret");
        report.send(format!("{failure} {failure:?} {failure:#?}")).unwrap();
    });
    ask_get(front(Router::new().layer(proxy)).await, "/x?s3cret", "Authorization: s3cret\r\n").await;
    assert!(!within(reports.recv()).await.unwrap().contains("s3cret"));
}

#[tokio::test]
async fn an_error_has_its_cause_and_its_origin() {
    let proxy = ReverseProxy::new(refusing().await);
    let request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
    let Ok(response) = proxy.oneshot(request).await;
    let error = response.extensions().get::<Error>().unwrap();
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Connect, Phase::Connect));
    assert!(error.is_connect() && !error.is_timeout() && !error.is_client());
    let mut cause = std::error::Error::source(error);
    let mut refused = false;
    while let Some(this) = cause {
        refused |=
            this.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
        cause = this.source();
    }
    assert!(refused, "{error:?}");
}

#[tokio::test]
async fn a_shortage_of_the_proxy_is_no_failure_of_the_backend() {
    // No interface has this address, so that the socket can't be bound to it.
    let mut bound = HttpConnector::new();
    bound.set_local_address(Some([203, 0, 113, 7].into()));
    let descriptors = service_fn(async |_| Err::<Pipe, _>(io::Error::from_raw_os_error(24)));
    let url = mirror().await;
    for (client, is_local) in [
        (Client::builder(&*url).connector(bound), true),
        (Client::builder(&*url).connector(descriptors), true),
        (Client::builder(refusing().await), false),
    ] {
        let proxy = ReverseProxyLayer::new(client).on_error(|failure: &Failure| {
            (failure.status(), format!("{} {}", failure.is_connect(), failure.is_local()))
        });
        let answer = ask_get(front(Router::new().layer(proxy)).await, "/x", "").await;
        assert_eq!((answer.status(), answer.text()), (502, format!("true {is_local}")));
    }
}

#[tokio::test]
async fn a_client_of_an_overloaded_proxy_gets_retry_after() {
    let limited = || async {
        let client = Client::builder(silent().await).max_connections(1).queue_timeout(SHORT);
        ReverseProxyLayer::new(client)
    };
    let own_page = |failure: &Failure| (failure.status(), [("retry-after", "9")], "later");
    let other_status = |_: &Failure| (StatusCode::TOO_MANY_REQUESTS, "later");
    for (proxy, fields, expected) in [
        (limited().await, "", (503, Some("1"), None)),
        (limited().await, "Content-Type: application/grpc\r\n", (200, None, Some("1000"))),
        (limited().await.on_error(|failure| failure.status()), "", (503, Some("1"), None)),
        (limited().await.on_error(own_page), "", (503, Some("9"), None)),
        (limited().await.on_error(other_status), "", (429, None, None)),
    ] {
        let addr = front(Router::new().layer(proxy)).await;
        // It has the only connection.
        let mut first = client(addr).await;
        first.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
        sleep(SHORT).await;
        let answer = ask_get(addr, "/x", fields).await;
        let seen = (answer.status(), answer.field("retry-after"), answer.field("grpc-retry-pushback-ms"));
        assert_eq!(seen, expected, "{answer:?}");
    }
    // A failure that a repetition may hit again has none.
    let addr = front(Router::new().layer(ReverseProxyLayer::new(refusing().await))).await;
    assert_eq!(ask_get(addr, "/x", "").await.field("retry-after"), None);
}

#[tokio::test]
async fn own_routes_respond_while_the_backend_fails() {
    #[derive(Clone)]
    struct NeverReady;
    impl tower::Service<Request> for NeverReady {
        type Response = Response;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Pending
        }

        fn call(&mut self, _: Request) -> Self::Future {
            ready(Ok(Response::default()))
        }
    }

    let app = Router::new()
        .route("/", get(async || "home"))
        .layer(ReverseProxyLayer::with_upstream(NeverReady).prefix("/never").header_timeout(SHORT))
        .layer(ReverseProxyLayer::new(silent().await).prefix("/silent"))
        .layer(ReverseProxyLayer::new(refusing().await).prefix("/refusing"));
    let addr = showing_failures(app).await;
    let mut waiting = client(addr).await;
    waiting.send(b"GET /silent HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    assert_eq!(ask_get(addr, "/refusing", "").await.status(), 502);
    assert_eq!(failure(&ask_get(addr, "/never", "").await), "504 ResponseHead HeaderTimeout");
    assert_eq!(ask_get(addr, "/", "").await.text(), "home");
}

/// The sender of a request's body, and the future of its response from an upstream in memory.
fn uploading(
    proxy: ReverseProxy<impl tower::Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone>,
) -> (http_body_util::channel::Sender<Bytes>, impl Future<Output = Response>) {
    let (sender, body) = Channel::<Bytes>::new(1);
    let request = Request::post("/x").header("host", "front.example").body(Body::new(body)).unwrap();
    (sender, async move {
        let Ok(response) = proxy.oneshot(request).await;
        response
    })
}

#[tokio::test(start_paused = true)]
async fn the_header_timeout_excludes_the_upload() {
    let upstream = service_fn(async |request: Request| {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        sleep(Duration::from_secs(59)).await;
        Ok(Response::new(Body::from(body)))
    });
    let (mut sender, response) = uploading(ReverseProxy::with_upstream(upstream));
    let upload = tokio::spawn(async move {
        for _ in 0..4 {
            sleep(Duration::from_secs(299)).await;
            sender.send_data(Bytes::from_static(b"x")).await.unwrap();
        }
    });
    let response = response.await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "xxxx");
    upload.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_header_timeout_starts_at_the_end_of_the_upload() {
    let upstream = service_fn(async |request: Request| {
        request.into_body().collect().await.unwrap();
        pending().await
    });
    let (mut sender, response) = uploading(ReverseProxy::with_upstream(upstream));
    let mut response = pin!(response);
    assert!(timeout(Duration::from_secs(200), &mut response).await.is_err());
    sender.send_data(Bytes::from_static(b"x")).await.unwrap();
    drop(sender);
    assert!(timeout(Duration::from_secs(59), &mut response).await.is_err());
    let response = timeout(Duration::from_secs(2), response).await.unwrap();
    assert_eq!(response.extensions().get::<Error>().unwrap().kind(), ErrorKind::HeaderTimeout);
}

#[tokio::test(start_paused = true)]
async fn the_header_timeout_is_not_delayed_by_a_longer_timeout() {
    const UPLOAD: Duration = Duration::from_millis(3300);
    const HEADER: Duration = Duration::from_secs(1);
    let upstream = service_fn(async |request: Request| {
        request.into_body().collect().await.unwrap();
        pending().await
    });
    let proxy = ReverseProxyLayer::with_upstream(upstream).header_timeout(HEADER).into_service();
    let (mut sender, response) = uploading(proxy);
    let upload = tokio::spawn(async move {
        sender.send_data(Bytes::from_static(b"x")).await.unwrap();
        sleep(UPLOAD).await;
    });
    let begun = tokio::time::Instant::now();
    let response = response.await;
    assert_eq!(response.extensions().get::<Error>().unwrap().kind(), ErrorKind::HeaderTimeout);
    // The clock is paused, so it advances by timers only.
    let late = begun.elapsed() - UPLOAD - HEADER;
    assert!(late < Duration::from_millis(20), "{late:?}");
    upload.await.unwrap();
}

#[tokio::test]
async fn the_end_of_an_upload_is_known_from_its_content_length() {
    // The length is known from Content-Length only: the sender stops there, without polling for the body's end.
    fn rebuild(request: Request) -> Request {
        request.map(|body| Body::from_stream(body.into_data_stream()))
    }

    let proxy = ReverseProxyLayer::new(silent().await).header_timeout(SHORT).body_idle_timeout(SHORT * 6);
    let addr = showing_failures(Router::new().layer(proxy).layer(MapRequestLayer::new(rebuild))).await;
    let answer = ask(addr, "POST /x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 5\r\n\r\nhello").await;
    assert_eq!(failure(&answer), "504 ResponseHead HeaderTimeout");
}

#[tokio::test]
async fn a_timeout_of_duration_max_never_expires() {
    let url = backend(|mut wire| async move {
        while let Some(head) = wire.head().await {
            assert!(head.starts_with("POST"));
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            while let Some(chunk) = wire.chunk().await {
                wire.send(format!("{:x}\r\n{}\r\n", chunk.len(), chunk.escape_ascii()).as_bytes()).await;
                if chunk.is_empty() {
                    break;
                }
            }
        }
    })
    .await;
    let proxy =
        ReverseProxyLayer::new(Client::builder(&url).connect_timeout(Duration::MAX).pool_idle_timeout(Duration::MAX))
            .header_timeout(Duration::MAX)
            .body_idle_timeout(Duration::MAX);
    let mut wire = client(proxied(proxy).await).await;
    for _ in 0..2 {
        wire.send(b"POST /x HTTP/1.1\r\nHost: front.example\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
        // The timers of both directions restart with each frame.
        for chunk in ["one", "two", "three", ""] {
            wire.send(format!("{:x}\r\n{chunk}\r\n", chunk.len()).as_bytes()).await;
            assert_eq!(wire.chunk().await.unwrap(), chunk.as_bytes());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_stops_reading_an_upload_is_a_send_timeout() {
    let upstream = service_fn(async |request: Request| {
        let mut body = request.into_body();
        let _first = body.frame().await;
        pending::<()>().await;
        drop(body);
        unreachable!()
    });
    let (mut sender, response) = uploading(ReverseProxy::with_upstream(upstream));
    sender.send_data(Bytes::from_static(b"x")).await.unwrap();
    let mut response = pin!(response);
    assert!(timeout(Duration::from_secs(299), &mut response).await.is_err());
    let response = timeout(Duration::from_secs(2), response).await.unwrap();
    let error = response.extensions().get::<Error>().unwrap();
    assert_eq!((error.kind(), error.status()), (ErrorKind::SendTimeout, StatusCode::GATEWAY_TIMEOUT));
}

#[tokio::test]
async fn an_upload_stalled_by_the_client_is_408() {
    let (seen, mut end) = mpsc::unbounded_channel();
    let url = backend(move |mut wire| {
        let seen = seen.clone();
        async move { seen.send(wire.message().await.map(|message| message.complete)).unwrap() }
    })
    .await;
    let addr = proxied(ReverseProxyLayer::new(url).body_idle_timeout(SHORT)).await;
    for (framing, part) in [("Content-Length: 10", "1234"), ("Transfer-Encoding: chunked", "4\r\n1234\r\n")] {
        let answer = ask(addr, format!("POST /x HTTP/1.1\r\nHost: front.example\r\n{framing}\r\n\r\n{part}")).await;
        assert_eq!(failure(&answer), "408 RequestBody RequestBodyTimeout", "{framing}");
        assert_eq!(within(end.recv()).await.unwrap(), Some(false), "{framing}");
    }
}

#[tokio::test]
async fn an_upload_stalled_by_the_backend_is_504() {
    // The backend reads nothing, and the kernel's buffers fill up.
    let url = backend(|wire| async move {
        let _open = wire;
        pending::<()>().await;
    })
    .await;
    let addr = proxied(ReverseProxyLayer::new(url).body_idle_timeout(SHORT)).await;
    let (reading, mut writing) = tokio::io::split(client(addr).await.stream);
    let upload = tokio::spawn(async move {
        let head = "POST /x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 134217728\r\n\r\n";
        writing.write_all(head.as_bytes()).await.unwrap();
        // The front closes before the upload is complete.
        let _ = writing.write_all(&vec![0; 134217728]).await;
    });
    let answer = Wire::new(tokio::io::join(reading, tokio::io::sink())).message().await.unwrap();
    assert_eq!(failure(&answer), "504 RequestBody SendTimeout");
    upload.abort();
}

#[tokio::test]
async fn a_malformed_upload_is_400_and_never_complete_at_the_backend() {
    let (seen, mut saw) = mpsc::unbounded_channel();
    let url = backend(move |mut wire| {
        let seen = seen.clone();
        async move {
            wire.head().await.unwrap();
            assert_eq!(wire.chunk().await.unwrap(), b"a");
            seen.send("begun").unwrap();
            let end = loop {
                match wire.chunk().await {
                    Some(chunk) if chunk.is_empty() => break "complete",
                    Some(_) => {}
                    None => break "truncated",
                }
            };
            seen.send(end).unwrap();
        }
    })
    .await;
    let addr = proxied(ReverseProxyLayer::new(url)).await;
    for bad in ["zz\r\n", "4\r\nabcdef\r\n0\r\n\r\n", "-1\r\n\r\n", "fffffffffffffffffff\r\n"] {
        let mut wire = client(addr).await;
        let head = "POST /x HTTP/1.1\r\nHost: front.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
        wire.send(head.as_bytes()).await;
        assert_eq!(within(saw.recv()).await, Some("begun"), "{bad:?}");
        wire.send(bad.as_bytes()).await;
        assert_eq!(failure(&wire.message().await.unwrap()), "400 RequestBody RequestBody", "{bad:?}");
        assert!(wire.closed().await);
        assert_eq!(within(saw.recv()).await, Some("truncated"), "{bad:?}");
    }
}

#[tokio::test]
async fn an_upload_aborted_by_the_client_is_a_client_error() {
    let (seen, mut saw) = mpsc::unbounded_channel();
    let url = backend(move |mut wire| {
        let seen = seen.clone();
        async move {
            wire.head().await.unwrap();
            seen.send(Vec::new()).unwrap();
            // Everything until the connection ends.
            seen.send(wire.bytes(1000).await).unwrap();
        }
    })
    .await;
    let addr = proxied(ReverseProxyLayer::new(url)).await;
    for (framing, part) in [("Content-Length: 10", "1234"), ("Transfer-Encoding: chunked", "4\r\n1234\r\n")] {
        let request = format!("POST /x HTTP/1.1\r\nHost: front.example\r\n{framing}\r\n\r\n{part}");
        // A client that shuts down its sending side still receives the response.
        let mut half = client(addr).await;
        half.send(request.as_bytes()).await;
        within(saw.recv()).await.unwrap();
        half.stream.shutdown().await.unwrap();
        assert_eq!(failure(&half.message().await.unwrap()), "400 RequestBody ClientGone", "{framing}");
        assert_eq!(within(saw.recv()).await.unwrap(), part.as_bytes(), "{framing}");

        let mut gone = client(addr).await;
        gone.send(request.as_bytes()).await;
        within(saw.recv()).await.unwrap();
        drop(gone);
        assert_eq!(within(saw.recv()).await.unwrap(), part.as_bytes(), "{framing}");
    }
}

#[tokio::test]
async fn an_upload_reset_by_an_http2_client_is_a_client_error() {
    let (seen, mut saw) = mpsc::unbounded_channel();
    let url = backend(move |mut wire| {
        let seen = seen.clone();
        async move {
            wire.head().await.unwrap();
            seen.send(()).unwrap();
            wire.closed().await;
        }
    })
    .await;
    let (report, mut kinds) = mpsc::unbounded_channel();
    let proxy = ReverseProxyLayer::new(url).on_error(move |error| {
        report.send((error.kind(), error.is_client())).unwrap();
        error.status()
    });
    let mut sender = http2(front(Router::new().layer(proxy)).await).await;
    for _ in 0..3 {
        let (upload, body) = Channel::<Bytes, BoxError>::new(1);
        let request = Request::post("http://front.example/x").body(Body::new(body)).unwrap();
        let response = tokio::spawn(sender.send_request(request));
        within(saw.recv()).await.unwrap();
        upload.abort("the client's own reasons".into());
        assert_eq!(within(kinds.recv()).await, Some((ErrorKind::ClientGone, true)));
        assert!(response.await.unwrap().is_err());
    }
}

/// Responses that are truncated or violate their framing after the head: what the backend sends at first, what it sends before
/// it closes, and the body that a client of HTTP/1.1 sees.
const BROKEN: &[(&[u8], &[u8], &[u8])] = &[
    (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b"", b"abc"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"", b""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"", b"3\r\nabc\r\n"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", b"", b"2\r\nab\r\n"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"0\r\n", b"3\r\nabc\r\n"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"zz\r\n\r\n", b"3\r\nabc\r\n"),
];

/// If the truncation is known with the head, the response is a 502: see `early_answers`.
#[tokio::test]
async fn a_truncated_response_is_aborted() {
    for &(first, rest, body) in BROKEN {
        let (origin, go) = in_two_parts(first, rest).await;
        let mut wire = client(front(Router::new().layer(ReverseProxyLayer::new(origin))).await).await;
        wire.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"), "{}", first.escape_ascii());
        go.notify_one();
        assert_eq!(wire.bytes(usize::MAX).await, body, "{} {}", first.escape_ascii(), rest.escape_ascii());
    }
}

#[tokio::test]
async fn a_truncated_response_resets_the_stream_of_an_http2_client() {
    for &(first, rest, _) in BROKEN {
        let (broken, go) = in_two_parts(first, rest).await;
        let app = Router::new()
            .layer(ReverseProxyLayer::new(mirror().await))
            .nest_service("/broken", ReverseProxy::new(broken));
        let mut sender = http2(front(app).await).await;
        let request = |target: &str| Request::get(format!("http://front.example{target}")).body(Body::empty()).unwrap();
        let response = within(sender.send_request(request("/broken"))).await.unwrap();
        assert_eq!(response.status(), 200);
        go.notify_one();
        let error = within(response.into_body().collect()).await.unwrap_err();
        assert!(format!("{error:?}").contains("Reset"), "{error:?}");
        // Only the stream is reset. The connection is kept.
        let after = within(sender.send_request(request("/x"))).await.unwrap();
        assert!(within(after.into_body().collect()).await.unwrap().to_bytes().starts_with(b"GET /x HTTP/1.1"));
    }
}

#[tokio::test]
async fn a_stalled_response_is_aborted() {
    for begun in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nabc",
    ] {
        let (seen, mut closed) = mpsc::unbounded_channel();
        let url = backend(move |mut wire| {
            let seen = seen.clone();
            async move {
                wire.message().await;
                wire.send(begun).await;
                seen.send(wire.closed().await).unwrap();
            }
        })
        .await;
        let addr = front(Router::new().layer(ReverseProxyLayer::new(url).body_idle_timeout(SHORT))).await;
        let answer = ask_get(addr, "/x", "").await;
        assert_eq!((answer.status(), &*answer.text(), answer.complete), (200, "abc", false));
        assert!(within(closed.recv()).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_response_that_makes_progress_is_not_aborted() {
    let upstream = service_fn(async |_: Request| {
        let (mut sender, body) = Channel::<Bytes>::new(1);
        tokio::spawn(async move {
            for _ in 0..4 {
                sleep(Duration::from_secs(299)).await;
                sender.send_data(Bytes::from_static(b"x")).await.unwrap();
            }
        });
        Ok::<_, Infallible>(Response::new(body))
    });
    let request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
    let Ok(response) = ReverseProxy::with_upstream(upstream).oneshot(request).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "xxxx");
}

#[tokio::test(start_paused = true)]
async fn a_pausing_reader_does_not_count_as_a_stalled_backend() {
    let upstream = service_fn(async |_: Request| {
        let (mut sender, body) = Channel::<Bytes>::new(1);
        tokio::spawn(async move {
            for _ in 0..4 {
                sender.send_data(Bytes::from_static(b"x")).await.unwrap();
            }
        });
        Ok::<_, Infallible>(Response::new(body))
    });
    let request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
    let Ok(response) = ReverseProxy::with_upstream(upstream).oneshot(request).await;
    let mut body = response.into_body();
    for _ in 0..4 {
        sleep(Duration::from_secs(1000)).await;
        assert!(body.frame().await.unwrap().is_ok());
    }
    assert!(body.frame().await.is_none());
}
