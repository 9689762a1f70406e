//! The layer, its options, and what it does to a request and to the response.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode, header::AUTHORIZATION, header::TRAILER, uri::Authority};
use tower_layer::Layer;

use super::{Ask, Authorization, CredentialSource, Credentials, Proof, source::Party};
use crate::{
    authority::without_userinfo,
    error::{Error, ErrorKind},
    headers::{challenge, retain_members},
    identity::{CredentialsUser, Owner},
    observe,
    timeout::bounded,
};

/// A layer that signs in to the backend: it sets `Authorization`, in place of the client's own, to credentials from a
/// [`CredentialSource`].
///
/// It belongs on the upstream side ([`upstream_layer`](crate::ReverseProxyLayer::upstream_layer)), behind a
/// [`RemoteUserLayer`](crate::RemoteUserLayer) and inside a retry layer, so that each attempt has its own credentials.
/// It's an ordinary tower layer and works around any HTTP client whose error is `From<`[`Error`]`>`.
///
/// The [module](crate::authorize) has an example with a source of your own. Two of these layers don't complement each
/// other, because the inner one removes what the outer one has set: one source with both does.
///
/// # What the client gets
///
/// | the backend's response | the client gets |
/// |---|---|
/// | of any status, to the credentials | the response without `WWW-Authenticate`, `Persistent-Auth` and `Proxy-Support` |
/// | 401 to the front's credentials | 502 ([`CredentialsRefused`](ErrorKind::CredentialsRefused)), and an event at the level `ERROR` |
/// | 401 to a user's credentials | 403 ([`CredentialsRefused`](ErrorKind::CredentialsRefused)), and an event at the level `WARN` |
/// | 401, with [`pass_challenges`](Self::pass_challenges) | the 401, with the challenges that aren't a step of the front's own handshake |
/// | 401, because there were no credentials | the 401 with its challenges |
///
/// # Security
///
/// The client's `Authorization` is always removed, also when there are no credentials. So is an
/// [`Owner`] that an outer layer has set. Neither `Debug` nor errors nor events show the credentials.
///
/// # Cancel safety
///
/// A request that is dropped while it waits for its credentials sends nothing.
#[doc(alias("Authorization", "credentials", "proxy_set_header Authorization", "credential injector"))]
pub struct AuthorizationLayer<C> {
    shared: Arc<Shared<C>>,
}

pub(super) struct Shared<C> {
    source: C,
    config: Config,
    /// Whether the last credentials were refused, until the source has been asked again.
    refused: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Config {
    refused_as: Option<StatusCode>,
    pass_challenges: bool,
    required: bool,
    deadline: Option<Duration>,
}

impl<C> AuthorizationLayer<C> {
    /// Sends the credentials of this source.
    ///
    /// ```
    /// use tower_reverse_proxy::{AuthorizationLayer, authorize::CredentialSource};
    ///
    /// fn layer<C: CredentialSource>(source: C) -> AuthorizationLayer<C> {
    ///     AuthorizationLayer::with_source(source).required(true)
    /// }
    /// ```
    pub fn with_source(source: C) -> Self {
        let config = Config {
            refused_as: None,
            pass_challenges: false,
            required: false,
            deadline: Some(Duration::from_secs(10)),
        };
        Self { shared: Arc::new(Shared { source, config, refused: AtomicBool::new(false) }) }
    }
}

impl<C: Clone> AuthorizationLayer<C> {
    /// Sets the status that the client gets if the backend answers 401 to the credentials. Default: 502 for the front's
    /// own, 403 for those of a user.
    ///
    /// ```
    /// use axum::http::StatusCode;
    /// use tower_reverse_proxy::BasicAuthLayer;
    ///
    /// let layer = BasicAuthLayer::remote_user("s3cret").refused_as(StatusCode::NOT_FOUND);
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't 4xx or 5xx, or if it's 401, which needs a challenge: [`pass_challenges`](Self::pass_challenges) lets
    /// the backend's own 401 pass.
    #[must_use]
    #[track_caller]
    pub fn refused_as(mut self, status: StatusCode) -> Self {
        let is_error = status.is_client_error() || status.is_server_error();
        assert!(
            is_error && status != StatusCode::UNAUTHORIZED,
            "invalid status {status} for refused credentials: write one of 4xx or 5xx other than 401, or let the \
             backend's 401 pass with `pass_challenges(true)`"
        );
        self.config().refused_as = Some(status);
        self
    }

