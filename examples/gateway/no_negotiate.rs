//! A build without Kerberos, which refuses its keys.

use tower::layer::util::Identity;

use super::{Wrong, config::Mount};

/// What `negotiate` adds to a mount.
pub(crate) type Layer = Identity;

pub(crate) fn layer(mount: &Mount) -> Result<Option<Layer>, Wrong> {
    let key = match (&mount.negotiate, mount.negotiate_as_user) {
        (Some(_), _) => "negotiate",
        (None, true) => "negotiate_as_user",
        (None, false) => return Ok(None),
    };
    Err(format!("{key}: this build has no Kerberos: build the example with `--features negotiate`, on Unix"))
}
