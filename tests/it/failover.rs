//! Unsent requests come back in the error, and balancers written by hand send them to another backend.

use std::{
    future::{Future, pending},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, HeaderValue, Response, StatusCode},
};
use http_body_util::{BodyExt, Channel};
use tokio::{net::TcpListener, time::timeout};
use tower::{Service, ServiceExt, service_fn, util::MapErrLayer};
use tower_reverse_proxy::{
    Client, ClientBuilder, Error, ErrorKind, InvalidClient, ReverseProxyLayer, Upstream, client::ResponseBody,
};

use crate::support::{
    PATIENCE, Pipe, Wire, answering, ask, closing, front, get, mirror, others_run, recording, refusing,
    seen_to_be_kept, within,
};
#[cfg(feature = "http2")]
use crate::support::{
    frames::{GOAWAY, RST_STREAM, frame},
    http2_backends::framing,
};

/// A `POST` with a body of two frames, the second of which is sent later.
fn upload() -> (impl Future<Output = ()>, Request) {
    let (mut sender, body) = Channel::<Bytes>::new(2);
    let mut request = Request::post("http://backend.example/x?y").body(Body::new(body)).unwrap();
    *request.headers_mut() = fields();
    let send = async move {
        sender.send_data("hel".into()).await.unwrap();
        sender.send_data("lo".into()).await.unwrap();
    };
    (send, request)
}

fn fields() -> HeaderMap {
    let fields = [("host", "front.example"), ("x-a", "1"), ("x-b", "2"), ("x-a", "3")];
    fields.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).into_iter().collect()
}

/// Sends an upload, which has to come back whole with a failure of this kind.
async fn comes_back(
    client: impl TryInto<Client, Error: Into<InvalidClient> + std::fmt::Debug>,
    kind: ErrorKind,
    case: &str,
) {
    let (send, request) = upload();
    let mut error = within(client.try_into().unwrap().oneshot(request)).await.unwrap_err();
    assert_eq!((error.kind(), error.is_unsent()), (kind, true), "{case}");
    let mut clone = error.clone();
    let request = error.take_request().unwrap_or_else(|| panic!("no request: {case}"));
    assert!(error.take_request().is_none() && clone.take_request().is_none(), "{case}: it comes back once");
    assert_eq!((request.method().as_str(), request.uri().to_string()), ("POST", "http://backend.example/x?y".into()));
    assert_eq!(request.headers(), &fields(), "{case}");
    let (body, ()) = tokio::join!(request.into_body().collect(), send);
    assert_eq!(body.unwrap().to_bytes(), "hello", "{case}");
}

/// The client's protocols, and whether HTTP/2 is the one.
fn protocols() -> Vec<bool> {
    if cfg!(feature = "http2") { vec![false, true] } else { vec![false] }
}

#[cfg(feature = "http2")]
fn with_protocol(builder: ClientBuilder, is_http2: bool) -> ClientBuilder {
    builder.http2(is_http2)
}

#[cfg(not(feature = "http2"))]
fn with_protocol(builder: ClientBuilder, _: bool) -> ClientBuilder {
    builder
}

