//! Connects to one backend: over TCP, with or without TLS, over a Unix socket, or by the operator's connector. One
//! timeout applies to name resolution, addresses and handshakes together.

mod resolve;
mod stream;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;

use std::{
    error, fmt, io, iter,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::BoxError;
use http::{Uri, uri::PathAndQuery};
use hyper::rt::{Read, Write};
use hyper_util::{
    client::legacy::connect::{Connection, HttpConnector},
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_service::Service;

#[cfg(test)]
pub(super) use self::stream::Properties as StreamProperties;
pub(super) use self::stream::Stream;
#[cfg(not(feature = "tls"))]
pub(super) use self::tls::{InvalidTls, Tls};
#[cfg(feature = "tls")]
pub use self::tls::{InvalidTls, Tls};
use self::{resolve::Addresses, stream::Properties, tls::Handshaker};
use super::limit::Permit;
use crate::{
    backend::Backend,
    error::{Error, ErrorKind},
    switched::Transport,
};

/// How connections are opened.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) timeout: Option<Duration>,
    /// Where to connect, in place of the addresses of the backend's name.
    pub(super) address: Option<SocketAddr>,
    /// The operator's connector, which replaces TCP, Unix sockets and TLS.
    pub(super) connector: Option<Dial>,
    pub(super) tls: Option<Tls>,
    /// Whether requests go over HTTP/2 if the backend speaks it.
    pub(super) offers_http2: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { timeout: Some(Duration::from_secs(5)), address: None, connector: None, tls: None, offers_http2: false }
    }
}

/// Connects to the backend that it was made for.
pub(super) struct Connector {
    /// The backend's origin.
    uri: Uri,
    /// The origin as text, and the address if it's set, for errors.
    origin: Arc<str>,
    dial: Dial,
    /// Offers HTTP/1.1 alone. `None` where the client makes no TLS handshake, and so can't insist on a protocol.
    dial_http1: Option<Dial>,
    timeout: Option<Duration>,
    offers_http2: bool,
}

/// Opens connections: a service from the backend's origin to a connection with it.
pub(crate) type Dial = BoxCloneSyncService<Uri, Dialed, BoxError>;

/// A connection that was made.
pub(crate) struct Dialed {
    io: Box<dyn Transport>,
    properties: Properties,
}

/// The protocols that the backend may choose from, where it has a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    Http1,
    /// HTTP/2, and HTTP/1.1 for a backend that lacks it.
    Http2,
}

impl Connector {
    pub(super) fn new(backend: &Backend, options: &Options) -> Result<Self, InvalidTls> {
        let uri = Uri::builder()
            .scheme(backend.scheme().clone())
            .authority(backend.authority().clone())
            .path_and_query(PathAndQuery::from_static("/"))
            .build();
        let tcp = tcp(options);
        let own_tls = options.tls.as_ref().filter(|_| options.connector.is_none());
        let dial = |offers_http2| match (&options.connector, own_tls) {
            (Some(connector), _) => Ok(connector.clone()),
            (None, Some(own)) => tls(backend, own, tcp.clone(), offers_http2),
            (None, None) => Ok(plain(backend, tcp.clone())),
        };
        Ok(Self {
            // It can't fail, because all three parts are there and valid.
            uri: uri.unwrap_or_default(),
            origin: match options.address {
                Some(address) => format!("{backend} at {address}").into(),
                None => backend.to_string().into(),
            },
            dial: dial(options.offers_http2)?,
            dial_http1: if own_tls.is_some() && options.offers_http2 { Some(dial(false)?) } else { None },
            timeout: options.timeout,
            offers_http2: options.offers_http2,
        })
    }

    /// Returns whether the backend may choose HTTP/2.
    pub(super) fn offers_http2(&self) -> bool {
        self.offers_http2
    }

    /// Returns whether the backend has chosen HTTP/1.1 where it could choose HTTP/2, too.
    pub(super) fn has_chosen_http1(&self, stream: &Stream) -> bool {
        self.uri.scheme() == Some(&http::uri::Scheme::HTTPS) && !stream.properties().is_http2
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Returns whether the client can insist on HTTP/1.1 with a backend that would choose HTTP/2.
    pub(super) fn can_insist_on_http1(&self) -> bool {
        self.dial_http1.is_some()
    }

    /// Connects, and completes `handshake` on the connection, both within the connect timeout, because a handshake that
    /// hangs is a connect that hangs.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the connection.
    pub(super) async fn connect<T, E: Into<BoxError>>(
        &self,
        offer: Offer,
        permit: Permit,
        handshake: impl AsyncFnOnce(Stream) -> Result<T, E>,
    ) -> Result<T, Error> {
        let connecting = async { handshake(self.dial(offer, permit).await?).await.map_err(Into::into) };
        let failed = |kind, cause| Error::with_source(kind, ConnectError { origin: self.origin.clone(), cause });
        let connected = match self.timeout {
            Some(timeout) => tokio::time::timeout(timeout, connecting).await,
            None => Ok(connecting.await),
        };
        match connected {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(error)) if timed_out(&*error) => Err(failed(ErrorKind::ConnectTimeout, Some(error))),
            Ok(Err(error)) => Err(failed(ErrorKind::Connect, Some(error))),
            Err(_) => Err(failed(ErrorKind::ConnectTimeout, None)),
        }
    }

