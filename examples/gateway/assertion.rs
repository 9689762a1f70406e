//! Signed assertions of the user for the backends, and the route at which these find the keys.

use std::fs;

use axum::Router;
use tower_reverse_proxy::{AssertionKeys, AssertionLayer};

use super::{
    Wrong,
    config::{Config, Mount},
};

const JWKS: &str = "/front/jwks.json";

/// What `assertion = true` adds to a mount.
pub(crate) type Layer = AssertionLayer;

pub(crate) struct Assertions {
    keys: Option<AssertionKeys>,
    issuer: String,
}

impl Assertions {
    /// Reads the key.
    pub(crate) fn new(config: &Config) -> Result<Self, Wrong> {
        let read = |path: &String| {
            // Its text isn't shown, because it's a secret.
            if path.contains("-----BEGIN") {
                return Err("assertion_key: write the path of the key's file, not the key".to_owned());
            }
            let wrong = |wrong: &dyn std::fmt::Display| format!("assertion_key {path:?}: {wrong}");
            let pem = fs::read(path).map_err(|error| wrong(&error))?;
            AssertionKeys::from_pem(pem).map_err(|error| wrong(&error))
        };
        let keys = config.assertion_key.as_ref().map(read).transpose()?;
        Ok(Self { keys, issuer: format!("http://{}", config.listen) })
    }

    pub(crate) fn layer(&self, mount: &Mount, audience: &str) -> Result<Option<Layer>, Wrong> {
        match (&self.keys, mount.assertion) {
            (_, false) => Ok(None),
            (None, true) => {
                Err("assertion: there is no key: write assertion_key = \"key.pem\" before the mounts".into())
            }
            // Not the default, because all backends at Unix sockets would have the same audience.
            (Some(keys), true) => Ok(Some(AssertionLayer::new(keys.clone(), &self.issuer).audience(audience))),
        }
    }

    /// Adds the route of the keys.
    pub(crate) fn add_route(&self, routes: Router) -> Router {
        match &self.keys {
            Some(keys) => routes.route_service(JWKS, keys.jwks()),
            None => routes,
        }
    }

    /// Whether it's the route of the keys, which no mount takes: a backend that could respond there would choose the
    /// keys that the other backends trust.
    pub(crate) fn owns(&self, path: &str) -> bool {
        self.keys.is_some() && path == JWKS
    }
}
