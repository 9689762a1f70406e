//! Signed assertions of the signed-in user, which the backend can verify: JWTs (RFC 7519).
//!
//! [`AssertionLayer`] sends them, [`AssertionKeys`] signs them and rotates the keys, and [`Jwks`] is the route at which
//! the backend finds the public halves.

mod cache;
mod claims;
mod jwks;
mod key;
mod keys;
mod layer;

pub use self::{
    claims::Claims,
    jwks::Jwks,
    key::InvalidKey,
    keys::AssertionKeys,
    layer::{Assertion, AssertionLayer},
};
pub use crate::reject::ResponseFuture;
