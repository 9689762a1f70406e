//! A build without assertions: their keys are refused.

use axum::Router;
use tower::layer::util::Identity;

use super::{
    Wrong,
    config::{Config, Mount},
};

pub(crate) type Layer = Identity;

pub(crate) struct Assertions;

impl Assertions {
    pub(crate) fn new(config: &Config) -> Result<Self, Wrong> {
        if config.assertion_key.is_some() { Err(not_built("assertion_key")) } else { Ok(Self) }
    }

    pub(crate) fn layer(&self, mount: &Mount, _: &str) -> Result<Option<Layer>, Wrong> {
        if mount.assertion { Err(not_built("assertion")) } else { Ok(None) }
    }

    pub(crate) fn add_route(&self, routes: Router) -> Router {
        routes
    }

    pub(crate) fn owns(&self, _: &str) -> bool {
        false
    }
}

fn not_built(key: &str) -> Wrong {
    format!("{key}: this build has no assertions: build the example with `--features assertion,tls-ring`")
}
