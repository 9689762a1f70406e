//! Signed assertions of the user, as a backend gets and verifies them. The verifier is jsonwebtoken, on other
//! cryptography than the front's.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Router,
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, Response, StatusCode},
    middleware::map_request,
};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, JwkSet},
};
use proptest::prelude::*;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use serde_json::Value;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_http::request_id::RequestId;
use tower_reverse_proxy::{
    AssertionKeys, AssertionLayer, BasicAuthLayer, BoxUpstream, Client, Error, ErrorKind, HostPolicy, RemoteUser,
    RemoteUserLayer, ReverseProxyLayer,
};

use crate::support::{Message, ask, front, get, http2, mirror, recording, refusing, within};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const ISSUER: &str = "https://front.example";

/// A client's own assertion in every spelling that servers fold to the same name.
const SPOOFED: &str = "X-JWT-Assertion: forged\r\nx-jwt-assertion: forged\r\nX_JWT_Assertion: forged\r\n\
    X_JWT-Assertion: forged\r\nX.Jwt.Assertion: forged\r\nx-jwt~assertion: forged\r\nX-JWT-Assertion: forged\r\n\
    Connection: X-JWT-Assertion\r\n";

fn keys() -> AssertionKeys {
    AssertionKeys::from_pem(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem()).unwrap()
}

fn layer() -> AssertionLayer {
    AssertionLayer::new(keys(), ISSUER)
}

/// An application that forwards `/mydir`, signs in the user that `X-Test-User` names, and publishes its keys.
fn app(origin: &str, keys: &AssertionKeys, layer: AssertionLayer) -> Router {
    let sign_in = map_request(|mut request: Request| async {
        if let Some(name) = request.headers_mut().remove("x-test-user") {
            request.extensions_mut().insert(RemoteUser::from(name.to_str().unwrap()));
        }
        request
    });
    Router::new()
        .route_service("/jwks.json", keys.jwks())
        .layer(ReverseProxyLayer::new(origin).prefix("/mydir").keep_underscores(true).upstream_layer(layer))
        .layer(sign_in)
}

/// All values that the backend could take for the assertion.
fn assertions(request: &Message) -> Vec<String> {
    let folded = |name: &str| name.to_ascii_lowercase().replace(['_', '.', '~'], "-");
    let fields = request.head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields.filter(|(name, _)| folded(name) == "x-jwt-assertion").map(|(_, value)| value.trim().to_owned()).collect()
}

fn assertion(request: &Message) -> String {
    let [token] = &*assertions(request) else { panic!("not one assertion: {}", request.head) };
    token.clone()
}

/// What a backend does: it verifies the token with the keys at the route.
fn verified(token: &str, jwks: &str, audience: &str) -> Result<Value, jsonwebtoken::errors::Error> {
    let header = jsonwebtoken::decode_header(token)?;
    let jwks: JwkSet = serde_json::from_str(jwks).unwrap();
    let jwk = jwks.find(header.kid.as_deref().unwrap()).expect("the key is published");
    let algorithm = match jwk.algorithm {
        AlgorithmParameters::EllipticCurve(_) => Algorithm::ES256,
        _ => Algorithm::EdDSA,
    };
    let mut validation = Validation::new(algorithm);
    validation.set_audience(&[audience]);
    validation.set_issuer(&[ISSUER]);
    validation.leeway = 0;
    validation.validate_nbf = true;
    validation.set_required_spec_claims(&["iss", "sub", "aud", "exp", "nbf"]);
    Ok(jsonwebtoken::decode(token, &DecodingKey::from_jwk(jwk).unwrap(), &validation)?.claims)
}

