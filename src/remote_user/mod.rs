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

mod config;
mod encoding;
mod field;
mod future;
mod layer;
mod options;
mod service;
mod source;

pub use self::{encoding::Encoding, future::ResponseFuture, layer::RemoteUserLayer, service::SetRemoteUser};
