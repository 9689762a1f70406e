//! A stream of a connection, and the request over it.

use std::{error::Error as _, mem, sync::Arc};

use axum_core::body::Body as RequestBody;
use http::{Extensions, Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{
    connection::{Admission, Connection, Sender},
    convert::Copy,
    head::{HeadSize, Share},
};
use crate::error::{Error, ErrorKind, classify};

/// The right to one stream of a connection, which counts it until it's dropped.
#[derive(Debug)]
pub(in super::super) struct Stream {
    sender: Sender,
    connection: Arc<Connection>,
    share: Share,
    admission: Admission,
    began: Instant,
    /// Whether the request has come to an end: a response, or an error.
    is_answered: bool,
}

/// Why a request got no response.
pub(in super::super) struct SendError {
    pub(in super::super) error: Error,
    /// The request, if the backend can't have processed it.
    pub(in super::super) unprocessed: Option<Request<RequestBody>>,
}

impl Stream {
    /// A stream that the connection has counted.
    pub(super) fn new(sender: Sender, connection: Arc<Connection>, share: Share, admission: Admission) -> Self {
        Self { sender, connection, share, admission, began: Instant::now(), is_answered: false }
    }

    /// Returns whether a request with such a head may share its connection.
    ///
    /// # Errors
    ///
    /// The head is too large for the backend.
    pub(in super::super) fn admit(&self, head: HeadSize) -> Result<Share, Error> {
        self.connection.heads.admit(head, self.admission.max_request_head)
    }

    /// Returns whether the backend offers extended CONNECT, which carries WebSockets.
    pub(in super::super) fn can_connect(&self) -> bool {
        self.connection.can_connect()
    }

    /// Sends a request, and waits for the head of its response.
    pub(super) async fn exchange(
        mut self,
        mut request: Request<RequestBody>,
        head: HeadSize,
    ) -> Result<(Response<Incoming>, Self), SendError> {
        let copy = Copy::of(&request);
        // Extensions can't be cloned cheaply. hyper reads them only for an extended CONNECT, which isn't resent.
        let extensions = if copy.is_some() { mem::take(request.extensions_mut()) } else { Extensions::new() };
        let sent = self.sender.requests().try_send_request(request).await;
        self.is_answered = true;
        let connection = &*self.connection;
        let mut error = match sent {
            Ok(response) => {
                let (fields, max) = (response.headers().len(), connection.max_response_head.fields);
                if fields > max {
                    let why = format!("its {fields} fields are more than {max}");
                    return Err(SendError::new(Error::with_source(ErrorKind::ResponseHeadTooLarge, why)));
                }
                if self.share == Share::Alone {
                    connection.heads.prove(head);
                }
                return Ok((response, self));
            }
            Err(error) => error,
        };
        connection.heads.doubt(head);
        let message = error.take_message();
        if self.share == Share::Alone && connection.is_overwhelmed() {
            return Err(SendError::new(Error::with_source(ErrorKind::RequestHeadTooLarge, error.into_error())));
        }
        if is_refused_by_h2(error.error()) && connection.take_large_head() {
            return Err(SendError::new(Error::with_source(ErrorKind::ResponseHeadTooLarge, error.into_error())));
        }
        let mut unprocessed = message.or_else(|| copy?.resend(error.error()));
        if let Some(request) = &mut unprocessed {
            request.extensions_mut().extend(extensions);
        }
        Err(SendError { error: classify(error.into_error().into(), ErrorKind::ConnectionClosed), unprocessed })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let waited = (!self.is_answered).then(|| self.began.elapsed());
        self.connection.end_stream(self.admission, waited);
    }
}

impl SendError {
    fn new(error: Error) -> Self {
        Self { error, unprocessed: None }
    }
}

/// Returns whether h2 itself refused a response.
fn is_refused_by_h2(error: &hyper::Error) -> bool {
    error.source().and_then(|cause| cause.downcast_ref::<h2::Error>()).is_some_and(h2::Error::is_library)
}
