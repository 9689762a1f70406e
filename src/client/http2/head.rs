//! The size of a request's head, and the connections that it may use.
//!
//! HTTP/2 servers end the whole connection for a head that is too large for them, and not all of them announce their
//! limit.

use std::sync::{Mutex, MutexGuard, PoisonError};

use axum_core::body::Body;
use http::Request;

use crate::error::{Error, ErrorKind};

/// The size of a request's head, in bytes as RFC 9113, section 6.5.2, counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct HeadSize {
    total: usize,
    /// Name and value of the largest field.
    field: usize,
}

/// Which connection a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Share {
    Shared,
    /// A dedicated one: the backend may end it because of the request.
    Alone,
}

/// The heads that the backend accepts.
#[derive(Debug, Default)]
pub(super) struct HeadLimit {
    /// The operator's limit.
    max: Option<usize>,
    /// The largest head and the largest field that got a response, where the backend had set no limit.
    proven: Mutex<HeadSize>,
}

/// The limit where neither the operator nor the backend has set one.
const DEFAULT_MAX: usize = 64 * 1024;

/// The head that servers without a limit in their SETTINGS accept. By default, nginx accepts 8 KiB in one field, and
/// four times that in all.
const ORDINARY: HeadSize = HeadSize { total: 32_000, field: 8000 };

/// The size that a field adds beside its name and value.
const PER_FIELD: usize = 32;

impl HeadSize {
    pub(in super::super) fn of(request: &Request<Body>) -> Self {
        let target = request.uri().path_and_query().map_or(1, |target| target.as_str().len());
        // `:authority` replaces `host`. The longest scheme is `https`.
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
    pub(super) fn new(max: Option<usize>) -> Self {
        Self { max, proven: Mutex::default() }
    }

    /// Decides which connection a request may use, where the backend has set this limit.
    ///
    /// # Errors
    ///
    /// The head is larger than the limit.
    pub(super) fn admit(&self, head: HeadSize, backends: Option<usize>) -> Result<Share, Error> {
        let max = match (self.max, backends) {
            (Some(max), Some(backends)) => max.min(backends),
            (max, backends) => max.or(backends).unwrap_or(DEFAULT_MAX),
        };
        if head.total > max {
            let why = format!("its {} bytes are more than the {max} that may be sent", head.total);
            return Err(Error::with_source(ErrorKind::RequestHeadTooLarge, why));
        }
        let is_accepted = backends.is_some() || head.is_within(ORDINARY) || head.is_within(self.proven());
        Ok(if is_accepted { Share::Shared } else { Share::Alone })
    }

    /// Records that the backend has responded to a request with such a head.
    pub(super) fn prove(&self, head: HeadSize) {
        let mut proven = self.lock();
        *proven = HeadSize { total: proven.total.max(head.total), field: proven.field.max(head.field) };
    }

    /// Forgets what was recorded, if a request failed that relied on it: the backend may have been replaced.
    pub(super) fn doubt(&self, head: HeadSize) {
        if !head.is_within(ORDINARY) {
            *self.lock() = HeadSize::default();
        }
    }

    /// Returns the largest head that is known to be accepted.
    fn proven(&self) -> HeadSize {
        let proven = *self.lock();
        HeadSize { total: proven.total.max(ORDINARY.total), field: proven.field.max(ORDINARY.field) }
    }

    fn lock(&self) -> MutexGuard<'_, HeadSize> {
        self.proven.lock().unwrap_or_else(PoisonError::into_inner)
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
        // A failure of a head that every server accepts shows nothing.
        limit.doubt(size(100, 1));
        assert_eq!(limit.admit(size(16_000, 1), None).unwrap(), Share::Shared);
        limit.doubt(size(16_000, 1));
        assert_eq!(limit.admit(size(16_000, 1), None).unwrap(), Share::Alone);
        // The operator's limit doesn't show what the backend accepts.
        let limit = HeadLimit::new(Some(100_000));
        assert_eq!(limit.admit(size(66_000, 1), None).unwrap(), Share::Alone);
        assert!(limit.admit(size(66_000, 1), Some(65_536)).is_err());
        assert!(HeadLimit::new(Some(1000)).admit(size(1000, 1), None).is_err());
    }
}
