//! The origin of a backend, parsed once.

use std::{convert::Infallible, error, fmt, path::Path, str::FromStr, sync::Arc};

use http::{
    HeaderValue, Uri,
    uri::{Authority, Scheme},
};

use crate::authority::is_authority;

/// The origin of a backend: scheme, host and port of a web server, or the path of its Unix socket.
///
/// It's written `http://127.0.0.1:8000`, `https://backend.example` or `unix:/run/app.sock`. An origin has no path,
/// because the path of a request is forwarded unchanged: `http://backend/mydir` would repeat the directory. A single
/// `/` at the end is accepted.
///
/// `https` needs one of the features `tls-ring` and `tls-aws-lc-rs`, or a client of your own. Without them,
/// `ReverseProxyLayer::new` fails instead of falling back to plaintext.
///
/// ```
/// use tower_reverse_proxy::Backend;
///
/// let backend: Backend = "http://127.0.0.1:8000".parse()?;
/// assert_eq!(backend.to_string(), "http://127.0.0.1:8000");
///
/// // The text of the error is what to write instead.
/// let error = "http://127.0.0.1:8000/mydir".parse::<Backend>().unwrap_err();
/// assert!(error.to_string().contains("write \"http://127.0.0.1:8000\""));
/// # Ok::<_, tower_reverse_proxy::InvalidBackend>(())
/// ```
#[doc(alias(
    "proxy_pass",
    "ProxyPass",
    "upstream",
    "origin",
    "target",
    "destination",
    "unix socket",
    "unix domain socket"
))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    scheme: Scheme,
    authority: Authority,
    socket: Option<Arc<Path>>,
    /// The one spelling of the origin, by which the pool of a target is found for each request.
    origin: Arc<str>,
}

impl Backend {
    /// Returns the scheme: `http`, which a Unix socket has too, or `https`.
    ///
    /// ```
    /// # use tower_reverse_proxy::Backend;
    /// let backend: Backend = "https://backend.example".parse()?;
    /// assert_eq!(backend.scheme().as_str(), "https");
    /// # Ok::<_, tower_reverse_proxy::InvalidBackend>(())
    /// ```
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Returns the host, and the port if there is one. For a Unix socket, it's `localhost`.
    ///
    /// ```
    /// # use tower_reverse_proxy::Backend;
    /// let backend: Backend = "http://127.0.0.1:8000".parse()?;
    /// assert_eq!(backend.authority().as_str(), "127.0.0.1:8000");
    /// # Ok::<_, tower_reverse_proxy::InvalidBackend>(())
    /// ```
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Returns the path of the Unix socket, if the backend listens on one.
    ///
    /// ```
    /// # use tower_reverse_proxy::Backend;
    /// let backend: Backend = "http://127.0.0.1:8000".parse()?;
    /// assert_eq!(backend.socket(), None);
    /// # #[cfg(unix)] {
    /// let backend: Backend = "unix:/run/app.sock".parse()?;
    /// assert_eq!(backend.socket(), Some("/run/app.sock".as_ref()));
    /// # }
    /// # Ok::<_, tower_reverse_proxy::InvalidBackend>(())
    /// ```
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Returns the backend at a subdomain of this one: same scheme, same port, and the name with `label` in front of
    /// it.
    ///
    /// It's for a target per tenant, whose name may come from the request: a label can't change anything but the first
    /// part of the name. It has 1 to 63 letters, digits and hyphens, and neither begins nor ends with a hyphen (RFC
    /// 1123, section 2.1). Upper case becomes lower case.
    ///
    /// ```
    /// use tower_reverse_proxy::Backend;
    ///
    /// let tenants: Backend = "https://tenants.example:8443".parse()?;
    /// assert_eq!(tenants.subdomain("Alice")?.to_string(), "https://alice.tenants.example:8443");
    ///
    /// for label in ["", "a.b", "evil.example/", "user@", "evil.example:80", "%2e", "-a", "jörg"] {
    ///     assert!(tenants.subdomain(label).is_err());
    /// }
    /// # Ok::<_, tower_reverse_proxy::InvalidBackend>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If `label` isn't one DNS label; if this backend has no DNS name, such as an IP address or a Unix socket; or if
    /// the whole name would be longer than 253 octets.
    ///
    /// # Security
    ///
    /// A client that chooses the label reaches every name directly below this backend's. Its domain therefore has to be
    /// the application's own, and none of its subdomains may lead to a server that clients must not reach.
    #[doc(alias = "tenant")]
    pub fn subdomain(&self, label: &str) -> Result<Self, InvalidBackend> {
        if !is_dns_label(label) {
            // The rest of a long text explains nothing.
            let given: String = label.chars().take(MAX_LABEL + 1).collect();
            return Err(InvalidBackend { given: redacted(&given), reason: Reason::Label });
        }
        let invalid = |reason| InvalidBackend { given: self.to_string(), reason };
        let host = self.authority.host();
        if self.socket.is_some() || !is_dns_name(host) {
            return Err(invalid(Reason::NoSubdomains));
        }
        if label.len() + 1 + host.trim_end_matches('.').len() > MAX_NAME {
            return Err(invalid(Reason::LongName));
        }
        let authority = format!("{}.{}", label.to_ascii_lowercase(), self.authority);
        let authority = authority.parse().map_err(|_| invalid(Reason::Authority))?;
        Ok(Self::at(self.scheme.clone(), authority))
    }

