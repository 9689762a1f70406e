//! Users for whom the front acquires tickets (S4U2Self and S4U2Proxy).

use std::time::Duration;

use tower_reverse_proxy::{Negotiate, NegotiateLayer};

use super::realm::{BACKEND, KdcLog, accesses, app, ask, ask_as, events, kadmin, observed, pooled, unseen};

fn on_behalf() -> Negotiate {
    Negotiate::on_behalf(BACKEND).unwrap()
}

fn layer() -> NegotiateLayer {
    NegotiateLayer::with_source(on_behalf())
}

#[tokio::test]
async fn the_backend_sees_the_user_and_never_the_front() {
    let app = app(layer());
    for user in ["alice", "bob", "alice"] {
        for location in ["krb", "krb-conn"] {
            let answer = ask_as(&app, &format!("/app/{location}/behalf"), user).await;
            assert_eq!(answer.user(), format!("{user}@KIT.TEST"));
            assert!(!answer.headers.contains_key("www-authenticate"));
        }
    }
    let seen = accesses("/krb/behalf", 3).await;
    assert!(seen.iter().all(|access| !access.user.starts_with("HTTP/")), "{seen:?}");
}

#[tokio::test]
async fn require_mutual_holds_for_users() {
    let app = app(NegotiateLayer::with_source(on_behalf().require_mutual(true)));
    assert_eq!(ask_as(&app, "/app/krb/mutual", "alice").await.user(), "alice@KIT.TEST");
    ask_as(&app, "/app/krb-mute/mutual", "alice").await.failed(502, "BackendUnproven");
}

#[tokio::test]
async fn without_a_user_the_request_goes_as_it_is() {
    let app = app(layer());
    for location in ["krb", "krb-conn"] {
        let answer = ask(&app, &format!("/app/{location}/nobody")).await;
        assert_eq!((answer.status.as_u16(), &answer.headers["www-authenticate"]), (401, &"Negotiate".parse().unwrap()));
        assert_eq!(accesses(&format!("/{location}/nobody"), 1).await[0].user, "-");
    }
    let answer = ask(&app, "/app/open/nobody").await;
    assert_eq!((answer.user(), answer.line("scheme")), ("", ""));
}

/// Names that the library would read as another principal than the application means.
#[tokio::test]
async fn a_name_with_a_meaning_for_the_library_is_refused() {
    let app = app(layer());
    let names = [
        "alice@EVIL",
        "alice@KIT.TEST",
        "alice\\@EVIL",
        "HTTP/localhost",
        "HTTP/backend.kit.test",
        "krbtgt/KIT.TEST",
        "CORP\\alice",
        "",
        " alice",
        "alice ",
        "al\0ice",
        "alice\n",
        "WELLKNOWN/ANONYMOUS",
    ];
    for name in names {
        let answer = ask_as(&app, "/app/krb/hostile", name).await;
        assert_eq!((answer.status.as_u16(), answer.kind()), (403, "CredentialsMissing"), "{name:?}: {answer:?}");
    }
    unseen("/krb/hostile").await;
}

#[tokio::test]
async fn the_application_maps_names_to_principals() {
    let source = on_behalf()
        .principal(|user| user.as_str().strip_prefix("CORP\\").map(|name| format!("{}@KIT.TEST", name.to_lowercase())));
    let app = app(NegotiateLayer::with_source(source));
    observed(&app, "/app/krb-conn/mapped", "CORP\\alice").await;
    let first = ask_as(&app, "/app/krb-conn/mapped", "CORP\\alice").await;
    assert_eq!(first.user(), "alice@KIT.TEST");
    pooled().await;
    // Both names map to one principal, and share its connections.
    let second = ask_as(&app, "/app/krb-conn/mapped", "CORP\\ALICE").await;
    assert_eq!((second.user(), second.line("connection")), ("alice@KIT.TEST", first.line("connection")));
    ask_as(&app, "/app/krb/unmapped", "alice").await.failed(403, "CredentialsMissing");
    unseen("/krb/unmapped").await;
}

