//! Mount another web server as a directory of an axum app.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod error;
mod identity;
mod path;

#[cfg(feature = "axum")]
mod axum;
mod headers;

mod client;
mod refuse;
mod upstream;

pub mod basic_auth;
pub mod remote_user;
pub mod trace_redirect;

mod forward;
pub mod proxy;

pub use self::{
    backend::{Backend, InvalidBackend},
    basic_auth::BasicAuthLayer,
    client::{Client, ClientBody, ClientFuture},
    error::{Error, ErrorKind, Phase},
    identity::{ClientAddr, RemoteUser},
    path::{InvalidPrefix, Prefix},
    proxy::{ReverseProxy, ReverseProxyLayer, ReverseProxyService},
    refuse::{RefusableBody, RefusableFuture},
    remote_user::RemoteUserLayer,
    trace_redirect::TraceRedirectLayer,
    upstream::{HostPolicy, Upstream, UpstreamFuture},
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
