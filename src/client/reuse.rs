//! Which requests may use a connection after the one that it carries.

use axum_core::body::Body;
use http::{HeaderMap, Request, header::AUTHORIZATION};

use crate::identity::Owner;

/// Which requests may use a connection after the one that it carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Reuse {
    /// Requests without an owner.
    #[default]
    Shared,
    /// Requests of this owner, because its credentials have signed in the connection.
    Owned(Owner),
    /// No request, because the credentials that have signed in the connection are of an unknown owner.
    Never,
}

impl Reuse {
    /// Returns what a request makes of its connection.
    pub(super) fn of(request: &Request<Body>) -> Self {
        match request.extensions().get::<Owner>() {
            Some(owner @ Owner::Principal(_)) => Self::Owned(owner.clone()),
            Some(Owner::Request) | None if authenticates_connection(request.headers()) => Self::Never,
            Some(Owner::Request) | None => Self::Shared,
        }
    }

    pub(super) fn owner(&self) -> Option<&Owner> {
        match self {
            Self::Owned(owner) => Some(owner),
            Self::Shared | Self::Never => None,
        }
    }
}

/// Whether the credentials authenticate the connection and not the request (NTLM; Negotiate, RFC 4559, section 6).
///
/// The backend may process later requests on that connection as that user's.
///
/// Outer whitespace isn't part of a field value (RFC 9110, section 5.5), and not every HTTP stack removes it: h2 passes
/// `" Negotiate …"` on unchanged.
pub(crate) fn authenticates_connection(headers: &HeaderMap) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(|value| {
        let value = value.as_bytes().trim_ascii();
        let scheme = value.split(|b| b.is_ascii_whitespace()).next().unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"NTLM") || scheme.eq_ignore_ascii_case(b"Negotiate")
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn connection_based_credentials_are_recognised() {
        for (value, theirs) in [
            ("NTLM TlRM", true),
            ("ntlm", true),
            ("Negotiate YII=", true),
            (" Negotiate YII=", true),
            ("\tNTLM TlRM", true),
            (" \t negotiate\tYII=", true),
            ("\tNTLM ", true),
            ("Basic YTpi", false),
            ("Bearer ntlm", false),
            ("", false),
            (" ", false),
            (" Basic NTLM", false),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(authenticates_connection(&headers), theirs, "{value}");
        }
    }

    #[test]
    fn an_owner_takes_precedence_over_the_authentication_scheme() {
        let alice = || Owner::Principal("alice".into());
        for (owner, credentials, expected) in [
            (None, "Basic YTpi", Reuse::Shared),
            (None, "Negotiate YII=", Reuse::Never),
            (Some(Owner::Request), "Basic YTpi", Reuse::Shared),
            (Some(Owner::Request), "Negotiate YII=", Reuse::Never),
            (Some(alice()), "Basic YTpi", Reuse::Owned(alice())),
            (Some(alice()), "Negotiate YII=", Reuse::Owned(alice())),
        ] {
            let mut request = Request::get("/x").header(AUTHORIZATION, credentials).body(Body::empty()).unwrap();
            if let Some(owner) = owner.clone() {
                request.extensions_mut().insert(owner);
            }
            assert_eq!(Reuse::of(&request), expected, "{owner:?} {credentials}");
        }
    }
}
