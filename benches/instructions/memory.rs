//! The resident memory of a proxy, without valgrind, after many large bodies at once. Linux only.

use std::{
    env,
    error::Error,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use axum::Router;
use tower_reverse_proxy::ReverseProxyLayer;

use super::{Outcome, RESPONSE_TIMEOUT, grouped, serve};

const BODIES: usize = 64;
const LENGTH: usize = 64 << 20;
/// What is written or read at a time.
const PIECE: usize = 64 * 1024;
/// What may be resident when all is over, in KiB.
const IDLE: u64 = 10 * 1024;
/// The pool closes connections with large buffers after a second.
const SETTLED: Duration = Duration::from_millis(2500);

pub(super) fn proxy(backend: &str) -> Outcome {
    let app = Router::new().layer(ReverseProxyLayer::new(backend).prefix("/mydir"));
    serve(&tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?, app)
}

/// Prints the memory of a proxy before and after the bodies, and the most that it had meanwhile.
pub(super) fn table(check: bool) -> Outcome {
    let mut command = Command::new(env::current_exe()?);
    command.args(["--proxy-threads", &backend()?]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let address: SocketAddr = line.trim().parse().map_err(|_| "the proxy didn't start")?;
    let length = |body| format!("content-length: {body}\r\n");
    let resident = |name| {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().nth(1));
        Ok::<u64, Box<dyn Error>>(value.ok_or("the system has no resident memory of a process")?.parse()?)
    };
    println!("| 64 bodies of 64 MiB at once | KiB |\n|---|---:|");
    println!("| before, idle | {} |", grouped(resident("VmRSS")?));
    let mut most_idle = 0;
    for (kind, method, upload) in [("downloads", "GET", 0), ("uploads", "POST", LENGTH)] {
        let request = format!("{method} /mydir/x HTTP/1.1\r\nhost: front.example\r\n{}\r\n", length(upload));
        let exchanges: Vec<_> = (0..BODIES)
            .map(|_| {
                let request = request.clone();
                thread::spawn(move || exchange(address, &request, upload).map_err(|error| error.to_string()))
            })
            .collect();
        for exchange in exchanges {
            exchange.join().map_err(|_| "an exchange panicked")??;
        }
        let most = resident("VmHWM")?;
        thread::sleep(SETTLED);
        let idle = resident("VmRSS")?;
        most_idle = most_idle.max(idle);
        println!("| after the {kind}, idle | {} |\n| the most until then | {} |", grouped(idle), grouped(most));
    }
    drop(child.stdin.take());
    child.wait()?;
    if check && most_idle > IDLE {
        return Err(format!("more than {} KiB are resident in an idle proxy", grouped(IDLE)).into());
    }
    Ok(())
}

fn exchange(address: SocketAddr, request: &str, upload: usize) -> Outcome {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    send(&mut stream, upload)?;
    let head = head(&mut stream)?;
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(format!("unexpected response: {head}").into());
    }
    Ok(discard(&mut stream, length.ok_or("no length")?)?)
}

/// A backend that reads an upload and answers with nothing, or answers a request without one with a download.
fn backend() -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let origin = format!("http://{}", listener.local_addr()?);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                loop {
                    let (upload, download) =
                        if head(&mut stream)?.starts_with("POST ") { (LENGTH, 0) } else { (0, LENGTH) };
                    discard(&mut stream, upload)?;
                    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {download}\r\n\r\n")?;
                    send(&mut stream, download)?;
                }
                #[expect(unreachable_code, reason = "the type of the errors")]
                io::Result::Ok(())
            });
        }
    });
    Ok(origin)
}

fn head(stream: &mut TcpStream) -> io::Result<String> {
    let (mut head, mut octet) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut octet)?;
        head.push(octet[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn send(stream: &mut TcpStream, mut length: usize) -> io::Result<()> {
    while length > 0 {
        length -= stream.write(&[b'x'; PIECE][..PIECE.min(length)])?;
    }
    Ok(())
}

fn discard(stream: &mut TcpStream, mut length: usize) -> io::Result<()> {
    let mut buffer = [0; PIECE];
    while length > 0 {
        match stream.read(&mut buffer[..PIECE.min(length)])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => length -= read,
        }
    }
    Ok(())
}
