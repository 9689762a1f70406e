//! The error of a key that can't sign.

use std::{error, fmt, sync::Arc};

/// The error returned when a key can't sign assertions. Its text contains the cause and what to write instead, and
/// nothing of the key.
///
/// ```
/// use tower_reverse_proxy::AssertionKeys;
///
/// let error = AssertionKeys::from_pem("no PEM").unwrap_err();
/// assert!(error.to_string().contains("openssl genpkey"));
/// ```
#[derive(Clone, Debug)]
pub struct InvalidKey {
    message: Arc<str>,
}

impl InvalidKey {
    pub(super) fn new(message: impl Into<Arc<str>>) -> Self {
        Self { message: message.into() }
    }

    pub(super) fn with_command(reason: impl fmt::Display) -> Self {
        Self::new(format!(
            "{reason}; write a P-256 key as PKCS #8 in PEM: \
             `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out assertion.pem`"
        ))
    }
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid key for assertions: {}", self.message)
    }
}

impl error::Error for InvalidKey {}
