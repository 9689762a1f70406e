//! The example `gateway` as a process, over raw bytes: its limits, its shutdown and its configuration.
//!
//! Sleeps are in real time, because the gateway is another process.
#![cfg(unix)]
#![allow(clippy::expect_used, clippy::unwrap_used)] // a missing value fails the test

use std::{
    env,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Output, Stdio, exit},
    thread,
    time::{Duration, Instant},
};

#[path = "../examples/gateway/main.rs"]
#[allow(dead_code, unreachable_pub)]
mod gateway;

#[path = "gateway/descriptors.rs"]
mod descriptors;
#[allow(dead_code)] // the other binary uses all of it
#[path = "it/support/frames.rs"]
mod frames;
#[path = "gateway/several.rs"]
mod several;
#[path = "it/support/websocket.rs"]
mod websocket;

use self::{
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, SETTINGS, WINDOW_UPDATE, frame,
    },
    websocket::accept_of,
};

/// How long a test waits for one thing before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Not a test: the gateway itself, when a test starts this binary again. So it's always built from the same sources.
#[test]
#[allow(clippy::exit)] // as the example's `main` ends
fn process() {
    if let Ok(path) = env::var("GATEWAY_CONFIG") {
        exit(gateway::start(&[path]).into());
    }
}

/// Makes a command that runs this binary as the gateway with this configuration, after the `ulimit` commands.
fn command(config: &str, ulimit: &str) -> (Command, tempfile::NamedTempFile) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(config.as_bytes()).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{ulimit} exec \"$0\" process --exact --nocapture")]).arg(env::current_exe().unwrap());
    command.env("GATEWAY_CONFIG", file.path()).stdin(Stdio::null());
    (command, file)
}

struct Gateway {
    child: Child,
    addr: SocketAddr,
    _config: tempfile::NamedTempFile,
}

impl Gateway {
    fn start(config: &str) -> Self {
        Self::start_with(config, "")
    }

    fn start_with(config: &str, ulimit: &str) -> Self {
        let (mut command, file) = command(&format!("listen = \"127.0.0.1:0\"\n{config}"), ulimit);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines.find_map(|line| Some(line.unwrap().split_once("listening on http://")?.1.to_owned())).unwrap();
        thread::spawn(move || lines.for_each(drop));
        Self { child, addr: url.trim().parse().unwrap(), _config: file }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn send(&self, bytes: impl AsRef<[u8]>) -> TcpStream {
        let mut stream = self.connect();
        // The gateway may respond and close before all bytes are written.
        let _ = stream.write_all(bytes.as_ref());
        stream
    }

    /// Sends a request with `Connection: close`, and returns the response.
    fn get(&self, target: &str, fields: &str) -> String {
        let request = format!("GET {target} HTTP/1.1\r\nHost: front.example\r\nConnection: close\r\n{fields}\r\n");
        rest(&mut self.send(request))
    }

    fn terminate(&self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
    }

    /// Waits for the end of the process, and returns its exit code.
    fn wait(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "the gateway ends");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads until the connection ends, properly or by a reset.
fn rest(stream: &mut TcpStream) -> String {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 64 * 1024]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => {
                panic!("the gateway ends the connection: {error}, after {:?}", String::from_utf8_lossy(&bytes))
            }
        }
    }
    bytes.into_iter().map(char::from).collect()
}

/// Reads the head of a message.
fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut octet) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut octet).unwrap() == 0 {
            break;
        }
        head.push(octet[0]);
    }
    head.into_iter().map(char::from).collect()
}

/// A backend that passes each connection to `talk`.
fn backend(talk: impl Fn(TcpStream) + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, talk) = (stream.unwrap(), talk.clone());
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            thread::spawn(move || talk(stream));
        }
    });
    origin
}

/// A backend that responds with the head of the request.
fn mirror() -> String {
    backend(|mut stream| {
        let request = head(&mut stream);
        let answer =
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{request}", request.len());
        let _ = stream.write_all(answer.as_bytes());
    })
}

fn mount(prefix: &str, backend: &str, keys: &str) -> String {
    format!("[[mount]]\nprefix = {prefix:?}\nbackend = {backend:?}\n{keys}\n")
}

/// `GET path` for `front.example` as a header block.
fn block(path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "front.example"), (":path", path)];
    literals(&[&pseudo, fields].concat())
}

/// A header block without compression.
fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // A string's length is an integer with a prefix of 7 bits (RFC 7541, section 5.1).
            let mut length = text.len();
            if length < 127 {
                block.push(length as u8);
            } else {
                block.push(127);
                length -= 127;
                while length >= 128 {
                    block.push((length % 128) as u8 | 128);
                    length /= 128;
                }
                block.push(length as u8);
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// Reads a frame, and returns its kind and payload. `None` at the end of the connection.
fn any_frame(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    match stream.read_exact(&mut head) {
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return None,
        read => read.unwrap(),
    }
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).unwrap();
    Some((head[3], payload))
}

