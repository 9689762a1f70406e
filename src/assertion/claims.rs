//! Further claims of an assertion.

use serde_json::{Map, Value};

/// The claims that the layer itself sets, or that only its options set.
const REGISTERED: [&str; 9] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "htm", "htu"];

/// Further claims of an assertion, which [`AssertionLayer::claims`](crate::AssertionLayer::claims) adds.
///
/// ```
/// use tower_reverse_proxy::assertion::Claims;
///
/// fn describe(name: &str, groups: Vec<String>, claims: &mut Claims) {
///     claims.set("name", name);
///     claims.set("groups", groups);
///     claims.set("admin", false);
/// }
/// # describe("Alice", vec!["dev".to_owned()], &mut Claims::default());
/// ```
#[derive(Clone, Default)]
pub struct Claims {
    members: Map<String, Value>,
}

impl Claims {
    /// Sets a claim to a JSON value: a text, a number, a boolean, a list of these, or any
    /// [`serde_json::Value`](https://docs.rs/serde_json/1/serde_json/enum.Value.html). A claim of the same name is
    /// replaced.
    ///
    /// The registered names `iss`, `sub`, `aud`, `exp`, `nbf`, `iat`, `jti`, `htm` and `htu` are the layer's own. To
    /// set one of them has no effect, so that the claims of another token can be copied.
    ///
    /// ```
    /// use tower_reverse_proxy::assertion::Claims;
    ///
    /// let mut claims = Claims::default();
    /// claims.set("email", "alice@front.example");
    /// claims.set("sub", "mallory");
    /// assert_eq!(format!("{claims:?}"), r#"Claims(["email"])"#);
    /// ```
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        if !REGISTERED.contains(&name) {
            self.members.insert(name.to_owned(), value.into());
        }
    }

    /// Returns the members of the JSON object, without its braces.
    pub(super) fn into_members(self) -> String {
        let object = Value::Object(self.members).to_string();
        object[1..object.len() - 1].to_owned()
    }
}

impl std::fmt::Debug for Claims {
    /// Shows the names only, because the values are the user's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Claims").field(&self.members.keys().collect::<Vec<_>>()).finish()
    }
}
