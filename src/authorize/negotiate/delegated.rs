//! The credential that a client has forwarded.

use std::{fmt, sync::Arc};

use libgssapi::credential::Cred;

use super::minter::Forwarded;

/// The credential of a user, which the client has forwarded to the application, as a request extension for
/// [`Negotiate::delegated`](super::Negotiate::delegated).
///
/// The application accepts the client's token with `libgssapi`, takes the delegated credential from the context, and
/// inserts this. Clones share one credential.
///
/// ```
/// use axum::http::Request;
/// use tower_reverse_proxy::{DelegatedCredential, authorize::negotiate::libgssapi::context::ServerCtx};
///
/// /// The application calls it once it has accepted the client's token.
/// fn sign_in<B>(context: &mut ServerCtx, request: &mut Request<B>) {
///     if let Some(credential) = context.take_delegated_cred() {
///         request.extensions_mut().insert(DelegatedCredential::from(credential));
///     }
/// }
/// ```
///
/// A session keeps it, and inserts a clone into each request: a new one for each request would be looked at anew.
#[derive(Clone)]
pub struct DelegatedCredential(pub(super) Arc<Forwarded<Cred>>);

impl From<Cred> for DelegatedCredential {
    fn from(credential: Cred) -> Self {
        Self(Arc::new(Forwarded::new(credential)))
    }
}

impl fmt::Debug for DelegatedCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelegatedCredential").finish_non_exhaustive()
    }
}
