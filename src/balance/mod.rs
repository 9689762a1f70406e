//! A balancer: one service in front of the services of several members.
//!
//! [`Backends`] is the set of members, as a live handle; a [`Balance`] of it sends each request to one of them.
//! [`ReverseProxyLayer::balanced`](crate::ReverseProxyLayer::balanced) makes both of a list of URLs.
//!
//! 1. A request goes to the member with the fewest requests in flight, in proportion to the weights. Of a large set,
//!    five members are drawn at random and compared, whose least loaded one is nearly as good as that of all.
//! 2. A request is in flight until the end of its response's body, or of its tunnel, or of the backend's side of it.
//! 3. A failure counts as a request in flight that takes five seconds. Without it, a member that fails at once would
//!    always be the least loaded one.
//! 4. Of members that are loaded alike, one whose responses take more than twice as long as another's, and five
//!    milliseconds more, comes after that one. This is measured for requests without a body, over at least ten
//!    responses, of which the last isn't older than three seconds.
//! 5. All others that are loaded alike get equal shares, by their weights.
//! 6. A member that fails is [ejected](Eject), one that can't be reached is [down](State::Down), and both come back
//!    without an error for any client. A [`Check`] is active, and may drain a member.
//! 7. [`Pick`] chooses otherwise, and [`Sticky`] keeps a session at its member, before all of this.
//!
//! The guide describes the whole: [several backends](crate::guide::several_backends).

