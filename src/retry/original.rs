//! A request as the retry layer got it, for further attempts.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum_core::body::Body;
use http::{HeaderMap, HeaderName, Method, Request, header::UPGRADE, request::Parts};
use http_body::Body as _;

use super::replay::{Limits, Memory, Replay};
use crate::{client::authenticates_connection, identity::Owner, method::is_idempotent, tried::Tried};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A copy of a request's head, and the holder of its body.
pub(super) struct Original {
    head: Parts,
    tried: Tried,
    /// `None` without a body.
    replay: Option<Replay>,
}

impl Original {
    /// Copies a request, which is prepared for the first attempt.
    pub(super) fn of(request: &mut Request<Body>, limits: Limits, memory: &Arc<Memory>) -> Self {
        let tried = Tried::default();
        let body = mem::take(request.body_mut());
        let head = clone_head(request);
        request.extensions_mut().insert(tried.clone());
        let (replay, body) = if body.is_end_stream() {
            (None, body)
        } else {
            let (replay, body) = Replay::new(body, limits, memory.clone());
            (Some(replay), body)
        };
        *request.body_mut() = body;
        Self { head, tried, replay }
    }

    /// Returns whether another attempt may be possible.
    pub(super) fn is_replayable(&self) -> bool {
        !self.tried.is_exhausted() && self.replay.as_ref().is_none_or(Replay::is_possible)
    }

    /// Ready with the request for another attempt when the previous attempt has given back the body; `None` if it can't
    /// be replayed.
    pub(super) fn poll_request(&self, cx: &mut Context<'_>) -> Poll<Option<Request<Body>>> {
        let body = match &self.replay {
            Some(replay) => ready!(replay.poll_body(cx)),
            None => Some(Body::empty()),
        };
        Poll::Ready(body.map(|body| self.with_body(body)))
    }

    /// Returns the head with a body that has come back with it. The layers of the previous attempt haven't changed the
    /// copy.
    pub(super) fn with_body(&self, body: Body) -> Request<Body> {
        let mut request = Request::from_parts(self.head.clone(), body);
        request.extensions_mut().insert(self.tried.clone());
        request
    }
}

fn clone_head(request: &Request<Body>) -> Parts {
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = request.method().clone();
    head.uri = request.uri().clone();
    head.version = request.version();
    head.headers = request.headers().clone();
    head.extensions = request.extensions().clone();
    head
}

/// Returns whether a request may be sent again although a backend may have processed it.
///
/// An upgrade isn't, because it may have opened a tunnel. Neither are credentials that authenticate a connection,
/// because backends take the second use of a token for a replay.
pub(super) fn is_replayable(request: &Request<Body>, by_idempotency_key: bool) -> bool {
    let headers = request.headers();
    (is_idempotent(request.method()) || (by_idempotency_key && has_idempotency_key(request.method(), headers)))
        && !headers.contains_key(UPGRADE)
        && !authenticates_connection(headers)
        && !matches!(request.extensions().get(), Some(Owner::Principal(_)))
}

fn has_idempotency_key(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::POST && headers.get(IDEMPOTENCY_KEY).is_some_and(|key| !key.as_bytes().trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_replayable_by_its_method_or_its_key() {
        let methods = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH", "PROPFIND", "CONNECT", "get"];
        for (at, method) in methods.into_iter().enumerate() {
            let request = || Request::builder().method(method).body(Body::empty()).unwrap();
            assert_eq!(is_replayable(&request(), false), at < 5, "{method}");
            let mut keyed = request();
            keyed.headers_mut().insert(IDEMPOTENCY_KEY, "\"8e03978e\"".parse().unwrap());
            assert_eq!(is_replayable(&keyed, false), at < 5, "{method}");
            assert_eq!(is_replayable(&keyed, true), at < 6, "{method}");
            keyed.headers_mut().insert(IDEMPOTENCY_KEY, " ".parse().unwrap());
            assert_eq!(is_replayable(&keyed, true), at < 5, "{method}");
        }
    }

    #[test]
    fn upgrades_and_single_use_credentials_are_not_replayable() {
        for (name, value, expected) in [
            ("upgrade", "websocket", false),
            ("authorization", "Negotiate YII=", false),
            ("authorization", "NTLM TlRM", false),
            ("authorization", "Basic YTpi", true),
        ] {
            let request = Request::get("/").header(name, value).body(Body::empty()).unwrap();
            assert_eq!(is_replayable(&request, true), expected, "{name}: {value}");
        }
        for (owner, expected) in [(Owner::Request, true), (Owner::Principal("alice".into()), false)] {
            let request = Request::get("/").extension(owner.clone()).body(Body::empty()).unwrap();
            assert_eq!(is_replayable(&request, true), expected, "{owner:?}");
        }
    }
}
