//! The transformation of messages, without I/O: both halves of the forwarder, and [`Upstream`] around a client that
//! responds at once.
//!
//! ```sh
//! cargo bench --bench transform
//! ```
//!
//! The cost of a module is the difference of two rows, which differ in one option or one message.

#![allow(clippy::expect_used)] // the messages are written below

use std::{
    cell::RefCell,
    collections::VecDeque,
    convert::Infallible,
    future::{Future, Ready, ready},
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum_core::body::Body;
use criterion::{BatchSize, Criterion};
use http::{HeaderName, HeaderValue, Method, Request, Response, request, response};
use tower::{Layer, Service};
use tower_reverse_proxy::{Backend, ClientAddr, Forwarded, ReverseProxyLayer, Upstream};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 60));

/// The first line, then one field per line. The parsed values share their memory, as those of a server do.
const CURL: &str = "GET /mydir/page?q=1
host: front.example
user-agent: curl/8.5.0
accept: */*";

const BROWSER: &str = "GET /mydir/page?q=1
host: front.example
connection: keep-alive
user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0
accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8
accept-language: en-GB,en;q=0.5
accept-encoding: gzip, deflate, br, zstd
referer: https://front.example/mydir/
cookie: session=0123456789abcdef0123456789abcdef; theme=dark
upgrade-insecure-requests: 1
sec-fetch-dest: document
sec-fetch-mode: navigate
sec-fetch-site: same-origin";

const API: &str = "POST /mydir/api/v1/items
host: front.example
user-agent: app/1.0
accept: application/json
authorization: Bearer 0123456789abcdef0123456789abcdef0123456789abcdef
content-type: application/json
content-length: 16
x-request-id: 0123456789abcdef";

const CLAIMS: &str = "GET /mydir/page
host: front.example
accept: */*
x-forwarded-for: 192.0.2.1
x-forwarded-host: evil.example
x-real-ip: 192.0.2.1
forwarded: for=192.0.2.1
remote-user: admin
remote_user: admin
via: 1.1 one, 1.1 two
te: trailers
connection: close, te";

const PLAIN: &str = "200
content-type: text/html; charset=utf-8
content-length: 16
date: Mon, 01 Jan 2024 00:00:00 GMT
server: backend
cache-control: no-store";

const REDIRECT: &str = "303
location: http://backend.example:8000/mydir/login?next=%2Fmydir%2F
content-length: 16
date: Mon, 01 Jan 2024 00:00:00 GMT
server: backend";

const COOKIES: &str = "200
content-type: text/html; charset=utf-8
content-length: 16
set-cookie: session=0123456789abcdef; Path=/; HttpOnly; Secure; SameSite=Lax
set-cookie: theme=dark; Domain=backend.example; Path=/; Max-Age=31536000
set-cookie: csrf=0123456789abcdef; path=/app
date: Mon, 01 Jan 2024 00:00:00 GMT
server: backend";

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let forty = [CURL.to_owned(), (0..37).map(|number| format!("\nx-field-{number}: value")).collect()].concat();
    // Each member nominates a field, and each needs a look-up.
    let hostile: String = (0..100).map(|line| format!("\nconnection: close, x-hop-{line}, keep-alive,,, y")).collect();
    let hostile = [CURL, &hostile].concat();

    let all = |to| ReverseProxyLayer::with_upstream(to).prefix("/mydir");
    bench(&mut criterion, "request/not below the prefix", |to| all(to).prefix("/other"), CURL, PLAIN);
    bench(&mut criterion, "request/curl", all, CURL, PLAIN);
    bench(&mut criterion, "request/browser", all, BROWSER, PLAIN);
    bench(&mut criterion, "request/api post", all, API, PLAIN);
    bench(&mut criterion, "request/forty fields", all, &forty, PLAIN);
    bench(&mut criterion, "request/claims", all, CLAIMS, PLAIN);
    bench(&mut criterion, "request/hostile connection", all, &hostile, PLAIN);

    bench(&mut criterion, "option/no via", |to| all(to).via(None), CURL, PLAIN);
    bench(
        &mut criterion,
        "option/no x_forwarded",
        |to| all(to).forwarded(Forwarded::new().x_forwarded(false)),
        CURL,
        PLAIN,
    );
    bench(&mut criterion, "option/forwarded", |to| all(to).forwarded(Forwarded::new().rfc7239(true)), CURL, PLAIN);
    bench(&mut criterion, "option/strip_prefix", |to| all(to).strip_prefix(), CURL, PLAIN);

    bench(&mut criterion, "response/redirect", all, CURL, REDIRECT);
    bench(&mut criterion, "response/redirect, strip_prefix", |to| all(to).strip_prefix(), CURL, REDIRECT);
    bench(&mut criterion, "response/cookies", all, CURL, COOKIES);
    bench(&mut criterion, "response/cookies, strip_prefix", |to| all(to).strip_prefix(), CURL, COOKIES);
    criterion.final_summary();
}

/// Measures one exchange through the middleware, up to the response. The messages are created before.
fn bench(
    criterion: &mut Criterion,
    name: &str,
    layer: impl FnOnce(Upstream<Prepared>) -> ReverseProxyLayer<Upstream<Prepared>>,
    request: &str,
    response: &str,
) {
    let (request, response) = (request_parts(request), response_parts(response));
    let is_post = request.method == Method::POST;
    let client = Prepared::default();
    let backend: Backend = "http://backend.example:8000".parse().expect("an origin");
    let mut service = layer(Upstream::with_client(backend, client.clone())).layer(client.clone());
    let prepare = || {
        let response = Response::from_parts(response.clone(), Body::from("0123456789abcdef"));
        let mut messages = client.0.borrow_mut();
        messages.responses.push_back(response);
        messages.requests.clear();
        let body = if is_post { Body::from("0123456789abcdef") } else { Body::empty() };
        let mut request = Request::from_parts(request.clone(), body);
        request.extensions_mut().insert(ClientAddr::from(PEER));
        request
    };
    criterion.bench_function(name, |bencher| {
        let exchange = |request| {
            let future = pin!(service.call(black_box(request)));
            let Poll::Ready(response) = future.poll(&mut Context::from_waker(Waker::noop())) else {
                panic!("the future is ready")
            };
            response
        };
        bencher.iter_batched(prepare, exchange, BatchSize::SmallInput);
    });
}

/// A client with prepared responses. It keeps the requests, so that dropping them isn't measured.
#[derive(Clone, Default)]
struct Prepared(Rc<RefCell<Messages>>);

#[derive(Default)]
struct Messages {
    responses: VecDeque<Response<Body>>,
    requests: Vec<Request<Body>>,
}

impl Service<Request<Body>> for Prepared {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut messages = self.0.borrow_mut();
        messages.requests.push(request);
        ready(Ok(messages.responses.pop_front().expect("one for each request")))
    }
}

fn request_parts(text: &str) -> request::Parts {
    let (method, target) = text.lines().next().and_then(|line| line.split_once(' ')).expect("a request line");
    let request = Request::builder().method(method).uri(target);
    let request = fields(text).fold(request, |request, (name, value)| request.header(name, value));
    request.body(()).expect("a request").into_parts().0
}

fn response_parts(text: &str) -> response::Parts {
    let response = Response::builder().status(text.lines().next().expect("a status"));
    let response = fields(text).fold(response, |response, (name, value)| response.header(name, value));
    response.body(()).expect("a response").into_parts().0
}

fn fields(text: &str) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    text.lines().skip(1).map(|line| {
        let (name, value) = line.split_once(": ").expect("a field");
        (name.parse().expect("a name"), value.parse().expect("a value"))
    })
}
