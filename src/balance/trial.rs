//! Tries whether a member that is out is well again: by a connect in the background, or by one request, which goes to
//! another member if it fails, or if its response is late. The late response is awaited in the background.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::{BoxError, body::Body};
use http::{Method, Request, Response, header::UPGRADE};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tokio_util::sync::CancellationToken;
use tower::util::Oneshot;
use tower_service::Service;

use super::{
    attempt::{Attempt, InFlight},
    health::Reason,
    member::MemberState,
    outcome::Outcome,
    set::Shared,
    slow_start,
    snapshot::View,
};
use crate::{
    client::{Client, authenticates_connection},
    identity::Owner,
    service::HttpService,
};

/// How long a trial by a request is awaited. Then a connect has to do, because all requests may have bodies.
pub(super) const LATE: Duration = Duration::from_secs(10);

/// The trials of a set. It ends those that are under way in the background when it's dropped with the set.
#[derive(Debug)]
pub(super) struct Trials {
    set_gone: CancellationToken,
    /// The permits of connects. A large set that is down as a whole would otherwise take all descriptors of the
    /// process.
    connects: Arc<Semaphore>,
}

impl Default for Trials {
    fn default() -> Self {
        Self { set_gone: CancellationToken::new(), connects: Arc::new(Semaphore::new(CONNECTS)) }
    }
}

/// How many members of a set are connected to at a time. Those that don't answer take the connect timeout for it, so
/// that the others wait for them.
const CONNECTS: usize = 64;

impl Trials {
    /// Returns whether there is a permit for a connect.
    pub(super) fn may_connect(&self) -> bool {
        self.connects.available_permits() > 0
    }

    /// Takes a permit for a connect.
    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.connects.clone().try_acquire_owned().ok()
    }

    /// Guards the trial of a member that [`begin_trial`](super::health::Health::begin_trial) has begun.
    pub(super) fn begun(&self, member: Arc<MemberState>) -> Trial {
        let background = Background { set_gone: self.set_gone.clone(), removed: member.removal_token() };
        Trial { member: Some(member), background }
    }
}

impl Drop for Trials {
    fn drop(&mut self) {
        self.set_gone.cancel();
    }
}

/// Where trials go on that no request waits for.
#[derive(Clone, Debug)]
struct Background {
    set_gone: CancellationToken,
    removed: CancellationToken,
}

impl Background {
    /// Runs a trial in a task, until the member is removed from the set, or the set is dropped.
    fn spawn(self, trial: impl Future<Output = ()> + Send + 'static) {
        let Ok(runtime) = Handle::try_current() else { return };
        drop(runtime.spawn(async move {
            self.set_gone.run_until_cancelled(self.removed.run_until_cancelled(trial)).await;
        }));
    }
}

/// A trial of a member that is out. If it's dropped, it has shown nothing.
#[derive(Debug)]
pub(super) struct Trial {
    member: Option<Arc<MemberState>>,
    background: Background,
}

impl Trial {
    /// Takes the member back. `is_proven`: a response has shown that it's well.
    pub(super) fn succeeded(mut self, is_proven: bool) {
        if let Some(member) = self.member.take() {
            member.take_back(is_proven, Instant::now());
        }
    }

    fn failed(mut self, outcome: Outcome) {
        if let Some(member) = self.member.take() {
            member.trial_failed(outcome, Instant::now());
        }
    }

    /// Connects to the member in the background.
    pub(super) fn connect(self, client: Client, permit: OwnedSemaphorePermit) {
        self.background.clone().spawn(async move {
            let result = client.probe().await;
            // A view is made of what it shows, by which the next connect begins.
            drop(permit);
            match result {
                Ok(()) => self.succeeded(false),
                Err(error) => match Outcome::of_error(&error) {
                    // This process lacks descriptors, or the client has as many connections as it may have.
                    Outcome::Nothing => drop(self),
                    outcome => self.failed(outcome),
                },
            }
        });
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(member) = self.member.take() {
            member.trial_given_up(Instant::now());
        }
    }
}

