//! Opening a connection, and the task that drives it.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
};

use axum_core::{BoxError, body::Body};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::{
    super::{
        super::connect::Stream as Io,
        options::{Options, PING_TIMEOUT},
    },
    inspect::Inspected,
    shared::Connection,
    state::Admission,
};
use crate::observe;

/// Makes an HTTP/2 connection of a socket, and waits for the backend's SETTINGS.
///
/// The connection's task polls `expiry`, too, which removes the connection from its pool. It ends by itself when its last sender
/// is dropped and no stream is open.
///
/// # Cancel safety
///
/// Dropping the future closes the connection.
pub(in super::super) async fn open(
    io: Io,
    connection: &Arc<Connection>,
    options: &Options,
    expiry: impl Future<Output = ()> + Send + 'static,
) -> Result<(SendRequest<Body>, Admission), BoxError> {
    let io = TokioIo::new(Inspected::new(io, connection.clone()));
    let (sender, driver) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        // Not adaptive: that leaves the connection's window at 64 KiB, and h2 limits the charges for small frames to half of it.
        .initial_connection_window_size(options.windows.connection)
        .initial_stream_window_size(options.windows.stream)
        .max_header_list_size(u32::try_from(options.max_response_head.bytes).unwrap_or(u32::MAX))
        // Frames still come on streams that clients have left. On a stream that h2 has forgotten they would count as protocol
        // errors, too many of which end the connection.
        .max_concurrent_reset_streams(1024)
        // The backend's SETTINGS are the first frame that it sends (RFC 9113, section 3.4), and set the number.
        .initial_max_send_streams(0)
        .keep_alive_interval(options.keep_alive.interval)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(options.keep_alive.while_idle)
        .handshake(io)
        .await?;
    let driven = connection.clone();
    tokio::spawn(async move {
        let ended = {
            let (mut driver, mut applied) = (pin!(driver), pin!(driven.applied.notified()));
            let (mut expiry, mut is_expired) = (pin!(expiry), false);
            let ended = poll_fn(|cx| {
                if !is_expired {
                    is_expired = expiry.as_mut().poll(cx).is_ready();
                }
                let mut has_settings = false;
                while applied.as_mut().poll(cx).is_ready() {
                    applied.set(driven.applied.notified());
                    has_settings = true;
                }
                let ended = driver.as_mut().poll(cx);
                if has_settings {
                    driven.allow(driver.current_max_send_streams(), driver.is_extended_connect_protocol_enabled());
                }
                ended
            });
            ended.await
        };
        // The driver has been dropped, so its sender refuses requests by now.
        driven.close();
        if let Err(error) = ended {
            observe::broken_connection(&error);
        }
    });
    let admission = connection.opened().await?;
    Ok((sender, admission))
}
