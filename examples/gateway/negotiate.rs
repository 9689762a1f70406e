//! Kerberos sign-in to backends.

use tower_reverse_proxy::{Negotiate, NegotiateLayer};

use super::{Wrong, config::Mount};

/// What `negotiate` adds to a mount.
pub(crate) type Layer = NegotiateLayer;

/// The layer of a mount. It acquires the gateway's own credential at once.
pub(crate) fn layer(mount: &Mount) -> Result<Option<Layer>, Wrong> {
    let Some(service) = &mount.negotiate else {
        return match mount.negotiate_as_user {
            true => Err("negotiate_as_user: write negotiate = \"HTTP@backend.example\" beside it".into()),
            false => Ok(None),
        };
    };
    if mount.basic_password.is_some() {
        return Err("negotiate: a mount signs in one way: leave out basic_password".into());
    }
    let source = match mount.negotiate_as_user {
        true => Negotiate::on_behalf(service),
        false => Negotiate::own(service),
    };
    let source = source.map_err(|error| format!("negotiate: {error}"))?;
    Ok(Some(NegotiateLayer::with_source(source)))
}
