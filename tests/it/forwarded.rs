//! The forwarding fields: what the backend learns of the client's side.

use std::net::{IpAddr, SocketAddr};

use axum::{
    Extension, Router,
    extract::ConnectInfo,
    http::{Request, uri::Scheme},
};
use tokio::net::TcpListener;
use tower::ServiceExt;
use tower_reverse_proxy::{ClientAddr, Forwarded, ReverseProxyLayer};

use crate::support::{Message, Wire, ask, front, front_on, get, http2_get, mirror};

/// The claims that a client could make, in every spelling.
const CLAIMS: &str = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX-Forwarded-Host: evil.example\r\n\
    X-Forwarded-Proto: evil\r\nX-Forwarded-Port: 666\r\nX-Forwarded-Prefix: /evil\r\nX-Forwarded-User: evil\r\n\
    X_Forwarded_For: 6.6.6.6\r\nX.Forwarded.Host: evil.example\r\nx-forwarded_proto: evil\r\nX-Real-IP: 6.6.6.6\r\n\
    X_Real_IP: 6.6.6.6\r\nForwarded: for=6.6.6.6;host=evil;proto=evil\r\nForwarded: for=7.7.7.7\r\n";

fn layer(origin: &str) -> ReverseProxyLayer {
    ReverseProxyLayer::new(origin).prefix("/mydir")
}

/// Trusts the peers of these tests.
fn trusting() -> Forwarded {
    Forwarded::new().trust(["127.0.0.0/8"])
}

async fn seen(layer: ReverseProxyLayer, fields: &str) -> Message {
    get(front(Router::new().layer(layer)).await, "/mydir/x", fields).await.mirrored()
}

/// The forwarding fields of a head, in lower case and sorted.
fn forwarding_fields(request: &Message) -> Vec<String> {
    let mut fields: Vec<_> = request
        .head
        .lines()
        .map(str::to_ascii_lowercase)
        .filter(|line| line.starts_with('x') || line.starts_with("forwarded"))
        .collect();
    fields.sort();
    fields
}

#[tokio::test]
async fn forwarding_fields_hold_the_facts_and_no_claim_of_the_client() {
    let origin = mirror().await;
    for fields in ["", CLAIMS] {
        let expected = ["x-forwarded-for: 127.0.0.1", "x-forwarded-host: front.example"];
        assert_eq!(forwarding_fields(&seen(layer(&origin), fields).await), expected);

        let stripped = layer(&origin).strip_prefix().forwarded(Forwarded::new().proto(Scheme::HTTPS));
        let expected = [
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: front.example",
            "x-forwarded-prefix: /mydir",
            "x-forwarded-proto: https",
        ];
        assert_eq!(forwarding_fields(&seen(stripped, fields).await), expected);
    }
}

#[tokio::test]
async fn keep_underscores_keeps_no_forwarding_claim() {
    let origin = mirror().await;
    let expected = ["x-forwarded-for: 127.0.0.1", "x-forwarded-host: front.example"];
    assert_eq!(forwarding_fields(&seen(layer(&origin).keep_underscores(true), CLAIMS).await), expected);
}

#[tokio::test]
async fn fields_that_are_turned_off_are_neither_sent_nor_passed_on() {
    let origin = mirror().await;
    for fields in ["", CLAIMS] {
        assert!(
            forwarding_fields(&seen(layer(&origin).forwarded(Forwarded::new().x_forwarded(false)), fields).await)
                .is_empty()
        );
        let other = layer(&origin)
            .forwarded(Forwarded::new().x_forwarded(false).rfc7239(true).x_real_ip(true).proto(Scheme::HTTP));
        let expected = ["forwarded: for=127.0.0.1;host=front.example;proto=http", "x-real-ip: 127.0.0.1"];
        assert_eq!(forwarding_fields(&seen(other, fields).await), expected);
    }
}

#[tokio::test]
async fn the_lists_of_a_trusted_proxy_are_extended_and_its_values_kept() {
    let origin = mirror().await;
    let fields = "X-Forwarded-For: 203.0.113.9, 198.51.100.1\r\nX-Forwarded-For: 198.51.100.2\r\n\
        X-Forwarded-Host: outer.example\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /outer\r\n\
        X-Real-IP: 203.0.113.9\r\nForwarded: for=203.0.113.9;proto=https\r\nForwarded: for=198.51.100.1\r\n";
    let layer = layer(&origin).forwarded(trusting().rfc7239(true).x_real_ip(true).proto(Scheme::HTTP)).strip_prefix();
    let expected = [
        "forwarded: for=203.0.113.9;proto=https, for=198.51.100.1, for=127.0.0.1;host=front.example;proto=http",
        "x-forwarded-for: 203.0.113.9, 198.51.100.1, 198.51.100.2, 127.0.0.1",
        "x-forwarded-host: outer.example",
        "x-forwarded-prefix: /outer/mydir",
        "x-forwarded-proto: https",
        "x-real-ip: 203.0.113.9",
    ];
    assert_eq!(forwarding_fields(&seen(layer.clone(), fields).await), expected);
    // A trusted peer without forwarding fields is the client itself.
    let expected = [
        "forwarded: for=127.0.0.1;host=front.example;proto=http",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: front.example",
        "x-forwarded-prefix: /mydir",
        "x-forwarded-proto: http",
        "x-real-ip: 127.0.0.1",
    ];
    assert_eq!(forwarding_fields(&seen(layer, "").await), expected);
}

