//! The realm as `.ci/kerberos/realm.py` describes it, and apps in front of its backend.

use std::{
    env, fs, io,
    process::Command,
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, Request, StatusCode, header::HOST},
    routing::get,
};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_reverse_proxy::{
    DelegatedCredential, Failure, HostPolicy, NegotiateLayer, RemoteUser, ReverseProxyLayer, Upstream,
    authorize::negotiate::libgssapi::{
        context::{ClientCtx, CtxFlags, SecurityContext, ServerCtx},
        credential::{Cred, CredUsage},
        name::Name,
        oid::{GSS_MECH_SPNEGO, GSS_NT_HOSTBASED_SERVICE, GSS_NT_USER_NAME, OidSet},
    },
};

use super::support::within;

pub(crate) const BACKEND: &str = "HTTP@backend.kit.test";
pub(crate) const FRONT: &str = "HTTP/localhost@KIT.TEST";

/// Reads a variable that the realm sets.
pub(crate) fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} isn't set: run python3 .ci/kerberos/run.py"))
}

/// Returns the origin of Apache.
pub(crate) fn origin() -> String {
    format!("http://127.0.0.1:{}", var("KIT_BACKEND_PORT"))
}

/// An app with `/local` of its own, and Apache's locations below `/app`.
pub(crate) fn app(layer: NegotiateLayer) -> Router {
    app_to(Upstream::new(&*origin()).host(HostPolicy::Backend), layer)
}

pub(crate) fn app_to(upstream: Upstream, layer: NegotiateLayer) -> Router {
    LazyLock::force(&SUBSCRIBED);
    let kind = |failure: &Failure| {
        let kind = format!("{:?}", failure.error().kind());
        (failure.error().status(), [("x-kind", kind)], "failed")
    };
    let proxy =
        ReverseProxyLayer::with_upstream(upstream).prefix("/app").strip_prefix().upstream_layer(layer).on_error(kind);
    Router::new().route("/local", get(|| async { "local" })).layer(proxy)
}

/// A response, and what Apache prints of its request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// A line that Apache prints, such as `user=alice@KIT.TEST`.
    pub(crate) fn line(&self, name: &str) -> &str {
        let mut lines = self.text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(key, _)| *key == name).unwrap_or_else(|| panic!("no {name} in {self:?}")).1
    }

    /// Returns the user whom Apache has signed in.
    #[track_caller]
    pub(crate) fn user(&self) -> &str {
        assert_eq!(self.status, 200, "{self:?}");
        self.line("user")
    }

    /// Returns the kind of the failure; an empty text if there is none.
    pub(crate) fn kind(&self) -> &str {
        self.headers.get("x-kind").map_or("", |kind| kind.to_str().unwrap())
    }

    #[track_caller]
    pub(crate) fn failed(&self, status: u16, kind: &str) {
        assert_eq!((self.status.as_u16(), self.kind()), (status, kind), "{self:?}");
        assert_eq!(self.text, "failed", "the backend's page comes through");
        assert!(
            !self.headers.contains_key("www-authenticate"),
            "the client is asked for the backend's sign-in: {self:?}"
        );
    }
}

pub(crate) async fn send(app: &Router, mut request: Request<Body>) -> Answer {
    request.headers_mut().entry(HOST).or_insert(HeaderValue::from_static("front.example"));
    let response = within(app.clone().oneshot(request)).await.unwrap();
    let (head, body) = response.into_parts();
    let body = within(body.collect()).await.unwrap().to_bytes();
    assert!(!LEAKED.load(Ordering::SeqCst), "an event has a token in it: {}", events());
    Answer { status: head.status, headers: head.headers, text: String::from_utf8_lossy(&body).into_owned() }
}

/// Sends `GET path`, with no user.
pub(crate) async fn ask(app: &Router, path: &str) -> Answer {
    send(app, Request::get(path).body(Body::empty()).unwrap()).await
}

/// Sends `GET path` as the request of this signed-in user.
pub(crate) async fn ask_as(app: &Router, path: &str, user: &str) -> Answer {
    send(app, Request::get(path).extension(RemoteUser::from(user)).body(Body::empty()).unwrap()).await
}

/// Sends `GET path` with a forwarded credential.
pub(crate) async fn ask_with(app: &Router, path: &str, credential: &DelegatedCredential) -> Answer {
    send(app, Request::get(path).extension(credential.clone()).body(Body::empty()).unwrap()).await
}

/// Lets the pool observe, with two requests, that the backend keeps idle connections. Before that, requests that can't
/// be replayed use new ones.
pub(crate) async fn observed(app: &Router, path: &str, user: &str) {
    ask_as(app, path, user).await.user();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    ask_as(app, path, user).await.user();
    pooled().await;
}

