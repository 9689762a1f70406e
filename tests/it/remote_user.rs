//! The ways in which a [`RemoteUserLayer`] finds the user, and what it sends besides the name.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    BoxError, Extension, Router,
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, Response, StatusCode, header::AUTHORIZATION, request::Parts},
};
use http_body_util::{BodyExt, channel::Channel};
use tokio::{sync::mpsc::unbounded_channel, time::Instant};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_reverse_proxy::{
    BasicAuthLayer, Client, Error, ErrorKind, RemoteUser, RemoteUserLayer, ReverseProxyLayer, remote_user::Encoding,
};

use crate::support::{Message, ask, client, front, get, http2, mirror, recording, within};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn app(origin: &str, layer: RemoteUserLayer) -> Router {
    Router::new().layer(ReverseProxyLayer::new(origin).keep_underscores(true).upstream_layer(layer))
}

/// Who is signed in, in an extension of the application's own.
#[derive(Clone, Default)]
struct Account {
    name: Option<String>,
    email: Option<String>,
    groups: Vec<String>,
}

impl Account {
    fn named(name: &str) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }

    fn in_groups(groups: &[&str]) -> Self {
        Self { groups: groups.iter().copied().map(str::to_owned).collect(), ..Self::named("alice") }
    }
}

fn name(account: &Account) -> Option<String> {
    account.name.clone()
}

/// The octets of a text, each as the Latin-1 character that [`Message`] has for it.
fn octets(text: &str) -> String {
    text.bytes().map(char::from).collect()
}

// ---- Lookups ----

/// The handle of a session. Its store may fail.
#[derive(Clone)]
struct Session(Result<Option<&'static str>, Broken>);

#[derive(Clone, Copy, Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the store of sessions is down")
    }
}

impl std::error::Error for Broken {}

async fn look_up(session: Session) -> Result<Option<&'static str>, Broken> {
    tokio::task::yield_now().await;
    session.0
}

#[tokio::test]
async fn a_lookup_finds_the_user_or_none() {
    let app = app(&mirror().await, RemoteUserLayer::from_extension_async(look_up));
    for (app, user) in [
        (app.clone().layer(Extension(Session(Ok(Some("alice"))))), Some("alice")),
        (app.clone().layer(Extension(Session(Ok(None)))), None),
        (app.clone(), None),
        // The session takes precedence over `RemoteUser`.
        (app.layer(Extension(Session(Ok(None)))).layer(Extension(RemoteUser::from("other"))), None),
    ] {
        let mirrored = get(front(app).await, "/x", "Remote-User: root\r\nRemote_User: root\r\n").await.mirrored();
        assert_eq!(mirrored.field("remote-user"), user);
        assert!(!mirrored.head.contains("root"), "{}", mirrored.head);
    }
}

#[tokio::test]
async fn a_failed_lookup_refuses_the_request_although_no_user_is_required() {
    let (origin, mut requests) = recording(OK).await;
    for required in [false, true] {
        let layer = RemoteUserLayer::from_extension_async(look_up).required(required);
        let app = app(&origin, layer).layer(Extension(Session(Err(Broken))));
        let answer = get(front(app).await, "/x", "").await;
        assert_eq!((answer.status(), &*answer.text()), (503, "Service Unavailable"));
    }
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
}

#[tokio::test]
async fn a_lookup_without_a_required_user_is_refused() {
    let (origin, mut requests) = recording(OK).await;
    let app = app(&origin, RemoteUserLayer::from_extension_async(look_up).required(true));
    for app in [app.clone(), app.layer(Extension(Session(Ok(None))))] {
        assert_eq!(get(front(app).await, "/x", "").await.status(), 403);
    }
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
}

/// A service that counts its calls, and fails as a client does.
fn counting(calls: Arc<AtomicUsize>) -> impl Service<Request, Response = (), Error = BoxError, Future: Send> + Clone {
    service_fn(move |_: Request| {
        calls.fetch_add(1, Ordering::Relaxed);
        ready(Ok(()))
    })
}

