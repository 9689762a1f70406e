//! The threads, the queue and the caches, with a mechanism that the tests control.

use std::{
    error::Error as _,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        mpsc::{self, Receiver, Sender},
    },
    time::{Duration, Instant},
};

use http::{Request, Response, header::AUTHORIZATION};
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};

use super::{
    Account, Negotiate, USERS,
    gss::Gss,
    mechanism::{Acquired, Context, Failure, Holder, Mechanism, Reason},
    minter::{Forwarded, Initiator, Minted},
    wait::token,
    workers::{NotStarted, Workers},
};
use crate::{
    authorize::AuthorizationLayer,
    error::{Error, ErrorKind},
    identity::RemoteUser,
};

const BOUND: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);

/// A mechanism whose credentials are names. The realm is K.
struct Fake {
    control: Arc<Control>,
    /// Disconnects when the last thread has ended.
    _alive: Sender<()>,
}

struct Control {
    begun: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    calls: Vec<String>,
    /// The names of the calls that don't return begin so.
    stopped: Option<&'static str>,
    elapsed: Duration,
    failing: Option<(&'static str, Reason)>,
    panicking: bool,
    /// Whom the contexts of users speak for, if it's another principal than that of the credential.
    initiator: Option<&'static str>,
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.stop_only("");
    }

    fn stop_only(&self, call: &'static str) {
        self.change(|state| state.stopped = Some(call));
    }

    fn go_on(&self) {
        self.change(|state| state.stopped = None);
    }

    fn pass(&self, time: Duration) {
        self.change(|state| state.elapsed += time);
    }

    fn fail(&self, call: &'static str) {
        self.change(|state| state.failing = Some((call, Reason::Refused)));
    }

    fn recover(&self) {
        self.change(|state| state.failing = None);
    }

    /// Waits until a thread has begun this call.
    fn wait_for(&self, call: &str) {
        let begun = |state: &mut State| !state.calls.iter().any(|other| other == call);
        let (_state, outcome) = self.changed.wait_timeout_while(self.state(), BOUND, begun).unwrap();
        assert!(!outcome.timed_out(), "no {call}");
    }

    fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// Records a call, waits while the mechanism is stopped, and fails if it should.
    fn call(&self, name: &'static str, of: &str) -> Result<(), Failure> {
        self.change(|state| state.calls.push(format!("{name} {of}")));
        let stopped = |state: &mut State| state.stopped.is_some_and(|call| name.starts_with(call));
        let (state, outcome) = self.changed.wait_timeout_while(self.state(), BOUND, stopped).unwrap();
        let (failing, panicking) = (state.failing, state.panicking);
        drop(state);
        assert!(!outcome.timed_out(), "nothing ends the call");
        assert!(!panicking, "a defect of the mechanism");
        match failing {
            Some((call, reason)) if call == name => Err(Failure::new(reason, "the KDC refuses")),
            _ => Ok(()),
        }
    }
}

impl Mechanism for Fake {
    type Cred = String;
    type Context = NoContext;

    fn acquire(&self) -> Result<Acquired<String>, Failure> {
        self.control.call("acquire", "front")?;
        Ok(Acquired { cred: "front".into(), principal: "front@K".into(), lifetime: HOUR })
    }

    fn impersonate(&self, _: &String, user: &str) -> Result<Acquired<String>, Failure> {
        self.control.call("impersonate", user)?;
        Ok(Acquired { cred: user.into(), principal: format!("{user}@K").into(), lifetime: HOUR })
    }

    fn canonical(&self, name: &str) -> Result<Arc<str>, Failure> {
        Ok(format!("{name}@K").into())
    }

    fn name(&self, cred: &String) -> Result<Arc<str>, Failure> {
        Ok(format!("{cred}@K").into())
    }

    fn initiator(&self, cred: &String) -> Result<Arc<str>, Failure> {
        Ok(self.control.state().initiator.map_or_else(|| format!("{cred}@K").into(), Into::into))
    }