/// Returns whether a request may be a trial: it can be sent twice, and nothing of it is lost with the first attempt.
pub(super) fn may_try(request: &Request<Body>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && request.body().is_end_stream()
        && !request.headers().contains_key(UPGRADE)
        && request.extensions().get::<Owner>().is_none()
        // The second use of such credentials is a replay.
        && !authenticates_connection(request.headers())
}

/// Clones a request without a body.
pub(super) fn clone_bodiless(request: &Request<Body>) -> Request<Body> {
    let mut clone = Request::new(Body::empty());
    *clone.method_mut() = request.method().clone();
    *clone.uri_mut() = request.uri().clone();
    *clone.version_mut() = request.version();
    *clone.headers_mut() = request.headers().clone();
    *clone.extensions_mut() = request.extensions().clone();
    clone
}

/// The times of a trial by a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TrialTimes {
    /// How long the request waits for the response, because a member that hangs must not cost the client its patience.
    pub(super) patience: Duration,
    /// How long the member has for the response. With cold caches, it may be several times slower than the others.
    pub(super) limit: Duration,
}

impl TrialTimes {
    /// Returns the times for a set whose members usually respond in `usual`.
    pub(super) fn new(usual: Option<Duration>) -> Self {
        let usual = usual.unwrap_or(Duration::from_millis(250));
        Self {
            patience: usual.saturating_mul(4).clamp(Duration::from_millis(250), Duration::from_secs(5)),
            // It's shorter than the time after which another trial may begin.
            limit: usual.saturating_mul(10).clamp(Duration::from_secs(2), Duration::from_secs(60)),
        }
    }
}

pin_project! {
    /// The attempt of a trial.
    pub(super) struct Trying<S: Service<Request<Body>>> {
        #[pin]
        call: Oneshot<S, Request<Body>>,
        #[pin]
        patience: Sleep,
        #[pin]
        limit: Sleep,
        attempt: Option<Attempt>,
        trial: Option<Trial>,
    }
}

impl<S: Service<Request<Body>>> Trying<S> {
    pub(super) fn new(
        service: S,
        request: Request<Body>,
        in_flight: InFlight,
        trial: Trial,
        times: TrialTimes,
    ) -> Self {
        let attempt = Some(Attempt::new(in_flight, &request, true));
        let (patience, limit) = (sleep(times.patience), sleep(times.limit));
        Self { call: Oneshot::new(service, request), patience, limit, attempt, trial: Some(trial) }
    }

    /// Ready when the request waits no longer.
    pub(super) fn poll_patience(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().patience.poll(cx)
    }
}

impl<S> Trying<S>
where
    S: HttpService<Future: Send> + Send + 'static,
{
    /// Awaits the response without the request.
    pub(super) fn go_on(self: Pin<Box<Self>>) {
        let Some(background) = self.trial.as_ref().map(|trial| trial.background.clone()) else { return };
        background.spawn(async move { drop(self.await) });
    }
}

impl<S: HttpService> Future for Trying<S> {
    /// `None` if the trial has failed.
    type Output = Option<(Response<S::ResponseBody>, Option<InFlight>)>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = match this.call.poll(cx) {
            Poll::Ready(result) => result.map_err(Into::<BoxError>::into),
            Poll::Pending => {
                std::task::ready!(this.limit.poll(cx));
                if let Some(trial) = this.trial.take() {
                    trial.failed(Outcome::HalfFault);
                }
                return Poll::Ready(None);
            }
        };
        let (Some(attempt), Some(trial)) = (this.attempt.take(), this.trial.take()) else {
            panic!("polled after completion");
        };
        Poll::Ready(match result {
            Ok(response) => {
                let (outcome, in_flight) = attempt.responded(&response);
                match outcome {
                    Outcome::Success | Outcome::Nothing => {
                        trial.succeeded(true);
                        Some((response, in_flight))
                    }
                    outcome => {
                        trial.failed(outcome);
                        None
                    }
                }
            }
            Err(error) => {
                match attempt.failed(&error) {
                    // The next one shows more.
                    Outcome::Nothing => drop(trial),
                    outcome => trial.failed(outcome),
                }
                None
            }
        })
    }
}