/// Reads frames until one of this kind, and returns its payload.
fn read_frame(stream: &mut TcpStream, kind: u8) -> Vec<u8> {
    loop {
        let (is, payload) = any_frame(stream).unwrap();
        if is == kind {
            return payload;
        }
    }
}

/// An HTTP/2 connection on which one request has been served.
fn http2_used(gateway: &Gateway) -> TcpStream {
    let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block("/front/health", &[]));
    let mut stream = gateway.send([PREFACE, &frame(SETTINGS, 0, 0, b""), &request].concat());
    read_frame(&mut stream, HEADERS);
    stream
}

/// The status of a response over HTTP/2, which is an index of the static table or a literal.
fn http2_status(gateway: &Gateway, path: &str, fields: &[(&str, &str)]) -> u16 {
    let block = block(path, fields);
    let mut parts = block.chunks(16 * 1024).peekable();
    let mut request = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
    let mut kind = HEADERS;
    while let Some(part) = parts.next() {
        let end = if parts.peek().is_none() { END_HEADERS } else { 0 };
        let flags = if kind == HEADERS { end | END_STREAM } else { end };
        request.extend_from_slice(&frame(kind, flags, 1, part));
        kind = CONTINUATION;
    }
    let answer = read_frame(&mut gateway.send(request), HEADERS);
    match answer[0] {
        0x88 => 200,
        // A literal with the name of index 8, `:status`, and a value of three digits, with Huffman's code or without.
        0x48 if answer[1] == 3 => String::from_utf8_lossy(&answer[2..5]).parse().unwrap(),
        0x48 if answer[1..].starts_with(&[0x83, 0x69, 0x90, 0xff]) => 431,
        _ => panic!("unknown encoding of a status: {answer:x?}"),
    }
}

#[test]
fn a_thousand_mounts_fit_on_a_small_stack() {
    let origin = mirror();
    let mounts: String = (0..1000).map(|number| mount(&format!("/mydir{number}"), &origin, "")).collect();
    let gateway =
        Gateway::start(&format!("threads = 2\n{mounts}{}", mount("/mydir1/inner", &origin, "strip_prefix = true")));
    assert!(gateway.get("/front/health", "").ends_with("front ok"));
    assert!(gateway.get("/mydir999/x", "").contains("\r\n\r\nGET /mydir999/x HTTP/1.1"));
    assert!(gateway.get("/mydir1/inner/x", "").contains("\r\n\r\nGET /x HTTP/1.1"));
    assert!(gateway.get("/mydir1/innerx", "").contains("\r\n\r\nGET /mydir1/innerx HTTP/1.1"));
    assert!(gateway.get("/mydir9999", "").ends_with("front 404"));
}

#[test]
fn silent_clients_are_disconnected() {
    let gateway = Gateway::start("header_read_timeout_ms = 300");
    let settings = frame(SETTINGS, 0, 0, b"");
    let block = block("/front/health", &[]);
    let whole = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block);
    let mut clients = vec![
        ("no octet", gateway.connect()),
        ("one octet", gateway.send("P")),
        ("half a preface", gateway.send("PRI * HT")),
        ("a preface", gateway.send(PREFACE)),
        ("settings", gateway.send([PREFACE, &settings].concat())),
        ("half a frame", gateway.send([PREFACE, &settings, &whole[..20]].concat())),
        ("half a block", gateway.send([PREFACE, &settings, &frame(HEADERS, END_STREAM, 1, &block)].concat())),
        ("half a head", gateway.send("GET / HTTP/1.1\r\nHost: front.example\r\n")),
        ("an empty line", gateway.send("\r\n")),
        ("a second head", gateway.send("GET /front/health HTTP/1.1\r\nHost: front.example\r\n\r\nGET / HT")),
        ("idle", gateway.send("GET /front/health HTTP/1.1\r\nHost: front.example\r\n\r\n")),
        ("idle http2", http2_used(&gateway)),
    ];
    let mut half_a_second = http2_used(&gateway);
    half_a_second.write_all(&frame(HEADERS, END_STREAM, 3, &block)).unwrap();
    clients.push(("half a second block", half_a_second));
    for (what, mut client) in clients {
        println!("{what}");
        rest(&mut client);
    }
}

