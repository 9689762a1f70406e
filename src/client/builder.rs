//! The builder of a client: every option, with its default.

use std::{
    convert::Infallible,
    error, fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum_core::BoxError;
use http::{Uri, uri::Scheme};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::Connection;
use tower_service::Service;

use super::{
    Client, ClientOptions,
    connect::{AddressFilter, InvalidTls, Tls, boxed},
    http1::codec::NameStyle,
};
use crate::{
    backend::{Backend, InvalidBackend},
    timeout::bounded,
};

/// Builds a [`Client`]. [`Client::builder`] returns it.
///
/// [`ReverseProxyLayer::new`](crate::ReverseProxyLayer::new), [`ReverseProxy::new`](crate::ReverseProxy::new) and
/// [`Upstream::new`](crate::Upstream::new) take it as it is, and panic with the error of [`build`](Self::build).
///
/// ```
/// use std::time::Duration;
/// use tower_reverse_proxy::{Client, ReverseProxyLayer};
///
/// let legacy = Client::builder("http://127.0.0.1:8000")
///     .connect_timeout(Duration::from_secs(2))
///     .max_connections(64);
/// let proxy = ReverseProxyLayer::new(legacy).prefix("/legacy");
/// # let _ = proxy;
/// ```
///
/// A timeout is a [`Duration`], or `None`, which disables it.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it's built"]
pub struct ClientBuilder {
    /// The backend, or the first error: of the backend, or of an option.
    backend: Result<Backend, InvalidClient>,
    options: ClientOptions,
    roots: PlatformRoots,
}

/// The TLS configuration with the platform's root certificates, read once for several clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlatformRoots(Arc<OnceLock<Tls>>);

impl PlatformRoots {
    fn get(&self) -> Result<Tls, InvalidTls> {
        let read = self.0.get().cloned().map_or_else(Tls::new, Ok);
        read.map(|tls| Tls::clone(self.0.get_or_init(|| tls)))
    }
}

impl Client {
    /// Begins to build a client of a backend: an origin as `&str`, `String`, [`Uri`] or [`Backend`].
    ///
    /// An invalid one is an error of [`build`](ClientBuilder::build).
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::InvalidClient> {
    /// let client = Client::builder("http://127.0.0.1:8000").pool_max_idle(16).build()?;
    /// assert_eq!(client.backend().to_string(), "http://127.0.0.1:8000");
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(backend: impl TryInto<Backend, Error: Into<InvalidBackend>>) -> ClientBuilder {
        let backend = backend.try_into().map_err(|error| InvalidClient::from(error.into()));
        ClientBuilder { backend, options: ClientOptions::default(), roots: PlatformRoots::default() }
    }
}

/// # Connections
impl ClientBuilder {
    /// Sets how long it may take to connect: name resolution, TCP and handshakes together. Default: 5 seconds. With
    /// `None`, the operating system's limits apply.
    ///
    /// On expiry, the client gets 504 ([`ErrorKind::ConnectTimeout`](crate::ErrorKind::ConnectTimeout)).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Client;
    ///
    /// let client = Client::builder("http://backend.internal:8000").connect_timeout(Duration::from_secs(1));
    /// # let _ = client;
    /// ```
    #[doc(alias = "proxy_connect_timeout")]
    pub fn connect_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.options.connect.timeout = bounded(timeout);
        self
    }

    /// Sets how long an idle connection is kept; over HTTP/2, one without a stream. Default: 30 seconds. With `None`,
    /// it's kept until the backend closes it.
    ///
    /// A connection that was opened for a request that was served otherwise is closed after one second instead.
    ///
    /// Requests that can't be replayed, such as a `POST`, avoid connections that the backend may be about to close:
    /// those idle for more than a second, or for more than half the longest idle time observed with this backend. If
    /// such a connection closed under a request, it would be unknown whether the request was processed. At the limit of
    /// [`max_connections`](Self::max_connections), one second is assumed to be safe.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Client;
    ///
    /// // A backend that closes idle connections after 5 seconds.
    /// let client = Client::builder("http://127.0.0.1:3000").pool_idle_timeout(Duration::from_secs(4));
    /// # let _ = client;
    /// ```
    #[doc(alias = "keepalive_timeout")]
    #[doc(alias = "keepalive")]
    pub fn pool_idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.options.dispatch.pool.idle_timeout = bounded(timeout);
        self
    }

    /// Sets the maximum number of idle connections. Connections idle for less than a second don't count. With `0`, a
    /// connection is closed after its exchange, unless a request waits for one. Default: 64.
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// // A development server that handles one connection at a time.
    /// let client = Client::builder("http://127.0.0.1:8000").pool_max_idle(0);
    /// # let _ = client;
    /// ```
    pub fn pool_max_idle(mut self, connections: usize) -> Self {
        self.options.dispatch.pool.max_idle = connections;
        self
    }

    /// Sets the maximum number of connections to the backend, those of tunnels and HTTP/2 included. Default: `None`, no
    /// limit.
    ///
    /// A request that finds no free connection waits for one, in order of arrival, for no longer than the
    /// [`queue_timeout`](Self::queue_timeout). Later requests that can use a returned connection, or a free stream of
    /// an HTTP/2 connection, overtake an earlier one that can't at most eight times. 0 is an error.
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// // A backend with eight worker processes.
    /// let client = Client::builder("http://127.0.0.1:8000").max_connections(8);
    /// # let _ = client;
    /// ```
    #[doc(alias = "max_conns")]
    pub fn max_connections(self, connections: impl Into<Option<usize>>) -> Self {
        let connections = connections.into();
        let mut this = self
            .check(connections != Some(0), || "invalid maximum of 0 connections: write `None` for no limit".to_owned());
        this.options.dispatch.max_connections = connections;
        this
    }

    /// Sets how long a request may wait for a connection at the limit of [`max_connections`](Self::max_connections).
    /// Default: 5 seconds. `None` disables it.
    ///
    /// On expiry, the client gets 503 ([`ErrorKind::Overloaded`](crate::ErrorKind::Overloaded)). A request for which a
    /// connection is being opened by then waits on, within the [`connect_timeout`](Self::connect_timeout).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Client;
    ///
    /// let client =
    ///     Client::builder("http://127.0.0.1:8000").max_connections(8).queue_timeout(Duration::from_millis(500));
    /// # let _ = client;
    /// ```
    pub fn queue_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.options.dispatch.queue_timeout = bounded(timeout);
        self
    }

    /// Sets the address that connections are made to. Default: `None`, the addresses of the backend's host, which is
    /// looked up for each connection.
    ///
    /// Everything else keeps the backend's name: the certificate and its server name (SNI) for an `https` backend,
    /// `Host`, and the references to the backend that are mapped in responses. So one of several servers behind a name
    /// can be chosen.
    ///
    /// For a Unix socket, it's an error. With a [`connector`](Self::connector), it's an error, too, because the
    /// connector makes the whole connection. Port 0 is an error.
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // One of the servers of `app.example`, whose certificate is for that name.
    /// let client = Client::builder("http://app.example").address("10.0.0.7:8000".parse::<std::net::SocketAddr>()?);
    /// # client.build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "resolve")]
    #[doc(alias = "connect-to")]
    pub fn address(mut self, address: impl Into<Option<SocketAddr>>) -> Self {
        self.options.connect.address = address.into();
        self
    }

    /// Sets how connections to the backend are made: through a proxy, from a certain address, over a network of the
    /// application's own, in memory. Default: TCP or a Unix socket, with TLS for an `https` origin.
    ///
    /// It's a connector as hyper-util defines it: a service from the backend's origin to a connection, which knows
    /// whether HTTP/2 was negotiated on it. It makes the whole connection, TLS included for an `https` backend. The
    /// client calls it once per connection, within the [`connect_timeout`](Self::connect_timeout).
    ///
    /// ```
    /// use hyper_util::client::legacy::connect::HttpConnector;
    /// use tower_reverse_proxy::Client;
    ///
    /// // Connects from one of several addresses of this machine.
    /// let mut connector = HttpConnector::new();
    /// connector.set_local_address(Some([127, 0, 0, 1].into()));
    /// let client = Client::builder("http://127.0.0.1:8000").connector(connector);
    /// # let _ = client;
    /// ```
    #[doc(alias = "proxy_bind")]
    pub fn connector<T>(mut self, connector: T) -> Self
    where
        T: Service<Uri, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static,
        T::Response: Connection + Read + Write + Send + Unpin + 'static,
    {
        self.options.connect.connector = Some(boxed(connector));
        self
    }

    /// Sets which addresses may be connected to. Default: all.
    ///
    /// The function is called when a connection is made, after the look-up of the backend's name, for each address that
    /// it has. Addresses for which it returns `false` aren't connected to. If none is left, the request fails with 502
    /// ([`ErrorKind::Connect`](crate::ErrorKind::Connect)), and the cause names an address. It's called for an address
    /// in the backend's URL, too. An IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) is passed as the IPv4 address.
    ///
    /// With a Unix socket or a [`connector`](Self::connector) it's an error, because no address of these is known.
    ///
    /// ```
    /// use tower_reverse_proxy::{Client, client::is_public};
    ///
    /// // A server of a customer, which mustn't be one of the network's own.
    /// let client = Client::builder("https://customer.example").allow_address(is_public);
    /// # let _ = client;
    /// ```
    ///
    /// # Security
    ///
    /// A check of the name before it's used doesn't have the same effect, because its owner can change the address in
    /// between (DNS rebinding). Here, the connection goes to the address that was checked.
    #[doc(alias = "SSRF")]
    #[doc(alias = "rebinding")]
    pub fn allow_address(mut self, allows: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        self.options.connect.filter = Some(AddressFilter::new(allows));
        self
    }

    /// Sets how TLS is spoken to an `https` backend. Default: [`Tls::new`], with the platform's root certificates.
    ///
    /// For a backend that isn't `https`, it's an error, because the connection would be in plaintext all the same. With
    /// a [`connector`](Self::connector), it's an error, too, because the connector makes the whole connection.
    ///
    /// ```
    /// use tower_reverse_proxy::{Client, Tls};
    ///
    /// # fn run(ca: &[u8]) -> Result<(), tower_reverse_proxy::InvalidClient> {
    /// // A CA of one's own, as PEM.
    /// let client = Client::builder("https://10.0.0.7").tls(Tls::with_ca(ca)?).build()?;
    /// # let _ = client;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    #[doc(alias = "proxy_ssl_trusted_certificate")]
    #[doc(alias = "https")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.options.connect.tls = Some(tls);
        self
    }
}

