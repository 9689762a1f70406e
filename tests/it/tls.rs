//! TLS to the backend: the verification of certificates, client certificates, ALPN, and the errors.

use std::{
    error::Error as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::Request, response::IntoResponse};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Barrier, Notify},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::ServiceExt;
use tower_reverse_proxy::{
    Backends, Client, Error, ErrorKind, Failure, ReverseProxyLayer, Tls,
    balance::Member,
    rustls::{
        self, ClientConfig, ProtocolVersion, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        server::WebPkiClientVerifier,
    },
};

use crate::support::{Message, Wire, ask, backend, client, front, get, seen_to_be_kept, within};

type Accepted = TlsStream<TcpStream>;

#[cfg(feature = "http2")]
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A CA.
struct Ca(CertifiedIssuer<'static, KeyPair>);

struct Signed {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Ca {
    fn new() -> Self {
        // The names distinguish the CAs.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mut params = CertificateParams::default();
        let name = format!("CA {}", COUNT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, name: &str) -> Signed {
        self.sign_with(name, |_| {})
    }

    fn sign_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Signed {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Signed { certificate: params.signed_by(&key, &self.0).unwrap(), key }
    }

    fn tls(&self) -> Tls {
        Tls::with_ca(self.0.pem()).unwrap()
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A server with this certificate and these ALPN protocols.
fn server(signed: &Signed, protocols: &[&str]) -> ServerConfig {
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let chain = vec![signed.certificate.der().clone()];
    let mut config =
        config.with_no_client_auth().with_single_cert(chain, signed.key.serialize_der().try_into().unwrap()).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

/// Accepts TLS, and passes each connection and its number to `talk`. Returns the origin to proxy to.
async fn tls_backend<F>(config: ServerConfig, talk: impl Fn(usize, Accepted) -> F + Send + Sync + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (count, talk) = (AtomicUsize::new(0), Arc::new(talk));
    let origin = backend(move |wire| {
        let number = count.fetch_add(1, Ordering::Relaxed);
        let (acceptor, talk) = (acceptor.clone(), talk.clone());
        async move {
            if let Ok(stream) = acceptor.accept(wire.stream).await {
                talk(number, stream).await;
            }
        }
    })
    .await;
    origin.replace("http:", "https:")
}

/// A backend that responds with a property of the TLS connection, and the connection's number.
async fn describing(config: ServerConfig, describe: fn(&rustls::ServerConnection) -> String) -> String {
    tls_backend(config, move |number, stream| async move {
        let text = format!("{} {number}", describe(stream.get_ref().1));
        let mut wire = Wire::new(stream);
        while wire.message().await.is_some() {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes()).await;
        }
    })
    .await
}

fn nothing(_: &rustls::ServerConnection) -> String {
    "over TLS".into()
}

/// A front whose error pages have the kind of the failure and the whole chain of causes.
async fn proxied(proxy: ReverseProxyLayer) -> SocketAddr {
    front(Router::new().layer(proxy.on_error(|error: &Failure| {
        let chain = std::iter::successors(error.source(), |&cause| cause.source());
        let chain: Vec<String> = chain.map(ToString::to_string).collect();
        (error.status(), format!("{:?}: {}", error.kind(), chain.join(": ")))
    })))
    .await
}

#[track_caller]
fn assert_refused(answer: &Message, why: &[&str]) {
    let text = answer.text();
    assert_eq!(answer.status(), 502, "{text}");
    assert!(text.starts_with("Connect: connecting to https://"), "{text}");
    assert!(text.contains(": the TLS handshake with \""), "{text}");
    for why in why {
        assert!(text.contains(why), "no {why:?} in {text}");
    }
}

#[tokio::test]
async fn a_backend_with_a_certificate_of_a_private_ca_is_accepted() {
    let ca = Ca::new();
    // The certificate is for an IP address.
    let url = describing(server(&ca.sign("127.0.0.1"), &[]), nothing).await;
    let addr = proxied(ReverseProxyLayer::new(Client::builder(url).tls(ca.tls()))).await;
    assert_eq!(get(addr, "/x", "").await.text(), "over TLS 0");
    // The connection is reused.
    assert_eq!(get(addr, "/x", "").await.text(), "over TLS 0");
}

#[tokio::test]
async fn a_set_address_keeps_the_name_that_is_verified() {
    let ca = Ca::new();
    let sent = |connection: &rustls::ServerConnection| connection.server_name().unwrap_or("no name").to_owned();
    let url = describing(server(&ca.sign("app.example"), &[]), sent).await;
    let address: SocketAddr = url.strip_prefix("https://").unwrap().parse().unwrap();
    let client = |origin: &str| ReverseProxyLayer::new(Client::builder(origin).address(address).tls(ca.tls()));
    let addr = proxied(client("https://app.example")).await;
    assert_eq!(get(addr, "/x", "").await.text(), "app.example 0");
    let addr = proxied(client("https://other.example")).await;
    assert_refused(&get(addr, "/x", "").await, &["other.example"]);
}

/// Members of one name at several addresses are what DNS finds.
#[tokio::test]
async fn the_members_at_the_addresses_of_a_name_are_verified_by_the_name() {
    let tls = Ca::new();
    let sent = |connection: &rustls::ServerConnection| connection.server_name().unwrap_or("no name").to_owned();
    let mut members = Vec::new();
    for name in ["app.example", "app.example", "other.example"] {
        let url = describing(server(&tls.sign(name), &[]), sent).await;
        let address = url.strip_prefix("https://").unwrap().parse().unwrap();
        members.push(Member::new("https://app.example").at(address));
    }
    let backends = Backends::builder(members).client(move |client| client.tls(tls.tls())).build().unwrap();
    let addr = front(Router::new().layer(ReverseProxyLayer::balanced(&backends))).await;
    for _ in 0..20 {
        let text = get(addr, "/x", "").await.text();
        assert!(text.starts_with("app.example "), "{text}");
    }
    let [one, two, other] = &backends.status()[..] else { panic!("three members") };
    assert!(one.requests() > 0 && two.requests() > 0, "{one:?} {two:?}");
    assert_eq!((one.faults(), two.faults()), (0, 0));
    // The other name's server is tried, and gets nothing.
    assert!(other.requests() > 0 && other.faults() == other.requests(), "{other:?}");
}

#[tokio::test]
async fn a_self_signed_certificate_is_accepted_as_its_own_ca_unless_it_is_marked_as_one() {
    let key = KeyPair::generate().unwrap();
    for (is_ca, accepted) in [(IsCa::NoCa, true), (IsCa::Ca(BasicConstraints::Unconstrained), false)] {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.is_ca = is_ca;
        let key = KeyPair::from_pem(&key.serialize_pem()).unwrap();
        let signed = Signed { certificate: params.self_signed(&key).unwrap(), key };
        let url = describing(server(&signed, &[]), nothing).await;
        let tls = Tls::with_ca(signed.certificate.pem()).unwrap();
        let answer = get(proxied(ReverseProxyLayer::new(Client::builder(url).tls(tls))).await, "/x", "").await;
        match accepted {
            true => assert_eq!(answer.text(), "over TLS 0"),
            false => {
                assert!(answer.status() == 502 && answer.text().contains("CaUsedAsEndEntity"), "{}", answer.text());
            }
        }
    }
}

#[tokio::test]
async fn a_backend_with_a_certificate_of_another_ca_is_refused() {
    let ca = Ca::new();
    let url = describing(server(&ca.sign("127.0.0.1"), &[]), nothing).await;
    let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).tls(Ca::new().tls()))).await;
    assert_refused(&get(addr, "/x", "").await, &["127.0.0.1", "invalid peer certificate: UnknownIssuer"]);
    // Without any roots.
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let tls = Tls::with_config(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).tls(tls))).await;
    assert_refused(&get(addr, "/x", "").await, &["invalid peer certificate: UnknownIssuer"]);
}

