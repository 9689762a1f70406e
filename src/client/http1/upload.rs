//! A request on its way to the backend.

use std::{
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum_core::body::Body;
use bytes::Bytes;
use http::Request;
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::AsyncWrite;

use super::codec::{BodyEncoder, EncodedHead, InvalidUpload, NameStyle, Output, RequestKind, encode_head};
use crate::{
    client::connect::Stream,
    error::{Error, ErrorKind, classify},
};

/// The sending half of a connection.
#[derive(Debug)]
pub(super) struct Upload {
    encoder: BodyEncoder,
    output: Output,
    style: NameStyle,
    is_flushed: bool,
    /// Whether the request came with a body.
    has_body: bool,
    /// Whether any octet of the request is written.
    is_written: bool,
    taken: Taken,
    /// Why writing has failed, after something of the request was written.
    ///
    /// A backend that refuses an upload may respond, close and reset the connection. Its response can still be read.
    /// The rest of the body is discarded, because many clients send all of it before they read.
    failed: Option<io::ErrorKind>,
}

/// The part of the body that was taken before anything was written. It's put back if nothing can be written.
#[derive(Debug)]
enum Taken {
    Nothing,
    Piece(Bytes),
    More,
}

/// Why a request can't be sent.
#[derive(Debug)]
pub(super) enum UploadError {
    Io(io::Error),
    /// Its body has failed, or isn't as long as announced.
    Body(Error),
}

/// How many frames are taken, or writes done, in one poll. A body that always has data doesn't starve the other tasks.
const ROUNDS: usize = 128;

impl Upload {
    pub(super) fn new(style: NameStyle) -> Self {
        Self {
            encoder: BodyEncoder::ended(),
            output: Output::default(),
            style,
            is_flushed: true,
            has_body: false,
            is_written: false,
            taken: Taken::Nothing,
            failed: None,
        }
    }

    /// Begins with a request. Returns its kind, and whether it lets the connection persist.
    pub(super) fn begin(&mut self, request: &Request<Body>) -> (RequestKind, bool) {
        let EncodedHead { body, kind, keep_alive } = encode_head(request, self.style, self.output.octets_mut());
        self.encoder = body;
        self.has_body = !request.body().is_end_stream();
        self.is_written = false;
        self.taken = Taken::Nothing;
        (kind, keep_alive)
    }

    /// Whether all of the request is sent, or discarded.
    pub(super) fn is_done(&self) -> bool {
        self.encoder.is_ended() && self.output.is_empty() && self.is_flushed
    }

    pub(super) fn has_body(&self) -> bool {
        self.has_body
    }

    pub(super) fn is_written(&self) -> bool {
        self.is_written
    }

    /// Why writing has failed, after something of the request was written.
    pub(super) fn failed(&self) -> Option<io::ErrorKind> {
        self.failed
    }

    /// Sends the request. Ready when all of it is sent, or discarded.
    ///
    /// The head, and small data that has come, are written together.
    pub(super) fn poll(
        &mut self,
        body: &mut Body,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadError>> {
        let mut rounds = ROUNDS;
        loop {
            if self.is_written {
                ready!(self.poll_written(stream, cx))?;
            }
            let mut is_waiting = false;
            while self.wants_frame() && rounds > 0 {
                rounds -= 1;
                let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
                    is_waiting = true;
                    break;
                };
                self.push(frame, body.is_end_stream())?;
            }
            ready!(self.poll_written(stream, cx))?;
            if self.encoder.is_ended() {
                return Poll::Ready(Ok(()));
            }
            if is_waiting {
                return Poll::Pending;
            }
            if rounds == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Whether the body is to be polled.
    pub(super) fn wants_frame(&self) -> bool {
        !self.encoder.is_ended() && !self.output.is_full()
    }

    /// Takes a frame of the body. `is_last`: the body has no more of them.
    pub(super) fn push(
        &mut self,
        frame: Option<Result<Frame<Bytes>, axum_core::Error>>,
        is_last: bool,
    ) -> Result<(), UploadError> {
        if self.encoder.is_ended() {
            return Ok(());
        }
        let frame = frame.transpose().map_err(|error| classify(error.into(), ErrorKind::RequestBody))?;
        let is_last = is_last || frame.is_none();
        if self.failed.is_some() {
            if is_last {
                self.encoder = BodyEncoder::ended();
            }
            return Ok(());
        }
        if let Some(frame) = frame {
            self.taken = match (frame.data_ref(), &self.taken, self.is_written) {
                (Some(data), Taken::Nothing, false) => Taken::Piece(data.clone()),
                _ => Taken::More,
            };
            self.encoder.encode(frame, &mut self.output)?;
        }
        if is_last {
            self.encoder.finish(&mut self.output)?;
        }
        Ok(())
    }

    /// Writes the output.
    pub(super) fn poll_written(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        let mut rounds = ROUNDS;
        while !self.output.is_empty() {
            if rounds == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            rounds -= 1;
            let written = match self.output.slices() {
                (slices, count) if count > 1 && stream.is_write_vectored() => {
                    Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..count])
                }
                ([slice, ..], _) => Pin::new(&mut *stream).poll_write(cx, &slice),
            };
            match ready!(written) {
                Ok(0) => self.fail(io::ErrorKind::WriteZero.into())?,
                Ok(size) => {
                    self.output.advance(size);
                    self.is_flushed = stream.properties().sends_at_once;
                    if !self.is_written {
                        self.is_written = true;
                        if let Taken::Piece(_) = self.taken {
                            self.taken = Taken::More;
                        }
                    }
                }
                Err(error) => self.fail(error)?,
            }
        }
        if !self.is_flushed {
            match ready!(Pin::new(stream).poll_flush(cx)) {
                Ok(()) => self.is_flushed = true,
                Err(error) => self.fail(error)?,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ignores a failed write if a response may have come: the next read returns it, or fails.
    #[cold]
    fn fail(&mut self, error: io::Error) -> Result<(), UploadError> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        if !self.is_written || !matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset) {
            return Err(UploadError::Io(error));
        }
        self.failed = Some(error.kind());
        self.output.clear_and_shrink();
        self.is_flushed = true;
        Ok(())
    }

    /// Puts back the part that was taken from the body, because nothing of it was written. `None`: it was more than one
    /// piece.
    #[cold]
    pub(super) fn put_back(&mut self, request: Request<Body>) -> Option<Request<Body>> {
        match mem::replace(&mut self.taken, Taken::Nothing) {
            Taken::Nothing => Some(request),
            Taken::Piece(piece) => Some(request.map(|rest| Body::new(Returned { piece: Some(piece), rest }))),
            Taken::More => None,
        }
    }

    /// Keeps little memory for the next request.
    pub(super) fn shrink(&mut self) {
        self.output.clear_and_shrink();
    }
}

impl From<Error> for UploadError {
    fn from(error: Error) -> Self {
        Self::Body(error)
    }
}

/// The error of a response that has begun.
impl From<UploadError> for Error {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Io(error) => Self::with_source(ErrorKind::ResponseBody, error),
            UploadError::Body(error) => error,
        }
    }
}

impl From<InvalidUpload> for UploadError {
    fn from(error: InvalidUpload) -> Self {
        Self::Body(Error::with_source(ErrorKind::RequestBody, error))
    }
}

/// A body whose first piece was taken and put back.
struct Returned {
    piece: Option<Bytes>,
    rest: Body,
}

impl http_body::Body for Returned {
    type Data = Bytes;
    type Error = axum_core::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.piece.take() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.piece.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let piece = self.piece.as_ref().map_or(0, |piece| piece.len() as u64);
        let (rest, mut hint) = (self.rest.size_hint(), SizeHint::new());
        hint.set_lower(rest.lower().saturating_add(piece));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(piece)) {
            hint.set_upper(upper);
        }
        hint
    }
}
