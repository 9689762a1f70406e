//! Waiting for a connection.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, Sleep, sleep},
};

use super::{
    super::{http1::Freshness, limit::Ticket},
    demand::{Demand, Grant, Kind},
    dispatcher::{Dispatcher, Enqueued},
    state::Outcome,
};
use crate::{
    error::{Error, ErrorKind},
    identity::Owner,
};

/// The future of a connection that a request waits for.
///
/// # Cancel safety
///
/// Dropping it leaves the queue. A connection that is being opened goes to another request.
pub(in crate::client) struct Acquire {
    state: State,
}

enum State {
    Granted(Option<Grant>),
    Waiting(Waiting),
}

struct Waiting {
    dispatcher: Arc<Dispatcher>,
    kind: Kind,
    ticket: Ticket,
    outcome: oneshot::Receiver<Outcome>,
    timer: Option<(Pin<Box<Sleep>>, Duration)>,
}

/// The shortest time between two checks whether a connection is still being opened for a request.
const SHORTEST: Duration = Duration::from_millis(10);

impl Acquire {
    /// Waits for a connection, which is new or belongs to this owner. `None`: it's new or has no owner.
    pub(in crate::client) fn new(
        dispatcher: &Arc<Dispatcher>,
        kind: Kind,
        freshness: Freshness,
        owner: Option<Owner>,
    ) -> Self {
        let demand = Demand { freshness, owner, runtime: Handle::current() };
        let state = match dispatcher.enqueue(kind, demand) {
            Enqueued::Granted(grant) => State::Granted(Some(grant)),
            Enqueued::Waiting { ticket, outcome, timeout } => {
                let timer = timeout.map(|timeout| (Box::pin(sleep(timeout)), timeout.max(SHORTEST)));
                State::Waiting(Waiting { dispatcher: dispatcher.clone(), kind, ticket, outcome, timer })
            }
        };
        Self { state }
    }
}

/// Opens a connection without a request.
pub(in crate::client) async fn probe(dispatcher: &Arc<Dispatcher>) -> Result<(), Error> {
    let kind = if dispatcher.speaks_http2() { Kind::Shared } else { Kind::Http1 };
    let grant = Acquire::new(dispatcher, kind, Freshness::New, None).await?;
    dispatcher.give_back(grant);
    Ok(())
}

impl Future for Acquire {
    type Output = Result<Grant, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            State::Granted(grant) => Poll::Ready(grant.take().ok_or_else(|| ErrorKind::Connect.into())),
            State::Waiting(waiting) => waiting.poll(cx),
        }
    }
}

impl Waiting {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        if let Poll::Ready(outcome) = Pin::new(&mut self.outcome).poll(cx) {
            // The sender is dropped only with a waiter that has left, which isn't polled.
            return Poll::Ready(outcome.unwrap_or_else(|_| Err(ErrorKind::Connect.into())));
        }
        let Some((timer, timeout)) = &mut self.timer else { return Poll::Pending };
        loop {
            ready!(timer.as_mut().poll(cx));
            match self.dispatcher.timed_out(self.kind, self.ticket) {
                Some(error) => return Poll::Ready(Err(error)),
                None => timer.as_mut().reset(Instant::now() + *timeout),
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.outcome.close();
        match self.outcome.try_recv() {
            // The grant came at the same time.
            Ok(Ok(grant)) => self.dispatcher.give_back(grant),
            Ok(Err(_)) => {}
            Err(_) => self.dispatcher.leave(self.ticket),
        }
    }
}

impl fmt::Debug for Acquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquire").finish_non_exhaustive()
    }
}
