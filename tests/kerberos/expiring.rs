//! Tickets that live for 8 seconds, and a key that changes.

use std::time::{Duration, Instant};

use axum::{body::Body, http::Request};
use tower_reverse_proxy::{Negotiate, NegotiateLayer, RemoteUser};

use super::realm::{BACKEND, FRONT, KdcLog, app, ask, ask_as, ask_with, kadmin, passed_on_by, send, unseen, var};

/// One test, because each of its parts waits for tickets to expire.
#[tokio::test(flavor = "multi_thread")]
async fn tickets_are_renewed_and_expired_ones_are_never_replaced_by_the_fronts() {
    let log = KdcLog::now();
    let own = app(NegotiateLayer::with_source(Negotiate::own(BACKEND).unwrap()));
    let behalf = app(NegotiateLayer::with_source(Negotiate::on_behalf(BACKEND).unwrap()));
    let delegated = app(NegotiateLayer::with_source(Negotiate::delegated(BACKEND).unwrap()));
    let alice = passed_on_by("alice");
    let started = Instant::now();
    assert_eq!(ask_with(&delegated, "/app/krb/short", &alice).await.user(), "alice@KIT.TEST");
    let mut is_rotated = false;
    while started.elapsed() < Duration::from_secs(14) {
        assert_eq!(ask(&own, "/app/krb/short").await.user(), FRONT);
        assert_eq!(ask_as(&behalf, "/app/krb/short", "bob").await.user(), "bob@KIT.TEST");
        if !is_rotated && started.elapsed() > Duration::from_secs(3) {
            is_rotated = true;
            let keytab = var("KIT_FRONT_KEYTAB").replace("FILE:", "");
            kadmin(&format!("ktadd -k {keytab} {}", FRONT.replace("@KIT.TEST", "")));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(log.count("AS_REQ", "ISSUE") >= 3, "no ticket was renewed");
    // It has expired since, and so has its connection.
    ask_with(&delegated, "/app/krb/expired", &alice).await.failed(403, "CredentialsMissing");
    let named = Request::get("/app/krb/expired").extension(alice.clone()).extension(RemoteUser::from("alice"));
    send(&delegated, named.body(Body::empty()).unwrap()).await.failed(403, "CredentialsMissing");
    unseen("/krb/expired").await;
}
