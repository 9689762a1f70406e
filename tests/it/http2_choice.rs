//! The protocol of each request with `http2(true)`: requests that HTTP/2 can't carry, and backends that don't speak it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{StatusCode, Version},
};
use http_body_util::BodyExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Notify, mpsc},
    time::Instant,
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, Error, ErrorKind, Owner, ReverseProxyLayer};

use crate::support::{
    answering, ask, backend, front, get,
    pipes::{Pipe, client_of, serve},
    seen_to_be_kept, within,
};

const NEGOTIATE: &str = "Authorization: Negotiate YII=\r\n";

const WEBSOCKET: &str = "GET /x HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// An app that responds with the version and the number of the connection.
fn versions(connection: usize) -> Router {
    Router::new().fallback(move |request: Request| async move { format!("{:?} {connection}", request.version()) })
}

/// A backend that speaks the protocol of its client, HTTP/1.1 or HTTP/2. Each connection has a number.
async fn both() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for connection in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, versions(connection)));
        }
    });
    origin
}

#[tokio::test]
async fn connection_based_credentials_are_never_sent_over_http2() {
    let addr = front(Router::new().layer(ReverseProxyLayer::new(Client::builder(both().await).http2(true)))).await;
    for (fields, expected) in [
        ("", "HTTP/2.0 0"),
        ("Authorization: Negotiate YII=\r\n", "HTTP/1.1 1"),
        // Each uses a dedicated connection, which isn't reused.
        ("Authorization: negotiate YII=\r\n", "HTTP/1.1 2"),
        ("Authorization: NTLM TlRM\r\n", "HTTP/1.1 3"),
        ("Authorization: Basic YTpi\r\nAuthorization: NTLM TlRM\r\n", "HTTP/1.1 4"),
        ("Authorization: Basic YTpi\r\n", "HTTP/2.0 0"),
    ] {
        assert_eq!(get(addr, "/x", fields).await.text(), expected, "{fields}");
    }
}

#[tokio::test]
async fn connection_based_credentials_are_never_sent_over_http2_on_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        for connection in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, versions(connection)));
        }
    });
    let layer = ReverseProxyLayer::new(Client::builder(format!("unix:{}", path.display())).http2(true));
    let addr = front(Router::new().layer(layer)).await;
    assert_eq!(get(addr, "/x", "").await.text(), "HTTP/2.0 0");
    assert_eq!(get(addr, "/x", "Authorization: Negotiate YII=\r\n").await.text(), "HTTP/1.1 1");
}

/// Sends a request of this owner, and returns the version and the number of its connection.
async fn owned(client: &Client, owner: Option<&str>) -> String {
    let mut request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
    request.extensions_mut().insert(owner.map_or(Owner::Request, |owner| Owner::Principal(owner.into())));
    let response = within(client.clone().oneshot(request)).await.unwrap();
    String::from_utf8(within(response.into_body().collect()).await.unwrap().to_bytes().into()).unwrap()
}

#[tokio::test]
async fn requests_with_an_owner_are_never_sent_over_http2() {
    let client = Client::builder(both().await).http2(true).build().unwrap();
    for (owner, expected) in
        [(None, "HTTP/2.0 0"), (Some("alice"), "HTTP/1.1 1"), (Some("bob"), "HTTP/1.1 2"), (None, "HTTP/2.0 0")]
    {
        assert_eq!(owned(&client, owner).await, expected, "{owner:?}");
    }
    // The pool observes that the backend keeps connections.
    seen_to_be_kept().await;
    for (owner, expected) in [
        (Some("alice"), "HTTP/1.1 3"),
        (Some("alice"), "HTTP/1.1 3"),
        (Some("bob"), "HTTP/1.1 4"),
        (None, "HTTP/2.0 0"),
    ] {
        assert_eq!(owned(&client, owner).await, expected, "{owner:?}");
    }
}