#[test]
fn a_slow_exchange_is_not_cut_as_a_silent_client() {
    let origin = backend(|mut stream| {
        head(&mut stream);
        thread::sleep(Duration::from_secs(1));
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\nfirst").unwrap();
        thread::sleep(Duration::from_secs(1));
        stream.write_all(b"later").unwrap();
    });
    let gateway = Gateway::start(&format!("header_read_timeout_ms = 200\n{}", mount("/mydir", &origin, "")));
    let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block("/mydir/x", &[]));
    let mut http2 = gateway.send([PREFACE, &frame(SETTINGS, 0, 0, b""), &request].concat());
    assert!(gateway.get("/mydir/x", "").ends_with("\r\n\r\nfirstlater"));
    assert_eq!([read_frame(&mut http2, DATA), read_frame(&mut http2, DATA)].concat(), b"firstlater");
}

/// The end of a response may wait in the server after the exchange's last frame. With one of these sizes it does.
#[test]
fn a_client_that_reads_late_gets_the_complete_response() {
    let gateway = Gateway::start(&format!("header_read_timeout_ms = 200\n{}", mount("/mydir", &sized(), "")));
    let sizes: Vec<usize> = (1..32).map(|number| number * 200_000).collect();
    let request = |size| format!("GET /mydir/{size} HTTP/1.1\r\nHost: front.example\r\nConnection: close\r\n\r\n");
    let clients: Vec<TcpStream> = sizes.iter().map(|size| gateway.send(request(size))).collect();
    thread::sleep(Duration::from_secs(1));
    // At the same time, because a client that reads nothing for the send timeout is closed.
    thread::scope(|scope| {
        for (mut client, size) in clients.into_iter().zip(sizes) {
            scope.spawn(move || {
                let answer = rest(&mut client);
                assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), size);
            });
        }
    });
}

/// A backend whose responses have as many octets as the number in the path.
fn sized() -> String {
    backend(|mut stream| {
        let request = head(&mut stream);
        let size: usize = request.split(['/', ' ']).find_map(|part| part.parse().ok()).unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n");
        let _ = stream.write_all(&[answer.as_bytes(), &vec![b'x'; size]].concat());
    })
}

/// An HTTP/2 connection with a request for `path`, and the initial window of 65,535 octets.
fn http2_get(gateway: &Gateway, path: &str) -> TcpStream {
    let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(path, &[]));
    gateway.send([PREFACE, &frame(SETTINGS, 0, 0, b""), &request].concat())
}

/// hyper passes the end of a response to h2 before the client's window has room for it.
#[test]
fn an_http2_client_that_reads_late_gets_the_complete_response() {
    let mut gateway = Gateway::start(&format!("header_read_timeout_ms = 200\n{}", mount("/mydir", &sized(), "")));
    for is_end_of_process in [false, true] {
        let mut clients: Vec<TcpStream> = (0..2).map(|_| http2_get(&gateway, "/mydir/100000")).collect();
        let mut taken = [0; 2];
        for (client, taken) in clients.iter_mut().zip(&mut taken) {
            while *taken < 65_535 {
                *taken += read_frame(client, DATA).len();
            }
        }
        if is_end_of_process {
            gateway.terminate();
        }
        thread::sleep(Duration::from_secs(1));
        for (mut client, mut taken) in clients.into_iter().zip(taken) {
            let more = 100_000_u32.to_be_bytes();
            client.write_all(&[frame(WINDOW_UPDATE, 0, 0, &more), frame(WINDOW_UPDATE, 0, 1, &more)].concat()).unwrap();
            while taken < 100_000 {
                taken += read_frame(&mut client, DATA).len();
            }
        }
    }
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn an_http2_client_that_reads_nothing_is_disconnected() {
    let gateway = Gateway::start(&format!("header_read_timeout_ms = 200\n{}", mount("/mydir", &sized(), "")));
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block("/mydir/10", &[]));
    let clients = [
        http2_get(&gateway, "/mydir/100000"),
        http2_get(&gateway, "/mydir/10000000"),
        gateway.send([PREFACE, &no_window, &request].concat()),
    ];
    for mut client in clients {
        while let Some((kind, _)) = any_frame(&mut client) {
            assert_ne!(kind, PING, "the connection ends before the first ping, whose timeout would end it, too");
        }
    }
}