/// # HTTP/2
#[cfg(feature = "http2")]
#[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
impl ClientBuilder {
    /// Sets whether HTTP/2 is spoken to the backend. Default: `false`, HTTP/1.1.
    ///
    /// An `http` or Unix-socket backend has to speak it: one that doesn't fails every request with 502 and a cause that
    /// names the missing HTTP/2. An `https` backend is offered HTTP/2 and HTTP/1.1 (ALPN), and the client speaks what
    /// it chooses.
    ///
    /// WebSockets go over connections of their own: to `https` backends in HTTP/1.1; to others by extended CONNECT (RFC
    /// 8441) if the backend's SETTINGS allow it, otherwise in HTTP/1.1.
    ///
    /// ```
    /// use tower_reverse_proxy::{Client, ReverseProxyLayer};
    ///
    /// // A gRPC service.
    /// let proxy = ReverseProxyLayer::new(Client::builder("http://127.0.0.1:50051").http2(true));
    /// # let _ = proxy;
    /// ```
    ///
    /// # Security
    ///
    /// NTLM and Negotiate credentials authenticate a connection (RFC 4559, section 6). They never go over HTTP/2, whose
    /// connections are shared between clients: such a request is sent in HTTP/1.1 over a connection of its own, which
    /// is closed after the response. A request with an [`Owner::Principal`](crate::Owner::Principal) is sent in HTTP/1.1
    /// over a connection of that owner. Where a [`connector`](Self::connector) has negotiated HTTP/2, the request fails
    /// with 502.
    #[doc(alias = "grpc")]
    #[doc(alias = "h2c")]
    #[doc(alias = "grpc_pass")]
    pub fn http2(mut self, http2: bool) -> Self {
        self.options.connect.offers_http2 = http2;
        self
    }

