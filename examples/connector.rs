//! A way to the backend of one's own: a connector that finds addresses itself. It could as well open a tunnel, go
//! through a SOCKS proxy, or send a PROXY protocol header.
//!
//! ```sh
//! cargo run --example connector
//! ```
//!
//! In an app of your own: `cargo add tower --features util` and `cargo add hyper-util --features tokio`.
#![allow(clippy::print_stdout)]

mod shared;

use std::{collections::HashMap, error::Error, io, net::SocketAddr, sync::Arc};

use axum::{Router, http::Uri, routing::get};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::service_fn;
use tower_reverse_proxy::{Client, ReverseProxyLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Stands for a registry of services.
    let address = shared::start(shared::mirror("the billing service")).await?.replace("http://", "");
    let registry = Arc::new(HashMap::from([("billing.internal".to_owned(), address)]));

    // Called once per connection, within the `connect_timeout`, with the backend's origin.
    let connector = service_fn(move |origin: Uri| {
        let address = registry.get(origin.host().unwrap_or_default()).cloned();
        async move {
            let address = address.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "not in the registry"))?;
            println!("connecting to {origin} at {address}");
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            io::Result::Ok(TokioIo::new(stream))
        }
    });
    let client = Client::builder("http://billing.internal").connector(connector);

    let app = Router::new()
        .route("/", get(|| async { "home\n" }))
        .layer(ReverseProxyLayer::try_new(client)?.prefix("/billing"));
    let listener = shared::listen().await?;
    println!("Try twice, and see one connection: curl http://{}/billing/", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
