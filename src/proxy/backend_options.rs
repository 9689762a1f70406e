//! The options of the backend and of the client that speaks to it, each with its default.

use std::{sync::Arc, time::Duration};

use axum_core::BoxError;
use http::Uri;
#[cfg(feature = "tls")]
use http::uri::Scheme;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::Connection;
use tower_layer::Layer;
use tower_service::Service;

use super::{build::ToBackend, layer::ReverseProxyLayer, options::bounded};
#[cfg(feature = "tls")]
use crate::client::Tls;
use crate::{
    client::{Client, boxed},
    upstream::{HostPolicy, Upstream},
};

/// # The backend
///
/// The upstream layers are around the client: an option that is set after a layer was added applies that layer anew.
impl<C, L: Layer<Client, Service = C> + Clone> ReverseProxyLayer<Upstream<C>, ToBackend<L>> {
    /// Sets which `Host` the backend gets. Default: the client's for `http` and Unix-socket backends, the backend's
    /// authority for `https` backends.
    ///
    /// # Panics
    ///
    /// If a [fixed](HostPolicy::Fixed) one has credentials in it.
    #[track_caller]
    pub fn host(self, host: HostPolicy) -> Self {
        host.check();
        self.rebuild(|parts| parts.to.host = host)
    }

    /// Sets whether `Location`, `Content-Location` and `Refresh` with the backend's own origin become references to the
    /// front, and a cookie's `Domain` that names the backend is dropped. Default: `true`.
    ///
    /// The origin has to be exactly the backend's: its authority with its scheme, or the `Host` that it was sent with its
    /// scheme or, if that isn't the client's, the one that was [forwarded](Self::forwarded_proto). What it becomes is a path, so that no scheme is guessed and no client's `Host` gets into it.
    pub fn map_location(self, map: bool) -> Self {
        self.rebuild(|parts| parts.to.map_location = map)
    }