#[tokio::test]
async fn a_request_comes_back_after_a_failed_connect() {
    for is_http2 in protocols() {
        let case = format!("HTTP/2: {is_http2}");
        let client = with_protocol(Client::builder(refusing().await), is_http2);
        comes_back(client, ErrorKind::Connect, &case).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_comes_back_after_a_connect_timeout() {
    for is_http2 in protocols() {
        let connector = service_fn(|_| pending::<io::Result<Pipe>>());
        let client = Client::builder("http://backend.example").connector(connector);
        comes_back(with_protocol(client, is_http2), ErrorKind::ConnectTimeout, &format!("HTTP/2: {is_http2}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_comes_back_after_the_queue_timeout() {
    for is_http2 in protocols() {
        // The only connect doesn't complete, and the request behind it is queued.
        let connector = service_fn(|_| pending::<io::Result<Pipe>>());
        let client = Client::builder("http://backend.example").connector(connector).queue_timeout(PATIENCE / 2);
        let client = with_protocol(client.connect_timeout(None).max_connections(1), is_http2).build().unwrap();
        let first = tokio::spawn(client.clone().oneshot(upload().1));
        others_run().await;
        let case = format!("HTTP/2: {is_http2}");
        comes_back(client.clone(), ErrorKind::Overloaded, &case).await;
        first.abort();
    }
}

#[tokio::test]
async fn a_request_that_was_sent_does_not_come_back() {
    let client: Client = closing("").await.try_into().unwrap();
    let (send, request) = upload();
    let (outcome, ()) = within(async { tokio::join!(client.oneshot(request), send) }).await;
    let mut error = outcome.unwrap_err();
    assert_eq!((error.kind(), error.is_unsent()), (ErrorKind::ConnectionClosed, false));
    assert!(error.take_request().is_none());
}

/// An extension of the application's, such as a session.
#[derive(Clone, Debug, PartialEq)]
struct Session(&'static str);

fn get_request() -> Request {
    let request = Request::get("http://front.example/x?y").header("host", "front.example");
    request.extension(Session("alice")).body(Body::empty()).unwrap()
}

/// The first attempt may have been processed, and the copy for the second one has no extensions.
#[tokio::test]
async fn a_request_that_was_written_once_does_not_come_back_from_the_second_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::builder(format!("http://{}", listener.local_addr().unwrap())).build().unwrap();
    let backend = tokio::spawn(async move {
        let mut wire = Wire::new(listener.accept().await.unwrap().0);
        wire.head().await.unwrap();
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        wire.head().await.unwrap();
        // The connection closes with the listener, so that the second attempt is refused.
        drop(listener);
    });
    let response = client.clone().oneshot(get_request()).await.unwrap();
    response.into_body().collect().await.unwrap();
    seen_to_be_kept().await;
    let mut error = client.clone().oneshot(get_request()).await.unwrap_err();
    backend.await.unwrap();
    assert_eq!((error.kind(), error.is_unsent()), (ErrorKind::Connect, false));
    assert!(error.take_request().is_none());
}

#[tokio::test]
#[cfg(feature = "http2")]
async fn a_refused_stream_comes_back_and_one_that_may_have_been_processed_does_not() {
    for (answer, is_unsent) in [(RST_STREAM, true), (GOAWAY, false)] {
        let url = framing(move |_, stream| match answer {
            RST_STREAM => frame(RST_STREAM, 0, stream, &[0, 0, 0, 7]),
            _ => frame(GOAWAY, 0, 0, &[0; 8]),
        })
        .await;
        let client = Client::builder(&url).http2(true).build().unwrap();
        let mut error = client.clone().oneshot(get_request()).await.unwrap_err();
        assert_eq!((error.kind(), error.is_unsent()), (ErrorKind::ConnectionClosed, is_unsent));
        let unsent = error.take_request();
        assert_eq!(unsent.is_some(), is_unsent);
        if let Some(unsent) = unsent {
            assert_eq!(unsent.headers()["host"], "front.example");
            assert_eq!(unsent.version(), axum::http::Version::HTTP_11);
            assert_eq!(unsent.extensions().get(), Some(&Session("alice")));
        }
    }
}

#[tokio::test]
#[cfg(feature = "http2")]
async fn a_head_that_is_too_large_is_refused_and_does_not_come_back() {
    let url = framing(|_, _| Vec::new()).await;
    let client = Client::builder(&url).http2(true).http2_max_request_head(1).build().unwrap();
    let mut error = client.clone().oneshot(get_request()).await.unwrap_err();
    assert_eq!((error.kind(), error.is_unsent()), (ErrorKind::RequestHeadTooLarge, false));
    assert!(error.take_request().is_none());
}

/// The error is in the response's extensions, and the request's body reads from the client's connection.
#[tokio::test]
async fn the_request_is_dropped_before_the_response_is_sent() {
    let unreachable = || ReverseProxyLayer::new("http://127.0.0.1:9");
    let busy = |error: Error| Error::rejected(StatusCode::SERVICE_UNAVAILABLE, error);
    let plain = unreachable().boxed().into_service();
    let wrapped = unreachable().upstream_layer(MapErrLayer::new(busy)).boxed().into_service();
    for (proxy, status) in [(plain, 502), (wrapped, 503)] {
        let (mut sender, body) = Channel::<Bytes>::new(1);
        let response = proxy
            .oneshot(Request::post("/x").header("host", "front.example").body(Body::new(body)).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), status);
        let sent = timeout(PATIENCE, async { while sender.send_data(Bytes::from_static(b"more")).await.is_ok() {} });
        assert!(sent.await.is_ok(), "the body is kept: {status}");
        drop(response);
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Error>> + Send>>;

/// Sends requests to its members in turn, and unsent ones to the next member.
#[derive(Clone)]
struct Balancer {
    members: Arc<[Upstream]>,
    turn: Arc<AtomicUsize>,
}

impl Balancer {
    fn new(members: impl Into<Arc<[Upstream]>>) -> Self {
        Self { members: members.into(), turn: Arc::default() }
    }
}

impl Service<Request> for Balancer {
    type Response = Response<ResponseBody>;
    type Error = Error;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Answer {
        let (members, turn) = (self.members.clone(), self.turn.fetch_add(1, Ordering::Relaxed));
        Box::pin(async move {
            for next in turn..turn + members.len() - 1 {
                match members[next % members.len()].clone().oneshot(request).await {
                    Err(mut error) => match error.take_request() {
                        Some(unsent) => request = unsent,
                        None => return Err(error),
                    },
                    answered => return answered,
                }
            }
            members[(turn + members.len() - 1) % members.len()].clone().oneshot(request).await
        })
    }
}

#[tokio::test]
async fn a_balancer_sends_requests_to_its_members_in_turn() {
    let [a, b] = ["a", "b"].map(|name| answering(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}")));
    let balancer = Balancer::new([Upstream::new(a.await), Upstream::new(b.await)]);
    let addr = front(Router::new().layer(ReverseProxyLayer::with_upstream(balancer))).await;
    for expected in ["a", "b", "a", "b"] {
        assert_eq!(get(addr, "/x", "").await.text(), expected);
    }
}

#[tokio::test]
async fn failover_sends_a_post_to_the_next_backend() {
    let down = refusing().await;
    for is_http2 in protocols() {
        let down = || Upstream::new(with_protocol(Client::builder(&down), is_http2));
        let balancer = Balancer::new([down(), down(), Upstream::new(mirror().await)]);
        let addr = front(Router::new().layer(ReverseProxyLayer::with_upstream(balancer).prefix("/mydir"))).await;
        let head = "POST /mydir/x?y HTTP/1.1\r\nHost: front.example\r\nX-A: 1\r\n";
        for upload in [
            format!("{head}Content-Length: 5\r\n\r\nhello"),
            format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"),
            format!("{head}Content-Length: 5\r\n\r\nhello"),
        ] {
            let mirrored = ask(addr, upload).await.mirrored();
            assert_eq!((mirrored.start_line(), &*mirrored.text()), ("POST /mydir/x?y HTTP/1.1", "hello"));
            assert_eq!((mirrored.field("host"), mirrored.field("x-a")), (Some("front.example"), Some("1")));
        }
    }
}

#[tokio::test]
async fn failover_never_sends_a_request_twice() {
    let (second, mut requests) = recording("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    // The first member reads the request and closes: it may have processed it.
    let balancer = Balancer::new([Upstream::new(closing("").await), Upstream::new(second)]);
    let addr = front(Router::new().layer(ReverseProxyLayer::with_upstream(balancer))).await;
    let post = "POST /x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(ask(addr, post).await.status(), 502);
    assert!(requests.try_recv().is_err());
    // All members are down: the failure is that of the last one.
    let down = Balancer::new([Upstream::new(refusing().await), Upstream::new(refusing().await)]);
    let addr = front(Router::new().layer(ReverseProxyLayer::with_upstream(down))).await;
    assert_eq!(ask(addr, post).await.status(), 502);
}
