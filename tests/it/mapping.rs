//! References and cookies of the backend, mapped to the front.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use axum::{Router, http::uri::Scheme};
use tower_reverse_proxy::{Forwarded, HostPolicy, ReverseProxy, ReverseProxyLayer};

use crate::support::{Message, answering, ask, backend, front, get, mirror};

/// `/mydir` belongs to the backend.
fn app(origin: &str) -> Router {
    Router::new().layer(layer(origin))
}

fn layer(origin: &str) -> ReverseProxyLayer {
    ReverseProxyLayer::new(origin).prefix("/mydir")
}

/// A backend that responds with the fields in the request's `X-Answer` lines, where `{origin}` stands for its own
/// origin.
async fn obliging() -> String {
    let listening = Arc::new(OnceLock::new());
    let known = listening.clone();
    let origin = backend(move |mut wire| {
        let origin: String = known.get().cloned().unwrap_or_default();
        async move {
            while let Some(request) = wire.message().await {
                let fields: String = request
                    .all("x-answer")
                    .iter()
                    .map(|field| format!("{}\r\n", field.replace("{origin}", &origin)))
                    .collect();
                wire.send(format!("HTTP/1.1 302 Found\r\n{fields}Content-Length: 0\r\n\r\n").as_bytes()).await;
            }
        }
    })
    .await;
    listening.set(origin.clone()).unwrap();
    origin
}

/// The value of a response field after mapping.
async fn answered(addr: SocketAddr, target: &str, name: &str, value: &str) -> String {
    let answer = get(addr, target, &format!("X-Answer: {name}: {value}\r\n")).await;
    answer.field(name).unwrap_or_else(|| panic!("{name}: {value}")).to_owned()
}

#[tokio::test]
async fn references_to_the_backend_become_references_to_the_front() {
    let origin = obliging().await;
    let addr = front(app(&origin)).await;
    let https = origin.replace("http:", "https:");
    let port = origin.rsplit(':').next().unwrap();
    for (reference, result) in [
        ("{origin}/mydir/y?z#f", "/mydir/y?z#f"),
        ("//{origin}/mydir/y".replace("{origin}", &origin["http://".len()..]).as_str(), "/mydir/y"),
        ("{origin}", "/"),
        ("{origin}?a", "/?a"),
        ("{origin}/outside", "/outside"),
        ("{origin}/a%2Fb;c//d?e=http://x", "/a%2Fb;c//d?e=http://x"),
        // The backend was addressed with the client's Host, too.
        ("http://front.example/mydir/y", "/mydir/y"),
        ("HTTP://FRONT.example:80/mydir/y", "/mydir/y"),
        // The result never refers to another host.
        ("{origin}//evil.example/x", "/.//evil.example/x"),
        ("{origin}/\\evil.example/x", "/./\\evil.example/x"),
        ("http://front.example//evil.example/x", "/.//evil.example/x"),
        // References to other hosts, and relative ones.
        ("/mydir/y", "/mydir/y"),
        ("y?z=1", "y?z=1"),
        ("?z", "?z"),
        ("http://other.example/mydir/y", "http://other.example/mydir/y"),
        ("https://front.example/mydir/y", "https://front.example/mydir/y"),
        ("http://front.example:81/mydir/y", "http://front.example:81/mydir/y"),
        (&format!("{https}/mydir/y"), &format!("{https}/mydir/y")),
        ("http://127.0.0.1/mydir/y", "http://127.0.0.1/mydir/y"),
        (&format!("http://localhost:{port}/mydir/y"), &format!("http://localhost:{port}/mydir/y")),
        (&format!("{origin}0/mydir/y"), &format!("{origin}0/mydir/y")),
        (&format!("{origin}.evil.example/y"), &format!("{origin}.evil.example/y")),
        (&format!("{origin}@evil.example/y"), &format!("{origin}@evil.example/y")),
        (&format!("{origin}\\@evil.example/y"), &format!("{origin}\\@evil.example/y")),
        ("http://u:p@front.example/y", "http://u:p@front.example/y"),
        ("http://[::1/%zz", "http://[::1/%zz"),
    ] {
        for name in ["Location", "Content-Location"] {
            assert_eq!(answered(addr, "/mydir/x", name, reference).await, result, "{name}: {reference}");
        }
        if !reference.contains(['\'', '"', ' ']) {
            let refreshed = answered(addr, "/mydir/x", "Refresh", &format!("5; url={reference}")).await;
            assert_eq!(refreshed, format!("5; url={result}"));
        }
    }
}

