//! Several accounts of the front, in a collection of caches (`KRB5CCNAME=DIR:…`) and one keytab.

use tower_reverse_proxy::{Negotiate, NegotiateLayer};

use super::realm::{BACKEND, app, ask};

#[tokio::test]
async fn each_account_signs_in_as_itself() {
    let accounts = ["front-one", "front-two@KIT.TEST"];
    let apps = accounts.map(|name| app(NegotiateLayer::with_source(Negotiate::own_as(name, BACKEND).unwrap())));
    for _ in 0..3 {
        for (app, name) in apps.iter().zip(["front-one@KIT.TEST", "front-two@KIT.TEST"]) {
            for location in ["krb", "krb-conn"] {
                assert_eq!(ask(app, &format!("/app/{location}/jobs")).await.user(), name);
            }
        }
    }
}

#[tokio::test]
async fn an_account_without_a_key_is_an_error_at_once() {
    for name in ["front-three", "alice", "front-one@EVIL.TEST", ""] {
        let error = Negotiate::own_as(name, BACKEND).expect_err(name);
        assert!(!error.to_string().is_empty());
    }
}

#[tokio::test]
async fn a_service_without_a_name_is_an_error_at_once() {
    for service in ["", "HTTP", "HTTP@", "@backend.kit.test", "http://backend.kit.test"] {
        Negotiate::own_as("front-one", service).expect_err(service);
    }
}
