//! The backend's side of a switch of protocols, as a response extension.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

/// An HTTP/1 connection after a 101. The client inserts it into the response, and the upgrade takes it.
///
/// The request's body must have been written, because the tunnel's first octet may follow at once.
///
/// The connection is closed with the last clone if the upgrade hasn't taken it.
#[derive(Clone)]
pub(crate) struct Switched {
    connection: Arc<Mutex<Option<SwitchedConnection>>>,
}

/// A connection that no longer speaks HTTP.
pub(crate) struct SwitchedConnection {
    pub(crate) io: Box<dyn Transport>,
    /// The bytes that the backend has sent behind the head of its 101.
    pub(crate) leftover: Bytes,
}

/// What HTTP runs over: a socket, TLS, or a connection of the application.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

impl Switched {
    pub(crate) fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, leftover: Bytes) -> Self {
        let connection = SwitchedConnection { io: Box::new(io), leftover };
        Self { connection: Arc::new(Mutex::new(Some(connection))) }
    }

    /// Takes the connection. `None` if a clone of the response has been accepted before.
    pub(crate) fn take(&self) -> Option<SwitchedConnection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Switched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switched").finish_non_exhaustive()
    }
}

impl fmt::Debug for SwitchedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwitchedConnection").field("leftover", &self.leftover.len()).finish_non_exhaustive()
    }
}
