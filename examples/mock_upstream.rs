//! Tests of one's own app, with a mock in the backend's place.
//!
//! ```sh
//! cargo test --example mock_upstream
//! cargo run --example mock_upstream -- http://127.0.0.1:8000
//! ```
//!
//! In an app of your own: `cargo add tower --features util --dev`.
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, net::SocketAddr};

use axum::{Router, routing::get};
use tower_reverse_proxy::{BoxUpstream, ReverseProxyLayer};

/// The app under test. It takes the proxy, so that a test can give it one with a mock. `boxed` makes one type of both.
fn app(legacy: ReverseProxyLayer<BoxUpstream>) -> Router {
    Router::new().route("/", get(|| async { "home\n" })).layer(legacy.prefix("/legacy"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let legacy = ReverseProxyLayer::try_new(shared::backend_url().await?)?.boxed();
    let listener = shared::listen().await?;
    println!("Try http://{0}/ and http://{0}/legacy/x", listener.local_addr()?);
    axum::serve(listener, app(legacy).into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::{
        body::{Body, to_bytes},
        http::{HeaderMap, Request, Response, StatusCode},
    };
    use tower::{ServiceExt, service_fn};
    use tower_reverse_proxy::ErrorKind;

    use super::*;

    async fn get_legacy(upstream: BoxUpstream) -> Response<Body> {
        let request = Request::get("/legacy/x").header("host", "front.example").header("remote-user", "root");
        let legacy = ReverseProxyLayer::with_upstream(upstream);
        app(legacy).oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn a_router_is_a_mock() {
        // Its handlers assert what the backend would get.
        let mock = Router::new().route(
            "/legacy/x",
            get(|headers: HeaderMap| async move {
                assert_eq!(headers["x-forwarded-host"], "front.example");
                assert!(!headers.contains_key("remote-user"));
                "the legacy page"
            }),
        );
        let response = get_legacy(BoxUpstream::new(mock)).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(to_bytes(response.into_body(), 100).await.unwrap(), "the legacy page");
    }

    #[tokio::test]
    async fn a_failing_backend_is_a_502() {
        let mock = service_fn(|_: Request<Body>| async { Err::<Response<Body>, _>(io::Error::other("refused")) });
        let response = get_legacy(BoxUpstream::new(mock)).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        let error = response.extensions().get::<tower_reverse_proxy::Error>().unwrap();
        assert_eq!(error.kind(), ErrorKind::Upstream);
    }
}
