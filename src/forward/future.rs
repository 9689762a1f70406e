//! The future of an exchange, from the request half to the response half.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum_core::body::Body;
use http::{Request, Response};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::util::Oneshot;
use tower_service::Service;

use super::{
    body::RequestBody,
    config::ForwardConfig,
    expect::Expectation,
    failure::{self, RequestHead},
    idle::poll_timer,
    request::{self, Refusal, RequestContext},
    response,
    upload::{ExchangeUpload, Upload, WaitingOn},
};
use crate::{
    abandoned::abandon,
    error::{Error, ErrorKind, classify},
    headers::grpc,
    service::HttpService,
};

/// Forwards a request to an upstream service, whose readiness is awaited in the returned future.
pub(crate) fn forward<U>(config: Arc<ForwardConfig>, upstream: U, mut request: Request<Body>) -> ForwardFuture<U>
where
    U: Service<Request<Body>>,
{
    let version = request.version();
    let head = RequestHead::keep(&config, &request);
    let context = match request::prepare(&config, &mut request) {
        Ok(context) => context,
        Err(refusal) => {
            let response = failure::respond(&config, refusal, grpc::is_grpc(request.headers()), head);
            return ForwardFuture { state: State::Refused { response: Some(response) } };
        }
    };
    let mut upload = None;
    if !request.body().is_end_stream() {
        let has_expect = context.has_expect;
        let expectation =
            has_expect.then(|| Expectation::from_request(&mut request, config.continue_timeout)).flatten();
        let shared = Arc::new(Upload::new(version));
        upload = Some(ExchangeUpload::new(shared.clone()));
        let forbidden = request::forbidden_trailers(&mut request, version);
        // In place, because a request is large to move.
        let body = mem::take(request.body_mut());
        *request.body_mut() =
            Body::new(RequestBody::new(body, version, forbidden, expectation, config.body_idle_timeout, shared));
    }
    let call = Oneshot::new(upstream, request);
    ForwardFuture { state: State::Calling { call, clock: None, upload, context, head, config } }
}

pin_project! {
    /// The future of a forwarded request's response. It can't fail, because a failure becomes a response.
    ///
    /// # Cancel safety
    ///
    /// Dropping it cancels the request to the backend at once.
    #[must_use = "futures do nothing unless polled"]
    pub struct ForwardFuture<U: Service<Request<Body>>> {
        #[pin]
        state: State<U>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<U: Service<Request<Body>>> {
        Refused {
            response: Option<Response<Body>>,
        },
        Calling {
            #[pin]
            call: Oneshot<U, Request<Body>>,
            #[pin]
            clock: Option<Sleep>,
            upload: Option<ExchangeUpload>,
            context: RequestContext,
            head: Option<Box<RequestHead>>,
            config: Arc<ForwardConfig>,
        },
    }
}

impl<U: HttpService> Future for ForwardFuture<U> {
    type Output = Response<Body>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.as_mut().project().state.project() {
            StateProj::Refused { response } => {
                Poll::Ready(response.take().unwrap_or_else(|| panic!("polled after completion")))
            }
            StateProj::Calling { call, clock, upload, context, head, config } => {
                if let Some(upload) = upload {
                    upload.exchange_polled(cx);
                }
                let finished = match call.poll(cx) {
                    Poll::Ready(Ok(response)) => response::finish(config, context, response, upload.take()),
                    Poll::Ready(Err(error)) => {
                        let error = classify(error.into(), ErrorKind::Upstream);
                        Err(upload.as_ref().map_or(error.clone(), |upload| upload.root_cause(error)))
                    }
                    Poll::Pending => {
                        let kind = ready!(poll_overdue(clock, upload.as_deref(), config, cx));
                        return Poll::Ready(self.give_up(kind));
                    }
                };
                Poll::Ready(finished.unwrap_or_else(|error| {
                    failure::respond(config, Refusal::Failed(error), context.is_grpc, head.take())
                }))
            }
        }
    }
}

impl<U: HttpService> ForwardFuture<U> {
    /// Drops the call, because the backend is overdue. Returns the response to the client.
    #[cold]
    fn give_up(self: Pin<&mut Self>, kind: ErrorKind) -> Response<Body> {
        let mut state = self.project().state;
        let StateProj::Calling { context, head, config, .. } = state.as_mut().project() else {
            panic!("polled after completion")
        };
        let (config, is_grpc, head) = (config.clone(), context.is_grpc, head.take());
        // At once, because a balancer has to learn why the attempt ends.
        let ((), member) = abandon(|| state.set(State::Refused { response: None }));
        failure::respond(&config, Refusal::Failed(Error::from(kind).with_member(member)), is_grpc, head)
    }
}

/// Ready when the backend has exceeded the header timeout, or the idle timeout of the request's body.
///
/// The header timeout starts at the end of the request's body, because a slow upload isn't a slow backend. During the
/// body, the backend has the idle timeout to accept each frame. The time that the upload waits for the client is
/// limited by the body itself.
fn poll_overdue(
    mut clock: Pin<&mut Option<Sleep>>,
    upload: Option<&Upload>,
    config: &ForwardConfig,
    cx: &mut Context<'_>,
) -> Poll<ErrorKind> {
    let shortest = match upload {
        None => config.header_timeout,
        Some(_) => [config.header_timeout, config.body_idle_timeout].into_iter().flatten().min(),
    };
    let Some(shortest) = shortest else { return Poll::Pending };
    if clock.is_none() {
        let timer = tokio::time::sleep(shortest);
        if let Some(upload) = upload {
            upload.exchange_waits(timer.deadline() - shortest);
        }
        clock.set(Some(timer));
    }
    let Some(mut clock) = clock.as_pin_mut() else { return Poll::Pending };
    loop {
        if poll_timer(clock.as_mut(), cx).is_pending() {
            return Poll::Pending;
        }
        let Some(upload) = upload else { return Poll::Ready(ErrorKind::HeaderTimeout) };
        // The body doesn't reset this timer. When it fires, it reads the progress of the body, and is set to the
        // earliest time at which a timeout could elapse.
        let (waiting_on, since) = upload.waiting_on();
        let (timeout, kind) = match waiting_on {
            WaitingOn::Nothing => (config.header_timeout, ErrorKind::HeaderTimeout),
            WaitingOn::Backend => (config.body_idle_timeout, ErrorKind::SendTimeout),
            WaitingOn::Client => (None, ErrorKind::RequestBodyTimeout),
        };
        let now = Instant::now();
        match timeout.map(|timeout| since.unwrap_or(now) + timeout) {
            Some(due) if due <= now => return Poll::Ready(kind),
            Some(due) => clock.as_mut().reset(due.min(now + shortest)),
            None => clock.as_mut().reset(now + shortest),
        }
    }
}
