//! The attempts of a request, over an upstream in memory.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum_core::{BoxError, body::Body};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::time::{Instant, advance, sleep, timeout};
use tower::{ServiceExt, limit::ConcurrencyLimit, service_fn};
use tower_service::Service;

use super::{Hedge, Retry, RetryPolicy};
use crate::{
    error::{Error, ErrorKind, MayBeProcessed},
    tried::{MemberId, NoneLeft, SetId, Tried},
};

const PATIENCE: Duration = Duration::from_secs(60);
const KIB: usize = 1024;

/// What the upstream does with an attempt.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Reads the body, and responds.
    Respond(u16),
    /// Responds as a gRPC server does that has no capacity.
    RespondUnavailable,
    /// Responds at once, and drops the unread body after a time, as the task of an upload does.
    RespondEarly(u16, Duration),
    /// Reads at least this much of the body, and closes the connection.
    Cut(usize),
    /// Responds after some milliseconds.
    RespondAfter(u16, u64),
    /// Closes the connection after some milliseconds.
    CutAfter(u64),
    /// Closes the connection because of a body that fails.
    CutByBody,
    /// Isn't reached.
    Refuse,
    /// Isn't reached, and has taken a piece of the body, which it puts back.
    RefuseLate,
    /// Isn't reached by a second attempt of the client, whose first one was sent.
    RefuseAfterSending,
    /// Reads at least this much of the body, and doesn't respond.
    Hang(usize),
    /// Is the last member of a balancer that hasn't been tried, and does what follows.
    Exhaust,
    /// Fails with the error of another crate.
    Fail,
    /// Has left the balancer.
    Leave,
    /// Isn't in the balancer, which has no member.
    NoMember,
}

/// An upstream that takes one step after the other, and records what reaches it.
struct Script {
    steps: Arc<Mutex<VecDeque<Step>>>,
    seen: Arc<Mutex<Vec<Attempt>>>,
    is_ready: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Attempt {
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    is_complete: bool,
    fields: HeaderMap,
}

/// A clone isn't ready, as with tower's services.
impl Clone for Script {
    fn clone(&self) -> Self {
        Self { steps: self.steps.clone(), seen: self.seen.clone(), is_ready: false }
    }
}

impl Script {
    fn new<const N: usize>(steps: [Step; N]) -> Self {
        Self { steps: Arc::new(Mutex::new(steps.into())), seen: Arc::default(), is_ready: false }
    }

    fn attempts(&self) -> Vec<Attempt> {
        self.seen.lock().unwrap().clone()
    }

    async fn answer(self, at: usize, mut step: Step, mut request: Request<Body>) -> Result<Response<Body>, BoxError> {
        if matches!(step, Step::Exhaust) {
            let (tried, set) = (Tried::of(request.extensions()).expect("the list of members"), SetId::unique());
            tried.push(set, MemberId::unique());
            tried.set_exhausted(set, true);
            step = self.steps.lock().unwrap().pop_front().expect("what follows");
        }
        // A layer on the upstream side of its own.
        request.headers_mut().append("x-layer", HeaderValue::from_static("1"));
        let connect = || Error::new(ErrorKind::Connect);
        match step {
            Step::Refuse => return Err(connect().with_unsent(request).into()),
            Step::RefuseLate => {
                let (parts, mut body) = request.into_parts();
                let piece = body.frame().await.expect("a piece").expect("a piece");
                let body = Body::new(Frames([piece].into_iter().map(Ok).collect(), body));
                return Err(connect().with_unsent(Request::from_parts(parts, body)).into());
            }
            Step::RefuseAfterSending => {
                request.extensions_mut().insert(MayBeProcessed);
                return Err(connect().with_unsent(request).into());
            }
            Step::Fail => return Err("another crate".into()),
            Step::Leave => return Err(NoneLeft.into()),
            Step::NoMember => return Err(connect().into()),
            _ => {}
        }
        let most = match step {
            Step::Cut(most) | Step::Hang(most) => most,
            Step::RespondEarly(..) => 0,
            _ => usize::MAX,
        };
        let mut body = request.into_body();
        match (self.read(at, &mut body, most).await, step) {
            (Err(_), Step::CutByBody) => return Err(Error::new(ErrorKind::ConnectionClosed).into()),
            (outcome, _) => outcome?,
        }
        match step {
            Step::Respond(status) => Ok(respond(status, at)),
            Step::RespondAfter(status, millis) => {
                sleep(Duration::from_millis(millis)).await;
                Ok(respond(status, at))
            }
            Step::CutAfter(millis) => {
                sleep(Duration::from_millis(millis)).await;
                Err(Error::new(ErrorKind::ConnectionClosed).into())
            }
            Step::RespondUnavailable => {
                let mut response = respond(200, at);
                response.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
                Ok(response)
            }
            Step::RespondEarly(status, after) => {
                tokio::spawn(async move {
                    sleep(after).await;
                    drop(body);
                });
                Ok(respond(status, at))
            }
            Step::Cut(_) => Err(Error::new(ErrorKind::ConnectionClosed).into()),
            _ => pending().await,
        }
    }

