//! The guards of an attempt: one until the response's head, and one until its end.

use std::sync::{Arc, Mutex, PoisonError};

use axum_core::{BoxError, body::Body};
use http::{Request, Response};
use http_body::Body as _;
use tokio::time::Instant;

use super::{
    load::Count,
    member::{Ending, MemberState},
    outcome::{Outcome, ResponseHead},
};
use crate::{
    abandoned,
    error::{Error, ErrorKind},
    tried::Tried,
    tunnel_guard::{TunnelEnd, TunnelResource},
};

/// An attempt that counts as in flight until this is dropped: with the response's body, or with the tunnel.
#[derive(Debug)]
pub(super) struct InFlight {
    /// `None` once it's no longer counted.
    member: Option<Arc<MemberState>>,
}

impl InFlight {
    /// Begins an attempt. `None` if the member is leaving its set.
    pub(super) fn begin(member: &Arc<MemberState>) -> Option<Self> {
        let count = member.load.begin();
        let this = Self::counted(member.clone());
        (count == Count::Counted).then_some(this)
    }

    /// Guards an attempt that is counted already.
    pub(super) fn counted(member: Arc<MemberState>) -> Self {
        Self { member: Some(member) }
    }

    /// Leaves the attempt counted.
    pub(super) fn forget(mut self) {
        self.member = None;
    }

    pub(super) fn member(&self) -> Option<&Arc<MemberState>> {
        self.member.as_ref()
    }

    fn ended(&self, ending: &Ending<'_>, now: Instant) -> Outcome {
        self.member.as_ref().map_or(Outcome::Nothing, |member| member.ended(ending, now))
    }

    /// Reports that the response has ended well.
    pub(super) fn ended_well(self) {
        if let Some(member) = &self.member {
            member.ended_well();
        }
    }

    /// Reports that the response's body has failed.
    pub(super) fn body_failed(&self, error: &BoxError) {
        self.ended(&Ending::BodyFailed(&**error), Instant::now());
        self.name_member(error);
    }

    /// Reports that the proxy has given up the response.
    pub(super) fn given_up(&self, kind: ErrorKind) {
        self.ended(&Ending::BodyFailed(&Error::from(kind)), Instant::now());
        if let Some(member) = &self.member {
            abandoned::is_at(member.member.name());
        }
    }

    /// Names the member in the error, because an event has to show whose failure it is.
    fn name_member(&self, error: &BoxError) {
        if let (Some(member), Some(error)) = (&self.member, Error::find(error)) {
            error.set_member(member.member.name());
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(member) = self.member.take() {
            member.end();
        }
    }
}

/// An attempt that has opened a tunnel. It's in flight until the tunnel's end, or until the member has ended its side,
/// because a client may leave its own open for long.
#[derive(Debug)]
pub(super) struct TunnelInFlight(Mutex<Option<InFlight>>);

impl TunnelInFlight {
    pub(super) fn new(in_flight: InFlight) -> Self {
        Self(Mutex::new(Some(in_flight)))
    }
}

impl TunnelResource for TunnelInFlight {
    fn ends(&self) -> Option<TunnelEnd> {
        let in_flight = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        in_flight.as_ref().and_then(InFlight::member).and_then(MemberState::tunnel_end)
    }

    fn backend_ended(&self) {
        let in_flight = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(in_flight);
    }
}

impl Drop for TunnelInFlight {
    fn drop(&mut self) {
        let in_flight = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if abandoned::is_overdue()
            && let Some(in_flight) = in_flight
        {
            in_flight.given_up(ErrorKind::UnexpectedUpgrade);
        }
    }
}

/// An attempt without a response as yet.
#[derive(Debug)]
pub(super) struct Attempt {
    /// `None` once the outcome is known.
    in_flight: Option<InFlight>,
    began: Option<Instant>,
    /// Whether the time to the head is measured, and is the member's: no upload is part of it.
    is_bodiless: bool,
}

impl Attempt {
    /// Watches an attempt. With `is_timed`, the member is compared with others, for which the clock is read.
    pub(super) fn new(in_flight: InFlight, request: &Request<Body>, is_timed: bool) -> Self {
        let began = is_timed.then(Instant::now);
        Self { in_flight: Some(in_flight), began, is_bodiless: is_timed && request.body().is_end_stream() }
    }

    /// Reports the head of the response. Returns what it shows of the member, and what is left of the attempt: its
    /// body, or a tunnel.
    #[inline]
    pub(super) fn responded<B: http_body::Body>(mut self, response: &Response<B>) -> (Outcome, Option<InFlight>) {
        let in_flight = self.in_flight.take();
        let member = in_flight.as_ref().and_then(InFlight::member);
        let outcome = member.map(|member| member.responded(&ResponseHead::of(response), self.began, self.is_bodiless));
        (outcome.unwrap_or(Outcome::Nothing), in_flight)
    }

