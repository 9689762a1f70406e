//! Sends a failed request again: to another member of a balancer, or to the only backend.
//!
//! A [`Retry`] is a service around any upstream. Its [`RetryPolicy`] decides what is sent again; by default, it's a
//! request of which nothing reached a backend.
//!
//! ```
//! use tower_reverse_proxy::{Retry, RetryPolicy, ReverseProxyLayer, Upstream};
//!
//! let upstream = Retry::new(Upstream::new("http://127.0.0.1:8000"), RetryPolicy::idempotent());
//! let proxy = ReverseProxyLayer::with_upstream(upstream).prefix("/mydir");
//! # let _ = proxy;
//! ```
//!
//! # When it ends
//!
//! The last response or failure is the client's
//!
//! 1. if it isn't one that the policy covers;
//! 2. after [`attempts`](RetryPolicy::attempts), 3 by default;
//! 3. if the balancer has no other member that hasn't failed this request;
//! 4. if the [budget](RetryPolicy::budget_percent) is spent, unless nothing of the request was sent;
//! 5. if the body can't be [replayed](RetryPolicy::replay_limit).
//!
//! A response that is followed by another attempt is dropped, so that its connection and its permit of the
//! backend are free while the next attempt waits. If that attempt fails, its failure is the client's.
//!
//! # Layers
//!
//! A layer around the [`Retry`] sees a request once, and one inside of it sees each attempt. With
//! [`unsent`](RetryPolicy::unsent), an inner layer sees the request as it has left it: a layer that appends to a field
//! appends again. The layers of this crate replace what they have set.

mod budget;
mod future;
mod hedge;
mod jitter;
mod layer;
mod original;
mod policy;
mod replay;
mod service;
#[cfg(test)]
mod tests;

pub use self::{future::ResponseFuture, hedge::Hedge, layer::RetryLayer, policy::RetryPolicy, service::Retry};
