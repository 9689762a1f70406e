//! Users with client certificates: the name in the certificate becomes the backend's `Remote-User`.
//!
//! ```sh
//! cargo run --example client_certificate --features tls-ring
//! ```
//!
//! In an app of your own: `cargo add tower-reverse-proxy --features tls-ring` and
//! `cargo add tokio-rustls x509-parser`. The certificates have to come from a CA that signs only certificates of users,
//! because every name that it signs is a user's.
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, Request, connect_info::Connected},
    middleware::map_request,
    routing::get,
    serve::{IncomingStream, Listener},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::ServiceBuilder;
use tower_reverse_proxy::{
    ClientAddr, RemoteUserLayer, ReverseProxyLayer,
    rustls::{RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let files = tempfile::tempdir()?;
    let config = server_config(files.path())?;
    let app = app(&shared::backend_url().await?)?;

    let listener = TlsListener::new(shared::listen().await?, config)?;
    let (url, dir) = (format!("https://{}", listener.local_addr()?), files.path().display());
    println!("Without a certificate, {url} has only the app's own page. As alice:");
    println!("curl --cacert {dir}/ca.pem --cert {dir}/alice.pem {url}/legacy/");
    axum::serve(listener, app.into_make_service_with_connect_info::<Peer>()).await?;
    Ok(())
}

/// The app: its own page for every client, and the backend for users.
pub(crate) fn app(backend: &str) -> Result<Router, Box<dyn Error>> {
    let legacy = ReverseProxyLayer::try_new(backend)?.prefix("/legacy").upstream_layer(
        RemoteUserLayer::from_extension(|ConnectInfo(peer): &ConnectInfo<Peer>| peer.user.clone()).required(true),
    );
    // In the order in which they see a request.
    let layers = ServiceBuilder::new().layer(map_request(client_addr)).layer(legacy);
    Ok(Router::new().route("/", get(|| async { "the app's own page\n" })).layer(layers))
}

/// Inserts the client's address for X-Forwarded-For, because this connect info is no `SocketAddr`.
async fn client_addr(ConnectInfo(peer): ConnectInfo<Peer>, mut request: Request) -> Request {
    request.extensions_mut().insert(ClientAddr::from(peer.addr));
    request
}

/// The client of a connection. It's made once for each connection, and each request has a clone.
#[derive(Clone)]
pub(crate) struct Peer {
    addr: SocketAddr,
    /// The common name in the client's certificate.
    user: Option<Arc<str>>,
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        // The first certificate is the client's own. The handshake has verified it.
        let (_, tls) = stream.io().get_ref();
        let user = tls.peer_certificates().and_then(|chain| common_name(chain.first()?));
        Self { addr: *stream.remote_addr(), user }
    }
}

/// Returns the only common name of a certificate's subject.
fn common_name(certificate: &[u8]) -> Option<Arc<str>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    names.next().is_none().then(|| name.into())
}

/// Accepts TLS for `axum::serve`.
pub(crate) struct TlsListener {
    addr: SocketAddr,
    accepted: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    /// Handshakes run in tasks of their own, so that a slow client delays no other.
    pub(crate) fn new(listener: TcpListener, config: ServerConfig) -> io::Result<Self> {
        let (addr, acceptor) = (listener.local_addr()?, TlsAcceptor::from(Arc::new(config)));
        let (sender, accepted) = mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                let connection = tokio::select! {
                    connection = listener.accept() => connection,
                    // The server has ended.
                    () = sender.closed() => return,
                };
                let Ok((stream, addr)) = connection else {
                    // Out of file descriptors, or the client has left.
                    sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let (sender, handshake) = (sender.clone(), acceptor.accept(stream));
                tokio::spawn(async move {
                    if let Ok(Ok(stream)) = timeout(Duration::from_secs(10), handshake).await {
                        // An error: the server has ended.
                        let _ = sender.send((stream, addr)).await;
                    }
                });
            }
        });
        Ok(Self { addr, accepted })
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            // The runtime is shutting down.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }
}

/// FOR THE DEMO ONLY: makes a CA, the server's certificate and alice's. Writes what `curl` needs into a directory.
fn server_config(dir: &std::path::Path) -> Result<ServerConfig, Box<dyn Error>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "the company's CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(dir.join("ca.pem"), ca.pem())?;

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "alice");
    let certificate = params.signed_by(&key, &ca)?;
    std::fs::write(dir.join("alice.pem"), certificate.pem() + &key.serialize_pem())?;

    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()])?.signed_by(&key, &ca)?;
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone())?;
    let provider = Arc::new(ring::default_provider());
    // A wrong certificate ends the connection; without one, the client has no name.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        .with_single_cert(vec![certificate.der().clone()], key.into())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
