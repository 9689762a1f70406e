//! What the proxy does, seen from both sides: raw bytes of a client, raw bytes of a backend, wherever bytes matter.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // until every module below uses it
mod support;

mod cancel;
mod failures;
mod layering;
mod mounting;
