//! Replaces an old site route by route: new routes are the app's, everything else is still the old site's.
//!
//! ```sh
//! cargo run --example strangler -- http://127.0.0.1:8000 # your old site
//! cargo run --example strangler -- http://127.0.0.1:9    # nothing listens there: shows the error page
//! ```
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, io::IsTerminal, net::SocketAddr};

use axum::{Router, extract::Path, response::Html, routing::get};
use tower_reverse_proxy::ReverseProxyLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The cause of a failure goes to the log, not to visitors, because it may hold addresses of the old site.
    tracing_subscriber::fmt()
        .with_ansi(std::io::stdout().is_terminal())
        .with_env_filter("tower_reverse_proxy=info")
        .init();
    let legacy = ReverseProxyLayer::try_new(shared::backend_url().await?)?
        .on_error(|error| (error.status(), Html("<h1>Back in a minute</h1><p>This part of the site has a rest.")))
        .into_service();

    let app = Router::new()
        .route("/", get(|| async { "the new home page\n" }))
        // Only the GET is new. Without a fallback of its own, axum would answer a POST here with 405.
        .route("/orders/{id}", get(order).fallback_service(legacy.clone()))
        // Everything that has no route yet.
        .fallback_service(legacy);

    let listener = shared::listen().await?;
    println!("Try these at http://{}: /, /orders/7 (GET and POST), /any/thing", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

async fn order(Path(id): Path<u32>) -> String {
    format!("the new page of order {id}\n")
}
