//! Mounts with several backends: the set of each, and `/front/backends`, which shows and replaces the sets.

use std::{iter, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, uri::Scheme},
    routing::get,
};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use tower_reverse_proxy::{
    Backend, Backends, ClientBuilder,
    balance::{BackendsBuilder, Check, Eject, Member, Pick, Sticky, discover::Follow},
};

use super::{
    Wrong,
    config::{Balance, Mount},
    dns,
    tls::Roots,
};

/// The sets of the mounts, in the order of the file.
#[derive(Default)]
pub(crate) struct Sets(Vec<Set>);

/// The backends of a mount.
pub(crate) struct Set {
    prefix: String,
    backends: Backends,
    /// The scheme of all of them, because the options of TLS are an error for `http` backends.
    scheme: Scheme,
    /// What finds them, if it's a name.
    source: Option<Follow>,
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
        let weights = mount.weights.iter().flatten().copied().chain(iter::repeat(1));
        let members = origins.iter().zip(weights).map(|(origin, weight)| Member::new(origin).weight(weight));
        Self::of(mount, scheme(origins)?, members.collect(), roots, options)
    }

    /// Makes the set of a mount whose backends are the addresses of a name.
    pub(crate) async fn found(
        mount: &Mount,
        name: &str,
        roots: &Roots,
        options: impl Fn(ClientBuilder) -> ClientBuilder + Send + Sync + 'static,
    ) -> Result<Self, Wrong> {
        let mut source = dns::source(mount, name)?;
        // If there is no answer in time, the system looks the name up for each connection until there is one.
        let answer = timeout(Duration::from_secs(3), source.next()).await;
        let members = answer.ok().flatten().and_then(Result::ok).filter(|members| !members.is_empty());
        let members = members.unwrap_or_else(|| vec![Member::new(name)]);
        let mut set = Self::of(mount, scheme(&[name.to_owned()])?, members, roots, options)?;
        set.source = Some(set.backends.follow(source));
        Ok(set)
    }

    fn of(
        mount: &Mount,
        scheme: Scheme,
        members: Vec<Member>,
        roots: &Roots,
        options: impl Fn(ClientBuilder) -> ClientBuilder + Send + Sync + 'static,
    ) -> Result<Self, Wrong> {
        let tls = roots.of(mount, &scheme)?;
        let client = move |client| tls.apply(options(client));
        let backends = set_options(Backends::builder(members).client(client), mount)?;
        let backends = backends.build().map_err(|error| error.to_string())?;
        Ok(Self { prefix: mount.prefix.clone(), backends, scheme, source: None })
    }

    pub(crate) fn backends(&self) -> &Backends {
        &self.backends
    }

    fn replace(&self, origins: &[String]) -> Result<(), (StatusCode, Wrong)> {
        if self.source.is_some() {
            return Err((StatusCode::CONFLICT, "the mount's backends are those of a name".into()));
        }
        let wrong = |wrong| (StatusCode::BAD_REQUEST, wrong);
        if scheme(origins).map_err(wrong)? != self.scheme {
            return Err(wrong(format!("the mount's backends are {}: write such ones", self.scheme)));
        }
        self.backends.set(origins).map_err(|error| wrong(error.to_string()))
    }
}

/// Sets the options of the balancer.
fn set_options(backends: BackendsBuilder, mount: &Mount) -> Result<BackendsBuilder, Wrong> {
    let ms = Duration::from_millis;
    let mut backends = backends.pick(match mount.balance {
        Some(Balance::Least) | None => Pick::LeastRequests,
        Some(Balance::RoundRobin) => Pick::RoundRobin,
        Some(Balance::HashUser) => Pick::hash_by_user(),
        Some(Balance::HashPath) => Pick::hash_by_path(),
    });
    if let Some(key) = &mount.sticky_key {
        let cookie = Sticky::cookie("backend", key);
        backends = backends.sticky(cookie.map_err(|error| format!("sticky_key: {error}"))?);
    }
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
    Ok(backends)
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
                // The name that tests from outside know.
                "failures": member.faults(),
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
    set.replace(&backends)?;
    Ok(StatusCode::NO_CONTENT)
}
