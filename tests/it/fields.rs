//! Single header fields of requests and responses, each as it arrives on the other side.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderValue, Request, header::AUTHORIZATION},
};
use http_body_util::{BodyExt, channel::Channel};
use tower_reverse_proxy::{Client, Error, ErrorKind, ReverseProxy, ReverseProxyLayer};

use crate::support::{Message, answering, ask, backend, front, get, http2, mirror, recording, within};

fn layer(origin: &str) -> ReverseProxyLayer {
    ReverseProxyLayer::new(origin).prefix("/mydir")
}

/// Sends a request with these fields over HTTP/2, and returns the request that the mirror received.
async fn mirrored_over_http2(layer: ReverseProxyLayer, fields: &[(&'static str, &'static str)]) -> Message {
    let mut request = Request::get("http://front.example/mydir/x");
    for &(name, value) in fields {
        request = request.header(name, HeaderValue::from_static(value));
    }
    let mut sender = http2(front(Router::new().layer(layer)).await).await;
    let response = within(sender.send_request(request.body(Body::empty()).unwrap())).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = within(response.into_body().collect()).await.unwrap().to_bytes().to_vec();
    let head = "HTTP/1.1 200 OK\r\n\r\n".to_owned();
    Message { head, body, trailers: String::new(), complete: true }.mirrored()
}

#[tokio::test]
async fn hidden_cookies_are_not_forwarded() {
    let origin = mirror().await;
    let addr = front(Router::new().layer(layer(&origin).hide_cookies(["id", "__Host-sid"]))).await;
    for (fields, left) in [
        ("Cookie: a=1; id=secret; b=\"x\"\r\n", Some("a=1; b=\"x\"")),
        ("Cookie: id=secret\r\nCookie: a=1;b=2\r\n", Some("a=1;b=2")),
        ("Cookie: id=secret; __Host-sid=secret\r\n", None),
        ("Cookie: idx=1; ID=2\r\n", Some("idx=1; ID=2")),
        ("", None),
    ] {
        let mirrored = get(addr, "/mydir/x", fields).await.mirrored();
        assert_eq!(mirrored.field("cookie"), left);
        assert!(!mirrored.head.contains("secret"), "{}", mirrored.head);
    }
    let seen = get(front(Router::new().layer(layer(&origin))).await, "/mydir/x", "Cookie: id=1\r\n").await.mirrored();
    assert_eq!(seen.field("cookie"), Some("id=1"), "without the option no cookie is hidden");
}

#[tokio::test]
async fn hidden_cookies_are_removed_from_http2_cookie_crumbs() {
    let layer = layer(&mirror().await).hide_cookies(["id"]);
    let crumbs = [("cookie", "a=1"), ("cookie", "id=secret"), ("cookie", "b=2")];
    assert_eq!(mirrored_over_http2(layer.clone(), &crumbs).await.field("cookie"), Some("a=1; b=2"));
    assert_eq!(mirrored_over_http2(layer, &crumbs[1..2]).await.field("cookie"), None);
}

