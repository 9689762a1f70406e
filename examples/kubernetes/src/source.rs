//! A Service as a source of members, by a watch of its EndpointSlices.

use std::{sync::Arc, time::Duration};

use axum::{
    BoxError,
    http::{StatusCode, Uri},
};
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    runtime::{
        reflector::{self, Store, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use tokio::time::sleep;
use tower_reverse_proxy::balance::Member;

use crate::endpoints::{Endpoint, Port, endpoints};

/// A Service, and which port of its pods gets the requests.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Its address within the cluster.
    url: String,
    name: String,
    /// `None`: the one that the client is in.
    namespace: Option<String>,
    port: Port,
}

impl Service {
    /// Finds the Service by its address within the cluster, such as `http://app.shop.svc`.
    pub(crate) fn new(url: &str, port: Port) -> Result<Self, BoxError> {
        let uri: Uri = url.parse()?;
        let mut labels = uri.host().unwrap_or_default().split('.').map(str::to_owned);
        let name = labels.next().filter(|name| is_label(name));
        let namespace = labels.next();
        match name {
            Some(name) if uri.scheme().is_some() && namespace.as_deref().is_none_or(is_label) => {
                Ok(Self { url: url.to_owned(), name, namespace, port })
            }
            _ => Err(format!("{url:?} isn't the address of a Service: write `http://name.namespace.svc`").into()),
        }
    }

    fn members(&self, endpoints: &[Endpoint]) -> Vec<Member> {
        let member = |endpoint: &Endpoint| {
            let member = Member::new(&self.url).at(endpoint.address);
            if endpoint.is_draining { member.draining() } else { member }
        };
        endpoints.iter().map(member).collect()
    }
}

/// Returns whether it can be the name of a Service or a namespace, and so a part of a selector.
fn is_label(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Returns the pods of a Service as sets of members, one after each change.
///
/// `delays` are the times from a failure of the API server to the next attempt, such as
/// [`DefaultBackoff`](watcher::DefaultBackoff).
pub(crate) fn members(
    client: Client,
    service: Service,
    delays: impl Iterator<Item = Duration> + Send + 'static,
) -> impl Stream<Item = Result<Vec<Member>, BoxError>> + Send + 'static {
    let namespace = service.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let selector = format!("kubernetes.io/service-name={}", service.name);
    let (slices, writer) = reflector::store();
    let source = Source {
        api: Api::namespaced(client, &namespace),
        config: watcher::Config::default().labels(&selector),
        service,
        events: None,
        writer,
        slices,
        returned: None,
        delays,
        delay: None,
    };
    stream::unfold(source, |mut source| async move { Some((source.next().await?, source)) })
}

struct Source<D> {
    api: Api<EndpointSlice>,
    config: watcher::Config,
    service: Service,
    /// `None` before the first list, and after a failure.
    events: Option<BoxStream<'static, watcher::Result<Event<EndpointSlice>>>>,
    writer: Writer<EndpointSlice>,
    /// What the events have written. A list replaces the slices when it's complete.
    slices: Store<EndpointSlice>,
    /// What was returned last, unless that was an error.
    returned: Option<Vec<Endpoint>>,
    delays: D,
    delay: Option<Duration>,
}

impl<D: Iterator<Item = Duration>> Source<D> {
    /// Waits for the next set.
    async fn next(&mut self) -> Option<Result<Vec<Member>, BoxError>> {
        loop {
            match self.event().await? {
                Ok(event) => {
                    self.writer.apply_watcher_event(&event);
                    if matches!(event, Event::Init | Event::InitApply(_)) {
                        continue;
                    }
                }
                Err(error) => {
                    // The next list has what this watch has missed, and shows that the API server is back.
                    self.events = None;
                    self.delay = self.delays.next();
                    if is_expired(&error) {
                        continue;
                    }
                    self.returned = None;
                    return Some(Err(error.into()));
                }
            }
            match self.endpoints() {
                Ok(endpoints) if self.returned.as_ref() == Some(&endpoints) => {}
                Ok(endpoints) => {
                    let draining = endpoints.iter().filter(|endpoint| endpoint.is_draining).count();
                    tracing::info!(
                        service = self.service.name,
                        pods = endpoints.len(),
                        draining,
                        "the pods have changed"
                    );
                    let members = self.service.members(&endpoints);
                    self.returned = Some(endpoints);
                    return Some(Ok(members));
                }
                Err(error) => {
                    self.returned = None;
                    return Some(Err(error));
                }
            }
        }
    }

    async fn event(&mut self) -> Option<watcher::Result<Event<EndpointSlice>>> {
        if let Some(delay) = self.delay.take() {
            sleep(delay).await;
        }
        self.events.get_or_insert_with(|| watcher(self.api.clone(), self.config.clone()).boxed()).next().await
    }

    fn endpoints(&self) -> Result<Vec<Endpoint>, BoxError> {
        let slices = self.slices.state();
        let endpoints = endpoints(slices.iter().map(Arc::as_ref), &self.service.port)?;
        if endpoints.is_empty() {
            return Err(format!("no pod of the Service {:?} is ready", self.service.name).into());
        }
        Ok(endpoints)
    }
}

/// Returns whether the watch began too long ago to be continued, which happens now and then.
fn is_expired(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::WatchError(status) => status,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status,
        _ => return false,
    };
    status.code == StatusCode::GONE.as_u16()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_by_its_address() {
        let found = |url: &str| {
            let service = Service::new(url, Port::Only).unwrap();
            (service.name, service.namespace)
        };
        assert_eq!(found("http://app.shop.svc:8080"), ("app".into(), Some("shop".into())));
        assert_eq!(found("https://app.shop.svc.cluster.local"), ("app".into(), Some("shop".into())));
        assert_eq!(found("http://app"), ("app".into(), None));
        for url in
            ["", "app.shop.svc", "/x", "http://app,x.shop", "http://app.sh%op", "http://-a.shop", "http://app..svc"]
        {
            assert!(Service::new(url, Port::Only).is_err(), "{url}");
        }
    }
}