    /// Sets how often an HTTP/2 connection is pinged while streams are open and nothing is read. Default: every 20
    /// seconds. `None` disables pings. A connection whose ping isn't answered within 20 seconds is closed, and its
    /// streams fail.
    ///
    /// Pings find backends that are frozen, and connections that a firewall has dropped, which TCP doesn't show. In
    /// addition, a connection on which a request has waited for more than a second, with nothing read until it was
    /// given up, gets no further requests before something is read.
    ///
    /// A ping interval of 0 is an error.
    ///
    /// What to set when: [windows and limits](crate::guide::pooling_and_retries#windows-and-limits).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Client;
    ///
    /// // A firewall on the way drops connections that are silent for a minute.
    /// let client = Client::builder("http://127.0.0.1:8000")
    ///     .http2(true)
    ///     .http2_keep_alive(Duration::from_secs(30))
    ///     .http2_keep_alive_while_idle(true);
    /// # let _ = client;
    /// ```
    pub fn http2_keep_alive(self, interval: impl Into<Option<Duration>>) -> Self {
        let interval = bounded(interval);
        let mut this = self.check(interval != Some(Duration::ZERO), || {
            "invalid HTTP/2 ping interval of 0: write `None` for no pings".to_owned()
        });
        this.options.http2.keep_alive.interval = interval;
        this
    }

