//! axum-login, which loads the user of a session before the proxy sees the request.

use std::convert::Infallible;

use axum::{Router, http::StatusCode, routing::post};
use axum_login::{AuthManagerLayer, AuthManagerLayerBuilder, AuthSession, AuthUser, AuthnBackend};
use tower::ServiceBuilder;
use tower_reverse_proxy::{BasicAuthLayer, RemoteUserLayer, ReverseProxyLayer};
use tower_sessions::{MemoryStore, SessionManagerLayer};

use crate::{
    cookie, forwarded,
    support::{ask, front, get, mirror, recording},
};

#[derive(Clone, Debug)]
struct Users;

#[derive(Clone, Debug)]
struct Account {
    name: String,
    groups: Vec<String>,
}

impl AuthUser for Account {
    type Id = String;

    fn id(&self) -> String {
        self.name.clone()
    }

    fn session_auth_hash(&self) -> &[u8] {
        self.name.as_bytes()
    }
}

impl AuthnBackend for Users {
    type User = Account;
    type Credentials = String;
    type Error = Infallible;

    async fn authenticate(&self, name: String) -> Result<Option<Account>, Infallible> {
        self.get_user(&name).await
    }

    async fn get_user(&self, name: &String) -> Result<Option<Account>, Infallible> {
        Ok(Some(Account { name: name.clone(), groups: vec!["staff".into(), "ops".into()] }))
    }
}

async fn login(mut session: AuthSession<Users>, name: String) -> StatusCode {
    let user = session.authenticate(name).await.unwrap().unwrap();
    session.login(&user).await.unwrap();
    StatusCode::NO_CONTENT
}

fn manager() -> AuthManagerLayer<Users, MemoryStore> {
    AuthManagerLayerBuilder::new(Users, SessionManagerLayer::new(MemoryStore::default()).with_secure(false)).build()
}

fn layer() -> RemoteUserLayer {
    RemoteUserLayer::from_extension(|session: &AuthSession<Users>| Some(session.user.as_ref()?.name.clone())).also_list(
        "Remote-Groups",
        ',',
        |session: &AuthSession<Users>| session.user.as_ref().map(|user| user.groups.clone()).unwrap_or_default(),
    )
}

const SIGN_IN: &str = "POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nalice";

#[tokio::test]
async fn the_user_of_a_session_is_sent_with_the_groups() {
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/legacy").hide_cookies(["id"]).upstream_layer(layer());
    // In the order in which they see a request.
    let layers = ServiceBuilder::new().layer(manager()).layer(proxy);
    let addr = front(Router::new().route("/login", post(login)).layer(layers)).await;

    let anonymous = forwarded(addr, "").await;
    assert_eq!((anonymous.field("remote-user"), anonymous.field("remote-groups")), (None, None));
    let alice = forwarded(addr, &cookie(&ask(addr, SIGN_IN).await)).await;
    assert_eq!((alice.field("remote-user"), alice.field("remote-groups")), (Some("alice"), Some("staff,ops")));
    assert_eq!(alice.field("cookie"), None);
}

#[tokio::test]
async fn all_of_it_stacks_on_the_upstream_side() {
    let manager = manager();
    let layers =
        ServiceBuilder::new().layer(manager.clone()).layer(layer()).layer(BasicAuthLayer::remote_user("s3cret"));
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/legacy").upstream_layer(layers);
    let addr = front(Router::new().route("/login", post(login)).layer(manager).layer(proxy)).await;
    let mirrored = forwarded(addr, &cookie(&ask(addr, SIGN_IN).await)).await;
    assert_eq!((mirrored.field("remote-user"), mirrored.field("remote-groups")), (Some("alice"), Some("staff,ops")));
    // `alice:s3cret`
    assert_eq!(mirrored.field("authorization"), Some("Basic YWxpY2U6czNjcmV0"));
}

#[tokio::test]
async fn a_manager_that_sees_the_request_after_the_proxy_closes_the_backend_of_a_required_user() {
    let (origin, mut requests) = recording("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let proxy = ReverseProxyLayer::new(origin).prefix("/legacy").upstream_layer(layer().required(true));
    let layers = ServiceBuilder::new().layer(proxy).layer(manager());
    let addr = front(Router::new().route("/login", post(login)).layer(layers)).await;
    let cookie = cookie(&ask(addr, SIGN_IN).await);
    assert_eq!(get(addr, "/legacy/x", &cookie).await.status(), 403);
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
}