fn with_session() -> Request {
    let mut request = Request::default();
    request.extensions_mut().insert(Session(Ok(Some("alice"))));
    request
}

#[tokio::test(start_paused = true)]
async fn a_lookup_has_a_deadline_of_ten_seconds_or_as_set() {
    let layer = RemoteUserLayer::from_extension_async(|_: Session| pending::<Result<Option<String>, Infallible>>());
    for (layer, seconds) in [(layer.clone(), 10), (layer.deadline(Duration::from_secs(2)), 2)] {
        let (calls, begin) = (Arc::<AtomicUsize>::default(), Instant::now());
        let error = within(layer.layer(counting(calls.clone())).oneshot(with_session())).await.unwrap_err();
        assert_eq!(begin.elapsed().as_secs(), seconds);
        let error = error.downcast::<Error>().unwrap();
        assert_eq!((error.kind(), error.status()), (ErrorKind::IdentityUnknown, StatusCode::SERVICE_UNAVAILABLE));
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, format!("the lookup of the user took longer than {seconds}s"));
        assert_eq!(calls.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
async fn the_error_of_a_lookup_is_the_cause_of_the_refusal() {
    let layer = RemoteUserLayer::from_extension_async(|_: Session| async { Err::<Option<String>, _>(Broken) });
    let error = within(layer.layer(counting(Arc::default())).oneshot(with_session())).await.unwrap_err();
    let error = error.downcast::<Error>().unwrap();
    assert!(std::error::Error::source(&error).unwrap().is::<Broken>());
    assert!(!error.is_client());
}

#[tokio::test]
async fn a_cancelled_request_drops_its_lookup() {
    let held = Arc::new(());
    let lookup = held.clone();
    let layer = RemoteUserLayer::from_extension_async(move |_: Session| {
        let held = lookup.clone();
        async move {
            pending::<()>().await;
            drop(held);
            Ok::<Option<String>, Infallible>(None)
        }
    });
    let mut call = Box::pin(layer.layer(counting(Arc::default())).oneshot(with_session()));
    assert!(call.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
    assert_eq!(Arc::strong_count(&held), 3);
    drop(call);
    assert_eq!(Arc::strong_count(&held), 2);
}

/// A service that panics if it's called without being ready. A clone isn't ready.
#[derive(Debug, Default)]
struct Ready(bool);

impl Clone for Ready {
    fn clone(&self) -> Self {
        Self(false)
    }
}

impl Service<Request> for Ready {
    type Response = ();
    type Error = BoxError;
    type Future = std::future::Ready<Result<(), BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0 = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        assert!(std::mem::take(&mut self.0), "called without being ready");
        ready(Ok(()))
    }
}

#[tokio::test]
async fn the_service_that_was_ready_is_the_one_that_is_called_after_a_lookup() {
    let mut service = RemoteUserLayer::from_extension_async(look_up).layer(Ready::default());
    for _ in 0..3 {
        within(service.ready()).await.unwrap().call(with_session()).await.unwrap();
    }
}

// ---- The head of the request ----

#[tokio::test]
async fn the_head_of_a_request_names_the_user() {
    let layer = RemoteUserLayer::from_parts(|parts: &Parts| {
        let token = parts.headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
        let tokens = parts.extensions.get::<Arc<HashMap<&str, &str>>>()?;
        Some(format!("{}@{}", tokens.get(token)?, parts.uri.host()?))
    });
    let tokens = Arc::new(HashMap::from([("t1", "alice")]));
    let addr = front(app(&mirror().await, layer).layer(Extension(tokens))).await;
    // The URI is that of the request to the backend.
    for (fields, user) in
        [("Authorization: Bearer t1\r\n", Some("alice@127.0.0.1")), ("Authorization: Bearer x\r\n", None), ("", None)]
    {
        let mirrored = get(addr, "/x", &format!("{fields}Remote-User: root\r\n")).await.mirrored();
        assert_eq!(mirrored.field("remote-user"), user);
    }
}

#[tokio::test]
async fn the_head_has_no_field_of_the_client_that_the_layer_sets() {
    let layer = RemoteUserLayer::from_parts(|parts: &Parts| {
        let names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).filter(|name| name.starts_with('x')).collect();
        Some(names.join(" "))
    });
    let layer = layer.header("X-App-User").also::<Account>("X-App-Mail", |account| account.email.clone());
    let fields = "X-App-User: root\r\nX.App.User: root\r\nX-App-Mail: root\r\nX_App_Mail: root\r\nX-Other: 1\r\n";
    let addr = front(app(&mirror().await, layer)).await;
    let mirrored = get(addr, "/x", fields).await.mirrored();
    assert!(!mirrored.head.contains("root"), "{}", mirrored.head);
    let names = mirrored.field("x-app-user").unwrap();
    assert!(names.contains("x-other") && !names.contains("app"), "{names}");
}

// ---- Encodings and mapped names ----

#[tokio::test]
async fn the_name_is_sent_in_the_encoding_of_the_layer() {
    let origin = mirror().await;
    let layer = RemoteUserLayer::from_extension(name)
        .also("Remote-Email", |account: &Account| account.email.clone())
        .also_list("Remote-Groups", '|', |account: &Account| account.groups.clone());
    for (encoding, user, email, groups) in [
        (Encoding::Utf8, &*octets("jörg 1%"), "a+b@x.example", &*octets("Büro|dev,ops")),
        (Encoding::Percent, "j%C3%B6rg%201%25", "a%2Bb%40x.example", "B%C3%BCro|dev%2Cops"),
        (Encoding::Rfc2047, "=?UTF-8?Q?j=C3=B6rg=201=25?=", "a+b@x.example", "=?UTF-8?Q?B=C3=BCro?=|dev,ops"),
        (Encoding::Base64, "asO2cmcgMSU=", "YStiQHguZXhhbXBsZQ==", "QsO8cm8=|ZGV2LG9wcw=="),
    ] {
        let account = Account {
            name: Some("jörg 1%".into()),
            email: Some("a+b@x.example".into()),
            groups: vec!["Büro".into(), "dev,ops".into()],
        };
        let addr = front(app(&origin, layer.clone().encoding(encoding)).layer(Extension(account))).await;
        let mirrored = get(addr, "/x", "").await.mirrored();
        let fields = ["remote-user", "remote-email", "remote-groups"].map(|name| mirrored.field(name).unwrap());
        assert_eq!(fields, [user, email, groups], "{encoding:?}");
    }
}

#[tokio::test]
async fn a_field_may_have_an_encoding_of_its_own() {
    let layer = RemoteUserLayer::from_extension(name)
        .also("Remote-Email", |account: &Account| account.email.clone())
        .also_list("Remote-Groups", '|', |account: &Account| account.groups.clone())
        .encoding_of("Remote-Groups", Encoding::Base64)
        .encoding(Encoding::Percent);
    let account = Account { name: Some("jörg".into()), email: Some("a+b".into()), groups: vec!["Büro".into()] };
    let addr = front(app(&mirror().await, layer).layer(Extension(account))).await;
    let mirrored = get(addr, "/x", "").await.mirrored();
    let fields = ["remote-user", "remote-email", "remote-groups"].map(|name| mirrored.field(name).unwrap());
    assert_eq!(fields, ["j%C3%B6rg", "a%2Bb", "QsO8cm8="]);
}

#[test]
#[should_panic(expected = "no field x-groups in the layer")]
fn an_encoding_of_a_field_that_is_not_there_is_refused() {
    let _ = RemoteUserLayer::new().encoding_of("X-Groups", Encoding::Base64);
}

#[tokio::test]
async fn a_mapped_name_is_sent_and_the_user_stays() {
    let layers = ServiceBuilder::new()
        .layer(
            RemoteUserLayer::from_extension(name)
                .map(|user| Some(user.as_str().strip_prefix("CORP\\")?.to_lowercase())),
        )
        .layer(BasicAuthLayer::remote_user("s3cret"));
    let proxy = ReverseProxyLayer::new(mirror().await).upstream_layer(layers);
    let addr = front(Router::new().layer(proxy).layer(Extension(Account::named("CORP\\Alice")))).await;
    let mirrored = get(addr, "/x", "").await.mirrored();
    assert_eq!(mirrored.field("remote-user"), Some("alice"));
    // `CORP\Alice:s3cret`
    assert_eq!(mirrored.field("authorization"), Some("Basic Q09SUFxBbGljZTpzM2NyZXQ="));
}

#[tokio::test]
async fn a_user_without_a_mapped_name_is_refused_and_not_the_same_as_no_user() {
    let (origin, mut requests) = recording(OK).await;
    for mapped in [None, Some(""), Some("a\nb"), Some("alice ")] {
        let layer = RemoteUserLayer::from_extension(name).map(move |_| mapped.map(str::to_owned));
        let app = app(&origin, layer).layer(Extension(Account::named("alice")));
        assert_eq!(get(front(app).await, "/x", "").await.status(), 403, "{mapped:?}");
    }
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
}

// ---- Further fields ----

/// A layer with three fields.
fn three_fields(layer: RemoteUserLayer) -> RemoteUserLayer {
    layer.header("X-App-User").also("X-App-Mail", |account: &Account| account.email.clone()).also_list(
        "X-App-Groups",
        ',',
        |account: &Account| account.groups.clone(),
    )
}

const OWNED: [&str; 3] = ["X-App-User", "X-App-Mail", "X-App-Groups"];

#[tokio::test]
async fn further_fields_are_sent_along_with_a_user_only() {
    let app = app(&mirror().await, three_fields(RemoteUserLayer::from_extension(name)));
    let alice = Account { email: Some("a@x.example".into()), ..Account::in_groups(&["staff", "ops"]) };
    let nobody = Account { name: None, ..alice.clone() };
    for (account, sent) in [
        (alice, [Some("alice"), Some("a@x.example"), Some("staff,ops")]),
        (Account::in_groups(&["staff"]), [Some("alice"), None, Some("staff")]),
        (Account::named("alice"), [Some("alice"), None, None]),
        (nobody, [None; 3]),
    ] {
        let mirrored = get(front(app.clone().layer(Extension(account))).await, "/x", "").await.mirrored();
        assert_eq!(OWNED.map(|name| mirrored.field(name)), sent);
    }
}

#[tokio::test]
async fn a_list_whose_members_would_be_misread_is_refused() {
    let (origin, mut requests) = recording(OK).await;
    let layer = three_fields(RemoteUserLayer::from_extension(name));
    let bad = [
        "dev,admin",
        ",",
        "",
        " ",
        "dev ",
        " dev",
        "\tdev",
        "a\r\nX-Inj: 1",
        "a\rb",
        "a\nb",
        "a\0b",
        "a\u{85}b",
        "a\u{7f}",
    ];
    for encoding in [Encoding::Utf8, Encoding::Percent, Encoding::Rfc2047, Encoding::Base64] {
        let app = app(&origin, layer.clone().encoding(encoding));
        for group in bad {
            let account = Account::in_groups(&["staff", group]);
            let answer = get(front(app.clone().layer(Extension(account))).await, "/x", "").await;
            assert_eq!((answer.status(), &*answer.text()), (403, "Forbidden"), "{group:?} in {encoding:?}");
        }
        for email in bad.iter().skip(2) {
            let account = Account { email: Some((*email).into()), ..Account::named("alice") };
            let answer = get(front(app.clone().layer(Extension(account))).await, "/x", "").await;
            assert_eq!(answer.status(), 403, "{email:?} in {encoding:?}");
        }
    }
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
}

#[tokio::test]
async fn a_required_user_needs_the_extensions_of_the_further_fields() {
    let (origin, mut requests) = recording(OK).await;
    let layer = RemoteUserLayer::new().also("Remote-Email", |account: &Account| account.email.clone());
    let alice = || Extension(RemoteUser::from("alice"));
    let answer = get(front(app(&origin, layer.clone().required(true)).layer(alice())).await, "/x", "").await;
    assert_eq!(answer.status(), 503);
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
    assert_eq!(get(front(app(&origin, layer).layer(alice())).await, "/x", "").await.status(), 200);
    let request = within(requests.recv()).await.unwrap();
    assert_eq!((request.field("remote-user"), request.field("remote-email")), (Some("alice"), None));
}

#[test]
fn a_layer_that_cannot_work_panics_with_what_to_write() {
    fn panics(message: &str, make: impl FnOnce() -> RemoteUserLayer + std::panic::UnwindSafe) {
        let panic = std::panic::catch_unwind(make).unwrap_err();
        let text =
            panic.downcast_ref::<String>().cloned().unwrap_or_else(|| (*panic.downcast_ref::<&str>().unwrap()).into());
        assert!(text.contains(message), "{text}");
    }
    let email = |account: &Account| account.email.clone();
    let groups = |account: &Account| account.groups.clone();
    let letters = "write letters, digits and hyphens";
    panics(letters, move || RemoteUserLayer::new().also("Remote Email", email));
    panics(letters, move || RemoteUserLayer::new().also_list("", ',', groups));
    let own = "give each field of the layer its own name";
    panics(own, move || RemoteUserLayer::new().also("Remote_User", email));
    panics(own, move || RemoteUserLayer::new().also("x-mail", email).also_list("X.Mail", ',', groups));
    panics(own, move || RemoteUserLayer::new().also("X-User", email).header("x-user"));
    for name in ["Host", "content-length", "Transfer_Encoding", "connection", "Upgrade", "TE", "Trailer", "Expect"] {
        panics("write another name, such as \"X-Remote-User\"", move || RemoteUserLayer::new().header(name));
        panics("write another name, such as \"X-Remote-User\"", move || RemoteUserLayer::new().also(name, email));
    }
    for separator in ['a', '0', ' ', '\t', '\r', '\0', '%', '=', '?', '+', '/', '-', '\u{85}', 'ä', '，'] {
        let mark = "write a punctuation mark, such as ',' or '|'";
        panics(mark, move || RemoteUserLayer::new().also_list("Remote-Groups", separator, groups));
    }
    for separator in [',', ';', '|', ':'] {
        let _ = RemoteUserLayer::new().also_list("Remote-Groups", separator, groups);
    }
}

#[test]
fn debug_shows_the_names_of_all_fields() {
    let text = format!("{:?}", three_fields(RemoteUserLayer::from_extension(name)).encoding(Encoding::Percent));
    for part in ["x-app-user", "x-app-mail", "x-app-groups", "Percent"] {
        assert!(text.contains(part), "{text}");
    }
}

// ---- Attacks ----

/// Each way to find a user, in a layer with three fields.
fn layers() -> [RemoteUserLayer; 4] {
    [
        three_fields(RemoteUserLayer::new()),
        three_fields(RemoteUserLayer::from_extension(name)),
        three_fields(RemoteUserLayer::from_extension_async(|account: Account| {
            ready(Ok::<_, Infallible>(account.name))
        })),
        three_fields(RemoteUserLayer::from_parts(|parts: &Parts| parts.extensions.get::<Account>()?.name.clone())),
    ]
}

/// Applications in which alice is signed in, and in which no user is, with what they send.
fn apps(origin: &str, layer: &RemoteUserLayer) -> [(Router, [Vec<&'static str>; 3]); 2] {
    let account = Account { email: Some("a@x.example".into()), ..Account::in_groups(&["staff"]) };
    let nobody = Account { name: None, ..account.clone() };
    let app = app(origin, layer.clone());
    [
        (
            app.clone().layer(Extension(account)).layer(Extension(RemoteUser::from("alice"))),
            [vec!["alice"], vec!["a@x.example"], vec!["staff"]],
        ),
        (app.layer(Extension(nobody)), [vec![], vec![], vec![]]),
    ]
}

/// A name in spellings that servers fold into the same variable.
fn spellings(name: &str) -> Vec<String> {
    let mut spellings: Vec<_> =
        ["-", "_", ".", "!", "~"].iter().map(|separator| name.replace('-', separator)).collect();
    spellings.extend([name.to_lowercase(), name.to_uppercase(), name.replacen('-', "_", 1)]);
    spellings
}

/// All values that a server could take for each of the fields.
fn folded(request: &Message) -> [Vec<&str>; 3] {
    OWNED.map(|name| {
        let fold = |name: &str| name.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let fields = request.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(other, _)| fold(other) == fold(name)).map(|(_, value)| value.trim()).collect()
    })
}

#[tokio::test]
async fn no_spelling_duplicate_or_nomination_of_an_owned_field_survives() {
    let origin = mirror().await;
    let lines =
        |names: &mut dyn Iterator<Item = String>| names.map(|name| format!("{name}: root\r\n")).collect::<String>();
    let spelled = lines(&mut OWNED.into_iter().flat_map(spellings));
    let plain = lines(&mut OWNED.into_iter().map(str::to_owned));
    let nominated = format!("Connection: {}\r\n", OWNED.join(", "));
    let attacks = [
        spelled.clone(),
        [&*plain, &plain].concat(),
        nominated.clone(),
        nominated.clone() + &plain,
        spelled + &nominated,
    ];
    for layer in layers() {
        for (app, sent) in apps(&origin, &layer) {
            let mut wire = client(front(app).await).await;
            for fields in &attacks {
                wire.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).await;
                let mirrored = wire.message().await.unwrap().mirrored();
                assert_eq!(folded(&mirrored), sent, "{fields}");
                assert!(!mirrored.head.contains("root"), "{}", mirrored.head);
            }
        }
    }
}

#[tokio::test]
async fn no_owned_field_survives_in_an_upgrade() {
    const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (origin, mut requests) = recording(SWITCH).await;
    for layer in layers() {
        for (app, sent) in apps(&origin, &layer) {
            let addr = front(app).await;
            for owned in OWNED {
                let fields: String = spellings(owned).iter().map(|name| format!("{name}: root\r\n")).collect();
                let mut wire = client(addr).await;
                let request = format!(
                    "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, {owned}\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{fields}\r\n"
                );
                wire.send(request.as_bytes()).await;
                assert_eq!(wire.message().await.unwrap().status(), 101);
                let request = within(requests.recv()).await.unwrap();
                assert_eq!(request.field("upgrade"), Some("websocket"));
                assert_eq!(folded(&request), sent);
                assert!(!request.head.contains("root"), "{}", request.head);
            }
        }
    }
}

#[tokio::test]
async fn no_owned_field_survives_as_a_trailer() {
    let (origin, mut requests) = recording(OK).await;
    let names: Vec<_> = OWNED.into_iter().flat_map(spellings).collect();
    let trailers: String = names.iter().map(|name| format!("{name}: root\r\n")).collect();
    let request = format!(
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: {}, X-Ok\r\n\r\n2\r\nhi\r\n0\r\n\
         {trailers}X-Ok: 1\r\n\r\n",
        names.join(", ")
    );
    for layer in layers() {
        for (app, sent) in apps(&origin, &layer) {
            assert_eq!(ask(front(app).await, &request).await.status(), 200);
            let request = within(requests.recv()).await.unwrap();
            assert_eq!((&*request.text(), request.field("trailer")), ("hi", Some("X-Ok")));
            assert_eq!(folded(&request), sent);
            assert_eq!(request.trailers.to_lowercase(), "x-ok: 1\r\n");
        }
    }
}

#[cfg(feature = "http2")]
#[tokio::test]
async fn no_owned_field_survives_as_a_field_or_trailer_over_http2() {
    let (seen, mut requests) = unbounded_channel();
    let backend = Router::new().fallback(async move |request: Request| {
        let headers = request.headers().clone();
        let body = within(request.into_body().collect()).await.unwrap();
        seen.send((headers, body.trailers().cloned().unwrap_or_default())).unwrap();
    });
    let origin = format!("http://{}", front(backend).await);
    let names: HeaderMap = OWNED
        .into_iter()
        .flat_map(spellings)
        .chain(["x-ok".into()])
        .map(|name| (name.parse::<HeaderName>().unwrap(), "root".parse().unwrap()))
        .collect();
    for layer in layers() {
        for signed_in in [true, false] {
            let client = Client::builder(&origin).http2(true).build().unwrap();
            let account = Account { name: signed_in.then(|| "alice".into()), ..Account::in_groups(&["staff"]) };
            let proxy = ReverseProxyLayer::new(client).upstream_layer(layer.clone());
            let mut app = Router::new().layer(proxy).layer(Extension(account));
            if signed_in {
                app = app.layer(Extension(RemoteUser::from("alice")));
            }
            let (mut sender, body) = Channel::<Bytes>::new(1);
            let mut request = Request::post("http://front.example/x").body(Body::new(body)).unwrap();
            request.headers_mut().extend(names.clone());
            let mut client = http2(front(app).await).await;
            let answer = client.send_request(request);
            sender.send_trailers(names.clone()).await.unwrap();
            drop(sender);
            assert_eq!(within(answer).await.unwrap().status(), 200);
            let (headers, trailers) = within(requests.recv()).await.unwrap();
            assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-ok"]);
            let forged: Vec<_> = headers.iter().filter(|(_, value)| *value == "root").map(|(name, _)| name).collect();
            assert_eq!(forged, ["x-ok"]);
            let sent =
                ["x-app-user", "x-app-groups"].map(|name| headers.get(name).map(|value| value.to_str().unwrap()));
            assert_eq!(sent, if signed_in { [Some("alice"), Some("staff")] } else { [None; 2] });
        }
    }
}

#[tokio::test]
async fn users_on_one_connection_keep_their_own_fields() {
    let layer = three_fields(RemoteUserLayer::from_extension_async(|account: Account| async move {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(account.name)
    }));
    let sign_in = axum::middleware::map_request(|mut request: Request| async {
        let name = request.headers_mut().remove("x-test-user").map(|name| name.to_str().unwrap().to_owned());
        let groups = name.iter().cloned().collect();
        request.extensions_mut().insert(Account { name, email: None, groups });
        request
    });
    let mut wire = client(front(app(&mirror().await, layer).layer(sign_in)).await).await;
    for user in [Some("alice"), None, Some("bob"), None] {
        let field = user.map(|user| format!("X-Test-User: {user}\r\n")).unwrap_or_default();
        wire.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{field}\r\n").as_bytes()).await;
        let mirrored = wire.message().await.unwrap().mirrored();
        assert_eq!(folded(&mirrored), [user.as_slice(), &[], user.as_slice()]);
    }
}

#[tokio::test]
async fn a_lookup_behind_the_credentials_of_another_user_is_refused() {
    let layers = ServiceBuilder::new()
        .layer(BasicAuthLayer::remote_user("s3cret"))
        .layer(RemoteUserLayer::from_extension_async(look_up));
    let service = layers.service(service_fn(|_: Request| async { Ok::<_, BoxError>(Response::new(Body::empty())) }));
    let error = within(service.oneshot(with_session())).await.unwrap_err().downcast::<Error>().unwrap();
    assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
}
