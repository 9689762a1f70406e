//! The wait for a token, and the errors that it becomes.

use std::{
    future::Future,
    pin::Pin,
    task::{Context as TaskContext, Poll, ready},
    time::Duration,
};

use http::StatusCode;
use pin_project_lite::pin_project;
use tokio::{
    sync::oneshot::Receiver,
    time::{Timeout, timeout},
};

use super::{
    desk::{Answer, Desk, Unavailable},
    mechanism::{Failure, Mechanism, Reason},
    minter::{Minted, Speaker},
};
use crate::{
    error::{Error, ErrorKind},
    observe,
};

pin_project! {
    /// Waits for a token until the deadline. Dropping it cancels the request for the token.
    #[project = PendingProject]
    pub(super) enum Pending<M: Mechanism> {
        Failed { error: Option<Error> },
        Waiting {
            #[pin]
            answer: Timeout<Receiver<Answer<M>>>,
            deadline: Duration,
            of_user: bool,
        },
    }
}

impl<M: Mechanism> Pending<M> {
    pub(super) fn new(desk: &Desk<M>, speaker: Speaker<M::Cred>, deadline: Duration) -> Self {
        let of_user = !matches!(speaker, Speaker::Own);
        match desk.mint(speaker, deadline) {
            Ok(answer) => Self::Waiting { answer: timeout(deadline, answer), deadline, of_user },
            Err(unavailable) => Self::Failed { error: Some(unavailable.into()) },
        }
    }
}

impl<M: Mechanism> Future for Pending<M> {
    type Output = Result<Minted<M::Context>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project() {
            PendingProject::Failed { error } => Err(error.take().unwrap_or_else(|| Unavailable::Ended.into())),
            PendingProject::Waiting { answer, deadline, of_user } => match ready!(answer.poll(cx)) {
                Ok(Ok(minted)) => minted.map_err(|failure| failed(failure, *of_user)),
                Ok(Err(_)) => Err(Unavailable::Ended.into()),
                Err(_) => Err(Error::with_source(
                    ErrorKind::CredentialsTimeout,
                    format!("no token within {deadline:?}: the KDC doesn't answer, or too many requests wait for it"),
                )),
            },
        })
    }
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
        Reason::Refused if of_user => Error::with_status(ErrorKind::CredentialsMissing, StatusCode::FORBIDDEN, failure),
        Reason::Refused | Reason::Front => Error::with_source(ErrorKind::CredentialsMissing, failure),
    }
}
