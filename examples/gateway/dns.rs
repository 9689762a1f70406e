//! The addresses of a backend's name, by their DNS records.

use tower_reverse_proxy::balance::discover::DnsRecords;

use super::{Wrong, config::Mount};

/// Where the members of a mount with `discover` come from.
pub(crate) type Source = DnsRecords;

pub(crate) fn source(mount: &Mount, name: &str) -> Result<Source, Wrong> {
    let records = DnsRecords::try_new(name).map_err(|error| error.to_string())?;
    Ok(match mount.dns_server {
        Some(server) => records.name_server(server),
        None => records,
    })
}