/// The claims, when it's not the signature that matters.
fn claims(token: &str) -> Value {
    jsonwebtoken::dangerous::insecure_decode(token).unwrap().claims
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn the_backend_gets_an_assertion_that_it_can_verify() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
        let keys = AssertionKeys::from_pem(KeyPair::generate_for(algorithm).unwrap().serialize_pem()).unwrap();
        let origin = mirror().await;
        let addr = front(app(&origin, &keys, AssertionLayer::new(keys.clone(), ISSUER))).await;
        let before = now();
        let token = assertion(&get(addr, "/mydir/x", "X-Test-User: alice\r\n").await.mirrored());
        let jwks = get(addr, "/jwks.json", "").await.text();
        let claims = verified(&token, &jwks, &origin).unwrap();
        let mut names: Vec<_> = claims.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(names, ["aud", "exp", "iat", "iss", "nbf", "sub"]);
        assert_eq!(
            (&claims["sub"], &claims["iss"], &claims["aud"]),
            (&"alice".into(), &ISSUER.into(), &Value::from(&*origin))
        );
        let time = |name: &str| claims[name].as_u64().unwrap();
        assert!((before - 5..=now() - 5).contains(&time("iat")), "{claims}");
        assert_eq!(time("nbf"), time("iat"));
        assert_eq!(time("exp") - time("iat"), 120 + 5 + 1);
        // Another audience, and another front's keys.
        assert!(verified(&token, &jwks, "http://other.example").is_err());
        assert!(!jwks.contains("\"d\""));
    }
}

#[tokio::test]
async fn the_clients_own_assertion_is_removed_in_every_spelling() {
    let origin = mirror().await;
    let keys = keys();
    let addr = front(app(&origin, &keys, AssertionLayer::new(keys.clone(), ISSUER))).await;
    assert_eq!(assertions(&get(addr, "/mydir/x", SPOOFED).await.mirrored()), [""; 0]);
    let answer = get(addr, "/mydir/x", &format!("X-Test-User: alice\r\n{SPOOFED}")).await;
    assert_eq!(answer.field("x-jwt-assertion"), None, "the field isn't sent to the client");
    let mirrored = answer.mirrored();
    assert!(!mirrored.head.contains("forged"), "{}", mirrored.head);
    assert_eq!(claims(&assertion(&mirrored))["sub"], "alice");
    // An upgrade takes another path through the client.
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade, X-JWT-Assertion\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mirrored = get(addr, "/mydir/x", &format!("X-Test-User: alice\r\n{upgrade}{SPOOFED}")).await.mirrored();
    assert!(mirrored.head.to_lowercase().contains("upgrade: websocket"), "{}", mirrored.head);
    assert_eq!(claims(&assertion(&mirrored))["sub"], "alice");
}

#[tokio::test]
async fn a_field_of_another_name_is_guarded_and_the_default_one_passes() {
    let keys = keys();
    let layer = AssertionLayer::new(keys.clone(), ISSUER).header("X-Front.Token");
    let addr = front(app(&mirror().await, &keys, layer)).await;
    let fields = "X-Test-User: alice\r\nx-front-token: forged\r\nX_FRONT_TOKEN: forged\r\nX-JWT-Assertion: theirs\r\n";
    let mirrored = get(addr, "/mydir/x", fields).await.mirrored();
    assert!(!mirrored.head.contains("forged"), "{}", mirrored.head);
    assert_eq!(claims(mirrored.field("x-front.token").unwrap())["sub"], "alice");
    assert_eq!(mirrored.field("x-jwt-assertion"), Some("theirs"));
}

#[tokio::test]
async fn in_authorization_the_assertion_is_a_bearer_token() {
    let mut request = request("alice");
    request.headers_mut().insert("authorization", HeaderValue::from_static("Basic YTpi"));
    let sent = sent(layer().header("Authorization"), request).await.unwrap();
    let values: Vec<_> = sent.headers().get_all("authorization").iter().collect();
    let [value] = &*values else { panic!("not one: {values:?}") };
    assert!(value.is_sensitive());
    assert_eq!(claims(value.to_str().unwrap().strip_prefix("Bearer ").unwrap())["sub"], "alice");
    assert!(!sent.headers().contains_key("x-jwt-assertion"));
}

