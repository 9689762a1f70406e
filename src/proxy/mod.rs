//! The proxy as a service, and as a layer around an application.
//!
//! [`ReverseProxy`] sends every request to its upstream. [`ReverseProxyLayer`] makes a [`ReverseProxyService`], which
//! sends requests below its prefix there, and everything else to the service that it wraps.

mod future;
mod layer;
mod options;
mod service;
mod to_target;

pub use self::{
    future::{ForwardToFuture, ProxyFuture, ResponseFuture},
    layer::ReverseProxyLayer,
    service::{ReverseProxy, ReverseProxyService},
};
