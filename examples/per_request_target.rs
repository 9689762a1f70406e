//! A target per request: a handler with extractors looks it up, here in what stands for a database.
//!
//! ```sh
//! cargo run --example per_request_target
//! ```
#![allow(clippy::print_stdout)]

mod shared;

use std::{collections::HashMap, error::Error, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Path, Request, State},
    http::StatusCode,
    response::Response,
    routing::any,
};
use tower_reverse_proxy::{Backend, ReverseProxy, ReverseProxyLayer, Targets, targets::TargetService};

#[derive(Clone)]
struct App {
    /// Stands for a database: which tenant lives at which backend. A target must never come from the request itself,
    /// because clients could then reach every server that this one can reach (SSRF).
    tenants: Arc<HashMap<&'static str, Backend>>,
    proxy: ReverseProxy<TargetService>,
}

async fn tenant(
    State(app): State<App>,
    Path((tenant, _)): Path<(String, String)>,
    request: Request,
) -> Result<Response, StatusCode> {
    let backend = app.tenants.get(&*tenant).ok_or(StatusCode::NOT_FOUND)?;
    // The backend sees the whole path, /t/alice/x. A failure is a response, such as 502.
    Ok(app.proxy.forward_to(backend, request).await)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let alices = shared::start(shared::mirror("Alice's backend")).await?.parse()?;
    let bobs = shared::start(shared::mirror("Bob's backend")).await?.parse()?;
    let tenants = Arc::new(HashMap::from([("alice", alices), ("bob", bobs)]));
    // One pool per backend, made on first use, and gone when it's unused for five minutes.
    let proxy = ReverseProxyLayer::to(Targets::new()).into_service();
    let app = Router::new().route("/t/{tenant}/{*path}", any(tenant)).with_state(App { tenants, proxy });

    let listener = shared::listen().await?;
    println!("Try these at http://{}: /t/alice/x, /t/bob/x, /t/carol/x", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
