//! The sources of credentials: bearer tokens, and passwords of users.

use std::{
    convert::Infallible,
    future::{Future, pending},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    BoxError, Extension, Router,
    body::Body,
    extract::Request,
    http::{HeaderValue, Response, StatusCode},
};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};
use tower_reverse_proxy::{
    AuthorizationLayer, BasicAuthLayer, BearerLayer, Error, ErrorKind, RemoteUser, ReverseProxyLayer,
    authorize::{CredentialSource, Token},
};

use crate::support::{answering, front, get, others_run, recording, within};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn app<C: CredentialSource>(origin: &str, layer: AuthorizationLayer<C>) -> Router {
    let proxy = ReverseProxyLayer::new(origin)
        .on_error(|error| (error.status(), format!("{:?}", error.kind())))
        .upstream_layer(layer);
    Router::new().layer(proxy)
}

/// The `Authorization` that a backend in memory gets with one request. It answers 401 to `refused`.
async fn sent<C: CredentialSource>(layer: &AuthorizationLayer<C>, refused: &'static str) -> Result<String, Error> {
    let backend = service_fn(move |request: Request| async move {
        let value = request.headers().get("authorization").map(HeaderValue::as_bytes).unwrap_or_default();
        let value = String::from_utf8(value.to_vec()).unwrap();
        let status = if !refused.is_empty() && value.ends_with(refused) { 401 } else { 200 };
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.extensions_mut().insert(value);
        Ok::<_, Error>(response)
    });
    let mut response = layer.layer(backend).oneshot(Request::new(Body::empty())).await?;
    Ok(response.extensions_mut().remove().unwrap())
}

// ---- Fixed tokens, and those of users ----

#[tokio::test]
async fn a_fixed_token_replaces_the_clients_credentials() {
    let (origin, mut requests) = recording(OK).await;
    let addr = front(app(&origin, BearerLayer::fixed("mF_9.B5f-4.1JqM=="))).await;
    for fields in ["", "Authorization: Basic YTpi\r\nauthorization: Bearer mine\r\n"] {
        assert_eq!(get(addr, "/x", fields).await.status(), 200);
        assert_eq!(within(requests.recv()).await.unwrap().field("authorization"), Some("Bearer mF_9.B5f-4.1JqM=="));
    }
}

#[tokio::test]
async fn a_refused_token_is_502_if_it_is_the_fronts_and_403_if_it_is_a_users() {
    #[derive(Clone)]
    struct Session(Option<String>);
    let origin = answering("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 0\r\n\r\n").await;
    let user = BearerLayer::from_extension(|session: &Session| session.0.clone());
    for (app, status, challenge) in [
        (app(&origin, BearerLayer::fixed("a")), 502, None),
        (app(&origin, user.clone()).layer(Extension(Session(Some("a".into())))), 403, None),
        // Without credentials, the challenge isn't an answer to the front's.
        (app(&origin, user).layer(Extension(Session(None))), 401, Some("Bearer")),
    ] {
        let answer = get(front(app).await, "/x", "").await;
        assert_eq!((answer.status(), answer.field("www-authenticate")), (status, challenge));
    }
}

#[tokio::test]
async fn the_token_of_an_extension_is_sent_and_an_invalid_one_is_refused() {
    #[derive(Clone)]
    struct Session(Option<String>);
    let (origin, mut requests) = recording(OK).await;
    let layer = BearerLayer::from_extension(|session: &Session| session.0.clone());
    let session = |token: &str| Extension(Session(Some(token.to_owned())));
    let spoofed = "Authorization: Bearer mine\r\n";
    for (app, token) in [
        (app(&origin, layer.clone()).layer(session("alices")), Some("Bearer alices")),
        (app(&origin, layer.clone()).layer(Extension(Session(None))), None),
        (app(&origin, layer.clone()), None),
    ] {
        assert_eq!(get(front(app).await, "/x", spoofed).await.status(), 200);
        assert_eq!(within(requests.recv()).await.unwrap().field("authorization"), token);
    }
    for token in ["", "a b", "a\r\nX-Admin: 1", "a,b", "Bearer a", "jörg"] {
        let answer = get(front(app(&origin, layer.clone()).layer(session(token))).await, "/x", spoofed).await;
        assert_eq!((answer.status(), &*answer.text()), (403, "CredentialsMissing"), "{token:?}");
    }
    let answer = get(front(app(&origin, layer.required(true))).await, "/x", spoofed).await;
    assert_eq!((answer.status(), &*answer.text()), (403, "SignInRequired"));
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
}