    /// Returns the authority as the value of a `Host` field.
    pub(crate) fn host(&self) -> HeaderValue {
        HeaderValue::from_str(self.authority.as_str()).unwrap_or(HeaderValue::from_static("localhost"))
    }

    fn parse(text: &str) -> Result<Self, Reason> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::unix(path);
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Err(Reason::Scheme) };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::HTTP,
            "https" => Scheme::HTTPS,
            _ => return Err(Reason::Scheme),
        };
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if authority.contains('@') {
            return Err(Reason::Userinfo);
        }
        if !tail.is_empty() && tail != "/" {
            return Err(Reason::NotAnOrigin(format!("{scheme}://{authority}")));
        }
        if !is_authority(authority.as_bytes()) {
            return Err(Reason::Authority);
        }
        let authority = authority.parse().map_err(|_| Reason::Authority)?;
        Ok(Self::at(scheme, authority))
    }

    fn at(scheme: Scheme, authority: Authority) -> Self {
        let default_port = default_port(&scheme);
        let host = authority.host().to_ascii_lowercase();
        let origin = match authority.port_u16() {
            Some(port) if port != default_port => format!("{scheme}://{host}:{port}"),
            _ => format!("{scheme}://{host}"),
        };
        Self { scheme, authority, socket: None, origin: origin.into() }
    }

    /// Returns the port, which may be left out.
    pub(crate) fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or_else(|| default_port(&self.scheme))
    }

    /// Returns the one spelling of the origin: names don't distinguish case, and a port may be left out (RFC 6454,
    /// section 4).
    pub(crate) fn origin(&self) -> &Arc<str> {
        &self.origin
    }

    /// Returns the backend in the one spelling of its origin.
    pub(crate) fn canonical(&self) -> Self {
        // It can't fail, because all parts are a backend's.
        self.origin.parse().unwrap_or_else(|_| self.clone())
    }

    fn unix(path: &str) -> Result<Self, Reason> {
        if !cfg!(unix) {
            return Err(Reason::UnixHere);
        }
        // `unix:///run/app.sock` is the URL form of the same path.
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err(Reason::Socket);
        }
        let (socket, origin) = (Some(Arc::from(Path::new(path))), format!("unix:{path}").into());
        Ok(Self { scheme: Scheme::HTTP, authority: Authority::from_static("localhost"), socket, origin })
    }
}

fn default_port(scheme: &Scheme) -> u16 {
    if *scheme == Scheme::HTTPS { 443 } else { 80 }
}

/// The longest label of a DNS name, and the longest name, in octets (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 253;

/// Returns whether this is one label: letters, digits and hyphens, none of which separates a part of a URL.
fn is_dns_label(label: &str) -> bool {
    (1..=MAX_LABEL).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Returns whether this is a DNS name, to which a label can be added.
///
/// A name whose last label is a number is an IPv4 address to resolvers, also a short one such as `0.1`, to which the
/// label `127` would make a whole one.
fn is_dns_name(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|b| b.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .or(last.strip_prefix("0X"))
            .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    name.split('.').all(is_label) && !is_number
}

impl FromStr for Backend {
    type Err = InvalidBackend;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).map_err(|reason| InvalidBackend { given: redacted(text), reason })
    }
}