    fn initiate(&self, cred: &String, holder: Holder) -> Result<(Vec<u8>, NoContext), Failure> {
        assert_eq!(holder == Holder::Front, cred == "front", "{cred}");
        self.control.call("initiate", cred)?;
        Ok((format!("token of {cred}").into_bytes(), NoContext))
    }

    fn now(&self) -> Instant {
        self.control.begun + self.control.state().elapsed
    }
}

struct NoContext;

impl Context for NoContext {
    fn finish(self, _: &[u8]) -> Result<Arc<str>, Failure> {
        unreachable!("no response in these tests")
    }
}

/// The threads of one mechanism, and its control.
struct Kit {
    workers: Workers<Fake>,
    control: Arc<Control>,
    ended: Receiver<()>,
}

impl Kit {
    fn new() -> Self {
        let (fake, control, ended) = fake();
        Self { workers: Workers::start(fake, &["negotiate"], Some("negotiate-tickets"), None).unwrap(), control, ended }
    }

    fn request(&self, initiator: Initiator<String>) -> impl Future<Output = Result<Minted<NoContext>, Error>> + use<> {
        token(&self.workers, initiator, DEADLINE).unwrap()
    }

    /// Returns the kind of a failure that no wait precedes.
    fn refused_at_once(&self, initiator: Initiator<String>) -> Option<ErrorKind> {
        kind(token(&self.workers, initiator, DEADLINE))
    }

    async fn mint(&self, initiator: Initiator<String>) -> Result<Minted<NoContext>, Error> {
        timeout(BOUND, self.request(initiator)).await.expect("the request hangs")
    }

    /// Returns the principal of the token, or the status and the cause of the error.
    async fn outcome(&self, initiator: Initiator<String>) -> Result<String, (u16, String)> {
        match self.mint(initiator).await {
            Ok(minted) => Ok(minted.principal.to_string()),
            Err(error) => Err((error.status().as_u16(), error.source().map(ToString::to_string).unwrap_or_default())),
        }
    }
}

fn fake() -> (Fake, Arc<Control>, Receiver<()>) {
    let control = Arc::new(Control { begun: Instant::now(), state: Mutex::default(), changed: Condvar::new() });
    let (alive, ended) = mpsc::channel();
    (Fake { control: control.clone(), _alive: alive }, control, ended)
}

fn user(name: &str) -> Initiator<String> {
    Initiator::User(name.into())
}

fn forwarded(name: &str) -> Arc<Forwarded<String>> {
    Arc::new(Forwarded::new(name.into()))
}

fn delegated(credential: &Arc<Forwarded<String>>, meant: Option<&str>) -> Initiator<String> {
    Initiator::Delegated { credential: credential.clone(), meant: meant.map(Into::into) }
}

fn kind<T>(outcome: Result<T, Error>) -> Option<ErrorKind> {
    outcome.err().map(|error| error.kind())
}

#[tokio::test]
async fn more_than_64_requests_do_not_wait_for_a_slow_call() {
    for (passes, waiting) in [(251, 64), (250, 1024)] {
        let kit = Kit::new();
        kit.control.stop();
        let mut requests = vec![kit.request(Initiator::Own)];
        kit.control.wait_for("acquire front");
        kit.control.pass(Duration::from_millis(passes));
        requests.extend((0..waiting).map(|_| kit.request(Initiator::Own)));

        let refused = kit.refused_at_once(Initiator::Own);
        assert_eq!(refused, Some(ErrorKind::CredentialsBusy), "{passes} ms");

        kit.control.go_on();
        for request in requests {
            assert_eq!(kind(timeout(BOUND, request).await.unwrap()), None, "{passes} ms");
        }
        assert_eq!(kind(kit.mint(Initiator::Own).await), None, "{passes} ms");
    }
}

