//! What a request waits for, and what it gets.

use std::time::Duration;

use tokio::runtime::Handle;

use super::super::{
    http1::{Checkout, Freshness, keep_alive::KeepAlive},
    http2::{Share, Stream},
};
use crate::{
    error::{Error, ErrorKind},
    identity::Owner,
};

/// What a request waits for.
#[derive(Debug)]
pub(super) struct Demand {
    /// Which idle HTTP/1.1 connections it may use.
    pub(super) freshness: Freshness,
    /// The owner of those connections. `None`: they have no owner.
    pub(super) owner: Option<Owner>,
    /// The runtime on which a connection is opened for it.
    pub(super) runtime: Handle,
}

impl Demand {
    /// Returns whether it's served by an HTTP/1.1 connection of this owner that has been idle for so long. `None`: a
    /// new connection, which has no owner yet.
    pub(super) fn is_met(&self, idle: Option<Duration>, owner: Option<&Owner>, keep_alive: KeepAlive) -> bool {
        self.freshness.is_met(idle, keep_alive) && (idle.is_none() || self.owner.as_ref() == owner)
    }
}

/// Which connections a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::client) enum Kind {
    /// HTTP/1.1 alone.
    Http1,
    /// An HTTP/2 connection that it shares with other requests, or HTTP/1.1 if the backend chooses that.
    Shared,
    /// A new HTTP/2 connection of its own, or HTTP/1.1 if the backend chooses that.
    Alone,
}

/// How many kinds there are.
pub(super) const KINDS: usize = 3;

impl Kind {
    pub(super) const ALL: [Self; KINDS] = [Self::Http1, Self::Shared, Self::Alone];

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

impl From<Share> for Kind {
    fn from(share: Share) -> Self {
        match share {
            Share::Shared => Self::Shared,
            Share::Alone => Self::Alone,
        }
    }
}

/// What a request gets.
#[derive(Debug)]
pub(in crate::client) enum Grant {
    Http1(Checkout),
    Http2(Stream),
}

impl Grant {
    /// Returns the connection of a request that demanded HTTP/1.1.
    ///
    /// # Errors
    ///
    /// If it's a stream, which doesn't occur.
    pub(in crate::client) fn into_http1(self) -> Result<Checkout, Error> {
        match self {
            Self::Http1(checkout) => Ok(checkout),
            Self::Http2(_) => Err(ErrorKind::Connect.into()),
        }
    }
}
