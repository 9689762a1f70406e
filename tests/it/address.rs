//! A client with a set address connects there and keeps the name of its backend.

use std::net::SocketAddr;

use axum::Router;
use tower_reverse_proxy::{Client, Failure, HostPolicy, ReverseProxyLayer, Upstream};

use crate::support::{front, get, mirror, refusing};

fn address_of(origin: &str) -> SocketAddr {
    origin.strip_prefix("http://").unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_client_connects_to_its_set_address_and_sends_the_name() {
    let address = address_of(&mirror().await);
    // The second host is an address to which nothing is sent, the third has a port of its own.
    for origin in ["http://app.example", "http://192.0.2.1", "http://app.example:81", "http://[2001:db8::1]:81"] {
        let upstream = Upstream::new(Client::builder(origin).address(address)).host(HostPolicy::Backend);
        let addr = front(Router::new().layer(ReverseProxyLayer::with_upstream(upstream))).await;
        let request = get(addr, "/x", "").await.mirrored();
        assert_eq!(request.field("host"), origin.strip_prefix("http://"), "{origin}");
    }
}

#[tokio::test]
async fn the_address_is_in_the_cause_of_a_failed_connect() {
    let address = address_of(&refusing().await);
    let proxy = ReverseProxyLayer::new(Client::builder("http://app.example").address(address));
    let proxy = proxy.on_error(|failure: &Failure| {
        let cause = std::error::Error::source(failure.error()).map(ToString::to_string).unwrap_or_default();
        (failure.status(), cause)
    });
    let answer = get(front(Router::new().layer(proxy)).await, "/x", "").await;
    assert_eq!((answer.status(), answer.text()), (502, format!("connecting to http://app.example at {address}")));
}
