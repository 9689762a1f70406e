//! The pool of HTTP/1.1 connections: which are kept, which are reused, and by which requests.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, http::Uri};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncWriteExt, duplex},
    net::{TcpStream, UnixListener},
    sync::{Notify, mpsc},
    time::timeout,
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Backend, Client, HostPolicy, ReverseProxy, ReverseProxyLayer};

use crate::support::{
    Message, PATIENCE, Pipe, Wire, ask, backend, client, elsewhere, front, get, http2, others_run, seen_to_be_kept,
    tasks_left, within,
};

/// What a backend with numbered connections reports.
#[derive(Debug, PartialEq)]
enum Event {
    Request { connection: usize, start_line: String },
    End { connection: usize },
}

/// Decides what follows a response on a connection, by the request's start line.
type Then = fn(&str) -> After;

enum After {
    KeepOpen,
    Close,
    /// Closes instead of responding.
    Die,
    /// Sends these bytes after the response.
    Stray(&'static [u8]),
}

/// A backend that responds with the number of the connection, and reports requests and the ends of connections.
async fn numbered(then: Then) -> (String, mpsc::UnboundedReceiver<Event>) {
    let (report, events) = mpsc::unbounded_channel();
    let connections = AtomicUsize::new(0);
    let url = backend(move |mut wire| {
        let connection = connections.fetch_add(1, Ordering::Relaxed);
        let report = report.clone();
        async move {
            while let Some(request) = wire.message().await {
                let start_line = request.start_line().to_owned();
                let after = then(&start_line);
                report.send(Event::Request { connection, start_line }).unwrap();
                if matches!(after, After::Die) {
                    break;
                }
                let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{connection}").into_bytes();
                if let After::Stray(bytes) = after {
                    answer.extend_from_slice(bytes);
                }
                wire.send(&answer).await;
                if matches!(after, After::Close) {
                    break;
                }
            }
            drop(wire);
            // The test may be over.
            let _ = report.send(Event::End { connection });
        }
    })
    .await;
    (url, events)
}

async fn post(addr: SocketAddr, target: &str) -> Message {
    ask(addr, format!("POST {target} HTTP/1.1\r\nHost: front.example\r\nContent-Length: 2\r\n\r\nhi")).await
}

async fn proxied(url: String) -> SocketAddr {
    front(Router::new().fallback_service(ReverseProxy::new(url))).await
}

#[tokio::test]
async fn a_connection_is_reused() {
    let (url, _events) = numbered(|_| After::KeepOpen).await;
    let addr = proxied(url).await;
    assert_eq!(get(addr, "/x", "").await.text(), "0");
    seen_to_be_kept().await;
    for _ in 0..3 {
        // Different clients share one connection to the backend.
        assert_eq!(get(addr, "/x", "").await.text(), "0");
        assert_eq!(get(addr, "/x", "Connection: close\r\n").await.text(), "0");
        assert_eq!(post(addr, "/x").await.text(), "0");
    }
}

#[tokio::test]
async fn without_an_idle_pool_no_connection_is_kept() {
    let (url, mut events) = numbered(|_| After::KeepOpen).await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(Client::builder(url).pool_max_idle(0)))).await;
    for connection in 0..3 {
        assert_eq!(get(addr, "/x", "").await.text(), connection.to_string());
        assert!(matches!(within(events.recv()).await, Some(Event::Request { .. })));
        assert_eq!(within(events.recv()).await, Some(Event::End { connection }));
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_the_idle_timeout() {
    let (url, mut events) = numbered(|_| After::KeepOpen).await;
    let proxy = ReverseProxyLayer::new(Client::builder(url).pool_idle_timeout(Duration::from_millis(100)));
    let addr = front(Router::new().layer(proxy)).await;
    assert_eq!(get(addr, "/x", "").await.text(), "0");
    assert!(matches!(within(events.recv()).await, Some(Event::Request { .. })));
    assert_eq!(within(events.recv()).await, Some(Event::End { connection: 0 }));
    assert_eq!(get(addr, "/x", "").await.text(), "1");
}

#[tokio::test]
async fn a_connection_closed_while_idle_fails_no_request() {
    let (url, mut events) =
        numbered(|start_line| if start_line.contains("/kept") { After::KeepOpen } else { After::Close }).await;
    let addr = proxied(url).await;
    // Even requests that can't be replayed use a connection that was in use a moment ago.
    assert_eq!(get(addr, "/kept", "").await.text(), "0");
    assert!(matches!(within(events.recv()).await, Some(Event::Request { .. })));
    seen_to_be_kept().await;
    for connection in 0..10 {
        let answer = if connection % 2 == 0 { get(addr, "/x", "").await } else { post(addr, "/x").await };
        assert_eq!((answer.status(), answer.text()), (200, connection.to_string()));
        // The connection is closed before the next request arrives.
        assert!(matches!(within(events.recv()).await, Some(Event::Request { .. })));
        assert_eq!(within(events.recv()).await, Some(Event::End { connection }));
    }
}

#[tokio::test]
async fn a_post_that_was_written_is_not_retried() {
    fn die_on_post(start_line: &str) -> After {
        if start_line.starts_with("POST") { After::Die } else { After::KeepOpen }
    }

    let (url, mut events) = numbered(die_on_post).await;
    let addr = proxied(url).await;
    // On a new connection, and on a reused one.
    for warm in [false, true] {
        if warm {
            assert_eq!(get(addr, "/warm", "").await.status(), 200);
            seen_to_be_kept().await;
            assert_eq!(get(addr, "/warm", "").await.status(), 200);
            for _ in 0..2 {
                assert!(matches!(within(events.recv()).await, Some(Event::Request { .. })));
            }
        }
        assert_eq!(post(addr, "/x").await.status(), 502);
        let Some(Event::Request { connection, start_line }) = within(events.recv()).await else { panic!("no request") };
        assert_eq!(start_line, "POST /x HTTP/1.1");
        assert_eq!(within(events.recv()).await, Some(Event::End { connection }));
        assert!(events.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_connection_idle_for_long_is_not_used_for_a_post() {
    let (url, mut events) = numbered(|_| After::KeepOpen).await;
    let addr = proxied(url).await;
    assert_eq!(get(addr, "/x", "").await.text(), "0");
    seen_to_be_kept().await;
    assert_eq!(post(addr, "/x").await.text(), "1");
    // The new connection replaces the old one.
    assert!(matches!(within(events.recv()).await, Some(Event::Request { connection: 0, .. })));
    let mut next = [within(events.recv()).await.unwrap(), within(events.recv()).await.unwrap()];
    next.sort_by_key(|events| matches!(events, Event::End { .. }));
    assert!(matches!(next, [Event::Request { connection: 1, .. }, Event::End { connection: 0 }]));
    // Requests that can be replayed use any connection.
    seen_to_be_kept().await;
    assert_eq!(get(addr, "/x", "").await.text(), "1");
}

#[tokio::test]
async fn back_to_back_posts_end_up_reusing_connections() {
    let (url, _events) = numbered(|_| After::KeepOpen).await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(Client::builder(url).pool_max_idle(1)))).await;
    let reuse = async {
        let mut last = post(addr, "/x").await.text();
        // Each POST follows the response to the one before.
        loop {
            let next = post(addr, "/x").await.text();
            if next == last {
                return;
            }
            last = next;
        }
    };
    timeout(PATIENCE, reuse).await.expect("the pool observes that the backend keeps a connection");
}

#[tokio::test]
async fn a_connection_authenticated_by_ntlm_or_negotiate_is_not_shared() {
    for scheme in ["NTLM TlRM", "Negotiate YII=", "ntlm TlRM"] {
        let (url, mut events) = numbered(|_| After::KeepOpen).await;
        let addr = proxied(url).await;
        let signed = format!("Authorization: {scheme}\r\n");
        // The connection that carried the credentials is closed after the response.
        assert_eq!(get(addr, "/x", "").await.text(), "0");
        seen_to_be_kept().await;
        assert_eq!(get(addr, "/x", "").await.text(), "0");
        assert_eq!(get(addr, "/x", &signed).await.text(), "0", "{scheme}");
        assert_eq!(get(addr, "/x", "").await.text(), "1");
        assert_eq!(get(addr, "/x", &signed).await.text(), "1", "{scheme}");
        assert_eq!(get(addr, "/x", &signed).await.text(), "2", "{scheme}");
        assert_eq!(get(addr, "/x", "Authorization: Basic YTpi\r\n").await.text(), "3", "{scheme}");
        let mut ended = Vec::new();
        while ended.len() < 3 {
            if let Some(Event::End { connection }) = within(events.recv()).await {
                ended.push(connection);
            }
        }
        ended.sort_unstable();
        assert_eq!(ended, [0, 1, 2], "{scheme}");
    }
    let (url, _events) = numbered(|_| After::KeepOpen).await;
    let addr = proxied(url).await;
    for _ in 0..2 {
        assert_eq!(get(addr, "/x", "Authorization: Basic YTpi\r\n").await.text(), "0");
    }
}

#[tokio::test]
async fn leading_whitespace_does_not_hide_an_authentication_scheme() {
    for scheme in [" Negotiate YII=", "\tNTLM TlRM", " \t ntlm TlRM"] {
        // Leading whitespace isn't part of the value in HTTP/1.1, but HTTP/2 passes it on.
        let (url, _events) = numbered(|_| After::KeepOpen).await;
        let addr = proxied(url).await;
        let request =
            Request::get("http://front.example/x").header("authorization", scheme).body(Body::empty()).unwrap();
        let signed = within(http2(addr).await.send_request(request)).await.unwrap();
        assert_eq!(signed.status(), 200, "{scheme:?}");
        let body = within(signed.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes(), "0", "{scheme:?}");
        assert_eq!(get(addr, "/x", "").await.text(), "1", "{scheme:?}");
    }
}

#[tokio::test]
async fn stray_bytes_after_a_response_reach_no_client() {
    fn stray(start_line: &str) -> After {
        if start_line.contains("/stray") {
            After::Stray(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        } else {
            After::KeepOpen
        }
    }

    let (url, _events) = numbered(stray).await;
    let addr = proxied(url).await;
    for round in 0..10 {
        let mut wire = client(addr).await;
        for target in ["/stray", "/stray", "/x", "/x"] {
            wire.send(format!("GET {target} HTTP/1.1\r\nHost: front.example\r\n\r\n").as_bytes()).await;
            let answer = wire.message().await.unwrap();
            assert_eq!((answer.status(), answer.body.len()), (200, 1), "{round} {target}: {answer:?}");
        }
    }
}

/// A backend that responds with the number of the connection, when the connection is notified.
async fn holding<const CONNECTIONS: usize>() -> (String, [Arc<Notify>; CONNECTIONS], mpsc::UnboundedReceiver<usize>) {
    let go: [Arc<Notify>; CONNECTIONS] = std::array::from_fn(|_| Arc::default());
    let (report, ended) = mpsc::unbounded_channel();
    let (connections, going) = (AtomicUsize::new(0), go.clone());
    let url = backend(move |mut wire| {
        let connection = connections.fetch_add(1, Ordering::Relaxed);
        let (go, report) = (going[connection].clone(), report.clone());
        async move {
            while wire.message().await.is_some() {
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n").await;
                go.notified().await;
                wire.send(connection.to_string().as_bytes()).await;
            }
            let _ = report.send(connection);
        }
    })
    .await;
    (url, go, ended)
}

/// Begins an exchange, and returns when the response has begun.
async fn begun(addr: SocketAddr) -> Wire<TcpStream> {
    let mut wire = client(addr).await;
    wire.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
    wire
}

#[tokio::test]
async fn the_most_recently_used_connection_is_reused_first() {
    let (url, go, _ended) = holding::<3>().await;
    let addr = proxied(url).await;
    let mut wires = [begun(addr).await, begun(addr).await, begun(addr).await];
    for connection in [1, 0, 2] {
        go[connection].notify_one();
        assert_eq!(wires[connection].bytes(1).await, connection.to_string().as_bytes());
    }
    for _ in 0..3 {
        let mut wire = begun(addr).await;
        go[2].notify_one();
        assert_eq!(wire.bytes(1).await, b"2");
    }
    wires = [begun(addr).await, begun(addr).await, begun(addr).await];
    for (wire, connection) in wires.iter_mut().zip([2, 0, 1]) {
        go[connection].notify_one();
        assert_eq!(wire.bytes(1).await, connection.to_string().as_bytes());
    }
}

#[tokio::test]
async fn surplus_idle_connections_close_oldest_first() {
    let (url, go, mut ended) = holding::<4>().await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(Client::builder(url).pool_max_idle(2)))).await;
    let mut wires = Vec::new();
    for _ in 0..4 {
        wires.push(begun(addr).await);
    }
    for connection in [1, 3, 0, 2] {
        go[connection].notify_one();
        assert_eq!(wires[connection].bytes(1).await, connection.to_string().as_bytes());
    }
    // Surplus connections aren't closed at once, because under load they are all reused.
    assert!(ended.try_recv().is_err());
    assert_eq!([within(ended.recv()).await, within(ended.recv()).await], [Some(1), Some(3)]);
    let mut wires = [begun(addr).await, begun(addr).await];
    for (wire, connection) in wires.iter_mut().zip([2, 0]) {
        go[connection].notify_one();
        assert_eq!(wire.bytes(1).await, connection.to_string().as_bytes());
    }
}

#[tokio::test]
async fn a_connection_closed_by_the_backend_is_not_kept() {
    // The backend closes its half of the connection, with or without a response, and waits for the proxy's half.
    for last in ["", "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"] {
        let (report, mut ended) = mpsc::unbounded_channel();
        let go = Arc::new(Notify::new());
        let going = go.clone();
        let url = backend(move |mut wire| {
            let (report, going) = (report.clone(), going.clone());
            async move {
                wire.message().await;
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                going.notified().await;
                wire.send(last.as_bytes()).await;
                wire.stream.shutdown().await.unwrap();
                report.send(wire.closed().await).unwrap();
            }
        })
        .await;
        let addr = proxied(url).await;
        assert_eq!(get(addr, "/x", "").await.status(), 200);
        // The connection is in the pool. It's closed without another request.
        others_run().await;
        go.notify_one();
        assert!(timeout(PATIENCE, ended.recv()).await.expect("it's closed").unwrap());
        assert_eq!(post(addr, "/x").await.status(), 200);
    }
}

#[tokio::test]
async fn an_empty_or_dropped_pool_leaves_no_task() {
    let (url, mut events) = elsewhere(numbered(|_| After::KeepOpen));
    let ask = |proxy: &ReverseProxy| {
        let request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
        let exchange = proxy.clone().oneshot(request);
        async move {
            let Ok(response) = exchange.await;
            axum::body::to_bytes(response.into_body(), 10).await.unwrap()
        }
    };
    // A pool that is emptied by the idle timeout, and used again.
    let proxy =
        ReverseProxyLayer::new(Client::builder(&url).pool_idle_timeout(Duration::from_millis(50))).into_service();
    for connection in 0..2 {
        tasks_left(0).await;
        assert_eq!(ask(&proxy).await, connection.to_string());
        assert!(matches!(within(events.recv()).await, Some(Event::Request { .. })));
        assert_eq!(within(events.recv()).await, Some(Event::End { connection }));
    }
    tasks_left(0).await;

    // A pool that is dropped, with all clones of the proxy.
    let proxy = ReverseProxy::new(&url);
    let clone = proxy.clone();
    for _ in 0..3 {
        assert_eq!(ask(&proxy).await, "2");
        assert!(matches!(within(events.recv()).await, Some(Event::Request { connection: 2, .. })));
    }
    drop(proxy);
    assert_eq!(ask(&clone).await, "2");
    assert!(matches!(within(events.recv()).await, Some(Event::Request { connection: 2, .. })));
    drop(clone);
    assert_eq!(within(events.recv()).await, Some(Event::End { connection: 2 }));
    tasks_left(0).await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_can_be_a_backend() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    on_socket(&path);
    let backend: Backend = format!("unix:{}", path.display()).parse().unwrap();
    assert_eq!(backend.socket(), Some(&*path));
    let proxy = ReverseProxyLayer::new(backend);
    let app = Router::new()
        .layer(proxy.clone().prefix("/preserve"))
        .layer(proxy.clone().prefix("/own").map_upstream(|up| up.host(HostPolicy::Backend)))
        .layer(proxy.prefix("/fixed").map_upstream(|up| up.host("app.example")));
    let addr = front(app).await;
    for (target, host) in [
        ("/preserve/x?q", "front.example"),
        ("/own/x", "localhost"),
        ("/fixed/x", "app.example"),
        ("/preserve/again", "front.example"),
    ] {
        let mirrored = get(addr, target, "").await.mirrored();
        assert_eq!(mirrored.start_line(), format!("GET {target} HTTP/1.1"));
        assert_eq!(mirrored.field("host"), Some(host), "{target}");
    }
    let missing = proxied(format!("unix:{}", dir.path().join("missing.sock").display())).await;
    assert_eq!(get(missing, "/x", "").await.status(), 502);
}

/// A mirror on a Unix socket.
#[cfg(unix)]
fn on_socket(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                while let Some(request) = wire.message().await {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.head.len());
                    wire.send((head + &request.head).as_bytes()).await;
                }
            });
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_kept_after_a_large_response() {
    let (report, mut closed) = mpsc::unbounded_channel();
    let layer =
        ReverseProxyLayer::new(Client::builder("http://backend.example").connector(service_fn(move |_: Uri| {
            let (ours, theirs) = duplex(1 << 20);
            let report = report.clone();
            tokio::spawn(async move {
                let (mut wire, mut last) = (Wire::new(theirs), 0);
                while let Some(request) = wire.message().await {
                    last = if request.start_line().starts_with("GET /large") { 4 << 20 } else { 1 };
                    wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {last}\r\n\r\n").as_bytes()).await;
                    wire.send(&vec![b'x'; last]).await;
                }
                let _ = report.send(last);
            });
            async { Ok::<_, io::Error>(Pipe::new(ours)) }
        })));
    let proxy = layer.into_service();
    for target in ["/large", "/small", "/large"] {
        let request = Request::get(target).header("host", "front.example").body(Body::empty()).unwrap();
        let Ok(response) = proxy.clone().oneshot(request).await;
        axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert!(timeout(Duration::from_secs(3), closed.recv()).await.is_err());
    }
}