    /// Reports that there is no response. Returns what that shows of the member.
    ///
    /// If the error has the request, the member is recorded in it, so that a further attempt goes to another one.
    pub(super) fn failed(mut self, error: &BoxError) -> Outcome {
        let Some(in_flight) = self.in_flight.take() else { return Outcome::Nothing };
        let outcome = in_flight.ended(&Ending::Failed(&**error), Instant::now());
        in_flight.name_member(error);
        if let Some(member) = in_flight.member() {
            mark_unsent(error, member);
        }
        outcome
    }
}

/// Adds the member to the list of a request that comes back with an error, so that it's sent to another one.
fn mark_unsent(error: &BoxError, member: &MemberState) {
    let Some(error) = Error::find(error) else { return };
    let Some(view) = member.view() else { return };
    error.with_unsent_request(|request| {
        let tried = request.extensions_mut().get_or_insert_default::<Tried>();
        tried.push_unsent(member.set, member.id);
        tried.set_exhausted(member.set, view.is_exhausted(tried));
    });
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(in_flight) = &self.in_flight {
            let now = Instant::now();
            // A member that waits for an upload isn't late, because the client may send it as slowly as it likes.
            let may_be_late = self.is_bodiless || abandoned::is_overdue();
            let began = self.began.filter(|_| may_be_late);
            let after = began.map(|began| now.saturating_duration_since(began));
            in_flight.ended(&Ending::Abandoned { after }, now);
            if let Some(member) = in_flight.member() {
                abandoned::is_at(member.member.name());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::*;
    use crate::balance::{Backends, State, member::Member, watch::Watch};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_an_upload_is_no_evidence() {
        for (body, faults) in [(Body::empty(), 1), (Body::from("a part"), 0)] {
            let now = Instant::now();
            let member = Arc::new(MemberState::alone(Member::named("a"), now, Watch::up(now)));
            let request = Request::new(body);
            let attempts = [0, 1].map(|_| Attempt::new(InFlight::begin(&member).unwrap(), &request, true));
            tokio::time::advance(Duration::from_secs(30)).await;
            drop(attempts);
            assert_eq!((member.faults(), member.load.in_flight()), (faults, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_the_proxy_gives_up_is_evidence() {
        let now = Instant::now();
        let member = Arc::new(MemberState::alone(Member::named("a"), now, Watch::up(now)));
        let attempt = Attempt::new(InFlight::begin(&member).unwrap(), &Request::new(Body::from("all")), true);
        tokio::time::advance(Duration::from_secs(30)).await;
        abandoned::abandon(|| drop(attempt));
        assert_eq!(member.faults(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn successes_that_take_no_lock_end_a_row_of_faults_and_count_in_the_comparison() {
        let backends = Backends::new([Member::named("bad"), Member::named("good")]);
        let view = backends.shared.view();
        let respond = |position: usize, status: StatusCode, times: usize| {
            for _ in 0..times {
                let in_flight = InFlight::begin(&view.entries[position].state).unwrap();
                let attempt = Attempt::new(in_flight, &Request::new(Body::empty()), true);
                let response = Response::builder().status(status).body(Body::empty()).unwrap();
                drop(attempt.responded(&response));
            }
        };
        respond(1, StatusCode::OK, 20);
        assert_eq!(view.entries[1].state.tally(Instant::now()).attempts(), 20);
        respond(0, StatusCode::BAD_GATEWAY, 4);
        respond(0, StatusCode::OK, 20);
        respond(0, StatusCode::BAD_GATEWAY, 4);
        assert_eq!(backends.status()[0].state(), State::Up);
        respond(0, StatusCode::BAD_GATEWAY, 1);
        assert_eq!(backends.status()[0].state(), State::Ejected);
    }

    #[tokio::test(start_paused = true)]
    async fn the_faults_of_a_single_member_are_not_those_of_a_later_set() {
        let backends = Backends::new([Member::named("a")]);
        let respond = |status: StatusCode, times: usize| {
            let view = backends.shared.view();
            for _ in 0..times {
                let in_flight = InFlight::begin(&view.entries[0].state).unwrap();
                // No clock is read for the successes of a single member, so that they aren't counted.
                let attempt = Attempt::new(in_flight, &Request::new(Body::empty()), !view.is_alone());
                let response = Response::builder().status(status).body(Body::empty()).unwrap();
                drop(attempt.responded(&response));
            }
        };
        for _ in 0..30 {
            respond(StatusCode::INTERNAL_SERVER_ERROR, 1);
            respond(StatusCode::OK, 10);
        }
        let now = Instant::now();
        let tally = backends.shared.view().entries[0].state.tally(now);
        assert!(tally.attempts() <= 1, "{tally:?}");
    }
}
