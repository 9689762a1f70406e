//! A connection in an exchange.

use std::sync::Arc;

use super::{super::http1::Connection, dispatcher::Dispatcher};

/// An HTTP/1.1 connection that returns to its pool. Dropping it closes the connection.
pub(in crate::client) struct Lease {
    pub(in crate::client) connection: Box<Connection>,
    dispatcher: Arc<Dispatcher>,
}

impl Lease {
    pub(super) fn new(connection: Box<Connection>, dispatcher: Arc<Dispatcher>) -> Self {
        Self { connection, dispatcher }
    }

    /// Returns the connection at the end of its exchange.
    pub(in crate::client) fn end(self) {
        self.dispatcher.put(self.connection);
    }

    /// Returns the connection, which leaves the pool after a 101.
    pub(in crate::client) fn into_connection(self) -> Box<Connection> {
        self.connection
    }
}