/// The time is paused: it passes because all wait, the threads of the mechanism excepted.
#[tokio::test(start_paused = true)]
async fn a_request_waits_for_its_token_until_the_deadline() {
    let kit = Kit::new();
    kit.control.stop();
    let begun = tokio::time::Instant::now();
    let (first, second) = (kit.request(Initiator::Own), kit.request(Initiator::Own));
    let error = first.await.err().unwrap();
    assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::CredentialsTimeout, 504));
    assert_eq!(kind(second.await), Some(ErrorKind::CredentialsTimeout));
    assert_eq!(begun.elapsed().as_secs(), DEADLINE.as_secs());
    kit.control.go_on();
}

#[tokio::test]
async fn while_a_call_takes_longer_than_the_deadline_requests_fail_at_once() {
    let kit = Kit::new();
    kit.control.stop();
    let first = kit.request(Initiator::Own);
    kit.control.wait_for("acquire front");
    kit.control.pass(DEADLINE + Duration::from_millis(1));
    assert_eq!(kit.refused_at_once(Initiator::Own), Some(ErrorKind::CredentialsTimeout));
    kit.control.go_on();
    assert_eq!(kind(timeout(BOUND, first).await.unwrap()), None);
    assert_eq!(kind(kit.mint(Initiator::Own).await), None);
}

#[tokio::test]
async fn a_user_who_has_a_ticket_does_not_wait_for_one_who_needs_one() {
    let kit = Kit::new();
    let credential = forwarded("carol");
    for initiator in [user("alice"), delegated(&credential, None)] {
        assert_eq!(kind(kit.mint(initiator).await), None);
    }
    kit.control.stop_only("impersonate");
    let bob = kit.request(user("bob"));
    kit.control.wait_for("impersonate bob");
    kit.control.pass(DEADLINE + Duration::from_millis(1));
    assert_eq!(kit.refused_at_once(user("dave")), Some(ErrorKind::CredentialsTimeout));
    assert_eq!(kit.outcome(user("alice")).await.as_deref(), Ok("alice@K"));
    assert_eq!(kit.outcome(delegated(&credential, None)).await.as_deref(), Ok("carol@K"));
    kit.control.go_on();
    assert_eq!(kind(timeout(BOUND, bob).await.unwrap()), None);
}

#[tokio::test]
async fn a_cancelled_request_costs_no_call() {
    let kit = Kit::new();
    kit.control.stop();
    let first = kit.request(Initiator::Own);
    kit.control.wait_for("acquire front");
    drop((kit.request(user("alice")), kit.request(user("bob"))));
    kit.control.go_on();
    assert_eq!(kind(timeout(BOUND, first).await.unwrap()), None);
    assert_eq!(kind(kit.mint(Initiator::Own).await), None);
    assert_eq!(kit.control.take_calls(), ["acquire front", "initiate front", "initiate front"]);
}

#[tokio::test]
async fn a_failure_answers_the_requests_of_a_second() {
    let kit = Kit::new();
    kit.control.fail("acquire");
    let refused = Err((502, "the KDC refuses".into()));
    assert_eq!(kit.outcome(Initiator::Own).await, refused);
    kit.control.recover();
    kit.control.pass(Duration::from_millis(999));
    assert_eq!(kit.outcome(Initiator::Own).await, refused);
    assert_eq!(kit.control.take_calls(), ["acquire front"]);
    kit.control.pass(Duration::from_millis(1));
    assert_eq!(kit.outcome(Initiator::Own).await.as_deref(), Ok("front@K"));
}

#[tokio::test]
async fn a_users_failure_is_not_that_of_another_user() {
    let kit = Kit::new();
    kit.control.fail("impersonate");
    assert_eq!(kit.outcome(user("alice")).await, Err((403, "for \"alice\": the KDC refuses".into())));
    kit.control.recover();
    assert_eq!(kit.outcome(user("bob")).await.as_deref(), Ok("bob@K"));
    assert_eq!(kit.outcome(user("alice")).await, Err((403, "for \"alice\": the KDC refuses".into())));
}

