//! Ends without cutting anybody off: requests finish, WebSockets get some time, then everything is over.
//!
//! ```sh
//! cargo run --example graceful_shutdown                          # with a small backend of its own
//! cargo run --example graceful_shutdown -- http://127.0.0.1:8000 # with yours
//! ```
//!
//! Then press Ctrl-C while something is under way.

#![allow(clippy::print_stdout)]

use std::{env, error::Error, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::ws::{WebSocket, WebSocketUpgrade},
    response::Html,
    routing::get,
};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tower_reverse_proxy::{Backend, ReverseProxyLayer, Tunnels};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend: Backend = match env::args().nth(1) {
        Some(url) => url,
        None => own_backend().await?,
    }
    .parse()?;

    // A server takes an upgraded connection for gone: it neither waits for it nor ends it. This account knows them.
    let tunnels = Tunnels::new();
    let app = Router::new()
        .route("/", get(|| async { "home" }))
        .layer(ReverseProxyLayer::try_new(backend)?.prefix("/mydir").tunnels(tunnels.clone()));

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("open http://{}/mydir/ and press Ctrl-C here", listener.local_addr()?);
    // From Ctrl-C on, no connection is accepted, and requests finish.
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
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

/// Starts a backend with something to interrupt, and returns its origin.
async fn own_backend() -> Result<String, Box<dyn Error>> {
    let slow = async || {
        sleep(Duration::from_secs(5)).await;
        "finished\n"
    };
    let silent = async |mut socket: WebSocket| while let Some(Ok(_)) = socket.recv().await {};
    let backend = Router::new()
        .route("/mydir/", get(async || Html(PAGE)))
        .route("/mydir/slow", get(slow))
        .route("/mydir/socket", get(async move |upgrade: WebSocketUpgrade| upgrade.on_upgrade(silent)));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, backend).await });
    Ok(origin)
}

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Graceful shutdown</title>
<style>:root { color-scheme: light dark } body { font: 1.1rem/1.5 system-ui; max-width: 36rem; margin: 2rem auto; padding: 0 1rem }</style>
<h1>Graceful shutdown</h1>
<p>Press Ctrl-C in the terminal now: this page's WebSocket is <b id="state">opening</b>. It is closed after 10 seconds.</p>
<p>Or open <a href="slow">a slow answer</a> and press Ctrl-C within its 5 seconds: it still arrives.</p>
<script>
  const show = state => document.getElementById("state").textContent = state;
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/mydir/socket");
  socket.onopen = () => show("open");
  socket.onclose = () => show("closed");
</script>
"#;
