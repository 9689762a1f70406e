//! What an idle connection of the pool holds in memory.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    pin::Pin,
    sync::{Arc, Barrier},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use allocation_counter::measure;
use axum::body::{Body, Bytes};
use http::Request;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::{
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};
use tower::ServiceExt;
use tower_reverse_proxy::Client;

const PATIENCE: Duration = Duration::from_secs(60);
/// The memory that a connection may hold: its sockets' and its tasks' state, and no buffer.
const BOUND: i64 = 2 * 1024;
/// Less than the second after which the pool closes connections that it has too many of.
const SETTLED: Duration = Duration::from_millis(100);

const LARGE: usize = 64 << 20;
static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];

/// Answers the requests of a connection. An answer waits until every connection has a request, so that each request needs a
/// connection of its own.
fn converse(mut stream: TcpStream, together: &Barrier) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut octet = [0];
            if stream.read(&mut octet).unwrap_or(0) == 0 {
                return;
            }
            head.push(octet[0]);
        }
        together.wait();
        let (mut upload, download) = match &head[..5] {
            b"POST " => (LARGE, 0),
            b"GET /" if head.starts_with(b"GET /large") => (0, LARGE),
            _ => (0, 128),
        };
        let mut buffer = vec![0; PIECE.len()];
        while upload > 0 {
            upload -= stream.read(&mut buffer).unwrap();
        }
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {download}\r\n\r\n").unwrap();
        let mut left = download;
        while left > 0 {
            let piece = left.min(PIECE.len());
            stream.write_all(&PIECE[..piece]).unwrap();
            left -= piece;
        }
    }
}

/// Starts a backend, whose threads aren't counted, for so many connections.
fn backend(connections: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let together = Arc::new(Barrier::new(connections));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let together = together.clone();
            thread::spawn(move || converse(stream.unwrap(), &together));
        }
    });
    origin
}

/// A body of `LARGE` bytes, which allocates nothing.
struct Upload(usize);

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = self.0.min(PIECE.len());
        self.0 -= piece;
        Poll::Ready((piece > 0).then(|| Ok(Frame::data(Bytes::from_static(&PIECE[..piece])))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0 as u64)
    }
}

/// Makes so many exchanges at once, which leave as many connections in the pool. Returns the bytes that are still allocated.
fn held(connections: usize, request: fn() -> Request<Body>) -> i64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = Client::builder(backend(connections)).build().unwrap();
    let exchanges = async || {
        let mut exchanges = JoinSet::new();
        for _ in 0..connections {
            let client = client.clone();
            exchanges.spawn(async move {
                let response = client.oneshot(request()).await.unwrap();
                assert_eq!(response.status(), 200);
                let mut body = response.into_body();
                while let Some(frame) = body.frame().await {
                    frame.unwrap();
                }
            });
        }
        timeout(PATIENCE, exchanges.join_all()).await.expect("all connections have a request");
        // The tasks that return the connections have run.
        for _ in 0..100 {
            yield_now().await;
        }
        sleep(SETTLED).await;
    };
    measure(|| runtime.block_on(exchanges())).bytes_current
}

/// Asserts the bound of an idle connection. What the client and the runtime allocate once isn't counted.
fn assert_holds_no_buffer(request: fn() -> Request<Body>) {
    const FEW: usize = 1;
    const MANY: usize = 5;
    let each = (held(MANY, request) - held(FEW, request)) / (MANY - FEW) as i64;
    // Nothing at all would mean that the connections aren't there.
    assert!((1..=BOUND).contains(&each), "{each} bytes for each idle connection");
}

#[test]
fn an_idle_connection_holds_no_buffer_after_a_small_response() {
    assert_holds_no_buffer(|| Request::get("/small").header("host", "front.example").body(Body::empty()).unwrap());
}

#[test]
fn an_idle_connection_holds_no_buffer_after_a_large_download() {
    assert_holds_no_buffer(|| Request::get("/large").header("host", "front.example").body(Body::empty()).unwrap());
}

#[test]
fn an_idle_connection_holds_no_buffer_after_a_large_upload() {
    assert_holds_no_buffer(|| {
        Request::post("/x").header("host", "front.example").body(Body::new(Upload(LARGE))).unwrap()
    });
}
