//! A request on its way over an HTTP/1.1 connection: whether anything of it is written, and whether its body has ended.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use axum_core::body::Body;
use bytes::Bytes;
use http::Request;
use http_body::{Body as _, Frame, SizeHint};

/// How far the request of a connection has come. The connection, its stream and the request's body share it; all of them are
/// used by the task that drives the connection.
#[derive(Debug, Default)]
pub(in crate::client) struct Progress {
    written: AtomicU8,
    uploading: AtomicBool,
}

/// Nothing of the request is written.
const UNWRITTEN: u8 = 0;
/// Something of it is.
const WRITTEN: u8 = 1;
/// There are no more requests: the connection is a tunnel.
const TUNNEL: u8 = 2;
/// A write has failed after something was written.
const BROKEN: u8 = 3;

impl Progress {
    /// Begins with another request.
    pub(in crate::client) fn begin(self: &Arc<Self>, request: Request<Body>) -> Request<Upload> {
        self.written.store(UNWRITTEN, Ordering::Relaxed);
        let uploading = (!request.body().is_end_stream()).then(|| {
            self.uploading.store(true, Ordering::Relaxed);
            Uploading(self.clone())
        });
        request.map(|body| Upload { body, uploading })
    }

    /// The connection becomes a tunnel.
    pub(in crate::client) fn end(&self) {
        self.written.store(TUNNEL, Ordering::Relaxed);
    }

    pub(in crate::client) fn wrote(&self) {
        if self.written.load(Ordering::Relaxed) == UNWRITTEN {
            self.written.store(WRITTEN, Ordering::Relaxed);
        }
    }

    /// A write has failed: the backend takes no more, and the connection serves no other request.
    pub(in crate::client) fn fail(&self) {
        self.written.store(BROKEN, Ordering::Relaxed);
    }

    pub(in crate::client) fn is_broken(&self) -> bool {
        self.written.load(Ordering::Relaxed) == BROKEN
    }

    /// Whether an answer may come: something of the request is written.
    pub(in crate::client) fn is_written(&self) -> bool {
        self.written.load(Ordering::Relaxed) == WRITTEN
    }

    /// Whether the request's body is under way.
    pub(in crate::client) fn is_uploading(&self) -> bool {
        self.uploading.load(Ordering::Relaxed)
    }
}

/// The body of a request.
pub(in crate::client) struct Upload {
    body: Body,
    /// hyper drops the body when it has taken all of it.
    uploading: Option<Uploading>,
}

impl Upload {
    pub(in crate::client) fn into_inner(self) -> Body {
        self.body
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = axum_core::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("uploading", &self.uploading.is_some()).finish_non_exhaustive()
    }
}

struct Uploading(Arc<Progress>);

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.uploading.store(false, Ordering::Relaxed);
    }
}