mod attempt;
mod backends;
mod body;
mod builder;
mod check;
mod comparison;
pub mod discover;
mod eject;
mod future;
mod health;
mod load;
mod member;
mod outcome;
mod pick;
mod queue;
mod random;
mod selection;
mod set;
mod slow_start;
mod snapshot;
mod status;
mod sticky;
mod subset;
mod trial;
mod watch;
mod window;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use arc_swap::{ArcSwap, Guard};
use axum_core::{BoxError, body::Body};
use http::{Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use self::{
    attempt::{Attempt, InFlight},
    backends::service_number,
    future::{CallState, Elsewhere},
    member::MemberState,
    queue::{Admission, Queue},
    selection::{Choice, Selection, Wish},
    set::{Shared, Subscriber},
    snapshot::{Entry, Snapshot, View},
    sticky::Assignment,
    trial::Trying,
};
pub use self::{
    backends::Backends,
    body::BalanceBody,
    builder::{BackendsBuilder, InvalidBackends, NoneHealthy},
    check::{Check, Verdict},
    eject::Eject,
    future::ResponseFuture,
    member::{Member, State},
    pick::{Pick, RequestKey, stable_hash},
    status::MemberStatus,
    sticky::{InvalidSticky, Sticky},
};
use crate::{
    error::{Error, ErrorKind},
    service::{HttpService, poll_ready_now},
    tried::{MemberId, NoneLeft, Tried},
};

/// A service that sends each request to one of the members of a set.
///
/// Each member has a service of its own, which a function makes of the [`Member`], also for members that are added
/// later. Clones share everything. It's always ready, because the member is chosen when the request is there, and its
/// readiness is awaited afterwards.
///
/// [`ReverseProxyLayer::balanced`](crate::ReverseProxyLayer::balanced) makes one of an [`Upstream`](crate::Upstream)
/// per member. Made by hand, the members are any services:
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_reverse_proxy::{ReverseProxyLayer, balance::Balance};
///
/// let blue = Router::new().route("/app", get(|| async { "blue" }));
/// let green = Router::new().route("/app", get(|| async { "green" }));
/// let proxy = ReverseProxyLayer::with_upstream(Balance::over([blue, green])).prefix("/app");
/// # let _ = proxy;
/// ```
#[doc(alias = "load balancer")]
pub struct Balance<S> {
    inner: Arc<Inner<S>>,
}

struct Inner<S> {
    backends: Backends,
    make: Arc<dyn Fn(&Member) -> S + Send + Sync>,
    snapshot: ArcSwap<Snapshot<S>>,
}

impl<S: Clone + Send + Sync + 'static> Balance<S> {
    /// Balances the services that `make` makes, one for each member of the set.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, ReverseProxyLayer, Upstream, balance::{Balance, Member}};
    ///
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// let balance = Balance::new(&backends, |member: &Member| {
    ///     let client = member.client().expect("the members have origins");
    ///     Upstream::new(client.clone()).host("app.internal")
    /// });
    /// let proxy = ReverseProxyLayer::with_upstream(balance).prefix("/app");
    /// # let _ = proxy;
    /// ```
    #[must_use]
    pub fn new(backends: &Backends, make: impl Fn(&Member) -> S + Send + Sync + 'static) -> Self {
        Self::with_services(backends.clone(), Arc::new(make), None)
    }

    /// Balances these services. Their set consists of [named](Member::named) members, `0`, `1` and so on. A later set
    /// may have other weights, or a part of them, and no other names.
    ///
    /// ```
    /// use axum::Router;
    /// use tower_reverse_proxy::balance::Balance;
    ///
    /// let balance = Balance::over([Router::<()>::new(), Router::new()]);
    /// assert_eq!(balance.backends().status()[1].backend(), "1");
    /// ```
    ///
    /// # Panics
    ///
    /// If there are none.
    #[must_use]
    #[track_caller]
    pub fn over(services: impl IntoIterator<Item = S>) -> Self {
        let services: Vec<S> = services.into_iter().collect();
        let backends = Backends::over(services.len());
        let service = move |member: &Member| match service_number(member).and_then(|number| services.get(number)) {
            Some(service) => service.clone(),
            None => panic!("the set of these services has no other members"),
        };
        Self::new(&backends, service)
    }

    /// Replaces the service of each member by the result of `map`, which is called once per member.
    ///
    /// ```
    /// use axum::Router;
    /// use tower_reverse_proxy::{BoxUpstream, balance::Balance};
    ///
    /// let balance: Balance<BoxUpstream> = Balance::over([Router::new(), Router::new()]).map(BoxUpstream::new);
    /// # let _ = balance;
    /// ```
    #[must_use]
    pub fn map<T: Clone + Send + Sync + 'static>(self, map: impl Fn(S) -> T + Send + Sync + 'static) -> Balance<T> {
        let current = self.inner.snapshot.load_full();
        let services = current.services.iter().cloned().map(&map).collect();
        let made = Snapshot { view: current.view.clone(), services };
        let make = self.inner.make.clone();
        Balance::with_services(self.inner.backends.clone(), Arc::new(move |member| map(make(member))), Some(made))
    }

    /// Wraps the service of each member in a layer.
    ///
    /// ```
    /// use axum::Router;
    /// use tower::limit::ConcurrencyLimitLayer;
    /// use tower_reverse_proxy::balance::Balance;
    ///
    /// // At most ten requests at a time at each member.
    /// let balance = Balance::over([Router::<()>::new(), Router::new()]).layer(ConcurrencyLimitLayer::new(10));
    /// # let _ = balance;
    /// ```
    #[must_use]
    pub fn layer<L>(self, layer: L) -> Balance<L::Service>
    where
        L: Layer<S, Service: Clone + Send + Sync + 'static> + Send + Sync + 'static,
    {
        self.map(move |service| layer.layer(service))
    }

    /// Returns the set.
    ///
    /// ```
    /// use axum::Router;
    /// use tower_reverse_proxy::balance::Balance;
    ///
    /// let balance = Balance::over([Router::<()>::new(), Router::new()]);
    /// assert_eq!(balance.backends().status().len(), 2);
    /// ```
    #[must_use]
    pub fn backends(&self) -> &Backends {
        &self.inner.backends
    }

    /// `made` are services that exist already.
    fn with_services(
        backends: Backends,
        make: Arc<dyn Fn(&Member) -> S + Send + Sync>,
        made: Option<Snapshot<S>>,
    ) -> Self {
        let none = || Snapshot { view: Arc::new(View::empty()), services: Arc::from([]) };
        let snapshot = ArcSwap::from_pointee(made.unwrap_or_else(none));
        let inner = Arc::new(Inner { backends, make, snapshot });
        let subscriber: Weak<Inner<S>> = Arc::downgrade(&inner);
        let view = inner.backends.shared.subscribe(subscriber);
        inner.changed(&view);
        Self { inner }
    }
}

