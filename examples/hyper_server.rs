//! The proxy as the service of a plain hyper server, without axum's router.
//!
//! ```sh
//! cargo run --example hyper_server -- http://127.0.0.1:8000
//! ```
//!
//! In an app of your own: `cargo add tower --features util`, `cargo add hyper --features server` and
//! `cargo add hyper-util --features server-auto,tokio`.
#![allow(clippy::print_stdout)]

mod shared;

use std::error::Error;

use axum::http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tower::ServiceExt;
use tower_reverse_proxy::{ClientAddr, ReverseProxy};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let proxy = ReverseProxy::try_new(shared::backend_url().await?)?;

    let listener = shared::listen().await?;
    println!("Try http://{}/any/thing", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept().await?;
        let proxy = proxy.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            // What connect info is to `axum::serve`: the backend gets the address as X-Forwarded-For.
            request.extensions_mut().insert(ClientAddr::from(peer));
            proxy.clone().oneshot(request)
        });
        tokio::spawn(async move {
            let mut server = auto::Builder::new(TokioExecutor::new());
            // For the WebSockets of HTTP/2 clients (RFC 8441).
            server.http2().enable_connect_protocol();
            // `serve_connection` alone would answer WebSockets with 101 and then drop them.
            let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}