/// Otherwise such clients would use up the descriptors.
#[test]
fn a_client_that_never_reads_is_disconnected() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let origin = backend(move |mut stream| {
        head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").unwrap();
        while stream.write_all(&[b'x'; 64 * 1024]).is_ok() {}
        sender.send(()).unwrap();
    });
    let gateway = Gateway::start(&format!("header_read_timeout_ms = 200\n{}", mount("/mydir", &origin, "")));
    let _large = gateway.send("GET /mydir/x HTTP/1.1\r\nHost: front.example\r\n\r\n");
    // The gateway stops reading requests when the client doesn't read responses.
    let mut pipelined = gateway.connect();
    pipelined.set_write_timeout(Some(PATIENCE)).unwrap();
    let requests = "GET /front/health HTTP/1.1\r\nHost: front.example\r\n\r\n".repeat(1000);
    let error = (0..1000).find_map(|_| pipelined.write_all(requests.as_bytes()).err()).unwrap();
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    receiver.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_refused_connect_over_http2_opens_no_tunnel() {
    let origin = backend(|mut stream| {
        head(&mut stream);
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        stream.write_all(switch.as_bytes()).unwrap();
        rest(&mut stream);
    });
    let gateway = Gateway::start(&format!("header_read_timeout_ms = 200\n{}", mount("/mydir", &origin, "")));
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut tunnel = gateway.send(format!("GET /mydir/ws HTTP/1.1\r\nHost: front.example\r\n{upgrade}\r\n"));
    assert!(head(&mut tunnel).starts_with("HTTP/1.1 101 "));
    let connect = literals(&[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", "front.example"),
        (":path", "/nowhere"),
        ("sec-websocket-version", "13"),
    ]);
    let connect = frame(HEADERS, END_HEADERS | END_STREAM, 1, &connect);
    let mut client = gateway.send([PREFACE, &frame(SETTINGS, 0, 0, b""), &connect].concat());
    read_frame(&mut client, HEADERS);
    loop {
        match any_frame(&mut client).unwrap().0 {
            GOAWAY => break,
            kind => assert_ne!(kind, PING, "GOAWAY is sent before the first ping"),
        }
    }
}

#[test]
fn a_silent_tunnel_over_http2_is_not_an_idle_connection() {
    let origin = backend(|mut stream| {
        let request = head(&mut stream);
        let key = request.lines().find(|line| line.to_ascii_lowercase().starts_with("sec-websocket-key:"));
        let key = key.unwrap().split_once(':').unwrap().1.trim();
        let accept = accept_of(key);
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n";
        stream.write_all(format!("{switch}Sec-WebSocket-Accept: {accept}\r\n\r\n").as_bytes()).unwrap();
        thread::sleep(Duration::from_secs(1));
        stream.write_all(b"a frame").unwrap();
        rest(&mut stream);
    });
    let gateway = Gateway::start(&format!("header_read_timeout_ms = 200\n{}", mount("/mydir", &origin, "")));
    let connect = literals(&[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", "front.example"),
        (":path", "/mydir/ws"),
        ("sec-websocket-version", "13"),
    ]);
    let connect = frame(HEADERS, END_HEADERS, 1, &connect);
    let mut client = gateway.send([PREFACE, &frame(SETTINGS, 0, 0, b""), &connect].concat());
    assert_eq!(read_frame(&mut client, DATA), b"a frame");
}

#[test]
fn the_gateway_recovers_from_silent_clients_that_use_all_descriptors() {
    let gateway = Gateway::start_with("header_read_timeout_ms = 1000", "ulimit -n 256;");
    let silent: Vec<TcpStream> = (0..300).map(|_| gateway.connect()).collect();
    assert!(gateway.get("/front/health", "").ends_with("front ok"));
    drop(silent);
}

