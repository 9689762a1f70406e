//! A backend that speaks TLS, with a certificate of a company's own CA.
//!
//! ```sh
//! cargo run --example https_backend --features tls-ring
//! ```
//!
//! In an app of your own: `cargo add tower-reverse-proxy --features tls-ring`.
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, io::IsTerminal, net::SocketAddr, sync::Arc};

use axum::{Router, routing::get};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower_reverse_proxy::{
    Client, ReverseProxyLayer, Tls,
    rustls::{ServerConfig, crypto::ring},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_ansi(std::io::stdout().is_terminal()).init();
    let (backend, ca) = start_backend().await?;

    // `ca` is the text of a PEM file: in an app of your own, `std::fs::read("ca.pem")?`. Only this CA is trusted for
    // this backend. Without `.tls(..)`, it would be those that the platform trusts.
    let tls = Tls::with_ca(ca)?
        // The URL has an address in it, the certificate a name: the name is what is verified.
        .server_name("legacy.example")?;
    // A backend that authenticates its clients asks for a certificate of ours:
    //     .client_certificate(std::fs::read("front.pem")?, std::fs::read("front.key")?)?
    let client = Client::builder(format!("https://{backend}")).tls(tls);

    let app = Router::new()
        .route("/", get(|| async { "the app's own page; the backend is at /legacy/\n" }))
        .layer(ReverseProxyLayer::try_new(client)?.prefix("/legacy"));

    let listener = shared::listen().await?;
    println!("Open http://{}/legacy/", listener.local_addr()?);
    println!("(Without `.server_name(..)` it is a 502, and the log shows why.)");
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// Starts a backend with TLS. Returns its address and its CA.
async fn start_backend() -> Result<(SocketAddr, String), Box<dyn Error>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["legacy.example".to_owned()])?.signed_by(&key, &ca)?;

    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = TowerToHyperService::new(shared::mirror("the backend, over TLS,"));
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Ok((addr, ca.pem()))
}
