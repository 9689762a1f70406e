//! HTTP/1.1 connections to a backend, which their holder drives.

pub(super) mod codec;
mod connection;
mod idle;
mod input;
pub(super) mod keep_alive;
mod options;
#[cfg(test)]
mod oracle;
mod owned;
mod pool;
mod upload;

pub(super) use self::{
    connection::{Connection, SendError},
    idle::{Checkout, Freshness, Idle},
    options::Options,
    pool::{Pool, PoolOptions, Unusable},
};
