//! A backend behind a Unix socket.
//!
//! ```sh
//! cargo run --example unix_socket                       # with a small backend of its own
//! cargo run --example unix_socket -- unix:/run/app.sock # with yours
//! ```
//!
//! A Unix socket that only the front can open is a good way to keep others away from a backend that believes
//! `Remote-User`.
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, net::SocketAddr};

use axum::{Router, routing::get};
use tower_reverse_proxy::ReverseProxyLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let backend = match std::env::args().nth(1) {
        Some(url) => url,
        None => start(&directory.path().join("backend.sock"))?,
    };

    // The path of the socket has to be absolute. The backend gets the client's Host, as over TCP.
    let app = Router::new()
        .route("/", get(|| async { "home\n" }))
        .layer(ReverseProxyLayer::try_new(&backend)?.prefix("/mydir"));

    let listener = shared::listen().await?;
    println!("{backend} is at http://{}/mydir/", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

#[cfg(unix)]
fn start(path: &std::path::Path) -> Result<String, Box<dyn Error>> {
    let listener = tokio::net::UnixListener::bind(path)?;
    tokio::spawn(async move { axum::serve(listener, shared::mirror("the backend")).await });
    Ok(format!("unix:{}", path.display()))
}

#[cfg(not(unix))]
fn start(_: &std::path::Path) -> Result<String, Box<dyn Error>> {
    Err("this system has no Unix sockets".into())
}
