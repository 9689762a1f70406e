//! The options of the forwarder.

use std::{fmt, mem, sync::Arc, time::Duration};

use axum_core::body::Body;
use http::{Extensions, Request, Response, request::Parts};

use super::failure::Failure;
use crate::{
    headers::{forwarded::ForwardedPolicy, via::Pseudonym},
    path::{PathPolicy, Prefix},
    upgrade::{AllowedUpgrades, Tunnels},
};

/// The options of a proxy that don't concern its upstream, with their defaults.
#[derive(Clone)]
pub(crate) struct ForwardConfig {
    pub(crate) prefix: Prefix,
    pub(crate) path: PathPolicy,
    pub(crate) forwarded: ForwardedPolicy,
    /// `None` to send no `Via`.
    pub(crate) via: Option<Pseudonym>,
    pub(crate) keep_underscores: bool,
    pub(crate) keep_identity_claims: bool,
    /// The names of cookies that aren't forwarded in either direction.
    pub(crate) hidden_cookies: Box<[String]>,
    /// The name of the cookie by which the upstream keeps sessions. It's never one of `hidden_cookies`, because the
    /// upstream reads it, and removes it from requests and responses itself.
    pub(crate) upstream_cookie: Option<Arc<str>>,
    pub(crate) upgrades: AllowedUpgrades,
    pub(crate) tunnels: Tunnels,
    pub(crate) continue_timeout: Duration,
    pub(crate) header_timeout: Option<Duration>,
    pub(crate) body_idle_timeout: Option<Duration>,
    pub(crate) on_error: Option<OnError>,
    /// Chooses the target of a request. `None` if all requests have the same upstream.
    pub(crate) choose: Option<Choose>,
}

/// Chooses the target of a request. Both functions return whether the request is the proxy's.
#[derive(Clone)]
pub(crate) struct Choose {
    /// Reads the target that the request has. `None`: it has none.
    pub(crate) present: fn(&Extensions) -> Option<bool>,
    /// Chooses the target of a request without one.
    pub(crate) select: Option<Select>,
}

pub(crate) type Select = Arc<dyn Fn(&mut Parts) -> bool + Send + Sync>;

pub(crate) type OnError = Arc<dyn Fn(&Failure) -> Response<Body> + Send + Sync>;

impl Default for ForwardConfig {
    fn default() -> Self {
        Self {
            prefix: Prefix::root(),
            path: PathPolicy::Keep,
            forwarded: ForwardedPolicy::default(),
            via: Some(Pseudonym::random()),
            keep_underscores: false,
            keep_identity_claims: false,
            hidden_cookies: Box::default(),
            upstream_cookie: None,
            upgrades: AllowedUpgrades::default(),
            tunnels: Tunnels::new(),
            // RFC 9110, section 10.1.1, doesn't define a time. curl waits for 1 s too.
            continue_timeout: Duration::from_secs(1),
            header_timeout: Some(Duration::from_secs(60)),
            body_idle_timeout: Some(Duration::from_secs(5 * 60)),
            on_error: None,
            choose: None,
        }
    }
}

/// Has the target of a request chosen. The body stays where it is, because a request is large to move.
#[inline(never)]
pub(crate) fn choose<B>(choose: &Choose, request: &mut Request<B>) -> bool {
    if let Some(is_proxied) = (choose.present)(request.extensions()) {
        return is_proxied;
    }
    let Some(select) = &choose.select else { return true };
    let (mut head, ()) = Request::new(()).into_parts();
    swap_head(request, &mut head);
    let is_proxied = select(&mut head);
    swap_head(request, &mut head);
    is_proxied
}

fn swap_head<B>(request: &mut Request<B>, head: &mut Parts) {
    mem::swap(request.method_mut(), &mut head.method);
    mem::swap(request.uri_mut(), &mut head.uri);
    mem::swap(request.version_mut(), &mut head.version);
    mem::swap(request.headers_mut(), &mut head.headers);
    mem::swap(request.extensions_mut(), &mut head.extensions);
}

impl fmt::Debug for ForwardConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardConfig")
            .field("prefix", &self.prefix)
            .field("path", &self.path)
            .field("forwarded", &self.forwarded)
            .field("via", &self.via)
            .field("keep_underscores", &self.keep_underscores)
            .field("keep_identity_claims", &self.keep_identity_claims)
            .field("hidden_cookies", &self.hidden_cookies)
            .field("upstream_cookie", &self.upstream_cookie)
            .field("upgrades", &self.upgrades)
            .field("tunnels", &self.tunnels)
            .field("continue_timeout", &self.continue_timeout)
            .field("header_timeout", &self.header_timeout)
            .field("body_idle_timeout", &self.body_idle_timeout)
            .finish_non_exhaustive()
    }
}
