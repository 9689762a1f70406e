//! Properties of methods.

use http::Method;

/// Whether a request that is sent twice has the effect of one (RFC 9110, section 9.2.2).
///
/// Methods that the RFC doesn't define aren't, regardless of their own specification. Neither is `TRACE`, which isn't
/// forwarded.
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}
