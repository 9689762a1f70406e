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
        Ok(Self { scheme, authority, socket: None })
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
        let socket = Some(Arc::from(Path::new(path)));
        Ok(Self { scheme: Scheme::HTTP, authority: Authority::from_static("localhost"), socket })
    }
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
    use super::*;

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
