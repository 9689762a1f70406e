//! What a layer does with each request: the removal of the client's fields, and its own.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Request, StatusCode};

use super::{encoding::Encoding, field::Field, source::Source};
use crate::{
    error::{Error, ErrorKind},
    headers::{eq_folded, owned},
    identity::{CredentialsUser, RemoteUser},
    observe,
};

/// The configuration of a [`RemoteUserLayer`](super::RemoteUserLayer).
#[derive(Clone)]
pub(super) struct Config {
    pub(super) source: Source,
    /// How long a lookup may take.
    pub(super) deadline: Duration,
    pub(super) header: HeaderName,
    pub(super) encoding: Encoding,
    pub(super) map: Option<Map>,
    pub(super) also: Vec<Field>,
    pub(super) required: bool,
    pub(super) challenge: Option<HeaderValue>,
}

/// Maps a user to the name that the field has.
pub(super) type Map = Arc<dyn Fn(&RemoteUser) -> Option<String> + Send + Sync>;

impl Config {
    /// The names of all fields that the layer sets.
    pub(super) fn names(&self) -> impl Iterator<Item = &HeaderName> {
        [&self.header].into_iter().chain(self.also.iter().map(|field| &field.name))
    }

    /// Whether two of the fields have names that a server may fold into the same variable.
    pub(super) fn repeats_a_name(&self) -> bool {
        let is_repeated = |(at, name): (usize, &HeaderName)| {
            self.names().take(at).any(|other| eq_folded(other.as_str().as_bytes(), name.as_str()))
        };
        self.names().enumerate().any(is_repeated)
    }

    /// Removes the client's copies of all fields that the layer sets, and the same trailers.
    pub(super) fn remove_owned<B>(&self, request: &mut Request<B>) {
        for name in self.names() {
            owned::remove(request, name);
        }
    }

    /// Sets the fields if there is a user.
    pub(super) fn set_fields<B>(&self, request: &mut Request<B>) -> Result<(), Error> {
        let Some(user) = request.extensions().get::<RemoteUser>() else {
            return if self.required { Err(self.sign_in_required()) } else { Ok(()) };
        };
        let Some(value) = self.written(user) else {
            match self.map.as_ref().is_some_and(|map| map(user).is_none()) {
                true => observe::unmapped_user(user.as_str(), &self.header),
                false => observe::unrepresentable_user(user.as_str(), &self.header),
            }
            return Err(ErrorKind::UnrepresentableUser.into());
        };
        request.headers_mut().insert(&self.header, value);
        if self.also.is_empty() { Ok(()) } else { self.set_further_fields(request) }
    }

    fn set_further_fields<B>(&self, request: &mut Request<B>) -> Result<(), Error> {
        for field in &self.also {
            if let Some(value) = field.of(request.extensions(), self.encoding, self.required)? {
                request.headers_mut().insert(&field.name, value);
            }
        }
        Ok(())
    }

    /// Returns the user's name as the value of the field. `None` if the field can't represent it.
    fn written(&self, user: &RemoteUser) -> Option<HeaderValue> {
        let written = |name: &str| HeaderValue::from_bytes(self.encoding.encode(name)?.as_bytes()).ok();
        match &self.map {
            Some(map) => written(&map(user)?),
            None => written(user.as_str()),
        }
    }

    fn sign_in_required(&self) -> Error {
        match &self.challenge {
            Some(challenge) => Error::with_challenge(ErrorKind::SignInRequired, challenge.clone()),
            None => ErrorKind::SignInRequired.into(),
        }
    }
}

/// The cause of a refused request whose credentials are for another user than `Remote-User`.
const WRONG_ORDER: &str = "a BasicAuthLayer, another AuthorizationLayer or an AssertionLayer speaks for another user \
                           than this RemoteUserLayer. If it saw the request first, add the RemoteUserLayer last, or \
                           put it first into the ServiceBuilder. If it belongs to another upstream, which couldn't \
                           be reached, let both upstreams name the user alike, or put the layers around the balancer";

/// Makes this user, or none, the one that the later layers act for.
pub(super) fn act_for<B>(request: &mut Request<B>, user: Option<RemoteUser>) -> Result<(), Error> {
    match user {
        Some(user) => drop(request.extensions_mut().insert(user)),
        None => drop(request.extensions_mut().remove::<RemoteUser>()),
    }
    match CredentialsUser::is_another(request.extensions()) {
        true => Err(Error::rejected(StatusCode::INTERNAL_SERVER_ERROR, WRONG_ORDER)),
        false => Ok(()),
    }
}
