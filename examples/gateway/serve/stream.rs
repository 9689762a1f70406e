//! A client's TCP stream, which detects the version of HTTP and records the progress of responses.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::Life;

/// The preface of an HTTP/2 client with prior knowledge (RFC 9113, section 3.4). No HTTP/1.1 request begins with it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) struct ClientStream {
    stream: TcpStream,
    /// The bytes that were read to detect the version, and that hyper hasn't read yet.
    begun: Vec<u8>,
    /// The parser of the written frames, for HTTP/2.
    frames: Option<Frames>,
    life: Arc<Life>,
}

impl ClientStream {
    pub(crate) fn new(stream: TcpStream, life: Arc<Life>) -> Self {
        Self { stream, begun: Vec::new(), frames: None, life }
    }

    /// Reads until the version is known.
    pub(crate) async fn is_http2(&mut self) -> io::Result<bool> {
        let mut octets = [0; PREFACE.len()];
        while self.begun.len() < PREFACE.len() && PREFACE.starts_with(&self.begun) {
            let read = self.stream.read(&mut octets[self.begun.len()..]).await?;
            if read == 0 {
                break;
            }
            let end = self.begun.len() + read;
            self.begun.extend_from_slice(&octets[end - read..end]);
        }
        let is_http2 = self.begun == PREFACE;
        self.frames = is_http2.then(Frames::default);
        Ok(is_http2)
    }

    /// Records the result of a write of these bytes.
    fn note<'a>(&mut self, polled: &Poll<io::Result<usize>>, slices: impl Iterator<Item = &'a [u8]>) {
        self.life.written(polled.is_pending());
        if let (Some(frames), Poll::Ready(Ok(count))) = (&mut self.frames, polled) {
            let (mut left, mut is_answer) = (*count, false);
            for octets in slices {
                let octets = &octets[..left.min(octets.len())];
                left -= octets.len();
                is_answer |= frames.written(octets);
            }
            if is_answer {
                self.life.answered(!frames.answers.is_empty());
            }
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.begun.is_empty() {
            let before = buf.filled().len();
            let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
            if self.frames.is_none() && buf.filled().len() > before {
                self.life.read();
            }
            return polled;
        }
        let count = self.begun.len().min(buf.remaining());
        buf.put_slice(&self.begun[..count]);
        self.begun.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, octets);
        self.note(&polled, [octets].into_iter());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note(&polled, slices.iter().map(|slice| &**slice));
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The maximum number of responses that are followed, above hyper's limit of concurrent streams.
const MAX_ANSWERS: usize = 256;
const FRAME_HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// Parses the written frames (RFC 9113, section 4.1). hyper passes the end of a body to h2 even if it exceeds the
/// client's window, and doesn't expose how much h2 has still to write.
#[derive(Default)]
struct Frames {
    head: [u8; FRAME_HEAD],
    /// The number of bytes of the frame header that have been written.
    in_head: usize,
    /// The number of bytes of the payload that haven't been written.
    in_payload: usize,
    /// The streams of the responses that have begun and not ended. Those that the client has reset may be included.
    answers: Vec<u32>,
}

impl Frames {
    /// Parses written bytes. Returns whether any of them belongs to a response.
    fn written(&mut self, mut octets: &[u8]) -> bool {
        let mut is_answer = false;
        while !octets.is_empty() {
            if self.in_head == FRAME_HEAD {
                let count = self.in_payload.min(octets.len());
                is_answer |= matches!(self.head[3], DATA | HEADERS);
                octets = &octets[count..];
                self.in_payload -= count;
            } else {
                let count = (FRAME_HEAD - self.in_head).min(octets.len());
                self.head[self.in_head..][..count].copy_from_slice(&octets[..count]);
                octets = &octets[count..];
                self.in_head += count;
                if self.in_head == FRAME_HEAD {
                    is_answer |= self.begin();
                }
            }
            if self.in_head == FRAME_HEAD && self.in_payload == 0 {
                self.in_head = 0;
            }
        }
        is_answer
    }

    /// Parses a frame header. Returns whether the frame belongs to a response.
    fn begin(&mut self) -> bool {
        let [a, b, c, kind, flags, stream @ ..] = self.head;
        self.in_payload = u32::from_be_bytes([0, a, b, c]) as usize;
        let stream = u32::from_be_bytes(stream);
        match kind {
            DATA | HEADERS if flags & END_STREAM != 0 => self.answers.retain(|&answer| answer != stream),
            RST_STREAM => self.answers.retain(|&answer| answer != stream),
            HEADERS if !self.answers.contains(&stream) => {
                if self.answers.len() == MAX_ANSWERS {
                    self.answers.remove(0);
                }
                self.answers.push(stream);
            }
            DATA | HEADERS => {}
            _ => return false,
        }
        true
    }
}
