//! The forwarder: the duties of an intermediary by RFC 9110, in the order in which they have to be done.
//!
//! [`request`] and [`response`] are the two halves, each a list of calls that reads from top to bottom. [`config`] has
//! their options, [`body`] the timeouts of both bodies, and [`future`] drives an exchange through both halves.

mod body;
mod config;
mod confirm;
mod expect;
mod failure;
mod future;
mod idle;
mod request;
mod response;
mod upload;

pub use self::failure::Failure;
pub(crate) use self::{
    config::{Choose, ForwardConfig, choose},
    future::{ForwardFuture, forward},
};