#[tokio::test]
async fn no_assertion_is_forwarded_as_a_trailer() {
    let (origin, mut requests) = recording(OK).await;
    let keys = keys();
    let addr = front(app(&origin, &keys, AssertionLayer::new(keys.clone(), ISSUER))).await;
    for user in ["", "X-Test-User: alice\r\n"] {
        let request = format!(
            "POST /mydir/x HTTP/1.1\r\nHost: a\r\n{user}Transfer-Encoding: chunked\r\n\
             Trailer: X-JWT-Assertion, X-Ok\r\n\r\n2\r\nhi\r\n0\r\n\
             X-JWT-Assertion: forged\r\nx_jwt_assertion: forged\r\nX.JWT.Assertion: forged\r\nX-Ok: 1\r\n\r\n"
        );
        assert_eq!(ask(addr, request).await.status(), 200);
        let got = within(requests.recv()).await.unwrap();
        assert_eq!(got.trailers.to_lowercase(), "x-ok: 1\r\n");
        assert_eq!(got.field("trailer"), Some("X-Ok"));
        assert!(!got.head.contains("forged"));
    }
}

#[tokio::test]
async fn no_assertion_is_forwarded_as_a_trailer_over_http2() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let backend = {
        let seen = seen.clone();
        Router::new().fallback(async move |request: Request| {
            let field = request.headers().get("x-jwt-assertion").cloned();
            let collected = within(http_body_util::BodyExt::collect(request.into_body())).await.unwrap();
            let trailers = collected.trailers().cloned().unwrap_or_default();
            seen.lock().unwrap().push((field, trailers));
        })
    };
    let origin = format!("http://{}", front(backend).await);
    let proxy = ReverseProxyLayer::new(Client::builder(origin).http2(true)).upstream_layer(layer());
    let app = Router::new().layer(proxy).layer(Extension(RemoteUser::from("alice")));
    let (mut sender, body) = http_body_util::channel::Channel::<axum::body::Bytes>::new(1);
    let request = Request::post("http://front.example/x").header("x-jwt-assertion", "forged");
    let mut client = http2(front(app).await).await;
    let answer = client.send_request(request.body(Body::new(body)).unwrap());
    let names = ["x-jwt-assertion", "x.jwt.assertion", "x-ok"];
    let fields = names.map(|name| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("forged")));
    sender.send_trailers(fields.into_iter().collect()).await.unwrap();
    drop(sender);
    assert_eq!(within(answer).await.unwrap().status(), 200);
    let seen = seen.lock().unwrap();
    let [(field, trailers)] = &**seen else { panic!("not one request") };
    assert_eq!(claims(field.as_ref().unwrap().to_str().unwrap())["sub"], "alice");
    assert_eq!(trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-ok"]);
}

#[tokio::test]
async fn the_audience_is_the_configured_backend_whatever_the_client_sends() {
    let origin = mirror().await;
    let keys = keys();
    for policy in [HostPolicy::Preserve, HostPolicy::Backend] {
        let proxy = ReverseProxyLayer::new(&origin)
            .map_upstream(|upstream| upstream.host(policy))
            .upstream_layer(AssertionLayer::new(keys.clone(), ISSUER));
        let app = Router::new().layer(proxy).layer(Extension(RemoteUser::from("alice")));
        let addr = front(app).await;
        for request in [
            "GET /x HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: evil.example\r\n\r\n",
            "GET /@evil.example/x HTTP/1.1\r\nHost: evil.example:1\r\nForwarded: host=evil.example\r\n\r\n",
            "GET http://evil.example/x HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        ] {
            let token = assertion(&ask(addr, request).await.mirrored());
            assert_eq!(claims(&token)["aud"], *origin, "{request}");
        }
    }
}