#[tokio::test]
async fn the_tls_error_is_in_the_chain_of_causes() {
    let url = describing(server(&Ca::new().sign("127.0.0.1"), &[]), nothing).await;
    let proxy = ReverseProxyLayer::new(Client::builder(url).tls(Ca::new().tls())).into_service();
    let request = Request::get("/x").header("host", "front.example").body(axum::body::Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(proxy, request).await.unwrap();
    let error = response.extensions().get::<Error>().unwrap();
    assert_eq!(error.kind(), ErrorKind::Connect);
    let mut chain = std::iter::successors(error.source(), |&cause| cause.source());
    let found = chain.find_map(|cause| cause.downcast_ref::<rustls::Error>());
    assert_eq!(found, Some(&rustls::CertificateError::UnknownIssuer.into()));
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let ca = Ca::new();
    fn sni(tls: &rustls::ServerConnection) -> String {
        tls.server_name().unwrap_or("no SNI").to_owned()
    }
    let url = describing(server(&ca.sign("backend.example"), &[]), sni).await;
    let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).tls(ca.tls()))).await;
    assert_refused(&get(addr, "/x", "").await, &["127.0.0.1", "not valid for name", "backend.example"]);
    let named = ca.tls().server_name("backend.example").unwrap();
    let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).tls(named))).await;
    assert_eq!(get(addr, "/x", "").await.text(), "backend.example 1");
    // Without `server_name`, the name of the URL is sent in SNI and verified.
    let url = url.replace("127.0.0.1", "localhost");
    let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).tls(ca.tls()))).await;
    assert_refused(&get(addr, "/x", "").await, &["localhost", "backend.example"]);
    // SNI has no IP addresses (RFC 6066, section 3).
    let url = describing(server(&ca.sign("127.0.0.1"), &[]), sni).await;
    let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).tls(ca.tls()))).await;
    assert_eq!(get(addr, "/x", "").await.text(), "no SNI 0");
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let ca = Ca::new();
    let expired = ca.sign_with("127.0.0.1", |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let url = describing(server(&expired, &[]), nothing).await;
    let addr = proxied(ReverseProxyLayer::new(Client::builder(url).tls(ca.tls()))).await;
    assert_refused(&get(addr, "/x", "").await, &["certificate expired"]);
}

