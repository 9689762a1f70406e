//! Replaces an old site route by route: what is rewritten is the app's, the rest is still the old site's.
//!
//! ```sh
//! cargo run --example strangler                          # with a small old site of its own
//! cargo run --example strangler -- http://127.0.0.1:8000 # with yours
//! cargo run --example strangler -- http://127.0.0.1:9    # with none: shows the error page
//! ```
#![allow(clippy::print_stdout)]

use std::{env, error::Error, io::IsTerminal, net::SocketAddr};

use axum::{
    Router,
    extract::Path,
    http::{Method, Uri},
    response::Html,
    routing::get,
};
use tokio::net::TcpListener;
use tower_reverse_proxy::ReverseProxyLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The cause of a failure goes to the log. It's not for visitors: it may hold addresses of the old site.
    tracing_subscriber::fmt()
        .with_ansi(std::io::stdout().is_terminal())
        .with_env_filter("tower_reverse_proxy=info")
        .init();
    let old_site = match env::args().nth(1) {
        Some(url) => url,
        None => own_old_site().await?,
    };
    let legacy = ReverseProxyLayer::try_new(old_site)?
        .on_error(|error| (error.status(), Html("<h1>Back in a minute</h1><p>This part of the site has a rest.")))
        .into_service();

    let app = Router::new()
        .route("/", get(|| async { "the new home page\n" }))
        // Only the GET is rewritten. Without a fallback of its own, axum would answer a POST here with 405.
        .route("/orders/{id}", get(order).fallback_service(legacy.clone()))
        // Everything that has no route yet.
        .fallback_service(legacy);

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("Try these at http://{}: /, /orders/7 (GET and POST), /any/thing", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

async fn order(Path(id): Path<u32>) -> String {
    format!("the new page of order {id}\n")
}

/// Starts an old site that answers everything, and returns its origin.
async fn own_old_site() -> Result<String, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let site =
        Router::new().fallback(|method: Method, uri: Uri| async move { format!("the old site: {method} {uri}\n") });
    tokio::spawn(async move { axum::serve(listener, site).await });
    Ok(origin)
}
