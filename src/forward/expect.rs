//! `Expect: 100-continue` (RFC 9110, section 10.1.1), end to end: the client gets its 100 when the backend has sent
//! one.
//!
//! hyper's server sends a 100 when the request's body is first polled, and clients poll it at once. The body therefore
//! waits for the backend's 100 before it polls the client's. The crate's client releases it by the [`ContinueSignal`], and
//! hyper's client by a callback.
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
        timeout: Duration,
        // Starts when the body is first polled, because until then the request waits for a connection.
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Expectation {
    /// Returns the expectation of a request that has one.
    pub(super) fn from_request<B>(request: &mut Request<B>, timeout: Duration) -> Option<Pin<Box<Self>>> {
        let expects = request
            .headers()
            .get_all(EXPECT)
            .iter()
            .any(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"100-continue"));
        if !expects {
            return None;
        }
        let signal = ContinueSignal::default();
        let continued = signal.clone();
        // For hyper's clients, which don't know the signal.
        hyper::ext::on_informational(request, move |response| match response.status() {
            StatusCode::CONTINUE => continued.release(),
            status => observe::informational_response(status),
        });
        request.extensions_mut().insert(signal.clone());
        Some(Box::pin(Self { signal, timeout, sleep: None }))
    }
}

impl Future for Expectation {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if this.signal.poll_released(cx).is_ready() {
            return Poll::Ready(());
        }
        if this.sleep.is_none() {
            this.sleep.set(Some(tokio::time::sleep(*this.timeout)));
        }
        this.sleep.as_pin_mut().map_or(Poll::Ready(()), |sleep| sleep.poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_timeout_starts_when_the_body_is_first_polled() {
        let timeout = Duration::from_secs(1);
        let mut request = Request::post("/").header(EXPECT, "100-continue").body(()).unwrap();
        let expectation = Expectation::from_request(&mut request, timeout).unwrap();
        // The request waits longer for a connection.
        sleep(timeout * 5).await;
        let polled = Instant::now();
        expectation.await;
        assert!(polled.elapsed() >= timeout);
    }
}