#[test]
fn shutdown_closes_idle_connections_and_finishes_exchanges() {
    let (sender, receiver) = std::sync::mpsc::channel::<TcpStream>();
    let origin = backend(move |mut stream| {
        let request = head(&mut stream);
        if request.contains("pgrade: websocket") {
            let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            stream.write_all(switch.as_bytes()).unwrap();
        }
        sender.send(stream).unwrap();
    });
    let mut gateway = Gateway::start(&format!("threads = 1\n{}", mount("/mydir", &origin, "")));
    let mut exchange = gateway.send("GET /mydir/x HTTP/1.1\r\nHost: front.example\r\n\r\n");
    let mut backend_side = receiver.recv_timeout(PATIENCE).unwrap();
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut websocket = gateway.send(format!("GET /mydir/ws HTTP/1.1\r\nHost: front.example\r\n{upgrade}\r\n"));
    assert!(head(&mut websocket).starts_with("HTTP/1.1 101 "));
    let mut idle = gateway.send("GET /front/health HTTP/1.1\r\nHost: front.example\r\n\r\n");
    assert!(head(&mut idle).starts_with("HTTP/1.1 200 "));
    let mut http2 = http2_used(&gateway);
    let mut unused = [
        gateway.connect(),
        gateway.send("GET /front/health HTTP/1.1\r\nHost: fr"),
        gateway.send(PREFACE),
        gateway.send([PREFACE, &frame(SETTINGS, 0, 0, b"")].concat()),
    ];
    // The connections have been accepted when a later one has been served.
    assert!(gateway.get("/front/health", "").ends_with("front ok"));

    gateway.terminate();
    rest(&mut websocket);
    rest(&mut idle);
    read_frame(&mut http2, GOAWAY);
    rest(&mut http2);
    for stream in &mut unused {
        rest(stream);
    }
    // The other connections have ended while the exchange was in progress.
    assert!(gateway.child.try_wait().unwrap().is_none());
    backend_side.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").unwrap();
    assert!(rest(&mut exchange).ends_with("\r\n\r\ndone"));
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn request_heads_have_one_limit_in_both_versions() {
    let origin = mirror();
    let gateway = Gateway::start(&mount("/mydir", &origin, ""));
    let crumbs: Vec<String> = (0..40).map(|number| format!("c{number}={}", "x".repeat(500))).collect();
    let fields: Vec<String> = (0..150).map(|number| format!("x-field-{number}")).collect();
    let large = "x".repeat(60_000);
    let too_large = "x".repeat(66_000);
    for (what, fields, status) in [
        ("20 kB of cookies", crumbs.iter().map(|crumb| ("cookie", &**crumb)).collect::<Vec<_>>(), 200),
        ("150 fields", fields.iter().map(|name| (&**name, "value")).collect(), 200),
        ("a large field", vec![("x-large", &large)], 200),
        ("too large a field", vec![("x-large", &too_large)], 431),
    ] {
        assert_eq!(http2_status(&gateway, "/mydir/x", &fields), status, "{what}");
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let answer = gateway.get("/mydir/x", &lines);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
    }
    let gateway = Gateway::start(&format!("max_header_bytes = 4096\n{}", mount("/mydir", &origin, "")));
    assert!(gateway.get("/mydir/x", &format!("x-large: {}\r\n", &large[..5000])).starts_with("HTTP/1.1 431 "));
    assert_eq!(http2_status(&gateway, "/mydir/x", &[("x-large", &large[..5000])]), 431);
}

#[test]
fn a_front_behind_a_trusted_proxy_forwards_its_values() {
    let origin = mirror();
    let mounts = [mount("/a", &origin, ""), mount("/b", &origin, "forwarded_proto = \"http\"")].concat();
    let gateway = Gateway::start(&format!("forwarded_proto = \"https\"\n{mounts}"));
    let seen = |gateway: &Gateway, target, line: &str, is_there| {
        let answer = gateway.get(target, "X-Forwarded-For: 10.1.2.3\r\n").to_ascii_lowercase();
        assert_eq!(answer.contains(&format!("\r\n{line}\r\n")), is_there, "{target}: {answer}");
    };
    seen(&gateway, "/a/x", "x-forwarded-proto: https", true);
    seen(&gateway, "/b/x", "x-forwarded-proto: http", true);
    seen(&gateway, "/a/x", "x-forwarded-for: 127.0.0.1", true);
    for trusted in ["[\"127.0.0.0/8\", \"unix\"]", "[\"127.0.0.1\"]"] {
        let gateway = Gateway::start(&format!("trusted_proxies = {trusted}\n{mounts}"));
        seen(&gateway, "/a/x", "x-forwarded-for: 10.1.2.3, 127.0.0.1", true);
    }
}

#[test]
fn a_mount_hides_cookies_and_allows_upgrades() {
    let origin = mirror();
    let gateway = Gateway::start(&mount("/mydir", &origin, "hide_cookies = [\"id\"]\nallow_upgrades = [\"tcp\"]"));
    let fields = "Cookie: id=secret; theme=dark\r\nConnection: upgrade\r\nUpgrade: tcp\r\n";
    let request = format!("GET /mydir/x HTTP/1.1\r\nHost: front.example\r\n{fields}\r\n");
    let mut stream = gateway.send(request);
    let answer = [head(&mut stream), head(&mut stream)].concat().to_ascii_lowercase();
    assert!(answer.contains("\r\ncookie: theme=dark\r\n") && !answer.contains("secret"), "{answer}");
    assert!(answer.contains("\r\nupgrade: tcp\r\n"), "{answer}");
}

/// Linux lists the timer of each socket: 2 is keep-alive.
#[test]
#[cfg(target_os = "linux")]
fn clients_have_tcp_keep_alive() {
    let gateway = Gateway::start("");
    let client = http2_used(&gateway);
    let port = |addr: SocketAddr| format!(":{:04X}", addr.port());
    let (here, there) = (port(gateway.addr), port(client.local_addr().unwrap()));
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let timer = sockets.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns[1].ends_with(&here) && columns[2].ends_with(&there)).then(|| columns[5].to_owned())
    });
    let timer = timer.unwrap_or_else(|| panic!("the gateway's socket is listed:\n{sockets}"));
    assert!(timer.starts_with("02:"), "{timer}");
}

