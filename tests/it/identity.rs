//! The signed-in user, as sent to the backend: set by the application only, never by the client.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, LazyLock},
};

use axum::{
    BoxError, Extension, Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, Request, connect_info::Connected},
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode},
    middleware::map_request,
    serve::IncomingStream,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use http_body_util::{BodyExt, channel::Channel};
use proptest::prelude::*;
use tokio::{net::TcpListener, sync::mpsc::unbounded_channel};
use tower::{Layer, ServiceExt, service_fn};
use tower_reverse_proxy::{
    BasicAuthLayer, Client, Error, ErrorKind, Forwarded, RemoteUser, RemoteUserLayer, ReverseProxyLayer,
};

use crate::support::{Message, ask, client, front, get, http2, mirror, recording, within};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A client-sent identity in every spelling that servers fold to the same name.
const SPOOFED: &str = "Remote-User: admin\r\nremote-user: root\r\nRemote_User: admin\r\nREMOTE_USER: admin\r\n\
    Remote.User: admin\r\nrEmOtE.uSeR: admin\r\nremote-user: x\r\nConnection: Remote-User\r\n";

/// An application that forwards `/mydir` with the user that `layer` finds.
fn app(origin: &str, layer: RemoteUserLayer) -> Router {
    Router::new().layer(ReverseProxyLayer::new(origin).prefix("/mydir").keep_underscores(true).upstream_layer(layer))
}

fn basic(origin: &str, layer: BasicAuthLayer) -> Router {
    Router::new().layer(ReverseProxyLayer::new(origin).prefix("/mydir").upstream_layer(layer))
}

/// All values that the backend could take for the user's name.
fn names(request: &Message) -> Vec<&str> {
    let folded = |name: &str| name.to_ascii_lowercase().replace(['_', '.'], "-");
    let fields = request.head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields.filter(|(name, _)| folded(name) == "remote-user").map(|(_, value)| value.trim()).collect()
}

/// The octets of a text, each as the Latin-1 character that [`Message`] has for it.
fn octets(text: &str) -> String {
    text.bytes().map(char::from).collect()
}

#[tokio::test]
async fn only_the_user_inserted_by_a_middleware_is_sent() {
    let origin = mirror().await;
    let addr = front(app(&origin, RemoteUserLayer::new()).layer(Extension(RemoteUser::from("alice")))).await;
    for fields in ["", SPOOFED] {
        let answer = get(addr, "/mydir/x", fields).await;
        assert_eq!(names(&answer.mirrored()), ["alice"]);
        assert_eq!(answer.field("remote-user"), None, "the field isn't sent to the client");
    }
}

#[tokio::test]
async fn without_a_user_no_user_field_is_sent() {
    let addr = front(app(&mirror().await, RemoteUserLayer::new())).await;
    for fields in ["", SPOOFED] {
        assert_eq!(names(&get(addr, "/mydir/x", fields).await.mirrored()), [""; 0]);
    }
}

#[tokio::test]
async fn a_field_of_another_name_is_guarded_in_every_spelling() {
    let header = HeaderName::from_static("x-auth-name");
    let layer = RemoteUserLayer::new().header(header);
    let origin = mirror().await;
    let anonymous = app(&origin, layer.clone());
    let alice = anonymous.clone().layer(Extension(RemoteUser::from("alice")));
    let spoofed = "X-Auth-Name: admin\r\nX_Auth_Name: admin\r\nX.AUTH.NAME: admin\r\nx-auth_name: admin\r\n\
        Remote-User: admin\r\nRemote_User: admin\r\nX-Auth-Names: harmless\r\n";
    for (app, sent_user) in [(anonymous, None), (alice, Some("alice"))] {
        let mirrored = get(front(app).await, "/mydir/x", spoofed).await.mirrored();
        assert!(!mirrored.head.contains("admin"), "{}", mirrored.head);
        assert_eq!(mirrored.field("x-auth-name"), sent_user);
        assert_eq!(mirrored.field("x-auth-names"), Some("harmless"));
    }
}

