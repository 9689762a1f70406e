//! A backend in memory that counts its connections.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::http::Uri;
use tokio::{
    io::{DuplexStream, duplex},
    sync::Semaphore,
};
use tower::service_fn;
use tower_reverse_proxy::{Client, ClientBuilder};

use super::{Pipe, Wire};

/// A backend in memory. Semaphores let connects succeed, responses to `/held` be sent, and connections that `/later`
/// was sent on be closed.
#[derive(Clone)]
pub(crate) struct Memory {
    asked: Arc<AtomicUsize>,
    pub(crate) open: Arc<AtomicUsize>,
    pub(crate) most: Arc<AtomicUsize>,
    pub(crate) connects: Arc<Semaphore>,
    pub(crate) answers: Arc<Semaphore>,
}

impl Memory {
    /// `connects` connections can be made at once, and more as permits are added.
    pub(crate) fn new(connects: usize) -> Self {
        let count = Arc::<AtomicUsize>::default;
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self { asked: count(), open: count(), most: count(), connects: semaphore(connects), answers: semaphore(0) }
    }

    pub(crate) fn client(&self) -> ClientBuilder {
        let this = self.clone();
        Client::builder("http://backend.example").connector(service_fn(move |uri: Uri| {
            assert_eq!(uri, "http://backend.example/");
            let this = this.clone();
            async move { this.connect().await }
        }))
    }

    async fn connect(self) -> io::Result<Pipe> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        // A closed semaphore refuses connects.
        self.connects.acquire().await.map_err(io::Error::other)?.forget();
        let (ours, theirs) = duplex(64 * 1024);
        tokio::spawn(self.talk(Wire::new(theirs)));
        Ok(Pipe::new(ours))
    }

    /// Responds with the number of the connection.
    async fn talk(self, mut wire: Wire<DuplexStream>) {
        let connection = self.asked.load(Ordering::SeqCst);
        self.most.fetch_max(self.open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        while let Some(request) = wire.message().await {
            if request.start_line().starts_with("GET /upgrade") {
                wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
                    .await;
                let _ = wire.closed().await;
                break;
            }
            if request.start_line().starts_with("GET /held") {
                self.answers.acquire().await.unwrap().forget();
            }
            let text = connection.to_string();
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes()).await;
            if request.start_line().starts_with("GET /last") {
                break;
            }
            if request.start_line().starts_with("GET /later") {
                self.answers.acquire().await.unwrap().forget();
                break;
            }
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}
