//! What axum's router and server leave in a request: the only file that names axum.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, NestedPath, OriginalUri};
use http::Extensions;

use crate::{identity::ClientAddr, path::Nest};

/// Returns what nested routers have stripped from the URI; `None` if nothing.
///
/// `OriginalUri` alone doesn't say it: an application may have rewritten the URI since, and its wish counts. `NestedPath` is
/// the pattern of the nests, with a segment for each that they strip.
pub(crate) fn nest(extensions: &Extensions) -> Option<Nest<'_>> {
    let nested = extensions.get::<NestedPath>()?.as_str();
    let original = &extensions.get::<OriginalUri>()?.0;
    Some(Nest { original, segments: nested.split('/').filter(|segment| !segment.is_empty()).count() })
}

/// Returns the peer's address, if the application is served with `into_make_service_with_connect_info::<SocketAddr>()`.
pub(crate) fn peer(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|info| ClientAddr::from(info.0).ip())
}