    /// Sets whether [pings](Self::http2_keep_alive) are also sent while no stream is open. Default: `false`.
    ///
    /// What to set when: [windows and limits](crate::guide::pooling_and_retries#windows-and-limits).
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// let client = Client::builder("http://127.0.0.1:8000").http2(true).http2_keep_alive_while_idle(true);
    /// # let _ = client;
    /// ```
    pub fn http2_keep_alive_while_idle(mut self, ping: bool) -> Self {
        self.options.http2.keep_alive.while_idle = ping;
        self
    }

    /// Sets the window of an HTTP/2 connection, in bytes: how much a backend may send before it's read (RFC 9113,
    /// section 5.2). Default: 16 MiB.
    ///
    /// A connection has no more streams at a time than [stream windows](Self::http2_stream_window) fit into it, 64 by
    /// default, and no more than the backend allows. So clients that don't read fill the windows of their own streams,
    /// and never the connection's. Further requests go over further connections.
    ///
    /// Less than 65,535, the protocol's initial window, or more than 2,147,483,647 is an error.
    ///
    /// What to set when: [windows and limits](crate::guide::pooling_and_retries#windows-and-limits).
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// let client = Client::builder("http://127.0.0.1:8000")
    ///     .http2(true)
    ///     .http2_connection_window(64 << 20)
    ///     .http2_stream_window(1 << 20);
    /// # let _ = client;
    /// ```
    pub fn http2_connection_window(self, bytes: u32) -> Self {
        let mut this = self.check((65_535..1 << 31).contains(&bytes), || {
            format!("invalid HTTP/2 connection window of {bytes} bytes: write 65,535 to 2,147,483,647")
        });
        this.options.http2.windows.connection = bytes;
        this
    }

    /// Sets the window of an HTTP/2 stream, in bytes: how much of one response a backend may send before it's read.
    /// Default: 256 KiB.
    ///
    /// It limits the speed of a download over a long distance to one window per round trip. It's also the memory that a
    /// client costs that doesn't read. Where a backend sends DATA frames of less than 256 bytes, responses on that
    /// connection are read ahead, because h2 charges such frames to the whole connection: a response then costs up to
    /// 16 windows. A response in small frames that isn't read beyond two windows is cut and its stream reset, so that
    /// the other streams continue; a download in larger frames waits for its client.
    ///
    /// 0, or more than 2,147,483,647, is an error.
    ///
    /// What to set when: [windows and limits](crate::guide::pooling_and_retries#windows-and-limits).
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// // Large downloads from another continent.
    /// let client = Client::builder("https://far.example").http2(true).http2_stream_window(4 << 20);
    /// # let _ = client;
    /// ```
    pub fn http2_stream_window(self, bytes: u32) -> Self {
        let mut this = self.check((1..1 << 31).contains(&bytes), || {
            format!("invalid HTTP/2 stream window of {bytes} bytes: write 1 to 2,147,483,647")
        });
        this.options.http2.windows.stream = bytes;
        this
    }

