//! HTTP/1.1 connections to a backend, which their holder drives.

mod connection;
mod gate;
pub(super) mod keep_alive;
mod repeat;
mod upload;

pub(super) use self::{
    connection::{Connection, Sent, builder},
    repeat::is_harmless,
    upload::{Progress, Upload},
};
