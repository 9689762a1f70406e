//! A client's certificate, through the listener and the connect info of the example `client_certificate`.

use std::{net::SocketAddr, sync::Arc};

use axum::Router;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tower_reverse_proxy::rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    server::WebPkiClientVerifier,
};

use crate::{
    SPOOFED,
    support::{Message, Wire, mirror, within},
};

#[path = "../../examples/client_certificate.rs"]
#[allow(dead_code, unreachable_pub)]
mod example;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn roots(ca: &Ca) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    roots
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Serves a router that trusts the clients of a CA.
async fn serve(app: Router, ca: &Ca) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["front.example".to_owned()]).unwrap().signed_by(&key, ca).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca).into(), provider());
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let listener = example::TlsListener::new(listener, config).unwrap();
    let service = app.into_make_service_with_connect_info::<example::Peer>();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    addr
}

/// The response to a request with a certificate for these common names, signed by another CA than the server's or the
/// same. `None` if the connection ends without one.
async fn get(addr: SocketAddr, server: &Ca, client: Option<(&Ca, &[&str])>, target: &str) -> Option<Message> {
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots(server));
    let config = match client {
        None => config.with_no_client_auth(),
        Some((ca, names)) => {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            for (name, kind) in names.iter().zip([DnType::CommonName, DnType::CustomDnType(vec![2, 5, 4, 3])]) {
                params.distinguished_name.push(kind, *name);
            }
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, ca).unwrap();
            config.with_client_auth_cert(vec![certificate.der().clone()], key.into()).unwrap()
        }
    };
    let stream = within(TcpStream::connect(addr)).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = within(connector.connect("front.example".try_into().unwrap(), stream)).await.unwrap();
    let mut wire = Wire::new(stream);
    wire.send(format!("GET {target} HTTP/1.1\r\nHost: front.example\r\n{SPOOFED}\r\n").as_bytes()).await;
    wire.message().await
}

#[tokio::test]
async fn the_name_in_a_verified_certificate_is_sent() {
    let company = ca("company");
    let addr = serve(example::app(&mirror().await).unwrap(), &company).await;
    for name in ["alice", "Jörg Müller"] {
        let mirrored = get(addr, &company, Some((&company, &[name])), "/legacy/x").await.unwrap().mirrored();
        let octets: String = name.bytes().map(char::from).collect();
        assert_eq!(mirrored.field("remote-user"), Some(&*octets));
        assert_eq!(mirrored.field("x-forwarded-for"), Some("127.0.0.1"));
        assert!(!mirrored.head.contains("root"), "{}", mirrored.head);
    }
}

#[tokio::test]
async fn without_one_name_in_a_verified_certificate_the_backend_is_closed() {
    let company = ca("company");
    let addr = serve(example::app(&mirror().await).unwrap(), &company).await;
    let none = get(addr, &company, None, "/legacy/x").await.unwrap();
    assert_eq!(none.status(), 403);
    assert_eq!(get(addr, &company, None, "/").await.unwrap().text(), "the app's own page\n");
    for names in [&[][..], &["alice", "root"]] {
        assert_eq!(get(addr, &company, Some((&company, names)), "/legacy/x").await.unwrap().status(), 403, "{names:?}");
    }
    let stranger = ca("stranger");
    assert!(get(addr, &company, Some((&stranger, &["alice"])), "/legacy/x").await.is_none());
}
