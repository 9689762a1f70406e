//! Some thousands of tunnels and streams, ended in every way from either side at random: afterwards nothing is left of them.
//!
//! A binary of its own: it counts what the whole process has open.
#![allow(clippy::unwrap_used)] // what isn't there fails the test

use std::{
    collections::hash_map::RandomState,
    fs,
    hash::BuildHasher,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::Router;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    task::{JoinSet, yield_now},
    time::timeout,
};
use tower_reverse_proxy::{ReverseProxyLayer, Tunnels};

const EXCHANGES: usize = 3_000;
const AT_ONCE: usize = 50;
const PATIENCE: Duration = Duration::from_secs(60);

/// A number below `bound`, another one each time.
fn random(bound: u64) -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    RandomState::new().hash_one(CALLS.fetch_add(1, Ordering::Relaxed)) % bound
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_what_has_ended() {
    let tunnels = Tunnels::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream));
        }
    });
    let layer = ReverseProxyLayer::new(origin).tunnels(tunnels.clone()).pool_max_idle(0);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().layer(layer)).await });

    // Whatever is made once has been made.
    exchange(front).await;
    settle(&tunnels, None).await;
    let base = (tasks(), descriptors());

    let mut resident = Vec::new();
    for _ in 0..3 {
        let mut running = JoinSet::new();
        for _ in 0..EXCHANGES / 3 {
            if running.len() == AT_ONCE {
                running.join_next().await.unwrap().unwrap();
            }
            running.spawn(exchange(front));
        }
        while running.join_next().await.is_some() {}
        settle(&tunnels, Some(base)).await;
        resident.push(memory());
    }
    // The first thousand brings the allocator to its size. What leaks goes on growing: a buffer per tunnel would be 16 MiB.
    let growth = resident[2].saturating_sub(resident[0]);
    assert!(growth < 8 << 20, "resident after each thousand: {resident:?}");
}

/// Resident memory of the process, in bytes; 0 where there's no such file.
fn memory() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse().ok());
    pages.unwrap_or(0) * 4096
}

/// Waits until there are no more tasks and descriptors than before.
async fn settle(tunnels: &Tunnels, base: Option<(usize, usize)>) {
    timeout(PATIENCE, tunnels.wait()).await.expect("tunnels end");
    let settled = async {
        let mut quiet = 0;
        while quiet < 20 {
            let now = (tasks(), descriptors());
            let calm = base.is_none_or(|base| now.0 <= base.0 && now.1 <= base.1);
            quiet = if calm { quiet + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(PATIENCE, settled).await.is_err() {
        panic!("before: {base:?}, left: {:?}", (tasks(), descriptors()));
    }
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// A client that opens a tunnel or a stream, says something, and goes in one of many ways.
async fn exchange(front: SocketAddr) {
    let mut stream = TcpStream::connect(front).await.unwrap();
    let upgrade = random(2) == 0;
    let fields = match upgrade {
        true => "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        false => "Transfer-Encoding: chunked\r\n",
    };
    let head = format!("{} /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n", if upgrade { "GET" } else { "POST" });
    let _ = stream.write_all(head.as_bytes()).await;
    for _ in 0..random(4) {
        let _ = stream.write_all(if upgrade { b"some octets" } else { b"5\r\nhello\r\n" }).await;
        yield_now().await;
    }
    end(stream).await;
}

/// A backend that accepts what it's asked for, says something, and goes in one of many ways.
async fn converse(mut stream: TcpStream) {
    let mut head = vec![0; 4096];
    let Ok(count) = stream.read(&mut head).await else { return };
    let upgrade = head[..count].windows(8).any(|window| window.eq_ignore_ascii_case(b"upgrade:"));
    let answer: &[u8] = match upgrade {
        true => b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        false => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    };
    // One in eight never answers.
    if random(8) > 0 {
        let _ = stream.write_all(answer).await;
    }
    end(stream).await;
}

async fn end(mut stream: TcpStream) {
    let mut sink = vec![0; 1024];
    match random(4) {
        // A reset.
        0 => stream.set_zero_linger().unwrap(),
        // An end.
        1 => {}
        // Half an end, and then whatever the other side does, for a while.
        2 => {
            let _ = stream.shutdown().await;
            let _ = timeout(Duration::from_millis(random(20)), stream.read(&mut sink)).await;
        }
        // Something is read, nothing is said.
        _ => {
            let _ = timeout(Duration::from_millis(random(20)), stream.read(&mut sink)).await;
        }
    }
}