impl TryFrom<&str> for Backend {
    type Error = InvalidBackend;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for Backend {
    type Error = InvalidBackend;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<&String> for Backend {
    type Error = InvalidBackend;

    fn try_from(text: &String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<Uri> for Backend {
    type Error = InvalidBackend;

    fn try_from(uri: Uri) -> Result<Self, Self::Error> {
        uri.to_string().parse()
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.socket {
            Some(path) => write!(f, "unix:{}", path.display()),
            None => write!(f, "{}://{}", self.scheme, self.authority),
        }
    }
}

/// The error returned when a [`Backend`] isn't an origin, or needs a feature that isn't enabled.
///
/// Its text contains the value and what to write instead. Userinfo in the value is redacted. `Debug` shows the same
/// text, because that is how an error returned from `main` is printed.
///
/// ```
/// use tower_reverse_proxy::Backend;
///
/// let error = "http://user:s3cret@backend".parse::<Backend>().unwrap_err().to_string();
/// assert!(error.contains("BasicAuthLayer") && !error.contains("s3cret"));
/// ```
#[derive(Clone)]
pub struct InvalidBackend {
    given: String,
    reason: Reason,
}

#[derive(Clone, Debug)]
enum Reason {
    Scheme,
    Authority,
    Userinfo,
    NotAnOrigin(String),
    Socket,
    UnixHere,
    Tls,
    Label,
    NoSubdomains,
    LongName,
}

impl InvalidBackend {
    /// The error for an `https` backend without TLS. There is no fallback to plaintext.
    pub(crate) fn no_tls(backend: &Backend) -> Self {
        Self { given: backend.to_string(), reason: Reason::Tls }
    }
}

impl fmt::Display for InvalidBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid backend {:?}: ", self.given)?;
        match &self.reason {
            Reason::Scheme => f.write_str(
                "it must begin with `http://`, `https://` or `unix:/`; write for example \"http://127.0.0.1:8000\"",
            ),
            Reason::Authority => f.write_str(
                "invalid host or port; write for example \"http://127.0.0.1:8000\" or \"http://[::1]:8000\"",
            ),
            Reason::Userinfo => {
                f.write_str("it must not contain credentials; write the origin only and add a `BasicAuthLayer`")
            }
            Reason::NotAnOrigin(origin) => write!(
                f,
                "a backend is an origin, without path, query or fragment; write {origin:?} (the path of a request is \
                 forwarded unchanged; if the layouts differ, use `strip_prefix` or `replace_prefix`)"
            ),
            Reason::Socket => {
                f.write_str("a Unix socket is the absolute path of a file; write for example \"unix:/run/app.sock\"")
            }
            Reason::UnixHere => f.write_str("this platform has no Unix sockets; write an `http://` origin"),
            Reason::Tls => f.write_str(
                "TLS isn't enabled; enable the feature `tls-ring` or `tls-aws-lc-rs`, write an `http://` or `unix:` \
                 backend, or use `with_upstream` with a client of your own",
            ),
            Reason::Label => f.write_str(
                "a subdomain is one label of 1 to 63 letters, digits and hyphens, and neither begins nor ends with a \
                 hyphen; write for example \"alice\"",
            ),
            Reason::NoSubdomains => f.write_str(
                "it has no subdomains; write an origin with a DNS name, such as \"https://tenants.example\"",
            ),
            Reason::LongName => {
                f.write_str("a subdomain of it has a name of more than 253 octets; write a shorter one")
            }
        }
    }
}

impl fmt::Debug for InvalidBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for InvalidBackend {}

impl From<Infallible> for InvalidBackend {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// Redacts the userinfo of a URL, because error messages are logged.
fn redacted(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((before, after)) => {
            let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
            format!("{scheme}://…@{after}")
        }
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn a_subdomain_is_one_label_in_front_of_the_name() {
        let longest = "a".repeat(63);
        for (base, label, made) in [
            ("http://tenants.example", "alice", "http://alice.tenants.example"),
            ("https://Tenants.Example:8443", "A-1", "https://a-1.Tenants.Example:8443"),
            ("http://localhost:8000", "xn--jrg-sna", "http://xn--jrg-sna.localhost:8000"),
            ("http://tenants.example.", "1", "http://1.tenants.example."),
            ("http://a_b.example", &longest, &format!("http://{longest}.a_b.example")),
        ] {
            let base: Backend = base.parse().unwrap();
            assert_eq!(base.subdomain(label).unwrap().to_string(), made);
        }
    }

    #[test]
    fn text_that_is_no_label_makes_no_subdomain() {
        let base: Backend = "http://tenants.example:8000".parse().unwrap();
        let long = "a".repeat(64);
        for label in [
            "",
            ".",
            "a.b",
            "a.",
            ".a",
            "/",
            "a/b",
            "a\\b",
            "@",
            "a@b",
            "a:80",
            ":",
            "%61",
            "a%2eb",
            "a?b",
            "a#b",
            "a b",
            " a",
            "a\t",
            "a\r\n",
            "a\0",
            "-a",
            "a-",
            "-",
            "_",
            "a_b",
            "jörg",
            "a。b",
            "a․b",
            "[::1]",
            "127.0.0.1",
            "*",
            &long,
        ] {
            let error = base.subdomain(label).unwrap_err().to_string();
            assert!(error.contains("one label"), "{label:?}: {error}");
        }
        let error = base.subdomain("user:s3cret@evil").unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
        assert!(base.subdomain(&"x".repeat(1 << 20)).unwrap_err().to_string().len() < 300);
    }

    #[test]
    fn only_a_dns_name_has_subdomains() {
        for base in [
            "http://127.0.0.1",
            "http://[::1]:8000",
            "unix:/run/app.sock",
            "http://0.1",
            "http://1",
            "http://0.0.0x1",
            "http://0x",
            "http://a..b",
            "http://.example",
            "http://1.",
            "http://*.example",
        ] {
            let base: Backend = base.parse().unwrap();
            let error = base.subdomain("127").unwrap_err().to_string();
            assert!(error.contains("no subdomains"), "{base}: {error}");
        }
        // Three labels of 63 and one of 61 letters are 253 octets with their dots.
        let name = |last: usize| [63, 63, last].map(|length| "a".repeat(length)).join(".");
        let base = |last| format!("http://{}", name(last)).parse::<Backend>().unwrap();
        assert!(base(61).subdomain(&"b".repeat(63)).is_ok());
        let error = base(62).subdomain(&"b".repeat(63)).unwrap_err().to_string();
        assert!(error.contains("253"), "{error}");
    }

    proptest! {
        /// `PROPTEST_CASES=62500` tests a million labels.
        #[test]
        fn no_label_changes_scheme_port_or_domain(labels in vec(label(), 16)) {
            for base in ["https://tenants.example:8443", "http://tenants.example"] {
                let base: Backend = base.parse().unwrap();
                for label in &labels {
                    let Ok(made) = base.subdomain(label) else { continue };
                    prop_assert_eq!(made.scheme(), base.scheme());
                    prop_assert_eq!(made.authority().port_u16(), base.authority().port_u16());
                    prop_assert_eq!(made.socket(), None);
                    let host = made.authority().host();
                    let first = host.strip_suffix(".tenants.example");
                    prop_assert_eq!(first, Some(&*label.to_ascii_lowercase()));
                    prop_assert!(!first.unwrap().contains(|c: char| !c.is_ascii_alphanumeric() && c != '-'), "{}", host);
                    // Another parser reads the same parts.
                    let url = made.to_string();
                    let uri: Uri = url.parse().unwrap();
                    prop_assert_eq!(uri.host(), Some(host));
                    prop_assert_eq!(uri.path(), "/");
                    prop_assert_eq!(&url.parse::<Backend>().unwrap(), &made);
                }
            }
        }
    }

    /// Labels, and texts that have in them what separates the parts of a URL.
    fn label() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-zA-Z0-9-]{1,64}",
            "[a-z]{0,3}[-./@:%?#\\\\\\[\\] _~a0]{1,4}[a-z0-9.:]{0,12}",
            "[a-z]{1,3}(\\.evil\\.example|:80|@evil\\.example|/\\.\\.|%2e|#|\\?)[a-z0-9]{0,3}",
            ".{0,70}",
        ]
    }