/// Waits until the connection of the last request is in the pool again, which is soon after the end of the body.
pub(crate) async fn pooled() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Signs a user in as a browser that forwards its ticket and an application that accepts it do.
pub(crate) fn forwarded_by(user: &str) -> DelegatedCredential {
    let name = Name::new(user.as_bytes(), Some(GSS_NT_USER_NAME)).unwrap();
    let spnego = OidSet::singleton(GSS_MECH_SPNEGO).unwrap();
    let password = format!("{user}pw");
    let ticket = Cred::acquire_with_password(Some(&name), &password, None, CredUsage::Initiate, Some(&spnego)).unwrap();
    let front = Name::new(b"HTTP@localhost", Some(GSS_NT_HOSTBASED_SERVICE)).unwrap();
    let mut browser = ClientCtx::new(Some(ticket), front, CtxFlags::GSS_C_DELEG_FLAG, Some(GSS_MECH_SPNEGO));
    let token = browser.step(None, None).unwrap().unwrap();
    let key = Cred::acquire(None, None, CredUsage::Accept, None).unwrap();
    let mut acceptor = ServerCtx::new(Some(key));
    acceptor.step(&token, None).unwrap();
    assert_eq!(acceptor.source_name().unwrap().to_string(), format!("{user}@KIT.TEST"));
    acceptor.take_delegated_cred().expect("a forwardable ticket").into()
}

/// A line of Apache's access log.
#[derive(Debug)]
pub(crate) struct Access {
    /// The address of the connection's other end.
    pub(crate) address: String,
    /// Its port, as [`Answer::line`] has it.
    pub(crate) port: String,
    pub(crate) user: String,
    pub(crate) status: String,
}

/// Waits for `count` requests of this path to be logged, which is after their responses, and returns them.
pub(crate) async fn accesses(path: &str, count: usize) -> Vec<Access> {
    for _ in 0..200 {
        let seen = accessed(path);
        if seen.len() >= count {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("Apache hasn't logged {count} requests of {path}");
}

fn accessed(path: &str) -> Vec<Access> {
    let log = fs::read_to_string(var("KIT_ACCESS_LOG")).unwrap();
    let mut seen = Vec::new();
    for line in log.lines() {
        let words: Vec<_> = line.split(' ').collect();
        if let [_, address, port, user, status, _, uri] = words[..]
            && uri == path
        {
            let [address, port, user, status] = [address, port, user, status].map(str::to_owned);
            seen.push(Access { address, port, user, status });
        }
    }
    seen
}

/// Asserts that no request of this path has reached the backend.
pub(crate) async fn unseen(path: &str) {
    tokio::time::sleep(Duration::from_millis(50)).await;
    let seen = accesses(path, 0).await;
    assert!(seen.is_empty(), "{seen:?}");
}

/// A position in the KDC's log.
pub(crate) struct KdcLog(usize);

impl KdcLog {
    pub(crate) fn now() -> Self {
        Self(fs::read(var("KIT_KDC_LOG")).unwrap().len())
    }

    /// Counts the requests of this type since then whose lines contain this text.
    pub(crate) fn count(&self, request: &str, text: &str) -> usize {
        let log = fs::read(var("KIT_KDC_LOG")).unwrap();
        let log = String::from_utf8_lossy(&log[self.0..]).into_owned();
        log.lines().filter(|line| line.contains(request) && line.contains(text)).count()
    }
}

/// Runs a command of kadmin.
pub(crate) fn kadmin(command: &str) {
    let done = Command::new(var("KIT_KADMIN")).args(command.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && !said.contains(" while "), "{command}: {said}");
}

static EVENTS: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static LEAKED: AtomicBool = AtomicBool::new(false);
static SUBSCRIBED: LazyLock<()> = LazyLock::new(|| {
    tracing_subscriber::fmt().with_env_filter("tower_reverse_proxy=trace").with_ansi(false).with_writer(|| Sink).init();
});

/// The events since the last call.
pub(crate) fn events() -> String {
    String::from_utf8(std::mem::take(&mut *EVENTS.lock().unwrap())).unwrap()
}

struct Sink;

impl io::Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // The beginnings of a client's and a server's tokens in Base64.
        let tokens = [&b"YII"[..], b"oYG", b"oYH", b"YIG"];
        if line.windows(3).any(|window| tokens.contains(&window)) {
            LEAKED.store(true, Ordering::SeqCst);
        }
        EVENTS.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
