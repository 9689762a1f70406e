//! HTTP/1.1 connections to a backend, which their holder drives.

#[cfg_attr(not(test), expect(dead_code, reason = "the connection is still hyper's"))]
#[expect(unused_imports, reason = "the connection is still hyper's")]
pub(super) mod codec;
mod connection;
mod gate;
mod idle;
pub(super) mod keep_alive;
mod owned;
mod pool;
mod repeat;
mod upload;

pub(super) use self::{
    connection::{Connection, Sent, builder},
    idle::{Checkout, Freshness, Idle},
    pool::{Pool, PoolOptions, Unusable},
    repeat::is_harmless,
    upload::{Progress, Upload},
};
