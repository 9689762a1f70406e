//! The service, which removes the client's fields, finds the user and sets the fields.

use std::{
    mem,
    task::{Context, Poll},
};

use http::Request;
use tower_layer::Layer;
use tower_service::Service;

use super::{config::act_for, future::ResponseFuture, layer::RemoteUserLayer, source::Source};
use crate::service::FromRejection;

/// The service of a [`RemoteUserLayer`].
///
/// ```
/// use tower::Layer;
/// use tower_reverse_proxy::{Client, RemoteUserLayer, remote_user::SetRemoteUser};
///
/// # fn main() -> Result<(), tower_reverse_proxy::InvalidClient> {
/// let client: SetRemoteUser<Client> = RemoteUserLayer::new().layer("http://127.0.0.1:8000".try_into()?);
/// # let _ = client;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SetRemoteUser<S> {
    inner: S,
    layer: RemoteUserLayer,
}

impl<S> Layer<S> for RemoteUserLayer {
    type Service = SetRemoteUser<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SetRemoteUser { inner, layer: self.clone() }
    }
}

impl<S, B> Service<Request<B>> for SetRemoteUser<S>
where
    S: Service<Request<B>, Error: FromRejection> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let config = &self.layer.config;
        config.remove_owned(&mut request);
        let found = match &config.source {
            Source::Inserted => Ok(()),
            Source::Extension(read) => {
                let user = read(request.extensions());
                act_for(&mut request, user)
            }
            Source::Parts(read) => {
                let (parts, body) = request.into_parts();
                let user = read(&parts);
                request = Request::from_parts(parts, body);
                act_for(&mut request, user)
            }
            Source::Lookup(look_up) => match look_up(request.extensions(), config.deadline) {
                Some(lookup) => {
                    // The ready service goes with the request.
                    let clone = self.inner.clone();
                    let inner = mem::replace(&mut self.inner, clone);
                    return ResponseFuture::looking_up(lookup, inner, request, self.layer.clone());
                }
                None => act_for(&mut request, None),
            },
        };
        match found.and_then(|()| config.set_fields(&mut request)) {
            Ok(()) => ResponseFuture::calling(self.inner.call(request)),
            Err(error) => ResponseFuture::rejected(error),
        }
    }
}
