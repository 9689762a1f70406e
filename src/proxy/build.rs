//! What an upstream is built from, kept so that one more layer can go innermost.
//!
//! Layers are applied once, here: `Router::layer` calls [`Layer::layer`] once per route, and a limit or a balancer must not
//! be made anew for each.

use tower_layer::{Identity, Layer};

use crate::{
    backend::Backend,
    client::{Client, ClientOptions},
    upstream::{To, Upstream},
};

/// An upstream made of a backend: the crate's client, the upstream layers around it, and the
/// [`Upstream`] around these.
#[derive(Clone, Debug)]
pub struct ToBackend<L = Identity> {
    pub(super) to: To,
    pub(super) client: ClientOptions,
    pub(super) layers: L,
}

impl ToBackend {
    pub(super) fn new(backend: Backend) -> Self {
        let client = ClientOptions::new();
        Self { to: To::new(backend), client, layers: Identity::new() }
    }
}

impl<L: Layer<Client>> ToBackend<L> {
    pub(super) fn build(&self) -> Upstream<L::Service> {
        let client = Client::new(&self.to.backend, &self.client);
        Upstream::with_options(self.to.clone(), self.layers.layer(client))
    }
}

/// An upstream made of a service, with the upstream layers around it.
#[derive(Clone, Debug)]
pub struct ToService<S, L = Identity> {
    pub(super) service: S,
    pub(super) layers: L,
}

impl<S: Clone, L: Layer<S>> ToService<S, L> {
    pub(super) fn build(&self) -> L::Service {
        self.layers.layer(self.service.clone())
    }
}
