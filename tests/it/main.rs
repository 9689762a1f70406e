//! What the proxy does, seen from both sides: raw bytes of a client, raw bytes of a backend, wherever bytes matter.
#![allow(clippy::unwrap_used)]

mod support;

mod cancel;
mod failures;
mod layering;
mod mounting;
mod pool;
