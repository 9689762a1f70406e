//! A build without TLS: its keys are refused here, and `https` backends by the client.

use tower_reverse_proxy::{Backend, ClientBuilder};

use super::{Wrong, config::Mount};

pub(crate) struct BackendTls;

impl BackendTls {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn apply(&self, client: ClientBuilder, mount: &Mount, _: &Backend) -> Result<ClientBuilder, Wrong> {
        match mount.ca_file {
            Some(_) => Err("ca_file: this build has no TLS: build the example with `--features tls-ring`".into()),
            None => Ok(client),
        }
    }
}