impl Shared {
    /// Does what is due at this time: ends slow starts, connects to members that are down, and begins the trial of one
    /// that is ejected if the request may be it. Returns its position.
    pub(super) fn attend(
        &self,
        view: &View,
        may_try: bool,
        may_go_to: impl Fn(usize) -> bool,
    ) -> Option<(usize, Trial)> {
        let now = Instant::now();
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        if view.settles.is_some() {
            self.settle(now);
            // What changes meanwhile isn't in the view, so that each request would find the same to be due.
            if self.lock().is_stale {
                return None;
            }
        }
        let has_due = is_due(view.due)
            || may_try && is_due(view.due_trial)
            || is_due(view.due_connect) && self.trials.may_connect();
        if !has_due {
            return None;
        }
        let mut trial = None;
        let mut has_changed = false;
        let mut connects = Vec::new();
        // The others are many, and their locks are what each of their attempts takes.
        for (position, entry) in view.entries.iter().enumerate().filter(|(_, entry)| entry.may_be_due()) {
            let member = &entry.state;
            let mut health = member.watch.health();
            has_changed |= health.settle(slow_start::whole(self.options.health.slow_start), now);
            let may_return = self.options.health.check.is_none() && !entry.is_draining;
            let Some((reason, due)) = health.due_trial().filter(|(_, due)| may_return && *due <= now) else {
                continue;
            };
            let client = member.member.client_in_use();
            let is_connect = reason == Reason::Down && client.is_some();
            let is_request = !is_connect && may_try && trial.is_none() && may_go_to(position);
            // No request may be the trial, as in gRPC.
            let is_late = !is_connect && !is_request && due + LATE <= now;
            match client {
                Some(client) if is_connect || is_late => connects.push((due, member, client)),
                _ if is_request || is_late => {
                    let has_begun = health.begin_trial(now).is_some();
                    drop(health);
                    if !has_begun {
                        continue;
                    }
                    has_changed = true;
                    let begun = self.trials.begun(member.clone());
                    if is_request {
                        trial = Some((position, begun));
                    } else {
                        begun.succeeded(false);
                    }
                }
                _ => {}
            }
        }
        // Those that have been due for the longest time are first.
        connects.sort_by_key(|(due, ..)| *due);
        for (_, member, client) in connects {
            let Some(permit) = self.trials.permit() else { break };
            if member.watch.health().begin_trial(now).is_some() {
                has_changed = true;
                self.trials.begun(member.clone()).connect(client.clone(), permit);
            }
        }
        if has_changed {
            self.health_changed();
        }
        trial
    }

    /// Returns the times of a trial by a request.
    pub(super) fn trial_times(&self) -> TrialTimes {
        TrialTimes::new(self.usual_latency())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use http::{HeaderValue, StatusCode};
    use tokio::time::advance;
    use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};

    use super::*;
    use crate::balance::{Backends, Balance, Member, State};

    #[test]
    fn a_request_waits_four_times_the_usual_time_and_the_member_has_ten_times() {
        let ms = Duration::from_millis;
        for (usual, patience, limit) in [
            (None, 1_000, 2_500),
            (Some(1), 250, 2_000),
            (Some(500), 2_000, 5_000),
            (Some(60_000), 5_000, 60_000),
            (Some(u64::MAX), 5_000, 60_000),
        ] {
            let times = TrialTimes { patience: ms(patience), limit: ms(limit) };
            assert_eq!(TrialTimes::new(usual.map(ms)), times, "{usual:?}");
        }
    }

    #[test]
    fn a_request_is_a_trial_if_it_can_be_sent_twice() {
        let get = || Request::new(Body::empty());
        assert!(may_try(&get()));
        for (name, value, expected) in [
            ("upgrade", "websocket", false),
            ("authorization", "Negotiate YII=", false),
            // As HTTP/2 passes it on.
            ("authorization", " Negotiate YII=", false),
            ("authorization", "ntlm\tTlRM", false),
            ("authorization", "Basic YTpi", true),
        ] {
            let mut request = get();
            request.headers_mut().insert(name, HeaderValue::from_static(value));
            assert_eq!(may_try(&request), expected, "{name}: {value:?}");
        }
        for (method, body, expected) in [
            (Method::HEAD, "", true),
            (Method::GET, "x", false),
            (Method::PUT, "", false),
            (Method::OPTIONS, "", false),
        ] {
            let mut request = Request::new(if body.is_empty() { Body::empty() } else { Body::from(body) });
            *request.method_mut() = method.clone();
            assert_eq!(may_try(&request), expected, "{method} {body:?}");
        }
        let mut request = get();
        request.extensions_mut().insert(Owner::Request);
        assert!(!may_try(&request));
    }

