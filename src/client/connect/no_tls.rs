//! TLS without the feature `tls`: a client can't be set to use it, so there is no handshake.

use std::{error, fmt, io};

use tokio::net::TcpStream;

use crate::backend::Backend;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Tls {}

impl Tls {
    pub(crate) fn new() -> Result<Self, InvalidTls> {
        Err(InvalidTls)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct InvalidTls;

impl fmt::Display for InvalidTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TLS needs the feature `tls`")
    }
}

impl error::Error for InvalidTls {}

pub(super) struct Handshaker(Tls);

impl Handshaker {
    pub(super) fn new(tls: &Tls, _: &Backend, _: bool) -> Result<Self, InvalidTls> {
        match *tls {}
    }

    #[expect(clippy::unused_async, reason = "it waits for the backend with the feature")]
    pub(super) async fn handshake(&self, _: TcpStream) -> io::Result<(TcpStream, bool)> {
        match self.0 {}
    }
}