#[tokio::test]
async fn a_token_is_used_again_for_the_same_user_and_claims_during_half_its_life() {
    let keys = keys();
    let claims_of_request = |id: &RequestId, claims: &mut tower_reverse_proxy::assertion::Claims| {
        claims.set("n", id.header_value().to_str().unwrap());
    };
    let layer = AssertionLayer::new(keys.clone(), ISSUER).lifetime(Duration::from_secs(3)).claims(claims_of_request);
    let described = map_request(|mut request: Request| async {
        if let Some(value) = request.headers_mut().remove("x-test-claim") {
            request.extensions_mut().insert(RequestId::new(value));
        }
        request
    });
    let addr = front(app(&mirror().await, &keys, layer).layer(described)).await;
    let token = async |fields: &str| assertion(&get(addr, "/mydir/x", fields).await.mirrored());
    let first = token("X-Test-User: alice\r\n").await;
    let others = [
        token("X-Test-User: bob\r\n").await,
        token("X-Test-User: alice\r\nX-Test-Claim: a\r\n").await,
        token("X-Test-User: alice\r\nX-Test-Claim: b\r\n").await,
    ];
    assert_eq!(token("X-Test-User: alice\r\n").await, first);
    let all: BTreeSet<_> = others.iter().chain([&first]).collect();
    assert_eq!(all.len(), 4);
    assert_eq!(claims(&others[0])["sub"], "bob");
    assert_eq!(claims(&others[2])["n"], "b");
    tokio::time::sleep(Duration::from_millis(1600)).await;
    let second = token("X-Test-User: alice\r\n").await;
    assert_ne!(second, first);
    assert!(claims(&second)["exp"].as_u64() > claims(&first)["exp"].as_u64());
}

#[tokio::test]
async fn a_token_per_request_is_bound_to_the_resource() {
    let origin = mirror().await;
    let keys = keys();
    let layer = AssertionLayer::new(keys.clone(), ISSUER).audience("wiki").per_request(true);
    let addr = front(app(&origin, &keys, layer)).await;
    let mut ids = BTreeSet::new();
    for (method, target, path) in [
        ("GET", "/mydir/a%20b?q=s3cret", "/mydir/a%20b"),
        ("POST", "/mydir/", "/mydir/"),
        ("POST", "/mydir/", "/mydir/"),
    ] {
        let request =
            format!("{method} {target} HTTP/1.1\r\nHost: a\r\nX-Test-User: alice\r\nContent-Length: 0\r\n\r\n");
        let token = assertion(&ask(addr, request).await.mirrored());
        let claims = verified(&token, &get(addr, "/jwks.json", "").await.text(), "wiki").unwrap();
        assert_eq!((claims["htm"].as_str(), claims["htu"].as_str()), (Some(method), Some(&*format!("{origin}{path}"))));
        assert!(!claims.to_string().contains("s3cret"));
        let id = claims["jti"].as_str().unwrap().to_owned();
        assert_eq!(id.len(), 22);
        assert!(ids.insert(id));
    }
}

#[tokio::test]
async fn without_a_user_nothing_is_asserted_and_a_required_one_is_refused() {
    let (origin, mut requests) = recording(OK).await;
    let keys = keys();
    let optional = front(app(&origin, &keys, AssertionLayer::new(keys.clone(), ISSUER))).await;
    assert_eq!(get(optional, "/mydir/x", "").await.status(), 200);
    assert_eq!(assertions(&within(requests.recv()).await.unwrap()), [""; 0]);
    let required = front(app(&origin, &keys, AssertionLayer::new(keys.clone(), ISSUER).required(true))).await;
    for fields in ["", SPOOFED] {
        assert_eq!(get(required, "/mydir/x", fields).await.status(), 403);
    }
    assert!(requests.try_recv().is_err());
}

/// What the layer sends for these extensions, around a client in memory.
async fn sent(
    layer: impl Layer<BoxUpstream, Service: tower::Service<Request, Response = Response<Body>, Error = axum::BoxError>>,
    request: Request,
) -> Result<Request, Error> {
    let (sender, seen) = std::sync::mpsc::channel();
    let client = service_fn(move |request: Request| {
        sender.send(request).unwrap();
        async { Ok::<_, Error>(Response::new(Body::empty())) }
    });
    match layer.layer(BoxUpstream::new(client)).oneshot(request).await {
        Ok(_) => Ok(seen.try_recv().unwrap()),
        Err(error) => Err(*error.downcast().unwrap()),
    }
}

fn request(user: &str) -> Request {
    let request = Request::get("http://backend.example/x").extension(RemoteUser::from(user));
    request.body(Body::empty()).unwrap()
}

fn token(request: &Request) -> String {
    request.headers()["x-jwt-assertion"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_name_is_asserted_as_it_is_and_an_empty_one_is_refused() {
    let long = "x".repeat(5000);
    for user in ["CORP\\alice", "jörg 名 👤", "\",\"sub\":\"admin", "a\r\nb\0c\u{7f}\u{85}", " alice ", "a:b", &long]
    {
        let sent = sent(layer(), request(user)).await.unwrap();
        assert_eq!(claims(&token(&sent))["sub"], user);
    }
    let error = sent(layer(), request("")).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::UnrepresentableUser, StatusCode::FORBIDDEN));
}

