//! The backend's answer to a token: mutual authentication.

use std::{fmt, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::HeaderMap;

use super::{gss::GssContext, mechanism::Context};
use crate::{
    authorize::Proof,
    error::{Error, ErrorKind},
    headers::challenge,
    observe,
};

/// The [`Proof`] of [`Negotiate`](super::Negotiate): the context of one token, which verifies the token of the
/// backend's response to it.
pub struct MutualAuth {
    pub(super) context: GssContext,
    pub(super) principal: Arc<str>,
    pub(super) required: bool,
}

impl Proof for MutualAuth {
    fn verify(self, response: &HeaderMap) -> Result<(), Error> {
        verify(self.context, &self.principal, self.required, response)
    }
}

impl fmt::Debug for MutualAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MutualAuth")
            .field("principal", &self.principal)
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

/// Verifies the token of the response. A response without one is refused where it's required.
fn verify<C: Context>(context: C, principal: &str, required: bool, response: &HeaderMap) -> Result<(), Error> {
    let unproven = |source| Err(Error::with_source(ErrorKind::BackendUnproven, source));
    let Some(token) = challenge::negotiate_token(response) else {
        return if required { unproven("the response has no token of the backend".into()) } else { Ok(()) };
    };
    let Ok(token) = BASE64_STANDARD.decode(token) else {
        return unproven("the backend's token isn't Base64".into());
    };
    match context.finish(&token) {
        Ok(initiator) if *initiator == *principal => Ok(()),
        Ok(initiator) => {
            let text = format!("the request was {initiator}'s, and {principal} was meant");
            observe::wrong_speaker(&text);
            Err(Error::with_source(ErrorKind::WrongSpeaker, text))
        }
        Err(failure) => unproven(failure.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header::WWW_AUTHENTICATE};

    use super::{
        super::mechanism::{Failure, Reason},
        *,
    };

    /// Accepts the token of the backend that has this text.
    struct Expecting(&'static str);

    impl Context for Expecting {
        fn finish(self, token: &[u8]) -> Result<Arc<str>, Failure> {
            match token == self.0.as_bytes() {
                true => Ok("alice@KIT.TEST".into()),
                false => Err(Failure::new(Reason::Refused, "another context's token")),
            }
        }
    }

    fn response(challenges: &[&'static str]) -> HeaderMap {
        challenges.iter().map(|challenge| (WWW_AUTHENTICATE, HeaderValue::from_static(challenge))).collect()
    }

    #[test]
    fn what_comes_is_verified_and_what_is_required_must_come() {
        for (challenges, optional, required) in [
            (&["Negotiate b2s="][..], None, None),
            (&[], None, Some(ErrorKind::BackendUnproven)),
            (&["Negotiate"], None, Some(ErrorKind::BackendUnproven)),
            (&["Negotiate b3RoZXI="], Some(ErrorKind::BackendUnproven), Some(ErrorKind::BackendUnproven)),
            (&["Negotiate =b2s"], Some(ErrorKind::BackendUnproven), Some(ErrorKind::BackendUnproven)),
        ] {
            let verify = |required| {
                let outcome = verify(Expecting("ok"), "alice@KIT.TEST", required, &response(challenges));
                outcome.err().map(|error| error.kind())
            };
            assert_eq!((verify(false), verify(true)), (optional, required), "{challenges:?}");
        }
    }

    #[test]
    fn a_context_that_spoke_for_another_principal_is_an_error() {
        let outcome = verify(Expecting("ok"), "HTTP/front@KIT.TEST", false, &response(&["Negotiate b2s="]));
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::WrongSpeaker);
    }
}
