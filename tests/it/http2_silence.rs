//! HTTP/2 connections to a frozen backend: its socket is open, and it sends nothing.

use std::{
    future::pending,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::Response,
    routing::get,
};
use http_body_util::{BodyExt, Channel};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split},
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, ClientBuilder, Error, ErrorKind, ReverseProxy, ReverseProxyLayer};

use crate::support::{
    PATIENCE,
    frames::{HEADERS, PING, STATUS_200, frame},
    http2_backends::{greet, read_frame},
    pipes::{Pipe, serve},
};

/// The connections to a backend in memory. Each can be frozen.
#[derive(Clone, Default)]
struct Links {
    frozen: Arc<Mutex<Vec<watch::Sender<bool>>>>,
}

impl Links {
    /// Connections to an app.
    fn to(app: Router) -> (ClientBuilder, Self) {
        let this = Self::default();
        let links = this.clone();
        let connector = service_fn(move |_| {
            let (ours, theirs) = Pipe::pair();
            let (link, backend) = duplex(64 * 1024);
            tokio::spawn(serve(backend, app.clone()));
            let (frozen, is_frozen) = watch::channel(false);
            links.frozen.lock().unwrap().push(frozen);
            let ((read, write), (answer, ask)) = (split(theirs), split(link));
            tokio::spawn(carry(read, ask, is_frozen.clone()));
            tokio::spawn(carry(answer, write, is_frozen));
            async { Ok::<_, io::Error>(ours) }
        });
        (Client::builder("http://backend.example").connector(connector).http2(true), this)
    }

    fn freeze(&self, link: usize, is_frozen: bool) {
        self.frozen.lock().unwrap()[link].send_replace(is_frozen);
    }