#[tokio::test]
async fn no_user_name_is_forwarded_as_a_trailer() {
    let (origin, mut requests) = recording(OK).await;
    let custom = RemoteUserLayer::new().header(HeaderName::from_static("x-auth-name"));
    for layer in [RemoteUserLayer::new(), custom] {
        let trailers = ["remote-user", "Remote_User", "Remote.User", "x-auth-name", "X_Auth_Name", "X-Auth.Name"];
        let own = if format!("{layer:?}").contains("x-auth-name") { "auth" } else { "remote" };
        let addr = front(app(&origin, layer)).await;
        let fields: String = trailers.iter().map(|name| format!("{name}: admin\r\n")).collect();
        let request = format!(
            "POST /mydir/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: {}\r\n\r\n2\r\nhi\r\n0\r\n{fields}\r\n",
            trailers.join(", ")
        );
        assert_eq!(ask(addr, request).await.status(), 200);
        let got = within(requests.recv()).await.unwrap();
        assert_eq!(got.text(), "hi");
        assert!(!got.trailers.to_lowercase().contains(own), "{}", got.trailers);
        assert!(!got.trailers.to_lowercase().contains("remote"), "{}", got.trailers);
        assert!(!got.head.to_lowercase().contains(own), "{}", got.head);
    }
}

#[tokio::test]
async fn requests_on_one_connection_keep_their_own_users() {
    let sign_in = map_request(|mut request: Request| async {
        if let Some(name) = request.headers_mut().remove("x-test-user") {
            request.extensions_mut().insert(RemoteUser::from(name.to_str().unwrap()));
        }
        request
    });
    let proxy = ReverseProxyLayer::new(mirror().await)
        .prefix("/mydir")
        .upstream_layer(RemoteUserLayer::new())
        .upstream_layer(BasicAuthLayer::remote_user("s3cret"));
    let mut wire = client(front(Router::new().layer(proxy).layer(sign_in)).await).await;
    for user in [Some("alice"), None, Some("bob"), None] {
        let field = user.map(|user| format!("X-Test-User: {user}\r\n")).unwrap_or_default();
        wire.send(format!("GET /mydir/x HTTP/1.1\r\nHost: a\r\n{field}\r\n").as_bytes()).await;
        let mirrored = wire.message().await.unwrap().mirrored();
        assert_eq!(names(&mirrored), user.as_slice());
        assert_eq!(credentials(&mirrored), user.map(|user| format!("{user}:s3cret")));
    }
}

#[tokio::test]
async fn without_a_required_user_nothing_is_forwarded() {
    let (origin, mut requests) = recording(OK).await;
    let anonymous = app(&origin, RemoteUserLayer::new().required(true));
    let alice = anonymous.clone().layer(Extension(RemoteUser::from("alice")));
    let anonymous = front(anonymous).await;
    for fields in ["", SPOOFED, "Authorization: Basic YTpi\r\n"] {
        let answer = get(anonymous, "/mydir/x", fields).await;
        assert_eq!((answer.status(), &*answer.text()), (403, "Forbidden"));
        assert_eq!(answer.field("www-authenticate"), None);
    }
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
    assert_eq!(get(front(alice).await, "/mydir/x", "").await.status(), 200);
    assert_eq!(names(&within(requests.recv()).await.unwrap()), ["alice"]);
}

#[tokio::test]
async fn an_unrepresentable_user_name_is_refused_and_never_altered() {
    let (origin, mut requests) = recording(OK).await;
    let unrepresentable =
        ["", " ", "alice ", " alice", "\talice", "a\r\nX-Inj: 1", "a\nb", "a\0", "a\u{7f}", "a\u{85}", "alice\u{a0}"];
    for name in unrepresentable {
        for app in [app(&origin, RemoteUserLayer::new()), basic(&origin, BasicAuthLayer::remote_user("s3cret"))] {
            let answer = get(front(app.layer(Extension(RemoteUser::from(name)))).await, "/mydir/x", "").await;
            assert_eq!(answer.status(), 403, "{name:?}");
            assert!(!answer.text().contains("alice"), "{name:?}");
        }
    }
    let app = basic(&origin, BasicAuthLayer::remote_user("s3cret")).layer(Extension(RemoteUser::from("a:b")));
    assert_eq!(get(front(app).await, "/mydir/x", "").await.status(), 403, "a colon would end the name in Basic");
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
}

