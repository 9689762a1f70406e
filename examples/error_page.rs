//! An error page of the app's own, in HTML or JSON, with something of the app's state in it.
//!
//! ```sh
//! cargo run --example error_page
//! ```
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::header::{ACCEPT, CONTENT_TYPE},
    response::{Html, IntoResponse, Response},
};
use tower_reverse_proxy::{Failure, ReverseProxyLayer};

/// The app's state; a real one has more in it, such as its templates.
struct Site {
    contact: &'static str,
}

/// Makes the page of a failure. The cause is for the log, not for visitors: it may hold addresses of the backend.
fn page(failure: &Failure, site: &Site) -> Response {
    let status = failure.status();
    let accept = failure.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let page = if accept.contains("application/json") {
        let json = format!("{{\"error\":{},\"contact\":\"{}\"}}\n", status.as_u16(), site.contact);
        ([(CONTENT_TYPE, "application/json")], json).into_response()
    } else {
        Html(format!("<h1>Back in a minute</h1><p>Status {status}. Questions: {}\n", site.contact)).into_response()
    };
    (status, page).into_response()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let site = Arc::new(Site { contact: "help@front.example" });

    // Nothing listens on port 9: every request fails. The closure owns what the page needs.
    let down = ReverseProxyLayer::new("http://127.0.0.1:9").prefix("/down").on_error({
        let site = site.clone();
        move |failure| page(failure, &site)
    });

    let listener = shared::listen().await?;
    let url = format!("http://{}/down/", listener.local_addr()?);
    println!("Try: curl {url}\nand: curl -H 'Accept: application/json' {url}");
    let app = Router::new().layer(down).with_state(site);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
