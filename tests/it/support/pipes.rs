//! Connections in memory: with a paused clock, their events have one order.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use hyper::{
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
    service::TowerToHyperService,
};
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};
use tower::service_fn;
use tower_reverse_proxy::{Client, ReverseProxy, ReverseProxyLayer};
#[cfg(feature = "http2")]
use {
    axum::Router,
    hyper_util::{rt::TokioExecutor, server::conn::auto},
    tokio::io::{AsyncRead, AsyncWrite},
};

use super::{Wire, within};

/// A function that is called once, at the proxy's next read from a connection.
pub(crate) type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A connection of a custom connector.
pub(crate) struct Pipe {
    io: TokioIo<DuplexStream>,
    is_http2: bool,
    on_read: Hook,
}

impl Pipe {
    /// A connection, and its other end.
    pub(crate) fn pair() -> (Self, DuplexStream) {
        let (ours, theirs) = duplex(64 * 1024);
        (Self::new(ours), theirs)
    }

    pub(crate) fn new(stream: DuplexStream) -> Self {
        Self { io: TokioIo::new(stream), is_http2: false, on_read: Hook::default() }
    }

    /// Whether the connector reports that HTTP/2 was negotiated.
    #[cfg(feature = "http2")]
    pub(crate) fn negotiated_http2(mut self, is_http2: bool) -> Self {
        self.is_http2 = is_http2;
        self
    }

    pub(crate) fn on_read(mut self, hook: Hook) -> Self {
        self.on_read = hook;
        self
    }
}

impl Connection for Pipe {
    fn connected(&self) -> Connected {
        if self.is_http2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let hook = self.on_read.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A front and a backend in memory, for tests with a paused clock.
pub(crate) struct InMemory {
    proxy: ReverseProxy,
    backends: UnboundedReceiver<Wire<DuplexStream>>,
}

impl InMemory {
    pub(crate) fn new(options: impl FnOnce(ReverseProxyLayer) -> ReverseProxyLayer) -> Self {
        let (report, backends) = unbounded_channel();
        let layer =
            ReverseProxyLayer::new(Client::builder("http://backend.example").connector(service_fn(move |_| {
                let (ours, theirs) = Pipe::pair();
                report.send(Wire::new(theirs)).unwrap();
                async { Ok::<_, io::Error>(ours) }
            })));
        Self { proxy: options(layer).into_service(), backends }
    }

    /// Connects to the front.
    pub(crate) fn client(&self) -> Wire<DuplexStream> {
        let (ours, theirs) = duplex(64 * 1024);
        let service = TowerToHyperService::new(self.proxy.clone());
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(theirs), service).with_upgrades());
        Wire::new(ours)
    }

    /// Returns the next connection to the backend.
    pub(crate) async fn backend(&mut self) -> Wire<DuplexStream> {
        within(self.backends.recv()).await.unwrap()
    }
}

/// Serves an app on one connection, in the protocol of its client, without extended CONNECT.
#[cfg(feature = "http2")]
pub(crate) async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, app: Router) {
    let server = auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(app)).await;
}

/// Connects to a front in memory, as a client that writes raw bytes.
#[cfg(feature = "http2")]
pub(crate) fn client_of(app: Router) -> Wire<DuplexStream> {
    let (ours, theirs) = duplex(64 * 1024);
    tokio::spawn(serve(theirs, app));
    Wire::new(ours)
}