#[tokio::test]
async fn a_representable_user_name_is_sent_octet_by_octet() {
    let origin = mirror().await;
    let long = "u".repeat(20_000);
    for name in ["alice", "CORP\\alice", "alice@corp.example", "jörg", "名", "a b", "a,b;c=\"d\"", &long] {
        let proxy = ReverseProxyLayer::new(&origin)
            .upstream_layer(RemoteUserLayer::new())
            .upstream_layer(BasicAuthLayer::remote_user("pässword"));
        let addr = front(Router::new().layer(proxy).layer(Extension(RemoteUser::from(name)))).await;
        let mirrored = get(addr, "/x", "").await.mirrored();
        assert_eq!(names(&mirrored), [octets(name)]);
        assert_eq!(credentials(&mirrored), Some(format!("{name}:pässword")));
    }
    let app = app(&origin, RemoteUserLayer::new()).layer(Extension(RemoteUser::from("a:b")));
    assert_eq!(
        names(&get(front(app).await, "/mydir/x", "").await.mirrored()),
        ["a:b"],
        "a colon is allowed in the field"
    );
}

/// The name and password of the request's one `Authorization`.
fn credentials(request: &Message) -> Option<String> {
    let encoded = request.field("authorization")?.strip_prefix("Basic ").expect("Basic");
    Some(String::from_utf8(BASE64_STANDARD.decode(encoded).unwrap()).unwrap())
}

#[tokio::test]
async fn basic_credentials_replace_those_of_the_client() {
    let origin = mirror().await;
    let fixed = BasicAuthLayer::new("service", "s3:cret");
    let user = BasicAuthLayer::remote_user("s3cret");
    let alice = Extension(RemoteUser::from("alice"));
    for (app, sent) in [
        (basic(&origin, fixed.clone()), Some("service:s3:cret")),
        (basic(&origin, fixed).layer(alice.clone()), Some("service:s3:cret")),
        (basic(&origin, user.clone()).layer(alice), Some("alice:s3cret")),
        (basic(&origin, user), None),
    ] {
        let addr = front(app).await;
        for fields in [
            "",
            "Authorization: Basic cm9vdDp0b29y\r\n",
            "Authorization: Bearer x\r\nauthorization: Basic cm9vdDp0b29y\r\nConnection: authorization\r\n",
        ] {
            let mirrored = get(addr, "/mydir/x", fields).await.mirrored();
            assert_eq!(credentials(&mirrored).as_deref(), sent, "{fields}");
        }
    }
}

#[test]
fn unrepresentable_fixed_credentials_panic_without_showing_the_password() {
    for (user, password) in [("a:b", "s3cret"), ("", "s3cret"), ("a", "s3cret\r\n"), ("a ", "s3cret")] {
        let panic = std::panic::catch_unwind(|| BasicAuthLayer::new(user, password)).unwrap_err();
        let message = panic.downcast_ref::<String>().map_or_else(|| *panic.downcast_ref().unwrap(), String::as_str);
        assert!(message.contains("write one without") && !message.contains("s3cret"), "{message}");
    }
}

// Where applications keep their users.

#[derive(Clone)]
struct User {
    name: String,
}

#[derive(Clone)]
struct Session {
    user: Option<User>,
}

#[tokio::test]
async fn from_extension_reads_an_optional_user_from_a_session() {
    let layer =
        RemoteUserLayer::from_extension(|session: &Session| session.user.as_ref().map(|user| user.name.clone()));
    let app = app(&mirror().await, layer);
    let alice = Session { user: Some(User { name: "alice".into() }) };
    for (app, sent_user) in [
        (app.clone(), None),
        (app.clone().layer(Extension(Session { user: None })), None),
        (app.clone().layer(Extension(alice)), Some("alice")),
        // The session takes precedence over `RemoteUser`.
        (app.layer(Extension(Session { user: None })).layer(Extension(RemoteUser::from("other"))), None),
    ] {
        assert_eq!(names(&get(front(app).await, "/mydir/x", SPOOFED).await.mirrored()), sent_user.as_slice());
    }
}