#[tokio::test]
async fn references_are_mapped_by_the_host_sent_to_the_backend() {
    let origin = obliging().await;
    let own = front(Router::new().layer(layer(&origin).map_upstream(|up| up.host(HostPolicy::Backend)))).await;
    let fixed = "virtual.example";
    let fixed = front(Router::new().layer(layer(&origin).map_upstream(|up| up.host(fixed)))).await;
    for (addr, reference, result) in [
        (own, "{origin}/mydir/y", "/mydir/y"),
        (own, "http://front.example/mydir/y", "http://front.example/mydir/y"),
        (fixed, "{origin}/mydir/y", "/mydir/y"),
        (fixed, "http://virtual.example/mydir/y", "/mydir/y"),
        (fixed, "http://front.example/mydir/y", "http://front.example/mydir/y"),
    ] {
        assert_eq!(answered(addr, "/mydir/x", "Location", reference).await, result, "{reference}");
    }
}

#[tokio::test]
async fn a_location_of_any_status_is_mapped() {
    let origin =
        answering("HTTP/1.1 201 Created\r\nLocation: http://front.example/mydir/1\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(get(front(app(&origin)).await, "/mydir/x", "").await.field("location"), Some("/mydir/1"));
}

#[tokio::test]
async fn map_location_can_be_turned_off() {
    let origin = obliging().await;
    let addr = front(Router::new().layer(layer(&origin).map_upstream(|up| up.map_location(false)))).await;
    let location = answered(addr, "/mydir/x", "Location", "{origin}/mydir/y").await;
    assert_eq!(location, format!("{origin}/mydir/y"));
    assert_eq!(answered(addr, "/mydir/x", "Set-Cookie", "a=1; Domain=127.0.0.1").await, "a=1; Domain=127.0.0.1");
}

#[tokio::test]
async fn a_cookie_for_the_backend_domain_becomes_a_host_only_cookie() {
    let addr = front(app(&obliging().await)).await;
    for (cookie, result) in [
        ("a=1; Domain=127.0.0.1; Path=/; HttpOnly", "a=1; Path=/; HttpOnly"),
        ("a=1;domain=.127.0.0.1", "a=1"),
        ("a=1; Domain=front.example", "a=1; Domain=front.example"),
        ("a=1; Domain=127.0.0.1.evil.example", "a=1; Domain=127.0.0.1.evil.example"),
        ("a=\"Domain=127.0.0.1\"; Path=/other", "a=\"Domain=127.0.0.1\"; Path=/other"),
    ] {
        assert_eq!(answered(addr, "/mydir/x", "Set-Cookie", cookie).await, result);
    }
}

#[tokio::test]
async fn replaced_prefixes_are_mapped_in_both_directions() {
    let (origin, looking_glass) = (obliging().await, mirror().await);
    let stripped = |origin: &str| Router::new().layer(layer(origin).strip_prefix());
    let replaced = |origin: &str| Router::new().layer(layer(origin).replace_prefix("/old"));
    let nested = |origin: &str| {
        Router::new().nest_service("/mydir", ReverseProxyLayer::new(origin).strip_prefix().into_service())
    };
    type Make<'a> = (&'a str, Router, Router, &'a str, &'a str);
    let makes: [Make<'_>; 3] = [
        ("strip_prefix", stripped(&origin), stripped(&looking_glass), "/mydir", ""),
        ("replace_prefix", replaced(&origin), replaced(&looking_glass), "/mydir", "/old"),
        ("nest_service", nested(&origin), nested(&looking_glass), "/mydir", ""),
    ];
    for (kind, app, mirror, public, private) in makes {
        let (addr, mirror) = (front(app).await, front(mirror).await);
        for (target, arrives) in
            [("/x%2Fy?z", "/x%2Fy?z"), ("//x", "//x"), ("/", "/"), ("", if private.is_empty() { "/" } else { "" })]
        {
            let mirrored = get(mirror, &format!("{public}{target}"), "").await.mirrored();
            assert_eq!(mirrored.start_line(), format!("GET {private}{arrives} HTTP/1.1"), "{kind}");
            assert_eq!(mirrored.field("x-forwarded-prefix"), Some(public), "{kind}");
        }
        for (reference, result) in [
            (format!("{{origin}}{private}/y?z"), format!("{public}/y?z")),
            (format!("http://front.example{private}/y"), format!("{public}/y")),
            (format!("{private}/y"), format!("{public}/y")),
            (format!("{private}/"), format!("{public}/")),
            ("//evil.example/y".into(), "//evil.example/y".into()),
            ("http://other.example/y".into(), "http://other.example/y".into()),
            ("y".into(), "y".into()),
        ] {
            for name in ["Location", "Content-Location"] {
                assert_eq!(answered(addr, &format!("{public}/x"), name, &reference).await, result, "{kind}");
            }
            let refreshed = answered(addr, &format!("{public}/x"), "Refresh", &format!("0; url={reference}")).await;
            assert_eq!(refreshed, format!("0; url={result}"), "{kind}");
        }
        for (cookie, result) in [
            (format!("a=1; Path={private}/; HttpOnly"), format!("a=1; Path={public}; HttpOnly")),
            (format!("a=1; path={private}/sub"), format!("a=1; path={public}/sub")),
            ("a=1".into(), "a=1".into()),
            ("__Host-a=1; Path=/; Secure".into(), "__Host-a=1; Path=/; Secure".into()),
        ] {
            assert_eq!(answered(addr, &format!("{public}/x"), "Set-Cookie", &cookie).await, result, "{kind}");
        }
    }
}

