//! `Expect: 100-continue` (RFC 9110, section 10.1.1), end to end: the client isn't told to go on before the backend says so.
//!
//! hyper's server sends its 100 when the request's body is first asked for, and its client has no patience: it asks at once.
//! So the body waits for the backend's 100 before it's asked for. Over HTTP/2 it doesn't wait, because hyper shows no
//! informational response there: the crate's client releases the body when it sends the head. The expectation is met by
//! sending on (RFC 9110, section 10.1.1, obliges nobody to wait), and a backend that refuses the body says so in its midst:
//! the answer comes, and the stream's upload ends alone, not the connection. The field is still sent, because it's the
//! client's word to the origin server, which may answer 417 to it or refuse early for its sake.
//!
//! Other informational responses end here: hyper's server can't send them.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, StatusCode, header::EXPECT};
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use crate::expect::Continue;

pin_project! {
    /// Ready when the backend has said that it wants the body, or hasn't said anything for long enough.
    #[derive(Debug)]
    pub(super) struct Expectation {
        word: Continue,
        #[pin]
        patience: Sleep,
    }
}

impl Expectation {
    /// Listens for what the backend says before its answer; the expectation, if the request has one.
    pub(super) fn of<B>(request: &mut Request<B>, wait: Duration) -> Option<Self> {
        let expects = request
            .headers()
            .get_all(EXPECT)
            .iter()
            .any(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"100-continue"));
        if !expects && !tracing::enabled!(target: "tower_reverse_proxy", tracing::Level::DEBUG) {
            return None;
        }
        let word = Continue::default();
        let heard = word.clone();
        hyper::ext::on_informational(request, move |response| match response.status() {
            StatusCode::CONTINUE => heard.release(),
            status => tracing::debug!(
                target: "tower_reverse_proxy",
                status = status.as_u16(),
                "an informational response that can't be passed on"
            ),
        });
        if !expects {
            return None;
        }
        request.extensions_mut().insert(word.clone());
        Some(Self { word, patience: tokio::time::sleep(wait) })
    }
}

impl Future for Expectation {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        match this.word.poll_released(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => this.patience.poll(cx),
        }
    }
}
