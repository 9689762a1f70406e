//! Typed header fields, as of axum-extra's `TypedHeader`: Basic credentials in the request's head.

use axum::{Router, http::request::Parts};
use axum_extra::headers::{Authorization, HeaderMapExt, authorization::Basic};
use tower::ServiceBuilder;
use tower_reverse_proxy::{BasicAuthLayer, RemoteUserLayer, ReverseProxyLayer};

use crate::{
    forwarded,
    support::{front, get, mirror},
};

/// `alice:wonderland` and `bob:s3cret`.
const ALICE: &str = "Authorization: Basic YWxpY2U6d29uZGVybGFuZA==\r\n";
const BOB: &str = "Authorization: Basic Ym9iOnMzY3JldA==\r\n";

fn layer() -> RemoteUserLayer {
    RemoteUserLayer::from_parts(|parts: &Parts| {
        let Authorization(basic) = parts.headers.typed_get::<Authorization<Basic>>()?;
        (basic.password() == "wonderland").then(|| basic.username().to_owned())
    })
}

#[tokio::test]
async fn the_name_of_verified_credentials_is_sent_and_the_credentials_stay() {
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/legacy").upstream_layer(layer());
    let addr = front(Router::new().layer(proxy)).await;
    for (fields, user) in [(ALICE, Some("alice")), (BOB, None), ("", None), ("Authorization: Basic !\r\n", None)] {
        assert_eq!(forwarded(addr, fields).await.field("remote-user"), user, "{fields}");
    }
}

#[tokio::test]
async fn the_credentials_are_asked_for_and_replaced() {
    let layers = ServiceBuilder::new()
        .layer(layer().required(true).challenge("Basic realm=\"front\", charset=\"UTF-8\""))
        // Sees the request after the layer that reads the client's credentials.
        .layer(BasicAuthLayer::new("front", "s3cret"));
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/legacy").upstream_layer(layers);
    let addr = front(Router::new().layer(proxy)).await;
    let mirrored = forwarded(addr, ALICE).await;
    assert_eq!(mirrored.field("remote-user"), Some("alice"));
    // `front:s3cret`
    assert_eq!(mirrored.field("authorization"), Some("Basic ZnJvbnQ6czNjcmV0"));
    let answer = get(addr, "/legacy/x", BOB).await;
    assert_eq!(answer.status(), 401);
    assert_eq!(answer.field("www-authenticate"), Some("Basic realm=\"front\", charset=\"UTF-8\""));
}
