//! The proxy as a user meets it: a service of its own, or a layer around an application.

mod backend_options;
mod build;
mod future;
mod layer;
mod options;
mod service;

pub use self::{
    build::{ToBackend, ToService},
    future::{ProxyFuture, ServiceFuture},
    layer::ReverseProxyLayer,
    service::{ReverseProxy, ReverseProxyService},
};
