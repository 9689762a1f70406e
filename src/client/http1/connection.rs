//! An HTTP/1.1 connection that its holder drives: no task of its own, no wake-up of another thread.

use std::{
    fmt, io, mem,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use axum_core::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::UPGRADE};
use http_body::Frame;
use tokio::io::{AsyncRead, ReadBuf};

use super::{
    codec::{BodyDecoder, Head, HeadDecoder, InvalidHead, RequestKind},
    input::Input,
    options::Options,
    upload::{Upload, UploadError},
};
use crate::{
    client::{connect::Stream, reuse::Reuse},
    error::{Error, ErrorKind},
    expect::ContinueSignal,
    observe,
    switched::Switched,
};

/// A connection, idle or in one exchange. Dropping it closes it.
///
/// Its holder polls it, with one waker for both directions: first [`poll_head`](Self::poll_head), then
/// [`poll_frame`](Self::poll_frame). Each of them sends the request on, too.
pub(in crate::client) struct Connection {
    stream: Stream,
    input: Input,
    heads: HeadDecoder,
    /// The request under way, until the response's head has come and all of the request is sent. Its head isn't
    /// changed, so that it can be resent.
    request: Option<Request<Body>>,
    kind: RequestKind,
    upload: Upload,
    response: ResponseState,
    /// Whether request and response let the connection persist (RFC 9112, section 9.3).
    persists: bool,
    /// Which requests may use it next. It changes at most once: to `Owned` with the first request of an owner, or to
    /// `Never` with the last request.
    pub(in crate::client) reuse: Reuse,
}

#[derive(Debug)]
enum ResponseState {
    /// There is no exchange, or its response has ended.
    Ended,
    /// The number of informational responses so far, and whether any octet has arrived.
    Head {
        informational: u8,
        has_begun: bool,
    },
    /// A 101, while the rest of the request is sent. The new protocol begins behind the whole request (RFC 9110,
    /// section 7.8).
    Switching(Box<Response<()>>),
    Body(BodyDecoder),
}

/// Why a request got no response.
#[derive(Debug)]
pub(in crate::client) struct SendError {
    pub(in crate::client) error: Error,
    /// The request, if it's still whole.
    pub(in crate::client) request: Option<Request<Body>>,
    /// Whether nothing of it was written.
    pub(in crate::client) is_unsent: bool,
    /// Whether the backend closed the connection before it sent any octet of a response.
    pub(in crate::client) is_closed: bool,
}

/// How many reads are done in one poll. A backend that always has data doesn't starve the other tasks.
const ROUNDS: usize = 32;

/// How many informational responses may precede a final one.
const MAX_INFORMATIONAL: u8 = 100;

const CLOSED: &str = "the backend closed the connection before it responded";
const CLOSED_IN_HEAD: &str = "the backend closed the connection in the middle of the response's head";
const UNREQUESTED: &str = "the backend sent octets before the request";
const FLOOD: &str = "the backend sent too many informational responses";

impl Connection {
    pub(in crate::client) fn new(stream: Stream, options: Options) -> Self {
        Self {
            stream,
            input: Input::new(),
            heads: HeadDecoder::new(options.limits),
            request: None,
            kind: RequestKind::Other,
            upload: Upload::new(options.style),
            response: ResponseState::Ended,
            persists: true,
            reuse: Reuse::default(),
        }
    }

    /// Begins an exchange; [`poll_head`](Self::poll_head) continues it.
    pub(in crate::client) fn send(&mut self, request: Request<Body>) {
        let (kind, keep_alive) = self.upload.begin(&request);
        self.kind = kind;
        self.persists &= keep_alive;
        self.response = ResponseState::Head { informational: 0, has_begun: false };
        self.request = Some(request);
    }

    /// Sends the request, and receives the head of the response: a final one, or a 101.
    pub(in crate::client) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Box<SendError>>> {
        // Nothing is written if the backend has closed the idle connection, or sent something on it.
        let is_first = !self.upload.is_written();
        if is_first && let Poll::Ready(error) = self.poll_unrequested(cx) {
            return Poll::Ready(Err(self.unsent(error)));
        }
        loop {
            if let Poll::Ready(Err(error)) = self.poll_upload(cx) {
                return Poll::Ready(Err(self.upload_failed(error)));
            }
            // That read was pending, so that the response wakes this task.
            if is_first {
                return Poll::Pending;
            }
            if matches!(self.response, ResponseState::Switching(_)) {
                return self.poll_switched();
            }
            let head = match ready!(self.poll_read_head(cx)) {
                Ok(head) => head,
                Err(failed) => return Poll::Ready(Err(failed)),
            };
            let status = head.response.status();
            if status == StatusCode::SWITCHING_PROTOCOLS {
                if !self.offers_upgrade() {
                    // The 101 is refused, so that the rest of the request is of no use to the backend.
                    self.abort();
                    return Poll::Ready(Ok(head.response));
                }
                self.response = ResponseState::Switching(Box::new(head.response));
                self.release_body();
            } else if !status.is_informational() {
                return Poll::Ready(Ok(self.answered(head)));
            } else if let Err(failed) = self.inform(status) {
                return Poll::Ready(Err(failed));
            }
            // The upload continues, because its body may have been released.
        }
    }

