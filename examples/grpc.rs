//! gRPC through the proxy, HTTP/2 on both sides.
//!
//! ```sh
//! cargo run --example grpc                           # with a small server of its own
//! cargo run --example grpc -- http://127.0.0.1:50051 # with yours
//! ```
//!
//! Then, for example, `grpc_health_probe -addr 127.0.0.1:3000`, or without any tool of gRPC's:
//!
//! ```sh
//! printf '\0\0\0\0\0' | curl -sv --http2-prior-knowledge -H 'content-type: application/grpc' -H 'te: trailers' \
//!     --data-binary @- http://127.0.0.1:3000/grpc.health.v1.Health/Check | xxd
//! ```
//!
//! In an app of your own, `cargo add axum --features http2` is what makes `axum::serve` speak HTTP/2.
//!
//! - **Streams and trailers** pass as they come, both ways. A client that cancels resets the call at the backend, and
//!   a reset by the backend never looks like an end.
//! - **Deadlines**: `grpc-timeout` passes to the server, which keeps it; so does the client, which cancels. The
//!   proxy's own timeouts aren't deadlines: a long call needs them to be off, as below.
//! - **Failures** of the proxy are responses of trailers only: `grpc-status` 14 (UNAVAILABLE) when the backend is down,
//!   4 (DEADLINE_EXCEEDED) when it is too late. `.on_error(..)` isn't called for them.
//! - **Metadata** whose names have an underscore are removed, as from every request: `.keep_underscores(true)` passes
//!   them.
//! - **gRPC-Web** is another protocol, and passes like any request; it isn't translated.
#![allow(clippy::print_stdout)]

mod shared;

use std::{convert::Infallible, env, error::Error, net::SocketAddr};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::{BodyExt, Full};
use tower_reverse_proxy::{Client, ReverseProxyLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend = match env::args().nth(1) {
        Some(url) => url,
        None => shared::start(health_service()).await?,
    };
    // Prior knowledge for `http://`; an `https://` backend is asked in the handshake.
    let grpc = ReverseProxyLayer::try_new(Client::builder(backend).http2(true))?
        // A server may be silent until its first message, and a stream between two of them, for as long as the client
        // likes. The defaults are 60 seconds and 5 minutes.
        .header_timeout(None)
        .body_idle_timeout(None);

    // Every service is the backend's: `/package.Service/Method` has no route here. For one service alone, it would be
    // `.layer(grpc.prefix("/package.Service"))`.
    let app = Router::new()
        .route("/", get(|| async { "the app's own page; the rest is gRPC\n" }))
        .fallback_service(grpc.into_service());

    let listener = shared::listen().await?;
    println!("gRPC at http://{}, without TLS", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// Makes a server that has gRPC's health check, and nothing else.
fn health_service() -> Router {
    Router::new().route("/grpc.health.v1.Health/Check", post(check)).fallback(unimplemented)
}

/// `status: SERVING`, not compressed, two bytes long; then `OK`.
async fn check(_request: Bytes) -> Response {
    let message = Full::new(Bytes::from_static(b"\0\0\0\0\x02\x08\x01"));
    let status = async { Some(Ok::<_, Infallible>(fields("grpc-status", "0"))) };
    (fields("content-type", "application/grpc"), Body::new(message.with_trailers(status))).into_response()
}

async fn unimplemented() -> impl IntoResponse {
    let mut trailers_only = fields("content-type", "application/grpc");
    trailers_only.extend(fields("grpc-status", "12"));
    trailers_only
}

fn fields(name: &'static str, value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
}
