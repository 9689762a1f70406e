//! How many connections there may be.

use std::{
    fmt,
    sync::{Arc, Weak},
};

/// The right to be one of `max_connections`.
///
/// It lives where the socket is, because a tunnel counts, too. Dropping it releases it.
pub(super) struct Permit {
    issuer: Weak<dyn Issuer>,
}

/// What issues permits, and reuses those that are released.
pub(super) trait Issuer: Send + Sync {
    fn release(self: Arc<Self>);
}

impl Permit {
    pub(super) fn new<I: Issuer + 'static>(issuer: &Arc<I>) -> Self {
        let issuer: Weak<I> = Arc::downgrade(issuer);
        Self { issuer }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(issuer) = self.issuer.upgrade() {
            issuer.release();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}
