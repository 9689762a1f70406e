//! The allocations of a request, and the memory of an idle connection and of a tunnel. A binary of its own, because the
//! counter replaces the global allocator.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod idle;
mod upload;

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use allocation_counter::{measure, opt_out};
use axum::{body::Body, extract::Request, response::Response};
use http::{HeaderValue, Method, Uri, request::Parts};
use tokio::sync::Notify;
use tower::{Layer, Service};
use tower_reverse_proxy::{
    Error, HttpService, RemoteUserLayer, Retry, RetryPolicy, ReverseProxyLayer, Tunnels, balance::Balance,
};

/// A service that is ready at once. The allocations of its own response aren't counted.
#[derive(Clone)]
struct Immediate;

impl Service<Request> for Immediate {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        let mut response = Response::new(Body::empty());
        opt_out(|| drop(response.headers_mut().insert("server", HeaderValue::from_static("test"))));
        ready(Ok(response))
    }
}

/// Counts the allocations of one call of the middleware, from the finished request to the response.
fn allocations(layer: &ReverseProxyLayer<impl HttpService>, request: fn() -> Request) -> u64 {
    let mut service = layer.layer(Immediate);
    let mut run = || {
        let (request, mut polled) = (request(), Poll::Pending);
        let info = measure(|| {
            let mut future = pin!(service.call(request));
            polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        });
        let Poll::Ready(Ok(response)) = polled else { panic!("everything is ready") };
        assert_eq!(response.status(), 200);
        info.count_total
    };
    // Allocations of the first call only don't count.
    run();
    run()
}

/// A request as a server makes it: its values share the read buffer, so that cloning one doesn't allocate.
fn request(method: Method, target: &'static str, body: Body) -> Request {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_static(target);
    for (name, value) in [("host", "front.example"), ("accept", "*/*"), ("user-agent", "test")] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    request
}

#[test]
fn an_own_route_beside_a_proxy_allocates_nothing() {
    let service = ReverseProxyLayer::with_upstream(Immediate).prefix("/mydir");
    let cases: [fn() -> Request; 3] = [
        || request(Method::GET, "/", Body::empty()),
        || request(Method::GET, "/mydirx/y?q", Body::empty()),
        || request(Method::POST, "/other", Body::from("body")),
    ];
    for case in cases {
        assert_eq!(allocations(&service, case), 0, "{:?}", case());
    }
}

/// With the crate's own client, which isn't called.
#[test]
fn an_own_route_beside_a_backend_allocates_nothing() {
    let mut service = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/mydir").layer(Immediate);
    let request = request(Method::GET, "/other", Body::empty());
    let info = measure(|| {
        let future = pin!(service.call(request));
        assert!(future.poll(&mut Context::from_waker(Waker::noop())).is_ready());
    });
    assert_eq!(info.count_total, 0);
}

/// Measured: the box of the response's body; with a request body, also its box and the state that it shares with the
/// future.
#[test]
fn a_forwarded_request_allocates_within_its_budget() {
    let layer = ReverseProxyLayer::with_upstream(Immediate).prefix("/mydir");
    let without_body = allocations(&layer, || request(Method::GET, "/mydir/x?q", Body::empty()));
    assert!(without_body <= 1, "{without_body}");
    let with_body = allocations(&layer, || request(Method::POST, "/mydir/x", Body::from("body")));
    assert!(with_body <= 3, "{with_body}");
    let with_hop = allocations(&layer, || {
        let mut request = request(Method::GET, "/mydir/x", Body::empty());
        request.headers_mut().insert("connection", HeaderValue::from_static("keep-alive"));
        request
    });
    assert!(with_hop <= 1, "{with_hop}");
    // The list of fields to remove, if there are several.
    let with_hops = allocations(&layer, || {
        let mut request = request(Method::GET, "/mydir/x", Body::empty());
        request.headers_mut().insert("connection", HeaderValue::from_static("keep-alive"));
        request.headers_mut().insert("proxy-authorization", HeaderValue::from_static("Basic eDp5"));
        request
    });
    assert!(with_hops <= 2, "{with_hops}");
}

/// By default, a request that may be sent again isn't copied. With `idempotent`, its head is.
#[test]
fn retries_of_unsent_requests_allocate_nothing() {
    let count = |policy: Option<RetryPolicy>, request: fn() -> Request| match policy {
        Some(policy) => allocations(&ReverseProxyLayer::with_upstream(Retry::new(Immediate, policy)), request),
        None => allocations(&ReverseProxyLayer::with_upstream(Immediate), request),
    };
    let cases: [fn() -> Request; 2] =
        [|| request(Method::GET, "/x?q", Body::empty()), || request(Method::POST, "/x", Body::from("body"))];
    for case in cases {
        let without = count(None, case);
        for policy in [RetryPolicy::none(), RetryPolicy::unsent()] {
            assert_eq!(count(Some(policy), case), without, "{:?}", case().method());
        }
    }
    // Around a balancer, as `ReverseProxyLayer::balanced` makes it.
    let balance = || Balance::over([Immediate, Immediate, Immediate]);
    for case in cases {
        let balanced = ReverseProxyLayer::with_upstream(Retry::new(balance(), RetryPolicy::default()));
        assert_eq!(allocations(&balanced, case), count(None, case), "{:?}", case().method());
    }
    let [get, post] = cases;
    // A `POST` isn't copied. Measured for a `GET`: the list of members and its place among the extensions, the copy of
    // the fields, and the box of all.
    assert_eq!(count(Some(RetryPolicy::idempotent()), post), count(None, post));
    let copy = count(Some(RetryPolicy::idempotent()), get) - count(None, get);
    assert!((1..=7).contains(&copy), "{copy}");
}

