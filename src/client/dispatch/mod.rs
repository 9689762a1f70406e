//! Decides which protocol a request goes over and which connection, and resends it if that's safe.
//!
//! The [`dispatcher`] has everything that requests share behind one lock, the [`state`] under it decides, and a request
//! that finds no connection waits in one queue with all others ([`acquire`]).

mod acquire;
mod demand;
mod dispatcher;
mod exchange;
mod http1;
mod http2;
mod lease;
mod state;

pub(super) use self::{
    acquire::probe,
    dispatcher::{Dispatcher, Options},
    exchange::Exchange,
    http2::Outcome,
    lease::Lease,
};