#[tokio::test]
async fn from_extension_reads_the_subject_of_claims() {
    #[derive(Clone)]
    struct Claims {
        sub: Arc<str>,
    }
    // Shared, not copied.
    let layer = RemoteUserLayer::from_extension(|claims: &Claims| Some(claims.sub.clone())).required(true);
    let app = app(&mirror().await, layer);
    let alice = app.clone().layer(Extension(Claims { sub: "alice".into() }));
    assert_eq!(names(&get(front(alice).await, "/mydir/x", "").await.mirrored()), ["alice"]);
    assert_eq!(get(front(app).await, "/mydir/x", "").await.status(), 403);
}

#[tokio::test]
async fn the_peer_of_a_connection_can_be_the_user() {
    #[derive(Clone)]
    struct Peer {
        subject: Option<String>,
    }
    impl Connected<IncomingStream<'_, TcpListener>> for Peer {
        fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
            Self { subject: Some(format!("cn={}", stream.remote_addr().ip())) }
        }
    }
    let layer = RemoteUserLayer::from_extension(|peer: &ConnectInfo<Peer>| peer.0.subject.clone());
    let app = app(&mirror().await, layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr: SocketAddr = listener.local_addr().unwrap();
    let service = app.into_make_service_with_connect_info::<Peer>();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    let mirrored = get(addr, "/mydir/x", SPOOFED).await.mirrored();
    assert_eq!(names(&mirrored), ["cn=127.0.0.1"]);
    assert_eq!(mirrored.field("x-forwarded-for"), None, "this connect info has no address");
}

// Spellings.

/// The header fields that a [`RemoteUserLayer`] passes on.
fn passed(layer: &RemoteUserLayer, user: Option<&str>, headers: HeaderMap) -> HeaderMap {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> =
        LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().unwrap());
    let echo = service_fn(|request: axum::http::Request<()>| async move {
        Ok::<_, Infallible>(Response::new(request.headers().clone()))
    });
    let mut request = axum::http::Request::new(());
    *request.headers_mut() = headers;
    request.extensions_mut().extend(
        user.map(RemoteUser::from)
            .map(|user| {
                let mut extensions = axum::http::Extensions::new();
                extensions.insert(user);
                extensions
            })
            .unwrap_or_default(),
    );
    let response: Result<_, BoxError> = RUNTIME.block_on(layer.layer(echo.map_err(BoxError::from)).oneshot(request));
    response.unwrap().into_body()
}

/// A name in any case and with any separators.
fn spelled(name: &'static str) -> impl Strategy<Value = String> {
    prop::collection::vec((any::<bool>(), prop::sample::select(vec!['-', '_', '.'])), name.len()).prop_map(|choices| {
        let spell = |(c, (upper, separator)): (char, (bool, char))| match c {
            '-' => separator,
            c if upper => c.to_ascii_uppercase(),
            c => c,
        };
        name.chars().zip(choices).map(spell).collect()
    })
}

proptest! {
    #[test]
    fn no_spelling_of_a_client_sent_identity_survives(
        spellings in prop::collection::vec(spelled("x-remote-user"), 1..8),
        configured in spelled("x-remote-user"),
        signed_in: bool,
    ) {
        let layer = RemoteUserLayer::new().header(&configured);
        let mut headers = HeaderMap::new();
        for name in &spellings {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("admin"));
        }
        headers.insert("x-remote-users", HeaderValue::from_static("stays"));
        headers.insert("trailer", HeaderValue::from_str(&spellings.join(", ")).unwrap());
        let mut headers = passed(&layer, signed_in.then_some("alice"), headers);
        prop_assert_eq!(headers.remove("x-remote-users").unwrap(), "stays");
        let sent_user = headers.remove(configured.to_ascii_lowercase());
        prop_assert_eq!(sent_user.as_ref().map(HeaderValue::as_bytes), signed_in.then_some(&b"alice"[..]));
        prop_assert!(headers.is_empty(), "{:?}", headers);
    }
}