#[test]
fn a_mount_signs_in_with_a_bearer_token() {
    let refusing = backend(|mut stream| {
        head(&mut stream);
        let response = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"b\"\r\nContent-Length: 0\r\n\r\n";
        let _ = stream.write_all(response.as_bytes());
    });
    let mounts = [
        mount("/a", &mirror(), "bearer = \"s3cret=\""),
        mount("/refused", &refusing, "bearer = \"s3cret\""),
        mount("/basic", &refusing, "basic_password = \"s3cret\""),
    ];
    let gateway = Gateway::start(&format!("test_sign_in = true\n{}", mounts.concat()));
    let answer = gateway.get("/a/x", "Authorization: Bearer mine\r\n");
    let fields: Vec<_> = answer.lines().filter(|line| line.to_lowercase().starts_with("authorization:")).collect();
    assert!(matches!(fields[..], [field] if field.ends_with(": Bearer s3cret=")), "{answer}");
    let answer = gateway.get("/refused/x", "");
    assert!(answer.starts_with("HTTP/1.1 502 ") && !answer.contains("realm"), "{answer}");
    // A user without an account at the backend signs in there.
    let answer = gateway.get("/basic/x", "X-Test-User: alice\r\n");
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("realm"), "{answer}");
}

#[test]
fn a_mount_sends_the_groups_of_a_user() {
    let origin = mirror();
    let groups = "remote_groups_header = \"X-App-Groups\"";
    let mounts = [mount("/groups", &origin, groups), mount("/user", &origin, "remote_user = true")].concat();
    let gateway = Gateway::start(&format!("test_sign_in = true\n{mounts}"));
    let groups = |target: &str, fields: &str| {
        let spoofed = "X-App-Groups: root\r\nX.App.Groups: root\r\nConnection: X-App-Groups\r\n";
        let answer = gateway.get(target, &format!("{fields}{spoofed}"));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("x-test"), "{answer}");
        let values = answer
            .lines()
            .filter_map(|line| line.to_ascii_lowercase().strip_prefix("x-app-groups: ").map(str::to_owned));
        values.collect::<Vec<_>>()
    };
    let alice = |groups: &str| format!("X-Test-User: alice\r\nX-Test-Groups: {groups}\r\n");
    assert_eq!(groups("/groups/x", &alice("staff")), ["staff"]);
    assert_eq!(groups("/groups/x", &alice("staff, ops,a%20b")), ["staff,ops,a b"]);
    assert_eq!(groups("/groups/x", &alice("staff\r\nX-Test-Groups: ops")), ["staff,ops"]);
    assert_eq!(groups("/groups/x", &alice("")), [""; 0]);
    assert_eq!(groups("/groups/x", "X-Test-User: alice\r\n"), [""; 0]);
    assert_eq!(groups("/groups/x", "X-Test-Groups: staff\r\n"), [""; 0], "without a user");
    // A mount without the key doesn't own the field.
    assert_eq!(groups("/user/x", &alice("staff")).len(), 0, "nominated by the client");
    for bad in ["dev%2Cadmin", "a%0D%0AX-Inj:%201", "a%0Ab", "a%00", "a%C2%85", "%20a", "staff,,ops", "staff,"] {
        let answer = gateway.get("/groups/x", &alice(bad));
        assert!(answer.starts_with("HTTP/1.1 403 "), "{bad}: {answer}");
    }
    assert!(gateway.get("/groups/x", &alice("%FF")).starts_with("HTTP/1.1 400 "));
}

