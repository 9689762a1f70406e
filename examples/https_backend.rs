//! A backend that speaks TLS, with a certificate of a company's own CA.
//!
//! ```sh
//! cargo run --example https_backend --features tls-ring
//! ```
//!
//! In an application of your own: `cargo add tower-reverse-proxy --features tls-ring`.

#![allow(clippy::print_stdout)]

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

    // `ca` is the text of a PEM file: in an application of your own, it's `std::fs::read("ca.pem")?`. From now on this CA is
    // trusted for this backend, and no other is. Without `.tls(..)`, it would be those that the system trusts.
    let tls = Tls::with_ca(ca)?
        // The URL has an address in it, the certificate a name: it's the name that has to be right.
        .server_name("legacy.example")?;
    // A backend that lets in only whom it knows asks for a certificate of ours:
    //     .client_certificate(std::fs::read("front.pem")?, std::fs::read("front.key")?)?

    let app = Router::new()
        .route("/", get(|| async { "the application's own page; the other server's are under /legacy/\n" }))
        .layer(ReverseProxyLayer::new(Client::builder(format!("https://{backend}")).tls(tls)).prefix("/legacy"));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("open http://{}/legacy/", listener.local_addr()?);
    println!("(leave `.server_name(..)` out: it becomes a 502, and the log says why)");
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// Starts a server that stands for the other one, with TLS. Returns its address and its CA.
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
    let app = Router::new().fallback(|uri: axum::http::Uri| async move { format!("over TLS: {uri}\n") });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, app) = (acceptor.clone(), app.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).await;
            });
        }
    });
    Ok((addr, ca.pem()))
}
