//! One exchange, from the request half to the response half.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
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
    expect::Expectation,
    failure::{self, RequestHead},
    idle::poll_timer,
    request::{self, Refusal, RequestContext},
    response,
    rules::Rules,
    upload::{ExchangeUpload, Upload, WaitingOn},
};
use crate::{
    error::{ErrorKind, classify},
    headers::grpc,
    service::HttpService,
};

/// Forwards a request to an upstream service, which becomes ready inside of the future.
pub(crate) fn forward<U>(rules: Arc<Rules>, upstream: U, mut request: Request<Body>) -> ForwardFuture<U>
where
    U: Service<Request<Body>>,
{
    let version = request.version();
    let head = RequestHead::keep(&rules, &request);
    let context = match request::prepare(&rules, &mut request) {
        Ok(context) => context,
        Err(refusal) => {
            let response = failure::respond(&rules, refusal, grpc::is_grpc(request.headers()), head);
            return ForwardFuture { state: State::Refused { response: Some(response) } };
        }
    };
    let expectation = Expectation::from_request(&mut request, rules.continue_timeout);
    let mut upload = None;
    if !request.body().is_end_stream() {
        let shared = Arc::new(Upload::new(version));
        upload = Some(ExchangeUpload::new(shared.clone()));
        let forbidden = request::forbidden_trailers(&mut request, version);
        request = request.map(|body| {
            Body::new(RequestBody::new(body, version, forbidden, expectation, rules.body_idle_timeout, shared))
        });
    }
    let call = Oneshot::new(upstream, request);
    ForwardFuture { state: State::Calling { call, clock: None, upload, context, head, rules } }
}

pin_project! {
    /// The future of a forwarded request's response. It never fails: a failure is a response.
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
            rules: Arc<Rules>,
        },
    }
}

impl<U: HttpService> Future for ForwardFuture<U> {
    type Output = Response<Body>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Refused { response } => {
                Poll::Ready(response.take().unwrap_or_else(|| panic!("polled after completion")))
            }
            StateProj::Calling { call, clock, upload, context, head, rules } => {
                if let Some(upload) = upload {
                    upload.exchange_polled(cx);
                }
                let finished = match call.poll(cx) {
                    Poll::Ready(Ok(response)) => response::finish(rules, context, response, upload.take()),
                    Poll::Ready(Err(error)) => {
                        let error = classify(error.into(), ErrorKind::Upstream);
                        Err(upload.as_ref().map_or(error.clone(), |upload| upload.root_cause(error)))
                    }
                    Poll::Pending => match poll_overdue(clock, upload.as_deref(), rules, cx) {
                        Poll::Ready(kind) => Err(kind.into()),
                        Poll::Pending => return Poll::Pending,
                    },
                };
                Poll::Ready(finished.unwrap_or_else(|error| {
                    failure::respond(rules, Refusal::Failed(error), context.is_grpc, head.take())
                }))
            }
        }
    }
}

/// Ready when the backend has had its turn for too long.
///
/// The header timeout runs from the end of the request's body: a slow upload isn't a slow backend. While the body is under
/// way, the backend has the idle timeout to take each frame; the client's own turns are the body's to watch.
fn poll_overdue(
    mut clock: Pin<&mut Option<Sleep>>,
    upload: Option<&Upload>,
    rules: &Rules,
    cx: &mut Context<'_>,
) -> Poll<ErrorKind> {
    let shortest = match upload {
        None => rules.header_timeout,
        Some(_) => [rules.header_timeout, rules.body_idle_timeout].into_iter().flatten().min(),
    };
    let Some(shortest) = shortest else { return Poll::Pending };
    if clock.is_none() {
        clock.set(Some(tokio::time::sleep(shortest)));
    }
    let Some(mut clock) = clock.as_pin_mut() else { return Poll::Pending };
    loop {
        if poll_timer(clock.as_mut(), cx).is_pending() {
            return Poll::Pending;
        }
        let Some(upload) = upload else { return Poll::Ready(ErrorKind::HeaderTimeout) };
        // The body doesn't wake this clock: it looks at what has happened whenever it rings, and rings again in time for
        // whatever the next turn may be.
        let (waiting_on, since) = upload.waiting_on();
        let (timeout, kind) = match waiting_on {
            WaitingOn::Nothing => (rules.header_timeout, ErrorKind::HeaderTimeout),
            WaitingOn::Backend => (rules.body_idle_timeout, ErrorKind::SendTimeout),
            WaitingOn::Client => (None, ErrorKind::RequestBodyTimeout),
        };
        let now = Instant::now();
        match timeout.map(|timeout| since + timeout) {
            Some(due) if due <= now => return Poll::Ready(kind),
            Some(due) => clock.as_mut().reset(due.min(now + shortest)),
            None => clock.as_mut().reset(now + shortest),
        }
    }
}