    /// Sets how long it may take to connect: name, TCP and handshakes together. Default: 5 seconds. `None`: as long as the
    /// operating system allows. Then: 504.
    pub fn connect_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = bounded(timeout.into());
        self.rebuild(|parts| parts.client.connect_timeout = timeout)
    }

    /// Sets how long an unused connection is kept, for HTTP/2 one without a stream. Default: 30 seconds. `None`: until the
    /// backend closes it.
    ///
    /// One that came too late for the request that it was made for is kept for a second, and so is one whose buffer a large
    /// body has left behind.
    ///
    /// What can't be sent twice, as a `POST`, goes over none that has been unused for a second, or for half as long as the backend
    /// was seen to keep one: it may just be closing that, and then nobody could tell whether the request was read. Where
    /// there are as many connections as there [may be](Self::max_connections), a second is assumed to be safe.
    pub fn pool_idle_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = bounded(timeout.into());
        self.rebuild(|parts| parts.client.pool_idle_timeout = timeout)
    }

    /// Sets how many connections are kept that have been unused for more than a second. Default: 64. With 0, none is kept at
    /// all.
    pub fn pool_max_idle(self, connections: usize) -> Self {
        self.rebuild(|parts| parts.client.pool_max_idle = connections)
    }

    /// Sets how many connections there may be to the backend, those of tunnels and HTTP/2 included. Default: `None`, as many as
    /// are needed.
    ///
    /// A request that finds none waits for one, first come, first served, no longer than the
    /// [`queue_timeout`](Self::queue_timeout).
    ///
    /// # Panics
    ///
    /// If it's 0.
    #[track_caller]
    pub fn max_connections(self, connections: impl Into<Option<usize>>) -> Self {
        let connections = connections.into();
        assert!(connections != Some(0), "invalid maximum of 0 connections: write `None` for as many as are needed");
        self.rebuild(|parts| parts.client.max_connections = connections)
    }

    /// Sets how long a request may wait for a connection while there are as many as there
    /// [may be](Self::max_connections). Default: 5 seconds. `None`: for ever. Then: 503.
    pub fn queue_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = bounded(timeout.into());
        self.rebuild(|parts| parts.client.queue_timeout = timeout)
    }

    /// Connects to the backend by another way than TCP, Unix sockets and the crate's own TLS: a proxy, a network of the
    /// application's own, memory. Default: what the backend's origin says.
    ///
    /// It's a connector of hyper-util's kind: a service from the backend's origin to a connection, that knows whether HTTP/2 was
    /// negotiated on it. It makes all of the connection: for an `https` backend, TLS too. It's called once per connection,
    /// within the [`connect_timeout`](Self::connect_timeout).
    ///
    /// ```
    /// use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // From one of several addresses of this machine.
    /// let mut connector = HttpConnector::new();
    /// connector.set_local_address(Some([127, 0, 0, 1].into()));
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").connector(connector);
    /// # let _ = proxy;
    /// ```
    pub fn connector<T>(self, connector: T) -> Self
    where
        T: Service<Uri, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static,
        T::Response: Connection + Read + Write + Send + Unpin + 'static,
    {
        self.rebuild(|parts| parts.client.connector = Some(boxed(connector)))
    }

    /// Speaks HTTP/2 to the backend. Default: `false`, HTTP/1.1.
    ///
    /// An `http` or Unix-socket backend is known to have it; one that doesn't fails every request with 502 and a cause that
    /// says so. An `https` backend is offered it, and HTTP/1.1 (ALPN), and is spoken to in what it chooses.
    ///
    /// WebSockets go over connections of their own: to `https` backends in HTTP/1.1; to others by extended CONNECT (RFC 8441) if
    /// the backend's SETTINGS have it, else in HTTP/1.1.
    ///
    /// # Security
    ///
    /// NTLM and Negotiate credentials authenticate a connection (RFC 4559, section 6). They never go over HTTP/2, whose
    /// connections clients share: such a request is sent in HTTP/1.1 over a connection of its own, which is closed after the
    /// answer. Where a [`connector`](Self::connector) has negotiated HTTP/2, the request fails with 502 instead.
    #[cfg(feature = "http2")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
    pub fn http2(self, http2: bool) -> Self {
        self.rebuild(|parts| parts.client.http2 = http2)
    }

    /// Sets how TLS is spoken to an `https` backend. Default: [`Tls::new`], with the platform's roots.
    ///
    /// # Panics
    ///
    /// If the backend isn't `https`: it would be spoken to in plaintext.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    #[track_caller]
    pub fn tls(self, tls: Tls) -> Self {
        let backend = &self.parts.to.backend;
        assert!(*backend.scheme() == Scheme::HTTPS, "TLS for the backend \"{backend}\": write an `https://` origin");
        self.rebuild(|parts| parts.client.tls = Some(tls))
    }

    /// Sets how often an HTTP/2 connection is pinged while streams are open and nothing is read. Default: every 20 seconds. `None`:
    /// no pings. A connection whose ping isn't answered within 20 seconds is closed, and its streams fail.
    ///
    /// A backend may be frozen, or a firewall may have forgotten the connection, and TCP doesn't show it. Besides, a
    /// connection on which a request has waited for more than a second, and nothing at all was read until it was given up, gets
    /// no further requests before something is read.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // A firewall on the way forgets connections that are silent for a minute.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000")
    ///     .http2(true)
    ///     .http2_keep_alive(Duration::from_secs(30))
    ///     .http2_keep_alive_while_idle(true);
    /// # let _ = proxy;
    /// ```
    ///
    /// # Panics
    ///
    /// If it's 0: a connection would be pinged without a pause.
    #[cfg(feature = "http2")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
    #[track_caller]
    pub fn http2_keep_alive(self, interval: impl Into<Option<Duration>>) -> Self {
        let interval = bounded(interval.into());
        assert!(interval != Some(Duration::ZERO), "invalid HTTP/2 ping interval of 0: write `None` for no pings");
        self.rebuild(|parts| parts.client.http2_keep_alive.interval = interval)
    }

    /// Sets whether [pings](Self::http2_keep_alive) are also sent while no stream is open. Default: `false`.
    #[cfg(feature = "http2")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
    pub fn http2_keep_alive_while_idle(self, ping: bool) -> Self {
        self.rebuild(|parts| parts.client.http2_keep_alive.while_idle = ping)
    }

    /// Sets how much a backend may send on one HTTP/2 connection before it's read, in bytes (RFC 9113, section 5.2). Default:
    /// 16 MiB.
    ///
    /// A connection has no more streams at a time than [stream windows](Self::http2_stream_window) fit into it, 64 by default,
    /// and no more than the backend allows: clients that don't read fill the windows of their own streams, and never the
    /// connection's. Further requests go over further connections.
    ///
    /// # Panics
    ///
    /// If it's less than 65,535, the protocol's initial one, or more than 2,147,483,647.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000")
    ///     .http2(true)
    ///     .http2_connection_window(64 << 20)
    ///     .http2_stream_window(1 << 20);
    /// # let _ = proxy;
    /// ```
    #[cfg(feature = "http2")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
    #[track_caller]
    pub fn http2_connection_window(self, bytes: u32) -> Self {
        assert!(
            (65_535..1 << 31).contains(&bytes),
            "invalid HTTP/2 connection window of {bytes} bytes: write 65,535 to 2,147,483,647"
        );
        self.rebuild(|parts| parts.client.http2_windows.connection = bytes)
    }

    /// Sets how much a backend may send on one HTTP/2 stream before it's read, in bytes. Default: 256 KiB.
    ///
    /// It limits how fast one download is over a long way: a window per round trip. It's also what a client that doesn't read
    /// costs in memory. Where a backend sends DATA frames of less than 256 bytes, answers on that connection are read ahead,
    /// because h2 charges such frames to the whole connection: an answer then costs up to 16 windows. An answer in small
    /// frames that isn't read beyond two windows is cut, and its stream reset, so that the others go on; a download in larger
    /// frames waits for its client.
    ///
    /// # Panics
    ///
    /// If it's 0, or more than 2,147,483,647.
    #[cfg(feature = "http2")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
    #[track_caller]
    pub fn http2_stream_window(self, bytes: u32) -> Self {
        assert!(
            (1..1 << 31).contains(&bytes),
            "invalid HTTP/2 stream window of {bytes} bytes: write 1 to 2,147,483,647"
        );
        self.rebuild(|parts| parts.client.http2_windows.stream = bytes)
    }

    /// Sets how large a request's head may be that is sent over HTTP/2, in bytes as RFC 9113, section 6.5.2, counts them: names
    /// and values, and 32 for each field. Default: `None`, what the backend's SETTINGS allow, or 64 KiB if they set no limit.
    ///
    /// A larger one gets 431, and nothing of it is sent: servers end the whole connection for it. The backend's own limit
    /// holds in any case. If it has set none, as nginx, a head that not every server takes (more than 32,000 bytes, or 8,000
    /// in one field) goes over a connection of its own, until one like it was answered.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // In front of an nginx with `large_client_header_buffers 4 8k`, its default.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").http2(true).http2_max_request_head(32_000);
    /// # let _ = proxy;
    /// ```
    ///
    /// # Panics
    ///
    /// If it's 0: no request would pass.
    #[cfg(feature = "http2")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
    #[track_caller]
    pub fn http2_max_request_head(self, bytes: impl Into<Option<usize>>) -> Self {
        let bytes = bytes.into();
        assert!(
            bytes != Some(0),
            "invalid limit of 0 bytes for request heads: write `None` for the backend's own limit"
        );
        self.rebuild(|parts| parts.client.http2_max_request_head = bytes)
    }

    /// Keeps the case of the backend's field names, if the server in front does so too (hyper's
    /// `preserve_header_case`). Default: `false`, names are lower case.
    pub fn preserve_header_case(self, preserve: bool) -> Self {
        self.rebuild(|parts| parts.client.preserve_header_case = preserve)
    }

    /// Sets how many field lines a response head of the backend may have, in HTTP/1.1 and HTTP/2. Default: 256.
    ///
    /// A head with more becomes 502, with [`ErrorKind::ResponseHeadTooLarge`](crate::ErrorKind::ResponseHeadTooLarge). The
    /// parser makes room for so many fields with every HTTP/1.1 response, 64 bytes for each.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // A backend that announces each of a page's many resources in a `Link` field of its own.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").max_response_fields(1000);
    /// # let _ = proxy;
    /// ```
    ///
    /// # Panics
    ///
    /// If it's 0, or more than the 24,576 that a header map holds.
    #[track_caller]
    pub fn max_response_fields(self, fields: usize) -> Self {
        assert!((1..=24_576).contains(&fields), "invalid maximum of {fields} response fields: write 1 to 24576");
        self.rebuild(|parts| parts.client.max_response_fields = fields)
    }

    /// Sets how large a response head of the backend may be, in bytes, in HTTP/1.1 and HTTP/2. Default: 256 KiB.
    ///
    /// In HTTP/1.1, the status line and all field lines count; in HTTP/2, the uncompressed field section, each field with 32
    /// bytes more (RFC 9113, section 6.5.2). Trailers have the same limit. A larger head becomes 502, with
    /// [`ErrorKind::ResponseHeadTooLarge`](crate::ErrorKind::ResponseHeadTooLarge). Until a head is complete, so much of it is
    /// held in memory.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").max_response_head(1024 * 1024);
    /// # let _ = proxy;
    /// ```
    ///
    /// # Panics
    ///
    /// If it's 0.
    #[track_caller]
    pub fn max_response_head(self, bytes: usize) -> Self {
        assert!(bytes > 0, "invalid maximum of 0 bytes for a response head: write a number such as 256 * 1024");
        self.rebuild(|parts| parts.client.max_response_head = bytes)
    }

    fn rebuild(mut self, change: impl FnOnce(&mut ToBackend<L>)) -> Self {
        change(Arc::make_mut(&mut self.parts));
        self.proxy.upstream = self.parts.build();
        self
    }
}
