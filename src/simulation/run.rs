//! Runs a simulation: one task per request.

use std::{
    panic::resume_unwind,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum_core::{BoxError, body::Body};
use http::Request;
use http_body_util::BodyExt;
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tower::ServiceExt;

use super::{
    Outcome, Report, SimulatedMembers, Simulation,
    arrivals::Arrivals,
    chance::Chance,
    report::{Exchange, Run},
    simulated::{Number, RespondedBy},
};
use crate::{
    error::{ErrorKind, classify},
    service::HttpService,
};

/// How long a simulation goes on after the last arrival.
const REST: Duration = Duration::from_secs(60);

/// The streams of random numbers other than those of requests.
const ARRIVALS: u64 = u64::MAX / 2;

impl Simulation {
    /// Sends the requests to the service that the function makes of the members. Returns what became of them.
    ///
    /// It needs a runtime of tokio with timers. Under the paused clock (`start_paused = true`) and on one thread, a run
    /// takes as long as its computation, and the same seed has the same result. With the clock running, a simulation of
    /// a minute takes a minute.
    ///
    /// The settings aren't used up: a second run, with another service, gets the same requests.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// use tower_reverse_proxy::simulation::{SimulatedMember, Simulation};
    ///
    /// let simulation = Simulation::new(7).member(SimulatedMember::new("http://a"));
    /// let report = simulation.run(|members| members.service("http://a")).await;
    /// assert_eq!(report.failed(), 0, "{report}");
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If the service panics.
    pub async fn run<S>(&self, service: impl FnOnce(&SimulatedMembers) -> S) -> Report
    where
        S: HttpService + Send + 'static,
        S::Future: Send,
    {
        let start = Instant::now();
        let members = SimulatedMembers::new(&self.members, self.seed, start);
        let service = service(&members);
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut clients = JoinSet::new();
        let arrivals = Arrivals::new(Chance::new(self.seed, ARRIVALS), self.rates.clone(), self.lasting);
        for (number, arrived) in arrivals.enumerate() {
            if arrived > start.elapsed() {
                wait_until(start, arrived).await;
            }
            let mut request = (self.request)(number as u64);
            request.extensions_mut().insert(Number(number as u64));
            lock(&requests).push(Exchange { arrived, ended: arrived, outcome: Outcome::Unfinished, member: None });
            let (service, requests, patience) = (service.clone(), Arc::clone(&requests), self.patience);
            clients.spawn(async move {
                let (outcome, member) = exchange(service, request, patience).await;
                if let Some(request) = lock(&requests).get_mut(number) {
                    *request = Exchange { ended: start.elapsed(), outcome, member, ..*request };
                }
            });
            while let Some(ended) = clients.try_join_next() {
                panic_with(ended);
            }
        }
        let end = self.lasting.saturating_add(REST);
        let deadline = start.checked_add(end).unwrap_or(start);
        while let Ok(Some(ended)) = timeout_at(deadline, clients.join_next()).await {
            panic_with(ended);
        }
        drop(clients);
        let mut requests = std::mem::take(&mut *lock(&requests));
        for request in requests.iter_mut().filter(|request| request.outcome == Outcome::Unfinished) {
            request.ended = start.elapsed().max(request.arrived);
        }
        Report::new(Run { requests, attempts: members.attempts() })
    }
}

/// Waits. The time is before the end of the simulation; one that no clock reaches doesn't end it.
async fn wait_until(start: Instant, at: Duration) {
    match start.checked_add(at) {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Sends a request as one client does: until its response is complete, or until the client leaves.
async fn exchange<S>(service: S, request: Request<Body>, patience: Option<Duration>) -> (Outcome, Option<usize>)
where
    S: HttpService,
{
    let complete = async {
        let response = match service.oneshot(request).await {
            Ok(response) => response,
            Err(error) => return (Outcome::Error(classify(error.into(), ErrorKind::Upstream).kind()), None),
        };
        let member = response.extensions().get::<RespondedBy>().map(|member| member.0);
        let status = response.status();
        let mut body = std::pin::pin!(response.into_body());
        while let Some(frame) = body.frame().await {
            if let Err(error) = frame {
                let error: BoxError = error.into();
                return (Outcome::Error(classify(error, ErrorKind::ResponseBody).kind()), member);
            }
        }
        (Outcome::Status(status), member)
    };
    match patience {
        Some(patience) => timeout(patience, complete).await.unwrap_or((Outcome::Left, None)),
        None => complete.await,
    }
}

fn lock(requests: &Mutex<Vec<Exchange>>) -> std::sync::MutexGuard<'_, Vec<Exchange>> {
    requests.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Goes on with the panic of a client's task, which is the service's.
fn panic_with(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        resume_unwind(error.into_panic());
    }
}
