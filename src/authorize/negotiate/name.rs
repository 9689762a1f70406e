//! Names from the application and from users, which the Kerberos library would read too freely.

use std::sync::Arc;

/// Returns whether it's the name of a service on a host, such as `HTTP@backend.example`.
pub(super) fn is_service(name: &str) -> bool {
    let is_part = |part: &str, others: &str| {
        !part.is_empty() && part.chars().all(|char| char.is_ascii_alphanumeric() || others.contains(char))
    };
    name.split_once('@').is_some_and(|(service, host)| is_part(service, "-_") && is_part(host, "-_."))
}

/// Returns whether it may be a principal, which the library parses.
pub(super) fn is_principal(name: &str) -> bool {
    !name.is_empty() && !name.contains(char::is_control)
}

/// Returns the principal of a user's name: the name itself, in the default realm.
///
/// `None` for a name that the library would read as that of another user: `@` begins a realm, `/` divides the name of a
/// service, and `\` hides itself, so that `CORP\alice` would be `CORPalice`.
pub(super) fn local(name: &str) -> Option<Arc<str>> {
    (is_principal(name) && !name.contains(['@', '/', '\\'])).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_a_name_on_a_host() {
        for service in ["HTTP@backend.example", "HTTP@backend", "http@10.0.0.7", "my-app@a_b.example"] {
            assert!(is_service(service), "{service}");
        }
        for wrong in [
            "",
            "HTTP",
            "HTTP@",
            "@backend.example",
            "HTTP/backend.example",
            "HTTP/backend.example@KIT.TEST",
            "HTTP@backend.example@KIT.TEST",
            "HTTP@backend.example:8080",
            "http://backend.example",
            "HTTP@backend example",
            "HTTP@backend\0.example",
            "HTTP@bäckend.example",
        ] {
            assert!(!is_service(wrong), "{wrong}");
        }
    }

    #[test]
    fn only_names_without_a_meaning_for_the_library_are_local() {
        for name in ["alice", "Alice.O'Hara", "jürgen", "alice smith", "a-b_c"] {
            assert_eq!(local(name).as_deref(), Some(name));
        }
        for wrong in ["", "alice@EVIL.TEST", "@", "HTTP/localhost", "CORP\\alice", "alice\\@EVIL", "a\0b", "a\nb"] {
            assert_eq!(local(wrong), None, "{wrong:?}");
        }
    }
}
