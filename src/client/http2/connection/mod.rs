//! One HTTP/2 connection: hyper drives it in a task of its own, and its [`state`] decides which requests it gets.
//!
//! hyper and h2 show neither the backend's limit for request heads, nor the size of a response's head that h2 refuses,
//! nor how much h2 charges the connection for small DATA frames. [`frames`] parses that from the octets that
//! [`inspect`] reads, and [`unread`] keeps the charges below the limit at which h2 ends the connection.

mod charges;
mod frames;
mod inspect;
mod open;
mod sender;
mod shared;
mod state;
mod unread;

pub(in super::super) use self::shared::Observer;
pub(super) use self::{
    open::open,
    sender::Sender,
    shared::Connection,
    state::Admission,
    unread::{Next, Polled, SharedResponse, UnreadResponse},
};
