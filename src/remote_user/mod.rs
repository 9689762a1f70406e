//! A layer that sends the signed-in user's name to the backend, in a header field that no client can set.
//!
//! [`RemoteUserLayer`] finds the user in the request, where the application has put it, and sets `Remote-User`, and
//! further fields along with it.
//!
//! 1. All fields that the layer sets are removed from the client's request, whether a user is signed in or not.
//! 2. The user is found: by the extension [`RemoteUser`](crate::RemoteUser), by a closure over an extension of the
//!    application's own or over the request's head, or by an async lookup.
//! 3. The fields are set if there is a user. A value that a field can't represent refuses the request, because it's
//!    never changed into another value.
//!
//! # Recipes
//!
//! A crate that signs users in sees the request before the proxy. It leaves the user in an extension, which the layer
//! reads. Each of these is a test against the crate. The recipe for axum-login is in the
//! [guide](crate::guide::identity), that for typed header fields is the example of
//! [`from_parts`](RemoteUserLayer::from_parts), and the one for client certificates is the example
//! [`client_certificate`](https://docs.rs/crate/tower-reverse-proxy/latest/source/examples/client_certificate.rs).
//!
//! **tower-sessions**: the extension is a handle, and a query of the store finds the user. A store that fails refuses
//! the request. `Session` has to be of the version that `SessionManagerLayer` has.
//!
//! ```
//! use axum::{Router, routing::post};
//! use tower::ServiceBuilder;
//! use tower_reverse_proxy::{RemoteUserLayer, ReverseProxyLayer};
//! use tower_sessions::{MemoryStore, Session, SessionManagerLayer};
//!
//! let user = RemoteUserLayer::from_extension_async(|session: Session| async move {
//!     // What the sign-in has inserted.
//!     session.get::<String>("user").await
//! });
//! let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/legacy").upstream_layer(user.required(true));
//!
//! // In the order in which they see a request.
//! let layers = ServiceBuilder::new().layer(SessionManagerLayer::new(MemoryStore::default())).layer(legacy);
//! let app: Router = Router::new().route("/sign-in", post(sign_in)).layer(layers);
//! # let _ = app;
//! # async fn sign_in() {}
//! ```
//!
//! **tower-http's `AsyncRequireAuthorizationLayer`**: the closure inserts a type of the application's own.
//!
//! ```
//! use axum::{Router, extract::Request, http::StatusCode, response::{IntoResponse, Response}};
//! use tower::ServiceBuilder;
//! use tower_http::auth::AsyncRequireAuthorizationLayer;
//! use tower_reverse_proxy::{RemoteUserLayer, ReverseProxyLayer};
//!
//! #[derive(Clone)]
//! struct User(String);
//!
//! async fn authorize(mut request: Request) -> Result<Request, Response> {
//!     // Without `&request`, which isn't `Send` because of its body.
//!     let Some(name) = look_up(request.headers()).await else { return Err(StatusCode::UNAUTHORIZED.into_response()) };
//!     request.extensions_mut().insert(User(name));
//!     Ok(request)
//! }
//! # async fn look_up(_: &axum::http::HeaderMap) -> Option<String> { None }
//!
//! let user = RemoteUserLayer::from_extension(|user: &User| Some(user.0.clone())).required(true);
//! let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/legacy").upstream_layer(user);
//! let layers = ServiceBuilder::new().layer(AsyncRequireAuthorizationLayer::new(authorize)).layer(legacy);
//! let app: Router = Router::new().layer(layers);
//! # let _ = app;
//! ```
//!
//! **tower-oauth2-resource-server**: the bearer token of a client is verified, and its claims are the extension. The
//! backend would get the token, too, so another layer replaces the client's `Authorization`.
//!
//! ```no_run
//! use axum::Router;
//! use serde::Deserialize;
//! use tower::ServiceBuilder;
//! use tower_oauth2_resource_server::{server::OAuth2ResourceServer, tenant::TenantConfiguration};
//! use tower_reverse_proxy::{BasicAuthLayer, RemoteUserLayer, ReverseProxyLayer};
//!
//! #[derive(Clone, Deserialize)]
//! struct Claims {
//!     sub: String,
//!     groups: Vec<String>,
//! }
//!
//! # async fn app() -> Result<Router, tower_oauth2_resource_server::error::StartupError> {
//! // Fetches the keys of the issuer.
//! let tenant = TenantConfiguration::builder("https://login.example").audiences(&["front"]).build().await?;
//! let server = OAuth2ResourceServer::<Claims>::builder().add_tenant(tenant).build().await?;
//!
//! let user = RemoteUserLayer::from_extension(|claims: &Claims| Some(claims.sub.clone()))
//!     .also_list("Remote-Groups", ',', |claims: &Claims| claims.groups.clone())
//!     .required(true);
//! let upstream = ServiceBuilder::new().layer(user).layer(BasicAuthLayer::new("front", "s3cret"));
//! let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/legacy").upstream_layer(upstream);
//! let app = Router::new().layer(ServiceBuilder::new().layer(server.into_layer()).layer(legacy));
//! # Ok(app)
//! # }
//! ```

mod config;
mod encoding;
mod field;
mod future;
mod layer;
mod options;
mod service;
mod source;

pub use self::{encoding::Encoding, future::ResponseFuture, layer::RemoteUserLayer, service::SetRemoteUser};
