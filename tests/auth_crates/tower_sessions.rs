//! tower-sessions, whose session is a handle: a lookup reads its store. Two versions of it have two types of sessions.

use std::{fmt, sync::Arc};

use axum::{Router, http::StatusCode, routing::post};
use tower::ServiceBuilder;
use tower_reverse_proxy::{RemoteUserLayer, ReverseProxyLayer};
use tower_sessions_0_15::{
    MemoryStore, Session, SessionManagerLayer, SessionStore,
    session::{Id, Record},
    session_store,
};

use crate::{
    cookie, forwarded,
    support::{ask, front, get, mirror, recording},
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SIGN_IN: &str = "POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nalice";

async fn login(session: Session, name: String) -> StatusCode {
    session.cycle_id().await.unwrap();
    session.insert("user", name).await.unwrap();
    StatusCode::NO_CONTENT
}

fn layer() -> RemoteUserLayer {
    RemoteUserLayer::from_extension_async(|session: Session| async move { session.get::<String>("user").await })
}

fn app<S: SessionStore + Clone>(origin: &str, layer: RemoteUserLayer, store: S) -> Router {
    let proxy = ReverseProxyLayer::new(origin).prefix("/legacy").upstream_layer(layer);
    let sessions = SessionManagerLayer::new(store).with_secure(false);
    // In the order in which they see a request.
    Router::new().route("/login", post(login)).layer(ServiceBuilder::new().layer(sessions).layer(proxy))
}

#[tokio::test]
async fn the_user_of_a_session_is_looked_up() {
    let addr = front(app(&mirror().await, layer(), MemoryStore::default())).await;
    assert_eq!(forwarded(addr, "").await.field("remote-user"), None);
    let cookie = cookie(&ask(addr, SIGN_IN).await);
    assert_eq!(forwarded(addr, &cookie).await.field("remote-user"), Some("alice"));
    assert_eq!(forwarded(addr, "").await.field("remote-user"), None);
}

#[tokio::test]
async fn the_version_of_axum_login_works_alike() {
    use tower_sessions::{MemoryStore, Session, SessionManagerLayer};

    let layer =
        RemoteUserLayer::from_extension_async(|session: Session| async move { session.get::<String>("user").await });
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/legacy").upstream_layer(layer);
    let login = post(async |session: Session, name: String| session.insert("user", name).await.unwrap());
    let sessions = SessionManagerLayer::new(MemoryStore::default()).with_secure(false);
    let addr = front(Router::new().route("/login", login).layer(proxy).layer(sessions)).await;
    let cookie = cookie(&ask(addr, SIGN_IN).await);
    assert_eq!(forwarded(addr, &cookie).await.field("remote-user"), Some("alice"));
}

/// A store that fails to load.
#[derive(Clone, Default)]
struct Failing(Arc<MemoryStore>);

impl fmt::Debug for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failing")
    }
}

#[async_trait::async_trait]
impl SessionStore for Failing {
    async fn save(&self, record: &Record) -> session_store::Result<()> {
        self.0.save(record).await
    }

    async fn load(&self, _: &Id) -> session_store::Result<Option<Record>> {
        Err(session_store::Error::Backend("the database is down".into()))
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        self.0.delete(id).await
    }
}

#[tokio::test]
async fn a_store_that_fails_is_not_the_same_as_no_user() {
    let (origin, mut requests) = recording(OK).await;
    let addr = front(app(&origin, layer(), Failing::default())).await;
    let cookie = cookie(&ask(addr, SIGN_IN).await);
    let answer = get(addr, "/legacy/x", &cookie).await;
    assert_eq!((answer.status(), &*answer.text()), (503, "Service Unavailable"));
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
}

#[tokio::test]
async fn a_session_of_another_version_closes_the_backend_of_a_required_user() {
    let (origin, mut requests) = recording(OK).await;
    let other = RemoteUserLayer::from_extension_async(|session: tower_sessions::Session| async move {
        session.get::<String>("user").await
    });
    let addr = front(app(&origin, other.required(true), MemoryStore::default())).await;
    let cookie = cookie(&ask(addr, SIGN_IN).await);
    assert_eq!(get(addr, "/legacy/x", &cookie).await.status(), 403);
    assert!(requests.try_recv().is_err(), "nothing is forwarded");
}

#[tokio::test]
async fn all_of_it_stacks_on_the_upstream_side() {
    let store = MemoryStore::default();
    let sessions = SessionManagerLayer::new(store.clone()).with_secure(false);
    let layers = ServiceBuilder::new().layer(sessions.clone()).layer(layer());
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/legacy").upstream_layer(layers);
    let login = Router::new().route("/login", post(login)).layer(sessions);
    let addr = front(login.layer(proxy)).await;
    let cookie = cookie(&ask(addr, SIGN_IN).await);
    assert_eq!(forwarded(addr, &cookie).await.field("remote-user"), Some("alice"));
}