/// The unannounced trailers of an HTTP/2 client that reach an HTTP/2 backend.
#[cfg(feature = "http2")]
async fn trailers_over_http2(layer: RemoteUserLayer, names: &[&str]) -> Vec<String> {
    let (seen, mut trailers) = unbounded_channel();
    let backend = Router::new().fallback(async move |request: Request| {
        let collected = within(request.into_body().collect()).await.unwrap();
        seen.send(collected.trailers().cloned().unwrap_or_default()).unwrap();
    });
    let origin = format!("http://{}", front(backend).await);
    let proxy = ReverseProxyLayer::new(Client::builder(origin).http2(true)).upstream_layer(layer);
    let (mut sender, body) = Channel::<Bytes>::new(1);
    let request = Request::post("http://front.example/x").body(Body::new(body)).unwrap();
    let mut client = http2(front(Router::new().layer(proxy)).await).await;
    let answer = client.send_request(request);
    let fields = names.iter().map(|name| (name.parse().unwrap(), HeaderValue::from_static("admin")));
    sender.send_trailers(fields.collect()).await.unwrap();
    drop(sender);
    assert_eq!(answer.await.unwrap().status(), 200);
    within(trailers.recv()).await.unwrap().keys().map(HeaderName::to_string).collect()
}

#[cfg(feature = "http2")]
#[tokio::test]
async fn no_reserved_name_is_forwarded_as_a_trailer_over_http2() {
    let names = ["remote-user", "x-ok", "remote_user", "remote.user", "authorization", "x-forwarded-for", "cookie"];
    assert_eq!(trailers_over_http2(RemoteUserLayer::new(), &names).await, ["x-ok"]);
}

#[cfg(feature = "http2")]
#[tokio::test]
async fn no_configured_name_is_forwarded_as_a_trailer_over_http2() {
    let layer = RemoteUserLayer::new().header(HeaderName::from_static("x-auth-name"));
    assert_eq!(trailers_over_http2(layer, &["x-auth-name", "x-ok"]).await, ["x-ok"]);
}

#[tokio::test]
async fn a_refusal_of_an_upstream_layer_is_handled_like_other_failures() {
    let (origin, mut seen) = recording(OK).await;
    let app = |user: Option<&'static str>| {
        let layer = ReverseProxyLayer::new(origin.clone())
            .on_error(|error| (error.status(), format!("page of {:?}", error.kind())))
            .upstream_layer(RemoteUserLayer::new().required(true));
        let router = Router::new().layer(layer);
        match user {
            Some(user) => router.layer(axum::Extension(RemoteUser::from(user))),
            None => router,
        }
    };
    for (user, status, page) in
        [(None, 403, "page of SignInRequired"), (Some("alice "), 403, "page of UnrepresentableUser")]
    {
        let answer = get(front(app(user)).await, "/x", "").await;
        assert_eq!((answer.status(), &*answer.text()), (status, page));
    }
    assert!(seen.try_recv().is_err());
}

const CHALLENGE: &str = "Basic realm=\"front\", charset=\"UTF-8\"";

#[tokio::test]
async fn a_challenge_makes_the_refusal_401_with_www_authenticate() {
    let (origin, mut seen) = recording(OK).await;
    let challenging = RemoteUserLayer::new().required(true).challenge(CHALLENGE);
    let layer = || ReverseProxyLayer::new(origin.clone());
    let plain = layer().upstream_layer(challenging.clone());
    let page = layer().on_error(|error| (error.status(), "page")).upstream_layer(challenging.clone());
    let elsewhere =
        layer().on_error(|_| (StatusCode::FOUND, [("location", "/sign-in")])).upstream_layer(challenging.clone());
    let own = [("www-authenticate", "Bearer")];
    let own = layer().on_error(move |error| (error.status(), own)).upstream_layer(challenging.clone());
    let optional = layer().upstream_layer(RemoteUserLayer::new().challenge(CHALLENGE));
    for (proxy, status, challenge) in [
        (Router::new().layer(plain), 401, Some(CHALLENGE)),
        (Router::new().layer(page), 401, Some(CHALLENGE)),
        (Router::new().layer(elsewhere), 302, None),
        (Router::new().layer(own), 401, Some("Bearer")),
        (Router::new().layer(optional), 200, None),
    ] {
        let answer = get(front(proxy).await, "/x", "").await;
        assert_eq!((answer.status(), answer.field("www-authenticate")), (status, challenge));
    }
    within(seen.recv()).await.unwrap();
    assert!(seen.try_recv().is_err(), "only the request without a required user is forwarded");

    // Around another client, the layer fails with the error.
    let client = challenging.layer(service_fn(|_: Request| async { Ok::<_, BoxError>(Response::new(Body::empty())) }));
    let error = client.oneshot(Request::default()).await.unwrap_err().downcast::<Error>().unwrap();
    assert_eq!((error.kind(), error.status()), (ErrorKind::SignInRequired, StatusCode::UNAUTHORIZED));
}