    async fn dial(&self, offer: Offer, permit: Permit) -> Result<Stream, BoxError> {
        let dial = match offer {
            Offer::Http1 => self.dial_http1.as_ref().unwrap_or(&self.dial),
            Offer::Http2 => &self.dial,
        };
        let Dialed { io, properties } = dial.clone().oneshot(self.uri.clone()).await?;
        if properties.is_http2 && offer == Offer::Http1 {
            return Err(HTTP1_IS_NEEDED.into());
        }
        Ok(Stream::new(io, properties, permit))
    }
}

/// A failed connect. It names the backend, because an application may have several.
#[derive(Debug)]
struct ConnectError {
    origin: Arc<str>,
    /// `None` after the connect timeout.
    cause: Option<BoxError>,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connecting to {}", self.origin)
    }
}

impl error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("uri", &self.uri).finish_non_exhaustive()
    }
}

/// Why a connection of the operator's connector is of no use.
const HTTP1_IS_NEEDED: &str = "the connector has negotiated HTTP/2 where HTTP/1.1 is needed: for an upgrade, for a client \
                               without `http2(true)`, or for credentials that authenticate a connection (Negotiate, NTLM), \
                               which HTTP/2 would share between clients";

/// Returns whether an address didn't answer within its share of the timeout, or within the operating system's.
fn timed_out(error: &(dyn error::Error + 'static)) -> bool {
    iter::successors(Some(error), |error| error.source())
        .any(|error| error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut))
}

/// Makes a [`Dial`] of a connector of hyper-util's kind.
pub(crate) fn boxed<C>(connector: C) -> Dial
where
    C: Service<Uri, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
{
    let dialed = |io: C::Response| {
        let is_http2 = io.connected().is_negotiated_h2();
        Dialed { io: Box::new(TokioIo::new(io)), properties: Properties { is_http2, ..Properties::default() } }
    };
    BoxCloneSyncService::new(connector.map_response(dialed).map_err(Into::into))
}

/// Connects without TLS.
fn plain(backend: &Backend, tcp: Tcp) -> Dial {
    #[cfg(unix)]
    if let Some(path) = backend.socket() {
        let path = Arc::<std::path::Path>::from(path);
        return BoxCloneSyncService::new(service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok(Dialed::plain(tokio::net::UnixStream::connect(path).await?)) }
        }));
    }
    let dialed = |io: TokioIo<TcpStream>| Dialed::plain(io.into_inner());
    BoxCloneSyncService::new(tcp.map_response(dialed).map_err(Into::into))
}

impl Dialed {
    /// A TCP or Unix socket, which sends what is written without a flush.
    fn plain(io: impl Transport + 'static) -> Self {
        Self { io: Box::new(io), properties: Properties { sends_at_once: true, ..Properties::default() } }
    }
}

/// TCP to the backend's name or to a set address.
#[derive(Clone)]
struct Tcp {
    connector: HttpConnector<Addresses>,
    has_address: bool,
}

impl Service<Uri> for Tcp {
    type Response = <HttpConnector<Addresses> as Service<Uri>>::Response;
    type Error = <HttpConnector<Addresses> as Service<Uri>>::Error;
    type Future = <HttpConnector<Addresses> as Service<Uri>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, origin: Uri) -> Self::Future {
        // The connector doesn't resolve a host that is an address, and replaces the port by the origin's.
        let destination = if self.has_address { Uri::from_static("http://set.invalid/") } else { origin };
        self.connector.call(destination)
    }
}

/// Resolves the backend's name for each connection, by one look-up at a time, and tries every address of it (RFC 8305).
fn tcp(options: &Options) -> Tcp {
    let addresses = options.address.map_or_else(Addresses::of_the_name, Addresses::Set);
    let mut tcp = HttpConnector::new_with_resolver(addresses);
    // `https` goes over TCP, too. The TLS handshake follows.
    tcp.enforce_http(false);
    // The addresses share it, so that a dead one leaves time for the others.
    tcp.set_connect_timeout(options.timeout);
    // Small requests and responses don't wait for an acknowledgement.
    tcp.set_nodelay(true);
    // A tunnel may be silent for long, and its peer gone.
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    Tcp { connector: tcp, has_address: options.address.is_some() }
}

fn tls(backend: &Backend, tls: &Tls, tcp: Tcp, offers_http2: bool) -> Result<Dial, InvalidTls> {
    let handshaker = Arc::new(Handshaker::new(tls, backend, offers_http2)?);
    Ok(BoxCloneSyncService::new(service_fn(move |uri| {
        let (mut tcp, handshaker) = (tcp.clone(), handshaker.clone());
        async move {
            let (stream, is_http2) = handshaker.handshake(tcp.call(uri).await?.into_inner()).await?;
            let properties = Properties { is_http2, has_own_end: true, sends_at_once: false };
            Ok(Dialed { io: Box::new(stream), properties })
        }
    })))
}
