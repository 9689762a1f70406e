//! Tickets that expire after 8 seconds, and a key that is changed.

use std::time::{Duration, Instant};

use axum::{body::Body, http::Request};
use tower_reverse_proxy::{Negotiate, NegotiateLayer, RemoteUser};

use super::realm::{BACKEND, FRONT, KdcLog, app, ask, ask_as, ask_with, forwarded_by, kadmin, send, unseen, var};

/// One test, because each of its parts waits for tickets to expire.
#[tokio::test(flavor = "multi_thread")]
async fn own_tickets_are_renewed_and_an_expired_forwarded_one_is_refused() {
    let log = KdcLog::now();
    let own = app(NegotiateLayer::with_source(Negotiate::own(BACKEND).unwrap()));
    let behalf = app(NegotiateLayer::with_source(Negotiate::on_behalf(BACKEND).unwrap()));
    let delegated = app(NegotiateLayer::with_source(Negotiate::delegated(BACKEND).unwrap()));
    let alice = forwarded_by("alice");
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
    // The forwarded ticket has expired, and alice's idle connection has been closed.
    ask_with(&delegated, "/app/krb/expired", &alice).await.failed(403, "CredentialsMissing");
    let named = Request::get("/app/krb/expired").extension(alice.clone()).extension(RemoteUser::from("alice"));
    send(&delegated, named.body(Body::empty()).unwrap()).await.failed(403, "CredentialsMissing");
    unseen("/krb/expired").await;
}
