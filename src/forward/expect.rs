//! `Expect: 100-continue` (RFC 9110, section 10.1.1), end to end: the client isn't told to go on before the backend says so.
//!
//! hyper's server sends its 100 when the request's body is first asked for, and its client has no patience: it asks at once.
//! So the body waits for the backend's 100 before it's asked for. Other informational responses end here: hyper's server can't
//! send them.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, StatusCode, header::EXPECT};
use pin_project_lite::pin_project;
use tokio::time::Sleep;

pin_project! {
    /// Ready when the backend has said that it wants the body, or hasn't said anything for long enough.
    #[derive(Debug)]
    pub(super) struct Expectation {
        said: Arc<Said>,
        #[pin]
        patience: Sleep,
    }
}

#[derive(Debug, Default)]
struct Said {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    go_on: bool,
    waker: Option<Waker>,
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
        let said = Arc::new(Said::default());
        let heard = said.clone();
        hyper::ext::on_informational(request, move |response| match response.status() {
            StatusCode::CONTINUE => heard.go_on(),
            status => tracing::debug!(
                target: "tower_reverse_proxy",
                status = status.as_u16(),
                "an informational response that can't be passed on"
            ),
        });
        expects.then(|| Self { said, patience: tokio::time::sleep(wait) })
    }
}

impl Said {
    fn go_on(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.go_on = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for Expectation {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let mut state = this.said.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.go_on {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        drop(state);
        this.patience.poll(cx)
    }
}