    /// Sets whether a 401 and the challenges of the backend pass to the client. Default: `false`, a 401 becomes 502 or
    /// 403.
    ///
    /// It's for a backend whose own sign-in is meant for the client, where the layer only spares some of its users the
    /// sign-in. The steps of a handshake (`Negotiate` and `NTLM` with a token) are removed nevertheless, because they
    /// continue the front's own handshake.
    ///
    /// ```
    /// use tower_reverse_proxy::BasicAuthLayer;
    ///
    /// let layer = BasicAuthLayer::remote_user("s3cret").pass_challenges(true);
    /// # let _ = layer;
    /// ```
    ///
    /// # Security
    ///
    /// The client's answer to a challenge of `Basic` is removed from its next request by this layer, as its every
    /// `Authorization` is, but the user has typed a password into a prompt of the front's origin.
    #[must_use]
    pub fn pass_challenges(mut self, pass: bool) -> Self {
        self.config().pass_challenges = pass;
        self
    }

    /// Sets whether a request without credentials is refused with 403 ([`SignInRequired`](ErrorKind::SignInRequired)).
    /// Default: `false`, it's sent without `Authorization`.
    ///
    /// ```
    /// use tower_reverse_proxy::BasicAuthLayer;
    ///
    /// let layer = BasicAuthLayer::remote_user("s3cret").required(true);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn required(mut self, required: bool) -> Self {
        self.config().required = required;
        self
    }

    /// Sets how long a request waits for its credentials. Default: 10 s. `None` disables it. On expiry, the client gets
    /// 504 ([`CredentialsTimeout`](ErrorKind::CredentialsTimeout)).
    ///
    /// The proxy's `header_timeout` doesn't cover this time, because nothing has been sent yet.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::BasicAuthLayer;
    ///
    /// let layer = BasicAuthLayer::remote_user("s3cret").deadline(Duration::from_secs(2));
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.config().deadline = bounded(deadline);
        self
    }

    fn config(&mut self) -> &mut Config {
        &mut Arc::make_mut(&mut self.shared).config
    }
}

impl<C> AuthorizationLayer<C> {
    pub(super) fn shared(&self) -> &Arc<Shared<C>> {
        &self.shared
    }
}

impl<C> Clone for AuthorizationLayer<C> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<C: Clone> Clone for Shared<C> {
    fn clone(&self) -> Self {
        Self {
            source: self.source.clone(),
            config: self.config,
            refused: AtomicBool::new(self.refused.load(Ordering::Relaxed)),
        }
    }
}

impl<C> fmt::Debug for AuthorizationLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { refused_as, pass_challenges, required, deadline } = &self.shared.config;
        f.debug_struct("AuthorizationLayer")
            .field("refused_as", refused_as)
            .field("pass_challenges", pass_challenges)
            .field("required", required)
            .field("deadline", deadline)
            .finish_non_exhaustive()
    }
}

impl<C, S> Layer<S> for AuthorizationLayer<C> {
    type Service = Authorization<C, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authorization::new(inner, self.clone())
    }
}

/// What the layer has to know of the credentials when the response arrives.
pub(super) struct Sent<P> {
    party: Party,
    proof: P,
    /// For the event of a refusal.
    backend: Option<Authority>,
}

impl<C: CredentialSource> Shared<C> {
    /// Removes the client's credentials from a request, and asks for those to send.
    pub(super) fn ask<B>(&self, request: &mut Request<B>) -> C::Future {
        // Its name is letters only, so no other spelling of it is another name for a `HeaderMap`.
        request.headers_mut().remove(AUTHORIZATION);
        retain_members(request.headers_mut(), TRAILER, |member| {
            !member.eq_ignore_ascii_case(AUTHORIZATION.as_str().as_bytes())
        });
        let was_refused = self.refused.load(Ordering::Relaxed) && self.refused.swap(false, Ordering::Relaxed);
        let ask = Ask::new(request.extensions(), request.uri().authority(), was_refused);
        let future = self.source.credentials(&ask);
        if ask.has_read_user() {
            CredentialsUser::record(request.extensions_mut());
        }
        future
    }

