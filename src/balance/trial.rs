//! Tries whether a member that is out is well again: by a connect in the background, or by one request, which goes to
//! another member if it fails.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::{BoxError, body::Body};
use http::{
    HeaderValue, Method, Request, Response,
    header::{AUTHORIZATION, UPGRADE},
};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tokio::{
    runtime::Handle,
    time::{Instant, Sleep, sleep},
};
use tower::util::Oneshot;
use tower_service::Service;

use super::{
    attempt::{Attempt, InFlight},
    member::MemberState,
    outcome::Outcome,
};
use crate::{client::Client, identity::Owner, service::HttpService};

/// A trial of a member that is out. If it's dropped, it has shown nothing.
#[derive(Debug)]
pub(super) struct Trial {
    member: Option<Arc<MemberState>>,
}

impl Trial {
    /// The trial that [`begin_trial`](MemberState::begin_trial) of this member has begun.
    pub(super) fn new(member: Arc<MemberState>) -> Self {
        Self { member: Some(member) }
    }

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
    pub(super) fn connect(self, client: Client) {
        let Ok(runtime) = Handle::try_current() else { return };
        drop(runtime.spawn(async move {
            match client.probe().await {
                Ok(()) => self.succeeded(false),
                Err(error) => match Outcome::of_error(&error) {
                    // This process lacks descriptors, or the client has as many connections as it may have.
                    Outcome::Nothing => drop(self),
                    outcome => self.failed(outcome),
                },
            }
        }));
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
        && !request.headers().get_all(AUTHORIZATION).iter().any(authenticates_connection)
}

/// Returns whether these are credentials whose second use is a replay.
fn authenticates_connection(credentials: &HeaderValue) -> bool {
    let scheme = credentials.as_bytes().split(|&byte| byte == b' ').next().unwrap_or_default();
    scheme.eq_ignore_ascii_case(b"Negotiate") || scheme.eq_ignore_ascii_case(b"NTLM")
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

pin_project! {
    /// The attempt of a trial.
    pub(super) struct Trying<S: Service<Request<Body>>> {
        #[pin]
        call: Oneshot<S, Request<Body>>,
        #[pin]
        timer: Sleep,
        attempt: Option<Attempt>,
        trial: Option<Trial>,
    }
}

impl<S: Service<Request<Body>>> Trying<S> {
    pub(super) fn new(service: S, request: Request<Body>, in_flight: InFlight, trial: Trial, time: Duration) -> Self {
        let attempt = Some(Attempt::new(in_flight, &request, true));
        Self { call: Oneshot::new(service, request), timer: sleep(time), attempt, trial: Some(trial) }
    }
}

impl<S: HttpService> Future for Trying<S> {
    /// `None` if the trial has failed, and the request has to be sent to another member.
    type Output = Option<(Response<S::ResponseBody>, Option<InFlight>)>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = match this.call.poll(cx) {
            Poll::Ready(result) => result.map_err(Into::<BoxError>::into),
            Poll::Pending => {
                std::task::ready!(this.timer.poll(cx));
                // The client doesn't wait for a member that may hang.
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
