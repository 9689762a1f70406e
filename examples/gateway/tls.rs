//! Which certificates of `https` backends are trusted.

use std::{cell::OnceCell, fs};

use axum::http::uri::Scheme;
use tower_reverse_proxy::{ClientBuilder, Tls};

use super::{Wrong, config::Mount};

/// The platform's roots, read once, and only if a mount needs them.
pub(crate) struct Roots(OnceCell<Tls>);

impl Roots {
    pub(crate) fn new() -> Self {
        Self(OnceCell::new())
    }

    /// Returns the roots that the certificates of a mount's backends have to come from.
    pub(crate) fn of(&self, mount: &Mount, scheme: &Scheme) -> Result<BackendTls, Wrong> {
        Ok(BackendTls(match (&mount.ca_file, *scheme == Scheme::HTTPS) {
            (None, false) => None,
            (None, true) => Some(self.of_the_platform()?),
            (Some(_), false) => {
                return Err("ca_file: the backend is spoken to without TLS: write an https:// backend".into());
            }
            (Some(path), true) => {
                let pem = fs::read(path).map_err(|error| format!("ca_file {path:?}: {error}"))?;
                Some(Tls::with_ca(pem).map_err(|error| format!("ca_file {path:?}: {error}"))?)
            }
        }))
    }

    fn of_the_platform(&self) -> Result<Tls, Wrong> {
        if let Some(tls) = self.0.get() {
            return Ok(tls.clone());
        }
        let tls = Tls::new().map_err(|error| error.to_string())?;
        Ok(self.0.get_or_init(|| tls).clone())
    }
}

/// The roots of a mount's backends. `None`: they are spoken to without TLS.
pub(crate) struct BackendTls(Option<Tls>);

impl BackendTls {
    pub(crate) fn apply(&self, client: ClientBuilder) -> ClientBuilder {
        match &self.0 {
            Some(tls) => client.tls(tls.clone()),
            None => client,
        }
    }
}