impl<S: Clone + Send + Sync + 'static> Subscriber for Inner<S> {
    /// Makes the snapshot of a view, unless there is a later one. A member that stays keeps its service.
    fn changed(&self, view: &Arc<View>) {
        let mut current = self.snapshot.load_full();
        let mut made = HashMap::<MemberId, S>::new();
        while current.view.version < view.version {
            let services = if current.view.generation == view.generation {
                current.services.clone()
            } else {
                let kept = current.view.entries.iter().zip(&*current.services);
                let kept: HashMap<MemberId, &S> = kept.map(|(entry, service)| (entry.state.id, service)).collect();
                let service = |member: &Arc<MemberState>| match kept.get(&member.id) {
                    Some(&service) => service.clone(),
                    None => made.entry(member.id).or_insert_with(|| (self.make)(&member.member)).clone(),
                };
                view.entries.iter().map(|entry| &entry.state).map(service).collect()
            };
            let next = Arc::new(Snapshot { view: view.clone(), services });
            let previous = Guard::into_inner(self.snapshot.compare_and_swap(&current, next));
            if Arc::ptr_eq(&previous, &current) {
                return;
            }
            current = previous;
        }
    }
}

impl<S: HttpService> Inner<S> {
    /// Chooses the least loaded member, and begins the attempt, if nothing but the load decides about it.
    ///
    /// Nearly all requests take this path. [`call`](Self::call) chooses the same member, and costs more.
    fn choose_by_load(&self, request: &Request<Body>) -> Option<(S, Attempt)> {
        let Shared { random, queue, .. } = &*self.backends.shared;
        let snapshot = self.snapshot.load();
        let view = &snapshot.view;
        let tried = Tried::of(request.extensions());
        if !view.is_by_load || queue.is_some() || tried.is_some_and(|tried| !tried.is_empty()) {
            return None;
        }
        let position = view.pick(random, |_| true)?;
        let state = &view.entries[position].state;
        let in_flight = InFlight::begin(state)?;
        if let Some(tried) = tried {
            note_attempt(tried, view, state);
        }
        Some((snapshot.services[position].clone(), Attempt::new(in_flight, request, !view.is_alone())))
    }

    fn call(self: &Arc<Self>, mut request: Request<Body>) -> ResponseFuture<S> {
        let shared = &self.backends.shared;
        if shared.options.health.check.is_some() {
            shared.checks.ensure(shared);
        }
        let mut snapshot = self.snapshot.load();
        let wish = shared.options.selection.wish(&mut request, &snapshot.view);
        // Nothing is due as long as every member is up.
        if snapshot.view.has_due() {
            if let Some((trying, cookie, tried)) = self.begin_trial(&snapshot, &request, &wish) {
                let elsewhere = Elsewhere { balance: self.clone(), request, wish, tried };
                return ResponseFuture::try_member(trying, cookie, elsewhere);
            }
            // What was due may have changed the set's health.
            snapshot = self.snapshot.load();
        }
        match &shared.queue {
            None => self.send_at_once(snapshot, request, &wish, None),
            Some(queue) => self.send_in_turn(queue, request, wish, None),
        }
    }

    /// Tries a member that is out, if its trial is due, and if the request may be it. Otherwise does what is due.
    fn begin_trial(
        &self,
        snapshot: &Snapshot<S>,
        request: &Request<Body>,
        wish: &Wish,
    ) -> Option<(Trying<S>, Option<Assignment>, MemberId)> {
        let shared = &self.backends.shared;
        let (view, selection) = (&snapshot.view, &shared.options.selection);
        let may_go_to = |position| selection.choose_out(wish, view, position).is_some();
        let (position, trial) = shared.attend(view, trial::may_try(request), may_go_to)?;
        let choice = selection.choose_out(wish, view, position)?;
        let member = &view.entries[position].state;
        let in_flight = InFlight::begin(member)?;
        if let Some(list) = Tried::of(request.extensions()) {
            list.push(member.set, member.id);
        }
        let (service, copy) = (snapshot.services[position].clone(), trial::clone_bodiless(request));
        let trying = Trying::new(service, copy, in_flight, trial, shared.trial_times());
        Some((trying, selection.assignment(choice, request, view), member.id))
    }

    /// Sends a request to one of the members, and not to `except` if there is another.
    fn send(self: &Arc<Self>, request: Request<Body>, wish: Wish, except: Option<MemberId>) -> ResponseFuture<S> {
        match &self.backends.shared.queue {
            None => self.send_at_once(self.snapshot.load(), request, &wish, except),
            Some(queue) => self.send_in_turn(queue, request, wish, except),
        }
    }

    fn send_at_once(
        &self,
        mut snapshot: Guard<Arc<Snapshot<S>>>,
        request: Request<Body>,
        wish: &Wish,
        except: Option<MemberId>,
    ) -> ResponseFuture<S> {
        match self.choose(&mut snapshot, Tried::of(request.extensions()), wish, except) {
            Ok((choice, in_flight)) => {
                snapshot.call(choice, in_flight, request, &self.backends.shared.options.selection)
            }
            Err(error) => ResponseFuture::fail(error),
        }
    }

