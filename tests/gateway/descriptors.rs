//! A gateway that has no descriptor left for connections to its backends.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::Request,
};
use http_body_util::BodyExt;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Gateway, PATIENCE, backend, head, several::several};

/// Lets the responses to `/app/held` begin.
#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
}

impl Gate {
    fn wait(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let closed = self.opened.wait_timeout_while(self.is_open.lock().unwrap(), PATIENCE, |is_open| !*is_open);
        assert!(*closed.unwrap().0, "it opens");
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// A backend that responds with its own origin.
fn gated(gate: &Arc<Gate>) -> String {
    let gate = gate.clone();
    backend(move |mut stream| {
        let origin = format!("http://{}", stream.local_addr().unwrap());
        loop {
            let request = head(&mut stream);
            if !request.ends_with("\r\n\r\n") {
                break;
            }
            if request.starts_with("GET /app/held") {
                gate.wait();
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{origin}", origin.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                break;
            }
        }
    })
}

/// All requests go over one connection, so that the gateway needs descriptors for its backends only.
async fn connect(addr: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn get(mut client: SendRequest<Body>, path: &str) -> (u16, Bytes) {
    let request = Request::get(format!("http://front.example{path}")).body(Body::empty()).unwrap();
    let response = timeout(PATIENCE, client.send_request(request)).await.expect("a response").unwrap();
    let status = response.status().as_u16();
    (status, timeout(PATIENCE, response.into_body().collect()).await.expect("a body").unwrap().to_bytes())
}

#[tokio::test]
async fn the_gateways_own_shortage_of_descriptors_takes_no_backend_out() {
    const REQUESTS: usize = 80;
    let log = tempfile::NamedTempFile::new().unwrap();
    let gate = Arc::new(Gate::default());
    let origins = [gated(&gate), gated(&gate), gated(&gate)];
    let origins = origins.each_ref().map(String::as_str);
    let limit = format!("ulimit -n 64; exec 2>{};", log.path().display());
    let gateway = Gateway::start_with(&several("/app", &origins, "retry = \"idempotent\""), &limit);
    let client = connect(gateway.addr).await;

    // There are descriptors for some of them.
    let mut requests = JoinSet::new();
    for _ in 0..REQUESTS {
        let client = client.clone();
        requests.spawn(async move { get(client, "/app/held").await.0 });
    }
    let mut refused = Vec::new();
    let short = async {
        while refused.len() + gate.waiting.load(Ordering::SeqCst) < REQUESTS {
            match timeout(Duration::from_millis(20), requests.join_next()).await {
                Ok(ended) => refused.push(ended.unwrap().unwrap()),
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        }
    };
    timeout(PATIENCE, short).await.expect("each request is refused, or reaches a backend");
    let waiting = gate.waiting.load(Ordering::SeqCst);
    assert!(waiting > 10 && refused.len() > 20, "{waiting} wait, {refused:?}");
    // While it lasts, a request fails, however often.
    for _ in 0..20 {
        refused.push(get(client.clone(), "/app/x").await.0);
    }
    assert_eq!(refused.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&502]), "{refused:?}");
    let (_, rows) = get(client.clone(), "/front/backends").await;
    let rows: Vec<Value> = serde_json::from_slice(&rows).unwrap();
    for row in &rows {
        assert_eq!((&row["state"], &row["failures"]), (&"up".into(), &0.into()), "{rows:?}");
    }
    let log = fs::read_to_string(log.path()).unwrap();
    assert!(log.contains("(os error 24)"), "{log}");
    assert!(!log.contains("is taken out of its set"), "{log}");

    // And ends with it.
    gate.open();
    while let Some(request) = timeout(PATIENCE, requests.join_next()).await.expect("a response") {
        assert_eq!(request.unwrap(), 200);
    }
    let mut responded = BTreeSet::new();
    for _ in 0..60 {
        let (status, origin) = get(client.clone(), "/app/x").await;
        assert_eq!(status, 200);
        responded.insert(origin);
    }
    assert_eq!(responded.len(), 3, "{responded:?}");
}
