//! The wait for a token, and the errors that it becomes.

use std::{future::Future, time::Duration};

use tokio::time::timeout;

use super::{
    mechanism::{Failure, Mechanism, Reason},
    minter::{Initiator, Minted},
    workers::{Unavailable, Workers},
};
use crate::{
    authorize::source::missing_for_user,
    error::{Error, ErrorKind},
    observe,
};

/// Requests a token, and waits for it until the deadline. Dropping the future cancels the request.
pub(super) fn token<M: Mechanism>(
    workers: &Workers<M>,
    initiator: Initiator<M::Cred>,
    deadline: Duration,
) -> Result<impl Future<Output = Result<Minted<M::Context>, Error>> + Send + use<M>, Error> {
    let of_user = !matches!(initiator, Initiator::Own);
    let answer = timeout(deadline, workers.mint(initiator, deadline)?);
    Ok(async move {
        match answer.await {
            Ok(Ok(minted)) => minted.map_err(|failure| failed(failure, of_user)),
            Ok(Err(_)) => Err(Unavailable::Ended.into()),
            Err(_) => Err(Error::with_source(
                ErrorKind::CredentialsTimeout,
                format!("no token within {deadline:?}: the KDC doesn't answer, or too many requests wait for it"),
            )),
        }
    })
}

impl From<Unavailable> for Error {
    fn from(unavailable: Unavailable) -> Self {
        let (kind, text) = match unavailable {
            Unavailable::Full => (ErrorKind::CredentialsBusy, "the queue of the thread that makes tokens is full"),
            Unavailable::Stuck => (
                ErrorKind::CredentialsTimeout,
                "the thread that makes tokens has waited for the KDC for longer than the deadline",
            ),
            Unavailable::Ended => (ErrorKind::CredentialsMissing, "the thread that makes tokens has ended"),
        };
        Self::with_source(kind, text)
    }
}

/// A failure of a user's credentials is 403. If the front's own are missing, or the KDC is, it's 502 for users too.
fn failed(failure: Failure, of_user: bool) -> Error {
    match failure.reason {
        Reason::WrongSpeaker => {
            observe::wrong_speaker(&failure);
            Error::with_source(ErrorKind::WrongSpeaker, failure)
        }
        Reason::Refused if of_user => missing_for_user(failure),
        Reason::Refused | Reason::Front | Reason::Unreachable => {
            Error::with_source(ErrorKind::CredentialsMissing, failure)
        }
    }
}
