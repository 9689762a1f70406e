//! Timeouts that differ from route to route: several proxies over one client, which share its connections.
//!
//! ```sh
//! cargo run --example timeouts_per_route
//! ```
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, net::SocketAddr, time::Duration};

use axum::{Router, routing::get};
use tokio::time::sleep;
use tower_reverse_proxy::{Client, ReverseProxy, ReverseProxyLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let slow = get(|| async {
        sleep(Duration::from_secs(3)).await;
        "after 3 seconds\n"
    });
    let backend =
        shared::start(shared::mirror("the backend").route("/api/slow", slow.clone()).route("/reports/slow", slow));

    // Clones of a client share one pool.
    let client = Client::builder(backend.await?).connect_timeout(Duration::from_secs(2)).build()?;
    // The time to the response head. A report is made for minutes before its first byte.
    let api = ReverseProxyLayer::new(client.clone()).header_timeout(Duration::from_secs(1)).into_service();
    let reports = ReverseProxyLayer::new(client.clone()).header_timeout(Duration::from_secs(600)).into_service();
    // Server-sent events: the body may stand still for as long as nothing happens.
    let events = ReverseProxyLayer::new(client.clone()).body_idle_timeout(None).into_service();

    let app = Router::new()
        .nest_service("/api", api)
        .nest_service("/reports", reports)
        .nest_service("/events", events)
        .fallback_service(ReverseProxy::new(client));

    let listener = shared::listen().await?;
    println!("Try these at http://{}: /api/slow (504), /reports/slow (200), /api/x", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