#[tokio::test]
async fn a_reference_with_the_public_prefix_is_not_prefixed_twice() {
    let addr = front(Router::new().layer(layer(&obliging().await).strip_prefix())).await;
    for (reference, result) in [
        ("/mydir", "/mydir"),
        ("/mydir/", "/mydir/"),
        ("/mydir/y?z", "/mydir/y?z"),
        ("{origin}/mydir/y", "/mydir/y"),
        ("http://front.example/mydir/y", "/mydir/y"),
        // Another directory of the backend.
        ("/mydirs/y", "/mydir/mydirs/y"),
    ] {
        for name in ["Location", "Content-Location"] {
            assert_eq!(answered(addr, "/mydir/x", name, reference).await, result, "{name}: {reference}");
        }
    }
    for (cookie, result) in [
        ("a=1; Path=/mydir", "a=1; Path=/mydir"),
        ("a=1; Path=/mydir/y", "a=1; Path=/mydir/y"),
        ("a=1; Path=/mydirs", "a=1; Path=/mydir/mydirs"),
    ] {
        assert_eq!(answered(addr, "/mydir/x", "Set-Cookie", cookie).await, result);
    }
}

#[tokio::test]
async fn a_cookie_for_the_host_sent_to_the_backend_becomes_a_host_only_cookie() {
    let fixed = "app.example:8000";
    let addr = front(Router::new().layer(layer(&obliging().await).map_upstream(|up| up.host(fixed)))).await;
    for (cookie, result) in [
        ("a=1; Domain=app.example; Path=/mydir", "a=1; Path=/mydir"),
        ("a=1; Domain=.App.Example", "a=1"),
        ("a=1; Domain=127.0.0.1", "a=1"),
        ("a=1; Domain=example", "a=1; Domain=example"),
        ("a=1; Domain=other.example", "a=1; Domain=other.example"),
    ] {
        assert_eq!(answered(addr, "/mydir/x", "Set-Cookie", cookie).await, result);
    }
}

#[tokio::test]
async fn a_reference_outside_the_replaced_directory_is_unchanged() {
    let addr = front(Router::new().layer(layer(&obliging().await).replace_prefix("/old"))).await;
    for (reference, result) in [("{origin}/elsewhere", "/elsewhere"), ("/older/x", "/older/x"), ("/old", "/mydir")] {
        assert_eq!(answered(addr, "/mydir/x", "Location", reference).await, result);
    }
    assert_eq!(answered(addr, "/mydir/x", "Set-Cookie", "a=1; Path=/").await, "a=1; Path=/");
}

#[tokio::test]
async fn the_public_prefix_is_the_concatenation_of_all_nests() {
    let nested = |origin: &str| {
        let proxy = ReverseProxyLayer::new(origin).prefix("/sub").strip_prefix().into_service();
        Router::new().nest("/a", Router::new().nest_service("/mydir", proxy))
    };
    let mirrored = get(front(nested(&mirror().await)).await, "/a/mydir/sub/x?y", "").await.mirrored();
    assert_eq!(mirrored.start_line(), "GET /x?y HTTP/1.1");
    assert_eq!(mirrored.field("x-forwarded-prefix"), Some("/a/mydir/sub"));
    let addr = front(nested(&obliging().await)).await;
    assert_eq!(answered(addr, "/a/mydir/sub/x", "Location", "{origin}/y").await, "/a/mydir/sub/y");
    assert_eq!(answered(addr, "/a/mydir/sub/x", "Set-Cookie", "a=1; Path=/").await, "a=1; Path=/a/mydir/sub");
}

