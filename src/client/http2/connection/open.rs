//! Opening a connection, and the task that drives it.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use axum_core::BoxError;
use hyper::{client::conn::http2, rt};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{task::JoinHandle, time::timeout};

use super::{
    super::{
        super::connect::Stream as Io,
        options::{Options, PING_TIMEOUT},
    },
    inspect::Inspected,
    sender::Sender,
    shared::Connection,
    state::Admission,
};
use crate::observe;

/// Makes an HTTP/2 connection of a socket, and waits for the backend's SETTINGS.
///
/// The connection's task polls `expiry`, too, which removes the connection from its pool. The connection closes when
/// its last sender is dropped and no stream is open, or a second later.
///
/// # Cancel safety
///
/// Dropping the future closes the connection.
pub(in super::super) async fn open(
    io: Io,
    connection: &Arc<Connection>,
    options: &Options,
    expiry: impl Future<Output = ()> + Send + 'static,
) -> Result<(Sender, Admission), BoxError> {
    let io = TokioIo::new(Inspected::new(io, connection.clone()));
    let executor = Executor::default();
    let (requests, driver) = http2::Builder::new(executor.clone())
        .timer(TokioTimer::new())
        // Not adaptive: that leaves the connection's window at 64 KiB, and h2 limits the charges for small frames to
        // half of it.
        .initial_connection_window_size(options.windows.connection)
        .initial_stream_window_size(options.windows.stream)
        .max_header_list_size(u32::try_from(options.max_response_head.bytes).unwrap_or(u32::MAX))
        // Frames still come on streams that clients have left. On a stream that h2 has forgotten, they would count as
        // protocol errors, too many of which end the connection.
        .max_concurrent_reset_streams(1024)
        // The backend's SETTINGS are the first frame that it sends (RFC 9113, section 3.4), and set the number.
        .initial_max_send_streams(0)
        .keep_alive_interval(options.keep_alive.interval)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(options.keep_alive.while_idle)
        .handshake(io)
        .await?;
    let (sender, mut senders) = Sender::new(requests);
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
                // hyper's driver doesn't notice dropped senders while a request in h2 waits for a stream.
                let is_abandoned = ended.is_pending() && senders.poll_recv(cx).is_ready();
                if is_abandoned { Poll::Ready(Ok(())) } else { ended }
            });
            ended.await
        };
        // The driver has been dropped, so its sender refuses requests by now.
        driven.close();
        if let Err(error) = ended {
            observe::broken_connection(&error);
        }
        executor.close().await;
    });
    let admission = connection.opened().await?;
    Ok((sender, admission))
}

/// How long a connection without senders has for what is left to write: resets of streams, and GOAWAY.
const LINGER: Duration = Duration::from_secs(1);

/// Spawns hyper's tasks, and keeps the first one, which owns the connection. The others end with it.
#[derive(Clone, Default)]
struct Executor(Arc<Mutex<Option<JoinHandle<()>>>>);

impl Executor {
    /// Closes the connection, which hyper does only when no stream is open. A stream with data to send stays open until
    /// the backend opens its window, because hyper waits for that, and notices neither that the response was dropped
    /// nor that the tunnel was.
    async fn close(&self) {
        let connection = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut connection) = connection
            && timeout(LINGER, &mut connection).await.is_err()
        {
            connection.abort();
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> rt::Executor<F> for Executor {
    fn execute(&self, future: F) {
        let task = tokio::spawn(future);
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some(task);
        }
    }
}
