//! Prefixes and request targets: which requests are the backend's, and what it is asked for.
//!
//! Everything here works on the raw path. Nothing is decoded, normalised or encoded again: whatever reads a path after
//! us would have to agree with our reading, and none does (RFC 3986, section 6, allows many).

mod dots;
mod prefix;
mod target;

pub use self::prefix::{InvalidPrefix, Prefix};
pub(crate) use self::target::{Nest, PathPolicy, Target};
