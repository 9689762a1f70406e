//! Ends without cutting a client off: requests finish, WebSockets get some time, then the process ends.
//!
//! ```sh
//! cargo run --example graceful_shutdown
//! ```
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, io, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::ws::{WebSocket, WebSocketUpgrade},
    response::Html,
    routing::get,
};
use tokio::time::sleep;
use tower_reverse_proxy::{ReverseProxyLayer, Tunnels};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // A server doesn't wait for WebSockets of HTTP/1.1 clients, and waits for those of HTTP/2 clients without a
    // limit. This handle does both: it waits, and ends them.
    let tunnels = Tunnels::new();
    let app = Router::new()
        .route("/", get(|| async { "home\n" }))
        .layer(ReverseProxyLayer::new(shared::start(backend()).await?).prefix("/mydir").tunnels(tunnels.clone()));

    let listener = shared::listen().await?;
    println!("Open http://{}/mydir/ and press Ctrl-C here.", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(interrupted(tunnels.clone(), stopped()?))
        .await?;
    println!("Requests have finished. Waiting for {} tunnels", tunnels.count());
    tunnels.wait().await;
    Ok(())
}

/// Returns on Ctrl-C or SIGTERM. From then on, the server accepts no connection and lets requests finish. Tunnels get 10
/// seconds.
async fn interrupted(tunnels: Tunnels, stopped: impl Future<Output = ()>) {
    stopped.await;
    tokio::spawn(async move {
        sleep(Duration::from_secs(10)).await;
        tunnels.shut_down();
    });
}

/// Completes on Ctrl-C, and on SIGTERM, which service managers and container runtimes send.
#[cfg(unix)]
fn stopped() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn stopped() -> io::Result<impl Future<Output = ()>> {
    Ok(async { drop(tokio::signal::ctrl_c().await) })
}

/// Makes a backend with something to interrupt.
fn backend() -> Router {
    let slow = async || {
        sleep(Duration::from_secs(5)).await;
        "finished\n"
    };
    let silent = async |mut socket: WebSocket| while let Some(Ok(_)) = socket.recv().await {};
    Router::new()
        .route("/mydir/", get(async || Html(PAGE)))
        .route("/mydir/slow", get(slow))
        .route("/mydir/socket", get(async move |upgrade: WebSocketUpgrade| upgrade.on_upgrade(silent)))
}

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<title>Graceful shutdown</title>
<h1>Graceful shutdown</h1>
<p>Press Ctrl-C in the terminal now: this page's WebSocket is <b id="state">opening</b>. It is closed after 10 seconds,
without a close frame (code 1006).</p>
<p>Or open <a href="slow">a slow response</a> and press Ctrl-C within its 5 seconds: it still arrives.</p>
<script>
  const show = state => document.getElementById("state").textContent = state;
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/mydir/socket");
  socket.onopen = () => show("open");
  socket.onclose = () => show("closed");
</script>
"#;
