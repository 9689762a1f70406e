//! A target per request: a handler with extractors looks it up, here in what stands for a database.
//!
//! ```sh
//! cargo run --example per_request_target
//! ```
//!
//! In an app of your own: `cargo add tower --features util`.
#![allow(clippy::print_stdout)]

mod shared;

use std::{
    collections::HashMap,
    error::Error,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use axum::{
    Router,
    extract::{Path, Request, State},
    http::StatusCode,
    response::Response,
    routing::any,
};
use tower::ServiceExt;
use tower_reverse_proxy::{InvalidClient, ReverseProxy};

#[derive(Clone)]
struct App {
    /// Stands for a database: which tenant lives at which backend. A target must never come from the request itself,
    /// because clients could then reach every server that this one can reach (SSRF).
    tenants: Arc<HashMap<&'static str, String>>,
    /// One proxy for each target, because a proxy owns its pool of connections: one that is made for each request would
    /// connect for each request.
    proxies: Arc<RwLock<HashMap<String, ReverseProxy>>>,
}

impl App {
    fn proxy(&self, target: &str) -> Result<ReverseProxy, InvalidClient> {
        let known = self.proxies.read().unwrap_or_else(PoisonError::into_inner).get(target).cloned();
        if let Some(proxy) = known {
            return Ok(proxy);
        }
        let proxy = ReverseProxy::try_new(target)?;
        let mut proxies = self.proxies.write().unwrap_or_else(PoisonError::into_inner);
        // Another request may have been faster: then its proxy is used, so that there is one pool.
        Ok(proxies.entry(target.to_owned()).or_insert(proxy).clone())
    }
}

async fn tenant(
    State(app): State<App>,
    Path((tenant, _)): Path<(String, String)>,
    request: Request,
) -> Result<Response, StatusCode> {
    let target = app.tenants.get(&*tenant).ok_or(StatusCode::NOT_FOUND)?;
    let proxy = app.proxy(target).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    // The backend sees the whole path, /t/alice/x. It can't fail: a failure is a response, such as 502.
    let Ok(response) = proxy.oneshot(request).await;
    Ok(response)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let alices = shared::start(shared::mirror("Alice's backend")).await?;
    let bobs = shared::start(shared::mirror("Bob's backend")).await?;
    let tenants = Arc::new(HashMap::from([("alice", alices), ("bob", bobs)]));
    let app =
        Router::new().route("/t/{tenant}/{*path}", any(tenant)).with_state(App { tenants, proxies: Arc::default() });

    let listener = shared::listen().await?;
    println!("Try these at http://{}: /t/alice/x, /t/bob/x, /t/carol/x", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
