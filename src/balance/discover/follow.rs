//! The task that makes each set of a source the set of the backends.

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Weak,
    task::Poll,
};

use axum_core::BoxError;
use futures_core::Stream;
use tokio::task::{AbortHandle, yield_now};
use tokio_util::sync::CancellationToken;

use crate::{
    balance::{Backends, Member, set::Shared},
    observe,
};

/// Follows a source until it's dropped: see [`Backends::follow`].
#[derive(Debug)]
#[must_use = "a source is followed until this is dropped: bind it to a name, or call `detach`"]
pub struct Follow {
    task: AbortHandle,
    is_detached: bool,
}

impl Follow {
    /// Follows the source as long as a handle or a mount of the backends exists.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::discover::Dns};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let backends = Backends::new(["http://app.internal:8000"]);
    /// backends.follow(Dns::new("http://app.internal:8000")).detach();
    /// # }
    /// ```
    pub fn detach(mut self) {
        self.is_detached = true;
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        if !self.is_detached {
            self.task.abort();
        }
    }
}

/// Ends the tasks that follow sources, together with the set.
#[derive(Default)]
pub(in crate::balance) struct Followers {
    end: CancellationToken,
}

impl Followers {
    pub(in crate::balance) fn follow<S, E>(&self, set: Weak<Shared>, source: S) -> Follow
    where
        S: Stream<Item = Result<Vec<Member>, E>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        let task = tokio::spawn(run(set, self.end.clone(), source)).abort_handle();
        Follow { task, is_detached: false }
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl fmt::Debug for Followers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followers").finish_non_exhaustive()
    }
}

async fn run<S, E>(set: Weak<Shared>, end: CancellationToken, source: S)
where
    S: Stream<Item = Result<Vec<Member>, E>>,
    E: Into<BoxError>,
{
    let mut source = pin!(source);
    let mut ended = pin!(end.cancelled());
    // A failure is logged once, until the source is well again.
    let mut has_failed = false;
    loop {
        let next = poll_fn(|cx| match ended.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => source.as_mut().poll_next(cx),
        });
        let Some(found) = next.await else { return };
        let Some(shared) = set.upgrade() else { return };
        let outcome = found.map_err(Into::into).and_then(|members| replace(&Backends { shared }, members));
        match &outcome {
            Ok(()) if has_failed => observe::source_is_back(),
            Err(error) if !has_failed => observe::source_fails(&**error),
            Ok(()) | Err(_) => {}
        }
        has_failed = outcome.is_err();
        // A source that is always ready leaves the other tasks their turn.
        yield_now().await;
    }
}

/// Makes these the members, unless there are none.
fn replace(backends: &Backends, members: Vec<Member>) -> Result<(), BoxError> {
    if members.is_empty() {
        return Err("the source has no members".into());
    }
    // The next set may be well, so a panic of the application's function must not end the task.
    match catch_unwind(AssertUnwindSafe(|| backends.set(members))) {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err("the service of a new member couldn't be made: a function or a layer panicked".into()),
    }
}
