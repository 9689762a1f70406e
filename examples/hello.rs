//! Two servers and one `.layer`.
#![allow(clippy::print_stdout)]

use std::{io, net::SocketAddr};

use axum::{Router, http::Uri, routing::get};
use tokio::net::TcpListener;
use tower_reverse_proxy::ReverseProxyLayer;

#[tokio::main]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let backend_url = format!("http://{}", listener.local_addr()?);
    let backend = Router::new().fallback(|uri: Uri| async move { format!("the backend: {uri}\n") });
    tokio::spawn(async move { axum::serve(listener, backend).await });

    let app = Router::new()
        .route("/", get(|| async { "the app: home\n" }))
        .layer(ReverseProxyLayer::new(backend_url).prefix("/mydir"));
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("Try http://127.0.0.1:3000/ and http://127.0.0.1:3000/mydir/page?x");
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await
}
