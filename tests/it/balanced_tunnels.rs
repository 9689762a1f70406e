//! Many WebSockets over several backends in memory, because each one would take four descriptors.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::Uri;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tower::service_fn;
use tower_reverse_proxy::{Backends, BoxUpstream, ReverseProxy, ReverseProxyLayer};

use crate::support::{Pipe, Wire, within};

const OFFER: &[u8] = b"GET /chat HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ACCEPT: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Backends with names of one letter, whose connections end when they are gone.
#[derive(Clone, Default)]
struct Chat(Arc<Mutex<BTreeMap<String, Backend>>>);

#[derive(Default)]
struct Backend {
    connections: Vec<AbortHandle>,
    is_gone: bool,
}

impl Chat {
    fn start(&self, names: &[&str]) -> Backends {
        *self.0.lock().unwrap() = names.iter().map(|&name| (name.to_owned(), Backend::default())).collect();
        let this = self.clone();
        let connector = service_fn(move |uri: Uri| {
            let connection = this.connect(uri.host().unwrap());
            async { connection }
        });
        let origins = names.iter().map(|name| format!("http://{name}"));
        Backends::builder(origins).client(move |client| client.connector(connector.clone())).build().unwrap()
    }

    fn connect(&self, name: &str) -> io::Result<Pipe> {
        let mut backends = self.0.lock().unwrap();
        let backend = backends.get_mut(name).unwrap();
        if backend.is_gone {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, mut theirs) = Pipe::pair();
        let name = name.to_owned();
        let talk = tokio::spawn(async move {
            let mut wire = Wire::new(&mut theirs);
            wire.message().await.unwrap();
            wire.send(ACCEPT).await;
            wire.send(name.as_bytes()).await;
            // It echoes what it gets.
            let mut octet = [0];
            while theirs.read_exact(&mut octet).await.is_ok() && theirs.write_all(&octet).await.is_ok() {}
        });
        backend.connections.push(talk.abort_handle());
        Ok(ours)
    }

    fn end(&self, name: &str) {
        let mut backends = self.0.lock().unwrap();
        let backend = backends.get_mut(name).unwrap();
        backend.is_gone = true;
        backend.connections.iter().for_each(AbortHandle::abort);
    }
}

/// A WebSocket, and the name of its backend.
type Tunnel = (String, Wire<DuplexStream>);

async fn open(proxy: ReverseProxy<BoxUpstream>) -> Tunnel {
    let (ours, theirs) = duplex(4096);
    let service = TowerToHyperService::new(proxy);
    tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(theirs), service).with_upgrades());
    let mut wire = Wire::new(ours);
    wire.send(OFFER).await;
    assert_eq!(wire.message().await.expect("a response").status(), 101);
    let name = String::from_utf8(wire.bytes(1).await).unwrap();
    (name, wire)
}

async fn open_many(proxy: &ReverseProxy<BoxUpstream>, count: usize) -> Vec<Tunnel> {
    let mut tunnels = JoinSet::new();
    for _ in 0..count {
        tunnels.spawn(open(proxy.clone()));
    }
    within(tunnels.join_all()).await
}

fn count_of(tunnels: &[Tunnel], name: &str) -> usize {
    tunnels.iter().filter(|tunnel| tunnel.0 == name).count()
}

async fn all_echo(tunnels: &mut [Tunnel]) {
    for (name, wire) in tunnels {
        wire.send(b"x").await;
        assert_eq!(wire.bytes(1).await, b"x", "a tunnel to {name}");
    }
}

async fn in_flight_becomes(backends: &Backends, expected: &[usize]) {
    let becomes = async {
        while backends.status().iter().map(|member| member.in_flight() as usize).ne(expected.iter().copied()) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    within(becomes).await;
}

#[tokio::test]
async fn a_thousand_websockets_are_spread_evenly_and_avoid_a_backend_that_is_gone() {
    let chat = Chat::default();
    let backends = chat.start(&["a", "b", "c"]);
    let proxy = ReverseProxyLayer::balanced(&backends).into_service().boxed();
    let mut tunnels = open_many(&proxy, 1000).await;
    let counts = ["a", "b", "c"].map(|name| count_of(&tunnels, name));
    assert!(counts.iter().all(|count| (300..=366).contains(count)), "{counts:?}");
    in_flight_becomes(&backends, &counts).await;
    all_echo(&mut tunnels).await;

    chat.end("b");
    let (gone, mut tunnels): (Vec<_>, Vec<_>) = tunnels.into_iter().partition(|tunnel| tunnel.0 == "b");
    for (_, mut wire) in gone {
        assert!(wire.closed().await);
    }
    in_flight_becomes(&backends, &[counts[0], 0, counts[2]]).await;
    let more = open_many(&proxy, 300).await;
    assert_eq!(count_of(&more, "b"), 0);
    tunnels.extend(more);
    let counts = ["a", "c"].map(|name| count_of(&tunnels, name));
    assert!(counts.iter().all(|count| count.abs_diff(tunnels.len() / 2) * 10 <= tunnels.len() / 2), "{counts:?}");
    all_echo(&mut tunnels).await;
    in_flight_becomes(&backends, &[counts[0], 0, counts[1]]).await;
    drop(tunnels);
    in_flight_becomes(&backends, &[0, 0, 0]).await;
}