    /// The member "a" fails until it's out, and then responds after this time. "b" always responds at once.
    struct Set {
        backends: Backends,
        balance: Balance<BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>>,
        /// Requests at "a".
        under_way: Arc<AtomicUsize>,
    }

    struct UnderWay(Arc<AtomicUsize>);

    impl UnderWay {
        fn new(count: &Arc<AtomicUsize>) -> Self {
            count.fetch_add(1, Ordering::Relaxed);
            Self(count.clone())
        }
    }

    impl Drop for UnderWay {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    impl Set {
        async fn new(time: Duration) -> Self {
            let backends = Backends::builder([Member::named("a"), Member::named("b")]).seed(1).build().unwrap();
            let (count, under_way) = (Arc::new(AtomicUsize::new(0)), Arc::default());
            let at_a = Arc::clone(&under_way);
            let balance = Balance::new(&backends, move |member| {
                let (is_a, count, at_a) = (member.name() == "a", count.clone(), Arc::clone(&at_a));
                BoxCloneSyncService::new(service_fn(move |_: Request<Body>| {
                    let (count, at_a) = (count.clone(), Arc::clone(&at_a));
                    async move {
                        let mut response = Response::new(Body::empty());
                        if is_a && count.fetch_add(1, Ordering::Relaxed) < 5 {
                            *response.status_mut() = StatusCode::BAD_GATEWAY;
                        } else if is_a {
                            let _under_way = UnderWay::new(&at_a);
                            tokio::time::sleep(time).await;
                        }
                        Ok(response)
                    }
                }))
            });
            let this = Self { backends, balance, under_way };
            while this.state() == State::Up {
                this.get().await;
                // A failure counts as load for some seconds.
                advance(Duration::from_secs(1)).await;
            }
            // Longer than the first time out.
            advance(Duration::from_secs(2)).await;
            this
        }

        fn state(&self) -> State {
            self.backends.status()[0].state()
        }

        /// Sends a request, and returns how long it took.
        async fn get(&self) -> Duration {
            let began = Instant::now();
            self.balance.clone().oneshot(Request::new(Body::empty())).await.unwrap();
            began.elapsed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_response_brings_the_member_back_and_no_request_waits_for_it() {
        let set = Set::new(Duration::from_millis(1_900)).await;
        let ms = Duration::from_millis;
        let took = set.get().await;
        assert!((ms(250)..ms(300)).contains(&took), "{took:?}");
        assert_eq!((set.state(), set.under_way.load(Ordering::Relaxed)), (State::Ejected, 1));
        // No other one begins meanwhile.
        assert!(set.get().await < ms(10));
        tokio::time::sleep(ms(1_700)).await;
        assert_eq!((set.state(), set.under_way.load(Ordering::Relaxed)), (State::Up, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_without_a_response_fails_in_the_end() {
        let set = Set::new(Duration::from_secs(100)).await;
        set.get().await;
        tokio::time::sleep(Duration::from_millis(1_800)).await;
        assert_eq!((set.state(), set.under_way.load(Ordering::Relaxed)), (State::Ejected, 0));
        // It's out for twice as long as the first time, give or take a fifth.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert!(set.get().await < Duration::from_millis(10));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(set.get().await > Duration::from_millis(200));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_in_the_background_ends_with_the_set_and_with_the_member() {
        for is_removed in [true, false] {
            let set = Set::new(Duration::from_secs(1)).await;
            set.get().await;
            let Set { backends, balance, under_way } = set;
            assert_eq!(under_way.load(Ordering::Relaxed), 1);
            let backends = is_removed.then_some(backends);
            if let Some(backends) = &backends {
                backends.set([Member::named("b")]).unwrap();
            }
            drop(balance);
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(under_way.load(Ordering::Relaxed), 0, "{is_removed}");
        }
    }
}
