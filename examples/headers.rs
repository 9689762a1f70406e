//! Header fields of requests and responses, set, removed and rewritten with layers of tower and tower-http.
//!
//! ```sh
//! cargo run --example headers -- http://127.0.0.1:8000
//! ```
//!
//! In an app of your own: `cargo add tower --features util` and `cargo add tower-http --features set-header`.
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, net::SocketAddr};

use axum::{
    Router,
    body::Body,
    http::{
        HeaderName, HeaderValue, Request,
        header::{ACCEPT_LANGUAGE, SERVER, X_FRAME_OPTIONS},
    },
};
use tower::{ServiceBuilder, util::MapRequestLayer};
use tower_http::{set_header::SetRequestHeaderLayer, set_header::SetResponseHeaderLayer};
use tower_reverse_proxy::ReverseProxyLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // On the upstream side: what the client sends can't remove these again, and an identity that is set here isn't
    // taken for a client's claim. A `ServiceBuilder` reads from top to bottom: its first layer sees the request
    // first.
    let fields = ServiceBuilder::new()
        .layer(SetRequestHeaderLayer::overriding(
            HeaderName::from_static("x-api-key"),
            HeaderValue::from_static("s3cret"),
        ))
        .layer(MapRequestLayer::new(|mut request: Request<Body>| {
            request.headers_mut().remove(ACCEPT_LANGUAGE);
            request
        }));
    let proxy = ReverseProxyLayer::try_new(shared::backend_url().await?)?.prefix("/mydir").upstream_layer(fields);

    // In front of the proxy: every response has them, also those that the proxy makes itself.
    let app = Router::new()
        .layer(proxy)
        .layer(SetResponseHeaderLayer::if_not_present(X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN")))
        .layer(SetResponseHeaderLayer::overriding(SERVER, HeaderValue::from_static("front")));

    let listener = shared::listen().await?;
    println!("Try: curl -i -H 'Accept-Language: eo' http://{}/mydir/", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