#[test]
fn configuration_errors_are_one_line_before_anything_listens() {
    let listen = "listen = \"127.0.0.1:0\"\n";
    let with = |keys: &str| format!("{listen}{}", mount("/a", "http://127.0.0.1:1", keys));
    let cases = [
        ("".to_owned(), "listen"),
        (format!("{listen}nonsense = 1\n"), "line 2: unknown field `nonsense`"),
        (format!("{listen}threads = 0\n"), "threads = 0"),
        (format!("{listen}header_read_timeout_ms = 0\n"), "header_read_timeout_ms"),
        (format!("{listen}max_header_bytes = 1\n"), "max_header_bytes"),
        (format!("{listen}max_header_bytes = 10000000000\n"), "line 2: "),
        (format!("{listen}forwarded_proto = \"ftp\"\n"), "line 2: unknown variant `ftp`"),
        (format!("{listen}trusted_proxies = [\"10.0.0.0/33\"]\n"), "trusted_proxies: \"10.0.0.0/33\""),
        (format!("{listen}assertion_key = \"/nowhere/key.pem\"\n"), "assertion_key"),
        (format!("{listen}[[mount]]\nprefix = \"/a\"\n"), "mount \"/a\": no backend"),
        (with("negotiate_as_user = true"), "negotiate_as_user: "),
        (with("negotiate_as_user = \"yes\""), "line 5: "),
        (with("assertion = true"), "assertion: "),
        (with("bearer = \"Bearer token\""), "bearer: write a token without \"Bearer\""),
        (with("bearer = \"token\"\nbasic_password = \"a\""), "write one of basic_password, bearer and negotiate"),
        (with("remote_user = false\nremote_groups_header = \"Remote-Groups\""), "remote_groups_header: leave out"),
        (with("remote_user = true\nremote_groups_header = \"a b\""), "remote_groups_header: write the name of a field"),
        (with("remote_user = true\nremote_groups_header = \"Remote_User\""), "remote_groups_header: write the name"),
        (with("remote_user = true\nremote_groups_header = \"Connection\""), "remote_groups_header: write the name"),
        (with("remote_groups_header = true"), "line 5: "),
        (with("hide_cookies = [\"id=1\"]"), "hide_cookies: \"id=1\""),
        (with("allow_upgrades = [\"h2c\"]"), "allow_upgrades: \"h2c\""),
        (with("ca_file = \"ca.pem\""), "ca_file"),
        (with("basic_password = \"a\\nb\""), "basic_password"),
        (with("basic_password = 12345678"), "line 5: a secret that isn't a string: write it in quotation marks"),
        (with("bearer = [\"12345678\"]"), "line 5: a secret that isn't a string: write it in quotation marks"),
        (with("forwarded_proto = 1"), "line 5: "),
        (format!("{}{}", with(""), mount("/a", "http://127.0.0.1:1", "")), "two mounts"),
        (format!("{listen}{}", mount("a", "http://127.0.0.1:1", "")), "invalid prefix"),
        (format!("{listen}{}", mount("/a", "http://127.0.0.1:1/path", "")), "mount \"/a\""),
    ];
    refuses(&cases);
}

#[cfg(not(all(unix, feature = "negotiate")))]
#[test]
fn a_build_without_kerberos_refuses_its_keys() {
    let no = |key: &str| format!("{key}: this build has no Kerberos: build the example with `--features negotiate`");
    let with = |keys: &str| format!("listen = \"127.0.0.1:0\"\n{}", mount("/a", "http://127.0.0.1:1", keys));
    refuses(&[
        (with("negotiate = \"HTTP@backend.example\""), no("negotiate").as_str()),
        (with("negotiate = \"HTTP@backend.example\"\nnegotiate_as_user = true"), no("negotiate").as_str()),
        (with("negotiate_as_user = true"), no("negotiate_as_user").as_str()),
    ]);
}

#[cfg(all(unix, feature = "negotiate"))]
#[test]
fn a_kerberos_mount_without_a_service_or_a_credential_is_refused() {
    let with = |keys: &str| format!("listen = \"127.0.0.1:0\"\n{}", mount("/a", "http://127.0.0.1:1", keys));
    refuses(&[
        (with("negotiate = \"http://backend.example\""), "negotiate: invalid service name \"http://backend.example\""),
        (with("negotiate_as_user = true"), "negotiate_as_user: write negotiate = "),
        (with("negotiate = \"HTTP@backend.example\"\nbasic_password = \"s3cret\""), "leave out basic_password"),
        (with("negotiate = \"HTTP@backend.example\""), "set KRB5_CLIENT_KTNAME to a keytab"),
        (
            with("negotiate = \"HTTP@backend.example\"\nnegotiate_as_user = true"),
            "set KRB5_CLIENT_KTNAME and KRB5_KTNAME to a keytab",
        ),
    ]);
}

/// Starts the gateway with each configuration, which it refuses with one line that contains the text.
fn refuses(cases: &[(String, &str)]) {
    for (config, wrong) in cases {
        let (mut command, _file) = command(config, "");
        // No credential of this machine's.
        command.env("KRB5_CONFIG", "/dev/null").env("KRB5CCNAME", "MEMORY:none");
        command.env("KRB5_CLIENT_KTNAME", "/dev/null").env("KRB5_KTNAME", "/dev/null");
        let Output { status, stdout, stderr } = command.output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(2), "{config}: {stderr}");
        assert!(stderr.starts_with("gateway: ") && stderr.trim_end().lines().count() == 1, "{config}: {stderr}");
        assert!(stderr.contains(wrong), "{config}: {stderr}");
        assert!(!stderr.contains("12345678"), "a secret is shown: {stderr}");
        assert!(!String::from_utf8_lossy(&stdout).contains("listening"));
    }
}