    /// Sets the maximum size of a request's head over HTTP/2, in bytes as RFC 9113, section 6.5.2, counts them: names
    /// and values, and 32 for each field. Default: `None`, what the backend's SETTINGS allow, or 64 KiB if they set no
    /// limit.
    ///
    /// A larger head gets 431, and nothing of it is sent, because servers end the whole connection for it. The
    /// backend's own limit holds in any case. If it has set none, as nginx, a head that not every server takes (more
    /// than 32,000 bytes, or 8,000 in one field) goes over a connection of its own, until one like it has been
    /// answered.
    ///
    /// 0 is an error.
    ///
    /// What to set when: [windows and limits](crate::guide::pooling_and_retries#windows-and-limits).
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// // In front of an nginx with `large_client_header_buffers 4 8k`, its default.
    /// let client = Client::builder("http://127.0.0.1:8000").http2(true).http2_max_request_head(32_000);
    /// # let _ = client;
    /// ```
    pub fn http2_max_request_head(self, bytes: impl Into<Option<usize>>) -> Self {
        let bytes = bytes.into();
        let mut this = self.check(bytes != Some(0), || {
            "invalid limit of 0 bytes for request heads: write `None` for the backend's own limit".to_owned()
        });
        this.options.http2.max_request_head = bytes;
        this
    }
}

/// # Heads
impl ClientBuilder {
    /// Sets whether the names of a request's fields are sent in title case, such as `Content-Type`, in HTTP/1.1.
    /// Default: `false`, names are lower case.
    ///
    /// It's for old backends that compare names with their case, against RFC 9110, section 5.1. In HTTP/2, names are
    /// lower case (RFC 9113, section 8.2.1).
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// // A device that looks for `Content-Length`, and for nothing else.
    /// let client = Client::builder("http://127.0.0.1:8000").title_case_headers(true);
    /// # let _ = client;
    /// ```
    #[doc(alias = "preserve_header_case")]
    pub fn title_case_headers(mut self, title_case: bool) -> Self {
        self.options.http1.style = if title_case { NameStyle::Title } else { NameStyle::Lower };
        self
    }

    /// Sets the maximum number of field lines in the backend's response head, in HTTP/1.1 and HTTP/2. Default: 256.
    ///
    /// A head with more becomes 502 ([`ErrorKind::ResponseHeadTooLarge`](crate::ErrorKind::ResponseHeadTooLarge)).
    ///
    /// 0, or more than 24,000, is an error, because a header map holds 24,576 and the proxy adds some.
    ///
    /// What to set when: [windows and limits](crate::guide::pooling_and_retries#windows-and-limits).
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// // A backend that announces each of a page's many resources in a `Link` field of its own.
    /// let client = Client::builder("http://127.0.0.1:8000").max_response_fields(1000);
    /// # let _ = client;
    /// ```
    pub fn max_response_fields(self, fields: usize) -> Self {
        let mut this = self.check((1..=24_000).contains(&fields), || {
            format!("invalid maximum of {fields} response fields: write 1 to 24000")
        });
        this.options.http1.limits.fields = fields;
        this
    }

    /// Sets the maximum size of the backend's response head, in bytes, in HTTP/1.1 and HTTP/2. Default: 256 KiB.
    ///
    /// In HTTP/1.1, the status line and all field lines count; in HTTP/2, the uncompressed field section, with 32 bytes
    /// more for each field (RFC 9113, section 6.5.2). Trailers have the same limit. A larger head becomes 502
    /// ([`ErrorKind::ResponseHeadTooLarge`](crate::ErrorKind::ResponseHeadTooLarge)). A head is held in memory until
    /// it's complete.
    ///
    /// 0 is an error.
    ///
    /// What to set when: [windows and limits](crate::guide::pooling_and_retries#windows-and-limits).
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// let client = Client::builder("http://127.0.0.1:8000").max_response_head(1024 * 1024);
    /// # let _ = client;
    /// ```
    #[doc(alias = "proxy_buffer_size")]
    pub fn max_response_head(self, bytes: usize) -> Self {
        let mut this = self.check(bytes > 0, || {
            "invalid maximum of 0 bytes for a response head: write a number such as 256 * 1024".to_owned()
        });
        this.options.http1.limits.bytes = bytes;
        this
    }
}

