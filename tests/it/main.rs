//! Integration tests with raw bytes on both sides, client and backend, wherever bytes matter.
#![allow(clippy::expect_used, clippy::unwrap_used)] // a missing value fails the test

mod aliases;
mod support;

mod address;
#[cfg(all(feature = "assertion", feature = "tls-ring"))]
mod assertion;
mod authorize;
mod bad_input;
mod balance;
#[cfg(feature = "http2")]
mod balanced_grpc;
mod balanced_tunnels;
mod cancel;
mod client;
mod composing;
mod connection;
mod credentials;
mod discover;
mod early_answers;
mod failover;
mod failures;
#[cfg(feature = "http2")]
mod fairness;
mod fields;
mod forwarded;
mod framing;
mod front_pages;
#[cfg(feature = "http2")]
mod grpc;
mod guide;
mod hash;
mod health;
mod hostile_backends;
#[cfg(feature = "http2")]
mod http2_backend;
#[cfg(feature = "http2")]
mod http2_budget;
#[cfg(feature = "http2")]
mod http2_choice;
#[cfg(feature = "http2")]
mod http2_frames;
#[cfg(feature = "http2")]
mod http2_heads;
#[cfg(feature = "http2")]
mod http2_permits;
#[cfg(feature = "http2")]
mod http2_silence;
#[cfg(feature = "http2")]
mod http2_stalled;
#[cfg(feature = "http2")]
mod http2_windows;
mod identity;
#[cfg(unix)]
mod killed;
mod layering;
#[cfg(feature = "http2")]
mod limits;
mod mapping;
mod mounting;
mod nested;
mod owners;
mod owners_stress;
mod panics;
mod pool;
mod queue;
mod remote_user;
mod request;
mod response;
mod response_heads;
mod retry;
mod sticky;
mod stress;
mod targets;
#[cfg(feature = "tls-ring")]
mod tls;
mod trailers;
mod tunnels;
mod upgrade;
mod uploads;
mod upstream_side;
mod waiting;
mod websocket;
