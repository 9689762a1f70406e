//! What a layer that may answer in the backend's place has for a future and a body.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Response, header::WWW_AUTHENTICATE};
use http_body_util::{Either, Empty};
use pin_project_lite::pin_project;

use crate::error::Error;

/// The body of the inner service's response, or none. It asks nothing of the inner body, so it fits around any client.
pub type RefusableBody<B> = Either<B, Empty<Bytes>>;

/// Marks the response of a layer that has refused a request, as a response extension. An [`Error`] alone marks the failure of
/// a nested proxy, which has reported it, and has made its page.
#[derive(Clone, Debug)]
pub(crate) struct Refused(pub(crate) Error);

pin_project! {
    /// The future of a layer that refuses some requests itself.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct RefusableFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F> {
        Calling { #[pin] future: F },
        Refused { error: Error },
    }
}

impl<F> RefusableFuture<F> {
    pub(crate) fn calling(future: F) -> Self {
        Self { state: State::Calling { future } }
    }

    pub(crate) fn refused(error: impl Into<Error>) -> Self {
        Self { state: State::Refused { error: error.into() } }
    }
}

impl<F, B, E> Future for RefusableFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<RefusableBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match self.project().state.project() {
            StateProj::Calling { future } => ready!(future.poll(cx))?.map(Either::Left),
            StateProj::Refused { error } => {
                let mut response = Response::new(Either::Right(Empty::new()));
                *response.status_mut() = error.status();
                if let Some(challenge) = error.challenge() {
                    response.headers_mut().insert(WWW_AUTHENTICATE, challenge.clone());
                }
                // The proxy around the layer makes the response of it that all its failures have.
                response.extensions_mut().insert(Refused(error.clone()));
                response.extensions_mut().insert(error.clone());
                response
            }
        }))
    }
}
