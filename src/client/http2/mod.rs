//! HTTP/2 to one backend. Requests share connections, of which there are as many as their streams need. Each connection
//! has a task of its own.

mod body;
mod connection;
mod convert;
mod exchange;
mod head;
mod options;
mod pool;
mod stream;
pub(super) mod websocket;

pub(super) use self::{
    body::Body,
    connection::Observer,
    convert::{as_http1, as_http2},
    exchange::send,
    head::{HeadSize, Share},
    options::{Options, ResponseHeadLimit},
    pool::{Pool, Removed},
    stream::Stream,
};
