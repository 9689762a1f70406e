//! Signed assertions of the signed-in user, which the backend can verify: JWTs (RFC 7519).
//!
//! [`AssertionLayer`] sends them, [`AssertionKeys`] signs them and rotates the keys, and [`Jwks`] is the route at which
//! the backend finds the public halves.

mod cache;
mod claims;
mod config;
mod invalid;
mod jwks;
mod key;
mod keys;
mod layer;
mod service;

pub use self::{
    claims::Claims, invalid::InvalidKey, jwks::Jwks, keys::AssertionKeys, layer::AssertionLayer, service::Assertion,
};
pub use crate::reject::ResponseFuture;
