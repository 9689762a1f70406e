//! Compares a connection with the codec: both read the same responses. The codec's own oracle compares the codec with
//! hyper.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    task::{Context, Poll, Waker},
};

use axum_core::body::Body;
use http::Request;
use hyper::ext::ReasonPhrase;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Connection, Options,
    codec::{
        NameStyle,
        oracle::{
            config, grammar,
            response::{Case, End, Head, Seen},
        },
    },
};
use crate::client::{
    connect::{Stream, StreamProperties},
    limit::{Issuer, Limit},
};

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn a_connection_reads_responses_as_the_codec_does(case in grammar::response::case()) {
        let (codec, connection) = (case.read(), read(&case));
        if let Some(what) = codec.is_unlike(&connection) {
            return Err(TestCaseError::fail(format!("{what}\n{case:?}\ncodec: {codec:?}\nconnection: {connection:?}")));
        }
    }
}

/// Reads the response with a connection.
fn read(case: &Case) -> Seen {
    let wire = Wire::default();
    let mut limit = Limit::new(None, Weak::<NoIssuer>::new());
    let stream = Stream::new(Box::new(wire.clone()), StreamProperties::default(), limit.acquire().unwrap());
    let options = Options { limits: case.limits, style: NameStyle::Lower };
    let mut connection = Box::new(Connection::new(stream, options));
    connection.send(Request::builder().method(case.method.clone()).uri("/").body(Body::empty()).unwrap());
    let mut seen = Seen::default();
    advance(&mut connection, &mut seen);
    assert!(wire.0.lock().unwrap().is_written, "the request isn't written");
    case.each_piece(|piece| {
        wire.0.lock().unwrap().incoming.extend_from_slice(piece);
        advance(&mut connection, &mut seen);
    });
    match seen.end {
        End::Open => {
            wire.0.lock().unwrap().is_ended = true;
            advance(&mut connection, &mut seen);
            seen.end = match seen.end {
                End::Complete => End::ByClose,
                End::Refused => End::Cut,
                end => panic!("{end:?} at the end of the connection: {case:?}"),
            };
        }
        End::Switched => {
            let switched = connection.into_switched().take().unwrap();
            let wire = wire.0.lock().unwrap();
            seen.body = [&switched.leftover, &wire.incoming[wire.read..]].concat();
        }
        End::Complete => seen.is_reusable = connection.is_reusable(),
        End::ByClose | End::Cut | End::Refused => {}
    }
    seen
}

/// Polls the connection until it has to wait.
fn advance(connection: &mut Connection, seen: &mut Seen) {
    let cx = &mut Context::from_waker(Waker::noop());
    while seen.end == End::Open {
        if seen.head.is_none() {
            match connection.poll_head(cx) {
                Poll::Pending => return,
                Poll::Ready(Err(_)) => seen.end = End::Refused,
                Poll::Ready(Ok(response)) => {
                    let (parts, ()) = response.into_parts();
                    let canonical = parts.status.canonical_reason().unwrap_or_default().as_bytes();
                    let reason = parts.extensions.get::<ReasonPhrase>().map_or(canonical, ReasonPhrase::as_bytes);
                    if parts.status == 101 {
                        seen.end = End::Switched;
                    }
                    seen.head = Some(Head {
                        version: parts.version,
                        status: parts.status,
                        reason: reason.to_vec(),
                        fields: parts.headers,
                    });
                }
            }
            continue;
        }
        match connection.poll_frame(cx) {
            Poll::Pending => return,
            Poll::Ready(None) => seen.end = End::Complete,
            Poll::Ready(Some(Err(_))) => seen.end = End::Refused,
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => seen.body.extend_from_slice(&data),
                Err(frame) => seen.trailers = frame.into_trailers().ok(),
            },
        }
    }
}

/// Connections without a limit.
struct NoIssuer;

impl Issuer for NoIssuer {
    fn release(self: Arc<Self>) {}
}

/// The backend's end of a connection.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Octets>>);

#[derive(Default)]
struct Octets {
    incoming: Vec<u8>,
    /// How many incoming octets have been read.
    read: usize,
    is_ended: bool,
    is_written: bool,
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let octets = &mut *self.0.lock().unwrap();
        let rest = &octets.incoming[octets.read..];
        if rest.is_empty() && !octets.is_ended {
            return Poll::Pending;
        }
        let size = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..size]);
        octets.read += size;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap().is_written = true;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
