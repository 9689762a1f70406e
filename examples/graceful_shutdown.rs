//! Ends without cutting anybody off: requests finish, WebSockets get some time, then everything is over.
//!
//! ```sh
//! cargo run --example graceful_shutdown -- http://127.0.0.1:8000
//! ```
//!
//! Then press Ctrl-C while something is under way.

#![allow(clippy::print_stdout)]

use std::{env, error::Error, time::Duration};

use axum::{Router, routing::get};
use tokio::{net::TcpListener, time::timeout};
use tower_reverse_proxy::{Backend, ReverseProxyLayer, Tunnels};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend: Backend = env::args().nth(1).unwrap_or("http://127.0.0.1:8000".into()).parse()?;

    // A server takes an upgraded connection for gone: it neither waits for it nor tells it. This account knows them.
    let tunnels = Tunnels::new();
    let app = Router::new()
        .route("/", get(|| async { "home" }))
        .layer(ReverseProxyLayer::try_new(backend)?.prefix("/mydir").tunnels(tunnels.clone()));

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("open http://{}/mydir/ and press Ctrl-C here", listener.local_addr()?);
    // From Ctrl-C on, no connection is accepted, and requests finish.
    axum::serve(listener, app).with_graceful_shutdown(interrupted()).await?;

    println!("waiting for {} tunnels", tunnels.count());
    if timeout(Duration::from_secs(10), tunnels.wait()).await.is_err() {
        // Somebody's WebSocket is still open: both of its sides are closed.
        tunnels.shut_down();
        tunnels.wait().await;
    }
    println!("done");
    Ok(())
}

async fn interrupted() {
    let _ = tokio::signal::ctrl_c().await;
}
