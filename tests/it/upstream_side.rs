//! Upstream layers: their order, their use around other clients, and their debug output.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::Body,
    extract::Request,
    http::{HeaderValue, Response, StatusCode},
};
use http_body_util::BodyExt;
use hyper_util::{client::legacy, rt::TokioExecutor};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::MapRequestLayer};
use tower_http::timeout::TimeoutLayer as StatusTimeoutLayer;
use tower_reverse_proxy::{
    Backend, BasicAuthLayer, Error, ErrorKind, RemoteUser, RemoteUserLayer, ReverseProxyLayer, TraceRedirectLayer,
    Upstream,
};

use crate::support::{front, get, mirror, within};

/// A layer that adds its name to `X-Seen`.
fn seen_by(name: &'static str) -> MapRequestLayer<impl Fn(Request) -> Request + Clone> {
    MapRequestLayer::new(move |mut request: Request| {
        request.headers_mut().append("x-seen", HeaderValue::from_static(name));
        request
    })
}

#[tokio::test]
async fn the_layer_that_is_added_last_sees_the_request_first() {
    let origin = mirror().await;
    let several = ServiceBuilder::new().layer(seen_by("2")).layer(seen_by("3"));
    let to_backend = ReverseProxyLayer::new(&origin).upstream_layer(several.clone()).upstream_layer(seen_by("1"));
    let client = legacy::Client::builder(TokioExecutor::new()).build_http::<Body>();
    let upstream = Upstream::with_client(origin.parse().unwrap(), client);
    let to_service =
        ReverseProxyLayer::with_upstream(upstream).upstream_layer(several.clone()).upstream_layer(seen_by("1"));
    let layered = ReverseProxyLayer::with_upstream(Upstream::new(&origin).layer(several).layer(seen_by("1")));
    for app in [Router::new().layer(to_backend), Router::new().layer(to_service), Router::new().layer(layered)] {
        let mirrored = get(front(app).await, "/x", "X-Seen: client\r\n").await.mirrored();
        assert_eq!(mirrored.all("x-seen"), ["client", "1", "2", "3"]);
    }
}

