//! Picks by a key and in turn, through the wire.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract::Request, middleware::map_request};
use tokio::{sync::Semaphore, task::JoinSet};
use tower_reverse_proxy::{
    Backends, RemoteUser, ReverseProxyLayer,
    balance::{Member, Pick, stable_hash},
};

use crate::support::{Message, answering, backend, front, get, time_passes, within};

async fn servers() -> Vec<String> {
    let answer = |name| format!("HTTP/1.1 200 OK\r\nX-Member: {name}\r\nContent-Length: 0\r\n\r\n");
    vec![answering(answer("a")).await, answering(answer("b")).await, answering(answer("c")).await]
}

async fn mounted(members: impl IntoIterator<Item = impl Into<Member>>, pick: Pick) -> (SocketAddr, Backends) {
    // Keys come home at once.
    let backends = Backends::builder(members).pick(pick).slow_start(Duration::ZERO).build().unwrap();
    let layer = ReverseProxyLayer::balanced(&backends).prefix("/app");
    (front(Router::new().layer(layer).layer(map_request(sign_in))).await, backends)
}

/// Inserts the user whom a field names.
async fn sign_in(mut request: Request) -> Request {
    if let Some(user) = request.headers().get("x-user").map(|user| user.to_str().unwrap().to_owned()) {
        request.extensions_mut().insert(RemoteUser::new(user));
    }
    request
}

fn member(answer: &Message) -> String {
    answer.field("x-member").unwrap_or_else(|| panic!("no member: {answer:?}")).to_owned()
}

/// The members of 60 keys, one request after the other.
async fn homes(addr: SocketAddr, request: impl Fn(usize) -> (String, String)) -> Vec<String> {
    let mut homes = Vec::new();
    for n in 0..60 {
        let (target, fields) = request(n);
        homes.push(member(&get(addr, &target, &fields).await));
    }
    homes
}

fn path(n: usize) -> (String, String) {
    (format!("/app/page{n}?query={n}"), String::new())
}

fn user(n: usize) -> (String, String) {
    ("/app/x".into(), format!("X-User: user{n}\r\n"))
}

fn assert_spread(homes: &[String]) {
    for name in ["a", "b", "c"] {
        let share = homes.iter().filter(|home| *home == name).count();
        assert!(share >= 4, "{share} of 60 keys at {name}");
    }
}

#[tokio::test]
async fn a_path_is_always_at_one_member_in_every_replica() {
    let servers = servers().await;
    let (one, _) = mounted(&servers, Pick::hash_by_path()).await;
    let (two, _) = mounted(servers.iter().rev(), Pick::hash_by_path()).await;
    let first = homes(one, path).await;
    assert_spread(&first);
    assert_eq!(
        homes(one, |n| (format!("/app/page{n}"), String::new())).await,
        first,
        "the query isn't part of the key"
    );
    assert_eq!(homes(two, path).await, first, "the order of the members doesn't matter");
}

#[tokio::test]
async fn a_user_is_always_at_one_member() {
    let servers = servers().await;
    let (addr, backends) = mounted(&servers, Pick::hash_by_user()).await;
    let first = homes(addr, user).await;
    assert_spread(&first);
    assert_eq!(homes(addr, |n| (format!("/app/{n}"), user(n).1)).await, first);
    // Only the users of a member that is gone move, and to both of the others.
    backends.set(&servers[1..]).unwrap();
    let without = homes(addr, user).await;
    let moved: BTreeSet<_> =
        first.iter().zip(&without).filter(|(before, _)| *before == "a").map(|(_, after)| after).collect();
    assert_eq!(moved.into_iter().collect::<Vec<_>>(), ["b", "c"]);
    assert!(first.iter().zip(&without).all(|(before, after)| before == "a" || before == after));
    // They come home with it.
    backends.set(&servers).unwrap();
    assert_eq!(homes(addr, user).await, first);
}