#[tokio::test]
async fn a_backend_cannot_set_a_hidden_cookie() {
    let origin = answering(
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: id=evil; Path=/\r\nSet-Cookie: =id=evil\r\n\
         Set-Cookie: ids=2\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let addr = front(Router::new().layer(layer(&origin).hide_cookies(["id"]))).await;
    assert_eq!(get(addr, "/mydir/x", "").await.all("set-cookie"), ["a=1; Path=/", "ids=2"]);
}

#[tokio::test]
#[should_panic(expected = "invalid cookie name \"id=1\": write the name only")]
async fn hide_cookies_takes_names_only() {
    let _ = layer("http://127.0.0.1:9").hide_cookies(["id=1"]);
}

#[tokio::test]
async fn whitespace_around_an_http2_value_does_not_hide_connection_based_credentials() {
    // Each response has the number of its connection.
    let connections = Arc::new(AtomicUsize::new(0));
    let origin = backend(move |mut wire| {
        let number = connections.fetch_add(1, Ordering::SeqCst);
        async move {
            while let Some(request) = wire.message().await {
                let head = request.head.lines().find(|line| line.starts_with("authorization")).unwrap_or_default();
                let body = format!("{number} {head}");
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
            }
        }
    })
    .await;
    let mut sender = http2(front(Router::new().layer(layer(&origin))).await).await;
    for (number, (sent, arrived)) in [
        (" Negotiate x", "Negotiate x"),
        ("\tNTLM x \t", "NTLM x"),
        ("Negotiate  x", "Negotiate  x"),
        (" Bearer x", "Bearer x"),
    ]
    .into_iter()
    .enumerate()
    {
        let request =
            Request::get("http://front.example/mydir/x").header(AUTHORIZATION, HeaderValue::from_static(sent));
        sender.ready().await.unwrap();
        let response = within(sender.send_request(request.body(Body::empty()).unwrap())).await.unwrap();
        let seen = within(response.into_body().collect()).await.unwrap().to_bytes();
        assert_eq!(seen, format!("{number} authorization: {arrived}"));
    }
}

#[tokio::test]
async fn equal_content_lengths_of_an_http2_client_are_merged() {
    let (origin, mut requests) = recording("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mut sender = http2(front(Router::new().layer(layer(&origin))).await).await;
    // Different lengths are refused by h2, which resets the stream.
    for lengths in [&["5", "5"][..], &["5", "5", "5"], &["5"]] {
        let (mut body, channel) = Channel::<Bytes>::new(1);
        let mut request = Request::post("http://front.example/mydir/x");
        for length in lengths {
            request = request.header("content-length", *length);
        }
        sender.ready().await.unwrap();
        let response = sender.send_request(request.body(Body::new(channel)).unwrap());
        let send = async {
            let _ = body.send_data(Bytes::from_static(b"hello")).await;
            drop(body);
        };
        assert_eq!(tokio::join!(response, send).0.unwrap().status(), 200, "{lengths:?}");
        let got = within(requests.recv()).await.unwrap();
        assert_eq!((got.field("content-length"), &*got.text()), (Some("5"), "hello"));
    }
}

#[tokio::test]
async fn an_invalid_content_length_is_its_own_kind_of_failure() {
    let layer = layer("http://127.0.0.1:9").on_error(|error| format!("{:?}", error.kind()));
    let request = Request::post("/mydir/x").header("host", "a").header("content-length", "1, 2").body(Body::from("1"));
    let response = tower::ServiceExt::oneshot(layer.into_service(), request.unwrap()).await.unwrap();
    assert_eq!(response.extensions().get::<Error>().map(Error::kind), Some(ErrorKind::InvalidContentLength));
}

#[tokio::test]
async fn absolute_form_still_requires_a_valid_host() {
    let addr = front(Router::new().layer(layer(&mirror().await))).await;
    for (version, host, status) in [
        ("1.1", "", 400),
        ("1.1", "Host:\r\n", 400),
        ("1.1", "Host: a b\r\n", 400),
        ("1.1", "Host: u@front.example\r\n", 400),
        ("1.1", "Host: front.example\r\nHost: front.example\r\n", 400),
        ("1.1", "Host: other.example\r\n", 200),
        ("1.0", "", 200),
        ("1.0", "Host: a b\r\n", 400),
    ] {
        let answer = ask(addr, format!("GET http://front.example/mydir/x HTTP/{version}\r\n{host}\r\n")).await;
        assert_eq!(answer.status(), status, "{version} {host:?}");
        if status == 200 {
            assert_eq!(answer.mirrored().field("host"), Some("front.example"));
        }
    }
}

#[tokio::test]
async fn alt_svc_of_the_backend_is_removed() {
    let origin = answering(
        "HTTP/1.1 200 OK\r\nAlt-Svc: h3=\":8443\"; ma=3600\r\nalt-svc: h2=\"backend:8000\"\r\n\
         Strict-Transport-Security: max-age=3600\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let answer = get(front(Router::new().layer(layer(&origin))).await, "/mydir/x", "").await;
    assert_eq!(answer.all("alt-svc"), [""; 0]);
    assert_eq!(answer.field("strict-transport-security"), Some("max-age=3600"));
}

#[tokio::test]
async fn ambiguously_encoded_paths_are_refused() {
    let origin = mirror().await;
    let direct = front(Router::new().layer(layer(&origin))).await;
    let nested = front(Router::new().nest_service("/mydir", ReverseProxy::new(origin))).await;
    for addr in [direct, nested] {
        for path in [
            "/mydir/%u002e%u002e/",
            "/mydir/..%00",
            "/mydir/%",
            "/mydir/%2",
            "/mydir/100%/x",
            "/mydir/%zz",
            "/mydir/a%00b",
        ] {
            assert_eq!(get(addr, path, "").await.status(), 400, "{path}");
        }
        for target in ["/mydir/%25%2f?%&%zz&%00&%u002e%", "/mydir/%C3%BC%0a"] {
            let line = format!("GET {target} HTTP/1.1");
            assert_eq!(get(addr, target, "").await.mirrored().start_line(), line);
        }
    }
}

#[cfg(feature = "http2")]
#[tokio::test]
async fn whitespace_around_values_of_an_http2_backend_is_removed() {
    // An HTTP/2 backend may send values that clients would refuse.
    let backend = Router::new().fallback(|headers: axum::http::HeaderMap| async move {
        let location = format!(" http://{}/mydir/y\t", headers["x-authority"].to_str().unwrap());
        let value = HeaderValue::from_str(&location).unwrap();
        [("location", value), ("x-blank", HeaderValue::from_static("\t a  b "))]
    });
    let authority = front(backend).await;
    let client = Client::builder(format!("http://{authority}")).http2(true);
    let addr = front(Router::new().layer(ReverseProxyLayer::new(client).prefix("/mydir"))).await;
    let request = Request::get("http://front.example/mydir/x").header("x-authority", authority.to_string());
    let response = within(http2(addr).await.send_request(request.body(Body::empty()).unwrap())).await.unwrap();
    assert_eq!(response.headers()["location"], "/mydir/y");
    assert_eq!(response.headers()["x-blank"], "a  b");
}