/// # Building
impl ClientBuilder {
    /// Builds the client. It makes no connection.
    ///
    /// For an `https` backend without a [`Tls`](crate::Tls) of its own, it reads the platform's root certificates.
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// let error = Client::builder("http://127.0.0.1:8000/mydir").build().unwrap_err();
    /// assert!(error.to_string().contains("write \"http://127.0.0.1:8000\""));
    /// ```
    ///
    /// # Errors
    ///
    /// The first error: a backend that isn't an origin, or that needs a disabled feature; an option out of its range;
    /// an address where it has no effect; TLS without usable root certificates, or for a backend that isn't `https`. The text contains what to write
    /// instead.
    pub fn build(self) -> Result<Client, InvalidClient> {
        let Self { backend, mut options, roots } = self;
        let backend = backend?;
        let connect = &mut options.connect;
        if let Some(address) = connect.address {
            check_address(&backend, address, connect.connector.is_some())?;
        }
        if connect.filter.is_some() {
            let why = match (backend.socket(), &connect.connector) {
                (Some(_), _) => Some("a Unix socket, which has none"),
                (None, Some(_)) => Some("a connector, which makes the whole connection"),
                (None, None) => None,
            };
            if let Some(why) = why {
                let error = format!("invalid filter of addresses for {why}: leave out `allow_address`");
                return Err(InvalidClient(Reason::Option(error)));
            }
        }
        if *backend.scheme() == Scheme::HTTPS && connect.connector.is_none() && !cfg!(feature = "tls") {
            return Err(InvalidBackend::no_tls(&backend).into());
        }
        if *backend.scheme() != Scheme::HTTPS {
            if connect.tls.is_some() {
                let error =
                    format!("invalid TLS for the backend \"{backend}\": write an `https://` origin, or remove `tls`");
                return Err(InvalidClient(Reason::Option(error)));
            }
        } else if connect.connector.is_none() {
            if connect.tls.is_none() {
                connect.tls = Some(roots.get()?);
            }
        } else if connect.tls.is_some() {
            let error =
                "invalid TLS for a connector, which makes the whole connection: leave out `tls`, or the connector";
            return Err(InvalidClient(Reason::Option(error.to_owned())));
        }
        Client::new(backend, &options)
    }

    /// Shares the platform's root certificates with other clients, because they are large and come from files.
    pub(crate) fn platform_roots(mut self, roots: PlatformRoots) -> Self {
        self.roots = roots;
        self
    }

    /// Keeps the first error.
    fn check(mut self, is_valid: bool, message: impl FnOnce() -> String) -> Self {
        if self.backend.is_ok() && !is_valid {
            self.backend = Err(InvalidClient(Reason::Option(message())));
        }
        self
    }
}

/// Refuses an address that would have no effect, or to which nothing can connect.
fn check_address(backend: &Backend, address: SocketAddr, has_connector: bool) -> Result<(), InvalidClient> {
    let hint = if backend.socket().is_some() {
        "write an `http://` origin, because a Unix socket has no address"
    } else if has_connector {
        "leave out `address`, or the connector, which makes the whole connection"
    } else if address.port() == 0 {
        "write the backend's port in place of 0"
    } else {
        return Ok(());
    };
    Err(InvalidClient(Reason::Option(format!("invalid address {address} for the backend \"{backend}\": {hint}"))))
}

/// The error returned when a client can't be built. Its text contains the cause and what to write instead, and no
/// secret.
///
/// `Debug` shows the same text, because that's what an error shows that `main` returns.
///
/// ```
/// use tower_reverse_proxy::Client;
///
/// let error = Client::builder("http://127.0.0.1:8000").max_connections(0).build().unwrap_err();
/// assert_eq!(error.to_string(), "invalid maximum of 0 connections: write `None` for no limit");
/// ```
#[derive(Clone)]
pub struct InvalidClient(Reason);

