//! The open HTTP/2 connections to one backend, and their streams. Nothing waits here.

use std::{
    fmt,
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use axum_core::BoxError;
use tokio::time::{Instant, sleep_until};

use super::{
    super::{connect::Stream as Io, limit::PermitWatch},
    connection::{self, Connection, Observer, Sender},
    head::{HeadLimit, Share},
    options::Options,
    stream::Stream,
};

/// The open HTTP/2 connections to one backend.
///
/// Its lock may be taken under the dispatcher's, and a connection's under its own. No connection or stream is dropped
/// under it, and none by methods that return [`Removed`] ones.
pub(in super::super) struct Pool {
    state: Mutex<State>,
    options: Options,
    heads: Arc<HeadLimit>,
}

#[derive(Debug, Default)]
struct State {
    /// Connections that requests share, in the order in which they were opened.
    open: Vec<Shared>,
    /// Whether the backend's last SETTINGS were without extended CONNECT.
    lacks_connect: bool,
}

/// A connection that requests share. It closes when its last sender is dropped.
#[derive(Debug)]
struct Shared {
    sender: Sender,
    connection: Arc<Connection>,
    /// Released when the backend has closed the connection, too.
    permit: PermitWatch,
}

/// Connections that get no more requests. They are to be dropped without the caller's lock, and close when no stream is
/// open.
#[derive(Debug, Default)]
pub(in super::super) struct Removed(Vec<Shared>);

/// The shortest time for which a connection is kept without a stream, because the next request may be about to come.
const MIN_IDLE: Duration = Duration::from_millis(10);

impl Removed {
    pub(in super::super) fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }
}

impl Pool {
    pub(in super::super) fn new(options: Options) -> Arc<Self> {
        let heads = Arc::new(HeadLimit::new(options.max_request_head));
        Arc::new(Self { state: Mutex::default(), options, heads })
    }

    /// Takes a stream of the first connection that has one.
    pub(in super::super) fn take(&self) -> (Option<Stream>, Removed) {
        self.take_from(false)
    }

    /// Takes a stream of the first connection that has one, even if it may be frozen, which its streams will show.
    pub(in super::super) fn take_silent(&self) -> (Option<Stream>, Removed) {
        self.take_from(true)
    }

    fn take_from(&self, even_silent: bool) -> (Option<Stream>, Removed) {
        let mut state = self.lock();
        let is_lost = |shared: &Shared| shared.sender.is_closed() || shared.connection.is_lost();
        let removed = Removed(state.open.extract_if(.., |shared| is_lost(shared)).collect());
        let taken = state.open.iter().find_map(|Shared { sender, connection, .. }| {
            let admission = connection.begin_stream(even_silent)?;
            Some((sender.clone(), connection.clone(), admission))
        });
        drop(state);
        let stream =
            taken.map(|(sender, connection, admission)| Stream::new(sender, connection, Share::Shared, admission));
        (stream, removed)
    }

    /// Makes an HTTP/2 connection of a socket, and takes a stream of it. It's put into the pool, unless it's dedicated
    /// to its request.
    ///
    /// # Errors
    ///
    /// The backend doesn't speak HTTP/2, or the connection failed before it sent its SETTINGS.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub(in super::super) async fn open(
        self: &Arc<Self>,
        io: Io,
        share: Share,
        observer: Weak<dyn Observer>,
    ) -> Result<Stream, BoxError> {
        let connection = Arc::new(Connection::opening(&self.options, self.heads.clone(), observer));
        let expiry = expire(Arc::downgrade(self), connection.clone(), self.options.idle_timeout);
        let permit = io.permit();
        let (sender, admission) = connection::open(io, &connection, &self.options, expiry).await?;
        let mut state = self.lock();
        state.lacks_connect = !connection.can_connect();
        if share == Share::Shared {
            state.open.push(Shared { sender: sender.clone(), connection: connection.clone(), permit });
        }
        drop(state);
        Ok(Stream::new(sender, connection, share, admission))
    }

    /// Removes one connection without a stream, if there is one, because its permit is needed.
    pub(in super::super) fn remove_unused(&self) -> Option<Removed> {
        let mut state = self.lock();
        let is_unused = |shared: &Shared| shared.permit.is_held() && shared.connection.unused_since().is_some();
        let unused = state.open.iter().position(is_unused)?;
        Some(Removed(vec![state.open.remove(unused)]))
    }

    /// Removes the connections without a stream.
    pub(in super::super) fn remove_all_unused(&self) -> Removed {
        let mut state = self.lock();
        Removed(state.open.extract_if(.., |shared| shared.connection.unused_since().is_some()).collect())
    }

    /// Returns whether the backend is known to lack extended CONNECT, so that WebSockets need HTTP/1.1.
    pub(in super::super) fn lacks_connect(&self) -> bool {
        self.lock().lacks_connect
    }

    /// Removes a connection that has had no stream for this time. `Err`: when that may be.
    fn remove_expired(&self, connection: &Arc<Connection>, timeout: Duration) -> Result<(), Instant> {
        // A stream is begun under this lock only.
        let mut state = self.lock();
        let now = Instant::now();
        let due = connection.unused_since().unwrap_or(now) + timeout;
        if due > now {
            return Err(due);
        }
        let is_expired = |shared: &Shared| Arc::ptr_eq(&shared.connection, connection);
        let expired = state.open.iter().position(is_expired).map(|expired| state.open.remove(expired));
        drop(state);
        drop(expired);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Removes a connection from its pool when it has had no stream for this time.
async fn expire(pool: Weak<Pool>, connection: Arc<Connection>, timeout: Option<Duration>) {
    let Some(timeout) = timeout.map(|timeout| timeout.max(MIN_IDLE)) else { return pending().await };
    let mut due = Instant::now() + timeout;
    loop {
        sleep_until(due).await;
        let Some(pool) = pool.upgrade() else { break };
        match pool.remove_expired(&connection, timeout) {
            Ok(()) => break,
            Err(later) => due = later,
        }
    }
}
