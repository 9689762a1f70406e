//! The addresses of a name, by the system's look-up.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::BoxError;
use futures_core::Stream;
#[cfg(feature = "dns")]
use http::uri::Scheme;
use tokio::net::lookup_host;

use super::rounds::{Found, LookUp, Rounds};
use crate::{
    backend::{Backend, InvalidBackend},
    balance::{InvalidBackends, Member},
};

/// The addresses of a name, by the look-up of the operating system: a source for
/// [`Backends::follow`](crate::Backends::follow).
///
/// The name is looked up at once, and then every 30 seconds, give or take 10 %; after a failure, after 5 seconds. Each
/// of its addresses, IPv4 or IPv6, is a member, to which `Host` and the certificate's name apply as to the name.
///
/// The system's look-up also reads `/etc/hosts` and knows search domains, and it doesn't return how long an answer is
/// valid. `DnsRecords`, of the feature `dns`, does.
///
/// ```
/// use tower_reverse_proxy::{Backends, ReverseProxyLayer, balance::discover::Dns};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// // Until the first answer, the name itself is the only member.
/// let backends = Backends::new(["http://app.internal:8000"]);
/// backends.follow(Dns::new("http://app.internal:8000")).detach();
/// let proxy = ReverseProxyLayer::balanced(&backends).prefix("/app");
/// # let _ = proxy;
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a source does nothing until it's followed"]
#[doc(alias = "resolver")]
pub struct Dns {
    rounds: Rounds<SystemLookUp>,
}

#[derive(Clone, Debug)]
struct SystemLookUp {
    name: Name,
    interval: Duration,
}

/// The host of an origin that is looked up.
#[derive(Clone, Debug)]
pub(super) struct Name {
    backend: Backend,
}

impl Dns {
    /// Looks up the host of an origin, whose scheme and port are those of its members: `http://name:port`.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::discover::Dns;
    ///
    /// let dns = Dns::new("http://app.internal:8000");
    /// # let _ = dns;
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't an origin with a host. [`try_new`](Self::try_new) returns the error.
    #[track_caller]
    pub fn new(origin: impl TryInto<Backend, Error: Into<InvalidBackend>>) -> Self {
        match Self::try_new(origin) {
            Ok(dns) => dns,
            Err(error) => panic!("{error}"),
        }
    }

    /// Looks up the host of an origin, as [`new`](Self::new) does.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::discover::Dns;
    ///
    /// assert!(Dns::try_new("unix:/run/app.sock").is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// If it isn't an origin with a host.
    pub fn try_new(origin: impl TryInto<Backend, Error: Into<InvalidBackend>>) -> Result<Self, InvalidBackends> {
        let source = SystemLookUp { name: Name::new(origin)?, interval: Duration::from_secs(30) };
        Ok(Self { rounds: Rounds::new(source) })
    }

    /// Sets the time from one look-up to the next. Default: 30 seconds. It varies by 10 %. The shortest is 1 second.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::balance::discover::Dns;
    ///
    /// let dns = Dns::new("http://app.internal:8000").interval(Duration::from_secs(10));
    /// # let _ = dns;
    /// ```
    pub fn interval(mut self, interval: Duration) -> Self {
        const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        self.rounds.source.interval = interval.clamp(Duration::from_secs(1), LONGEST);
        self
    }
}

impl Stream for Dns {
    type Item = Result<Vec<Member>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.rounds.poll_found(cx).map(Some)
    }
}

impl LookUp for SystemLookUp {
    async fn look_up(&mut self) -> Found {
        let addresses = lookup_host((self.name.host(), self.name.backend.port())).await?;
        Ok((self.name.members(addresses.map(|address| address.ip())), self.interval))
    }
}

impl Name {
    pub(super) fn new(origin: impl TryInto<Backend, Error: Into<InvalidBackend>>) -> Result<Self, InvalidBackends> {
        let backend = origin.try_into().map_err(|error| InvalidBackends::new(error.into().to_string()))?;
        if backend.socket().is_some() {
            let text =
                format!("{backend} has no name to look up: write an origin such as \"http://app.internal:8000\"");
            return Err(InvalidBackends::new(text));
        }
        Ok(Self { backend })
    }

    /// Returns the host, an IPv6 address without its brackets.
    pub(super) fn host(&self) -> &str {
        self.backend.authority().host().trim_start_matches('[').trim_end_matches(']')
    }

    #[cfg(feature = "dns")]
    pub(super) fn scheme(&self) -> &Scheme {
        self.backend.scheme()
    }

    #[cfg(feature = "dns")]
    pub(super) fn has_port(&self) -> bool {
        self.backend.authority().port().is_some()
    }

    /// Returns a member for each of these addresses, in a fixed order, because name servers rotate theirs.
    pub(super) fn members(&self, addresses: impl Iterator<Item = IpAddr>) -> Vec<Member> {
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort_unstable();
        addresses.dedup();
        let members = addresses.into_iter().map(|ip| SocketAddr::new(ip, self.backend.port()));
        members.map(|address| Member::new(self.backend.clone()).at(address)).collect()
    }
}
