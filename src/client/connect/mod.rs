//! Connects to one backend: over TCP, with or without TLS, over a Unix socket, or by the operator's connector. One
//! timeout applies to name resolution, addresses and handshakes together.

mod filter;
mod resolve;
mod stream;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;

use std::{error, fmt, io, iter, net::SocketAddr, sync::Arc, time::Duration};

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

pub(super) use self::filter::AddressFilter;
pub use self::filter::is_public;
#[cfg(test)]
pub(super) use self::stream::Properties as StreamProperties;
pub(super) use self::stream::Stream;
#[cfg(not(feature = "tls"))]
pub(super) use self::tls::{InvalidTls, Tls};
#[cfg(feature = "tls")]
pub use self::tls::{InvalidTls, Tls};
use self::{filter::Filtered, resolve::Addresses, stream::Properties, tls::Handshaker};
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
    /// Which addresses may be connected to. The operator's connector has none.
    pub(super) filter: Option<AddressFilter>,
    /// Whether requests go over HTTP/2 if the backend speaks it.
    pub(super) offers_http2: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Some(Duration::from_secs(5)),
            address: None,
            connector: None,
            tls: None,
            filter: None,
            offers_http2: false,
        }
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
        let tcp = Tcp::new(options);
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
    BoxCloneSyncService::new(service_fn(move |uri| {
        let connecting = tcp.clone().connect(uri);
        async move { Ok(Dialed::plain(connecting.await?)) }
    }))
}

impl Dialed {
    /// A TCP or Unix socket, which sends what is written without a flush.
    fn plain(io: impl Transport + 'static) -> Self {
        Self { io: Box::new(io), properties: Properties { sends_at_once: true, ..Properties::default() } }
    }
}

/// TCP to the backend's name or to a set address, if the filter allows it.
#[derive(Clone)]
struct Tcp<R = Addresses> {
    connector: HttpConnector<Filtered<R>>,
    has_address: bool,
    filter: Option<AddressFilter>,
}

impl Tcp {
    fn new(options: &Options) -> Self {
        Self::with_resolver(options.address.map_or_else(Addresses::of_the_name, Addresses::Set), options)
    }
}

impl<R> Tcp<R> {
    /// Resolves the backend's name for each connection, by one look-up at a time, and tries every address of it (RFC
    /// 8305).
    fn with_resolver(resolver: R, options: &Options) -> Self {
        let mut connector = HttpConnector::new_with_resolver(Filtered::new(resolver, options.filter.clone()));
        // `https` goes over TCP, too. The TLS handshake follows.
        connector.enforce_http(false);
        // The addresses share it, so that a dead one leaves time for the others.
        connector.set_connect_timeout(options.timeout);
        // Small requests and responses don't wait for an acknowledgement.
        connector.set_nodelay(true);
        // A tunnel may be silent for long, and its peer gone.
        connector.set_keepalive(Some(Duration::from_secs(60)));
        Self { connector, has_address: options.address.is_some(), filter: options.filter.clone() }
    }

    async fn connect(mut self, origin: Uri) -> Result<TcpStream, BoxError>
    where
        HttpConnector<Filtered<R>>: Service<Uri, Response = TokioIo<TcpStream>, Error: Into<BoxError>>,
    {
        // The connector doesn't resolve a host that is an address, and replaces the port by the origin's.
        let destination = if self.has_address { Uri::from_static("http://set.invalid/") } else { origin };
        if let (Some(filter), Some(host)) = (&self.filter, destination.host()) {
            filter.check_literal(host)?;
        }
        Ok(self.connector.call(destination).await.map_err(Into::into)?.into_inner())
    }
}

