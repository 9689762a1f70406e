//! A backend that speaks HTTP/1.1, and ends connections in every way.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::yield_now,
};

use crate::{Peer, end, is_calm, random, websocket::accept_of};

/// Accepts every request, sends something, and ends in one of many ways. `head` is what has been read already.
pub(crate) async fn converse(mut stream: impl Peer, mut head: Vec<u8>) {
    loop {
        let mut more = [0; 4096];
        let Ok(count @ 1..) = stream.read(&mut more).await else { return };
        head.extend_from_slice(&more[..count]);
        let _ = stream.write_all(answer(&head).as_bytes()).await;
        if is_calm() {
            // Until the client ends it.
            while let Ok(1..) = stream.read(&mut more).await {}
            return;
        }
        head.clear();
        // Some continue with a part of the body or octets of the tunnel, or with the proper end.
        for _ in 0..random(4) {
            let _ = stream.write_all(b"5\r\nhello\r\n").await;
            yield_now().await;
        }
        if random(2) == 0 {
            let _ = stream.write_all(b"0\r\n\r\n").await;
        }
        // Some take another request.
        if random(2) == 0 {
            return end(stream).await;
        }
    }
}

fn answer(head: &[u8]) -> String {
    // The proxy sends field names in lower case.
    let head = String::from_utf8_lossy(head);
    match () {
        // One backend in eight never responds.
        () if !is_calm() && random(8) == 0 => String::new(),
        () if head.contains("upgrade:") => {
            let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: "));
            let accept = accept_of(key.unwrap_or_default());
            let fields = format!("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}");
            format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n\r\n")
        }
        () if head.contains("text/event-stream") => {
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: hello\n\n".to_owned()
        }
        () => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".to_owned(),
    }
}