#[tokio::test]
async fn claims_of_the_application_are_added_and_cannot_overwrite_registered_ones() {
    let layer = layer()
        .claims(|groups: &Vec<String>, claims| claims.set("groups", groups.clone()))
        .claims(|groups: &Vec<String>, claims| {
            for name in ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "htm", "htu"] {
                claims.set(name, "forged");
            }
            claims.set("\"}", groups.len());
        })
        .claims(|_: &String, claims| claims.set("absent", true));
    let mut request = request("alice");
    request.extensions_mut().insert(vec!["dev".to_owned(), "\"ops\"".to_owned()]);
    let token = token(&sent(layer, request).await.unwrap());
    let claims = claims(&token);
    assert_eq!(claims["groups"], Value::from(vec!["dev", "\"ops\""]));
    assert_eq!(claims["\"}"], 2);
    let mut names: Vec<_> = claims.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["\"}", "aud", "exp", "groups", "iat", "iss", "nbf", "sub"]);
    assert!(!claims.to_string().contains("forged"));
}

#[tokio::test]
async fn a_request_without_a_backend_is_refused_with_what_to_write() {
    let relative = || Request::get("/x").extension(RemoteUser::from("alice")).body(Body::empty()).unwrap();
    for layer in [layer(), layer().audience("wiki").per_request(true)] {
        let error = sent(layer, relative()).await.unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::Rejected, StatusCode::INTERNAL_SERVER_ERROR));
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("AssertionLayer::audience"));
    }
    let sent = sent(layer().audience("wiki"), relative()).await.unwrap();
    assert_eq!(claims(&token(&sent))["aud"], "wiki");
}

/// Around another client, the URI may have the client's own credentials.
#[tokio::test]
async fn no_userinfo_of_the_uri_is_asserted() {
    let request = Request::get("http://user:s3cret@backend.example:8000/x").extension(RemoteUser::from("alice"));
    let sent = sent(layer().per_request(true), request.body(Body::empty()).unwrap()).await.unwrap();
    let claims = claims(&token(&sent));
    assert_eq!(
        (&claims["aud"], &claims["htu"]),
        (&"http://backend.example:8000".into(), &"http://backend.example:8000/x".into(),)
    );
}

#[tokio::test]
async fn the_layer_that_makes_the_user_sees_the_request_first() {
    let user = || RemoteUserLayer::from_extension(|name: &String| Some(name.clone()));
    let with_name =
        || Request::get("http://backend.example/").extension("alice".to_owned()).body(Body::empty()).unwrap();
    let sent_request = sent(ServiceBuilder::new().layer(user()).layer(layer()), with_name()).await.unwrap();
    assert_eq!(claims(&token(&sent_request))["sub"], "alice");
    let error = sent(ServiceBuilder::new().layer(layer()).layer(user()), with_name()).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Rejected, StatusCode::INTERNAL_SERVER_ERROR));
    // Layers that agree about the user.
    let stack =
        ServiceBuilder::new().layer(BasicAuthLayer::remote_user("pw")).layer(layer()).layer(RemoteUserLayer::new());
    let sent_request = sent(stack, request("alice")).await.unwrap();
    assert_eq!(sent_request.headers()["remote-user"], "alice");
    assert!(sent_request.headers().contains_key("authorization"));
}

#[tokio::test]
async fn neither_debug_output_nor_an_error_shows_a_token() {
    let layer = layer();
    let sent = sent(layer.clone(), request("alice")).await.unwrap();
    assert!(sent.headers()["x-jwt-assertion"].is_sensitive());
    let service = layer.layer(BoxUpstream::new(Router::new()));
    let _ = service.clone().oneshot(request("alice")).await.unwrap();
    for shown in [format!("{layer:?}"), format!("{service:?}"), format!("{:?}", sent.headers())] {
        assert!(!shown.contains("eyJ"), "{shown}");
    }
}