#[tokio::test]
async fn a_failure_of_the_front_or_of_the_kdc_is_not_the_users() {
    for (call, reason, status) in [
        ("acquire", Reason::Refused, 502),
        ("impersonate", Reason::Refused, 403),
        ("impersonate", Reason::Front, 502),
        ("impersonate", Reason::Unreachable, 502),
        ("initiate", Reason::Refused, 403),
    ] {
        let kit = Kit::new();
        kit.control.change(|state| state.failing = Some((call, reason)));
        let error = kit.mint(user("alice")).await.err().unwrap();
        assert_eq!(
            (error.kind(), error.status().as_u16()),
            (ErrorKind::CredentialsMissing, status),
            "{call} {reason:?}"
        );
    }
}

#[tokio::test]
async fn requests_of_one_user_acquire_one_credential() {
    let (fake, control, _ended) = fake();
    let workers =
        Workers::start(fake, &["negotiate-0", "negotiate-1", "negotiate-2", "negotiate-3"], None, None).unwrap();
    control.stop();
    let requests: Vec<_> = (0..32).map(|_| token(&workers, user("alice"), DEADLINE).unwrap()).collect();
    control.wait_for("acquire front");
    control.go_on();
    for request in requests {
        assert_eq!(timeout(BOUND, request).await.unwrap().unwrap().token, b"token of alice");
    }
    let calls = control.take_calls();
    assert_eq!(calls[..2], ["acquire front", "impersonate alice"]);
    assert_eq!(calls[2..], ["initiate alice"].repeat(32));
}

#[tokio::test]
async fn a_users_credential_is_kept_for_its_age() {
    let kit = Kit::new();
    for (passes, calls) in [(0, 3), (299, 1), (1, 3)] {
        kit.control.pass(Duration::from_secs(passes));
        assert_eq!(kit.outcome(user("alice")).await.as_deref(), Ok("alice@K"));
        assert_eq!(kit.control.take_calls().len(), calls, "after {passes} s");
    }
    kit.workers.minter().limit_users(0, HOUR);
    for _ in 0..2 {
        assert_eq!(kit.outcome(user("alice")).await.as_deref(), Ok("alice@K"));
        assert_eq!(kit.control.take_calls(), ["impersonate alice", "initiate alice"]);
    }
}

#[tokio::test]
async fn a_users_credential_that_fails_is_acquired_anew_once() {
    let kit = Kit::new();
    assert_eq!(kit.outcome(user("alice")).await.as_deref(), Ok("alice@K"));
    kit.control.take_calls();
    kit.control.fail("initiate");
    assert_eq!(kit.outcome(user("alice")).await, Err((403, "for \"alice\": the KDC refuses".into())));
    assert_eq!(kit.control.take_calls(), ["initiate alice", "impersonate alice", "initiate alice"]);
}

#[tokio::test]
async fn the_fronts_credential_is_acquired_anew_after_five_minutes_and_after_a_failure() {
    let kit = Kit::new();
    for (passes, calls) in [
        (0, &["acquire front", "initiate front"][..]),
        (299, &["initiate front"]),
        (1, &["acquire front", "initiate front"]),
    ] {
        kit.control.pass(Duration::from_secs(passes));
        assert_eq!(kit.outcome(Initiator::Own).await.as_deref(), Ok("front@K"));
        assert_eq!(kit.control.take_calls(), calls, "after {passes} s");
    }
    kit.control.fail("initiate");
    assert_eq!(kit.outcome(Initiator::Own).await, Err((502, "the KDC refuses".into())));
    assert_eq!(kit.control.take_calls(), ["initiate front", "acquire front", "initiate front"]);
}

