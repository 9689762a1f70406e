//! The allocations of a request. A binary of its own, because the counter replaces the global allocator.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::pin,
    task::{Context, Poll, Waker},
};

use allocation_counter::{measure, opt_out};
use axum::{body::Body, extract::Request, response::Response};
use http::{HeaderValue, Method, Uri, request::Parts};
use tower::{Layer, Service};
use tower_reverse_proxy::{Error, RemoteUserLayer, ReverseProxyLayer};

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
fn allocations(layer: &ReverseProxyLayer<impl Upstream>, request: fn() -> Request) -> u64 {
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

/// The upstream services of these tests.
trait Upstream: Service<Request, Response = Response, Error = Infallible> + Clone {}
impl<U: Service<Request, Response = Response, Error = Infallible> + Clone> Upstream for U {}

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
    // Removing a field allocates the list of fields to remove.
    let with_hops = allocations(&layer, || {
        let mut request = request(Method::GET, "/mydir/x", Body::empty());
        request.headers_mut().insert("connection", HeaderValue::from_static("keep-alive"));
        request
    });
    assert!(with_hops <= 2, "{with_hops}");
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

/// Measured: the name, its place among the extensions, the value of the field, and its place among the fields.
#[test]
fn a_user_allocates_within_its_budget_and_one_box_for_a_lookup() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let extension = RemoteUserLayer::from_extension(|name: &Name| Some(name.0));
    let parts = RemoteUserLayer::from_parts(|parts: &Parts| Some(parts.extensions.get::<Name>()?.0));
    let lookup = RemoteUserLayer::from_extension_async(|name: Name| ready(Ok::<_, Infallible>(Some(name.0))));
    let [extension, parts, lookup] = [extension, parts, lookup].map(|layer| allocations_upstream(&layer));
    assert!(extension <= 4, "{extension}");
    assert_eq!((parts, lookup), (extension, extension + 1));
}
