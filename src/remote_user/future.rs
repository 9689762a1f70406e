//! The future of the service: it waits for the lookup of the user, if there is one, and for the response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Request;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{config::act_for, layer::RemoteUserLayer, source::Lookup};
use crate::{
    error::{Error, ErrorKind},
    reject,
    service::FromRejection,
};

pin_project! {
    /// The future of [`SetRemoteUser`](super::SetRemoteUser).
    ///
    /// # Cancel safety
    ///
    /// Dropping it cancels the lookup of the user, or the exchange.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S: Service<Request<B>>, B> {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S: Service<Request<B>>, B> {
        LookingUp { lookup: Lookup, call: Option<Box<Call<S, B>>> },
        Calling { #[pin] future: reject::ResponseFuture<S::Future> },
    }
}

/// What is done after the lookup. Boxed, because most requests need no lookup.
struct Call<S, B> {
    inner: S,
    request: Request<B>,
    layer: RemoteUserLayer,
}

impl<S: Service<Request<B>>, B> ResponseFuture<S, B> {
    pub(super) fn looking_up(lookup: Lookup, inner: S, request: Request<B>, layer: RemoteUserLayer) -> Self {
        Self { state: State::LookingUp { lookup, call: Some(Box::new(Call { inner, request, layer })) } }
    }

    pub(super) fn calling(future: S::Future) -> Self {
        Self { state: State::Calling { future: reject::ResponseFuture::calling(future) } }
    }

    pub(super) fn rejected(error: Error) -> Self {
        Self { state: State::Calling { future: reject::ResponseFuture::rejected(error) } }
    }
}

impl<S, B> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Error: FromRejection>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Calling { future } => return future.poll(cx),
                StateProj::LookingUp { lookup, call } => {
                    let user = ready!(lookup.as_mut().poll(cx));
                    let Some(call) = call.take() else { panic!("polled after completion") };
                    let Call { mut inner, mut request, layer } = *call;
                    // An unknown user isn't the same as no user.
                    let user = user.map_err(|error| Error::with_source(ErrorKind::IdentityUnknown, error))?;
                    act_for(&mut request, user)?;
                    layer.config.set_fields(&mut request)?;
                    let future = reject::ResponseFuture::calling(inner.call(request));
                    state.set(State::Calling { future });
                }
            }
        }
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for ResponseFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use axum_core::body::Body;

    use super::*;
    use crate::client::{self, Client};

    /// In bytes, on a 64-bit machine.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_lookup_makes_no_future_larger() {
        let (with, without) = (size_of::<ResponseFuture<Client, Body>>(), size_of::<client::ResponseFuture>());
        assert!(with <= without + 24, "{with} and {without}");
    }
}