    /// Puts the credentials into a request.
    pub(super) fn apply<B>(
        &self,
        credentials: Option<Credentials<C::Proof>>,
        request: &mut Request<B>,
    ) -> Result<Option<Sent<C::Proof>>, Error> {
        let Some(Credentials { authorization, party, owner, proof }) = credentials else {
            request.extensions_mut().remove::<Owner>();
            return if self.config.required { Err(ErrorKind::SignInRequired.into()) } else { Ok(None) };
        };
        request.headers_mut().insert(AUTHORIZATION, authorization);
        match owner {
            // It's the meaning of no extension, too, which costs nothing.
            Owner::Request => drop(request.extensions_mut().remove::<Owner>()),
            owner => drop(request.extensions_mut().insert(owner)),
        }
        Ok(Some(Sent { party, proof, backend: request.uri().authority().cloned() }))
    }

    /// Checks the response to credentials, and removes from it what is meant for the front.
    pub(super) fn receive<R>(
        &self,
        Sent { party, proof, backend }: Sent<C::Proof>,
        mut response: Response<R>,
    ) -> Result<Response<R>, Error> {
        if response.status() == StatusCode::UNAUTHORIZED {
            self.refused.store(true, Ordering::Relaxed);
            if !self.config.pass_challenges {
                return Err(self.refusal(party, proof, backend.as_ref(), &response));
            }
        }
        // The request has been sent, so that a retry layer must not take the failure for one before it.
        proof.verify(response.headers()).map_err(Error::after_sending)?;
        if self.config.pass_challenges {
            challenge::remove_handshakes(response.headers_mut());
        } else {
            challenge::remove_all(response.headers_mut());
        }
        Ok(response)
    }

    #[cold]
    fn refusal<R>(&self, party: Party, proof: C::Proof, backend: Option<&Authority>, response: &Response<R>) -> Error {
        let schemes = challenge::schemes(response.headers());
        let status = match party {
            Party::Front => StatusCode::BAD_GATEWAY,
            Party::User => StatusCode::FORBIDDEN,
        };
        // Clients other than this crate's read the userinfo of a URI.
        let backend = backend.map_or("", without_userinfo);
        observe::credentials_refused(party == Party::Front, backend, &schemes);
        // A last token of the backend may have the reason.
        let cause = proof.verify(response.headers()).err();
        let status = self.config.refused_as.unwrap_or(status);
        Error::with_status(ErrorKind::CredentialsRefused, status, Refusal { schemes, cause })
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.config.deadline
    }
}

/// The cause of a [`CredentialsRefused`](ErrorKind::CredentialsRefused).
#[derive(Debug)]
struct Refusal {
    schemes: String,
    cause: Option<Error>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.schemes {
            "" => f.write_str("it answered 401 without a challenge"),
            schemes => write!(f, "it answered 401 and offers {schemes}"),
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};

    use http::{HeaderMap, HeaderValue};
    use tower::{ServiceExt, service_fn};

    use super::*;

    /// Credentials of another principal, which only the response shows.
    #[derive(Clone)]
    struct OfAnother;

    impl Proof for OfAnother {
        fn verify(self, _: &HeaderMap) -> Result<(), Error> {
            Err(ErrorKind::WrongSpeaker.into())
        }
    }

    impl CredentialSource for OfAnother {
        type Proof = Self;
        type Future = Ready<Result<Option<Credentials<Self>>, Error>>;

        fn credentials(&self, _: &Ask<'_>) -> Self::Future {
            ready(Ok(Some(Credentials::of_front(HeaderValue::from_static("Negotiate oYG3")).proof(Self))))
        }
    }

    #[tokio::test]
    async fn a_retry_layer_learns_that_a_request_with_a_failed_proof_was_sent() {
        for (status, kind) in [(200, ErrorKind::WrongSpeaker), (401, ErrorKind::CredentialsRefused)] {
            let inner = service_fn(move |_: Request<()>| {
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                ready(Ok::<_, Error>(response))
            });
            let service = AuthorizationLayer::with_source(OfAnother).layer(inner);
            let error = service.oneshot(Request::new(())).await.unwrap_err();
            assert_eq!((error.kind(), error.is_unsent()), (kind, false));
        }
    }
}
