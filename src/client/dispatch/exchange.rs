//! Decides which protocol a request goes over, and takes a connection if one is free.

use std::sync::Arc;

use axum_core::body::Body;
use http::Request;

use super::{
    super::reuse::Reuse,
    dispatcher::Dispatcher,
    http1::{Http1Exchange, freshness},
    http2::Http2Exchange,
};

/// A request on its way.
#[derive(Debug)]
pub(in crate::client) enum Exchange {
    Http1(Http1Exchange),
    Http2(Http2Exchange),
}

impl Exchange {
    /// Takes a connection for a request, or begins to wait for one.
    pub(in crate::client) fn new(dispatcher: Arc<Dispatcher>, request: Request<Body>) -> Self {
        let reuse = Reuse::of(&request);
        let freshness = freshness(&request, &reuse);
        let may_use_http2 = Http2Exchange::may_carry(&dispatcher, &request, &reuse);
        // Connections in the protocol that the backend chose before are used first.
        if (!may_use_http2 || dispatcher.chose_http1())
            && let Some(checkout) = dispatcher.take(reuse.owner(), freshness)
        {
            return Self::Http1(Http1Exchange::over(dispatcher, checkout, request, reuse));
        }
        if may_use_http2 {
            return Self::Http2(Http2Exchange::new(dispatcher, request, freshness));
        }
        Self::Http1(Http1Exchange::new(dispatcher, request, freshness, reuse))
    }
}