#[tokio::test]
async fn an_unreachable_kdc_is_not_called_twice() {
    let kit = Kit::new();
    assert_eq!(kit.outcome(Initiator::Own).await.as_deref(), Ok("front@K"));
    kit.control.take_calls();
    kit.control.change(|state| state.failing = Some(("initiate", Reason::Unreachable)));
    assert_eq!(kit.outcome(Initiator::Own).await, Err((502, "the KDC refuses".into())));
    assert_eq!(kit.control.take_calls(), ["initiate front"]);
}

#[tokio::test]
async fn a_credential_that_cannot_be_renewed_is_used_until_it_expires() {
    let kit = Kit::new();
    assert_eq!(kit.outcome(Initiator::Own).await.as_deref(), Ok("front@K"));
    kit.control.fail("acquire");
    kit.control.pass(HOUR - Duration::from_secs(1));
    assert_eq!(kit.outcome(Initiator::Own).await.as_deref(), Ok("front@K"));
    kit.control.pass(Duration::from_secs(1));
    assert_eq!(kit.outcome(Initiator::Own).await, Err((502, "the KDC refuses".into())));
}

#[tokio::test]
async fn no_token_is_made_of_credentials_that_speak_for_another_principal() {
    let alice = forwarded("alice");
    for (initiator, meant) in [
        (user("alice"), "front@K"),
        (user("alice"), "mallory@K"),
        (delegated(&alice, None), "front@K"),
        (delegated(&alice, Some("bob")), "alice@K"),
        // The front's own account is no user.
        (user("front"), "front@K"),
        (user("FRONT"), "FRONT@K"),
    ] {
        let kit = Kit::new();
        kit.control.change(|state| state.initiator = Some(meant));
        let error = kit.mint(initiator).await.err().unwrap();
        assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::WrongSpeaker, 502), "{meant}");
        let calls = kit.control.take_calls();
        assert!(!calls.iter().any(|call| call.starts_with("initiate")), "{calls:?}");
    }
}

#[tokio::test]
async fn the_owner_is_the_principal_that_the_kdc_has_established() {
    let kit = Kit::new();
    kit.control.change(|state| state.initiator = Some("alice@K"));
    assert_eq!(kit.outcome(user("ALICE")).await.as_deref(), Ok("alice@K"));
}

#[tokio::test]
async fn a_delegated_credential_needs_none_of_the_front() {
    let kit = Kit::new();
    let alice = forwarded("alice");
    for meant in [None, Some("alice")] {
        assert_eq!(kit.outcome(delegated(&alice, meant)).await.as_deref(), Ok("alice@K"));
        assert_eq!(kit.control.take_calls(), ["initiate alice"]);
    }
}