    fn count(&self) -> usize {
        self.frozen.lock().unwrap().len()
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut is_frozen: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let read = from.read(&mut buffer).await?;
        let _ = is_frozen.wait_for(|is_frozen| !is_frozen).await;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}

async fn call(proxy: &ReverseProxy, path: &str) -> Response {
    let request = Request::get(path).header("host", "front.example").body(Body::empty()).unwrap();
    timeout(PATIENCE, proxy.clone().oneshot(request)).await.expect("an answer").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_gets_no_further_requests() {
    let (client, links) = Links::to(Router::new().fallback(|| async { "ok" }));
    let proxy = ReverseProxyLayer::new(client).header_timeout(HEADER_TIMEOUT).into_service();
    assert_eq!(call(&proxy, "/x").await.status(), 200);
    links.freeze(0, true);
    assert_eq!(call(&proxy, "/x").await.status(), 504);
    for _ in 0..3 {
        assert_eq!(call(&proxy, "/x").await.status(), 200);
    }
    assert_eq!(links.count(), 2);
}

/// Longer than the silence after which a connection counts as frozen, and shorter than the ping interval.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn a_connection_that_answers_again_is_reused() {
    let tick = Arc::new(Notify::new());
    let ticks = tick.clone();
    let ticking = move || {
        let tick = ticks.clone();
        async move {
            let (mut sender, body) = Channel::<Bytes>::new(1);
            tokio::spawn(async move {
                loop {
                    tick.notified().await;
                    if sender.send_data("tick".into()).await.is_err() {
                        break;
                    }
                }
            });
            Response::new(Body::new(body))
        }
    };
    let (client, links) = Links::to(Router::new().route("/ticks", get(ticking)).fallback(|| async { "ok" }));
    let proxy = ReverseProxyLayer::new(client).header_timeout(HEADER_TIMEOUT).into_service();
    let mut ticking = call(&proxy, "/ticks").await.into_body();
    links.freeze(0, true);
    assert_eq!(call(&proxy, "/x").await.status(), 504);
    assert_eq!(call(&proxy, "/x").await.status(), 200);
    assert_eq!(links.count(), 2);
    // The connection thaws, with the stream that was open all along.
    links.freeze(0, false);
    tick.notify_one();
    timeout(PATIENCE, ticking.frame()).await.unwrap().unwrap().unwrap();
    links.freeze(1, true);
    assert_eq!(call(&proxy, "/x").await.status(), 200);
    assert_eq!(links.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_cancelled_early_costs_no_connection() {
    let app = Router::new().route("/never", get(pending::<()>)).fallback(|| async { "ok" });
    let (client, links) = Links::to(app);
    let proxy = ReverseProxy::new(client);
    for _ in 0..5 {
        assert_eq!(call(&proxy, "/x").await.status(), 200);
        let request = Request::get("/never").header("host", "front.example").body(Body::empty()).unwrap();
        let left = timeout(Duration::from_millis(900), proxy.clone().oneshot(request));
        assert!(left.await.is_err(), "no answer");
    }
    assert_eq!(links.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_used_at_the_connection_limit() {
    let quiet = async || {
        let (sender, body) = Channel::<Bytes>::new(1);
        tokio::spawn(async move {
            let _sender = sender;
            pending::<()>().await;
        });
        Response::new(Body::new(body))
    };
    let app = Router::new().route("/never", get(pending::<()>)).route("/quiet", get(quiet));
    let (client, links) = Links::to(app.fallback(|| async { "ok" }));
    let proxy = ReverseProxy::new(client.max_connections(1));
    let _quiet = call(&proxy, "/quiet").await;
    let request = Request::get("/never").header("host", "front.example").body(Body::empty()).unwrap();
    assert!(timeout(SILENCE, proxy.clone().oneshot(request)).await.is_err(), "no answer");
    for _ in 0..3 {
        assert_eq!(call(&proxy, "/x").await.status(), 200);
    }
    assert_eq!(links.count(), 1);
}

/// Longer than the silence after which a connection counts as frozen, and shorter than the queue timeout.
const SILENCE: Duration = Duration::from_millis(1100);

#[tokio::test(start_paused = true)]
async fn freed_streams_go_to_requests_behind_a_stuck_connect() {
    let (let_go, connects) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (permits, counted) = (let_go.clone(), connects.clone());
    let app = Router::new().fallback(move || async move {
        permits.acquire().await.unwrap().forget();
        "ok"
    });
    let connector = service_fn(move |_| {
        let (app, number) = (app.clone(), counted.fetch_add(1, Ordering::SeqCst));
        async move {
            if number > 0 {
                pending::<()>().await;
            }
            let (ours, theirs) = Pipe::pair();
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http2().max_concurrent_streams(1);
            tokio::spawn(async move {
                let _ = server.serve_connection(TokioIo::new(theirs), TowerToHyperService::new(app)).await;
            });
            Ok::<_, io::Error>(ours)
        }
    });
    let client = Client::builder("http://backend.example").connector(connector).http2(true).connect_timeout(None);
    let proxy = ReverseProxyLayer::new(client).header_timeout(None).into_service();
    let (answered, mut answers) = mpsc::unbounded_channel();
    for number in 0..5 {
        let (proxy, answered) = (proxy.clone(), answered.clone());
        tokio::spawn(async move {
            let status = call(&proxy, "/x").await.status();
            answered.send((number, status.as_u16())).unwrap();
        });
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(connects.load(Ordering::SeqCst), 2);
    // The connect that the second request needed is stuck. All are served by the first connection, in order of arrival.
    let_go.add_permits(5);
    for number in 0..5 {
        let answer = timeout(PATIENCE / 2, answers.recv()).await;
        assert_eq!(answer.expect("a stream is free"), Some((number, 200)));
    }
}

/// A backend in memory that completes its first response, begins the others, and acknowledges no ping.
async fn never_pongs(mut stream: DuplexStream, pings: Arc<AtomicUsize>) {
    greet(&mut stream, &[]).await;
    let mut requests = 0;
    while let Some(received) = read_frame(&mut stream).await {
        match received.kind {
            HEADERS => {
                requests += 1;
                let flags = if requests == 1 { 5 } else { 4 };
                stream.write_all(&frame(HEADERS, flags, received.stream, STATUS_200)).await.unwrap();
            }
            PING => drop(pings.fetch_add(1, Ordering::SeqCst)),
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_pinged_while_it_has_open_streams() {
    const HOUR: Duration = Duration::from_secs(3600);
    type Options = fn(ClientBuilder) -> ClientBuilder;
    let cases: [(&str, Options, bool, bool); 4] = [
        ("default", |client| client, false, true),
        ("another interval", |client| client.http2_keep_alive(Duration::from_secs(30)), false, true),
        ("also while idle", |client| client.http2_keep_alive_while_idle(true), true, true),
        ("none", |client| client.http2_keep_alive(None), false, false),
    ];
    for (case, options, pings_unused, ends) in cases {
        let pings = Arc::new(AtomicUsize::new(0));
        let pinged = pings.clone();
        let connector = service_fn(move |_| {
            let (ours, theirs) = Pipe::pair();
            tokio::spawn(never_pongs(theirs, pinged.clone()));
            async move { Ok::<_, io::Error>(ours) }
        });
        let client = Client::builder("http://backend.example").connector(connector).http2(true);
        let client = options(client.pool_idle_timeout(None));
        let proxy = ReverseProxyLayer::new(client).body_idle_timeout(HOUR * 2).into_service();
        call(&proxy, "/x").await.into_body().collect().await.unwrap();
        sleep(HOUR).await;
        assert_eq!(pings.load(Ordering::SeqCst) > 0, pings_unused, "{case}");
        if pings_unused {
            // The connection is closed by now, and the first response of the next connection completes.
            call(&proxy, "/x").await.into_body().collect().await.unwrap();
        }
        let body = call(&proxy, "/x").await.into_body();
        let before = Instant::now();
        let failed = body.collect().await.expect_err("a cut").into_inner().downcast::<Error>().unwrap();
        if ends {
            assert_eq!(failed.kind(), ErrorKind::ResponseBody, "{case}");
            assert!(before.elapsed() <= Duration::from_secs(60), "{case}: {:?}", before.elapsed());
        } else {
            assert_eq!(failed.kind(), ErrorKind::ResponseBodyTimeout, "{case}");
            assert_eq!(pings.load(Ordering::SeqCst), 0, "{case}");
        }
    }
}