#[derive(Clone)]
enum Reason {
    Backend(InvalidBackend),
    Option(String),
    Tls(InvalidTls),
}

impl fmt::Display for InvalidClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reason::Backend(error) => error.fmt(f),
            Reason::Option(message) => f.write_str(message),
            Reason::Tls(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for InvalidClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for InvalidClient {}

impl From<InvalidBackend> for InvalidClient {
    fn from(error: InvalidBackend) -> Self {
        Self(Reason::Backend(error))
    }
}

#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
impl From<InvalidTls> for InvalidClient {
    fn from(error: InvalidTls) -> Self {
        Self(Reason::Tls(error))
    }
}

impl From<Infallible> for InvalidClient {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl TryFrom<ClientBuilder> for Client {
    type Error = InvalidClient;

    fn try_from(builder: ClientBuilder) -> Result<Self, Self::Error> {
        builder.build()
    }
}

/// Clients with the default options.
macro_rules! from_backend {
    ($($backend:ty),*) => {$(
        impl TryFrom<$backend> for Client {
            type Error = InvalidClient;

            fn try_from(backend: $backend) -> Result<Self, Self::Error> {
                Self::builder(backend).build()
            }
        }
    )*};
}

from_backend!(&str, String, &String, Uri, Backend);

#[cfg(test)]
mod tests {
    use hyper_util::client::legacy::connect::HttpConnector;

    use super::*;

    #[test]
    fn the_first_error_comes_from_build() {
        let valid = || Client::builder("http://127.0.0.1:8000");
        let here = SocketAddr::from(([127, 0, 0, 1], 8000));
        for (builder, hint) in [
            (Client::builder("http://127.0.0.1:8000/x").max_connections(0), "write \"http://127.0.0.1:8000\""),
            (valid().max_connections(0).max_response_fields(0), "write `None`"),
            (valid().max_response_fields(0), "write 1 to 24000"),
            (valid().max_response_head(0), "write a number"),
            (valid().allow_address(|_| true).connector(HttpConnector::new()), "leave out `allow_address`"),
            #[cfg(unix)]
            (Client::builder("unix:/run/app.sock").allow_address(|_| true), "leave out `allow_address`"),
            #[cfg(feature = "http2")]
            (valid().http2_keep_alive(Duration::ZERO), "write `None`"),
            #[cfg(feature = "http2")]
            (valid().http2_connection_window(1), "write 65,535"),
            #[cfg(feature = "http2")]
            (valid().http2_stream_window(0), "write 1 to"),
            #[cfg(feature = "http2")]
            (valid().http2_max_request_head(0), "write `None`"),
            (valid().address(SocketAddr::from(([127, 0, 0, 1], 0))), "write the backend's port"),
            (valid().address(here).connector(HttpConnector::new()), "or the connector"),
            #[cfg(unix)]
            (Client::builder("unix:/run/app.sock").address(here), "write an `http://` origin"),
            #[cfg(not(feature = "tls"))]
            (Client::builder("https://backend.example"), "feature `tls-ring`"),
        ] {
            let error = builder.build().unwrap_err();
            assert!(error.to_string().contains(hint), "{error}");
            assert_eq!(format!("{error:?}"), error.to_string());
        }
        assert!(valid().max_connections(None).address(here).build().is_ok());
    }

    #[test]
    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
    fn tls_is_for_https() {
        let made = rcgen::generate_simple_self_signed(["backend.example".to_owned()]).unwrap();
        let tls = Tls::with_ca(made.cert.pem()).unwrap();
        for (backend, hint) in [("http://127.0.0.1", "https://"), ("https://a..b", "a..b")] {
            let error = Client::builder(backend).tls(tls.clone()).build().unwrap_err();
            assert!(error.to_string().contains(hint), "{error}");
        }
        let https = || Client::builder("https://backend.example").tls(tls.clone());
        assert!(https().build().is_ok());
        let error = https().connector(HttpConnector::new()).build().unwrap_err();
        assert!(error.to_string().contains("leave out `tls`"), "{error}");
    }
}