#[tokio::test]
async fn the_threads_end_with_the_last_handle() {
    let kit = Kit::new();
    assert_eq!(kit.outcome(Initiator::Own).await.as_deref(), Ok("front@K"));
    drop(kit.workers);
    assert_eq!(kit.ended.recv_timeout(BOUND), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[tokio::test]
async fn dropping_the_last_handle_waits_for_no_call() {
    let kit = Kit::new();
    kit.control.stop();
    let request = kit.request(Initiator::Own);
    kit.control.wait_for("acquire front");
    // It would wait for the bound of the call.
    drop(kit.workers);
    assert_eq!(kit.ended.try_recv(), Err(mpsc::TryRecvError::Empty));
    kit.control.go_on();
    assert_eq!(kind(timeout(BOUND, request).await.unwrap()), None);
    assert_eq!(kit.ended.recv_timeout(BOUND), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[tokio::test]
async fn a_panic_of_the_mechanism_fails_its_request_only() {
    let kit = Kit::new();
    kit.control.change(|state| state.panicking = true);
    assert_eq!(kind(kit.mint(Initiator::Own).await), Some(ErrorKind::CredentialsMissing));
    kit.control.change(|state| state.panicking = false);
    assert_eq!(kit.outcome(Initiator::Own).await.as_deref(), Ok("front@K"));
}

#[test]
fn a_start_without_a_credential_is_an_error() {
    let (fake, control, ended) = fake();
    control.fail("acquire");
    let started = Workers::start(fake, &["negotiate"], None, Some(BOUND));
    assert!(matches!(started.err(), Some(NotStarted::Credential(failure)) if failure.reason == Reason::Front));
    assert_eq!(ended.recv_timeout(BOUND), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[tokio::test]
async fn a_start_waits_for_a_silent_kdc_until_its_limit() {
    let (fake, control, _ended) = fake();
    control.stop();
    let workers = Workers::start(fake, &["negotiate"], None, Some(Duration::from_millis(20))).unwrap();
    let request = token(&workers, Initiator::Own, DEADLINE).unwrap();
    control.go_on();
    assert_eq!(kind(timeout(BOUND, request).await.unwrap()), None);
}

#[tokio::test]
async fn a_start_without_a_kdc_is_no_error() {
    let (fake, control, _ended) = fake();
    control.change(|state| state.failing = Some(("acquire", Reason::Unreachable)));
    let workers = Workers::start(fake, &["negotiate"], None, Some(BOUND)).unwrap();
    control.recover();
    let request = token(&workers, Initiator::Own, DEADLINE).unwrap();
    assert_eq!(kind(timeout(BOUND, request).await.unwrap()), None);
}

#[test]
fn a_start_acquires_the_credential() {
    let (fake, control, _ended) = fake();
    let workers = Workers::start(fake, &["negotiate"], None, Some(BOUND)).unwrap();
    assert_eq!(control.take_calls(), ["acquire front"]);
    drop(workers);
}

/// A source on the system's library that calls no KDC before its first token.
fn on_behalf() -> Negotiate {
    let workers = Workers::start(Gss::on_behalf("HTTP@backend.example").unwrap(), &USERS, None, None).unwrap();
    Negotiate::new(workers, Account::OnBehalf)
}

/// Sends a request of this user through the layer; returns whether it had an `Authorization`, or the error.
async fn send(source: Negotiate, user: Option<&str>) -> Result<bool, Error> {
    let inner = service_fn(|request: Request<()>| async move {
        Ok::<_, Error>(Response::new(request.headers().contains_key(AUTHORIZATION)))
    });
    let mut request = Request::get("/").header(AUTHORIZATION, "Negotiate Y2xpZW50").body(()).unwrap();
    if let Some(user) = user {
        request.extensions_mut().insert(RemoteUser::new(user));
    }
    let service = AuthorizationLayer::with_source(source).layer(inner);
    let response = timeout(BOUND, service.oneshot(request)).await.expect("the request hangs");
    response.map(Response::into_body)
}

#[tokio::test]
async fn a_name_that_the_library_would_read_as_another_users_is_refused() {
    for name in ["alice@EVIL.TEST", "HTTP/front", "CORP\\alice", ""] {
        let error = send(on_behalf(), Some(name)).await.unwrap_err();
        assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::CredentialsMissing, 403), "{name}");
        assert!(error.source().unwrap().to_string().contains("map it with `principal`"), "{name}");
    }
}

#[tokio::test]
async fn a_user_without_a_principal_is_refused() {
    for principal in [None, Some(""), Some("alice\n")] {
        let source = on_behalf().principal(move |_| principal.map(ToOwned::to_owned));
        let error = send(source, Some("alice")).await.unwrap_err();
        assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::CredentialsMissing, 403), "{principal:?}");
    }
}

#[tokio::test]
async fn a_request_without_a_user_has_no_token() {
    assert!(!send(on_behalf(), None).await.unwrap());
    // A user who forwarded no ticket is none here.
    for user in [None, Some("alice")] {
        assert!(!send(Negotiate::delegated("HTTP@backend.example").unwrap(), user).await.unwrap());
    }
}
