//! A backend that speaks HTTP/2, in frames, so that each run has the same reads and writes.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use super::SMALL;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
// Kinds of frames (RFC 9113, section 6), and flags.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Answers each request in a single write. A `POST` is one with a body, which is the response's.
pub(super) fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.read_exact(&mut [0; PREFACE.len()])?;
    // The connection's window never fills: it is the largest possible one.
    let window = (i32::MAX as u32 - 65_535).to_be_bytes();
    stream.write_all(&[frame(SETTINGS, 0, 0, &[]), frame(WINDOW_UPDATE, 0, 0, &window)].concat())?;
    let (mut body, mut is_first) = (Vec::new(), true);
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload)?;
        match kind {
            SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
            PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &payload))?,
            DATA => body.extend_from_slice(&payload),
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            let (id, body) = (u32::from_be_bytes(id), std::mem::take(&mut body));
            let body = if body.is_empty() { &SMALL[..] } else { &body };
            let head = frame(HEADERS, END_HEADERS, id, &fields(body.len(), is_first));
            stream.write_all(&[head, frame(DATA, END_STREAM, id, body)].concat())?;
            is_first = false;
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The fields of a response (RFC 7541): the first adds them to the table, and the others refer to it, as those of most
/// servers. All responses on a connection are of the same length.
fn fields(length: usize, is_first: bool) -> Vec<u8> {
    let length = length.to_string();
    let fields = [
        ("server", "bench"),
        ("date", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("content-type", "text/plain; charset=utf-8"),
        ("cache-control", "no-store"),
        ("content-length", &*length),
    ];
    // `:status: 200`.
    let mut block = vec![0x88];
    for (number, (name, value)) in (0..).zip(fields) {
        if is_first {
            block.push(0x40);
            for text in [name, value] {
                // Shorter than 127, so its length is one octet.
                block.push(text.len() as u8);
                block.extend_from_slice(text.as_bytes());
            }
        } else {
            // The last one that was added is number 62.
            block.push(0x80 | (62 + fields.len() as u8 - 1 - number));
        }
    }
    block
}
