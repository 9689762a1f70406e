//! A build without TLS: its keys are refused here, and `https` backends by the client.

use axum::http::uri::Scheme;
use tower_reverse_proxy::ClientBuilder;

use super::{Wrong, config::Mount};

pub(crate) struct Roots;

impl Roots {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn of(&self, mount: &Mount, _: &Scheme) -> Result<BackendTls, Wrong> {
        match mount.ca_file {
            Some(_) => Err("ca_file: this build has no TLS: build the example with `--features tls-ring`".into()),
            None => Ok(BackendTls),
        }
    }
}

pub(crate) struct BackendTls;

impl BackendTls {
    pub(crate) fn apply(&self, client: ClientBuilder) -> ClientBuilder {
        client
    }
}
