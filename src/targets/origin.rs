//! The origin by which a pool is found.

use std::sync::Arc;

use crate::backend::Backend;

/// A backend's origin. Two spellings of one origin are equal: names don't distinguish case, and a port may be left out
/// (RFC 6454, section 4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin(Arc<str>);

impl Origin {
    pub(super) fn of(backend: &Backend) -> Self {
        Self(backend.origin().clone())
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
            assert_eq!(origin(one), origin(other));
            assert_eq!(hasher.hash_one(origin(one)), hasher.hash_one(origin(other)), "{spelling}");
            for backend in [one, other].map(|text| text.parse::<Backend>().unwrap()) {
                assert_eq!(backend.canonical().to_string(), spelling);
            }
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
