//! A proxy whose upstream is a proxy: the proxy in which a failure occurs reports it and makes its page.

use axum::{
    BoxError, Router,
    body::Body,
    extract::Request,
    http::StatusCode,
    response::{Html, Response},
};
use tower::{Layer, ServiceExt};
use tower_reverse_proxy::{Error, ErrorKind, Failure, RemoteUserLayer, ReverseProxy, ReverseProxyLayer};

use crate::support::{front, get, mirror, refusing, within};

#[tokio::test]
async fn a_failure_of_a_nested_proxy_keeps_its_page_and_status() {
    let inner = ReverseProxyLayer::new(refusing().await)
        .on_error(|_| (StatusCode::IM_A_TEAPOT, [("x-inner", "1")], Html("inner")))
        .into_service();
    let outer = ReverseProxyLayer::with_upstream(inner).on_error(|_| (StatusCode::BAD_GATEWAY, Html("outer")));
    let answer = get(front(Router::new().layer(outer.clone())).await, "/x", "").await;
    assert_eq!((answer.status(), answer.field("x-inner"), &*answer.text()), (418, Some("1"), "inner"));
    // The layers around both proxies find the error.
    let request = Request::get("/x").header("host", "front.example").body(Body::empty()).unwrap();
    let Ok(response): Result<Response, std::convert::Infallible> = within(outer.into_service().oneshot(request)).await;
    assert_eq!(response.extensions().get::<Error>().unwrap().kind(), ErrorKind::Connect);
}

#[tokio::test]
async fn the_default_page_of_a_nested_proxy_is_kept() {
    let inner = ReverseProxy::new(refusing().await);
    let outer = ReverseProxyLayer::with_upstream(inner).on_error(|_| Html("outer"));
    let answer = get(front(Router::new().layer(outer)).await, "/x", "").await;
    assert_eq!((answer.status(), &*answer.text()), (502, "Bad Gateway"));
}

#[tokio::test]
async fn a_refusing_layer_gets_the_page_of_the_proxy_around_it() {
    let page = |name: &'static str| move |_: &Failure| (StatusCode::IM_A_TEAPOT, Html(name));
    let inner = ReverseProxyLayer::new(mirror().await).on_error(page("inner"));
    let within = inner.clone().upstream_layer(RemoteUserLayer::new().required(true)).into_service();
    let within = ReverseProxyLayer::with_upstream(within).on_error(page("outer"));
    let required = RemoteUserLayer::new().required(true);
    let between = ReverseProxyLayer::with_upstream(inner.into_service())
        .on_error(page("outer"))
        .map_upstream(|inner| required.layer(ServiceExt::<Request>::map_err(inner, BoxError::from)));
    for (app, text) in [(Router::new().layer(within), "inner"), (Router::new().layer(between), "outer")] {
        let answer = get(front(app).await, "/x", "").await;
        assert_eq!((answer.status(), &*answer.text()), (418, text));
    }
}