#[tokio::test]
async fn a_trusted_proxy_cannot_claim_an_identity() {
    let fields = "Remote-User: admin\r\nRemote_User: admin\r\nX_Forwarded_For: 6.6.6.6\r\n";
    let mirrored = seen(layer(&mirror().await).forwarded(trusting()), fields).await;
    assert!(!mirrored.head.contains("admin") && !mirrored.head.contains("6.6.6.6"), "{}", mirrored.head);
}

#[tokio::test]
async fn a_peer_outside_the_trusted_blocks_is_not_trusted() {
    let layer = layer(&mirror().await).forwarded(Forwarded::new().trust(["10.0.0.0/8", "::1/128"]));
    let expected = ["x-forwarded-for: 127.0.0.1", "x-forwarded-host: front.example"];
    assert_eq!(forwarding_fields(&seen(layer, CLAIMS).await), expected);
}

#[tokio::test]
async fn a_client_addr_extension_replaces_the_peer_address() {
    let known = ClientAddr::new("2001:db8::7".parse().unwrap());
    let layer = layer(&mirror().await).forwarded(Forwarded::new().rfc7239(true).x_real_ip(true));
    let addr = front(Router::new().layer(layer).layer(Extension(known))).await;
    let mirrored = get(addr, "/mydir/x", CLAIMS).await.mirrored();
    let expected = [
        "forwarded: for=\"[2001:db8::7]\";host=front.example",
        "x-forwarded-for: 2001:db8::7",
        "x-forwarded-host: front.example",
        "x-real-ip: 2001:db8::7",
    ];
    assert_eq!(forwarding_fields(&mirrored), expected);
}

#[tokio::test]
async fn trust_is_decided_by_the_client_addr_extension() {
    let known = ClientAddr::new("192.0.2.1".parse().unwrap());
    let addr = front(Router::new().layer(layer(&mirror().await).forwarded(trusting())).layer(Extension(known))).await;
    let mirrored = get(addr, "/mydir/x", CLAIMS).await.mirrored();
    assert_eq!(forwarding_fields(&mirrored), ["x-forwarded-for: 192.0.2.1", "x-forwarded-host: front.example"]);
}

#[tokio::test]
async fn an_ipv6_peer_is_forwarded_in_brackets() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else { return };
    let addr = listener.local_addr().unwrap();
    let layer = layer(&mirror().await).forwarded(Forwarded::new().rfc7239(true).x_real_ip(true));
    front_on(listener, Router::new().layer(layer));
    let request = format!("GET /mydir/x HTTP/1.1\r\nHost: {addr}\r\n\r\n");
    let mirrored = ask(addr, request).await.mirrored();
    let expected = [
        format!("forwarded: for=\"[::1]\";host=\"{addr}\""),
        "x-forwarded-for: ::1".to_owned(),
        format!("x-forwarded-host: {addr}"),
        "x-real-ip: ::1".to_owned(),
    ];
    assert_eq!(forwarding_fields(&mirrored), expected);
}

#[tokio::test]
async fn an_ipv4_peer_of_an_ipv6_listener_is_forwarded_as_ipv4() {
    let Ok(listener) = TcpListener::bind("[::]:0").await else { return };
    let port = listener.local_addr().unwrap().port();
    front_on(listener, Router::new().layer(layer(&mirror().await).forwarded(trusting().rfc7239(true))));
    let request = "GET /mydir/x HTTP/1.1\r\nHost: front.example\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n";
    let mirrored = ask(SocketAddr::from(([127, 0, 0, 1], port)), request).await.mirrored();
    let expected = [
        "forwarded: for=127.0.0.1;host=front.example",
        // The peer is trusted by its IPv4 block.
        "x-forwarded-for: 192.0.2.9, 127.0.0.1",
        "x-forwarded-host: front.example",
    ];
    assert_eq!(forwarding_fields(&mirrored), expected);
}