#[tokio::test]
async fn under_a_nest_the_backend_sees_the_full_path() {
    let addr = front(Router::new().nest_service("/mydir", ReverseProxy::new(mirror().await))).await;
    for target in ["/mydir", "/mydir/", "/mydir?a", "/mydir/x%2F//y?z", "/mydir/mydir/x"] {
        let mirrored = get(addr, target, "").await.mirrored();
        assert_eq!(mirrored.start_line(), format!("GET {target} HTTP/1.1"));
        assert_eq!(mirrored.field("x-forwarded-prefix"), None);
    }
    let addr = front(Router::new().nest_service("/mydir", ReverseProxy::new(obliging().await))).await;
    assert_eq!(answered(addr, "/mydir/x", "Location", "{origin}/mydir/y").await, "/mydir/y");
}

#[tokio::test]
async fn locations_with_the_forwarded_scheme_are_mapped() {
    let origin = obliging().await;
    let https = || layer(&origin).forwarded(Forwarded::new().proto(Scheme::HTTPS));
    let stripped = front(Router::new().layer(https().strip_prefix())).await;
    let rfc7239 = Forwarded::new().x_forwarded(false).rfc7239(true).proto("https");
    let rfc7239 = layer(&origin).forwarded(rfc7239).strip_prefix();
    let rfc7239 = front(Router::new().layer(rfc7239)).await;
    let replaced = front(Router::new().layer(https().replace_prefix("/other"))).await;
    let nested = Router::new().nest_service(
        "/mydir",
        ReverseProxyLayer::new(&origin).strip_prefix().forwarded(Forwarded::new().proto(Scheme::HTTPS)).into_service(),
    );
    let nested = front(nested).await;
    let unknown = front(Router::new().layer(layer(&origin).strip_prefix())).await;
    let kept = front(Router::new().layer(https())).await;
    let virtual_host = "virtual.example";
    let virtual_host =
        front(Router::new().layer(https().map_upstream(|up| up.host(virtual_host)).strip_prefix())).await;
    let own = front(Router::new().layer(https().map_upstream(|up| up.host(HostPolicy::Backend)))).await;
    let own_authority = format!("https://{}/mydir/y", &origin["http://".len()..]);
    for (addr, reference, result) in [
        (stripped, "https://front.example/login", "/mydir/login"),
        (stripped, "https://front.example:443?a", "/mydir/?a"),
        (stripped, "http://front.example/login", "/mydir/login"),
        (stripped, "https://front.example//evil.example", "/mydir/.//evil.example"),
        (rfc7239, "https://front.example/login", "/mydir/login"),
        (nested, "https://front.example/login", "/mydir/login"),
        (replaced, "https://front.example/other/login", "/mydir/login"),
        (virtual_host, "https://virtual.example/login", "/mydir/login"),
        (virtual_host, "https://front.example/login", "/mydir/login"),
        (own, &own_authority, "/mydir/y"),
        // References to other hosts, and references that need no mapping.
        (stripped, "https://front.example/mydir/login", "https://front.example/mydir/login"),
        (stripped, "https://front.example.evil/login", "https://front.example.evil/login"),
        (stripped, "https://front.example@evil/login", "https://front.example@evil/login"),
        (stripped, "https://front.example:8443/login", "https://front.example:8443/login"),
        (replaced, "https://front.example/login", "https://front.example/login"),
        (unknown, "https://front.example/login", "https://front.example/login"),
        (kept, "https://front.example/login", "https://front.example/login"),
        (virtual_host, "https://virtual.example.evil/login", "https://virtual.example.evil/login"),
    ] {
        for name in ["Location", "Content-Location"] {
            assert_eq!(answered(addr, "/mydir/x", name, reference).await, result, "{name}: {reference}");
        }
        let refreshed = answered(addr, "/mydir/x", "Refresh", &format!("5; url={reference}")).await;
        assert_eq!(refreshed, format!("5; url={result}"));
    }
}

#[tokio::test]
async fn the_scheme_of_the_front_is_taken_from_trusted_proxies_only() {
    let origin = obliging().await;
    let trusting = layer(&origin).strip_prefix().forwarded(Forwarded::new().trust(["127.0.0.0/8"]));
    let untrusting = front(Router::new().layer(layer(&origin).strip_prefix())).await;
    let trusting = front(Router::new().layer(trusting)).await;
    let login = "https://public.example/login";
    for (addr, result) in [(trusting, "/mydir/login"), (untrusting, login)] {
        let fields =
            format!("X-Forwarded-Proto: https\r\nX-Forwarded-Host: public.example\r\nX-Answer: Location: {login}\r\n");
        assert_eq!(get(addr, "/mydir/x", &fields).await.field("location"), Some(result));
    }
}