#[tokio::test]
async fn a_client_certificate_is_sent_on_request() {
    let ca = Ca::new();
    let own = ca.sign("127.0.0.1");
    let verifier = WebPkiClientVerifier::builder_with_provider(ca.roots(), provider()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let config = config
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own.certificate.der().clone()], own.key.serialize_der().try_into().unwrap())
        .unwrap();
    let url = tls_backend(config, |_, stream| async move {
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        let mut wire = Wire::new(stream);
        while wire.message().await.is_some() {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", shown.len()).as_bytes()).await;
            wire.send(&shown).await;
        }
    })
    .await;
    let me = ca.sign("front.example");
    let tls = ca.tls().client_certificate(me.certificate.pem(), me.key.serialize_pem()).unwrap();
    let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).tls(tls))).await;
    let answer = get(addr, "/x", "").await;
    assert_eq!((answer.status(), &answer.body[..]), (200, &me.certificate.der()[..]));
    // In TLS 1.3 the client's handshake is complete before the server rejects the missing certificate.
    let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).tls(ca.tls()))).await;
    let answer = get(addr, "/x", "").await;
    assert_eq!(answer.status(), 502);
    assert!(answer.text().contains("CertificateRequired"), "{answer:?}");
}

#[tokio::test]
async fn a_backend_without_tls_is_refused() {
    let url = backend(|mut wire| async move {
        // The response of a plaintext server to a ClientHello.
        wire.bytes(1).await;
        wire.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        while !wire.bytes(1).await.is_empty() {}
    })
    .await
    .replace("http:", "https:");
    let addr = proxied(ReverseProxyLayer::new(Client::builder(url).tls(Ca::new().tls()))).await;
    assert_refused(&get(addr, "/x", "").await, &["InvalidContentType"]);
    // A server that closes.
    let url = backend(|wire| async move { drop(wire) }).await.replace("http:", "https:");
    let addr = proxied(ReverseProxyLayer::new(Client::builder(url).tls(Ca::new().tls()))).await;
    assert_refused(&get(addr, "/x", "").await, &[]);
}

