//! tower-http's `AsyncRequireAuthorizationLayer`, which refuses requests, or passes them with what it inserts.

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Response, StatusCode, header::AUTHORIZATION},
    response::IntoResponse,
};
use tower::ServiceBuilder;
use tower_http::auth::AsyncRequireAuthorizationLayer;
use tower_reverse_proxy::{BasicAuthLayer, RemoteUserLayer, ReverseProxyLayer, client::ResponseBody};

use crate::{
    forwarded,
    support::{front, get, mirror},
};

#[derive(Clone)]
struct User(&'static str);

/// Inserts the user that a token belongs to.
async fn authorize(mut request: Request) -> Option<Request> {
    tokio::task::yield_now().await;
    request.headers().get(AUTHORIZATION).filter(|value| *value == "Bearer alices")?;
    request.extensions_mut().insert(User("alice"));
    Some(request)
}

fn layer() -> RemoteUserLayer {
    RemoteUserLayer::from_extension(|user: &User| Some(user.0)).required(true)
}

#[tokio::test]
async fn the_inserted_user_is_sent() {
    async fn or_401(request: Request) -> Result<Request, Response<Body>> {
        authorize(request).await.ok_or_else(|| StatusCode::UNAUTHORIZED.into_response())
    }
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/legacy").upstream_layer(layer());
    // In the order in which they see a request.
    let layers = ServiceBuilder::new().layer(AsyncRequireAuthorizationLayer::new(or_401)).layer(proxy);
    let addr = front(Router::new().layer(layers)).await;
    let mirrored = forwarded(addr, "Authorization: Bearer alices\r\n").await;
    assert_eq!(mirrored.field("remote-user"), Some("alice"));
    assert_eq!(get(addr, "/legacy/x", "Authorization: Bearer bobs\r\n").await.status(), 401);
}

#[tokio::test]
async fn all_of_it_stacks_on_the_upstream_side() {
    async fn or_401(request: Request) -> Result<Request, Response<ResponseBody>> {
        authorize(request).await.ok_or_else(|| {
            let mut response = Response::new(ResponseBody::default());
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            response
        })
    }
    let layers = ServiceBuilder::new()
        .layer(AsyncRequireAuthorizationLayer::new(or_401))
        .layer(layer())
        .layer(BasicAuthLayer::remote_user("s3cret"));
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/legacy").upstream_layer(layers);
    let addr = front(Router::new().layer(proxy)).await;
    let mirrored = forwarded(addr, "Authorization: Bearer alices\r\n").await;
    assert_eq!(mirrored.field("remote-user"), Some("alice"));
    // `alice:s3cret`
    assert_eq!(mirrored.field("authorization"), Some("Basic YWxpY2U6czNjcmV0"));
    assert_eq!(get(addr, "/legacy/x", "Authorization: Bearer bobs\r\n").await.status(), 401);
}