#[tokio::test]
async fn a_mapped_name_may_have_a_realm() {
    let app = app(NegotiateLayer::with_source(on_behalf().principal(|user| Some(user.as_str().to_owned()))));
    assert_eq!(ask_as(&app, "/app/krb/realm", "alice@KIT.TEST").await.user(), "alice@KIT.TEST");
    ask_as(&app, "/app/krb/evil", "alice@EVIL").await.failed(403, "CredentialsMissing");
    unseen("/krb/evil").await;
}

#[tokio::test]
async fn users_that_the_kdc_refuses_get_403_and_the_log_its_reason() {
    let app = app(layer());
    let refused = [
        ("carol", "KDC can't fulfill requested option"),
        ("dave", "revoked"),
        ("zed", "not found in Kerberos database"),
        // Principals are case-sensitive here.
        ("ALICE", "not found in Kerberos database"),
    ];
    for (user, reason) in refused {
        events();
        ask_as(&app, "/app/krb/refused", user).await.failed(403, "CredentialsMissing");
        let events = events();
        assert!(events.contains(reason), "{user}: {events}");
    }
    unseen("/krb/refused").await;
}

#[tokio::test]
async fn a_service_that_the_front_may_not_delegate_to_is_403() {
    let app = app(NegotiateLayer::with_source(Negotiate::on_behalf("HTTP@other.kit.test").unwrap()));
    events();
    ask_as(&app, "/app/krb-other/behalf", "alice").await.failed(403, "CredentialsMissing");
    let events = events();
    assert!(events.contains("KDC can't fulfill requested option"), "{events}");
    let whom = "for \\\"alice\\\": acquiring a ticket for HTTP@other.kit.test: ";
    assert!(events.contains(whom) && events.contains("not the front's account at this service"), "{events}");
    unseen("/krb-other/behalf").await;
}

#[tokio::test]
async fn a_service_that_the_kdc_does_not_know_is_no_fault_of_the_user() {
    let app = app(NegotiateLayer::with_source(Negotiate::on_behalf("HTTP@nowhere.kit.test").unwrap()));
    events();
    ask_as(&app, "/app/krb/nowhere", "alice").await.failed(502, "CredentialsMissing");
    let events = events();
    assert!(events.contains("HTTP@nowhere.kit.test") && events.contains("the KDC has no such service"), "{events}");
    unseen("/krb/nowhere").await;
}

#[tokio::test]
async fn a_user_that_the_backend_refuses_gets_403() {
    let app = app(layer());
    assert_eq!(ask_as(&app, "/app/krb-alice/x", "alice").await.user(), "alice@KIT.TEST");
    ask_as(&app, "/app/krb-alice/x", "bob").await.failed(403, "CredentialsRefused");
}

#[tokio::test]
async fn the_tickets_of_a_user_are_cached() {
    let app = app(layer());
    ask_as(&app, "/app/krb/kept", "alice").await.user();
    let log = KdcLog::now();
    for _ in 0..20 {
        assert_eq!(ask_as(&app, "/app/krb/kept", "alice").await.user(), "alice@KIT.TEST");
    }
    assert_eq!(log.count("_REQ", "ISSUE"), 0);
}

#[tokio::test]
async fn users_beyond_the_capacity_of_the_cache_remain_themselves() {
    let app = app(NegotiateLayer::with_source(on_behalf().cache(1, Duration::from_secs(60))));
    for _ in 0..3 {
        for user in ["alice", "bob", "erin"] {
            assert_eq!(ask_as(&app, "/app/krb-conn/evicted", user).await.user(), format!("{user}@KIT.TEST"));
        }
    }
}

#[tokio::test]
async fn a_locked_user_is_refused_once_the_cached_tickets_are_too_old() {
    let app = app(NegotiateLayer::with_source(on_behalf().cache(256, Duration::from_secs(2))));
    assert_eq!(ask_as(&app, "/app/krb/erin", "erin").await.user(), "erin@KIT.TEST");
    kadmin("modprinc -allow_tix erin");
    let kept = ask_as(&app, "/app/krb/erin", "erin").await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let locked = ask_as(&app, "/app/krb/erin", "erin").await;
    kadmin("modprinc +allow_tix erin");
    assert_eq!(kept.user(), "erin@KIT.TEST");
    locked.failed(403, "CredentialsMissing");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ask_as(&app, "/app/krb/erin", "erin").await.user(), "erin@KIT.TEST");
}