    async fn read(&self, at: usize, body: &mut Body, most: usize) -> Result<(), BoxError> {
        let mut read = 0;
        while read < most {
            let Some(frame) = body.frame().await else {
                self.seen.lock().unwrap()[at].is_complete = true;
                return Ok(());
            };
            let mut seen = self.seen.lock().unwrap();
            match frame?.into_data() {
                Ok(data) => {
                    read += data.len();
                    seen[at].body.extend(data);
                }
                Err(frame) => seen[at].trailers = frame.into_trailers().ok(),
            }
        }
        Ok(())
    }
}

fn respond(status: u16, at: usize) -> Response<Body> {
    Response::builder().status(status).body(Body::from(format!("answer {at}"))).unwrap()
}

impl Service<Request<Body>> for Script {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called without being ready");
        let step = self.steps.lock().unwrap().pop_front().expect("an attempt more than there are steps");
        let mut seen = self.seen.lock().unwrap();
        seen.push(Attempt { fields: request.headers().clone(), ..Attempt::default() });
        Box::pin(self.clone().answer(seen.len() - 1, step, request))
    }
}

/// A body of these frames, and the rest.
struct Frames(VecDeque<Result<Frame<Bytes>, BoxError>>, Body);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.0.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.1).poll_frame(cx).map_err(Into::into),
        }
    }
}

fn data(text: &'static str) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([("x-checksum".parse().unwrap(), HeaderValue::from_static("7"))])
}

/// A request with a body in two frames and trailers.
fn with_body(method: Method) -> Request<Body> {
    let frames = [data("hel"), data("lo"), Ok(Frame::trailers(trailers()))];
    request(method, Body::new(Frames(frames.into_iter().collect(), Body::empty())))
}

fn sized(method: Method, size: usize) -> Request<Body> {
    request(method, Body::new(Frames([Ok(Frame::data(vec![b'x'; size].into()))].into(), Body::empty())))
}

fn bare(method: Method) -> Request<Body> {
    request(method, Body::empty())
}

fn request(method: Method, body: Body) -> Request<Body> {
    Request::builder().method(method).uri("/x").header("host", "front.example").body(body).unwrap()
}

/// Sends a request, and returns the status and the text of the response.
async fn send(policy: RetryPolicy, script: &Script, request: Request<Body>) -> Result<(u16, String), BoxError> {
    let response = timeout(PATIENCE, Retry::new(script.clone(), policy).oneshot(request)).await.expect("an end")?;
    let status = response.status().as_u16();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    Ok((status, String::from_utf8(text.to_vec()).unwrap()))
}

