//! The right to send requests over a connection.

use std::convert::Infallible;

use axum_core::body::Body;
use hyper::client::conn::http2::SendRequest;
use tokio::sync::mpsc;

/// Sends requests over a connection. The pool has one, and each stream. When the last one is dropped, the connection
/// closes.
#[derive(Clone, Debug)]
pub(in super::super) struct Sender {
    requests: SendRequest<Body>,
    _is_used: mpsc::Sender<Infallible>,
}

impl Sender {
    /// Returns a sender, and a receiver that ends when the last one is dropped.
    pub(super) fn new(requests: SendRequest<Body>) -> (Self, mpsc::Receiver<Infallible>) {
        let (is_used, senders) = mpsc::channel(1);
        (Self { requests, _is_used: is_used }, senders)
    }

    /// Returns whether the connection takes no more requests.
    pub(in super::super) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    pub(in super::super) fn requests(&mut self) -> &mut SendRequest<Body> {
        &mut self.requests
    }
}
