//! What this module needs of Kerberos. [`gss`](super::gss) implements it with the system's library; the tests of the
//! threads and caches have an implementation of their own.

use std::{
    error, fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// The calls of a Kerberos library, for one service and one account of the front. All of them block, except
/// [`Context::finish`].
pub(super) trait Mechanism: Send + Sync + 'static {
    /// A credential. Clones share one handle, whose calls the library serialises.
    type Cred: Clone + Send + Sync + 'static;
    type Context: Context;

    /// Acquires the front's own credential anew, from the sources that the environment of the process names.
    fn acquire(&self) -> Result<Acquired<Self::Cred>, Failure>;

    /// Acquires a credential of this user with that of the front (S4U2Self).
    fn impersonate(&self, front: &Self::Cred, user: &str) -> Result<Acquired<Self::Cred>, Failure>;

    /// Returns the principal that the library reads this name as.
    fn canonical(&self, name: &str) -> Result<Arc<str>, Failure>;

    /// Returns the principal that a credential is that of.
    fn name(&self, cred: &Self::Cred) -> Result<Arc<str>, Failure>;

    /// Returns the principal that a context of a user's credential speaks for, without sending anything.
    fn initiator(&self, cred: &Self::Cred) -> Result<Arc<str>, Failure>;

    /// Begins a context with mutual authentication; returns it and its first token.
    fn initiate(&self, cred: &Self::Cred, holder: Holder) -> Result<(Vec<u8>, Self::Context), Failure>;

    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Whose credential it is, which determines the mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// The front's own account: SPNEGO.
    Front,
    /// A user: Kerberos itself, because a delegated credential has no part for SPNEGO, for which the library would
    /// silently use the front's own credential.
    User,
}

/// A context that waits for the token of the backend.
pub(super) trait Context: Send + 'static {
    /// Verifies the token of the backend; returns the principal that the context speaks for. It neither blocks nor uses
    /// the network.
    fn finish(self, token: &[u8]) -> Result<Arc<str>, Failure>;
}

/// A credential as it was acquired.
#[derive(Clone, Debug)]
pub(super) struct Acquired<C> {
    pub(super) cred: C,
    pub(super) principal: Arc<str>,
    pub(super) lifetime: Duration,
}

/// Why there is no token. The text is fit for logs: it contains names and the library's text, and no part of a token.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    text: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The library or the KDC refuses.
    Refused,
    /// The front's own credential is missing, whosever the token would have been.
    Front,
    /// No KDC answers, which may be over in a moment.
    Unreachable,
    /// The credential speaks for another principal than the one meant.
    WrongSpeaker,
}

impl Failure {
    /// The text may contain what a KDC has sent, which nothing authenticates. Its control characters don't pass to a
    /// log.
    pub(super) fn new(reason: Reason, text: impl AsRef<str>) -> Self {
        Self { reason, text: text.as_ref().replace(char::is_control, " ").into() }
    }

    /// A failure of the front's own credential isn't the user's.
    pub(super) fn of_front(self) -> Self {
        Self { reason: if self.reason == Reason::Refused { Reason::Front } else { self.reason }, ..self }
    }

    /// Names the user whom the KDC refuses, because one `Negotiate` acts for many.
    pub(super) fn of_user(self, name: &str) -> Self {
        match self.reason {
            Reason::Refused => Self::new(Reason::Refused, format!("for {name:?}: {self}")),
            Reason::Front | Reason::Unreachable | Reason::WrongSpeaker => self,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_user() {
        for (reason, text) in [(Reason::Refused, "for \"al\\nice\": no"), (Reason::Front, "no")] {
            assert_eq!(Failure::new(reason, "no").of_user("al\nice").to_string(), text);
        }
    }

    #[test]
    fn a_text_of_the_kdc_is_one_line_of_the_log() {
        let failure = Failure::new(Reason::Refused, "refused\r\nfaked: event \u{1b}[31m");
        assert_eq!(failure.to_string(), "refused  faked: event  [31m");
    }
}
