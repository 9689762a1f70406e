//! The policies that the balancer is compared with.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, Response, StatusCode},
    response::IntoResponse,
};
use tokio::time::{Instant, timeout};
use tower::{Service, service_fn};
use tower_reverse_proxy::{
    Error,
    simulation::{Simulated, SimulatedMembers},
};

/// What the controls call: a simulated member, or a service around one.
pub(crate) trait Replica:
    Service<Request<Body>, Response = Response<Body>, Error = Error, Future: Send + 'static> + Clone + Send + Sync + 'static
{
}

impl<S> Replica for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Error, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

type Responding = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>> + Send>>;

/// How a control picks a member.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Policy {
    Random,
    RoundRobin,
    /// The one with the fewest requests in flight, of this number of members that are drawn.
    LeastOf(usize),
    /// The one with the fewest requests in flight of all: join the shortest queue.
    Shortest,
}

/// Members behind a policy, without health, debt, or anything else.
#[derive(Debug)]
pub(crate) struct Control<S = Simulated>(Arc<Shared<S>>);

#[derive(Debug)]
struct Shared<S> {
    members: Vec<S>,
    in_flight: Vec<AtomicU32>,
    policy: Policy,
    next: AtomicUsize,
    random: Mutex<u64>,
}

impl Control {
    pub(crate) fn new(members: &SimulatedMembers, policy: Policy) -> Self {
        Self::over(members.iter(), policy)
    }
}

impl<S> Control<S> {
    pub(crate) fn over(members: impl Iterator<Item = S>, policy: Policy) -> Self {
        let members: Vec<_> = members.collect();
        let in_flight = members.iter().map(|_| AtomicU32::new(0)).collect();
        Self(Arc::new(Shared { members, in_flight, policy, next: AtomicUsize::new(0), random: Mutex::new(1) }))
    }

    fn pick(&self) -> usize {
        let n = self.0.members.len();
        match self.0.policy {
            Policy::Random => self.draw(n),
            Policy::RoundRobin => self.0.next.fetch_add(1, Relaxed) % n,
            Policy::LeastOf(draws) => {
                // The first draws of a shuffle.
                let mut drawn: Vec<usize> = (0..n).collect();
                for at in 0..draws.min(n) {
                    drawn.swap(at, at + self.draw(n - at));
                }
                self.least(drawn.into_iter().take(draws))
            }
            Policy::Shortest => {
                let first = self.draw(n);
                self.least((first..n).chain(0..first))
            }
        }
    }

    /// The first of those with the fewest requests in flight.
    fn least(&self, members: impl Iterator<Item = usize>) -> usize {
        members.min_by_key(|&index| self.0.in_flight[index].load(Relaxed)).unwrap()
    }

    fn draw(&self, below: usize) -> usize {
        let mut state = self.0.random.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        usize::try_from(*state >> 33).unwrap() % below
    }
}

impl<S> Clone for Control<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Replica> Service<Request<Body>> for Control<S> {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Responding;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let index = self.pick();
        let guard = InFlight::new(Arc::clone(&self.0), index);
        let response = self.0.members[index].clone().call(request);
        Box::pin(async move {
            let _guard = guard;
            response.await
        })
    }
}

/// Counts a request until it's dropped.
struct InFlight<S> {
    shared: Arc<Shared<S>>,
    index: usize,
}

impl<S> InFlight<S> {
    fn new(shared: Arc<Shared<S>>, index: usize) -> Self {
        shared.in_flight[index].fetch_add(1, Relaxed);
        Self { shared, index }
    }
}

impl<S> Drop for InFlight<S> {
    fn drop(&mut self) {
        self.shared.in_flight[self.index].fetch_sub(1, Relaxed);
    }
}

/// A circuit breaker around each member, without regard to the others: after five failures in a row, it's open for ten
/// seconds. The members take turns.
#[derive(Debug)]
pub(crate) struct Breakers<S>(Arc<BreakerState<S>>);

#[derive(Debug)]
struct BreakerState<S> {
    members: Vec<S>,
    /// Whether a status is a failure.
    is_failure: fn(StatusCode) -> bool,
    next: AtomicUsize,
    breakers: Mutex<Vec<Breaker>>,
    /// How many were open at most.
    open: AtomicUsize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Breaker {
    in_a_row: u32,
    open_until: Option<Instant>,
}

impl<S> Breakers<S> {
    pub(crate) fn new(members: impl IntoIterator<Item = S>, is_failure: fn(StatusCode) -> bool) -> Self {
        let members: Vec<_> = members.into_iter().collect();
        let breakers = Mutex::new(vec![Breaker::default(); members.len()]);
        let (next, open) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self(Arc::new(BreakerState { members, is_failure, next, breakers, open }))
    }

    /// Returns how many members were out at the same time, at most.
    pub(crate) fn most_open(&self) -> usize {
        self.0.open.load(Relaxed)
    }

    fn ended(&self, index: usize, status: StatusCode) {
        let mut breakers = self.0.breakers.lock().unwrap();
        let breaker = &mut breakers[index];
        breaker.in_a_row = if (self.0.is_failure)(status) { breaker.in_a_row + 1 } else { 0 };
        if breaker.in_a_row == 5 {
            *breaker = Breaker { in_a_row: 0, open_until: Some(Instant::now() + Duration::from_secs(10)) };
        }
        self.0.open.fetch_max(breakers.iter().filter(|breaker| breaker.is_open()).count(), Relaxed);
    }
}

impl Breaker {
    fn is_open(&self) -> bool {
        self.open_until.is_some_and(|until| Instant::now() < until)
    }
}

impl<S> Clone for Breakers<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Replica> Service<Request<Body>> for Breakers<S> {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Responding;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        let n = self.0.members.len();
        let first = self.0.next.fetch_add(1, Relaxed);
        let closed = {
            let breakers = self.0.breakers.lock().unwrap();
            (first..first + n).map(|index| index % n).find(|&index| !breakers[index].is_open())
        };
        Box::pin(async move {
            let Some(index) = closed else {
                return Err(Error::rejected(StatusCode::SERVICE_UNAVAILABLE, "every breaker is open"));
            };
            let response = this.0.members[index].clone().call(request).await;
            if let Ok(response) = &response {
                this.ended(index, response.status());
            }
            response
        })
    }
}

/// Repeats a request that failed, up to three attempts in all, without a budget.
pub(crate) fn insistent(service: impl Replica) -> impl Replica {
    service_fn(move |request: Request<Body>| {
        let mut service = service.clone();
        async move {
            let mut attempt = 1;
            loop {
                let mut again = Request::new(Body::empty());
                again.extensions_mut().clone_from(request.extensions());
                match service.call(again).await {
                    Ok(response) if response.status().is_server_error() && attempt < 3 => attempt += 1,
                    response => return response,
                }
            }
        }
    })
}

/// Responds with 504 if the member hasn't after a second, as a server's own gateway does.
pub(crate) fn with_deadline(mut member: Simulated) -> impl Replica {
    service_fn(move |request: Request<Body>| {
        let response = timeout(Duration::from_secs(1), member.call(request));
        async move { response.await.unwrap_or_else(|_| Ok(StatusCode::GATEWAY_TIMEOUT.into_response())) }
    })
}

/// Responds with 500 to requests for `/poison`, whatever the member.
pub(crate) fn poisonable(mut member: Simulated) -> impl Replica {
    service_fn(move |request: Request<Body>| {
        let is_poison = request.uri().path() == "/poison";
        let response = member.call(request);
        async move {
            let mut response = response.await?;
            if is_poison {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            Ok(response)
        }
    })
}