#[tokio::test]
async fn the_connect_timeout_includes_the_tls_handshake() {
    let url = backend(|mut wire| async move {
        // The server reads, and sends nothing.
        while !wire.bytes(1).await.is_empty() {}
    })
    .await
    .replace("http:", "https:");
    let client = Client::builder(&url).tls(Ca::new().tls()).connect_timeout(Duration::from_millis(150));
    let addr = proxied(ReverseProxyLayer::new(client).header_timeout(None)).await;
    let answer = get(addr, "/x", "").await;
    assert_eq!((answer.status(), answer.text()), (504, format!("ConnectTimeout: connecting to {url}")));
}

#[test]
#[should_panic(expected = "write an `https://` origin")]
fn tls_for_a_plaintext_backend_panics() {
    let _ = ReverseProxyLayer::new(Client::builder("http://127.0.0.1:8000").tls(Ca::new().tls()));
}

#[tokio::test]
async fn a_rustls_client_config_is_used() {
    let ca = Ca::new();
    fn version(tls: &rustls::ServerConnection) -> String {
        format!("{:?} {}", tls.protocol_version(), String::from_utf8_lossy(tls.alpn_protocol().unwrap_or_default()))
    }
    let url = describing(server(&ca.sign("127.0.0.1"), &["http/1.1"]), version).await;
    let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).tls(ca.tls()))).await;
    assert_eq!(get(addr, "/x", "").await.text(), format!("{:?} http/1.1 0", Some(ProtocolVersion::TLSv1_3)));
    let config =
        ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS12]).unwrap();
    let config = config.with_root_certificates(ca.roots()).with_no_client_auth();
    let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).tls(Tls::with_config(config)))).await;
    assert_eq!(get(addr, "/x", "").await.text(), format!("{:?} http/1.1 1", Some(ProtocolVersion::TLSv1_2)));
}

#[tokio::test]
async fn without_a_common_alpn_protocol_the_connect_fails() {
    let ca = Ca::new();
    let url = describing(server(&ca.sign("127.0.0.1"), &["h2"]), nothing).await;
    let addr = proxied(ReverseProxyLayer::new(Client::builder(url).tls(ca.tls()))).await;
    assert_refused(&get(addr, "/x", "").await, &["NoApplicationProtocol"]);
}

/// A backend that closes its connections without `close_notify`, after the first response or within a body.
async fn truncating(ca: &Ca) -> (String, Arc<Notify>) {
    let go = Arc::new(Notify::new());
    let going = go.clone();
    let origin = tls_backend(server(&ca.sign("127.0.0.1"), &[]), move |number, stream| {
        let going = going.clone();
        async move {
            let mut wire = Wire::new(stream);
            let Some(request) = wire.message().await else { return };
            if request.start_line().contains("/endless") {
                wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf of it").await;
                if request.start_line().contains("/endless/proper") {
                    let _ = wire.stream.shutdown().await;
                } else {
                    going.notified().await;
                }
                return;
            }
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}").as_bytes()).await;
            wire.message().await;
        }
    })
    .await;
    (origin, go)
}

