//! A token that is fetched once for all requests, and again before it expires.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum_core::BoxError;
use http::HeaderValue;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{Credentials, CredentialsFuture, Token, bearer::value};
use crate::{
    error::{Error, ErrorKind},
    observe,
};

/// How long a fetch may take. Until then, no other is started.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// How long no fetch follows a failed one, and how old a refused token is before it's replaced: a server for tokens
/// isn't asked more often, whatever the backend answers.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) type Fetch = Pin<Box<dyn Future<Output = Result<Token, BoxError>> + Send>>;

/// The value for `Authorization`, or why there is none. `None` until the fetch has ended.
type Outcome = Option<Result<HeaderValue, Error>>;

pub(super) struct Refresher {
    fetch: Box<dyn Fn() -> Fetch + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Held>,
    flight: Option<Flight>,
    failure: Option<Failed>,
}

/// A token that has been fetched.
struct Held {
    value: HeaderValue,
    requested: Instant,
    /// `None` if it's too far away to be a point in time.
    refresh: Option<Instant>,
    expiry: Option<Instant>,
}

/// A fetch that hasn't ended.
struct Flight {
    outcome: watch::Receiver<Outcome>,
    /// Whether requests wait for it although there is a token, because the backend has refused that one.
    replaces: bool,
}

struct Failed {
    at: Instant,
    error: Error,
}

impl Refresher {
    pub(super) fn new(fetch: impl Fn() -> Fetch + Send + Sync + 'static) -> Self {
        Self { fetch: Box::new(fetch), state: Mutex::default() }
    }

    /// Returns the token, at once or after a fetch.
    pub(super) fn credentials(this: &Arc<Self>, was_refused: bool) -> CredentialsFuture {
        let now = Instant::now();
        let mut state = this.state();
        state.end_lost_flight(now);
        let State { token, flight, failure } = &mut *state;
        let has_failed = failure.as_ref().is_some_and(|failure| now < failure.at + PAUSE);
        let valid = token.as_ref().filter(|token| token.expiry.is_none_or(|expiry| now < expiry));
        let replace = was_refused && valid.is_some_and(|token| token.requested + PAUSE <= now);

        if let Some(token) = valid
            && !replace
            && !flight.as_ref().is_some_and(|flight| flight.replaces)
        {
            let is_due = token.refresh.is_some_and(|refresh| refresh <= now);
            if is_due && flight.is_none() && !has_failed {
                *flight = Some(Self::start(this, now));
            }
            return CredentialsFuture::ready(credentials(token.value.clone()));
        }

        let valid = valid.map(|token| token.value.clone());
        let flight = match (flight, failure) {
            (None, Some(failure)) if has_failed => {
                return CredentialsFuture::ready(valid.map_or_else(|| Err(failure.error.clone()), credentials));
            }
            (flight, _) => flight.get_or_insert_with(|| Self::start(this, now)),
        };
        flight.replaces |= replace;
        let mut outcome = flight.outcome.clone();
        CredentialsFuture::pending(async move {
            let outcome = match outcome.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(lost())),
                Err(_) => Err(lost()),
            };
            // The refused token may be accepted elsewhere at the backend.
            outcome.or_else(|error| valid.ok_or(error)).and_then(credentials)
        })
    }

    /// Starts a fetch. Its task doesn't end with the request that starts it.
    fn start(this: &Arc<Self>, now: Instant) -> Flight {
        let (sender, outcome) = watch::channel(None);
        let this = this.clone();
        tokio::spawn(async move {
            let token = match timeout(FETCH_TIMEOUT, async { (this.fetch)().await }).await {
                Ok(Ok(token)) => Held::new(&token, now).ok_or_else(|| "it isn't a bearer token (RFC 6750)".into()),
                Ok(Err(error)) => Err(error),
                Err(_) => Err("it wasn't there within 30 s".into()),
            };
            let token = token.map_err(missing);
            if let Err(error) = &token {
                observe::failed_fetch(error);
            }
            let mut state = this.state();
            let result = match token {
                Ok(token) => {
                    state.failure = None;
                    Ok(state.token.insert(token).value.clone())
                }
                Err(error) => {
                    state.failure = Some(Failed { at: Instant::now(), error: error.clone() });
                    Err(error)
                }
            };
            state.flight = None;
            drop(state);
            sender.send_replace(Some(result));
        });
        Flight { outcome, replaces: false }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets a fetch that has ended without an outcome, because its task panicked or its runtime was shut down.
    fn end_lost_flight(&mut self, now: Instant) {
        if self.flight.as_ref().is_some_and(|flight| flight.outcome.has_changed().is_err()) {
            self.flight = None;
            self.failure = Some(Failed { at: now, error: lost() });
        }
    }
}

impl Held {
    /// `None` if it isn't a bearer token.
    fn new(Token { value: token, expires_in }: &Token, requested: Instant) -> Option<Self> {
        // Else a token that has no life, such as one without `expires_in`, would be fetched for each request.
        let life = (*expires_in).max(PAUSE);
        Some(Self {
            value: value(token)?,
            requested,
            refresh: requested.checked_add(life / 5 * 4),
            expiry: requested.checked_add(life),
        })
    }
}

fn credentials(value: HeaderValue) -> Result<Option<Credentials>, Error> {
    Ok(Some(Credentials::of_front(value)))
}

fn missing(cause: BoxError) -> Error {
    Error::with_source(ErrorKind::CredentialsMissing, cause)
}

fn lost() -> Error {
    missing("the fetch of the token ended without a result".into())
}
