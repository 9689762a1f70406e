//! Prefixes and request targets: which requests go to the backend, and with which path.
//!
//! All functions work on the raw path and never decode, normalise or re-encode it. RFC 3986, section 6, allows many
//! normalisations, so the servers behind the proxy needn't agree with the one that the proxy would choose.

mod dots;
mod prefix;
mod target;

pub use self::prefix::{InvalidPrefix, Prefix};
pub(crate) use self::target::{Nest, PathPolicy, Target};