/// Sends a request, and returns the status or the kind of the failure, and the number of attempts.
async fn outcome<const N: usize>(
    policy: RetryPolicy,
    steps: [Step; N],
    request: Request<Body>,
) -> (Result<u16, ErrorKind>, usize) {
    let script = Script::new(steps);
    let outcome = send(policy, &script, request).await;
    let outcome = outcome.map(|(status, _)| status).map_err(|error| Error::find(&error).expect("ours").kind());
    (outcome, script.attempts().len())
}

#[tokio::test(start_paused = true)]
async fn an_unsent_request_is_sent_again_with_any_method_and_any_body_and_without_a_pause() {
    let began = Instant::now();
    for policy in [RetryPolicy::unsent(), RetryPolicy::idempotent(), RetryPolicy::default()] {
        for method in [Method::POST, Method::PUT, Method::CONNECT] {
            for step in [Step::Refuse, Step::RefuseLate] {
                let script = Script::new([step, step, Step::Respond(201)]);
                let mut request = with_body(method.clone());
                request.headers_mut().insert("upgrade", HeaderValue::from_static("docker"));
                let sent = send(policy.clone(), &script, request).await.unwrap();
                assert_eq!(sent, (201, "answer 2".into()));
                let attempts = script.attempts();
                assert_eq!((&*attempts[2].body, &attempts[2].trailers), (&b"hello"[..], &Some(trailers())));
                assert!(attempts[2].is_complete);
            }
        }
        let script = Script::new([Step::RefuseLate, Step::Respond(201)]);
        send(policy, &script, sized(Method::POST, 1 << 20)).await.unwrap();
        assert_eq!(script.attempts()[1].body.len(), 1 << 20);
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn without_retries_the_first_failure_is_the_clients() {
    let script = Script::new([Step::Refuse]);
    let failure = send(RetryPolicy::none(), &script, bare(Method::GET)).await.unwrap_err();
    // An outer service may send it elsewhere.
    assert!(Error::find(&failure).unwrap().clone().take_request().is_some());
    assert_eq!(outcome(RetryPolicy::none(), [Step::Respond(503)], bare(Method::GET)).await, (Ok(503), 1));
    assert_eq!(outcome(RetryPolicy::idempotent().attempts(0), [Step::Respond(503)], bare(Method::GET)).await.1, 1);
}

#[tokio::test(start_paused = true)]
async fn the_attempts_end() {
    let (failed, get) = (Err(ErrorKind::Connect), || bare(Method::GET));
    assert_eq!(outcome(RetryPolicy::unsent(), [Step::Refuse; 3], get()).await, (failed, 3));
    assert_eq!(outcome(RetryPolicy::unsent().attempts(2), [Step::Refuse; 2], get()).await, (failed, 2));
    let policy = RetryPolicy::idempotent;
    assert_eq!(outcome(policy(), [Step::Refuse, Step::Cut(0), Step::Refuse], get()).await, (failed, 3));
    // The last response passes.
    let script = Script::new([Step::Respond(503), Step::Respond(502), Step::Respond(504)]);
    assert_eq!(send(policy(), &script, get()).await.unwrap(), (504, "answer 2".into()));
    assert_eq!(outcome(policy(), [Step::Respond(503), Step::Cut(0), Step::Respond(200)], get()).await, (Ok(200), 3));
    let failed = Err(ErrorKind::ConnectionClosed);
    assert_eq!(outcome(policy().attempts(2), [Step::Respond(503), Step::Cut(0)], get()).await, (failed, 2));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_have_been_processed_is_sent_again_if_it_is_idempotent() {
    let failures = [
        (Step::Cut(0), Err(ErrorKind::ConnectionClosed)),
        (Step::Cut(usize::MAX), Err(ErrorKind::ConnectionClosed)),
        (Step::RefuseAfterSending, Err(ErrorKind::Connect)),
        (Step::Respond(502), Ok(502)),
        (Step::Respond(503), Ok(503)),
        (Step::Respond(504), Ok(504)),
        (Step::RespondUnavailable, Ok(200)),
    ];
    let idempotent = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"];
    for (step, passed) in failures {
        for method in idempotent.into_iter().chain(["POST", "PATCH"]) {
            let case = format!("{method} {step:?}");
            let request = || with_body(method.parse().unwrap());
            assert_eq!(outcome(RetryPolicy::unsent(), [step], request()).await, (passed, 1), "{case}");
            let expected = if idempotent.contains(&method) { (Ok(201), 2) } else { (passed, 1) };
            let steps = [step, Step::Respond(201)];
            assert_eq!(outcome(RetryPolicy::idempotent(), steps, request()).await, expected, "{case}");
        }
        let mut keyed = with_body(Method::POST);
        keyed.headers_mut().insert("idempotency-key", HeaderValue::from_static("8e03978e"));
        let policy = RetryPolicy::idempotent().idempotency_key(true);
        assert_eq!(outcome(policy, [step, Step::Respond(201)], keyed).await, (Ok(201), 2), "{step:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_responses_and_failures_pass() {
    for status in [200, 304, 404, 429, 500, 501, 505] {
        let steps = [Step::Respond(status)];
        assert_eq!(outcome(RetryPolicy::idempotent(), steps, bare(Method::GET)).await, (Ok(status), 1));
    }
    let script = Script::new([Step::Fail]);
    let failure = send(RetryPolicy::idempotent(), &script, bare(Method::GET)).await.unwrap_err();
    assert_eq!(failure.to_string(), "another crate");
    // An upgrade may have opened a tunnel.
    let mut upgrade = bare(Method::GET);
    upgrade.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    assert_eq!(outcome(RetryPolicy::idempotent(), [Step::Respond(503)], upgrade).await, (Ok(503), 1));
}

#[tokio::test(start_paused = true)]
async fn a_body_is_replayed_as_far_as_it_was_read_and_then_read_on() {
    for (first, second) in [(0, 0), (0, 3), (1, 0), (1, 5), (3, 4), (4, 4), (5, 5), (9, 1), (9, 9)] {
        let policy = RetryPolicy::idempotent();
        let script = Script::new([Step::Cut(first), Step::Cut(second), Step::Respond(200)]);
        send(policy.clone(), &script, with_body(Method::PUT)).await.unwrap();
        let attempts = script.attempts();
        assert!(b"hello".starts_with(&attempts[0].body) && b"hello".starts_with(&attempts[1].body));
        let last = &attempts[2];
        assert_eq!((&*last.body, last.is_complete), (&b"hello"[..], true), "{first} {second}");
        assert_eq!(last.trailers, Some(trailers()), "{first} {second}");
        assert_eq!(policy.kept(), 0);
    }
}

/// The copy of the head is as the layer got it. Without a copy, a layer inside sees what it has left.
#[tokio::test(start_paused = true)]
async fn an_inner_layer_sees_a_copy_if_there_is_one() {
    let layered = |script: &Script| {
        let counts = script.attempts().into_iter().map(|attempt| attempt.fields.get_all("x-layer").iter().count());
        counts.collect::<Vec<_>>()
    };
    for (policy, method, expected) in [
        (RetryPolicy::idempotent(), Method::PUT, [0, 0, 0]),
        (RetryPolicy::idempotent(), Method::POST, [0, 1, 2]),
        (RetryPolicy::unsent(), Method::PUT, [0, 1, 2]),
    ] {
        let script = Script::new([Step::Refuse, Step::Refuse, Step::Respond(200)]);
        send(policy, &script, with_body(method)).await.unwrap();
        assert_eq!(layered(&script), expected);
    }
    let script = Script::new([Step::Cut(1), Step::RefuseLate, Step::Respond(200)]);
    send(RetryPolicy::idempotent(), &script, with_body(Method::PUT)).await.unwrap();
    assert_eq!((layered(&script), &*script.attempts()[2].body), (vec![0, 0, 0], &b"hello"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_limit_is_sent_once() {
    let (closed, ok) = (Err(ErrorKind::ConnectionClosed), Step::Respond(200));
    let policy = RetryPolicy::idempotent;
    let put = |size| sized(Method::PUT, size);
    assert_eq!(outcome(policy(), [Step::Cut(1), ok], put(64 * KIB)).await, (Ok(200), 2));
    assert_eq!(outcome(policy(), [Step::Cut(1), ok], put(64 * KIB + 1)).await, (closed, 1));
    assert_eq!(outcome(policy().replay_limit(4), [Step::Cut(1), ok], put(4)).await, (Ok(200), 2));
    assert_eq!(outcome(policy().replay_limit(4), [Step::Cut(1), ok], put(5)).await, (closed, 1));
    assert_eq!(outcome(policy().replay_memory(4), [Step::Cut(1), ok], put(5)).await, (closed, 1));
    // Nothing of it was read.
    assert_eq!(outcome(policy().replay_limit(0), [Step::Cut(0), ok], put(1 << 20)).await, (Ok(200), 2));
    // Nothing was sent.
    assert_eq!(outcome(policy().replay_limit(0), [Step::RefuseLate, ok], put(1 << 20)).await, (Ok(200), 2));
    // The trailers count.
    assert_eq!(outcome(policy().replay_limit(15), [Step::Cut(9), ok], with_body(Method::PUT)).await, (closed, 1));
    assert_eq!(outcome(policy().replay_limit(16), [Step::Cut(9), ok], with_body(Method::PUT)).await, (Ok(200), 2));
    // The response of a body that is too large isn't dropped.
    let script = Script::new([Step::Respond(503)]);
    assert_eq!(send(policy(), &script, put(65 * KIB)).await.unwrap(), (503, "answer 0".into()));
}

/// Polls a future once.
fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_bodies_is_counted_and_freed() {
    let policy = RetryPolicy::idempotent().replay_memory(100);
    let service = || Retry::new(Script::new([Step::Hang(1), Step::Respond(200)]), policy.clone());
    let mut first = Box::pin(service().oneshot(sized(Method::PUT, 60)));
    assert!(poll(first.as_mut()).is_pending());
    assert_eq!(policy.kept(), 60);
    let mut second = Box::pin(service().oneshot(sized(Method::PUT, 60)));
    assert!(poll(second.as_mut()).is_pending());
    assert_eq!(policy.kept(), 60, "the second doesn't fit");
    let mut third = Box::pin(service().oneshot(sized(Method::PUT, 40)));
    assert!(poll(third.as_mut()).is_pending());
    assert_eq!(policy.kept(), 100);
    drop((first, second));
    assert_eq!(policy.kept(), 40);
    drop(third);
    assert_eq!(policy.kept(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_fails_is_not_sent_again() {
    for frames in [vec![data("hel"), Err("malformed".into())], vec![Err("malformed".into())]] {
        let body = Body::new(Frames(frames.into(), Body::empty()));
        let script = Script::new([Step::Respond(200)]);
        let failure = send(RetryPolicy::idempotent(), &script, request(Method::PUT, body)).await.unwrap_err();
        assert_eq!((failure.to_string(), script.attempts().len()), ("malformed".into(), 1));
    }
    // The backend closes because of it.
    let body = Body::new(Frames([data("hel"), Err("malformed".into())].into(), Body::empty()));
    let closed = Err(ErrorKind::ConnectionClosed);
    assert_eq!(outcome(RetryPolicy::idempotent(), [Step::CutByBody], request(Method::PUT, body)).await, (closed, 1));
    // It closes before.
    let body = Body::new(Frames([data("hel"), data("lo"), Err("malformed".into())].into(), Body::empty()));
    let script = Script::new([Step::Cut(5), Step::Respond(200)]);
    assert!(send(RetryPolicy::idempotent(), &script, request(Method::PUT, body)).await.is_err());
    assert_eq!(script.attempts()[1].body, b"hello");
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_for_a_random_time() {
    let mut pauses = Vec::new();
    for seed in 0..50 {
        let policy = RetryPolicy::idempotent().seed(seed);
        let began = Instant::now();
        assert_eq!(outcome(policy, [Step::Cut(0), Step::Respond(200)], bare(Method::GET)).await, (Ok(200), 2));
        pauses.push(began.elapsed());
    }
    // The timer has milliseconds.
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(26)), "{pauses:?}");
    let (short, long) = (Duration::from_millis(8), Duration::from_millis(17));
    assert!(pauses.iter().any(|pause| *pause < short) && pauses.iter().any(|pause| *pause > long), "{pauses:?}");
    // The second pause is up to twice as long.
    let mut pauses = Vec::new();
    for seed in 0..50 {
        let (policy, began) = (RetryPolicy::idempotent().seed(seed), Instant::now());
        let steps = [Step::Cut(0), Step::Respond(503), Step::Respond(200)];
        assert_eq!(outcome(policy, steps, bare(Method::GET)).await, (Ok(200), 3));
        pauses.push(began.elapsed());
    }
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(77)), "{pauses:?}");
    assert!(pauses.iter().any(|pause| *pause > Duration::from_millis(55)), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn retries_end_with_the_budget_and_unsent_requests_cost_none_of_it() {
    let policy = RetryPolicy::idempotent().attempts(2).budget_percent(0).budget_floor(2);
    let get = |steps: [Step; 2]| outcome(policy.clone(), steps, bare(Method::GET));
    for _ in 0..5 {
        assert_eq!(get([Step::Refuse, Step::Respond(200)]).await, (Ok(200), 2));
    }
    for expected in [2, 2, 1, 1] {
        assert_eq!(get([Step::Respond(503), Step::Respond(503)]).await.1, expected);
    }
    assert_eq!(get([Step::Refuse, Step::Respond(200)]).await, (Ok(200), 2));
    advance(Duration::from_secs(11)).await;
    assert_eq!(get([Step::Respond(503), Step::Respond(200)]).await, (Ok(200), 2));
    // A share of all requests, those with other methods too.
    let policy = RetryPolicy::idempotent().budget_percent(10).budget_floor(0);
    for _ in 0..19 {
        assert_eq!(outcome(policy.clone(), [Step::Respond(503)], bare(Method::POST)).await, (Ok(503), 1));
    }
    for expected in [2, 2, 1] {
        let steps = [Step::Respond(503), Step::Respond(200)];
        assert_eq!(outcome(policy.clone(), steps, bare(Method::GET)).await.1, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_outcome_stands_if_the_balancer_has_no_other_member() {
    use Step::{Cut, Exhaust, Leave, Refuse, Respond};
    let (policy, get) = (RetryPolicy::idempotent, || bare(Method::GET));
    let script = Script::new([Respond(502), Exhaust, Respond(503), Respond(200)]);
    assert_eq!(send(policy(), &script, get()).await.unwrap(), (503, "answer 1".into()));
    let closed = Err(ErrorKind::ConnectionClosed);
    assert_eq!(outcome(policy(), [Exhaust, Cut(0), Respond(200)], get()).await, (closed, 1));
    let connect = Err(ErrorKind::Connect);
    assert_eq!(outcome(policy(), [Exhaust, Refuse, Respond(200)], get()).await, (connect, 1));
    // There is none at all, and no request in the error.
    assert_eq!(outcome(policy(), [Step::NoMember], get()).await, (connect, 1));
    // A member that leaves between two attempts.
    assert_eq!(outcome(policy(), [Refuse, Leave], get()).await, (connect, 2));
    assert_eq!(outcome(policy(), [Cut(0), Leave], get()).await, (closed, 2));
    assert_eq!(outcome(policy().attempts(2), [Cut(0), Leave], get()).await, (closed, 2));
    let script = Script::new([Respond(504), Leave]);
    let failure = send(policy(), &script, get()).await.unwrap_err();
    assert_eq!(Error::find(&failure).unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
}

/// With the default policy, a balancer adds the list to the request that comes back.
#[tokio::test(start_paused = true)]
async fn an_unsent_request_is_not_sent_again_if_the_balancer_has_no_other_member() {
    for (is_exhausted, expected) in [(true, 1), (false, 3)] {
        let calls = Arc::new(AtomicUsize::new(0));
        let called = calls.clone();
        let balancer = tower::service_fn(move |request: Request<Body>| {
            called.fetch_add(1, Ordering::Relaxed);
            let failure: BoxError = Error::new(ErrorKind::Connect).with_unsent(request).into();
            let tried = Error::find(&failure)
                .unwrap()
                .with_unsent_request(|request| request.extensions_mut().get_or_insert_default::<Tried>().clone());
            let tried = tried.unwrap();
            let set = SetId::unique();
            tried.push(set, MemberId::unique());
            tried.set_exhausted(set, is_exhausted);
            std::future::ready(Err::<Response<Body>, _>(failure))
        });
        let failure = Retry::new(balancer, RetryPolicy::unsent()).oneshot(bare(Method::POST)).await.unwrap_err();
        assert_eq!(Error::find(&failure).unwrap().kind(), ErrorKind::Connect);
        assert_eq!(calls.load(Ordering::Relaxed), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_before_the_end_of_the_upload_is_followed_by_a_retry_when_the_body_is_back() {
    let script = Script::new([Step::RespondEarly(503, Duration::from_millis(900)), Step::Respond(200)]);
    let began = Instant::now();
    send(RetryPolicy::idempotent(), &script, with_body(Method::PUT)).await.unwrap();
    assert_eq!(script.attempts()[1].body, b"hello");
    assert!(began.elapsed() >= Duration::from_millis(900));
    // A task that keeps the body.
    let script = Script::new([Step::RespondEarly(503, PATIENCE / 2)]);
    let failure = send(RetryPolicy::idempotent(), &script, with_body(Method::PUT)).await.unwrap_err();
    assert_eq!(Error::find(&failure).unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(began.elapsed() < PATIENCE / 2);
}

fn hedged() -> RetryPolicy {
    RetryPolicy::idempotent().attempts(2).hedge(Hedge::after(Duration::from_millis(300)))
}

#[tokio::test(start_paused = true)]
async fn the_first_good_response_of_a_request_and_its_hedge_passes() {
    use Step::{CutAfter, Hang, Refuse, Respond, RespondAfter};
    for (first, second, expected, millis) in [
        (Hang(0), Respond(200), (200, "answer 1"), 300),
        (Hang(0), RespondAfter(404, 100), (404, "answer 1"), 400),
        (RespondAfter(200, 400), Hang(0), (200, "answer 0"), 400),
        // The other one fails.
        (RespondAfter(200, 500), Respond(503), (200, "answer 0"), 500),
        (RespondAfter(200, 500), Refuse, (200, "answer 0"), 500),
        (CutAfter(400), RespondAfter(200, 500), (200, "answer 1"), 800),
        (RespondAfter(503, 400), RespondAfter(200, 500), (200, "answer 1"), 800),
        // Both do.
        (RespondAfter(503, 400), RespondAfter(502, 500), (502, "answer 1"), 800),
        (RespondAfter(503, 400), RespondAfter(502, 50), (503, "answer 0"), 400),
    ] {
        let (script, began) = (Script::new([first, second]), Instant::now());
        let (status, text) = send(hedged(), &script, bare(Method::GET)).await.unwrap();
        assert_eq!((status, &*text), expected, "{first:?} {second:?}");
        assert_eq!(began.elapsed().as_millis(), millis, "{first:?} {second:?}");
        assert_eq!(script.attempts().len(), 2);
        assert_eq!(Arc::strong_count(&script.seen), 1, "the other attempt is cancelled: {first:?} {second:?}");
    }
    // A hedge counts as an attempt, and there may be a further one.
    let script = Script::new([RespondAfter(503, 400), RespondAfter(502, 500), Respond(200)]);
    assert_eq!(send(hedged().attempts(3), &script, bare(Method::GET)).await.unwrap(), (200, "answer 2".into()));
}

#[tokio::test(start_paused = true)]
async fn a_request_is_not_hedged_without_need_or_right() {
    let slow = Step::RespondAfter(200, 1_000);
    let mut upgrade = bare(Method::GET);
    upgrade.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    for (policy, request) in [
        (hedged(), bare(Method::POST)),
        (hedged(), with_body(Method::PUT)),
        (hedged(), upgrade),
        (hedged().budget_floor(0), bare(Method::GET)),
        (hedged().attempts(1), bare(Method::GET)),
        (RetryPolicy::unsent().hedge(Hedge::after(Duration::ZERO)), bare(Method::GET)),
        (RetryPolicy::idempotent(), bare(Method::GET)),
        // Nothing is known of the usual time.
        (RetryPolicy::idempotent().hedge(Hedge::at_p95()), bare(Method::GET)),
    ] {
        assert_eq!(outcome(policy, [slow], request).await, (Ok(200), 1));
    }
    assert_eq!(outcome(hedged(), [Step::RespondAfter(200, 299)], bare(Method::GET)).await, (Ok(200), 1));
    // The balancer has no other member.
    let script = Script::new([Step::Exhaust, slow]);
    send(hedged(), &script, bare(Method::GET)).await.unwrap();
    assert_eq!(script.attempts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_the_budget_refuses_holds_no_permit_of_a_layer() {
    let hangs = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
    let retry = Retry::new(ConcurrencyLimit::new(hangs, 2), hedged().budget_floor(0));
    let first = tokio::spawn(retry.clone().oneshot(bare(Method::GET)));
    sleep(Duration::from_secs(1)).await;
    assert!(timeout(PATIENCE, retry.clone().ready_oneshot()).await.is_ok(), "there are two permits");
    first.abort();
}

#[tokio::test(start_paused = true)]
async fn a_request_is_hedged_when_it_takes_longer_than_most() {
    let policy = RetryPolicy::idempotent().hedge(Hedge::at_p95());
    for _ in 0..100 {
        let steps = [Step::RespondAfter(200, 20)];
        assert_eq!(outcome(policy.clone(), steps, bare(Method::GET)).await, (Ok(200), 1));
    }
    let began = Instant::now();
    assert_eq!(outcome(policy, [Step::Hang(0), Step::Respond(200)], bare(Method::GET)).await, (Ok(200), 2));
    assert!((20..=27).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_dropped_at_any_point_leaves_nothing() {
    let steps = [Step::Cut(1), Step::RefuseLate, Step::Respond(200)];
    let mut completed = false;
    for polls in 0..40 {
        let (policy, script) = (RetryPolicy::idempotent(), Script::new(steps));
        let (frames, dropped) = (Trickle::new(), Arc::new(()));
        let mut request = request(Method::PUT, Body::new(frames));
        request.extensions_mut().insert(dropped.clone());
        let mut future = Box::pin(Retry::new(script.clone(), policy.clone()).oneshot(request));
        for _ in 0..polls {
            if let Poll::Ready(response) = poll(future.as_mut()) {
                assert_eq!(response.unwrap().status(), 200);
                completed = true;
                break;
            }
            advance(Duration::from_millis(5)).await;
        }
        let attempts = script.attempts().len();
        drop(future);
        advance(Duration::from_secs(5)).await;
        assert_eq!((policy.kept(), Arc::strong_count(&dropped)), (0, 1), "after {polls} polls");
        assert_eq!(script.attempts().len(), attempts, "there is no further attempt");
    }
    assert!(completed);
}

/// A body that is pending before each frame.
struct Trickle {
    frames: VecDeque<Option<&'static str>>,
}

impl Trickle {
    fn new() -> Self {
        Self { frames: [None, Some("he"), None, None, Some("llo"), None].into() }
    }
}

impl http_body::Body for Trickle {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.frames.pop_front() {
            None => Poll::Ready(None),
            Some(Some(text)) => Poll::Ready(Some(Ok(Frame::data(text.into())))),
            Some(None) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}