#[tokio::test]
async fn an_upstream_layer_sees_the_request_as_sent_to_the_backend() {
    let seen = Arc::new(Mutex::new(None));
    let look = {
        let seen = seen.clone();
        MapRequestLayer::new(move |request: Request| {
            *seen.lock().unwrap() = Some((request.uri().to_string(), request.headers().clone()));
            request
        })
    };
    let origin = mirror().await;
    let proxy = ReverseProxyLayer::new(&origin).prefix("/mydir").strip_prefix().upstream_layer(look);
    let fields = "Connection: x-hop\r\nX-Hop: 1\r\nRemote_User: admin\r\nForwarded: for=6.6.6.6\r\n";
    get(front(Router::new().layer(proxy)).await, "/mydir/x?y", fields).await;
    let (uri, headers) = seen.lock().unwrap().take().unwrap();
    assert_eq!(uri, format!("{origin}/x?y"));
    let mut names: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["host", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-prefix"]);
}

#[tokio::test]
async fn the_crates_layers_work_around_another_client() {
    let origin = mirror().await;
    let mut service = ServiceBuilder::new()
        .layer(RemoteUserLayer::new())
        .layer(BasicAuthLayer::remote_user("s3cret"))
        .layer(TraceRedirectLayer::new())
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build_http::<Body>());
    let request = Request::get(format!("{origin}/x"))
        .header("remote_user", "admin")
        .header("authorization", "Bearer x")
        .extension(RemoteUser::from("alice"))
        .body(Body::empty())
        .unwrap();
    let body = service.ready().await.unwrap().call(request).await.unwrap().into_body();
    let seen = String::from_utf8(within(body.collect()).await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(seen.contains("\r\nremote-user: alice\r\n"), "{seen}");
    assert!(seen.contains("\r\nauthorization: Basic YWxpY2U6czNjcmV0\r\n"), "{seen}");
    assert!(!seen.contains("admin") && !seen.contains("Bearer"), "{seen}");

    let request = Request::get(format!("{origin}/x")).extension(RemoteUser::from("a\nb")).body(Body::empty()).unwrap();
    let refused = service.ready().await.unwrap().call(request).await.unwrap_err().downcast::<Error>().unwrap();
    assert_eq!((refused.kind(), refused.status()), (ErrorKind::UnrepresentableUser, StatusCode::FORBIDDEN));
}

#[tokio::test]
async fn the_crates_layers_work_around_any_service_and_any_body() {
    let service = ServiceBuilder::new()
        .layer(RemoteUserLayer::from_extension(|name: &&'static str| Some(*name)))
        .layer(BasicAuthLayer::remote_user("s3cret"))
        .layer(TraceRedirectLayer::new())
        .map_err(BoxError::from)
        .service_fn(|request: axum::http::Request<()>| async move {
            let response = Response::builder().status(307).header("location", "/elsewhere");
            Ok::<_, Infallible>(response.body(request.into_parts().0).unwrap())
        });
    let request = axum::http::Request::get("/x").extension("alice").body(()).unwrap();
    let seen = within(service.oneshot(request)).await.unwrap().into_body();
    assert_eq!(seen.headers["remote-user"], "alice");
    assert_eq!(seen.headers["authorization"], "Basic YWxpY2U6czNjcmV0");
    assert!(seen.headers["authorization"].is_sensitive());
    assert_eq!(seen.extensions.get(), Some(&RemoteUser::from("alice")), "inner layers find the user");
}

#[test]
fn debug_output_shows_no_secrets() {
    fn shown(value: &impl fmt::Debug) -> String {
        format!("{value:?} {value:#?}")
    }
    let backend: Backend = "http://127.0.0.1:8000".parse().unwrap();
    let fixed = BasicAuthLayer::new("service", "s3cret");
    let user = BasicAuthLayer::remote_user("s3cret");
    let proxy = ReverseProxyLayer::new(backend.clone())
        .upstream_layer(RemoteUserLayer::from_extension(|_: &()| Some("x")))
        .upstream_layer(fixed.clone())
        .upstream_layer(user.clone())
        .upstream_layer(TraceRedirectLayer::new());
    let upstream = Upstream::with_client(backend, fixed.layer(user.layer(())));
    let userinfo = "http://service:s3cret@127.0.0.1:8000".parse::<Backend>().unwrap_err();
    for text in [
        shown(&fixed),
        shown(&user),
        shown(&fixed.layer(())),
        shown(&proxy),
        shown(&proxy.layer(())),
        shown(&proxy.clone().into_service()),
        shown(&upstream),
        shown(&ReverseProxyLayer::with_upstream(Upstream::new("http://127.0.0.1:8000").layer(fixed.clone()))),
        shown(&userinfo),
        userinfo.to_string(),
    ] {
        // In plain text, and encoded as in Basic: `service:s3cret`.
        assert!(!text.contains("s3cret") && !text.contains("c2VydmljZTpzM2NyZXQ"), "{text}");
    }
}

#[tokio::test]
async fn any_service_can_be_an_upstream() {
    let upstream = service_fn(|request: Request| async move {
        let seen = format!("{} {} {:?}", request.method(), request.uri(), request.headers()["host"]);
        Ok::<_, Infallible>(Response::new(Body::from(seen)))
    });
    let proxy = ReverseProxyLayer::with_upstream(upstream).prefix("/mydir").strip_prefix();
    let answer = get(front(Router::new().layer(proxy)).await, "/mydir/x?y", "").await;
    assert_eq!(answer.text(), "GET /x?y \"front.example\"");
}

#[tokio::test]
async fn a_layer_that_responds_itself_fits_around_the_client() {
    let slow = Router::new().fallback(|| async { std::future::pending::<()>().await });
    let timeout = StatusTimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(50));
    let proxy = ReverseProxyLayer::new(format!("http://{}", front(slow).await)).upstream_layer(timeout);
    assert_eq!(get(front(Router::new().layer(proxy)).await, "/x", "").await.status(), 504);
}
