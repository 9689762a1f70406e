//! Three ways to mount a backend, and what it sees of the path in each.
//!
//! ```sh
//! cargo run --example nested -- http://127.0.0.1:8000
//! ```
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, net::SocketAddr};

use axum::{Router, http::StatusCode, routing::get};
use tower_reverse_proxy::{Client, ReverseProxy, ReverseProxyLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::builder(shared::backend_url().await?).build()?;
    let listener = shared::listen().await?;
    println!("Try these at http://{}: /mydir/a, /team, /team/wiki/a, /docs/a", listener.local_addr()?);
    axum::serve(listener, app(&client).into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// All three share the connections of one client.
fn app(client: &Client) -> Router {
    // In a nested router. The prefix is relative to the nest, as routes are; the backend still sees /team/wiki/a.
    let team = Router::new()
        .route("/", get(|| async { "the team's own page\n" }))
        // axum calls a nested router's layers for its routes and its own fallback only: without this line, /wiki is a
        // 404.
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(ReverseProxyLayer::new(client.clone()).prefix("/wiki"));

    Router::new()
        // As a route. axum strips /mydir from the path and the proxy restores it: the backend sees /mydir/a.
        .nest_service("/mydir", ReverseProxy::new(client.clone()))
        .nest("/team", team)
        // For a backend that lives at its own root: it sees /a, and `X-Forwarded-Prefix: /docs`. Redirects and cookies
        // are mapped back. Links in its pages are not: prefer a backend with the same layout.
        .layer(ReverseProxyLayer::new(client.clone()).prefix("/docs").strip_prefix())
}