    #[test]
    fn valid_origins_parse() {
        for (text, shown) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
            ("HTTP://Backend.Example", "http://Backend.Example"),
            ("https://backend.example:8443", "https://backend.example:8443"),
            ("http://[::1]:8000", "http://[::1]:8000"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("unix:///run/app.sock", "unix:/run/app.sock"),
        ] {
            assert_eq!(text.parse::<Backend>().unwrap().to_string(), shown, "{text}");
        }
        let uri = Uri::from_static("http://127.0.0.1:8000/");
        assert_eq!(Backend::try_from(uri).unwrap().to_string(), "http://127.0.0.1:8000");
    }

    #[test]
    fn an_invalid_origin_names_what_to_write() {
        for (text, hint) in [
            ("127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("", "http://"),
            ("ftp://backend", "http://"),
            ("http://backend/mydir", "write \"http://backend\""),
            ("http://backend/?x", "write \"http://backend\""),
            ("http://backend#x", "write \"http://backend\""),
            ("http://", "host or port"),
            ("http://backend:port", "host or port"),
            ("http://backend:99999", "host or port"),
            ("http://a b", "host or port"),
            ("http://[::1", "host or port"),
            ("unix:app.sock", "absolute path"),
            ("unix:/", "absolute path"),
        ] {
            let error = text.parse::<Backend>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
            assert!(error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn an_error_does_not_show_the_password() {
        let error = "http://user:s3cret@backend".parse::<Backend>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        let error = "http://user:s3@cret@backend/x".parse::<Backend>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("cret"), "{error:?}");
    }
}