/// Sends a WebDAV request and returns the response.
async fn dav(addr: SocketAddr, method: &str, fields: &str) -> Message {
    ask(addr, format!("{method} /mydir/x HTTP/1.1\r\nHost: front.example\r\n{fields}\r\n")).await
}

#[tokio::test]
async fn destination_is_mapped_like_the_target() {
    let origin = mirror().await;
    let kept = front(app(&origin)).await;
    let stripped = front(Router::new().layer(layer(&origin).strip_prefix())).await;
    let https = layer(&origin)
        .strip_prefix()
        .map_upstream(|up| up.host(HostPolicy::Backend))
        .forwarded(Forwarded::new().proto(Scheme::HTTPS));
    let https = front(Router::new().layer(https)).await;
    let replaced = front(Router::new().layer(layer(&origin).replace_prefix("/other"))).await;
    let nested =
        front(Router::new().nest_service("/mydir", ReverseProxyLayer::new(&origin).strip_prefix().into_service()))
            .await;
    for (addr, target, destination, sent) in [
        (kept, "/mydir/x", "http://front.example/mydir/y%20z?a", "/mydir/y%20z?a"),
        (kept, "/mydir/x", "/mydir/y", "/mydir/y"),
        (stripped, "/x", "http://front.example/mydir/y%20z?a", "/y%20z?a"),
        (stripped, "/x", "HTTPS://FRONT.example:443/mydir/d/", "/d/"),
        (stripped, "/x", "/mydir", "/"),
        (stripped, "/x", "/mydir//evil.example/y", "/.//evil.example/y"),
        (https, "/x", "https://front.example/mydir/y", "/y"),
        (https, "/x", " http://front.example/mydir/y\t", "/y"),
        (replaced, "/other/x", "https://front.example/mydir/y", "/other/y"),
        (nested, "/x", "http://front.example/mydir/y", "/y"),
    ] {
        for method in ["COPY", "MOVE"] {
            let answer = dav(addr, method, &format!("Destination: {destination}\r\nOverwrite: F\r\n")).await.mirrored();
            assert_eq!(answer.start_line(), format!("{method} {target} HTTP/1.1"));
            assert_eq!(answer.field("destination"), Some(sent), "{destination}");
            assert_eq!(answer.field("overwrite"), Some("F"));
        }
        // Destination has a meaning for these methods only.
        let answer = dav(addr, "PUT", &format!("Destination: {destination}\r\nContent-Length: 0\r\n")).await.mirrored();
        assert_eq!(answer.field("destination"), Some(destination.trim()));
    }
    assert_eq!(dav(stripped, "MOVE", "").await.mirrored().field("destination"), None);
}

#[tokio::test]
async fn a_destination_outside_the_prefix_or_the_front_is_refused() {
    let origin = mirror().await;
    let kept = front(app(&origin)).await;
    let stripped = front(Router::new().layer(layer(&origin).strip_prefix())).await;
    let foreign = origin.clone() + "/mydir/y";
    for addr in [kept, stripped] {
        for (destination, status) in [
            ("http://front.example/y", 502),
            ("/y", 502),
            ("/mydirx/y", 502),
            (&*foreign, 502),
            ("http://other.example/mydir/y", 502),
            ("http://front.example@evil/mydir/y", 502),
            ("/mydir/../y", 400),
            ("http://front.example/mydir/a/%2e%2e/..%2fy", 400),
            ("/mydir/%u002e%u002e/y", 400),
            ("/mydir/y%00", 400),
            ("//front.example/mydir/y", 400),
            ("mydir/y", 400),
            ("", 400),
            ("/mydir/y\r\nDestination: /mydir/z", 400),
        ] {
            let fields = format!("Destination: {destination}\r\n");
            assert_eq!(dav(addr, "MOVE", &fields).await.status(), status, "{destination}");
        }
    }
}

#[tokio::test]
async fn a_destination_may_name_the_forwarded_host_of_a_trusted_proxy() {
    let origin = mirror().await;
    let trusting = layer(&origin).strip_prefix().forwarded(Forwarded::new().trust(["127.0.0.0/8"]));
    let fields = "X-Forwarded-Host: public.example\r\nDestination: https://public.example/mydir/y\r\n";
    let seen = dav(front(Router::new().layer(trusting)).await, "COPY", fields).await.mirrored();
    assert_eq!(seen.field("destination"), Some("/y"));
    let untrusting = front(Router::new().layer(layer(&origin).strip_prefix())).await;
    assert_eq!(dav(untrusting, "COPY", fields).await.status(), 502);
}
