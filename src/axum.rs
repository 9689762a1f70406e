//! Request extensions that axum's router and server insert. No other file uses axum.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, NestedPath, OriginalUri};
use http::Extensions;

use crate::{identity::ClientAddr, path::Nest};

/// Returns the part of the URI that nested routers have stripped; `None` if nothing was stripped.
///
/// `OriginalUri` alone isn't enough, because the application may have rewritten the URI since, and the rewritten one is
/// forwarded. `NestedPath` is the pattern of the nests, with one segment for each segment that they strip.
pub(crate) fn nest(extensions: &Extensions) -> Option<Nest<'_>> {
    let nested = extensions.get::<NestedPath>()?.as_str();
    let original = &extensions.get::<OriginalUri>()?.0;
    Some(Nest { original, segments: nested.split('/').filter(|segment| !segment.is_empty()).count() })
}

/// Returns the peer's address, which is known if the application is served with
/// `into_make_service_with_connect_info::<SocketAddr>()`.
pub(crate) fn peer(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|info| ClientAddr::from(info.0).ip())
}