#[test]
fn an_invalid_fixed_token_panics_without_showing_it() {
    for token in ["", "=", "Bearer s3cret", "s3cret\n", "s3=cret"] {
        let panic = std::panic::catch_unwind(|| BearerLayer::fixed(token)).unwrap_err();
        let message = panic.downcast_ref::<&str>().unwrap();
        assert!(message.contains("write it without \"Bearer\"") && !message.contains("cret"), "{message}");
    }
}

// ---- Tokens that are refreshed ----

/// A server for tokens. Each fetch takes a second, and the tokens are numbered.
#[derive(Clone, Default)]
struct Tokens {
    fetches: Arc<AtomicUsize>,
    fails: Arc<Mutex<Option<&'static str>>>,
    life: Duration,
}

impl Tokens {
    fn with_life(seconds: u64) -> Self {
        Self { life: Duration::from_secs(seconds), ..Self::default() }
    }

    fn layer(&self) -> BearerLayer {
        let this = self.clone();
        BearerLayer::refreshing(move || {
            let this = this.clone();
            let number = this.fetches.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                sleep(Duration::from_secs(1)).await;
                let fails = *this.fails.lock().unwrap();
                match fails {
                    Some("panic") => panic!("as the test wants"),
                    Some("hang") => pending().await,
                    Some(token @ "not a token") => Ok(Token { value: token.into(), expires_in: this.life }),
                    Some(error) => Err(io::Error::other(error)),
                    None => Ok(Token { value: number.to_string(), expires_in: this.life }),
                }
            }
        })
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    fn fail(&self, how: impl Into<Option<&'static str>>) {
        *self.fails.lock().unwrap() = how.into();
    }
}

async fn all<T: Send + 'static>(futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T> {
    let tasks: Vec<_> = futures.into_iter().map(tokio::spawn).collect();
    let mut all = Vec::new();
    for task in tasks {
        all.push(task.await.unwrap());
    }
    all
}

