//! Kerberos sign-in to the backend, as [`Negotiate`] (RFC 4559): as the front's own account, or as the user.
//!
//! It's a [`CredentialSource`] for a [`NegotiateLayer`](crate::NegotiateLayer), on the GSS-API library of MIT Kerberos.
//! The module exists on Unix, with the feature `negotiate`; on other systems the feature adds nothing. Heimdal and
//! macOS's own library don't have the calls of [`on_behalf`](Negotiate::on_behalf): where one of these is the system's,
//! install MIT Kerberos too, and build with `LIBGSSAPI_IMPL=mit`.
//!
//! | constructor | the backend sees | the front needs |
//! |---|---|---|
//! | [`own`](Negotiate::own) | the process's own account | a ticket cache, or a client keytab |
//! | [`own_as`](Negotiate::own_as) | one of several accounts of the process | a collection of caches (`DIR:`), or a client keytab |
//! | [`delegated`](Negotiate::delegated) | the user whose ticket the client has forwarded | an application that accepts tickets |
//! | [`on_behalf`](Negotiate::on_behalf) | the signed-in [`RemoteUser`] | a keytab, and the right to delegate to the backend |
//!
//! # Where the front's own credentials come from
//!
//! They come from the environment of the process, which is set before its start, because the library reads it at any
//! time:
//!
//! | variable | example | |
//! |---|---|---|
//! | `KRB5_CLIENT_KTNAME` | `FILE:/etc/front.keytab` | the keys with which the front gets its own tickets |
//! | `KRB5CCNAME` | `MEMORY:front`, `DIR:/run/front/krb5` | where the tickets are kept |
//! | `KRB5_KTNAME` | `FILE:/etc/front.keytab` | for [`on_behalf`](Negotiate::on_behalf) too: the key that reads users' tickets |
//! | `KRB5_CONFIG` | `/etc/krb5.conf` | realm, KDCs |
//!
//! A front that mustn't read its own keytab can leave that to GSS-Proxy (`GSS_USE_PROXY=yes`).
//!
//! # Tokens
//!
//! Each attempt sends a new token, with its first request: no 401 is awaited, because a streamed body can't be sent
//! twice. A token costs about 100 µs of CPU time once the ticket for the backend is cached, and one round trip to the
//! KDC before, or two on behalf of a user. The ticket of the front is never delegated.
//!
//! # Threads
//!
//! The library's calls block, on an unreachable KDC for half a minute. Therefore each `Negotiate` has threads of its
//! own: one for the account of the front, or four for users, each user on one of them, and one for users whose ticket for
//! the backend is cached. A slow call for one user delays the others of its thread that have no ticket yet. The names of the threads begin with `negotiate`. They end with the last clone of the
//! `Negotiate`; one that is in a call ends after it, and nothing waits for that.
//!
//! | | the request is refused with |
//! |---|---|
//! | its token isn't there within the [deadline](Negotiate::deadline) | [`CredentialsTimeout`], 504 |
//! | the thread has been in one call for longer than the deadline | the same, at once |
//! | 64 requests wait for a call that takes longer than 250 ms; or 1024 wait | [`CredentialsBusy`], 503, at once |
//! | the library or the KDC refuses | [`CredentialsMissing`], 502, or 403 if it's about the user; a service that the KDC doesn't know isn't |
//! | the same account was refused within the last second | the same, without a call |
//!
//! [`CredentialsBusy`]: crate::ErrorKind::CredentialsBusy
//! [`CredentialsMissing`]: crate::ErrorKind::CredentialsMissing
//! [`CredentialsTimeout`]: crate::ErrorKind::CredentialsTimeout
//!
//! The front's credential is acquired anew after 5 minutes, or at half of its life if that is earlier, and once after a
//! failure.

mod answer;
mod delegated;
mod gss;
mod invalid;
mod mechanism;
mod minter;
mod name;
#[cfg(test)]
mod tests;
mod users;
mod wait;
mod workers;

