//! The `Host` field of requests to the backend.

use std::{convert::Infallible, error, fmt, str::FromStr};

use http::{
    HeaderValue,
    uri::{Authority, Scheme},
};

use crate::{authority::is_authority, backend::Backend};

/// The `Host` field of requests to the backend.
///
/// [`Upstream::host`](crate::Upstream::host) sets it. A name as `&str` or `String` becomes [`Fixed`](Self::Fixed).
///
/// ```
/// use tower_reverse_proxy::{HostPolicy, Upstream};
///
/// let by_address = Upstream::new("http://10.0.0.7").host("intranet.example");
/// let public = Upstream::new("http://legacy.example").host(HostPolicy::Backend);
/// # let _ = (by_address, public);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias = "pass_host_header")]
#[doc(alias = "ProxyPreserveHost")]
pub enum HostPolicy {
    /// The client's `Host`, which backends compare with `Origin` and use in their links. The default for `http` and
    /// Unix-socket backends.
    Preserve,
    /// The backend's authority, by which a public site selects its virtual host. The default for `https` backends.
    Backend,
    /// A fixed name, such as a virtual host of a server that is addressed by its IP address.
    Fixed(HostName),
}

impl HostPolicy {
    pub(super) fn default_for(backend: &Backend) -> Self {
        if *backend.scheme() == Scheme::HTTPS { Self::Backend } else { Self::Preserve }
    }
}

impl TryFrom<&str> for HostPolicy {
    type Error = InvalidHost;

    fn try_from(name: &str) -> Result<Self, Self::Error> {
        name.try_into().map(Self::Fixed)
    }
}

impl TryFrom<String> for HostPolicy {
    type Error = InvalidHost;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.as_str().try_into()
    }
}

impl TryFrom<&String> for HostPolicy {
    type Error = InvalidHost;

    fn try_from(name: &String) -> Result<Self, Self::Error> {
        name.as_str().try_into()
    }
}

impl From<HostName> for HostPolicy {
    fn from(name: HostName) -> Self {
        Self::Fixed(name)
    }
}

/// A valid `Host`: a name or an address, and a port if it needs one (RFC 9110, section 7.2).
///
/// ```
/// use tower_reverse_proxy::upstream::HostName;
///
/// assert!(HostName::try_from("intranet.example:8080").is_ok());
/// assert!(HostName::try_from("user@intranet.example").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    authority: Authority,
    value: HeaderValue,
}

impl HostName {
    /// Returns the name without the port.
    pub(super) fn host(&self) -> &str {
        self.authority.host()
    }

    pub(super) fn value(&self) -> &HeaderValue {
        &self.value
    }
}

impl TryFrom<&str> for HostName {
    type Error = InvalidHost;

    fn try_from(name: &str) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl FromStr for HostName {
    type Err = InvalidHost;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let parsed = || Some(Self { authority: name.parse().ok()?, value: HeaderValue::from_str(name).ok()? });
        let valid = is_authority(name.as_bytes()).then(parsed).flatten();
        valid.ok_or(InvalidHost(()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.authority.fmt(f)
    }
}

/// The error returned when a text isn't a valid `Host`. It doesn't repeat the text, which may contain credentials.
///
/// ```
/// use tower_reverse_proxy::upstream::HostName;
///
/// let error = HostName::try_from("user@intranet.example").unwrap_err();
/// assert!(error.to_string().contains("\"intranet.example:8080\""));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidHost(());

impl fmt::Display for InvalidHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "invalid Host: write a name or an address, and a port if it needs one, such as \"intranet.example:8080\"",
        )
    }
}

impl error::Error for InvalidHost {}

impl From<Infallible> for InvalidHost {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
