//! What the proxy does, seen from both sides: raw bytes of a client, raw bytes of a backend, wherever bytes matter.
#![allow(clippy::unwrap_used)] // what isn't there fails the test

#[allow(dead_code)] // until every module below uses it
mod support;

mod forwarded;
mod identity;
mod layering;
mod mapping;
mod request;
mod response;
mod upstream_side;
