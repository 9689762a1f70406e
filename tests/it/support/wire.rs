//! Raw HTTP/1 on a connection.

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{PATIENCE, watch};

/// One HTTP/1 message, as it came over the wire.
#[derive(Debug)]
pub(crate) struct Message {
    /// Start line and fields, up to and with the empty line.
    pub(crate) head: String,
    /// The body, without its chunking.
    pub(crate) body: Vec<u8>,
    /// The trailers, field lines that end with `\r\n`.
    pub(crate) trailers: String,
    /// Whether the body ended properly.
    pub(crate) complete: bool,
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{self:?}"))
    }

    pub(crate) fn start_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// All values of a field, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        values(&self.head, name)
    }

    /// The only value of a field, if the field is there.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} twice in {}", self.head);
        all.first().copied()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The request that a [`mirror`] received, as its head and body.
    pub(crate) fn mirrored(&self) -> Self {
        assert_eq!(self.status(), 200, "{self:?}");
        let text = self.text();
        let end = text.find("\r\n\r\n").unwrap_or_else(|| panic!("no mirror: {self:?}")) + 4;
        Self { head: text[..end].into(), body: self.body[end..].into(), trailers: String::new(), complete: true }
    }
}

fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

/// One end of a connection, on which tests write and read raw bytes.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    pub(crate) stream: S,
    read: Vec<u8>,
    /// Whether the last request was HEAD, whose response has no body.
    head_only: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        watch();
        Self { stream, read: Vec::new(), head_only: false }
    }

    /// Writes bytes. Errors are ignored, because the peer may have closed.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.head_only = bytes.starts_with(b"HEAD ");
        let _ = timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("the peer reads");
    }

    /// Reads the next message, a request or a final response; `None` if the peer closes before one.
    ///
    /// Bytes are decoded as Latin-1, so that every octet has a character.
    pub(crate) async fn message(&mut self) -> Option<Message> {
        let head = self.head().await?;
        if head.starts_with("HTTP/1.1 1") && !head.starts_with("HTTP/1.1 101") {
            return Box::pin(self.message()).await;
        }
        let mut message = Message { head, body: Vec::new(), trailers: String::new(), complete: true };
        let status: u16 = match message.head.strip_prefix("HTTP/") {
            Some(_) => message.status(),
            None => 0,
        };
        let is_response = status != 0;
        if (is_response && self.head_only) || [101, 204, 304].contains(&status) {
            return Some(message);
        }
        if values(&message.head, "transfer-encoding").iter().any(|value| value.ends_with("chunked")) {
            message.complete = self.chunks(&mut message).await.is_some();
        } else if let Some(length) = values(&message.head, "content-length").first() {
            let length: usize = length.parse().unwrap();
            while self.read.len() < length && self.fill().await {}
            message.complete = self.read.len() >= length;
            let length = length.min(self.read.len());
            message.body = self.read.drain(..length).collect();
        } else if is_response {
            while self.fill().await {}
            message.body = std::mem::take(&mut self.read);
        }
        Some(message)
    }

    /// Reads a head, up to and with its empty line.
    pub(crate) async fn head(&mut self) -> Option<String> {
        let end = loop {
            if let Some(end) = find(&self.read, b"\r\n\r\n") {
                break end + 4;
            }
            if !self.fill().await {
                return None;
            }
        };
        Some(self.read.drain(..end).map(char::from).collect())
    }

    async fn chunks(&mut self, message: &mut Message) -> Option<()> {
        loop {
            let size = self.line().await?;
            let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
            if size == 0 {
                break;
            }
            while self.read.len() < size + 2 {
                if !self.fill().await {
                    message.body.append(&mut self.read);
                    return None;
                }
            }
            message.body.extend(self.read.drain(..size));
            self.read.drain(..2);
        }
        loop {
            match self.line().await? {
                line if line.is_empty() => return Some(()),
                line => message.trailers.push_str(&(line + "\r\n")),
            }
        }
    }

    /// Reads the next chunk of a body; the last one is empty. `None` if the peer ends the connection.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line().await?, 16).ok()?;
        let mut chunk = self.bytes(size + 2).await;
        chunk.ends_with(b"\r\n").then(|| chunk.truncate(size))?;
        Some(chunk)
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.read, b"\r\n") {
                let line = self.read.drain(..end + 2).map(char::from).collect::<String>();
                return Some(line.trim_end().to_owned());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Reads `count` bytes, or fewer at the end of the connection.
    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count && self.fill().await {}
        let count = count.min(self.read.len());
        self.read.drain(..count).collect()
    }

    /// Whether the peer closes, or resets, without a further byte.
    pub(crate) async fn closed(&mut self) -> bool {
        self.read.is_empty() && !self.fill().await
    }

    /// Reads some bytes; `false` at the end.
    async fn fill(&mut self) -> bool {
        self.read.reserve(64 * 1024);
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await.expect("the peer sends something");
        read.is_ok_and(|count| count > 0)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
