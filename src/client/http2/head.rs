//! How large a request's head is, and over which connection it may go: HTTP/2 servers end the whole connection when a head is
//! larger than they take, and not all of them say before how large that is.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum_core::body::Body;
use http::Request;

use crate::error::{Error, ErrorKind};

/// The size of a request's head, in bytes as RFC 9113, section 6.5.2, counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadSize {
    total: usize,
    /// The largest field: name and value alone.
    field: usize,
}

/// Which connection a request may go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    Shared,
    /// One of its own: the backend may end it for the head's sake.
    Alone,
}

/// What heads the backend takes.
#[derive(Debug, Default)]
pub(super) struct HeadLimit {
    /// The operator's limit.
    most: Option<usize>,
    /// The largest head, and the largest field, that were answered though the backend had set no limit.
    proven: HeadSizes,
}

#[derive(Debug, Default)]
struct HeadSizes {
    total: AtomicUsize,
    field: AtomicUsize,
}

/// The limit where neither the operator nor the backend has set one.
const USUAL: usize = 64 * 1024;

/// What servers take that set no limit: nginx, by default, a field of 8 KiB and four times that together.
const ORDINARY: HeadSize = HeadSize { total: 32_000, field: 8000 };

/// What a field costs beside its name and value.
const PER_FIELD: usize = 32;

impl HeadSize {
    pub(super) fn of(request: &Request<Body>) -> Self {
        let target = request.uri().path_and_query().map_or(1, |target| target.as_str().len());
        // `:authority` is `host`, by another name. The longest scheme is `https`.
        let pseudo = [":method".len() + request.method().as_str().len(), ":path".len() + target, ":scheme".len() + 5];
        let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
        let mut size = Self { total: ":authority".len() - "host".len(), field: 0 };
        for length in pseudo.into_iter().chain(fields) {
            size.total += length + PER_FIELD;
            size.field = size.field.max(length);
        }
        size
    }

    fn is_within(self, other: Self) -> bool {
        self.total <= other.total && self.field <= other.field
    }
}

impl HeadLimit {
    pub(super) fn new(most: Option<usize>) -> Self {
        Self { most, proven: HeadSizes::default() }
    }

    /// Decides over which connection a request may go to a backend with this limit of its own.
    ///
    /// # Errors
    ///
    /// The head is too large for any.
    pub(super) fn admit(&self, head: HeadSize, backends: Option<usize>) -> Result<Share, Error> {
        let most = match (self.most, backends) {
            (Some(most), Some(backends)) => most.min(backends),
            (most, backends) => most.or(backends).unwrap_or(USUAL),
        };
        if head.total > most {
            let why = format!("its {} bytes are more than the {most} that may be sent", head.total);
            return Err(Error::with_source(ErrorKind::RequestHeadTooLarge, why));
        }
        let proven = HeadSize {
            total: self.proven.total.load(Ordering::Relaxed).max(ORDINARY.total),
            field: self.proven.field.load(Ordering::Relaxed).max(ORDINARY.field),
        };
        let is_known = backends.is_some() || head.is_within(proven);
        Ok(if is_known { Share::Shared } else { Share::Alone })
    }

    /// Learns that the backend has answered a request with such a head.
    pub(super) fn prove(&self, head: HeadSize) {
        self.proven.total.fetch_max(head.total, Ordering::Relaxed);
        self.proven.field.fetch_max(head.field, Ordering::Relaxed);
    }

    /// Forgets what was learned, when a request failed that was sent for its sake: the backend may be another by now.
    pub(super) fn doubt(&self, head: HeadSize) {
        if !head.is_within(ORDINARY) {
            self.proven.total.store(0, Ordering::Relaxed);
            self.proven.field.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(value: usize, count: usize) -> HeadSize {
        let mut request = Request::get("/x").body(Body::empty()).unwrap();
        for _ in 0..count {
            request.headers_mut().append("cookie", "a".repeat(value).parse().unwrap());
        }
        HeadSize::of(&request)
    }

    #[test]
    fn the_size_of_a_head_is_counted_as_in_rfc_9113() {
        // `:method GET`, `:path /x`, `:scheme https`, and the rest of `:authority`.
        let empty = 7 + 3 + 32 + 5 + 2 + 32 + 7 + 5 + 32 + 6;
        assert_eq!(size(0, 0), HeadSize { total: empty, field: 12 });
        assert_eq!(size(100, 2), HeadSize { total: empty + 2 * (106 + 32), field: 106 });
    }

    #[test]
    fn large_heads_use_a_dedicated_connection_until_one_is_answered() {
        let limit = HeadLimit::new(None);
        for (head, backends, expected) in [
            (size(7000, 1), None, Some(Share::Shared)),
            (size(7000, 4), None, Some(Share::Shared)),
            (size(4000, 9), None, Some(Share::Alone)),
            (size(20_000, 1), None, Some(Share::Alone)),
            (size(65_000, 1), None, Some(Share::Alone)),
            (size(66_000, 1), None, None),
            (size(20_000, 1), Some(1 << 20), Some(Share::Shared)),
            (size(66_000, 1), Some(1 << 20), Some(Share::Shared)),
            (size(7000, 3), Some(16_384), None),
        ] {
            assert_eq!(limit.admit(head, backends).ok(), expected, "{head:?} {backends:?}");
        }
        limit.prove(size(20_000, 1));
        assert_eq!(limit.admit(size(16_000, 1), None).unwrap(), Share::Shared);
        assert_eq!(limit.admit(size(20_001, 1), None).unwrap(), Share::Alone);
        // Nothing is learned of heads that any server takes.
        limit.doubt(size(100, 1));
        assert_eq!(limit.admit(size(16_000, 1), None).unwrap(), Share::Shared);
        limit.doubt(size(16_000, 1));
        assert_eq!(limit.admit(size(16_000, 1), None).unwrap(), Share::Alone);
        // The operator's word is a limit, not a promise of the backend.
        let limit = HeadLimit::new(Some(100_000));
        assert_eq!(limit.admit(size(66_000, 1), None).unwrap(), Share::Alone);
        assert!(limit.admit(size(66_000, 1), Some(65_536)).is_err());
        assert!(HeadLimit::new(Some(1000)).admit(size(1000, 1), None).is_err());
    }
}
