//! `Expect: 100-continue` (RFC 9110, section 10.1.1), end to end: the client gets its 100 when the backend has sent
//! one.
//!
//! hyper's server sends a 100 when the request's body is first polled, and hyper's client polls it at once. The body
//! therefore waits for the backend's 100 before it polls the client's.
//!
//! Over HTTP/2 it doesn't wait, because hyper doesn't expose informational responses there: the crate's client releases
//! the body when it sends the head. That is allowed, because RFC 9110 doesn't require a client to wait. A backend that
//! rejects the body answers during the upload, which ends that stream and leaves the connection open. The field is sent
//! all the same, because it's addressed to the origin server, which may answer 417 or reject the request early.
//!
//! Other informational responses aren't forwarded, because hyper's server can't send them.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, StatusCode, header::EXPECT};
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use crate::{expect::ContinueSignal, observe};

pin_project! {
    /// Ready when the backend has sent a 100, or the continue timeout has elapsed.
    #[derive(Debug)]
    pub(super) struct Expectation {
        signal: ContinueSignal,
        #[pin]
        timeout: Sleep,
    }
}

impl Expectation {
    /// Returns the expectation of a request that has one. Registers for the backend's informational responses.
    pub(super) fn from_request<B>(request: &mut Request<B>, timeout: Duration) -> Option<Self> {
        let expects = request
            .headers()
            .get_all(EXPECT)
            .iter()
            .any(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"100-continue"));
        if !expects && !observe::shows_informational_responses() {
            return None;
        }
        let signal = ContinueSignal::default();
        let continued = signal.clone();
        hyper::ext::on_informational(request, move |response| match response.status() {
            StatusCode::CONTINUE => continued.release(),
            status => observe::informational_response(status),
        });
        if !expects {
            return None;
        }
        request.extensions_mut().insert(signal.clone());
        Some(Self { signal, timeout: tokio::time::sleep(timeout) })
    }
}

impl Future for Expectation {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        match this.signal.poll_released(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => this.timeout.poll(cx),
        }
    }
}
