//! Crates that sign users in, each in front of a backend that gets the user's name. Each test is a recipe, with the
//! client's own fields as an attack.
//!
//! A binary of its own, because it links crates that no other test needs.
#![allow(clippy::expect_used, clippy::unwrap_used)] // a missing value fails the test

#[allow(dead_code, unused_imports)] // the other binary uses all of it
#[path = "../it/support/mod.rs"]
mod support;

mod authorize_request;
mod axum_login;
#[cfg(feature = "tls-ring")]
mod client_certificate;
mod resource_server;
mod tower_sessions;
mod typed_header;

use std::net::SocketAddr;

use self::support::{Message, get};

/// A client-sent identity, in spellings that servers fold to the same names.
const SPOOFED: &str = "Remote-User: root\r\nREMOTE.USER: root\r\nRemote_User: root\r\nRemote-Groups: root\r\n\
    remote!groups: root\r\nRemote_Groups: root\r\nConnection: Remote-User, Remote-Groups\r\n";

/// The request that the backend gets, with these fields and spoofed ones.
async fn forwarded(addr: SocketAddr, fields: &str) -> Message {
    let mirrored = get(addr, "/legacy/x", &format!("{fields}{SPOOFED}")).await.mirrored();
    assert!(!mirrored.head.contains("root"), "{}", mirrored.head);
    mirrored
}

/// The cookie that a response sets, as the client's field.
fn cookie(response: &Message) -> String {
    let cookie = response.field("set-cookie").unwrap().split(';').next().unwrap();
    format!("Cookie: {cookie}\r\n")
}