#[tokio::test]
async fn a_truncated_idle_connection_is_replaced() {
    let ca = Ca::new();
    let (origin, _go) = truncating(&ca).await;
    let addr = proxied(ReverseProxyLayer::new(Client::builder(origin).tls(ca.tls()))).await;
    // The second request fails with the connection of the first, and is retried on another.
    assert_eq!(get(addr, "/x", "").await.text(), "0");
    assert_eq!(get(addr, "/x", "").await.text(), "1");
    // A POST isn't retried.
    seen_to_be_kept().await;
    assert_eq!(get(addr, "/x", "").await.text(), "2");
    let answer = ask(addr, "POST /x HTTP/1.1\r\nHost: front.example\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!(answer.status(), 502);
    assert!(answer.text().starts_with("ConnectionClosed: "), "{answer:?}");
}

#[tokio::test]
async fn the_response_to_a_refused_upload_over_tls_survives_a_reset() {
    // Without a length, the response ends with `close_notify`.
    for length in ["Content-Length: 2\r\n", ""] {
        let ca = Ca::new();
        let url = tls_backend(server(&ca.sign("127.0.0.1"), &[]), move |_, mut stream| async move {
            // With Nagle's algorithm the response could wait in the backend's socket, where the reset would discard it.
            stream.get_ref().0.set_nodelay(true).unwrap();
            // Less than the upload, so that the octets left in the socket reset the connection.
            let mut some = [0; 64];
            within(stream.read_exact(&mut some)).await.unwrap();
            let answer = format!("HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n{length}\r\nno");
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.get_mut().1.send_close_notify();
            let _ = stream.flush().await;
        })
        .await;
        let proxy = ReverseProxyLayer::new(Client::builder(url).tls(ca.tls())).into_service();
        for round in 0..20 {
            let body = axum::body::Body::from(vec![b'x'; 4 * 1024 * 1024]);
            let request = Request::post("/x").header("host", "front.example").body(body).unwrap();
            let Ok(response) = within(proxy.clone().oneshot(request)).await;
            let error = response.extensions().get::<Error>();
            assert_eq!(response.status(), 401, "{length} {round} {error:?}");
            let body = within(response.into_body().collect()).await.unwrap();
            assert_eq!(body.to_bytes(), "no", "{length} {round}");
        }
    }
}

#[tokio::test]
async fn an_end_without_close_notify_is_a_truncated_body() {
    let ca = Ca::new();
    let (origin, go) = truncating(&ca).await;
    let addr = proxied(ReverseProxyLayer::new(Client::builder(origin).tls(ca.tls()))).await;
    let mut wire = client(addr).await;
    wire.send(b"GET /endless HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
    go.notify_one();
    assert_eq!(wire.bytes(usize::MAX).await, b"A\r\nhalf of it\r\n", "there is no last chunk");
    let answer = get(addr, "/endless/proper", "").await;
    assert_eq!((&*answer.text(), answer.complete), ("half of it", true), "{answer:?}");
}

#[cfg(feature = "http2")]
mod http2 {
    use axum::body::Body;
    use tower_reverse_proxy::Owner;

    use super::*;

    /// A backend that responds with the version and the number of the connection. Over HTTP/1.1 it accepts upgrades,
    /// and sends back what it gets twice.
    async fn speaking(ca: &Ca, protocols: &[&str]) -> String {
        tls_backend(server(&ca.sign("127.0.0.1"), protocols), |number, stream| async move {
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| async move {
                    let (version, uri) = (request.version(), request.uri());
                    Ok::<_, std::convert::Infallible>(format!("{version:?} {uri} {number}").into_response())
                });
                let connection = auto::Builder::new(TokioExecutor::new());
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                return;
            }
            let mut wire = Wire::new(stream);
            while let Some(request) = wire.message().await {
                if request.field("upgrade").is_some() {
                    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
                    wire.send(head.as_bytes()).await;
                    let bytes = wire.bytes(5).await;
                    wire.send(&[&bytes[..], &bytes].concat()).await;
                    return;
                }
                let text = format!("HTTP/1.1 {number}");
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes()).await;
            }
        })
        .await
    }

    #[tokio::test]
    async fn the_protocol_negotiated_by_alpn_is_spoken() {
        let ca = Ca::new();
        for (offered, protocols, expected) in [
            (true, &["h2", "http/1.1"][..], "HTTP/2.0 URL/x 0"),
            (true, &["h2"], "HTTP/2.0 URL/x 0"),
            (true, &["http/1.1"], "HTTP/1.1 0"),
            // Without ALPN the protocol is HTTP/1.1.
            (true, &[], "HTTP/1.1 0"),
            (false, &["h2", "http/1.1"], "HTTP/1.1 0"),
        ] {
            let url = speaking(&ca, protocols).await;
            let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).http2(offered).tls(ca.tls()))).await;
            // Further requests reuse the connection.
            for _ in 0..3 {
                let answer = get(addr, "/x", "").await;
                assert_eq!(answer.text(), expected.replace("URL", &url), "{offered} {protocols:?}");
            }
        }
    }

    #[tokio::test]
    async fn concurrent_requests_to_a_backend_without_http2_all_succeed() {
        let ca = Ca::new();
        let acceptor = TlsAcceptor::from(Arc::new(server(&ca.sign("127.0.0.1"), &["http/1.1"])));
        let count = AtomicUsize::new(0);
        // All handshakes but the first wait for each other, and so do the requests except `/alone`.
        let (two, three) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(3)));
        let url = backend(move |wire| {
            let is_first = count.fetch_add(1, Ordering::Relaxed) == 0;
            let (acceptor, two, three) = (acceptor.clone(), two.clone(), three.clone());
            async move {
                if !is_first {
                    two.wait().await;
                }
                let mut wire = Wire::new(acceptor.accept(wire.stream).await.unwrap());
                while let Some(request) = wire.message().await {
                    if !request.start_line().contains("/alone") {
                        three.wait().await;
                    }
                    wire.send(OK).await;
                }
            }
        })
        .await;
        let proxy = ReverseProxyLayer::new(Client::builder(url.replace("http:", "https:")).http2(true).tls(ca.tls()));
        let addr = proxied(proxy).await;
        assert_eq!(get(addr, "/alone", "").await.status(), 200);
        for _ in 0..2 {
            let asked: Vec<_> =
                (0..3).map(|_| tokio::spawn(async move { get(addr, "/x", "").await.status() })).collect();
            for status in asked {
                assert_eq!(status.await.unwrap(), 200);
            }
        }
    }

    #[tokio::test]
    async fn concurrent_requests_wait_for_a_single_connect_timeout() {
        let url = backend(|mut wire| async move { while !wire.bytes(1).await.is_empty() {} }).await;
        let client = Client::builder(url.replace("http:", "https:")).http2(true).tls(Ca::new().tls());
        let addr = proxied(ReverseProxyLayer::new(client.connect_timeout(Duration::from_millis(150)))).await;
        // In sequence, the timeouts would take 30 s.
        let asked: Vec<_> = (0..200).map(|_| tokio::spawn(async move { get(addr, "/x", "").await.status() })).collect();
        for status in asked {
            assert_eq!(status.await.unwrap(), 504);
        }
    }

    #[tokio::test]
    async fn connection_based_credentials_use_a_dedicated_connection() {
        let ca = Ca::new();
        let url = speaking(&ca, &["h2", "http/1.1"]).await;
        let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).http2(true).tls(ca.tls()))).await;
        for (fields, expected) in [
            ("", format!("HTTP/2.0 {url}/x 0")),
            ("Authorization: Negotiate YII=\r\n", "HTTP/1.1 1".into()),
            ("Authorization: NTLM TlRM\r\n", "HTTP/1.1 2".into()),
            ("Authorization: Basic YTpi\r\n", format!("HTTP/2.0 {url}/x 0")),
        ] {
            assert_eq!(get(addr, "/x", fields).await.text(), expected);
        }
    }

    #[tokio::test]
    async fn connections_with_an_owner_stand_apart() {
        let ca = Ca::new();
        for (protocols, shared) in [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1")] {
            let url = speaking(&ca, protocols).await;
            let client = Client::builder(&url).http2(true).tls(ca.tls()).max_connections(3).build().unwrap();
            let ask = async |owner: Option<&str>| {
                let mut request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
                request.extensions_mut().insert(owner.map_or(Owner::Request, |owner| Owner::Principal(owner.into())));
                let body = within(client.clone().oneshot(request)).await.unwrap().into_body();
                let text = within(body.collect()).await.unwrap().to_bytes();
                // With HTTP/2, the backend adds the URI.
                String::from_utf8(text.into()).unwrap().replace("http://front.example/x ", "")
            };
            // At the limit of three, idle connections are used at once.
            for (owner, version, connection) in [
                (None, shared, 0),
                (Some("alice"), "HTTP/1.1", 1),
                (Some("bob"), "HTTP/1.1", 2),
                (Some("alice"), "HTTP/1.1", 1),
                (None, shared, 0),
                (Some("bob"), "HTTP/1.1", 2),
            ] {
                assert_eq!(ask(owner).await, format!("{version} {connection}"), "{owner:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_websocket_uses_http1_beside_http2() {
        let ca = Ca::new();
        let url = speaking(&ca, &["h2", "http/1.1"]).await;
        let addr = proxied(ReverseProxyLayer::new(Client::builder(&url).http2(true).tls(ca.tls()))).await;
        assert_eq!(get(addr, "/x", "").await.text(), format!("HTTP/2.0 {url}/x 0"));
        let mut wire = client(addr).await;
        wire.send(b"GET /ws HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        let answer = wire.message().await.unwrap();
        assert_eq!((answer.status(), answer.field("upgrade")), (101, Some("websocket")));
        wire.send(b"hello").await;
        assert_eq!(wire.bytes(10).await, b"hellohello");
        assert!(wire.closed().await);
        assert_eq!(get(addr, "/x", "").await.text(), format!("HTTP/2.0 {url}/x 0"));
    }

    #[tokio::test]
    async fn http2_is_used_again_after_http1() {
        let ca = Ca::new();
        // As in a rolling update, the first connection doesn't speak HTTP/2 yet.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let signed = ca.sign("127.0.0.1");
        tokio::spawn(async move {
            for protocols in [&["http/1.1"][..], &["h2"]] {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = TlsAcceptor::from(Arc::new(server(&signed, protocols)));
                let stream = acceptor.accept(stream).await.unwrap();
                let service = service_fn(async |request: hyper::Request<hyper::body::Incoming>| {
                    let mut response = format!("{:?}", request.version()).into_response();
                    response.headers_mut().insert("connection", http::HeaderValue::from_static("close"));
                    Ok::<_, std::convert::Infallible>(response)
                });
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            }
        });
        let addr = proxied(ReverseProxyLayer::new(Client::builder(url).http2(true).tls(ca.tls()))).await;
        for expected in ["HTTP/1.1", "HTTP/2.0", "HTTP/2.0"] {
            assert_eq!(get(addr, "/x", "").await.text(), expected);
        }
    }

    #[tokio::test]
    async fn requests_unprocessed_over_http2_are_sent_over_http1() {
        let ca = Ca::new();
        // As in a rollback, the HTTP/2 connection is closed when a request arrives, and the next one speaks HTTP/1.1.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let signed = ca.sign("127.0.0.1");
        tokio::spawn(async move {
            let accepted = async |protocols: &[&str]| {
                let acceptor = TlsAcceptor::from(Arc::new(server(&signed, protocols)));
                Wire::new(acceptor.accept(listener.accept().await.unwrap().0).await.unwrap())
            };
            let mut wire = accepted(&["h2"]).await;
            wire.bytes(24).await;
            // SETTINGS, and a GOAWAY after the first head: no stream was processed.
            wire.send(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
            while let [a, b, c, kind, ..] = wire.bytes(9).await[..] {
                wire.bytes(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)).await;
                if kind == 1 {
                    wire.send(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await;
                    break;
                }
            }
            let mut wire = accepted(&["http/1.1"]).await;
            let head = wire.head().await.unwrap();
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len()).as_bytes()).await;
            wire.closed().await;
        });
        let proxy = ReverseProxyLayer::new(Client::builder(format!("https://{authority}")).http2(true).tls(ca.tls()));
        let seen = get(proxied(proxy).await, "/x?y", "X-Own: 1\r\n").await.mirrored();
        assert_eq!(seen.start_line(), "GET /x?y HTTP/1.1");
        assert_eq!((seen.field("host"), seen.field("x-own")), (Some(&*authority), Some("1")));
        assert_eq!((seen.field("transfer-encoding"), seen.field("content-length")), (None, None));
    }
}
