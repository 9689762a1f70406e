//! The side of hyper's client, over a connection in memory.

use std::{
    cell::RefCell,
    future::Future,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Empty;
use hyper::{
    body::Incoming,
    client::conn::http1,
    ext::{ReasonPhrase, on_informational},
    rt::{Read, ReadBufCursor, Write},
};

use super::{
    request::{self, Frames, Written},
    response::{Case, End, Head, Seen},
};

/// Reads the response with hyper's client.
pub(super) fn read(case: &Case) -> Seen {
    let wire = Wire::default();
    let informational = Arc::<Mutex<Vec<Head>>>::default();
    let mut exchange = Exchange::new(case, &wire, &informational);
    exchange.advance();
    case.each_piece(|piece| {
        wire.0.borrow_mut().incoming.extend_from_slice(piece);
        exchange.advance();
        let heads = informational.lock().unwrap_or_else(PoisonError::into_inner).len();
        let heads = heads + usize::from(exchange.seen.head.is_some());
        exchange.seen.progress.push((heads, exchange.seen.body.len()));
    });
    exchange.seen.is_reusable = exchange.connection.is_some() && exchange.sender.is_ready();
    let end = exchange.seen.end;
    wire.0.borrow_mut().is_ended = true;
    exchange.advance();
    let mut seen = exchange.seen;
    seen.end = match (end, seen.end) {
        (End::Open, End::Complete) => End::ByClose,
        (End::Open, End::Refused) => End::Cut,
        (End::Open, _) => panic!("hyper hangs at the end of the connection: {case:?}"),
        (end, _) => end,
    };
    if seen.end == End::Switched {
        let wire = wire.0.borrow();
        seen.body.extend_from_slice(&wire.incoming[wire.read..]);
    }
    seen.informational = std::mem::take(&mut *informational.lock().unwrap_or_else(PoisonError::into_inner));
    seen
}

/// Writes the request with hyper's client.
pub(super) fn write(case: &request::Case, request: Request<Frames>) -> Written {
    let wire = Wire::default();
    let mut builder = http1::Builder::new();
    builder.title_case_headers(case.is_titled);
    let (mut sender, mut connection) = handshake(&builder, &wire);
    let mut response = pin!(sender.send_request(request));
    let mut cx = context();
    let mut poll = |times| {
        (0..times).any(|_| {
            let is_over = connection.poll_without_shutdown(&mut cx).is_ready();
            is_over || response.as_mut().poll(&mut cx).is_ready()
        })
    };
    // hyper stops after some frames in each poll. A request that is complete has no response yet.
    let is_complete = !poll(case.data.len() + 4);
    let octets = wire.0.borrow().outgoing.clone();
    wire.0.borrow_mut().incoming.extend_from_slice(b"HTTP/1.1 204 No Content\r\n\r\n");
    let is_answered = is_complete && poll(1);
    // With `Connection: close`, the connection is over.
    let keep_alive = is_answered && sender.is_ready();
    Written { octets, is_complete, keep_alive }
}

type Made<B> = (http1::SendRequest<B>, http1::Connection<Wire, B>);

/// Makes a connection over memory.
fn handshake<B>(builder: &http1::Builder, wire: &Wire) -> Made<B>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut handshake = pin!(builder.handshake(wire.clone()));
    match handshake.as_mut().poll(&mut context()) {
        Poll::Ready(Ok(made)) => made,
        _ => panic!("hyper's handshake needs no I/O"),
    }
}

type Sent = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>>>>;

struct Exchange {
    sender: http1::SendRequest<Empty<Bytes>>,
    connection: Option<http1::Connection<Wire, Empty<Bytes>>>,
    response: Option<Sent>,
    body: Option<Incoming>,
    seen: Seen,
}

impl Exchange {
    fn new(case: &Case, wire: &Wire, informational: &Arc<Mutex<Vec<Head>>>) -> Self {
        let (mut sender, connection) = handshake(&builder(case), wire);
        let mut request = Request::new(Empty::new());
        *request.method_mut() = case.method.clone();
        let heads = informational.clone();
        on_informational(&mut request, move |head| {
            let (version, status, fields) = (head.version(), head.status(), head.headers().clone());
            let mut heads = heads.lock().unwrap_or_else(PoisonError::into_inner);
            heads.push(Head { version, status, reason: Vec::new(), fields });
        });
        let response = Box::pin(sender.send_request(request));
        Self { sender, connection: Some(connection), response: Some(response), body: None, seen: Seen::default() }
    }

    /// Polls until nothing changes.
    fn advance(&mut self) {
        let mut idle = 0;
        // hyper yields after some rounds in which it had something to do: an idle poll may be such a one.
        while idle < 3 {
            idle = if self.poll() { 0 } else { idle + 1 };
        }
    }

    /// Polls everything once. Returns whether something changed.
    fn poll(&mut self) -> bool {
        let mut cx = context();
        let mut has_changed = false;
        if let Some(connection) = &mut self.connection
            && connection.poll_without_shutdown(&mut cx).is_ready()
            && let Some(connection) = self.connection.take()
        {
            let rest = connection.into_parts().read_buf;
            self.poll_response(&mut cx);
            if self.seen.end == End::Switched {
                self.seen.body.extend_from_slice(&rest);
            }
            has_changed = true;
        }
        has_changed |= self.poll_response(&mut cx);
        if let Some(body) = &mut self.body {
            match Pin::new(body).poll_frame(&mut cx) {
                Poll::Pending => return has_changed,
                Poll::Ready(None) => self.seen.end = End::Complete,
                Poll::Ready(Some(Err(_))) => self.seen.end = End::Refused,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.seen.body.extend_from_slice(&data),
                    Err(frame) => self.seen.trailers = frame.into_trailers().ok(),
                },
            }
            if self.seen.end != End::Open {
                self.body = None;
            }
            has_changed = true;
        }
        has_changed
    }

    fn poll_response(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(Poll::Ready(result)) = self.response.as_mut().map(|response| response.as_mut().poll(cx)) else {
            return false;
        };
        self.response = None;
        let Ok(response) = result else {
            self.seen.end = End::Refused;
            return true;
        };
        let (parts, body) = response.into_parts();
        if parts.extensions.get::<hyper::upgrade::OnUpgrade>().is_some() {
            self.seen.end = End::Switched;
        } else {
            self.body = Some(body);
        }
        let reason = match parts.extensions.get::<ReasonPhrase>() {
            Some(reason) => reason.as_bytes(),
            None => parts.status.canonical_reason().unwrap_or_default().as_bytes(),
        };
        let reason = reason.to_vec();
        self.seen.head = Some(Head { version: parts.version, status: parts.status, reason, fields: parts.headers });
        true
    }
}

/// The options that the crate's client set when hyper was its codec.
fn builder(case: &Case) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .allow_spaces_after_header_name_in_responses(true)
        .max_headers(case.limits.fields)
        .max_header_size(case.limits.bytes);
    builder
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Both ends of a connection.
#[derive(Clone, Default)]
pub(super) struct Wire(pub(super) Rc<RefCell<Octets>>);

#[derive(Default)]
pub(super) struct Octets {
    pub(super) incoming: Vec<u8>,
    /// How many incoming octets have been read.
    pub(super) read: usize,
    pub(super) is_ended: bool,
    pub(super) outgoing: Vec<u8>,
}

impl Read for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let octets = &mut *self.0.borrow_mut();
        let rest = &octets.incoming[octets.read..];
        if rest.is_empty() {
            return if octets.is_ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let size = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..size]);
        octets.read += size;
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().outgoing.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