    /// Chooses a member of the snapshot, or of a later one, and begins the attempt.
    ///
    /// # Errors
    ///
    /// If there is none that the request may be sent to.
    fn choose(
        &self,
        snapshot: &mut Guard<Arc<Snapshot<S>>>,
        tried: Option<&Tried>,
        wish: &Wish,
        except: Option<MemberId>,
    ) -> Result<(Choice, InFlight), BoxError> {
        let Shared { random, options, .. } = &*self.backends.shared;
        let mut refused_by = None;
        loop {
            let view = &snapshot.view;
            let is_current = refused_by != Some(view.version);
            let is_usable = |entry: &Entry| {
                (is_current || !entry.state.load.is_leaving()) && (view.is_alone() || is_untried(entry, tried, except))
            };
            let home = options.selection.home(wish, view, is_usable).map(Choice::home);
            let picked = || options.selection.pick(wish, view, random, except, is_usable).map(Choice::picked);
            let choice = home.or_else(picked).ok_or_else(|| none_left(view))?;
            if let Some(in_flight) = InFlight::begin(&view.entries[choice.position].state) {
                return Ok((choice, in_flight));
            }
            // The member has just been removed, and there is a later snapshot, unless the function that makes the
            // services has panicked.
            refused_by = Some(view.version);
            *snapshot = self.snapshot.load();
        }
    }

    /// Calls a member that has room for the request, or lets it wait for one.
    fn send_in_turn(
        self: &Arc<Self>,
        queue: &Arc<Queue>,
        request: Request<Body>,
        wish: Wish,
        except: Option<MemberId>,
    ) -> ResponseFuture<S> {
        let Shared { random, options, .. } = &*self.backends.shared;
        let selection = &options.selection;
        let mut refused_by = None;
        loop {
            let snapshot = self.snapshot.load();
            let view = &snapshot.view;
            let tried = Tried::of(request.extensions());
            let is_untried = |entry: &Entry| view.is_alone() || is_untried(entry, tried, except);
            let is_current = refused_by != Some(view.version);
            let is_usable = |entry: &Entry| (is_current || !entry.state.load.is_leaving()) && is_untried(entry);
            // Another attempt doesn't wait. The one after a trial isn't another one. And there is nothing to wait for
            // if a later view has none of these members.
            let must_not_wait =
                !view.entries.iter().all(is_untried) || (!is_current && !view.eligible().any(is_usable));
            // A session waits for its member.
            let home = selection.home(&wish, view, is_usable);
            let admission = queue.admit(view, !is_current, home, must_not_wait, |has_permit| match home {
                Some(position) => has_permit(&view.entries[position]).then_some(position),
                None => selection.pick(&wish, view, random, except, |entry| is_usable(entry) && has_permit(entry)),
            });
            return match admission {
                Admission::Admitted(position, in_flight) => {
                    let choice = if home.is_some() { Choice::home(position) } else { Choice::picked(position) };
                    snapshot.call(choice, in_flight, request, selection)
                }
                Admission::Stale => {
                    refused_by = Some(view.version);
                    continue;
                }
                Admission::Queued(waiter) => {
                    self.backends.shared.settle_for_queue();
                    ResponseFuture::wait(self.clone(), request, wish, waiter)
                }
                Admission::Full => ResponseFuture::fail(overloaded("too many requests wait for a backend with room")),
                Admission::NoneLeft => ResponseFuture::fail(none_left(view)),
            };
        }
    }

    /// Calls the member of which the request has a permit.
    fn call_with(self: &Arc<Self>, in_flight: InFlight, request: Request<Body>, wish: Wish) -> ResponseFuture<S> {
        let selection = &self.backends.shared.options.selection;
        let snapshot = self.snapshot.load();
        let id = in_flight.member().map(|member| member.id);
        match snapshot.view.entries.iter().position(|entry| Some(entry.state.id) == id) {
            Some(position) => {
                let is_home = selection.home(&wish, &snapshot.view, |entry| Some(entry.state.id) == id).is_some();
                let choice = if is_home { Choice::home(position) } else { Choice::picked(position) };
                snapshot.call(choice, in_flight, request, selection)
            }
            None => {
                // It was removed in the meantime.
                drop(in_flight);
                self.send(request, wish, None)
            }
        }
    }
}

