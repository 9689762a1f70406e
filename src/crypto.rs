//! The provider of cryptography, which TLS and assertions share.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::CryptoProvider;

/// The text of errors that a missing provider causes.
pub(crate) const NO_PROVIDER: &str = "no provider of cryptography; turn on the feature `tls-ring` or `tls-aws-lc-rs`, or \
                                      install one for the process";

/// Returns the process's own provider, if the application has installed one, else that of the feature.
pub(crate) fn provider() -> Option<Arc<CryptoProvider>> {
    if let Some(installed) = CryptoProvider::get_default() {
        return Some(installed.clone());
    }
    #[cfg(feature = "tls-aws-lc-rs")]
    return Some(Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider()));
    #[cfg(all(feature = "tls-ring", not(feature = "tls-aws-lc-rs")))]
    return Some(Arc::new(tokio_rustls::rustls::crypto::ring::default_provider()));
    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc-rs")))]
    None
}
