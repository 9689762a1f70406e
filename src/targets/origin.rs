//! The origin by which a pool is found.

use std::hash::{Hash, Hasher};

use crate::backend::Backend;

/// A backend's origin. Two spellings of one origin are equal: names don't distinguish case, and a port may be left out
/// (RFC 6454, section 4).
#[derive(Clone, Debug)]
pub(super) struct Origin(Backend);

impl Origin {
    pub(super) fn of(backend: &Backend) -> Self {
        Self(backend.clone())
    }

    /// Returns the backend in the spelling that doesn't depend on the request that named it first.
    pub(super) fn to_backend(&self) -> Backend {
        self.0.canonical()
    }

    pub(super) fn is_unix_socket(&self) -> bool {
        self.0.socket().is_some()
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        self.0.origin() == other.0.origin()
    }
}

impl Eq for Origin {}

impl Hash for Origin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.origin().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::of(&text.parse().unwrap())
    }

    #[test]
    fn spellings_of_one_origin_are_equal() {
        let hasher = RandomState::new();
        for (one, other, spelling) in [
            ("http://A.example", "HTTP://a.Example:80/", "http://a.example"),
            ("https://a.example:443", "https://a.example", "https://a.example"),
            ("http://a.example:443", "http://a.example:443", "http://a.example:443"),
            ("http://a.example:", "http://a.example", "http://a.example"),
            ("http://[::1]:80", "http://[::1]", "http://[::1]"),
            ("unix:/run/A.sock", "unix:///run/A.sock", "unix:/run/A.sock"),
        ] {
            let (one, other) = (origin(one), origin(other));
            assert_eq!(one, other);
            assert_eq!(hasher.hash_one(&one), hasher.hash_one(&other), "{spelling}");
            assert_eq!(
                (one.to_backend().to_string(), other.to_backend().to_string()),
                (spelling.into(), spelling.into())
            );
        }
    }

    #[test]
    fn different_origins_are_not_equal() {
        let origins = [
            "http://a.example",
            "https://a.example",
            "http://b.example",
            "http://a.example:8080",
            "http://a.example:443",
            "http://localhost",
            "unix:/run/a.sock",
            "unix:/run/A.sock",
            "http://127.0.0.1",
            "http://[::1]",
        ];
        for (number, one) in origins.iter().enumerate() {
            for other in &origins[number + 1..] {
                assert_ne!(origin(one), origin(other));
            }
        }
    }
}
