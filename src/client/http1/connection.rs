//! An HTTP/1.1 connection that its holder drives: no task of its own, no wake-up of another thread.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use axum_core::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use tokio_util::sync::ReusableBoxFuture;

use super::{
    super::{ClientOptions, connect::Stream, reuse::Reuse},
    gate::Gate,
    repeat::Repeat,
    upload::{Progress, Upload},
};

/// A connection, idle or in one exchange. Dropping it closes it.
pub(in crate::client) struct Connection {
    sender: http1::SendRequest<Upload>,
    /// `None` when it has come to its end: what it still held is given up with it.
    driver: Option<Driver>,
    /// The future of the response under way. hyper's type can't be named; its box is made once per connection.
    response: ReusableBoxFuture<'static, Sent>,
    gate: Arc<Gate>,
    /// The gate's, made once.
    waker: Waker,
    progress: Arc<Progress>,
    /// The request under way, if it may be sent again.
    pub(in crate::client) repeat: Repeat,
    /// Which requests may use it next. It changes at most once, with the first request of an owner or the last of all.
    pub(in crate::client) reuse: Reuse,
    /// Whether hyper's buffer has grown with the last body. hyper has no way to shrink it.
    pub(in crate::client) has_grown: bool,
}

/// What is read at once into a buffer that has grown, in bytes. It begins with 8 KiB and ends with some 400.
const GROWN: usize = 64 * 1024;

/// How large hyper's buffer may become if nothing is set, in bytes.
const USUAL_BUFFER: usize = 400 * 1024;

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// What sending a request led to. The error holds the request, if nothing of it was written.
pub(in crate::client) type Sent = Result<Response<Incoming>, TrySendError<Request<Upload>>>;

impl Connection {
    pub(in crate::client) async fn handshake(mut stream: Stream, builder: &http1::Builder) -> hyper::Result<Self> {
        let progress = Arc::<Progress>::default();
        stream.progress = Some(progress.clone());
        let (sender, driver) = builder.handshake(stream).await?;
        let gate = Gate::new();
        Ok(Self {
            sender,
            driver: Some(Box::pin(driver.with_upgrades())),
            response: ReusableBoxFuture::new(std::future::pending()),
            waker: Waker::from(gate.clone()),
            gate,
            progress,
            repeat: Repeat::default(),
            reuse: Reuse::default(),
            has_grown: false,
        })
    }

    /// Begins an exchange; [`poll_response`](Self::poll_response) carries it on.
    pub(in crate::client) fn send(&mut self, request: Request<Body>) {
        self.has_grown = false;
        let request = self.progress.begin(request);
        // It wakes the driver, which is polled next in any case, and would wake the last one who polled it.
        self.gate.hush(|| self.response.set(self.sender.try_send_request(request)));
    }

    pub(in crate::client) fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Sent> {
        let Self { driver, response, gate, waker, .. } = self;
        gate.poll(waker, cx, |cx| {
            drive(driver, cx);
            // Nothing but the driver can make it ready.
            response.poll(&mut Context::from_waker(Waker::noop()))
        })
    }

    pub(in crate::client) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { driver, gate, waker, has_grown, .. } = self;
        let mut frame = move || Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop()));
        let polled = gate.poll(waker, cx, |cx| {
            // The driver reads on when a frame has been asked for: asked first, it's driven once for each.
            let waiting = frame();
            if waiting.is_ready() {
                return waiting;
            }
            drive(driver, cx);
            frame()
        });
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            *has_grown |= frame.data_ref().is_some_and(|data| data.len() >= GROWN);
        }
        polled
    }

    /// Whether the last exchange is over in both directions, and nothing stray is left of it.
    pub(in crate::client) fn is_idle(&mut self) -> bool {
        // The driver says so when it has come to the end of a message and found nothing behind it.
        !self.progress.is_broken() && ((self.driver.is_some() && self.sender.is_ready()) || self.is_reusable())
    }

    /// Whether the connection is idle and the backend has neither closed it nor said anything since.
    ///
    /// It costs no system call while nothing has come. As a side effect, the connection's waker is replaced.
    /// Calling it before a [`send`](Self::send) is unnecessary, because the driver reads before it writes.
    pub(in crate::client) fn is_reusable(&mut self) -> bool {
        let Self { driver, gate, waker, .. } = self;
        let _ = gate.poll(waker, &mut Context::from_waker(Waker::noop()), |cx| {
            drive(driver, cx);
            Poll::<()>::Pending
        });
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Whether the request's body is still under way.
    pub(in crate::client) fn is_uploading(&self) -> bool {
        self.driver.is_some() && self.progress.is_uploading()
    }

    /// Carries the exchange on until it's over in both directions, for a body that is polled elsewhere.
    pub(in crate::client) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { driver, gate, waker, sender, .. } = self;
        gate.poll(waker, cx, |cx| {
            drive(driver, cx);
            if driver.is_none() || sender.is_ready() { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    /// Lets the driver finish what it does at its end: it hands over an upgraded connection.
    pub(in crate::client) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.progress.end();
        let Self { driver, gate, waker, .. } = self;
        gate.poll(waker, cx, |cx| {
            drive(driver, cx);
            if driver.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}

/// How connections are made of streams.
pub(in crate::client) fn builder(options: &ClientOptions) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .preserve_header_case(options.preserve_header_case)
        // A proxy removes the whitespace before the colon from a response (RFC 9112, section 5.1).
        .allow_spaces_after_header_name_in_responses(true)
        .max_headers(options.max_response_fields)
        .max_header_size(options.max_response_head);
    // hyper refuses a head that its buffer can't hold, whatever the limit of heads is.
    if options.max_response_head > USUAL_BUFFER {
        builder.max_buf_size(options.max_response_head);
    }
    builder
}

/// Polls the driver, unless it's over. Its error reaches the response, or the body, by itself.
fn drive(driver: &mut Option<Driver>, cx: &mut Context<'_>) {
    if driver.as_mut().is_some_and(|driver| driver.as_mut().poll(cx).is_ready()) {
        *driver = None;
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("over", &self.driver.is_none()).finish_non_exhaustive()
    }
}
