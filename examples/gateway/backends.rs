//! Mounts with several backends: the set of each, and `/front/backends`, which shows and replaces the sets.

use std::{iter, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, uri::Scheme},
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_reverse_proxy::{
    Backend, Backends, ClientBuilder,
    balance::{BackendsBuilder, Check, Eject, Member},
};

use super::{Wrong, config::Mount, tls::Roots};

/// The sets of the mounts, in the order of the file.
#[derive(Default)]
pub(crate) struct Sets(Vec<Set>);

/// The backends of a mount.
pub(crate) struct Set {
    prefix: String,
    backends: Backends,
    /// The scheme of all of them, because the options of TLS are an error for `http` backends.
    scheme: Scheme,
}

impl Sets {
    pub(crate) fn push(&mut self, set: Set) {
        self.0.push(set);
    }

    /// Adds the route. `may_be_replaced`: anyone who reaches it may replace the sets, which is for test beds.
    pub(crate) fn add_route(self, routes: Router, may_be_replaced: bool) -> Router {
        let route = match may_be_replaced {
            true => get(show).post(replace),
            false => get(show),
        };
        routes.route("/front/backends", route.with_state(Arc::new(self)))
    }
}

impl Set {
    /// Makes the set of a mount, with the options that its clients have.
    pub(crate) fn new(
        mount: &Mount,
        origins: &[String],
        roots: &Roots,
        options: impl Fn(ClientBuilder) -> ClientBuilder + Send + Sync + 'static,
    ) -> Result<Self, Wrong> {
        let scheme = scheme(origins)?;
        let weights = mount.weights.iter().flatten().copied().chain(iter::repeat(1));
        let members = origins.iter().zip(weights).map(|(origin, weight)| Member::new(origin).weight(weight));
        let tls = roots.of(mount, &scheme)?;
        let client = move |client| tls.apply(options(client));
        let backends = set_options(Backends::builder(members).client(client), mount);
        let backends = backends.build().map_err(|error| error.to_string())?;
        Ok(Self { prefix: mount.prefix.clone(), backends, scheme })
    }

    pub(crate) fn backends(&self) -> &Backends {
        &self.backends
    }

    fn replace(&self, origins: &[String]) -> Result<(), Wrong> {
        if scheme(origins)? != self.scheme {
            return Err(format!("the mount's backends are {}: write such ones", self.scheme));
        }
        self.backends.set(origins).map_err(|error| error.to_string())
    }
}

/// Sets the options of the balancer.
fn set_options(mut backends: BackendsBuilder, mount: &Mount) -> BackendsBuilder {
    let ms = Duration::from_millis;
    if mount.eject == Some(false) {
        backends = backends.eject(Eject::never());
    }
    if let Some(path) = &mount.check {
        let check = Check::get(path);
        backends =
            backends.check(mount.check_interval_ms.map_or(check.clone(), |interval| check.interval(ms(interval))));
    }
    backends = backends.max_requests(mount.max_requests);
    if let Some(timeout) = mount.queue_timeout_ms {
        backends = backends.queue_timeout(ms(timeout));
    }
    if let Some(time) = mount.slow_start_ms {
        backends = backends.slow_start(ms(time));
    }
    if let Some(timeout) = mount.drain_timeout_ms {
        backends = backends.drain_timeout(ms(timeout));
    }
    backends
}

/// Returns the scheme that all of these origins have.
fn scheme(origins: &[String]) -> Result<Scheme, Wrong> {
    let backends = origins.iter().map(|origin| Backend::try_from(origin).map_err(|error| error.to_string()));
    let backends = backends.collect::<Result<Vec<_>, _>>()?;
    let Some(first) = backends.first() else { return Err("no backends: write one or more".into()) };
    if let Some(other) = backends.iter().find(|backend| backend.scheme() != first.scheme()) {
        return Err(format!("{first} and {other}: write https:// for all backends of a mount, or for none"));
    }
    Ok(first.scheme().clone())
}

async fn show(State(sets): State<Arc<Sets>>) -> Json<Vec<Value>> {
    let rows = sets.0.iter().flat_map(|set| {
        set.backends.status().into_iter().map(|member| {
            json!({
                "mount": set.prefix,
                "backend": member.backend(),
                "state": member.state().to_string(),
                "in_flight": member.in_flight(),
                "requests": member.requests(),
                "failures": member.failures(),
            })
        })
    });
    Json(rows.collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replacement {
    mount: String,
    backends: Vec<String>,
}

async fn replace(State(sets): State<Arc<Sets>>, body: Bytes) -> Result<StatusCode, (StatusCode, Wrong)> {
    let Replacement { mount, backends } =
        serde_json::from_slice(&body).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    let Some(set) = sets.0.iter().find(|set| set.prefix == mount) else {
        return Err((StatusCode::NOT_FOUND, format!("{mount:?}: no mount with several backends has this prefix")));
    };
    set.replace(&backends).map_err(|wrong| (StatusCode::BAD_REQUEST, wrong))?;
    Ok(StatusCode::NO_CONTENT)
}
