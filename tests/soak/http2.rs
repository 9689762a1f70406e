//! A backend that speaks HTTP/2, and ends streams and connections in every way.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::sleep,
};

use crate::{
    Peer, end,
    frames::{
        DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, STATUS_200, WINDOW_UPDATE,
        frame,
    },
    http1, is_calm, random,
};

const ACK: u8 = 1;
// Parameters of SETTINGS (RFC 9113, section 6.5.2; RFC 8441, section 3).
const MAX_CONCURRENT_STREAMS: u8 = 3;
const INITIAL_WINDOW_SIZE: u8 = 4;
const ENABLE_CONNECT_PROTOCOL: u8 = 8;

/// Serves a connection in the protocol in which it begins.
pub(crate) async fn converse(mut stream: impl Peer) {
    let mut first = [0; 4];
    if stream.read_exact(&mut first).await.is_err() {
        return;
    }
    if !PREFACE.starts_with(&first) {
        return http1::converse(stream, first.to_vec()).await;
    }
    let _ = stream.read_exact(&mut [0; PREFACE.len() - 4]).await;
    let _ = stream.write_all(&frame(SETTINGS, 0, 0, &settings())).await;
    while let Some((kind, flags, id, payload)) = read_frame(&mut stream).await {
        let reaction = match kind {
            SETTINGS | PING if flags & ACK == 0 => Reaction::Frames(frame(kind, ACK, 0, &payload_of(kind, payload))),
            HEADERS if is_calm() => Reaction::Frames(frame(HEADERS, END_HEADERS, id, STATUS_200)),
            HEADERS => on_request(id),
            DATA if !is_calm() => on_data(id, &payload),
            _ => Reaction::Frames(Vec::new()),
        };
        match reaction {
            Reaction::Frames(frames) => {
                if stream.write_all(&frames).await.is_err() {
                    return;
                }
            }
            Reaction::End(frames) => {
                let _ = stream.write_all(&frames).await;
                return end(stream).await;
            }
            Reaction::Pause => sleep(Duration::from_millis(random(20))).await,
        }
    }
}

/// What the backend does upon a frame.
enum Reaction {
    /// Writes these frames.
    Frames(Vec<u8>),
    /// Writes these octets, and ends the connection.
    End(Vec<u8>),
    /// Reads nothing for a while.
    Pause,
}

/// Settings under which some requests find no stream, some uploads no window, and some WebSockets no extended CONNECT.
fn settings() -> Vec<u8> {
    let parameter = |name: u8, value: u64| [&[0, name][..], &u32::try_from(value).unwrap().to_be_bytes()].concat();
    let mut settings = Vec::new();
    if !is_calm() && random(2) == 0 {
        settings.extend(parameter(MAX_CONCURRENT_STREAMS, 1 + random(8)));
    }
    if !is_calm() && random(4) == 0 {
        settings.extend(parameter(INITIAL_WINDOW_SIZE, random(16)));
    }
    if is_calm() || random(4) > 0 {
        settings.extend(parameter(ENABLE_CONNECT_PROTOCOL, 1));
    }
    settings
}

/// The payload of an acknowledgement.
fn payload_of(kind: u8, payload: Vec<u8>) -> Vec<u8> {
    if kind == PING { payload } else { Vec::new() }
}

/// An answer, whole or in part, before the end of the upload or instead of it; a reset; a `GOAWAY`; the end of the
/// connection; or nothing.
fn on_request(id: u32) -> Reaction {
    let head = frame(HEADERS, END_HEADERS, id, STATUS_200);
    let piece = vec![b'x'; usize::try_from(random(16 * 1024)).unwrap()];
    let body = frame(DATA, 0, id, &piece).repeat(usize::try_from(random(4)).unwrap());
    match random(12) {
        0 => Reaction::Pause,
        1 => Reaction::Frames(Vec::new()),
        2 => Reaction::Frames(reset(id)),
        3 => Reaction::Frames([head, body, reset(id)].concat()),
        // Of this stream, of all before it, or of none.
        4 => Reaction::Frames([head, go_away(id)].concat()),
        5 => Reaction::Frames(go_away(id.saturating_sub(2))),
        6 => Reaction::End(go_away(0)),
        // Within a frame.
        7 => Reaction::End([head, body, frame(DATA, 0, id, b"hello")[..11].to_vec()].concat()),
        8 => Reaction::Frames([head, body].concat()),
        9 => Reaction::Frames([head, body, frame(HEADERS, END_HEADERS | END_STREAM, id, TRAILER)].concat()),
        10 => Reaction::Frames(frame(HEADERS, END_HEADERS | END_STREAM, id, STATUS_200)),
        _ => Reaction::Frames([head, body, frame(DATA, END_STREAM, id, b"hello")].concat()),
    }
}

/// `a: b`, without indexing (RFC 7541, section 6.2.2).
const TRAILER: &[u8] = b"\x00\x01a\x01b";

/// The window that the data took, and for some an echo, as of a WebSocket, or a reset; or nothing, even if no window is left.
fn on_data(id: u32, payload: &[u8]) -> Reaction {
    let size = u32::try_from(payload.len().max(1)).unwrap().to_be_bytes();
    let window = [frame(WINDOW_UPDATE, 0, 0, &size), frame(WINDOW_UPDATE, 0, id, &size)].concat();
    Reaction::Frames(match random(5) {
        0 => [window, frame(DATA, 0, id, payload)].concat(),
        1 => [window, reset(id)].concat(),
        2 => Vec::new(),
        _ => window,
    })
}

/// `NO_ERROR` to `HTTP_1_1_REQUIRED` (RFC 9113, section 7).
fn reset(id: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, id, &u32::try_from(random(14)).unwrap().to_be_bytes())
}

fn go_away(last: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

/// Reads the kind, the flags, the stream and the payload of a frame; `None` at the end of the connection.
async fn read_frame(stream: &mut impl Peer) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((kind, flags, u32::from_be_bytes(id), payload))
}
