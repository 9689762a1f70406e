//! A simulated member as a service.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum_core::body::Body;
use http::{Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_service::Service;

use super::{
    ServiceTime, SimulatedMember,
    chance::Chance,
    server::{Fate, Server},
};
use crate::error::{Error, ErrorKind};

/// The members of a running [`Simulation`](super::Simulation), each as a service.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// use tower_reverse_proxy::simulation::{Simulation, SimulatedMember};
///
/// // A single member, without a balancer.
/// let simulation = Simulation::new(1).rate(10.0).member(SimulatedMember::new("http://a"));
/// let report = simulation.run(|members| members.service("http://a")).await;
/// assert_eq!(report.failed(), 0);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SimulatedMembers {
    members: Arc<[Arc<Shared>]>,
}

/// A [`SimulatedMember`] as a service, in place of a client.
///
/// It responds with an empty body. It doesn't read the body of the request. Clones are the same member.
#[derive(Clone)]
pub struct Simulated {
    /// `None` is an address at which nothing listens.
    member: Option<Arc<Shared>>,
}

struct Shared {
    name: String,
    index: usize,
    start: Instant,
    seed: u64,
    service_time: ServiceTime,
    state: Mutex<State>,
}

struct State {
    server: Server,
    /// When each attempt arrived.
    attempts: Vec<Duration>,
}

/// The number of a request of the simulation, as an extension: what the request needs depends on it.
#[derive(Clone, Copy)]
pub(super) struct Number(pub(super) u64);

/// The index of the member that responded, as an extension.
#[derive(Clone, Copy)]
pub(super) struct RespondedBy(pub(super) usize);

impl SimulatedMembers {
    pub(super) fn new(members: &[SimulatedMember], seed: u64, start: Instant) -> Self {
        let shared = |(index, member): (usize, &SimulatedMember)| {
            let server = Server::new(member, Chance::new(seed, u64::MAX - index as u64));
            let state = Mutex::new(State { server, attempts: Vec::new() });
            let (name, service_time) = (member.name.clone(), member.service_time);
            Arc::new(Shared { name, index, start, seed, service_time, state })
        };
        Self { members: members.iter().enumerate().map(shared).collect() }
    }

    /// Returns the member of this name. For a name without a member, it's an address at which nothing listens, which
    /// refuses every connection.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use tower_reverse_proxy::{ErrorKind, simulation::{Outcome, Simulation}};
    /// let report = Simulation::new(1).run(|members| members.service("http://nowhere")).await;
    /// assert_eq!(report.count(Outcome::Error(ErrorKind::Connect)), report.offered());
    /// # }
    /// ```
    #[must_use]
    pub fn service(&self, name: &str) -> Simulated {
        Simulated { member: self.members.iter().find(|member| member.name == name).cloned() }
    }

    /// Returns all members, in the order in which they were added.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    /// let simulation = Simulation::new(1).member(SimulatedMember::new("http://a"));
    /// simulation.run(|members| members.iter().next().unwrap()).await;
    /// # }
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = Simulated> {
        self.members.iter().map(|member| Simulated { member: Some(Arc::clone(member)) })
    }

    /// The names, and when each attempt arrived.
    pub(super) fn attempts(&self) -> Vec<(String, Vec<Duration>)> {
        self.members.iter().map(|member| (member.name.clone(), member.lock().attempts.clone())).collect()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive(&self, number: Option<u64>) -> Fate {
        let now = self.start.elapsed();
        let mut state = self.lock();
        // A request that isn't the simulation's has a number all the same, so that the run can be repeated.
        let number = number.unwrap_or_else(|| (1 << 63) + ((self.index as u64) << 40) + state.attempts.len() as u64);
        let work = self.service_time.of(Chance::new(self.seed, number).unit());
        state.attempts.push(now);
        state.server.arrive(now, work)
    }
}

impl Service<Request<Body>> for Simulated {
    type Response = Response<Body>;
    type Error = Error;
    type Future = SimulatedFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> SimulatedFuture {
        let number = request.extensions().get::<Number>().map(|number| number.0);
        let fate = self.member.as_ref().map_or(Fate::Refused, |member| member.arrive(number));
        let start = self.member.as_ref().map(|member| member.start);
        let at = match fate {
            Fate::Refused => None,
            Fate::Closed(at) => Some(at),
            Fate::Response(at, _) => at,
        };
        let at = start.zip(at).and_then(|(start, at)| start.checked_add(at));
        let index = self.member.as_ref().map_or(usize::MAX, |member| member.index);
        SimulatedFuture { sleep: at.map(sleep_until), fate, index, request: Some(request) }
    }
}

pin_project! {
    /// The future of a [`Simulated`]'s response.
    #[must_use = "futures do nothing unless polled"]
    pub struct SimulatedFuture {
        // `None` if it's refused, or never ends.
        #[pin]
        sleep: Option<Sleep>,
        fate: Fate,
        index: usize,
        // `None` at the end.
        request: Option<Request<Body>>,
    }
}

impl Future for SimulatedFuture {
    type Output = Result<Response<Body>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match (this.sleep.as_pin_mut(), *this.fate) {
            (_, Fate::Refused) => {}
            (None, _) => return Poll::Pending,
            (Some(sleep), _) => ready!(sleep.poll(cx)),
        }
        let request = this.request.take();
        Poll::Ready(match *this.fate {
            Fate::Refused => {
                let error = Error::with_source(ErrorKind::Connect, io::Error::from(io::ErrorKind::ConnectionRefused));
                Err(match request {
                    Some(request) => error.with_unsent(request),
                    None => error,
                })
            }
            Fate::Closed(_) => Err(Error::new(ErrorKind::ConnectionClosed)),
            Fate::Response(_, status) => Ok(response(status, *this.index)),
        })
    }
}

fn response(status: StatusCode, index: usize) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.extensions_mut().insert(RespondedBy(index));
    response
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulated").field("member", &self.member.as_ref().map(|member| &member.name)).finish()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for SimulatedFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedFuture").field("fate", &self.fate).finish_non_exhaustive()
    }
}