fn tls(backend: &Backend, tls: &Tls, tcp: Tcp, offers_http2: bool) -> Result<Dial, InvalidTls> {
    let handshaker = Arc::new(Handshaker::new(tls, backend, offers_http2)?);
    Ok(BoxCloneSyncService::new(service_fn(move |uri| {
        let (tcp, handshaker) = (tcp.clone(), handshaker.clone());
        async move {
            let (stream, is_http2) = handshaker.handshake(tcp.connect(uri).await?).await?;
            let properties = Properties { is_http2, has_own_end: true, sends_at_once: false };
            Ok(Dialed { io: Box::new(stream), properties })
        }
    })))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::{Mutex, PoisonError},
        vec,
    };

    use hyper_util::client::legacy::connect::dns::Name;
    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A resolver that answers with these addresses in turn.
    fn answering(
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> impl Service<
        Name,
        Response = vec::IntoIter<SocketAddr>,
        Error = io::Error,
        Future = impl Future<Output = io::Result<vec::IntoIter<SocketAddr>>> + Send,
    > + Clone
    + Send
    + Sync
    + 'static {
        let left = Arc::new(Mutex::new(addresses.into_iter().collect::<Vec<_>>().into_iter()));
        service_fn(move |_: Name| {
            let address = left.lock().unwrap_or_else(PoisonError::into_inner).next().unwrap();
            async move { Ok(vec![SocketAddr::new(address, 0)].into_iter()) }
        })
    }

    /// DNS rebinding: a name has a public address when the application checks it, and this machine's when the client
    /// connects.
    #[tokio::test]
    async fn a_name_that_changes_its_address_does_not_pass_the_filter() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("http://rebinding.example:{}/", listener.local_addr().unwrap().port()).parse().unwrap();
        let (public, own) = (IpAddr::from([93, 184, 216, 34]), Ipv4Addr::LOCALHOST);
        let resolver = answering([public, own.into(), own.to_ipv6_mapped().into(), own.into()]);

        let checked = resolver.clone().oneshot("rebinding.example".parse().unwrap()).await.unwrap();
        assert!(checked.into_iter().all(|address| is_public(address.ip())));
        let connect = |filter: Option<AddressFilter>| {
            let options = Options { filter, ..Options::default() };
            timeout(PATIENCE, Tcp::with_resolver(resolver.clone(), &options).connect(uri.clone()))
        };
        for _ in 0..2 {
            let error = connect(Some(AddressFilter::new(is_public))).await.unwrap().unwrap_err();
            let first = Some(&*error as &(dyn error::Error + 'static));
            let causes: Vec<_> = iter::successors(first, |error| error.source()).map(ToString::to_string).collect();
            assert!(causes.iter().any(|cause| cause == "127.0.0.1 isn't an allowed address"), "{causes:?}");
            assert!(timeout(Duration::ZERO, listener.accept()).await.is_err(), "it has connected");
        }
        // Without a filter, it leads to this machine.
        assert!(connect(None).await.unwrap().is_ok());
        assert!(timeout(PATIENCE, listener.accept()).await.is_ok());
    }

    #[tokio::test]
    async fn an_address_in_the_url_does_not_pass_the_filter() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost"] {
            let uri: Uri = format!("http://{host}:{port}/").parse().unwrap();
            let connect = |filter| {
                let options = Options { filter, ..Options::default() };
                timeout(PATIENCE, Tcp::new(&options).connect(uri.clone()))
            };
            assert!(connect(Some(AddressFilter::new(is_public))).await.unwrap().is_err(), "{host}");
            assert!(timeout(Duration::ZERO, listener.accept()).await.is_err(), "{host}: it has connected");
            assert!(connect(Some(AddressFilter::new(|_| true))).await.unwrap().is_ok(), "{host}");
            assert!(timeout(PATIENCE, listener.accept()).await.is_ok(), "{host}");
        }
        // A set address is an address that is connected to.
        let (uri, address) = (Uri::from_static("http://backend.example/"), Some(listener.local_addr().unwrap()));
        let options = Options { address, filter: Some(AddressFilter::new(is_public)), ..Options::default() };
        assert!(timeout(PATIENCE, Tcp::new(&options).connect(uri)).await.unwrap().is_err());
        assert!(timeout(Duration::ZERO, listener.accept()).await.is_err(), "it has connected");
    }
}