#[cfg(not(feature = "assertion"))]
#[test]
fn a_build_without_assertions_refuses_their_keys() {
    let no = |key: &str| format!("{key}: this build has no assertions: build the example with `--features assertion");
    let listen = "listen = \"127.0.0.1:0\"\n";
    refuses(&[
        (format!("{listen}assertion_key = \"key.pem\"\n"), &no("assertion_key")),
        (format!("{listen}{}", mount("/a", "http://127.0.0.1:1", "assertion = true")), &no("assertion")),
    ]);
}

#[cfg(all(feature = "assertion", feature = "tls-ring"))]
#[test]
fn a_key_for_assertions_that_is_missing_or_of_another_kind_is_refused() {
    let mut key = tempfile::NamedTempFile::new().unwrap();
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    key.write_all(p384.as_bytes()).unwrap();
    let listen = "listen = \"127.0.0.1:0\"\n";
    refuses(&[
        (format!("{listen}assertion_key = \"/nowhere/key.pem\"\n"), "assertion_key \"/nowhere/key.pem\": No such file"),
        (format!("{listen}assertion_key = {:?}\n", key.path()), "openssl genpkey -algorithm EC"),
        (
            format!("{listen}assertion_key = \"-----BEGIN PRIVATE KEY-----\"\n"),
            "assertion_key: write the path of the key's file",
        ),
        (
            format!("{listen}{}", mount("/a", "http://127.0.0.1:1", "assertion = true")),
            "write assertion_key = \"key.pem\"",
        ),
    ]);
}

#[cfg(all(feature = "assertion", feature = "tls-ring"))]
#[test]
fn a_mount_with_assertions_sends_one_that_the_published_keys_verify() {
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, jwk::JwkSet};

    let mut key = tempfile::NamedTempFile::new().unwrap();
    key.write_all(rcgen::KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap();
    let origin = mirror();
    let mounts = [mount("/a", &origin, "assertion = true"), mount("/b", &origin, "")].concat();
    let gateway = Gateway::start(&format!("test_sign_in = true\nassertion_key = {:?}\n{mounts}", key.path()));
    let token = |target: &str, fields: &str| {
        let answer = gateway.get(target, fields).to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        answer.contains("x-jwt-assertion: ")
    };
    assert!(token("/a/x", "X-Test-User: alice\r\n"));
    assert!(!token("/a/x", "X-JWT-Assertion: forged\r\n"));
    assert!(!token("/b/x", "X-Test-User: alice\r\n"));

    let answer = gateway.get("/a/x", "X-Test-User: CORP%5Calice\r\nX-JWT-Assertion: forged\r\n");
    let line =
        answer.lines().find_map(|line| line.strip_prefix("x-jwt-assertion: ")).unwrap_or_else(|| panic!("{answer}"));
    let keys: JwkSet =
        serde_json::from_str(gateway.get("/front/jwks.json", "").split_once("\r\n\r\n").unwrap().1).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&[&origin]);
    validation.set_issuer(&["http://127.0.0.1:0"]);
    let claims =
        decode::<serde_json::Value>(line, &DecodingKey::from_jwk(&keys.keys[0]).unwrap(), &validation).unwrap().claims;
    assert_eq!(claims["sub"], "CORP\\alice");
    assert!(Gateway::start("").get("/front/jwks.json", "").starts_with("HTTP/1.1 404"));
}

/// A backend there would choose the keys that the other backends trust.
#[cfg(all(feature = "assertion", feature = "tls-ring"))]
#[test]
fn no_mount_takes_the_route_of_the_keys() {
    let mut key = tempfile::NamedTempFile::new().unwrap();
    key.write_all(rcgen::KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap();
    let origin = mirror();
    for prefix in ["/", "/front", "/front/jwks.json"] {
        let mount = mount(prefix, &origin, "");
        let gateway = Gateway::start(&format!("assertion_key = {:?}\n{mount}", key.path()));
        for target in ["/front/jwks.json", "/front/jwks.json?x", "http://other.example/front/jwks.json"] {
            let answer = gateway.get(target, "");
            assert!(answer.contains("application/jwk-set+json"), "{prefix} {target}: {answer}");
        }
        let answer = gateway.get("/front/jwks.json/x", "");
        assert!(answer.contains("GET /front/jwks.json/x"), "{prefix}: {answer}");
        // Without a key, it's a path like any other.
        assert!(Gateway::start(&mount).get("/front/jwks.json", "").contains("GET /front/jwks.json"));
    }
}