use std::{fmt, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::HeaderValue;
/// The version of libgssapi whose credentials a [`DelegatedCredential`] is made of.
#[doc(no_inline)]
pub use libgssapi;
use libgssapi::credential::Cred;

pub use self::{answer::MutualAuth, delegated::DelegatedCredential, invalid::InvalidNegotiate};
use self::{
    gss::{Gss, GssContext},
    minter::{Initiator, Minted},
    wait::token,
    workers::Workers,
};
use super::{Ask, CredentialSource, Credentials, CredentialsFuture, source::missing_for_user};
use crate::{
    error::Error,
    identity::{Owner, RemoteUser},
};

/// The longest time that a constructor waits for the front's own credential.
const START: Duration = Duration::from_secs(5);

/// Kerberos credentials for a backend: see the [module](self).
///
/// Clones share their threads, their credentials and the cache of users.
///
/// ```no_run
/// use tower_reverse_proxy::{HostPolicy, Negotiate, NegotiateLayer, ReverseProxyLayer, Upstream};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let upstream = Upstream::try_new("http://backend.example:8080")?.host(HostPolicy::Backend);
/// let layer = ReverseProxyLayer::with_upstream(upstream)
///     .prefix("/legacy")
///     .upstream_layer(NegotiateLayer::with_source(Negotiate::own("HTTP@backend.example")?));
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
///
/// # The service name
///
/// It's `service@host`, as the backend's principal `HTTP/backend.example` is called: `HTTP@backend.example`. It's an
/// argument, because the client's `Host`, the URL of the backend and an IP address don't determine it. A `Host` that a
/// client chooses would choose the service that gets a ticket.
///
/// A backend may accept tickets for the name in `Host` only (mod_auth_gssapi with `GssapiAcceptorName {HOSTNAME}`).
/// [`HostPolicy::Backend`](crate::HostPolicy::Backend) sends it the backend's own.
///
/// # Security
///
/// A request of a user is never sent with the front's own identity: before the first token of a credential leaves, its
/// principal is established and compared with the one meant. A difference is
/// [`WrongSpeaker`](crate::ErrorKind::WrongSpeaker), 502, and an event at error level. Connections are kept apart by
/// the established principal ([`Owner::Principal`]), because a backend may sign in a connection and not each request.
///
/// The library looks names up in DNS by default. In `krb5.conf`, `dns_canonicalize_hostname = false` and `rdns = false`
/// keep an attacker on the network from choosing the service, and so from getting a ticket for it.
///
/// Without TLS, the backend is known by [`require_mutual`](Self::require_mutual) only, and a request that has been sent
/// is readable on the network.
#[doc(alias("Kerberos", "SPNEGO", "GSSAPI", "UseDefaultCredentials", "KerberosConstrainedDelegation", "SPN"))]
#[derive(Clone)]
pub struct Negotiate {
    workers: Arc<Workers<Gss>>,
    account: Account,
    principal: Option<Arc<Principal>>,
    require_mutual: bool,
    deadline: Duration,
}

type Principal = dyn Fn(&RemoteUser) -> Option<String> + Send + Sync;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Account {
    Own,
    Delegated,
    OnBehalf,
}

impl Negotiate {
    /// Signs in as the process's own account: the principal of its ticket cache or client keytab. All requests have its
    /// identity, with and without a user.
    ///
    /// It acquires the credential at once, which may take a round trip to the KDC, and blocks meanwhile for up to 5
    /// seconds: call it at the start of the application.
    ///
    /// ```
    /// use tower_reverse_proxy::Negotiate;
    ///
    /// let error = Negotiate::own("http://backend.example").unwrap_err();
    /// assert!(error.to_string().contains("HTTP@backend.example"));
    /// ```
    ///
    /// # Errors
    ///
    /// If the service name isn't `service@host`, or if there is no credential. A KDC that doesn't answer isn't an
    /// error: a warning is logged, and requests fail until a KDC answers.
    pub fn own(service: &str) -> Result<Self, InvalidNegotiate> {
        Self::of_front(service, None)
    }

    /// Signs in as this account of the process, where its ticket cache is a collection (`KRB5CCNAME=DIR:…`) or its
    /// client keytab has several principals.
    ///
    /// A principal without a realm is one of the default realm.
    ///
    /// ```no_run
    /// use tower_reverse_proxy::{Negotiate, NegotiateLayer};
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::InvalidNegotiate> {
    /// let layer = NegotiateLayer::with_source(Negotiate::own_as("reports@CORP.EXAMPLE", "HTTP@backend.example")?);
    /// # let _ = layer;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`own`](Self::own); also if there is no credential of this principal.
    pub fn own_as(principal: &str, service: &str) -> Result<Self, InvalidNegotiate> {
        if !name::is_principal(principal) {
            return Err(InvalidNegotiate::principal(principal));
        }
        Self::of_front(service, Some(principal))
    }

    fn of_front(service: &str, account: Option<&str>) -> Result<Self, InvalidNegotiate> {
        check_service(service)?;
        let gss = Gss::own(service, account).map_err(|failure| InvalidNegotiate::name(&failure))?;
        let workers = Workers::start(gss, &["negotiate"], None, Some(START)).map_err(InvalidNegotiate::own)?;
        Ok(Self::new(workers, Account::Own))
    }

    /// Signs in as the user whose ticket the client has forwarded: the application accepts the client's token, and
    /// inserts a [`DelegatedCredential`] into the request's extensions. A request without one is sent without
    /// credentials.
    ///
    /// The same holds for a credential that the application's own account gets for a client (constrained delegation
    /// with S4U2Proxy), which the library hands over in the same way.
    ///
    /// ```
    /// use tower_reverse_proxy::{Negotiate, NegotiateLayer};
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::InvalidNegotiate> {
    /// let layer = NegotiateLayer::with_source(Negotiate::delegated("HTTP@backend.example")?);
    /// # let _ = layer;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If the service name isn't `service@host`.
    pub fn delegated(service: &str) -> Result<Self, InvalidNegotiate> {
        check_service(service)?;
        let gss = Gss::own(service, None).map_err(|failure| InvalidNegotiate::name(&failure))?;
        let workers = Workers::start(gss, &USERS, Some(CACHED), None).map_err(InvalidNegotiate::own)?;
        Ok(Self::new(workers, Account::Delegated))
    }

    /// Signs in as the [`RemoteUser`] whom the application signed in by other means, without a ticket or a password of
    /// the user (S4U2Self and S4U2Proxy, "protocol transition"). A request without a user is sent without credentials.
    ///
    /// The KDC permits the front's account to act for users at this service: in Active Directory with "trust this user
    /// for delegation to specified services only" and "use any authentication protocol", in MIT Kerberos with
    /// `ok_to_auth_as_delegate` and `krbAllowedToDelegateTo`. A user whom the KDC protects from delegation is refused
    /// with [`CredentialsMissing`](crate::ErrorKind::CredentialsMissing), 403.
    ///
    /// The name is one of the default realm. A name that contains `@`, `/`, `\` or control characters is refused with
    /// the same 403, because the library would read it as another user's; [`principal`](Self::principal) maps such
    /// names.
    ///
    /// It acquires the front's own credential at once, and blocks meanwhile for up to 5 seconds.
    ///
    /// ```no_run
    /// use tower_reverse_proxy::{Negotiate, NegotiateLayer};
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::InvalidNegotiate> {
    /// let layer = NegotiateLayer::with_source(Negotiate::on_behalf("HTTP@backend.example")?);
    /// # let _ = layer;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`own`](Self::own); also if there is no keytab in `KRB5_KTNAME`.
    ///
    /// # Security
    ///
    /// The front acts for any user whom the KDC doesn't protect. The application's sign-in is all that stands before
    /// it.
    #[doc(alias("S4U", "S4U2Self", "S4U2Proxy", "constrained delegation", "protocol transition", "impersonation"))]
    pub fn on_behalf(service: &str) -> Result<Self, InvalidNegotiate> {
        check_service(service)?;
        let gss = Gss::on_behalf(service).map_err(|failure| InvalidNegotiate::name(&failure))?;
        let workers = Workers::start(gss, &USERS, Some(CACHED), Some(START)).map_err(InvalidNegotiate::on_behalf)?;
        Ok(Self::new(workers, Account::OnBehalf))
    }

    fn new(workers: Workers<Gss>, account: Account) -> Self {
        let deadline = Duration::from_secs(5);
        Self { workers: Arc::new(workers), account, principal: None, require_mutual: false, deadline }
    }

    /// Maps users to principals, such as `CORP\alice` to `alice@CORP.EXAMPLE`. A user who is mapped to `None` is
    /// refused with [`CredentialsMissing`](crate::ErrorKind::CredentialsMissing), 403. Default: the name itself, in the
    /// default realm.
    ///
    /// The library parses the principal: `@` begins the realm, `/` divides components, `\` takes the meaning from the
    /// next character.
    ///
    /// With [`delegated`](Self::delegated), a credential of another principal than the user's is refused with
    /// [`WrongSpeaker`](crate::ErrorKind::WrongSpeaker), and without a user none is sent; by default the two aren't
    /// compared. It has no effect on the front's own accounts.
    ///
    /// ```no_run
    /// use tower_reverse_proxy::Negotiate;
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::InvalidNegotiate> {
    /// let source = Negotiate::on_behalf("HTTP@backend.example")?.principal(|user| {
    ///     let name = user.as_str().strip_prefix("CORP\\")?;
    ///     name.chars().all(char::is_alphanumeric).then(|| format!("{name}@CORP.EXAMPLE"))
    /// });
    /// # let _ = source;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn principal(self, map: impl Fn(&RemoteUser) -> Option<String> + Send + Sync + 'static) -> Self {
        Self { principal: Some(Arc::new(map)), ..self }
    }

    /// Sets whether a response without a proof of the backend's identity is refused, with
    /// [`BackendUnproven`](crate::ErrorKind::BackendUnproven), 502, its body unread. Default: `false`.
    ///
    /// Every token requests mutual authentication, and the answer of a backend is verified whenever there is one.
    /// Backends may omit it, for example from errors. Over TLS it proves little more than the certificate; without TLS
    /// it's the only proof.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), tower_reverse_proxy::InvalidNegotiate> {
    /// let source = tower_reverse_proxy::Negotiate::own("HTTP@backend.example")?.require_mutual(true);
    /// # let _ = source;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn require_mutual(self, require_mutual: bool) -> Self {
        Self { require_mutual, ..self }
    }

    /// Sets how long a request may wait for its token, the wait in the queue included. Default: 5 s. On expiry it's
    /// refused with [`CredentialsTimeout`](crate::ErrorKind::CredentialsTimeout), 504.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::InvalidNegotiate> {
    /// let source = tower_reverse_proxy::Negotiate::own("HTTP@backend.example")?.deadline(Duration::from_secs(2));
    /// # let _ = source;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Sets for how many users, and how long, [`on_behalf`](Self::on_behalf) keeps credentials. Default: 256 users, 5
    /// minutes; never longer than half of a credential's life. With 0 users, each request costs two round trips to the
    /// KDC.
    ///
    /// Clones share the cache. It's emptied by this call.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::InvalidNegotiate> {
    /// use tower_reverse_proxy::Negotiate;
    ///
    /// let source = Negotiate::on_behalf("HTTP@backend.example")?.cache(64, Duration::from_secs(60));
    /// # let _ = source;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Security
    ///
    /// A user whom the KDC locks or deletes can still reach the backend for this time, unless the application refuses
    /// the user.
    #[must_use]
    pub fn cache(self, users: usize, age: Duration) -> Self {
        self.workers.minter().limit_users(users, age);
        self
    }

    /// Returns whom the request is for. `None` if there is no user.
    fn initiator(&self, ask: &Ask<'_>) -> Result<Option<Initiator<Cred>>, Error> {
        match self.account {
            Account::Own => Ok(Some(Initiator::Own)),
            Account::Delegated => {
                let Some(DelegatedCredential(credential)) = ask.extensions().get() else { return Ok(None) };
                let meant = match (&self.principal, ask.user()) {
                    (Some(_), Some(user)) => Some(self.principal_of(user)?),
                    // The credential may have outlived its user's session.
                    (Some(_), None) => return Ok(None),
                    (None, _) => None,
                };
                Ok(Some(Initiator::Delegated { credential: credential.clone(), meant }))
            }
            Account::OnBehalf => ask.user().map(|user| self.principal_of(user).map(Initiator::User)).transpose(),
        }
    }

    fn principal_of(&self, user: &RemoteUser) -> Result<Arc<str>, Error> {
        let (principal, advice) = match &self.principal {
            Some(map) => {
                (map(user).filter(|name| name::is_principal(name)).map(Arc::from), "`principal` has none for it")
            }
            None => (name::local(user.as_str()), "it's not a plain name: map it with `principal`"),
        };
        principal.ok_or_else(|| missing_for_user(format!("no principal for the user {:?}: {advice}", user.as_str())))
    }
}

const USERS: [&str; 4] = ["negotiate-0", "negotiate-1", "negotiate-2", "negotiate-3"];
const CACHED: &str = "negotiate-tickets";

fn check_service(service: &str) -> Result<(), InvalidNegotiate> {
    if name::is_service(service) { Ok(()) } else { Err(InvalidNegotiate::service(service)) }
}

impl fmt::Debug for Negotiate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Negotiate")
            .field("account", &self.account)
            .field("require_mutual", &self.require_mutual)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl CredentialSource for Negotiate {
    type Proof = MutualAuth;
    type Future = CredentialsFuture<MutualAuth>;

    fn credentials(&self, ask: &Ask<'_>) -> Self::Future {
        let request = |initiator| token(&self.workers, initiator, self.deadline);
        let (of_front, required) = (self.account == Account::Own, self.require_mutual);
        match self.initiator(ask).and_then(|initiator| initiator.map(request).transpose()) {
            Ok(Some(token)) => {
                CredentialsFuture::pending(async move { Ok(Some(credentials(token.await?, of_front, required))) })
            }
            Ok(None) => CredentialsFuture::ready(Ok(None)),
            Err(error) => CredentialsFuture::ready(Err(error)),
        }
    }
}

fn credentials(minted: Minted<GssContext>, of_front: bool, required: bool) -> Credentials<MutualAuth> {
    let Minted { token, context, principal } = minted;
    let value = HeaderValue::try_from(format!("Negotiate {}", BASE64_STANDARD.encode(token)));
    // Base64 has only characters that a field has.
    let value = value.unwrap_or_else(|_| HeaderValue::from_static("Negotiate"));
    let credentials = if of_front { Credentials::of_front(value) } else { Credentials::of_user(value) };
    credentials.owner(Owner::Principal(principal.clone())).proof(MutualAuth { context, principal, required })
}