    /// Receives the next frame of the response's body, and sends the request on. `None` at the end of the response; the
    /// request may still be under way.
    pub(in crate::client) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(Err(error)) = self.poll_upload(cx) {
            self.abort();
            return Poll::Ready(Some(Err(error.into())));
        }
        self.poll_response(cx)
    }

    /// Receives the next frame of the response's body.
    pub(in crate::client) fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        for _ in 0..ROUNDS {
            match self.next_frame() {
                Ok(None) => {}
                frame => return Poll::Ready(frame.transpose()),
            }
            let ResponseState::Body(body) = &mut self.response else { return Poll::Ready(None) };
            let cut = match ready!(self.input.poll_fill(&mut self.stream, cx)) {
                Ok(0) => match self.upload.failed().filter(|_| !self.stream.properties().has_own_end) {
                    // After a reset, the end of the connection isn't the backend's. A broken pipe comes without a reset
                    // after an end that the backend has sent itself.
                    Some(reset) if reset != io::ErrorKind::BrokenPipe => Some(failed_body(io::Error::from(reset))),
                    _ => body.end().err().map(failed_body),
                },
                Ok(_) => continue,
                Err(error) => Some(failed_body(error)),
            };
            self.abort();
            return Poll::Ready(cut.map(Err));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Returns the next frame of the response's body. `None`: it hasn't been read, or the response has ended.
    fn next_frame(&mut self) -> Result<Option<Frame<Bytes>>, Error> {
        let ResponseState::Body(body) = &mut self.response else { return Ok(None) };
        match body.decode(&mut self.input.octets) {
            Ok(frame) => {
                if body.is_ended() {
                    self.end_response();
                }
                Ok(frame)
            }
            Err(error) => {
                self.abort();
                Err(failed_body(error))
            }
        }
    }

    /// The number of octets of the response's body that are left, if it's known.
    pub(in crate::client) fn length(&self) -> Option<u64> {
        match &self.response {
            ResponseState::Body(body) => body.length(),
            ResponseState::Ended => Some(0),
            ResponseState::Head { .. } | ResponseState::Switching(_) => None,
        }
    }

    /// Whether the response is complete.
    pub(in crate::client) fn is_answered(&self) -> bool {
        matches!(self.response, ResponseState::Ended)
    }

    /// Whether the request is still under way.
    pub(in crate::client) fn is_uploading(&self) -> bool {
        !self.upload.is_done()
    }

    /// Whether the last exchange is over in both directions, another one may follow, and nothing stray is left.
    pub(in crate::client) fn is_idle(&self) -> bool {
        self.persists
            && self.is_answered()
            && self.upload.is_done()
            && self.upload.failed().is_none()
            && self.input.octets.is_empty()
    }

    /// Whether the connection is idle and the backend has neither closed it nor sent anything since.
    ///
    /// It costs no system call while nothing has arrived. As a side effect, the connection's waker is replaced. Calling
    /// it before a [`send`](Self::send) is unnecessary, because [`poll_head`](Self::poll_head) does the same.
    pub(in crate::client) fn is_reusable(&mut self) -> bool {
        self.is_idle() && self.poll_unrequested(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Takes the body of the request, which is sent by [`poll_written`](Self::poll_written) and [`push`](Self::push)
    /// from then on.
    pub(in crate::client) fn take_upload(&mut self) -> Option<Body> {
        self.request.take().map(Request::into_body)
    }

    /// Writes the pushed part of a request whose body was taken. Ready with `true` if that's all of it.
    pub(in crate::client) fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        match ready!(self.upload.poll_written(&mut self.stream, cx)) {
            Ok(()) => {
                let is_done = self.upload.is_done();
                if is_done {
                    self.upload.shrink();
                }
                Poll::Ready(Ok(is_done))
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// Takes a frame of the body that was taken. `is_last`: there are no more of them.
    pub(in crate::client) fn push(
        &mut self,
        frame: Option<Result<Frame<Bytes>, axum_core::Error>>,
        is_last: bool,
    ) -> Result<(), Error> {
        self.upload.push(frame, is_last).map_err(Error::from)
    }

    /// Returns the connection for the protocol that it was switched to.
    pub(in crate::client) fn into_switched(self: Box<Self>) -> Switched {
        Switched::new(self.stream, self.input.octets.freeze())
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        let Self { upload, stream, request, .. } = self;
        if upload.is_done() {
            return Poll::Ready(Ok(()));
        }
        // Without it, `poll_written` and `push` send the body.
        let Some(request) = request else { return Poll::Pending };
        ready!(upload.poll(request.body_mut(), stream, cx))?;
        upload.shrink();
        if upload.has_body() {
            // Dropping the body shows its sender that all of it was taken.
            drop(mem::take(request.body_mut()));
        }
        if !matches!(self.response, ResponseState::Head { .. }) {
            self.request = None;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Box<SendError>>> {
        for _ in 0..ROUNDS {
            match self.heads.decode(&mut self.input.octets, self.kind) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.failed(invalid_head(error)))),
            }
            match ready!(self.input.poll_fill(&mut self.stream, cx)) {
                Ok(0) => return Poll::Ready(Err(self.closed(None))),
                Ok(_) => {
                    if let ResponseState::Head { has_begun, .. } = &mut self.response {
                        *has_begun = true;
                    }
                }
                Err(error) => return Poll::Ready(Err(self.closed(Some(error)))),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready with an error if the backend has closed the connection, or sent anything on it.
    fn poll_unrequested(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let mut octet = [0];
        let mut read = ReadBuf::new(&mut octet);
        let error = match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read)) {
            Err(error) => closed(error),
            Ok(()) if read.filled().is_empty() => closed(CLOSED),
            Ok(()) => closed(UNREQUESTED),
        };
        self.persists = false;
        Poll::Ready(error)
    }

    /// Processes an informational response (RFC 9110, section 15.2).
    #[cold]
    fn inform(&mut self, status: StatusCode) -> Result<(), Box<SendError>> {
        if let ResponseState::Head { informational, .. } = &mut self.response {
            *informational += 1;
            if *informational > MAX_INFORMATIONAL {
                return Err(self.failed(Error::with_source(ErrorKind::InvalidResponse, FLOOD)));
            }
        }
        if status == StatusCode::CONTINUE {
            self.release_body();
        } else {
            observe::informational_response(status);
        }
        Ok(())
    }

    /// Releases a body that waits for a 100. A final response ends that wait, too.
    fn release_body(&self) {
        let signal = self.request.as_ref().and_then(|request| request.extensions().get::<ContinueSignal>());
        if let Some(signal) = signal {
            signal.release();
        }
    }

    fn offers_upgrade(&self) -> bool {
        self.request.as_ref().is_some_and(|request| request.headers().contains_key(UPGRADE))
    }

    /// Ready with a 101 when the whole request is sent.
    fn poll_switched(&mut self) -> Poll<Result<Response<()>, Box<SendError>>> {
        self.persists = false;
        if let Some(failed) = self.upload.failed() {
            return Poll::Ready(Err(self.closed(Some(failed.into()))));
        }
        if self.is_uploading() {
            return Poll::Pending;
        }
        match mem::replace(&mut self.response, ResponseState::Ended) {
            ResponseState::Switching(response) => Poll::Ready(Ok(*response)),
            _ => Poll::Pending,
        }
    }

    fn answered(&mut self, head: Head) -> Response<()> {
        self.persists &= head.keep_alive;
        if self.is_uploading() {
            self.release_body();
        } else {
            self.request = None;
        }
        if head.body.is_ended() {
            self.end_response();
        } else {
            self.response = ResponseState::Body(head.body);
        }
        head.response
    }

    fn end_response(&mut self) {
        self.response = ResponseState::Ended;
        self.input.end_response();
    }

    /// Ends the response, and the connection with it.
    fn abort(&mut self) {
        self.persists = false;
        self.response = ResponseState::Ended;
    }

    fn upload_failed(&mut self, error: UploadError) -> Box<SendError> {
        match error {
            UploadError::Io(error) if self.upload.is_written() => self.closed(Some(error)),
            UploadError::Io(error) => self.unsent(closed(error)),
            UploadError::Body(error) => {
                self.request = None;
                self.failed(error)
            }
        }
    }

    /// Fails the exchange, because the connection ended before a head was complete.
    fn closed(&mut self, error: Option<io::Error>) -> Box<SendError> {
        let has_begun = !matches!(self.response, ResponseState::Head { has_begun: false, .. });
        let error = match error {
            Some(error) => closed(error),
            None if has_begun => closed(CLOSED_IN_HEAD),
            None => closed(CLOSED),
        };
        let mut failed = self.failed(error);
        failed.is_closed = !has_begun;
        failed
    }

    /// Fails an exchange of which nothing was written, because the connection is of no use.
    fn unsent(&mut self, error: Error) -> Box<SendError> {
        self.abort();
        let request = self.request.take().and_then(|request| self.upload.put_back(request));
        let is_unsent = request.is_some();
        Box::new(SendError { error, request, is_unsent, is_closed: true })
    }

    /// Fails the exchange. The request comes back if it has no body.
    fn failed(&mut self, error: Error) -> Box<SendError> {
        self.abort();
        let request = self.request.take().filter(|_| !self.upload.has_body());
        Box::new(SendError { error, request, is_unsent: false, is_closed: false })
    }
}

fn closed(error: impl Into<axum_core::BoxError>) -> Error {
    Error::with_source(ErrorKind::ConnectionClosed, error)
}

fn failed_body(error: impl Into<axum_core::BoxError>) -> Error {
    Error::with_source(ErrorKind::ResponseBody, error)
}

fn invalid_head(error: InvalidHead) -> Error {
    let kind = match error {
        InvalidHead::TooLarge(_) => ErrorKind::ResponseHeadTooLarge,
        InvalidHead::Syntax(_) | InvalidHead::Framing(_) => ErrorKind::InvalidResponse,
    };
    Error::with_source(kind, error)
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("response", &self.response)
            .field("persists", &self.persists)
            .finish_non_exhaustive()
    }
}
