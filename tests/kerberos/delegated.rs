//! Users whose tickets were forwarded. The process has an account of its own, which no request may use.

use std::time::Duration;

use axum::{body::Body, http::Request};
use tower_reverse_proxy::{
    DelegatedCredential, Negotiate, NegotiateLayer, RemoteUser,
    authorize::negotiate::libgssapi::credential::{Cred, CredUsage},
};

use super::realm::{BACKEND, accesses, app, ask, ask_with, events, forwarded_by, pooled, send, unseen};

fn layer() -> NegotiateLayer {
    NegotiateLayer::with_source(Negotiate::delegated(BACKEND).unwrap())
}

/// Compares the credential with the name of the user.
fn compared() -> NegotiateLayer {
    let source = Negotiate::delegated(BACKEND).unwrap();
    NegotiateLayer::with_source(source.principal(|user| Some(format!("{user}@KIT.TEST"))))
}

fn of(user: &str, credential: &DelegatedCredential, path: &str) -> Request<Body> {
    let request = Request::get(path).extension(credential.clone()).extension(RemoteUser::from(user));
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn the_backend_sees_the_user_and_never_the_front() {
    let app = app(layer());
    for user in ["alice", "bob", "alice"] {
        let credential = forwarded_by(user);
        for location in ["krb", "krb-conn", "krb-alice"] {
            if (location, user) != ("krb-alice", "bob") {
                let path = format!("/app/{location}/delegated");
                assert_eq!(ask_with(&app, &path, &credential).await.user(), format!("{user}@KIT.TEST"));
            }
        }
    }
    let seen = accesses("/krb/delegated", 3).await;
    assert!(seen.iter().all(|access| !access.user.starts_with("HTTP/")), "{seen:?}");
}

#[tokio::test]
async fn a_ticket_of_the_named_user_is_used() {
    let app = app(compared());
    let alice = forwarded_by("alice");
    assert_eq!(send(&app, of("alice", &alice, "/app/krb/named")).await.user(), "alice@KIT.TEST");
}

#[tokio::test]
async fn a_ticket_of_another_user_is_refused() {
    let app = app(compared());
    let alice = forwarded_by("alice");
    events();
    send(&app, of("bob", &alice, "/app/krb/mixed")).await.failed(502, "WrongSpeaker");
    let events = events();
    assert!(events.contains("alice@KIT.TEST"), "{events}");
    unseen("/krb/mixed").await;
}

/// A session may keep the ticket of a user who isn't signed in any more.
#[tokio::test]
async fn a_ticket_that_is_compared_is_not_used_without_a_user() {
    let app = app(compared());
    let answer = ask_with(&app, "/app/krb/nobody", &forwarded_by("alice")).await;
    assert_eq!(answer.status, 401);
    assert_eq!(accesses("/krb/nobody", 1).await[0].user, "-");
}

/// An application that inserts its own credential by mistake.
#[tokio::test]
async fn the_fronts_own_credential_is_refused_as_a_users() {
    let app = app(compared());
    let own = DelegatedCredential::from(Cred::acquire(None, None, CredUsage::Initiate, None).unwrap());
    send(&app, of("alice", &own, "/app/krb/itself")).await.failed(502, "WrongSpeaker");
    unseen("/krb/itself").await;
}

#[tokio::test]
async fn a_credential_to_accept_with_is_refused() {
    let app = app(layer());
    let acceptor = DelegatedCredential::from(Cred::acquire(None, None, CredUsage::Accept, None).unwrap());
    let answer = ask_with(&app, "/app/krb/acceptor", &acceptor).await;
    assert_eq!((answer.status.as_u16(), answer.kind()), (403, "CredentialsMissing"), "{answer:?}");
    unseen("/krb/acceptor").await;
}

#[tokio::test]
async fn each_users_connections_are_apart() {
    let app = app(layer());
    let (alice, bob) = (forwarded_by("alice"), forwarded_by("bob"));
    ask_with(&app, "/app/krb-conn/x", &alice).await.user();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let first = ask_with(&app, "/app/krb-conn/x", &alice).await;
    let second = ask_with(&app, "/app/krb-conn/x", &bob).await;
    assert_ne!(first.line("connection"), second.line("connection"));
    pooled().await;
    // Her other credential has the same principal, and so shares the connection.
    let again = ask_with(&app, "/app/krb-conn/x", &forwarded_by("alice")).await;
    assert_eq!((again.user(), again.line("connection")), ("alice@KIT.TEST", first.line("connection")));
    let nobody = ask(&app, "/app/krb-conn/x").await;
    assert_eq!(nobody.status, 401);
}

#[tokio::test]
async fn without_a_ticket_the_request_goes_as_it_is() {
    let app = app(layer());
    let answer = ask(&app, "/app/krb/none").await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.headers["www-authenticate"], "Negotiate");
    assert_eq!(accesses("/krb/none", 1).await[0].user, "-");
}

#[tokio::test]
async fn required_refuses_requests_without_a_ticket() {
    let app = app(layer().required(true));
    ask(&app, "/app/krb/required").await.failed(403, "SignInRequired");
    unseen("/krb/required").await;
}

#[tokio::test]
async fn a_refused_user_gets_403() {
    let app = app(layer());
    ask_with(&app, "/app/krb-alice/bob", &forwarded_by("bob")).await.failed(403, "CredentialsRefused");
}

#[tokio::test]
async fn a_forwarded_ticket_is_valid_for_other_services() {
    let app = app(NegotiateLayer::with_source(Negotiate::delegated("HTTP@other.kit.test").unwrap()));
    assert_eq!(ask_with(&app, "/app/krb-other/x", &forwarded_by("alice")).await.user(), "alice@KIT.TEST");
}
