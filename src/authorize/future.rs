//! The future of a response to a request with credentials.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower_service::Service;

use super::{
    CredentialSource, Credentials,
    layer::{Sent, Shared},
};
use crate::{
    error::{Error, ErrorKind},
    service::FromRejection,
};

pin_project! {
    /// The future of an [`Authorization`](super::Authorization)'s response: it waits for the credentials, and then for
    /// the response.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<C, S, B>
    where
        C: CredentialSource,
        S: Service<Request<B>>,
    {
        shared: Arc<Shared<C>>,
        #[pin]
        state: State<C, S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<C, S, B>
    where
        C: CredentialSource,
        S: Service<Request<B>>,
    {
        Asking {
            #[pin]
            credentials: C::Future,
            // `None` after the credentials have arrived.
            call: Option<(S, Request<B>)>,
            // Set up if they don't arrive at once.
            deadline: Option<Pin<Box<Sleep>>>,
        },
        Calling {
            #[pin]
            response: S::Future,
            // `None` if the request was sent without credentials.
            sent: Option<Sent<C::Proof>>,
        },
    }
}

impl<C, S, B> ResponseFuture<C, S, B>
where
    C: CredentialSource,
    S: Service<Request<B>>,
{
    pub(super) fn new(shared: Arc<Shared<C>>, credentials: C::Future, service: S, request: Request<B>) -> Self {
        Self { shared, state: State::Asking { credentials, call: Some((service, request)), deadline: None } }
    }
}

impl<C, S, B, R> Future for ResponseFuture<C, S, B>
where
    C: CredentialSource,
    S: Service<Request<B>, Response = Response<R>, Error: FromRejection>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Asking { credentials, call, deadline } => {
                    let credentials = match credentials.poll(cx) {
                        Poll::Ready(credentials) => credentials,
                        Poll::Pending => {
                            let Some(limit) = this.shared.deadline() else { return Poll::Pending };
                            ready!(deadline.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
                            let cause = format!("the source had none after {limit:?}, the layer's `deadline`");
                            Err(Error::with_source(ErrorKind::CredentialsTimeout, cause))
                        }
                    };
                    let Some((mut service, mut request)) = call.take() else { panic!("polled after completion") };
                    let sent = credentials.and_then(|credentials| this.shared.apply(credentials, &mut request))?;
                    State::Calling { response: service.call(request), sent }
                }
                StateProj::Calling { response, sent } => {
                    let response = ready!(response.poll(cx))?;
                    let Some(sent) = sent.take() else { return Poll::Ready(Ok(response)) };
                    return Poll::Ready(this.shared.receive(sent, response).map_err(Error::into));
                }
            };
            this.state.set(next);
        }
    }
}

impl<C, S, B> fmt::Debug for ResponseFuture<C, S, B>
where
    C: CredentialSource,
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// The future of the credentials of this module's sources.
///
/// # Cancel safety
///
/// Dropping it cancels the lookup of a password, and the request for a Kerberos token, unless a thread is already
/// making it. The fetch of a bearer token goes on, because other requests wait for it.
#[must_use = "futures do nothing unless polled"]
pub struct CredentialsFuture<P = ()>(Inner<P>);

type Outcome<P> = Result<Option<Credentials<P>>, Error>;

enum Inner<P> {
    /// `None` after it has been polled.
    Ready(Option<Outcome<P>>),
    Pending(Pin<Box<dyn Future<Output = Outcome<P>> + Send>>),
}

impl<P> CredentialsFuture<P> {
    pub(super) fn ready(credentials: Outcome<P>) -> Self {
        Self(Inner::Ready(Some(credentials)))
    }

    pub(super) fn pending(credentials: impl Future<Output = Outcome<P>> + Send + 'static) -> Self {
        Self(Inner::Pending(Box::pin(credentials)))
    }
}

// Nothing in it is pinned but the boxed future.
impl<P> Unpin for CredentialsFuture<P> {}

impl<P> Future for CredentialsFuture<P> {
    type Output = Outcome<P>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Ready(credentials) => match credentials.take() {
                Some(credentials) => Poll::Ready(credentials),
                None => panic!("polled after completion"),
            },
            Inner::Pending(credentials) => credentials.as_mut().poll(cx),
        }
    }
}

impl<P> fmt::Debug for CredentialsFuture<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialsFuture").finish_non_exhaustive()
    }
}