/// The name of the user, in an extension.
#[derive(Clone)]
struct Name(&'static str);

/// Counts the allocations of one call of a layer on the upstream side.
fn allocations_upstream(layer: &RemoteUserLayer) -> u64 {
    #[derive(Clone)]
    struct Client;

    impl Service<Request> for Client {
        type Response = ();
        type Error = Error;
        type Future = Ready<Result<(), Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request) -> Self::Future {
            assert_eq!(request.headers()["remote-user"], "alice");
            ready(Ok(()))
        }
    }

    let mut service = layer.layer(Client);
    let mut request = request(Method::GET, "/x", Body::empty());
    request.extensions_mut().insert(Name("alice"));
    let mut polled = Poll::Pending;
    let info = measure(|| {
        let mut future = pin!(service.call(request));
        polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    });
    assert!(matches!(polled, Poll::Ready(Ok(()))));
    info.count_total
}

/// Measured: the name, its place among the extensions, and the value of the field. A lookup has a box of its own, and
/// one for the call that follows it.
#[test]
fn a_user_allocates_within_its_budget_and_two_boxes_for_a_lookup() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let extension = RemoteUserLayer::from_extension(|name: &Name| Some(name.0));
    let parts = RemoteUserLayer::from_parts(|parts: &Parts| Some(parts.extensions.get::<Name>()?.0));
    let lookup = RemoteUserLayer::from_extension_async(|name: Name| ready(Ok::<_, Infallible>(Some(name.0))));
    let [extension, parts, lookup] = [extension, parts, lookup].map(|layer| allocations_upstream(&layer));
    assert!(extension <= 4, "{extension}");
    assert_eq!((parts, lookup), (extension, extension + 2));
}

/// What a tunnel holds while no byte passes, measured on the thread of a front that is otherwise idle; without what the
/// allocator and the kernel add. It's the task of the tunnel, the connections of both sides with tokio's registrations,
/// and hyper's wrappers of the client's side. There is no buffer in it: the one that the thread has for all tunnels is
/// allocated by the first of them, which isn't counted.
#[test]
fn an_idle_tunnel_costs_at_most_2_kib() {
    const TUNNELS: usize = 50;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let backend = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let tunnels = Tunnels::new();
    let layer = ReverseProxyLayer::new(format!("http://{}", backend.local_addr().unwrap())).tunnels(tunnels.clone());
    let front = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let addr = front.local_addr().unwrap();
    runtime.spawn(async { axum::serve(front, axum::Router::new().layer(layer)).await });

    // The peers have a thread of their own, so that their memory isn't counted.
    let (opened, more) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (report, requested) = (opened.clone(), more.clone());
    let peers = thread::spawn(move || {
        let waiting = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut open = vec![open_tunnel(addr, &backend)];
        report.notify_one();
        waiting.block_on(requested.notified());
        open.extend((0..TUNNELS).map(|_| open_tunnel(addr, &backend)));
        report.notify_one();
        waiting.block_on(requested.notified());
    });
    let until_opened = || {
        runtime.block_on(async {
            tokio::time::timeout(PATIENCE, opened.notified()).await.expect("the tunnels open");
            // The tasks that have opened them end.
            tokio::task::yield_now().await;
        });
    };
    until_opened();
    more.notify_one();
    let info = measure(until_opened);
    assert_eq!(tunnels.count(), 1 + TUNNELS);
    let bytes = info.bytes_current / i64::try_from(TUNNELS).unwrap();
    assert!((1..=2 * 1024).contains(&bytes), "{bytes} bytes, {} allocations", info.count_current);
    more.notify_one();
    peers.join().expect("the peers");
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Opens a tunnel and sends a byte through it in each direction; returns its two ends.
fn open_tunnel(front: SocketAddr, backend: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(front).expect("the front listens");
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let offer = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(offer).unwrap();
    let (mut backend, _) = backend.accept().expect("the proxy connects");
    backend.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(head(&mut backend).starts_with("GET / HTTP/1.1\r\n"));
    let accept = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    backend.write_all(accept).unwrap();
    assert!(head(&mut client).starts_with("HTTP/1.1 101 "));
    let mut byte = [0];
    client.write_all(b"x").unwrap();
    backend.read_exact(&mut byte).expect("a byte from the client");
    backend.write_all(&byte).unwrap();
    client.read_exact(&mut byte).expect("a byte from the backend");
    (client, backend)
}

fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a head");
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}
