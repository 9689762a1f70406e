//! Three ways to mount a backend, and what it sees of the path in each.
//!
//! ```sh
//! cargo run --example nested                          # with a small backend of its own, which says what it sees
//! cargo run --example nested -- http://127.0.0.1:8000 # with yours
//! ```
#![allow(clippy::print_stdout)]

use std::{env, error::Error, net::SocketAddr};

use axum::{
    Router,
    http::{HeaderMap, StatusCode, Uri},
    routing::get,
};
use tokio::net::TcpListener;
use tower_reverse_proxy::{Backend, ReverseProxy, ReverseProxyLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend = match env::args().nth(1) {
        Some(url) => Backend::try_from(url)?,
        None => Backend::try_from(own_backend().await?)?,
    };
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("Try these at http://{}: /mydir/a, /team, /team/wiki/a, /docs/a", listener.local_addr()?);
    axum::serve(listener, app(&backend).into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

fn app(backend: &Backend) -> Router {
    // In a nested router. The prefix is relative to the nest, as routes are; the backend sees /team/wiki/a all the same.
    let team = Router::new()
        .route("/", get(|| async { "the team's own page" }))
        // axum asks a nested router's layers for its routes and its fallback only: without this line, never for /wiki.
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(ReverseProxyLayer::new(backend.clone()).prefix("/wiki"));

    Router::new()
        // As a route. axum takes /mydir away from the path, and the proxy puts it back: the backend sees /mydir/a.
        .nest_service("/mydir", ReverseProxy::new(backend.clone()))
        .nest("/team", team)
        // For a backend that lives at its own root: it sees /a, and `X-Forwarded-Prefix: /docs`. Redirects and cookies
        // are mapped back. Links in its pages are not: prefer a backend with the same layout.
        .layer(ReverseProxyLayer::new(backend.clone()).prefix("/docs").strip_prefix())
}

/// Starts a backend that answers with what it sees, and returns its origin.
async fn own_backend() -> Result<String, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let backend = Router::new().fallback(|uri: Uri, headers: HeaderMap| async move {
        format!("the backend sees {uri}, X-Forwarded-Prefix: {:?}\n", headers.get("x-forwarded-prefix"))
    });
    tokio::spawn(async move { axum::serve(listener, backend).await });
    Ok(origin)
}