/// The token of one request.
async fn token(layer: &BearerLayer) -> String {
    let value = sent(layer, "").await.unwrap();
    value.strip_prefix("Bearer ").unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn concurrent_requests_share_one_fetch() {
    let tokens = Tokens::with_life(3600);
    let layer = tokens.layer();
    let start = Instant::now();
    let requests = (0..100).map(|_| {
        // A clone shares the token.
        let layer = layer.clone();
        async move { token(&layer).await }
    });
    assert_eq!(all(requests).await, vec!["1"; 100]);
    assert_eq!((tokens.fetches(), start.elapsed().as_secs()), (1, 1));
    assert_eq!(token(&layer).await, "1");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_outlives_the_request_that_started_it() {
    let tokens = Tokens::with_life(3600);
    let layer = tokens.layer();
    let first = tokio::spawn({
        let layer = layer.clone();
        async move { token(&layer).await }
    });
    others_run().await;
    let second = tokio::spawn({
        let layer = layer.clone();
        async move { token(&layer).await }
    });
    others_run().await;
    first.abort();
    assert_eq!((second.await.unwrap(), tokens.fetches()), ("1".to_owned(), 1));
    assert!(first.await.unwrap_err().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn after_80_percent_of_its_life_a_token_is_refreshed_in_the_background() {
    let tokens = Tokens::with_life(100);
    let layer = tokens.layer();
    assert_eq!(token(&layer).await, "1");
    sleep(Duration::from_secs(78)).await;
    assert_eq!((token(&layer).await, tokens.fetches()), ("1".to_owned(), 1));
    sleep(Duration::from_secs(2)).await;
    let start = Instant::now();
    let requests = (0..100).map(|_| {
        let layer = layer.clone();
        async move { token(&layer).await }
    });
    assert_eq!(all(requests).await, vec!["1"; 100]);
    assert_eq!((tokens.fetches(), start.elapsed()), (2, Duration::ZERO), "no request waits");
    sleep(Duration::from_secs(2)).await;
    assert_eq!((token(&layer).await, tokens.fetches()), ("2".to_owned(), 2));
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_not_sent() {
    let tokens = Tokens::with_life(100);
    let layer = tokens.layer();
    assert_eq!(token(&layer).await, "1");
    sleep(Duration::from_secs(99)).await;
    assert_eq!((token(&layer).await, tokens.fetches()), ("2".to_owned(), 2));
    // A life that is no point in time never ends.
    let tokens = Tokens { life: Duration::MAX, ..Tokens::default() };
    let layer = tokens.layer();
    assert_eq!(token(&layer).await, "1");
    sleep(Duration::from_secs(1_000_000)).await;
    assert_eq!((token(&layer).await, tokens.fetches()), ("1".to_owned(), 1));
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_keeps_the_token_while_it_is_valid() {
    let tokens = Tokens::with_life(100);
    let layer = tokens.layer();
    assert_eq!(token(&layer).await, "1");
    tokens.fail("no");
    sleep(Duration::from_secs(80)).await;
    for _ in 0..17 {
        assert_eq!(token(&layer).await, "1");
        sleep(Duration::from_millis(1_050)).await;
    }
    // Each fetch takes a second, and then there's a pause of another.
    assert!((8..=10).contains(&tokens.fetches()), "{}", tokens.fetches());
    sleep(Duration::from_secs(10)).await;
    let error = sent(&layer, "").await.unwrap_err();
    assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::CredentialsMissing, 502));
    tokens.fail(None);
    sleep(Duration::from_secs(1)).await;
    assert_ne!(token(&layer).await, "1");
}

#[tokio::test(start_paused = true)]
async fn a_failing_server_for_tokens_is_asked_once_a_second() {
    for (how, cause) in [
        ("no", "no"),
        ("not a token", "it isn't a bearer token (RFC 6750)"),
        ("panic", "the fetch of the token ended without a result"),
    ] {
        let tokens = Tokens::with_life(100);
        tokens.fail(how);
        let layer = tokens.layer();
        for fetches in [1, 2] {
            let request = || {
                let layer = layer.clone();
                async move { sent(&layer, "").await.unwrap_err() }
            };
            let mut errors = all((0..50).map(|_| request())).await;
            errors.extend(all((0..50).map(|_| request())).await);
            for error in errors {
                assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::CredentialsMissing, 502));
                assert!(error.is_unsent() && !error.is_client());
                assert_eq!(std::error::Error::source(&error).unwrap().to_string(), cause);
            }
            assert_eq!(tokens.fetches(), fetches, "{how}");
            sleep(Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_hangs_is_504_and_given_up_after_30_seconds() {
    let tokens = Tokens::with_life(100);
    tokens.fail("hang");
    let layer = tokens.layer();
    let start = Instant::now();
    for seconds in [10, 20] {
        assert_eq!(sent(&layer, "").await.unwrap_err().kind(), ErrorKind::CredentialsTimeout);
        assert_eq!((start.elapsed().as_secs(), tokens.fetches()), (seconds, 1));
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(sent(&layer, "").await.unwrap_err().kind(), ErrorKind::CredentialsMissing);
    assert_eq!(start.elapsed().as_secs(), 30);
    tokens.fail(None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(token(&layer).await, "2");
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_replaced_once_it_is_a_second_old() {
    let tokens = Tokens::with_life(3600);
    let layer = tokens.layer();
    assert_eq!(token(&layer).await, "1");
    sleep(Duration::from_secs(60)).await;
    let refused = sent(&layer, "1").await.unwrap_err();
    assert_eq!((refused.kind(), refused.status().as_u16()), (ErrorKind::CredentialsRefused, 502));
    assert_eq!(tokens.fetches(), 1);
    // The next requests share the fetch of the new one.
    let requests = (0..100).map(|_| {
        let layer = layer.clone();
        async move { token(&layer).await }
    });
    assert_eq!((all(requests).await, tokens.fetches()), (vec!["2".to_owned(); 100], 2));

    // The new one took a second. A refusal of it right after that asks for no third one within another.
    let tokens = Tokens::with_life(3600);
    let layer = BearerLayer::refreshing({
        let tokens = tokens.clone();
        move || {
            let value = (tokens.fetches.fetch_add(1, Ordering::SeqCst) + 1).to_string();
            async move { Ok::<_, Infallible>(Token { value, expires_in: Duration::from_secs(3600) }) }
        }
    });
    for _ in 0..100 {
        assert_eq!(sent(&layer, "1").await.unwrap_err().kind(), ErrorKind::CredentialsRefused);
    }
    assert_eq!(tokens.fetches(), 1, "the backend refuses it whatever it is");
    sleep(Duration::from_secs(1)).await;
    assert_eq!((token(&layer).await, tokens.fetches()), ("2".to_owned(), 2));
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_kept_if_there_is_no_other() {
    let tokens = Tokens::with_life(3600);
    let layer = tokens.layer();
    assert_eq!(token(&layer).await, "1");
    sleep(Duration::from_secs(60)).await;
    tokens.fail("no");
    sent(&layer, "1").await.unwrap_err();
    assert_eq!((token(&layer).await, tokens.fetches()), ("1".to_owned(), 2));
}

/// A token server's answer without `expires_in` is often read as 0.
#[tokio::test(start_paused = true)]
async fn a_token_without_a_life_is_fetched_once_a_second() {
    let fetches = Arc::new(AtomicUsize::new(0));
    let layer = BearerLayer::refreshing({
        let fetches = fetches.clone();
        move || {
            let value = (fetches.fetch_add(1, Ordering::SeqCst) + 1).to_string();
            async move { Ok::<_, Infallible>(Token { value, expires_in: Duration::ZERO }) }
        }
    });
    for number in ["1", "2"] {
        for _ in 0..50 {
            assert_eq!(token(&layer).await, number);
        }
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(fetches.load(Ordering::SeqCst), 2);
}

// ---- Passwords ----

#[tokio::test]
async fn each_user_has_the_password_that_the_closure_returns() {
    let (origin, mut requests) = recording(OK).await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let layer = BasicAuthLayer::passwords({
        let asked = asked.clone();
        move |user: RemoteUser| {
            asked.lock().unwrap().push(user.to_string());
            async move {
                tokio::task::yield_now().await;
                match user.as_str() {
                    "alice" => Ok(Some("s3cret".to_owned())),
                    "newline" => Ok(Some("s3cret\r\nX-Admin: 1".to_owned())),
                    "vault" => Err(io::Error::other("the vault is sealed")),
                    _ => Ok(None),
                }
            }
        }
    });
    for (user, status, page) in [
        (Some("alice"), 200, "ok"),
        (None, 200, "ok"),
        (Some("bob"), 403, "CredentialsMissing"),
        (Some("newline"), 403, "CredentialsMissing"),
        (Some("vault"), 503, "IdentityUnknown"),
        (Some("a:b"), 403, "UnrepresentableUser"),
        (Some(""), 403, "UnrepresentableUser"),
    ] {
        let app = app(&origin, layer.clone());
        let app = match user {
            Some(user) => app.layer(Extension(RemoteUser::from(user))),
            None => app,
        };
        let answer = get(front(app).await, "/x", "Authorization: Basic YTpi\r\n").await;
        assert_eq!((answer.status(), &*answer.text()), (status, page), "{user:?}");
        if status == 200 {
            let sent = within(requests.recv()).await.unwrap();
            assert_eq!(sent.field("authorization"), user.map(|_| "Basic YWxpY2U6czNjcmV0"));
        }
    }
    assert!(requests.try_recv().is_err(), "nothing else is forwarded");
    assert_eq!(
        *asked.lock().unwrap(),
        ["alice", "bob", "newline", "vault"],
        "a name that can't be sent isn't looked up"
    );
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_hangs_is_504_after_the_deadline() {
    let layer = BasicAuthLayer::passwords(|_| pending::<Result<Option<String>, Infallible>>());
    let backend = service_fn(async |_: Request| -> Result<Response<Body>, BoxError> { panic!("nothing is sent") });
    let mut request = Request::new(Body::empty());
    request.extensions_mut().insert(RemoteUser::from("alice"));
    let start = Instant::now();
    let error = layer.deadline(Duration::from_secs(3)).layer(backend).oneshot(request).await.unwrap_err();
    let error = error.downcast::<Error>().unwrap();
    assert_eq!((error.kind(), start.elapsed().as_secs()), (ErrorKind::CredentialsTimeout, 3));
}

#[tokio::test(start_paused = true)]
async fn debug_output_and_errors_show_no_token_and_no_password() {
    let tokens = Tokens::with_life(60);
    tokens.fail("not a token");
    let layer = tokens.layer();
    let error = sent(&layer, "").await.unwrap_err();
    let mut shown = format!("{layer:?} {error:?} {error} ");
    shown += &format!("{:?} ", BearerLayer::fixed("not"));
    shown += &format!("{:?} ", BasicAuthLayer::new("front", "not"));
    shown += &format!("{:?} ", BasicAuthLayer::remote_user("not"));
    shown += &format!("{:?} ", Token { value: "not".into(), expires_in: Duration::ZERO });
    assert!(!shown.contains("not") && shown.contains("CredentialsMissing"), "{shown}");
}