impl<S: HttpService> Snapshot<S> {
    /// Calls the service of the member that was chosen.
    fn call(
        &self,
        choice: Choice,
        in_flight: InFlight,
        request: Request<Body>,
        selection: &Selection,
    ) -> ResponseFuture<S> {
        if let Some(tried) = Tried::of(request.extensions()) {
            note_attempt(tried, &self.view, &self.view.entries[choice.position].state);
        }
        let attempt = Attempt::new(in_flight, &request, !self.view.is_alone());
        let cookie = selection.assignment(choice, &request, &self.view);
        ResponseFuture::call(self.services[choice.position].clone(), request, attempt, cookie)
    }
}

/// Records that a request is sent to a member.
fn note_attempt(tried: &Tried, view: &View, member: &MemberState) {
    tried.push(member.set, member.id);
    tried.set_exhausted(member.set, view.is_exhausted(tried));
}

/// Returns whether a request may be sent to a member: it hasn't been, or only as a trial.
fn is_untried(entry: &Entry, tried: Option<&Tried>, trial: Option<MemberId>) -> bool {
    let id = entry.state.id;
    Some(id) == trial || !tried.is_some_and(|tried| tried.contains(id))
}

/// Returns why no member was picked.
fn none_left(view: &View) -> BoxError {
    if view.eligible.is_empty() {
        let why = if view.entries.is_empty() { "the set has no member" } else { "no member of the set is healthy" };
        let unavailable = Error::with_status(ErrorKind::Connect, StatusCode::SERVICE_UNAVAILABLE, why);
        return unavailable.with_retry_after(1).into();
    }
    NoneLeft.into()
}

fn overloaded(why: &'static str) -> Error {
    Error::with_source(ErrorKind::Overloaded, why).with_retry_after(1)
}

impl<S> Service<Request<Body>> for Balance<S>
where
    S: HttpService<Future: Send> + Send + 'static,
{
    type Response = Response<BalanceBody<S::ResponseBody>>;
    type Error = BoxError;
    type Future = ResponseFuture<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some((mut service, attempt)) = self.inner.choose_by_load(&request) else {
            return self.inner.call(request);
        };
        let readiness = poll_ready_now(&mut service);
        if !matches!(readiness, Poll::Ready(Ok(()))) {
            return ResponseFuture::unready(readiness, service, request, attempt, None);
        }
        // In place, because the request and the future are large to move.
        ResponseFuture {
            state: CallState::Calling { call: service.call(request), attempt: Some(attempt), cookie: None },
        }
    }
}

impl<S> Clone for Balance<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<S> fmt::Debug for Balance<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balance").field("backends", &self.inner.backends).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        time::Duration,
    };

    use axum::{Router, routing::get};
    use tokio::time::timeout;
    use tower::ServiceExt;

    use super::*;

    /// Balances members whose names are their responses, without a service for "c".
    fn balance(backends: &Backends, makes_all: bool) -> Balance<Router> {
        Balance::new(backends, move |member| {
            assert!(makes_all || member.name() != "c", "a layer panics");
            let name = member.name().to_owned();
            Router::new().route("/", get(|| async { name }))
        })
    }

    async fn is_served(balance: &Balance<Router>) -> bool {
        let response = balance.clone().oneshot(Request::new(Body::empty()));
        let response = timeout(Duration::from_secs(30), response).await.expect("a response or an error");
        response.is_ok_and(|response| response.status().is_success())
    }

    #[tokio::test]
    async fn a_mount_whose_layer_panics_affects_no_other_and_goes_on_with_what_it_has() {
        for max_requests in [None, Some(1)] {
            let members = |names: &[&str]| names.iter().map(|&name| Member::named(name)).collect::<Vec<_>>();
            let backends =
                Backends::builder(members(&["a", "b"])).max_requests(max_requests).queue_timeout(None).build().unwrap();
            let (panics, well) = (balance(&backends, false), balance(&backends, true));
            let set = |names| catch_unwind(AssertUnwindSafe(|| backends.set(members(names)).unwrap()));
            assert!(set(&["b", "c"]).is_err());
            // "a" has left the set, and nothing waits for it.
            assert_eq!(backends.status().len(), 2);
            for _ in 0..20 {
                assert!(is_served(&well).await && is_served(&panics).await);
            }
            assert!(set(&["c"]).is_err());
            backends.shared.health_changed();
            assert!(is_served(&well).await && !is_served(&panics).await);
            assert!(set(&["d"]).is_ok());
            assert!(is_served(&panics).await);
        }
    }
}
