//! gRPC over three servers, with tonic on both sides: calls are spread, not connections, and streams count to their
//! end.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, http};
use bytes::{Buf, BufMut};
use futures_util::stream::{Stream, StreamExt, iter, once};
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    client, codec,
    server::Grpc,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tower::{Service, service_fn};
use tower_reverse_proxy::{Backends, RetryPolicy, ReverseProxyLayer, balance::MemberStatus};

use crate::support::{front, refusing, within};

const NAME: &str = "/test.Test/Name";
const WATCH: &str = "/test.Test/Watch";

/// Messages that are text.
#[derive(Clone, Copy, Debug, Default)]
struct Text;

impl codec::Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl codec::Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, buffer: &mut codec::EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(text.as_bytes());
        Ok(())
    }
}

impl codec::Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, buffer: &mut codec::DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        Ok(Some(String::from_utf8(bytes.to_vec()).unwrap()))
    }
}

/// What a server does with a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    /// Responds with its name. A stream ends when the server's semaphore has a permit.
    Responds,
    /// Fails with `UNAVAILABLE` and without a message: the response is trailers-only.
    IsUnavailable,
    /// Sends its name, and fails with `UNAVAILABLE`.
    BecomesUnavailable,
}

#[derive(Clone)]
struct Test {
    name: &'static str,
    mood: Arc<Mutex<Mood>>,
    calls: Arc<AtomicUsize>,
    ends: Arc<Semaphore>,
    origin: String,
}

impl Test {
    async fn start(name: &'static str, mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let mood = Arc::new(Mutex::new(mood));
        let this = Self { name, mood, calls: Arc::default(), ends: Arc::new(Semaphore::new(0)), origin };
        let server = Server::builder().serve_with_incoming(this.clone(), TcpIncoming::from(listener));
        tokio::spawn(async move { server.await.unwrap() });
        this
    }

    async fn three(mood: Mood) -> [Self; 3] {
        [Self::start("a", mood).await, Self::start("b", mood).await, Self::start("c", mood).await]
    }

    fn messages(self) -> Result<Messages, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let (mood, name) = (*self.mood.lock().unwrap(), Ok(self.name.to_owned()));
        match mood {
            Mood::Responds => {
                let end = once(async move { self.ends.acquire().await.unwrap().forget() }).filter_map(async |()| None);
                Ok(Box::pin(iter([name]).chain(end)))
            }
            Mood::IsUnavailable => Err(Status::unavailable("no capacity")),
            Mood::BecomesUnavailable => Ok(Box::pin(iter([name, Err(Status::unavailable("shutting down"))]))),
        }
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

impl Service<http::Request<Body>> for Test {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let mut grpc = Grpc::new(Text);
            let unary = this.clone();
            Ok(match &*path {
                NAME => {
                    let name = service_fn(move |_: Request<String>| {
                        let messages = unary.clone().messages();
                        async { Ok(Response::new(messages?.next().await.unwrap()?)) }
                    });
                    grpc.unary(name, request).await
                }
                WATCH => {
                    let watch = service_fn(move |_: Request<String>| {
                        let messages = this.clone().messages();
                        async { Ok(Response::new(messages?)) }
                    });
                    grpc.server_streaming(watch, request).await
                }
                _ => panic!("unknown method {path}"),
            })
        })
    }
}

/// One connection to the front.
#[derive(Clone)]
struct Client(client::Grpc<Channel>);

impl Client {
    async fn of(backends: &Backends, policy: RetryPolicy) -> Self {
        let proxy = ReverseProxyLayer::balanced(backends).retry(policy).header_timeout(None).body_idle_timeout(None);
        let addr = front(Router::new().fallback_service(proxy.into_service())).await;
        let channel = within(Endpoint::from_shared(format!("http://{addr}")).unwrap().connect()).await.unwrap();
        Self(client::Grpc::new(channel))
    }

    /// Calls with a key, for policies that send calls again which have one.
    fn request() -> Request<String> {
        let mut request = Request::new("?".to_owned());
        request.metadata_mut().insert("idempotency-key", "1".parse().unwrap());
        request
    }

    async fn name(&self, request: Request<String>) -> Result<String, Status> {
        let mut grpc = self.0.clone();
        within(grpc.ready()).await.unwrap();
        Ok(within(grpc.unary(request, NAME.parse().unwrap(), Text)).await?.into_inner())
    }

    /// Begins a stream, and returns its first message.
    async fn watch(&self) -> Result<(String, Streaming<String>), Status> {
        let mut grpc = self.0.clone();
        within(grpc.ready()).await.unwrap();
        let response = within(grpc.server_streaming(Self::request(), WATCH.parse().unwrap(), Text)).await?;
        let mut stream = response.into_inner();
        Ok((within(stream.message()).await?.unwrap(), stream))
    }
}