#[tokio::test]
async fn a_grpc_call_without_a_user_is_unauthenticated() {
    let layer =
        |user: RemoteUserLayer| Router::new().layer(ReverseProxyLayer::new("http://127.0.0.1:9").upstream_layer(user));
    for user in [RemoteUserLayer::new().required(true), RemoteUserLayer::new().required(true).challenge(CHALLENGE)] {
        let answer = get(front(layer(user)).await, "/x", "Content-Type: application/grpc\r\n").await;
        assert_eq!((answer.status(), answer.field("grpc-status")), (200, Some("16")));
    }
}

#[test]
fn an_invalid_challenge_panics_with_what_to_write() {
    for challenge in ["", "Basic\r\nX: 1", " Basic", "realm=\"x\"", "Basic "] {
        let panic = std::panic::catch_unwind(|| RemoteUserLayer::new().challenge(challenge)).unwrap_err();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains("such as \"Basic realm=\\\"front\\\"\""), "{challenge}: {message}");
    }
}

/// Identity claims that backends trust, in spellings that they fold.
const CLAIMED: &str = "Remote-Groups: admins\r\nRemote_Name: admins\r\nX-WEBAUTH-USER: admins\r\nX.Webauth.Email: admins\r\n\
    X-Auth-Request-User: admins\r\nTailscale-User-Login: admins\r\nX-MS-CLIENT-PRINCIPAL-NAME: admins\r\n\
    Client-Cert: :admins:\r\nX-SSL-Client-S-DN: admins\r\nes-security-runas-user: admins\r\n";

#[tokio::test]
async fn identity_claims_are_forwarded_for_trusted_peers_only() {
    let origin = mirror().await;
    let layer = || ReverseProxyLayer::new(origin.clone()).keep_underscores(true).upstream_layer(RemoteUserLayer::new());
    let alice = Extension(RemoteUser::from("alice"));
    for (layer, kept) in [
        (layer(), 0),
        (layer().forwarded(Forwarded::new().trust(["10.0.0.0/8"])), 0),
        (layer().forwarded(Forwarded::new().trust(["127.0.0.0/8"])), 10),
        (layer().keep_identity_claims(true), 10),
    ] {
        let addr = front(Router::new().layer(layer).layer(alice.clone())).await;
        let fields = format!("{CLAIMED}Remote-User: admins\r\nX-Request-Id: 7\r\n");
        let mirrored = get(addr, "/x", &fields).await.mirrored();
        assert_eq!(mirrored.head.matches("admins").count(), kept, "{}", mirrored.head);
        assert_eq!(names(&mirrored), ["alice"]);
        assert_eq!(mirrored.field("x-request-id"), Some("7"));
    }
}

#[tokio::test]
async fn no_identity_claim_is_forwarded_as_a_trailer() {
    let (origin, mut requests) = recording(OK).await;
    let addr = front(Router::new().layer(ReverseProxyLayer::new(origin))).await;
    let names: Vec<_> = CLAIMED.lines().map(|line| line.split(':').next().unwrap()).collect();
    let request = format!(
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Ok, {}\r\n\r\n0\r\nX-Ok: 1\r\n{CLAIMED}\r\n",
        names.join(", ")
    );
    assert_eq!(ask(addr, request).await.status(), 200);
    let got = within(requests.recv()).await.unwrap();
    assert!(!got.trailers.contains("admins"), "{}", got.trailers);
    assert_eq!(got.field("trailer"), Some("X-Ok"));
}

#[cfg(feature = "http2")]
#[tokio::test]
async fn no_identity_claim_is_forwarded_as_a_trailer_over_http2() {
    let names = ["remote-groups", "x-ok", "x-webauth-user", "client.cert", "x-ssl-cert", "tailscale-user-login"];
    assert_eq!(trailers_over_http2(RemoteUserLayer::new(), &names).await, ["x-ok"]);
}
