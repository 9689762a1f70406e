//! The error of the constructors.

use std::{error, fmt};

use super::{mechanism::Failure, workers::NotStarted};

/// The error returned when a [`Negotiate`](super::Negotiate) can't sign in to a backend. Its text names what to set.
///
/// ```
/// use tower_reverse_proxy::Negotiate;
///
/// let error = Negotiate::delegated("backend.example").unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "invalid service name \"backend.example\": write service@host, such as \"HTTP@backend.example\""
/// );
/// ```
#[derive(Clone, Debug)]
pub struct InvalidNegotiate {
    text: String,
}

impl InvalidNegotiate {
    pub(super) fn service(service: &str) -> Self {
        let example = "write service@host, such as \"HTTP@backend.example\"";
        Self { text: format!("invalid service name {service:?}: {example}") }
    }

    pub(super) fn principal(principal: &str) -> Self {
        let example = "write one such as \"front@CORP.EXAMPLE\"";
        Self { text: format!("invalid principal {principal:?}: {example}") }
    }

    pub(super) fn name(failure: &Failure) -> Self {
        Self { text: format!("the Kerberos library refuses the name: {failure}") }
    }

    pub(super) fn own(reason: NotStarted) -> Self {
        Self::start(
            reason,
            "set KRB5_CLIENT_KTNAME to a keytab and KRB5CCNAME to a cache, such as MEMORY:front, or get a ticket with \
             kinit",
        )
    }

    pub(super) fn on_behalf(reason: NotStarted) -> Self {
        Self::start(
            reason,
            "set KRB5_CLIENT_KTNAME and KRB5_KTNAME to a keytab, and KRB5CCNAME to a cache, such as MEMORY:front",
        )
    }

    fn start(reason: NotStarted, advice: &str) -> Self {
        let text = match reason {
            NotStarted::Credential(failure) => format!("no Kerberos credential: {advice} ({failure})"),
            NotStarted::Thread(error) => format!("a thread can't be started: {error}"),
        };
        Self { text }
    }
}

impl fmt::Display for InvalidNegotiate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl error::Error for InvalidNegotiate {}
