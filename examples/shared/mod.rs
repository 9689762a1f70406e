//! What the examples share, so that each of them shows only its own subject: a small backend and a listener.
#![allow(dead_code)] // no example needs all of it

use std::{env, io};

use axum::{
    Router,
    http::{HeaderMap, Method, Uri},
};
use tokio::net::TcpListener;

/// Returns the backend's URL: the first argument, or that of a small backend in this process, which shows what it gets.
pub(crate) async fn backend_url() -> io::Result<String> {
    match env::args().nth(1) {
        Some(url) => Ok(url),
        None => start(mirror("the backend")).await,
    }
}

/// Serves `app` on a free port of this machine, and returns its origin.
pub(crate) async fn start(app: Router) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(origin)
}

/// Makes a backend that answers every request with its name, the request line and the header fields.
pub(crate) fn mirror(name: &'static str) -> Router {
    Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap| async move {
        let field =
            |(name, value): (_, &axum::http::HeaderValue)| format!("  {name}: {}\n", value.to_str().unwrap_or("…"));
        format!("{name} gets {method} {uri}\n{}", headers.iter().map(field).collect::<String>())
    })
}

/// Listens on port 3000, or on a free port if that one is taken.
pub(crate) async fn listen() -> io::Result<TcpListener> {
    match TcpListener::bind("127.0.0.1:3000").await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind("127.0.0.1:0").await,
    }
}
