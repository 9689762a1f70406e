//! A process without an account of its own: no cache and no client keytab, but a key to accept tickets with.

use tower_reverse_proxy::{Negotiate, NegotiateLayer};

use super::realm::{BACKEND, app, ask_with, forwarded_by};

#[test]
fn the_constructors_name_what_is_missing() {
    for error in [Negotiate::own(BACKEND), Negotiate::own_as("front-one", BACKEND), Negotiate::on_behalf(BACKEND)] {
        let text = error.expect_err("a credential from nowhere").to_string();
        assert!(text.contains("KRB5_CLIENT_KTNAME") && text.contains("KRB5CCNAME"), "{text}");
    }
}

#[tokio::test]
async fn forwarded_tickets_need_no_account_of_the_front() {
    let app = app(NegotiateLayer::with_source(Negotiate::delegated(BACKEND).unwrap()));
    assert_eq!(ask_with(&app, "/app/krb/bare", &forwarded_by("alice")).await.user(), "alice@KIT.TEST");
}
