//! Which certificates of `https` backends are trusted.

use std::{cell::OnceCell, fs};

use axum::http::uri::Scheme;
use tower_reverse_proxy::{Backend, ClientBuilder, Tls};

use super::{Wrong, config::Mount};

/// The platform's roots, read once, and only if a mount needs them.
pub(crate) struct BackendTls(OnceCell<Tls>);

impl BackendTls {
    pub(crate) fn new() -> Self {
        Self(OnceCell::new())
    }

    /// Sets the roots that the certificate of an `https` backend has to come from.
    pub(crate) fn apply(
        &self,
        client: ClientBuilder,
        mount: &Mount,
        backend: &Backend,
    ) -> Result<ClientBuilder, Wrong> {
        match (&mount.ca_file, *backend.scheme() == Scheme::HTTPS) {
            (None, false) => Ok(client),
            (None, true) => Ok(client.tls(self.of_the_platform()?)),
            (Some(_), false) => Err(format!("ca_file: {backend} is spoken to without TLS: write an https:// backend")),
            (Some(path), true) => {
                let pem = fs::read(path).map_err(|error| format!("ca_file {path:?}: {error}"))?;
                Ok(client.tls(Tls::with_ca(pem).map_err(|error| format!("ca_file {path:?}: {error}"))?))
            }
        }
    }

    fn of_the_platform(&self) -> Result<Tls, Wrong> {
        if let Some(tls) = self.0.get() {
            return Ok(tls.clone());
        }
        let tls = Tls::new().map_err(|error| error.to_string())?;
        Ok(self.0.get_or_init(|| tls).clone())
    }
}