fn set<const N: usize>(origins: [String; N]) -> Backends {
    Backends::builder(origins).client(|client| client.http2(true)).build().unwrap()
}

async fn in_flight_becomes(backends: &Backends, expected: [u32; 3]) {
    let becomes = async {
        while backends.status().iter().map(MemberStatus::in_flight).ne(expected) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    within(becomes).await;
}

#[tokio::test]
async fn the_streams_of_one_connection_are_spread_and_count_to_their_end() {
    let servers = Test::three(Mood::Responds).await;
    let backends = set(servers.each_ref().map(|server| server.origin.clone()));
    let client = Client::of(&backends, RetryPolicy::unsent()).await;
    let mut streams = Vec::new();
    for _ in 0..30 {
        streams.push(client.watch().await.unwrap());
        // A call between two streams changes nothing.
        client.name(Request::new("?".to_owned())).await.unwrap();
    }
    in_flight_becomes(&backends, [10, 10, 10]).await;
    // Those of one server end, which gets the next ones.
    servers[1].ends.add_permits(10);
    let (ended, mut streams): (Vec<_>, Vec<_>) = streams.into_iter().partition(|(name, _)| name == "b");
    assert_eq!(ended.len(), 10);
    for (_, mut stream) in ended {
        assert_eq!(within(stream.message()).await.unwrap(), None);
        assert!(within(stream.trailers()).await.unwrap().is_some());
    }
    in_flight_becomes(&backends, [10, 0, 10]).await;
    for _ in 0..5 {
        let (name, stream) = client.watch().await.unwrap();
        assert_eq!(name, "b");
        streams.push((name, stream));
    }
    // The client cancels the others.
    drop(streams);
    in_flight_becomes(&backends, [0, 0, 0]).await;
    assert_eq!(backends.status().iter().map(MemberStatus::faults).sum::<u64>(), 0);
}

#[tokio::test]
async fn calls_fail_over_from_servers_that_cannot_be_reached() {
    let server = Test::start("a", Mood::Responds).await;
    let backends = set([refusing().await, server.origin.clone(), refusing().await]);
    let client = Client::of(&backends, RetryPolicy::unsent()).await;
    for _ in 0..20 {
        assert_eq!(client.name(Request::new("?".to_owned())).await.unwrap(), "a");
        assert_eq!(client.watch().await.unwrap().0, "a");
    }
    assert_eq!(server.calls.load(Ordering::SeqCst), 40);
}

/// The server may have processed it, so that it's sent again only if the client has made it repeatable.
#[tokio::test]
async fn an_unavailable_response_without_a_message_fails_over_by_its_key() {
    let [one, two, three] = Test::three(Mood::IsUnavailable).await;
    *three.mood.lock().unwrap() = Mood::Responds;
    let calls = || [&one, &two, &three].map(|server| server.calls.swap(0, Ordering::SeqCst));
    let origins = || [one.origin.clone(), two.origin.clone(), three.origin.clone()];
    let with_key = RetryPolicy::idempotent().idempotency_key(true);
    for _ in 0..5 {
        // A new set each time, because one learns which servers are unavailable.
        let client = Client::of(&set(origins()), with_key.clone()).await;
        assert_eq!(client.name(Client::request()).await.unwrap(), "c");
        let [a, b, c] = calls();
        assert!(a <= 1 && b <= 1 && c == 1, "{a} {b} {c}");
        let client = Client::of(&set(origins()), with_key.clone()).await;
        assert_eq!(client.watch().await.unwrap().0, "c");
        let [a, b, c] = calls();
        assert!(a <= 1 && b <= 1 && c == 1, "{a} {b} {c}");
    }
    let backends = set([one.origin.clone(), two.origin.clone()]);
    for policy in [RetryPolicy::unsent(), RetryPolicy::idempotent()] {
        let client = Client::of(&backends, policy).await;
        let failure = client.name(Client::request()).await.unwrap_err();
        assert_eq!((failure.code(), failure.message()), (Code::Unavailable, "no capacity"));
        assert_eq!(calls().iter().sum::<usize>(), 1);
    }
    // It counts against the servers.
    assert_eq!(backends.status().iter().map(MemberStatus::faults).sum::<u64>(), 2);
}

#[tokio::test]
async fn a_stream_that_has_begun_never_fails_over() {
    let servers = Test::three(Mood::BecomesUnavailable).await;
    let backends = set(servers.each_ref().map(|server| server.origin.clone()));
    let client = Client::of(&backends, RetryPolicy::idempotent().idempotency_key(true)).await;
    for count in 1..=6 {
        let (name, mut stream) = client.watch().await.unwrap();
        let failure = within(stream.message()).await.unwrap_err();
        assert_eq!((failure.code(), failure.message()), (Code::Unavailable, "shutting down"), "{name}");
        let calls: usize = servers.iter().map(|server| server.calls.load(Ordering::SeqCst)).sum();
        assert_eq!(calls, count);
    }
}