#[tokio::test]
async fn through_a_rotation_every_token_has_a_published_key() {
    let origin = mirror().await;
    let keys = keys();
    let addr = front(app(&origin, &keys, AssertionLayer::new(keys.clone(), ISSUER))).await;
    let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let token = async |user: &str| {
        let mirrored = get(addr, "/mydir/x", &format!("X-Test-User: {user}\r\n")).await.mirrored();
        let token = assertion(&mirrored);
        let jwks = get(addr, "/jwks.json", "").await.text();
        assert_eq!(verified(&token, &jwks, &origin).unwrap()["sub"], user);
        token
    };
    let alices = token("alice").await;
    keys.rotate(self::keys(), Duration::from_secs(300));
    assert_eq!(kid(&token("bob").await), kid(&alices), "the next key is only published");
    keys.rotate(self::keys(), Duration::ZERO);
    let carols = token("carol").await;
    assert_ne!(kid(&carols), kid(&alices));
    assert_eq!(token("alice").await, alices, "it's in the first half of its life");
}

#[test]
fn options_that_are_no_names_panic_with_what_to_write() {
    type Setter = fn() -> AssertionLayer;
    let setters: [(Setter, &str); 7] = [
        (|| AssertionLayer::new(keys(), ""), "https://front.example"),
        (|| layer().audience(""), "such as \"wiki\""),
        (|| layer().header("X Y"), "X-JWT-Assertion"),
        (|| layer().header("Content-Length"), "write another name, such as \"X-JWT-Assertion\""),
        (|| layer().lifetime(Duration::ZERO), "Duration::from_secs(120)"),
        (|| layer().lifetime(Duration::from_millis(999)), "Duration::from_secs(120)"),
        (|| layer().lifetime(Duration::MAX), "to a day"),
    ];
    for (setter, hint) in setters {
        let panic = catch_unwind(AssertUnwindSafe(setter)).unwrap_err();
        let text =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap();
        assert!(text.contains(hint), "{text}");
    }
}

#[test]
fn keys_layer_and_service_are_send_sync_and_clone() {
    fn shared<T: Send + Sync + Clone + 'static>() {}
    fn sent<T: Send>(_: T) {}

    shared::<AssertionKeys>();
    shared::<AssertionLayer>();
    shared::<tower_reverse_proxy::Jwks>();
    shared::<tower_reverse_proxy::assertion::Assertion<Client>>();
    sent(layer().layer(BoxUpstream::new(Router::new())).oneshot(request("alice")));
}

#[tokio::test]
async fn a_second_upstream_gets_an_assertion_of_its_own() {
    use tower_reverse_proxy::Upstream;

    let refusing = refusing().await;
    let origin = mirror().await;
    let keys = keys();
    let members =
        [&*refusing, &*origin].map(|origin| Upstream::new(origin).layer(AssertionLayer::new(keys.clone(), ISSUER)));
    let proxy = ReverseProxyLayer::with_upstream(service_fn(move |request: Request| {
        let [first, second] = members.clone();
        async move {
            let mut error = match first.oneshot(request).await {
                Err(error) => error,
                answer => return answer,
            };
            second.oneshot(error.take_request().expect("nothing was sent")).await
        }
    }));
    let addr = front(Router::new().layer(proxy).layer(Extension(RemoteUser::from("alice")))).await;
    let token = assertion(&get(addr, "/x", "").await.mirrored());
    assert_eq!(claims(&token)["aud"], *origin, "not that of the first one");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_is_the_subject_and_a_claim_without_a_change(user in "\\PC{1,20}|[\\x00-\\x7f]{1,20}", name: String, value: String) {
        static LAYER: LazyLock<AssertionLayer> = LazyLock::new(|| {
            layer().claims(|(name, value): &(String, String), claims| claims.set(name, value.as_str()))
        });
        let mut request = request(&user);
        request.extensions_mut().insert((name.clone(), value.clone()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sent = runtime.block_on(sent(LAYER.clone(), request)).unwrap();
        let claims = claims(&token(&sent));
        prop_assert_eq!(&claims["sub"], &*user);
        prop_assert_eq!(&claims[name], &*value);
    }
}