#[tokio::test]
async fn connections_of_owners_and_http2_make_room_for_each_other() {
    let client = Client::builder(both().await).http2(true).max_connections(1).build().unwrap();
    for (owner, expected) in [
        (None, "HTTP/2.0 0"),
        (Some("alice"), "HTTP/1.1 1"),
        (Some("alice"), "HTTP/1.1 1"),
        (None, "HTTP/2.0 2"),
        (Some("bob"), "HTTP/1.1 3"),
        (Some("alice"), "HTTP/1.1 4"),
        (None, "HTTP/2.0 5"),
    ] {
        assert_eq!(owned(&client, owner).await, expected, "{owner:?}");
    }
}

#[tokio::test]
async fn an_idle_http2_connection_makes_room_for_an_http1_connection() {
    let addr = front(
        Router::new().layer(ReverseProxyLayer::new(Client::builder(both().await).http2(true).max_connections(1))),
    )
    .await;
    for (fields, expected) in [
        ("", "HTTP/2.0 0"),
        (NEGOTIATE, "HTTP/1.1 1"),
        (NEGOTIATE, "HTTP/1.1 2"),
        ("", "HTTP/2.0 3"),
        ("", "HTTP/2.0 3"),
        (NEGOTIATE, "HTTP/1.1 4"),
    ] {
        assert_eq!(get(addr, "/x", fields).await.text(), expected, "{fields}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_http2_connection_makes_room_when_its_last_stream_ends() {
    let (held, let_go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (holds, goes) = (held.clone(), let_go.clone());
    let app = Router::new().fallback(move |request: Request| async move {
        if request.version() == Version::HTTP_2 {
            holds.notify_one();
            goes.notified().await;
        }
        format!("{:?}", request.version())
    });
    let connector = service_fn(move |_| {
        let (ours, theirs) = Pipe::pair();
        tokio::spawn(serve(theirs, app.clone()));
        async { Ok::<_, io::Error>(ours) }
    });
    // With an idle timeout and without.
    for idle in [Some(Duration::from_secs(30)), None] {
        let client = Client::builder("http://backend.example").connector(connector.clone()).http2(true);
        let layer = ReverseProxyLayer::new(client.max_connections(1).pool_idle_timeout(idle));
        let app = Router::new().layer(layer);
        let (mut first, mut second) = (client_of(app.clone()), client_of(app));
        first.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
        within(held.notified()).await;
        second.send(format!("GET /x HTTP/1.1\r\nHost: front.example\r\n{NEGOTIATE}\r\n").as_bytes()).await;
        // The second request is queued.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let_go.notify_one();
        assert_eq!(first.message().await.unwrap().text(), "HTTP/2.0", "{idle:?}");
        assert_eq!(second.message().await.unwrap().text(), "HTTP/1.1", "{idle:?}");
    }
}

#[tokio::test]
async fn a_connector_that_negotiates_http2_receives_no_connection_based_credentials() {
    let (failed, mut failures) = mpsc::unbounded_channel();
    for negotiates in [true, false] {
        let connector = service_fn(move |_| async move {
            let (ours, theirs) = Pipe::pair();
            tokio::spawn(serve(theirs, versions(0)));
            Ok::<_, io::Error>(ours.negotiated_http2(negotiates))
        });
        let failed = failed.clone();
        let layer = ReverseProxyLayer::new(Client::builder("http://backend.example").connector(connector).http2(true))
            .on_error(move |error| {
                failed.send(error.clone()).unwrap();
                error.status()
            });
        let addr = front(Router::new().layer(layer)).await;
        assert_eq!(get(addr, "/x", "").await.text(), "HTTP/2.0 0");
        let answer = get(addr, "/x", "Authorization: NTLM TlRM\r\n").await;
        if negotiates {
            assert_eq!(answer.status(), 502);
            let why = cause(&failures.try_recv().unwrap());
            assert!(why.contains("credentials that authenticate a connection"), "{why}");
        } else {
            assert_eq!(answer.text(), "HTTP/1.1 0");
        }
    }
}

/// The chain of causes.
fn cause(error: &Error) -> String {
    let first = std::error::Error::source(error).expect("a cause");
    std::iter::successors(Some(first), |error| error.source()).map(|error| format!("{error}: ")).collect()
}

#[tokio::test]
async fn a_backend_without_http2_is_named_in_the_error() {
    let reads_and_closes = backend(|mut wire| async move { drop(wire.bytes(24).await) }).await;
    for origin in [
        answering("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await,
        answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await,
        backend(|wire| async move { drop(wire) }).await,
        reads_and_closes,
    ] {
        let (failed, mut failures) = mpsc::unbounded_channel();
        let layer = ReverseProxyLayer::new(Client::builder(&origin).http2(true)).on_error(move |error| {
            failed.send(error.clone()).unwrap();
            error.status()
        });
        let addr = front(Router::new().layer(layer)).await;
        for request in ["GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n", WEBSOCKET] {
            assert_eq!(ask(addr, request).await.status(), 502);
            let error = within(failures.recv()).await.unwrap();
            // No byte of the request has been sent.
            assert_eq!(error.kind(), ErrorKind::Connect);
            let why = cause(&error);
            assert!(why.starts_with(&format!("connecting to {origin}: ")), "{why}");
            assert!(why.contains("doesn't seem to speak HTTP/2") && why.contains("http2(true)"), "{why}");
        }
    }
}

#[tokio::test]
async fn a_backend_that_sends_no_settings_is_a_connect_timeout() {
    let origin = backend(|mut wire| async move { drop(wire.bytes(usize::MAX).await) }).await;
    let short = Duration::from_millis(100);
    let addr =
        front(Router::new().layer(ReverseProxyLayer::new(Client::builder(origin).http2(true).connect_timeout(short))))
            .await;
    assert_eq!(get(addr, "/x", "").await.status(), 504);
}

#[tokio::test(start_paused = true)]
async fn a_websocket_waits_for_the_settings_frame_and_no_timer() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let connector = service_fn(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let (ours, theirs) = Pipe::pair();
            // The backend speaks both protocols, without extended CONNECT.
            tokio::spawn(serve(
                theirs,
                Router::new().fallback(|request: Request| async move {
                    assert_eq!(request.version(), Version::HTTP_11);
                    StatusCode::UPGRADE_REQUIRED
                }),
            ));
            Ok::<_, io::Error>(ours)
        }
    });
    let app = Router::new()
        .layer(ReverseProxyLayer::new(Client::builder("http://backend.example").connector(connector).http2(true)));
    let before = Instant::now();
    for _ in 0..3 {
        let mut wire = client_of(app.clone());
        wire.send(WEBSOCKET.as_bytes()).await;
        assert_eq!(wire.message().await.unwrap().status(), 426);
    }
    assert_eq!(before.elapsed().as_millis(), 0);
    // One HTTP/2 connection, whose SETTINGS lack extended CONNECT, and one HTTP/1.1 connection.
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn extended_connect_is_used_once_the_backend_enables_it() {
    let has_connect = Arc::new(AtomicBool::new(false));
    let had = has_connect.clone();
    let connector = service_fn(move |_| {
        let has_connect = had.load(Ordering::SeqCst);
        async move {
            let (ours, theirs) = Pipe::pair();
            // In response to extended CONNECT, a 200 would open the tunnel.
            let app = Router::new()
                .fallback(|request: Request| async move { (StatusCode::FORBIDDEN, request.method().to_string()) });
            let mut server = auto::Builder::new(TokioExecutor::new());
            if has_connect {
                server.http2().enable_connect_protocol();
            }
            tokio::spawn(async move {
                let _ = server.serve_connection(TokioIo::new(theirs), TowerToHyperService::new(app)).await;
            });
            Ok::<_, io::Error>(ours)
        }
    });
    let idle = Duration::from_millis(50);
    let client = Client::builder("http://backend.example").connector(connector).http2(true);
    let app = Router::new().layer(ReverseProxyLayer::new(client.pool_idle_timeout(idle)));
    for (connect, request, expected) in [
        (false, WEBSOCKET, "GET"),
        (false, WEBSOCKET, "GET"),
        (true, "GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n", "GET"),
        (true, WEBSOCKET, "CONNECT"),
    ] {
        if has_connect.swap(connect, Ordering::SeqCst) != connect {
            // Idle connections are closed, as by a restart of the backend.
            tokio::time::sleep(idle * 3).await;
        }
        let mut wire = client_of(app.clone());
        wire.send(request.as_bytes()).await;
        assert_eq!(wire.message().await.unwrap().text(), expected);
    }
}
