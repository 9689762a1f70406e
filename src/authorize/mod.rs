//! Layers that sign in to the backend: they set `Authorization` in place of the client's own.
//!
//! [`AuthorizationLayer`] asks a [`CredentialSource`] for the [`Credentials`] of each attempt, sends them, and keeps
//! what the backend responds to them from the client: its challenges, because they are meant for the front, and a 401,
//! because a browser would ask its user for a password that isn't the front's.
//!
//! | layer | source | credentials |
//! |---|---|---|
//! | [`BasicAuthLayer`] | fixed, or made of the user's name | Basic (RFC 7617) |
//! | [`BearerLayer`] | fixed, the user's own, or refreshed before it expires | a bearer token (RFC 6750) |
//! | `NegotiateLayer`, with the feature `negotiate` | Kerberos: the front's account, or the user | Negotiate (RFC 4559) |
//! | [`AuthorizationLayer::with_source`] | of your own | of any scheme |
//!
//! # Implementing a source
//!
//! A source is an ordinary value with one method. It reads from the [`Ask`] what it needs, and returns a future that
//! owns it:
//!
//! ```
//! use std::future::{Ready, ready};
//!
//! use axum::http::{HeaderValue, StatusCode};
//! use tower_reverse_proxy::{
//!     AuthorizationLayer, Error, ReverseProxyLayer,
//!     authorize::{Ask, CredentialSource, Credentials},
//! };
//!
//! /// A request extension that the application inserts for each tenant.
//! #[derive(Clone)]
//! struct Tenant {
//!     key: String,
//! }
//!
//! #[derive(Clone)]
//! struct TenantKey;
//!
//! impl CredentialSource for TenantKey {
//!     type Proof = ();
//!     type Future = Ready<Result<Option<Credentials>, Error>>;
//!
//!     fn credentials(&self, ask: &Ask<'_>) -> Self::Future {
//!         let Some(tenant) = ask.extensions().get::<Tenant>() else { return ready(Ok(None)) };
//!         let value = HeaderValue::try_from(format!("ApiKey {}", tenant.key));
//!         let invalid = |_| Error::rejected(StatusCode::BAD_GATEWAY, "the tenant's key isn't a field value");
//!         ready(value.map(|value| Some(Credentials::of_user(value))).map_err(invalid))
//!     }
//! }
//!
//! let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000")
//!     .upstream_layer(AuthorizationLayer::with_source(TenantKey).required(true));
//! # let _ = proxy;
//! ```

mod basic;
mod bearer;
mod future;
mod layer;
#[cfg(all(unix, feature = "negotiate"))]
#[cfg_attr(docsrs, doc(cfg(feature = "negotiate")))]
pub mod negotiate;
mod refresh;
mod service;
mod source;

pub use self::{
    basic::{Basic, BasicAuthLayer},
    bearer::{Bearer, BearerLayer, Token},
    future::{CredentialsFuture, ResponseFuture},
    layer::AuthorizationLayer,
    service::Authorization,
    source::{Ask, CredentialSource, Credentials, Proof},
};
