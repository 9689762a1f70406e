//! The forwarder: what RFC 9110 obliges an intermediary to, in its one right order.
//!
//! [`request`] and [`response`] are the two halves, each a list of calls that reads top to bottom; [`rules`] is what an
//! operator chose of them; [`body`] watches what flows; [`future`] drives one exchange from one half to the other.

mod body;
mod confirm;
mod expect;
mod failure;
mod future;
mod idle;
mod request;
mod response;
mod rules;
mod upload;

pub use self::failure::Failure;
pub(crate) use self::{
    future::{ForwardFuture, forward},
    rules::Rules,
};
