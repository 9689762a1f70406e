//! A build without DNS queries of its own: the system looks names up.

use tower_reverse_proxy::balance::discover::Dns;

use super::{Wrong, config::Mount};

/// Where the members of a mount with `discover` come from.
pub(crate) type Source = Dns;

pub(crate) fn source(mount: &Mount, name: &str) -> Result<Source, Wrong> {
    if mount.dns_server.is_some() {
        return Err("dns_server: this build has no DNS queries: build the example with `--features dns`".into());
    }
    Dns::try_new(name).map_err(|error| error.to_string())
}
