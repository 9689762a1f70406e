//! What axum's router and server leave in a request: the only file that names axum.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, NestedPath, OriginalUri};
use http::{Extensions, Uri};

use crate::identity::ClientAddr;

/// Returns the URI as it was before nested routers stripped it; `None` if none did.
///
/// `OriginalUri` alone doesn't say so: an application may have rewritten the URI since, and then its wish counts.
pub(crate) fn original_uri(extensions: &Extensions) -> Option<&Uri> {
    extensions.get::<NestedPath>()?;
    extensions.get::<OriginalUri>().map(|original| &original.0)
}

/// Returns the peer's address, if the application is served with `into_make_service_with_connect_info::<SocketAddr>()`.
pub(crate) fn peer(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|info| ClientAddr::from(info.0).ip())
}
