//! Many requests at once, of accounts that have no ticket yet.

use tower_reverse_proxy::{Negotiate, NegotiateLayer};

use super::{
    realm::{BACKEND, FRONT, KdcLog, app, ask, ask_as},
    support::within,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_cold_requests_of_the_front_need_one_ticket() {
    let log = KdcLog::now();
    let app = app(NegotiateLayer::with_source(Negotiate::own(BACKEND).unwrap()));
    let requests: Vec<_> = (0..100)
        .map(|_| {
            let app = app.clone();
            tokio::spawn(async move { ask(&app, "/app/krb/stampede").await })
        })
        .collect();
    let mut served = 0;
    for request in requests {
        let answer = within(request).await.unwrap();
        match answer.status.as_u16() {
            200 => {
                assert_eq!(answer.user(), FRONT);
                served += 1;
            }
            // On a busy machine the first call may take long, and 64 requests wait for a long call.
            _ => answer.failed(503, "CredentialsBusy"),
        }
    }
    assert!(served >= 64, "{served} served");
    let (logins, tickets) = (log.count("AS_REQ", "ISSUE"), log.count("TGS_REQ", "ISSUE"));
    assert!(logins <= 1 && tickets <= 1, "{logins} AS_REQ and {tickets} TGS_REQ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_cold_requests_of_a_user_need_the_tickets_of_one() {
    let app = app(NegotiateLayer::with_source(Negotiate::on_behalf(BACKEND).unwrap()));
    let log = KdcLog::now();
    let requests: Vec<_> = (0..100)
        .map(|number| {
            let (app, user) = (app.clone(), ["alice", "bob"][number % 2]);
            tokio::spawn(async move { (user, ask_as(&app, "/app/krb/stampede", user).await) })
        })
        .collect();
    for request in requests {
        let (user, answer) = within(request).await.unwrap();
        // Fewer than 64 wait for the thread of each user.
        assert_eq!(answer.user(), format!("{user}@KIT.TEST"));
    }
    // S4U2Self and S4U2Proxy for each of the two, and the front's own tickets.
    let tickets = log.count("TGS_REQ", "ISSUE");
    assert!((2..=8).contains(&tickets), "{tickets} TGS_REQ");
}