#[tokio::test]
async fn a_request_without_a_peer_address_is_forwarded_as_unknown() {
    let layer = layer(&mirror().await).forwarded(Forwarded::new().rfc7239(true).x_real_ip(true).trust(["0.0.0.0/0"]));
    let app = Router::new().layer(layer);
    let mut request = Request::get("/mydir/x").header("host", "front.example").header("x-forwarded-for", "6.6.6.6");
    // Connect info of another type than `SocketAddr` has no address.
    request = request.extension(ConnectInfo("6.6.6.6"));
    let answer = app.oneshot(request.body(axum::body::Body::empty()).unwrap()).await.unwrap();
    let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    let mirrored = String::from_utf8(body.to_vec()).unwrap();
    assert!(!mirrored.contains("6.6.6.6"), "{mirrored}");
    assert!(mirrored.contains("\r\nforwarded: for=unknown;host=front.example\r\n"), "{mirrored}");
}

#[tokio::test]
async fn host_is_quoted_in_forwarded() {
    let addr = front(Router::new().layer(layer(&mirror().await).forwarded(Forwarded::new().rfc7239(true)))).await;
    for (host, forwarded) in [
        ("front.example", "host=front.example"),
        ("front.example:8443", "host=\"front.example:8443\""),
        ("[2001:db8::1]:80", "host=\"[2001:db8::1]:80\""),
        ("x_y~z", "host=x_y~z"),
        // A reg-name of RFC 3986 can't add a parameter or an element.
        ("a;for=6.6.6.6", "host=\"a;for=6.6.6.6\""),
    ] {
        let mirrored = ask(addr, format!("GET /mydir/x HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.mirrored();
        assert_eq!(mirrored.field("forwarded"), Some(&*format!("for=127.0.0.1;{forwarded}")));
        assert_eq!(mirrored.field("x-forwarded-host"), Some(host));
    }
    for host in ["a\";proto=https", "a\\", "a b", "a, b", "a,b"] {
        let answer = ask(addr, format!("GET /mydir/x HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(answer.status(), 400, "{host}");
    }
}

#[tokio::test]
async fn the_scheme_pseudo_field_is_not_forwarded() {
    let addr = front(Router::new().layer(layer(&mirror().await))).await;
    let mirrored = String::from_utf8(http2_get(addr, "/mydir/x").await.into_body().to_bytes().to_vec()).unwrap();
    assert!(mirrored.contains("\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-host: front.example\r\n"), "{mirrored}");
    assert!(!mirrored.contains("proto"), "{mirrored}");
}

#[tokio::test]
async fn http_1_0_without_host_has_no_forwarded_host() {
    let addr = front(Router::new().layer(layer(&mirror().await).forwarded(Forwarded::new().rfc7239(true)))).await;
    let mirrored = ask(addr, "GET /mydir/x HTTP/1.0\r\nX-Forwarded-Host: evil.example\r\n\r\n").await.mirrored();
    assert_eq!(forwarding_fields(&mirrored), ["forwarded: for=127.0.0.1", "x-forwarded-for: 127.0.0.1"]);
}

#[test]
fn an_ipv4_mapped_address_is_an_ipv4_address() {
    let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
    assert_eq!(ClientAddr::new(mapped), ClientAddr::new("192.0.2.1".parse().unwrap()));
    assert_eq!(ClientAddr::from(SocketAddr::new(mapped, 1)).ip().to_string(), "192.0.2.1");
}

#[cfg(unix)]
#[tokio::test]
async fn unix_peers_are_trusted_only_by_their_own_option() {
    let origin = mirror().await;
    let everyone = || Forwarded::new().trust(["0.0.0.0/0", "::/0"]);
    let dir = tempfile::tempdir().unwrap();
    for (name, forwarded, kept) in [
        ("untrusted", everyone(), false),
        ("trusted", Forwarded::new().trust_unix_peers(true), true),
        ("both", everyone().trust_unix_peers(true), true),
    ] {
        let path = dir.path().join(name);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let app = Router::new().layer(layer(&origin).forwarded(forwarded.x_real_ip(true)));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let mut wire = Wire::new(tokio::net::UnixStream::connect(&path).await.unwrap());
        let claims = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 203.0.113.9\r\n";
        wire.send(format!("GET /mydir/x HTTP/1.1\r\nHost: front.example\r\n{claims}\r\n").as_bytes()).await;
        let seen = wire.message().await.unwrap().mirrored();
        assert_eq!(seen.field("x-forwarded-for"), kept.then_some("203.0.113.9"), "{name}");
        assert_eq!(seen.field("x-forwarded-proto"), kept.then_some("https"), "{name}");
        assert_eq!(seen.field("x-real-ip"), kept.then_some("203.0.113.9"), "{name}");
    }
    // Clients with an address aren't Unix peers.
    let seen =
        seen(layer(&origin).forwarded(Forwarded::new().trust_unix_peers(true)), "X-Forwarded-Proto: https\r\n").await;
    assert_eq!(seen.field("x-forwarded-proto"), None);
}
