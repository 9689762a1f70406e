//! A rate limit and a concurrency limit on the upstream side: what the backend can take, whatever the clients send.
//!
//! ```sh
//! cargo run --example limits -- http://127.0.0.1:8000
//! ```
//!
//! In an app of your own: `cargo add tower --features buffer,limit,load-shed`.
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, net::SocketAddr, time::Duration};

use axum::{Router, routing::get};
use tower::ServiceBuilder;
use tower_reverse_proxy::{Client, ReverseProxyLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend = shared::backend_url().await?;

    // At most 2 requests a second. tower's `RateLimit` isn't `Clone`, because its count must not be split: the buffer
    // has the only one, and is itself `Clone`. 4 requests wait in the buffer. `load_shed` answers further ones with
    // 503; without it, they wait too.
    let rate = ServiceBuilder::new().load_shed().buffer(4).rate_limit(2, Duration::from_secs(1));
    let limited = ReverseProxyLayer::try_new(&backend)?.prefix("/rate").upstream_layer(rate);

    // At most 8 requests at a time. The 9th waits for up to 2 seconds, and becomes 503 then. In contrast to tower's
    // `ConcurrencyLimit`, which counts until the response head, a connection is counted until the end of the body.
    let client = Client::builder(backend).max_connections(8).queue_timeout(Duration::from_secs(2));
    let narrow = ReverseProxyLayer::try_new(client)?.prefix("/concurrency");

    let app = Router::new().route("/", get(|| async { "home, without a limit\n" })).layer(limited).layer(narrow);
    let listener = shared::listen().await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!(
        "Try: seq 12 | xargs -P 12 -I {{}} curl -s -o /dev/null -w '%{{http_code}} %{{time_total}}\\n' {url}/rate/"
    );
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