#[tokio::test]
async fn keys_come_home_one_after_the_other_during_the_slow_start() {
    let servers = servers().await;
    let backends = Backends::builder(&servers).pick(Pick::hash_by_user()).build().unwrap();
    let layer = ReverseProxyLayer::balanced(&backends).prefix("/app");
    let addr = front(Router::new().layer(layer).layer(map_request(sign_in))).await;
    let first = homes(addr, user).await;
    let at_a = |homes: &[String]| homes.iter().filter(|home| *home == "a").count();
    backends.set(&servers[1..]).unwrap();
    backends.set(&servers).unwrap();
    let begun = homes(addr, user).await;
    assert!(at_a(&begun) <= at_a(&first) / 2, "{} of {} keys came home at once", at_a(&begun), at_a(&first));
    let returns = |before: &[String], after: &[String]| {
        before.iter().zip(after).all(|(before, after)| before == after || after == "a")
    };
    time_passes(Duration::from_secs(6)).await;
    let later = homes(addr, user).await;
    assert!(returns(&begun, &later) && at_a(&later) > at_a(&begun), "{begun:?} {later:?}");
    time_passes(Duration::from_secs(6)).await;
    assert_eq!(homes(addr, user).await, first);
}

#[tokio::test]
async fn requests_without_a_key_go_to_the_member_with_the_fewest() {
    let (addr, _) = mounted(servers().await, Pick::hash_by_user()).await;
    let mut members = BTreeSet::new();
    for _ in 0..60 {
        members.insert(member(&get(addr, "/app/x", "").await));
    }
    assert_eq!(members.len(), 3);
}

#[tokio::test]
async fn a_closure_finds_the_key() {
    let by_tenant = Pick::hash(|parts| parts.headers.get("x-tenant").map(stable_hash));
    let (addr, _) = mounted(servers().await, by_tenant).await;
    let first = homes(addr, |n| (format!("/app/{n}"), format!("X-Tenant: {n}\r\n"))).await;
    assert_spread(&first);
    assert_eq!(homes(addr, |n| ("/app/x".into(), format!("X-Tenant: {n}\r\n"))).await, first);
}

#[tokio::test]
async fn one_popular_key_does_not_overload_a_member() {
    let go = Arc::new(Semaphore::new(0));
    let arrived = Arc::new(Semaphore::new(0));
    let mut servers = Vec::new();
    for name in ["a", "b", "c"] {
        let (go, arrived) = (go.clone(), arrived.clone());
        servers.push(
            backend(move |mut wire| {
                let (go, arrived) = (go.clone(), arrived.clone());
                async move {
                    while wire.message().await.is_some() {
                        arrived.add_permits(1);
                        go.acquire().await.unwrap().forget();
                        wire.send(
                            format!("HTTP/1.1 200 OK\r\nX-Member: {name}\r\nContent-Length: 0\r\n\r\n").as_bytes(),
                        )
                        .await;
                    }
                }
            })
            .await,
        );
    }
    let (addr, _) = mounted(&servers, Pick::hash_by_path()).await;
    let mut requests = JoinSet::new();
    for _ in 0..24 {
        requests.spawn(async move { member(&get(addr, "/app/popular", "").await) });
        within(arrived.acquire()).await.unwrap().forget();
    }
    go.add_permits(24);
    let mut counts = BTreeMap::<String, usize>::new();
    while let Some(member) = within(requests.join_next()).await {
        *counts.entry(member.unwrap()).or_default() += 1;
    }
    // The average is 8.
    assert!(counts.len() == 3 && counts.values().all(|&count| count <= 10), "{counts:?}");
}

#[tokio::test]
async fn members_take_turns() {
    let (addr, _) = mounted(servers().await, Pick::RoundRobin).await;
    let mut turns = String::new();
    for _ in 0..9 {
        turns += &member(&get(addr, "/app/x", "").await);
    }
    assert_eq!(turns, "abcabcabc");
}

#[tokio::test]
async fn members_take_turns_by_weight() {
    let servers = servers().await;
    let weighted = servers.iter().zip([1, 1, 2]).map(|(url, weight)| Member::new(url).weight(weight));
    let (addr, _) = mounted(weighted, Pick::RoundRobin).await;
    let mut turns = String::new();
    for _ in 0..8 {
        turns += &member(&get(addr, "/app/x", "").await);
    }
    assert_eq!(turns, "cacbcacb");
}
