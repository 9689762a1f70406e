//! TLS to an `https` backend: trusted roots, the client's certificate, the server's name, and the handshake.

use std::{error, fmt, io, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, RootCertStore,
        crypto::CryptoProvider,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        sign::{CertifiedKey, SingleCertAndKey},
    },
};

use crate::{backend::Backend, crypto};

/// The TLS configuration for an `https` backend: trusted roots, a client certificate, and the server's name.
///
/// The backend's certificate is always verified: that it chains to a trusted root, is within its validity period, and
/// is for the backend's name or address. No option disables this.
///
/// ```
/// # fn main() -> Result<(), tower_reverse_proxy::InvalidTls> {
/// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
/// use tower_reverse_proxy::{Client, ReverseProxyLayer, Tls};
/// # let (ca, chain, key) = certificates();
///
/// // PEM, as it's read from a file.
/// let tls = Tls::with_ca(&ca)?.client_certificate(&chain, &key)?.server_name("internal.example")?;
/// let proxy = ReverseProxyLayer::new(Client::builder("https://10.0.0.7").tls(tls));
/// # let _ = proxy;
/// # }
/// # Ok(())
/// # }
/// # fn certificates() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
/// #     let made = rcgen::generate_simple_self_signed(["internal.example".to_owned()]).unwrap();
/// #     let (pem, key) = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
/// #     (pem.clone(), pem, key)
/// # }
/// ```
///
/// # The provider
///
/// The cryptography is the process's own provider, if the application has installed one by then
/// ([`CryptoProvider::install_default`]), else that of the feature: `tls-aws-lc-rs`, or `tls-ring`.
/// [`with_config`](Self::with_config) takes any other.
#[derive(Clone)]
#[must_use]
pub struct Tls {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl Tls {
    /// Trusts the platform's root certificates. That's the default for an `https` backend.
    ///
    /// They are read here, from the system's store, or from where `SSL_CERT_FILE` and `SSL_CERT_DIR` point.
    ///
    /// ```
    /// use tower_reverse_proxy::{Client, Tls};
    ///
    /// # fn run() -> Result<(), tower_reverse_proxy::InvalidClient> {
    /// // What `Client::builder("https://backend.example").build()` does.
    /// let client = Client::builder("https://backend.example").tls(Tls::new()?).build()?;
    /// # let _ = client;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If there are no root certificates, or there is no provider.
    pub fn new() -> Result<Self, InvalidTls> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Stores of platforms contain certificates that rustls can't parse, which are left out.
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
            return Err(InvalidTls::new(format!(
                "the platform has no root certificates{why}; install its package of CA certificates, or name the backend's \
                 CA with `Tls::with_ca`"
            )));
        }
        Self::with_roots(roots)
    }

    /// Trusts the CA certificates in `pem`, and no others: one or more X.509 certificates in PEM. `pem` is the contents
    /// of a file, not its path.
    ///
    /// ```
    /// use tower_reverse_proxy::Tls;
    ///
    /// # fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let tls = Tls::with_ca(std::fs::read("/etc/ssl/internal-ca.pem")?)?;
    /// # let _ = tls;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If it contains no certificate, or an invalid one, or if there is no provider.
    pub fn with_ca(pem: impl AsRef<[u8]>) -> Result<Self, InvalidTls> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(pem.as_ref(), "the CA")? {
            roots.add(certificate).map_err(|error| {
                InvalidTls::new(format!("the CA has a certificate that can't be read ({error}); write X.509 in PEM"))
            })?;
        }
        Self::with_roots(roots)
    }

    /// Uses a configuration of rustls: another provider, other versions, a verifier of one's own.
    ///
    /// The client sets its ALPN protocols.
    ///
    /// ```
    /// use tower_reverse_proxy::{Tls, rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider, version::TLS13}};
    ///
    /// # fn run(provider: CryptoProvider, roots: RootCertStore) -> Result<(), Box<dyn std::error::Error>> {
    /// // TLS 1.3 alone, with a provider of one's own.
    /// let config = ClientConfig::builder_with_provider(provider.into())
    ///     .with_protocol_versions(&[&TLS13])?
    ///     .with_root_certificates(roots)
    ///     .with_no_client_auth();
    /// let tls = Tls::with_config(config);
    /// # let _ = tls;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_config(config: impl Into<Arc<ClientConfig>>) -> Self {
        Self { config: config.into(), server_name: None }
    }

    fn with_roots(roots: RootCertStore) -> Result<Self, InvalidTls> {
        let config = ClientConfig::builder_with_provider(provider()?)
            .with_safe_default_protocol_versions()
            .map_err(|error| InvalidTls::new(format!("the provider can't be used: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self::with_config(config))
    }

    /// Sets the certificate for a backend that requests one (mutual TLS): the chain, the client's own certificate
    /// first, and its private key, both in PEM (PKCS #8, PKCS #1 or SEC1, not encrypted). Default: none.
    ///
    /// ```
    /// use tower_reverse_proxy::Tls;
    ///
    /// # fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let tls = Tls::new()?.client_certificate(std::fs::read("client.pem")?, std::fs::read("client.key")?)?;
    /// # let _ = tls;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If either is invalid, or the key isn't the certificate's. The error doesn't contain the key.
    pub fn client_certificate(mut self, chain: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Result<Self, InvalidTls> {
        let chain = certificates(chain.as_ref(), "the client's chain")?;
        // The parser's error is left out, because it may contain a part of the key.
        let key = PrivateKeyDer::from_pem_slice(key.as_ref()).map_err(|_| {
            InvalidTls::new("the client's key has no private key in it; write one in PEM, not encrypted: `-----BEGIN PRIVATE KEY-----`")
        })?;
        let certified = CertifiedKey::from_der(chain, key, self.config.crypto_provider()).map_err(|error| {
            InvalidTls::new(format!(
                "the client's certificate and key can't be used ({error}); write those that belong together"
            ))
        })?;
        Arc::make_mut(&mut self.config).client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        Ok(self)
    }

    /// Sets the server name that is sent to the backend (SNI, RFC 6066, section 3) and that its certificate must be
    /// valid for: a DNS name, or an address, which isn't sent as SNI. Default: the backend's host.
    ///
    /// The `Host` field of requests doesn't change: [`Upstream::host`](crate::Upstream::host) sets it.
    ///
    /// ```
    /// use tower_reverse_proxy::{Client, Tls};
    ///
    /// # fn run() -> Result<(), tower_reverse_proxy::InvalidClient> {
    /// // A backend that is addressed by its number, with a certificate for its name.
    /// let client = Client::builder("https://10.0.0.7").tls(Tls::new()?.server_name("internal.example")?).build()?;
    /// # let _ = client;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If it's neither. A port isn't part of a name.
    pub fn server_name(mut self, name: &str) -> Result<Self, InvalidTls> {
        self.server_name = Some(parse_name(name)?);
        Ok(self)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// The error returned when a [`Tls`] configuration is invalid. Its text contains the cause and what to write instead,
/// and no key.
///
/// ```
/// use tower_reverse_proxy::Tls;
///
/// let error = Tls::with_ca("no PEM").unwrap_err();
/// assert!(error.to_string().contains("-----BEGIN CERTIFICATE-----"));
/// ```
#[derive(Clone, Debug)]
pub struct InvalidTls {
    message: Arc<str>,
}

impl InvalidTls {
    fn new(message: impl Into<Arc<str>>) -> Self {
        Self { message: message.into() }
    }
}

impl fmt::Display for InvalidTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid TLS: {}", self.message)
    }
}

impl error::Error for InvalidTls {}

/// Makes the handshakes with one backend.
pub(super) struct Handshaker {
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl Handshaker {
    /// The backend may choose HTTP/1.1, or HTTP/2 if that's offered (ALPN, RFC 7301).
    pub(super) fn new(tls: &Tls, backend: &Backend, offers_http2: bool) -> Result<Self, InvalidTls> {
        let name = match &tls.server_name {
            Some(name) => name.clone(),
            None => parse_name(backend.authority().host().trim_start_matches('[').trim_end_matches(']'))?,
        };
        let protocols: &[&[u8]] = if offers_http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        let mut config = ClientConfig::clone(&tls.config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Self { name, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Returns the stream, and whether HTTP/2 was negotiated.
    pub(super) async fn handshake(&self, tcp: TcpStream) -> Result<(TlsStream<TcpStream>, bool), HandshakeError> {
        let handshake = self.connector.connect(self.name.clone(), tcp).await;
        let stream =
            handshake.map_err(|error| HandshakeError { name: self.name.clone(), cause: Cause::from(error) })?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((stream, is_http2))
    }
}

impl fmt::Debug for Handshaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshaker").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A failed handshake, with the name that the backend's certificate had to be valid for. Its source is the reason, such
/// as a failed verification.
#[derive(Debug)]
pub(super) struct HandshakeError {
    name: ServerName<'static>,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Tls(rustls::Error),
    Io(io::Error),
}

impl From<io::Error> for Cause {
    /// An error of rustls comes wrapped in an I/O error, which would hide it from a search through the sources.
    fn from(error: io::Error) -> Self {
        match error.downcast::<rustls::Error>() {
            Ok(error) => Self::Tls(error),
            Err(error) => Self::Io(error),
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the TLS handshake with {:?} failed", self.name.to_str())
    }
}

impl error::Error for HandshakeError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.cause {
            Cause::Tls(error) => Some(error),
            Cause::Io(error) => Some(error),
        }
    }
}

fn provider() -> Result<Arc<CryptoProvider>, InvalidTls> {
    crypto::provider().ok_or_else(|| InvalidTls::new(format!("{}, or use `Tls::with_config`", crypto::NO_PROVIDER)))
}

fn parse_name(name: &str) -> Result<ServerName<'static>, InvalidTls> {
    ServerName::try_from(name.to_owned()).map_err(|_| {
        InvalidTls::new(format!(
            "{name:?} is no name that a certificate can be for; write for example \"backend.example\""
        ))
    })
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, InvalidTls> {
    const WRITE: &str = "write X.509 in PEM: `-----BEGIN CERTIFICATE-----`";
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| InvalidTls::new(format!("{what} isn't valid PEM ({error}); {WRITE}")))?;
    if all.is_empty() {
        return Err(InvalidTls::new(format!("{what} has no certificate in it; {WRITE}")));
    }
    Ok(all)
}

#[cfg(test)]
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
mod tests {
    use super::*;

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["backend.example".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn invalid_certificates_and_keys_name_what_to_write() {
        let (pem, key) = made();
        let (_, other) = made();
        let tls = || Tls::with_ca(&pem).unwrap();
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (error, hint) in [
            (Tls::with_ca("").unwrap_err(), "no certificate in it; write X.509 in PEM"),
            (Tls::with_ca(&key).unwrap_err(), "no certificate in it; write X.509 in PEM"),
            (Tls::with_ca("-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap_err(), "isn't valid PEM"),
            (Tls::with_ca(garbage).unwrap_err(), "can't be read"),
            (tls().client_certificate("", &key).unwrap_err(), "the client's chain has no certificate"),
            (tls().client_certificate(&pem, &pem).unwrap_err(), "BEGIN PRIVATE KEY"),
            (tls().client_certificate(&pem, &other).unwrap_err(), "belong together"),
            (tls().server_name("backend.example:443").unwrap_err(), "write for example"),
            (tls().server_name("").unwrap_err(), "write for example"),
        ] {
            assert!(error.to_string().contains(hint), "{error}");
        }
        for good in ["backend.example", "127.0.0.1", "::1"] {
            assert!(tls().server_name(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn debug_output_does_not_show_the_key() {
        let (pem, key) = made();
        let body = key.lines().nth(1).unwrap();
        let tls = Tls::with_ca(&pem).unwrap().client_certificate(&pem, &key).unwrap();
        assert_eq!(format!("{tls:?}"), "Tls { server_name: None, .. }");
        // A key that is cut short.
        let error = Tls::with_ca(&pem).unwrap().client_certificate(&pem, &key[..key.len() - 30]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(body), "{error:?}");
    }

    #[test]
    fn the_server_name_is_the_host_of_the_backend() {
        let (pem, _) = made();
        let tls = Tls::with_ca(pem).unwrap();
        for (backend, name) in [
            ("https://backend.example:8443", "backend.example"),
            ("https://127.0.0.1", "127.0.0.1"),
            ("https://[::1]:8443", "::1"),
        ] {
            let handshaker = Handshaker::new(&tls, &backend.parse().unwrap(), false).unwrap();
            assert_eq!(handshaker.name.to_str(), name);
        }
        let error = Handshaker::new(&tls, &"https://a..b".parse().unwrap(), false).unwrap_err();
        assert!(error.to_string().contains("a..b"), "{error}");
    }
}
