//! HTTP/1.1 connections to a backend, which their holder drives.

pub(super) mod codec;
mod connection;
mod idle;
mod input;
pub(super) mod keep_alive;
mod owned;
mod pool;
mod upload;

use axum_core::body::Body;
use http::Request;
use http_body::Body as _;

use self::codec::{Limits, NameStyle};
pub(super) use self::{
    connection::{Connection, SendError},
    idle::{Checkout, Freshness, Idle},
    pool::{Pool, PoolOptions, Unusable},
};
use crate::method::is_idempotent;

/// The options of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// The limits of a response's head, and of its trailers.
    limits: Limits,
    /// The case of field names.
    style: NameStyle,
}

impl Options {
    /// `bytes` and `fields` limit the response's head.
    pub(super) fn new(bytes: usize, fields: usize, title_case_headers: bool) -> Self {
        let style = if title_case_headers { NameStyle::Title } else { NameStyle::Lower };
        Self { limits: Limits { bytes, fields }, style }
    }
}

/// Whether a request may be sent a second time, although the first may have been processed.
pub(super) fn is_harmless(request: &Request<Body>) -> bool {
    // Of a body, nothing would be left.
    is_idempotent(request.method()) && request.body().is_end_stream()
}
