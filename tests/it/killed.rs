//! Backends that are processes of their own, and are killed or stopped in the midst of their work; and one that can't
//! be reached. What the clients of the other backends notice of it.

use std::{
    collections::HashMap,
    env,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, Stdio, exit},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderValue, Method, StatusCode},
};
use tokio::{
    net::TcpListener,
    runtime::Builder,
    sync::Semaphore,
    task::JoinSet,
    time::{interval, sleep},
};
use tower::ServiceExt;
use tower_reverse_proxy::{
    Backends, BoxUpstream, Client, Retry, RetryPolicy, ReverseProxy, ReverseProxyLayer, Upstream,
    balance::{Balance, MemberStatus, State},
};
#[cfg(target_os = "linux")]
use {
    tokio::{
        net::{TcpSocket, TcpStream},
        time::timeout,
    },
    tower_reverse_proxy::ClientBuilder,
};

#[cfg(target_os = "linux")]
use crate::support::answering;
use crate::support::{Wire, watch, within};

/// Makes this binary a backend.
const IS_BACKEND: &str = "TEST_BACKEND";

/// How long a backend takes for a request.
const WORK: Duration = Duration::from_millis(10);

/// Not a test: a backend, when a test starts this binary again. It ends with its standard input.
#[test]
#[allow(clippy::exit)] // the runtime would wait for connections
fn process() {
    if env::var_os(IS_BACKEND).is_none() {
        return;
    }
    thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        exit(0);
    });
    Builder::new_current_thread().enable_all().build().unwrap().block_on(serve());
}

/// Prints each request before it responds to it.
#[allow(clippy::print_stdout)] // the parent reads it
async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut wire = Wire::new(stream);
            while let Some(request) = wire.message().await {
                println!("received {}", request.start_line());
                sleep(WORK).await;
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        });
    }
}

/// A backend in a process of its own.
struct Process {
    child: Child,
    addr: SocketAddr,
    /// Collects the start lines of its requests, until it ends.
    received: Option<JoinHandle<Vec<String>>>,
}

impl Process {
    fn start() -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["killed::process", "--exact", "--nocapture"]).env(IS_BACKEND, "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let addr = lines.find_map(|line| Some(line.split_once("listening on ")?.1.parse().unwrap()));
        let received =
            thread::spawn(move || lines.filter_map(|line| Some(line.strip_prefix("received ")?.to_owned())).collect());
        Self { child, addr: addr.expect("the backend starts"), received: Some(received) }
    }

    fn origin(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Ends the process by SIGKILL. Its connections are closed when this returns.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops the process by SIGSTOP. Its kernel accepts connections and data, and it responds to nothing.
    fn stop(&self) {
        let status = Command::new("kill").args(["-STOP", &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Ends the process, and returns the start lines of its requests.
    fn received(mut self) -> Vec<String> {
        self.kill();
        self.received.take().unwrap().join().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The attempts in their order: each one's backend, and target.
type Attempts = Arc<Mutex<Vec<(String, String)>>>;

/// Makes a proxy that records each attempt.
fn recorded(layer: Balanced) -> (ReverseProxy<BoxUpstream>, Attempts) {
    let attempts = Attempts::default();
    let seen = attempts.clone();
    let proxy = layer.map_members(move |upstream| {
        let (seen, backend) = (seen.clone(), format!("http://{}", upstream.backend().authority()));
        upstream.map_request(move |request: Request| {
            seen.lock().unwrap().push((backend.clone(), request.uri().path().to_owned()));
            request
        })
    });
    (proxy.into_service().boxed(), attempts)
}

type Balanced = ReverseProxyLayer<Retry<Balance<Upstream<Client>>>>;

/// Sends one request, and returns the status of its response once that is complete.
async fn send(proxy: &ReverseProxy<BoxUpstream>, method: Method, target: &str) -> StatusCode {
    let body = if method == Method::POST { Body::from("order") } else { Body::empty() };
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = target.parse().unwrap();
    request.headers_mut().insert("host", HeaderValue::from_static("front.example"));
    let response = within(proxy.clone().oneshot(request)).await.unwrap();
    let status = response.status();
    match to_bytes(Body::new(response.into_body()), 1024).await {
        Ok(_) => status,
        Err(_) => panic!("the response of {target} is cut"),
    }
}

/// Half of them are `POST`s. There are a thousand a second, or fewer on a busy machine.
const REQUESTS: usize = 2000;

/// A `POST` is under way on the backend if it was begun there before the process ended. That is known without a race,
/// because no task of the proxy runs until the process has ended and the proxy's sockets have been polled.
#[test]
fn the_posts_under_way_are_all_that_a_killed_backend_fails() {
    watch();
    let mut runtime = Builder::new_current_thread();
    runtime.enable_all().event_interval(1).build().unwrap().block_on(async {
        let [one, killed, three] = [Process::start(), Process::start(), Process::start()];
        let (backends, end) = (Backends::new([one.origin(), killed.origin(), three.origin()]), killed.origin());
        let (proxy, attempts) = recorded(ReverseProxyLayer::balanced(&backends).retry(RetryPolicy::idempotent()));
        let (mut pace, places) = (interval(Duration::from_millis(1)), Arc::new(Semaphore::new(60)));
        let (mut requests, mut victim, mut kill) = (JoinSet::new(), Some(killed), None);
        for number in 0..REQUESTS {
            pace.tick().await;
            let place = within(places.clone().acquire_owned()).await.unwrap();
            let proxy = proxy.clone();
            requests.spawn(async move {
                let method = if number % 2 == 0 { Method::GET } else { Method::POST };
                let target = format!("/{method}/{number}");
                let status = send(&proxy, method, &target).await;
                drop(place);
                (target, status)
            });
            if number == REQUESTS / 3
                && let Some(mut process) = victim.take()
            {
                // In a task, because the sockets are polled after each task, and not after the future of `block_on`.
                let attempts = attempts.clone();
                kill = Some(tokio::spawn(async move {
                    process.kill();
                    (process, attempts.lock().unwrap().len())
                }));
            }
        }
        let mut failed = Vec::new();
        while let Some(request) = within(requests.join_next()).await {
            let (target, status) = request.unwrap();
            if status != 200 {
                failed.push(target);
            }
        }
        let (killed, begun_at_its_end) = kill.unwrap().await.unwrap();
        let attempts = attempts.lock().unwrap();
        for target in &failed {
            assert!(target.starts_with("/POST/"), "{target} failed");
            let of_it: Vec<_> = attempts.iter().enumerate().filter(|(_, attempt)| attempt.1 == *target).collect();
            let [(number, (backend, _))] = of_it[..] else { panic!("{target} was sent again: {of_it:?}") };
            assert_eq!(*backend, end, "{target}");
            assert!(number < begun_at_its_end, "{target} failed, and began after the end of its backend");
        }
        let mut received = HashMap::<_, usize>::new();
        for line in [one, killed, three].into_iter().flat_map(Process::received) {
            *received.entry(line).or_default() += 1;
        }
        assert!(received.len() + failed.len() >= REQUESTS, "requests were lost");
        received.retain(|line, count| line.starts_with("POST ") && *count > 1);
        assert!(received.is_empty(), "received twice: {received:?}");
    });
}

/// The clients are 12, each with one request at a time, so that a busy machine changes nothing.
#[tokio::test]
async fn a_stopped_backend_costs_the_requests_in_flight_and_five() {
    const TIMEOUT: Duration = Duration::from_millis(700);
    let processes = [Process::start(), Process::start(), Process::start()];
    let backends = Backends::new(processes.each_ref().map(Process::origin));
    let (proxy, attempts) = recorded(ReverseProxyLayer::balanced(&backends).header_timeout(TIMEOUT));
    let (mut clients, lost) = (JoinSet::new(), Arc::new(Mutex::new(Vec::new())));
    for client in 0..12 {
        let (proxy, lost) = (proxy.clone(), lost.clone());
        clients.spawn(async move {
            for number in 0.. {
                let target = format!("/{client}/{number}");
                if send(&proxy, Method::GET, &target).await != 200 {
                    lost.lock().unwrap().push(target);
                }
            }
        });
    }
    let requests = |backends: &Backends| backends.status().iter().map(MemberStatus::requests).sum::<u64>();
    let reach = async |count| {
        while requests(&backends) < count {
            sleep(Duration::from_millis(1)).await;
        }
    };
    within(reach(200)).await;
    processes[1].stop();
    let in_flight = backends.status()[1].in_flight();
    sleep(4 * TIMEOUT).await;
    within(reach(requests(&backends) + 200)).await;
    let state = backends.status()[1].state();
    drop(clients);
    let (lost, attempts, stopped) = (lost.lock().unwrap(), attempts.lock().unwrap(), processes[1].origin());
    // A busy machine may be late with others, too.
    let lost = lost.iter().filter(|target| {
        attempts.iter().rev().find(|attempt| attempt.1 == **target).is_some_and(|attempt| attempt.0 == stopped)
    });
    let lost = lost.count();
    assert!(lost <= in_flight as usize + 5, "{lost} were lost, and {in_flight} in flight when it was stopped");
    assert!(lost > 0, "it was stopped");
    assert_eq!(state, State::Ejected);
}

/// A request that has tried that backend takes one connect timeout longer. As fewer than one in a hundred do, 99 % of
/// the requests don't wait for it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn few_requests_wait_for_a_backend_that_accepts_no_connection() {
    const REQUESTS: usize = 2000;
    let (blackhole, _held) = full_backlog().await;
    let ok = || answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let members = [ok().await, ok().await, blackhole.clone()];
    let with_timeout = |client: ClientBuilder| client.connect_timeout(Duration::from_millis(300));
    let backends = Backends::builder(members).client(with_timeout).build().unwrap();
    let (proxy, attempts) = recorded(ReverseProxyLayer::balanced(&backends));
    let mut clients = JoinSet::new();
    for client in 0..12 {
        let proxy = proxy.clone();
        clients.spawn(async move {
            for number in 0..REQUESTS / 12 {
                assert_eq!(send(&proxy, Method::POST, &format!("/{client}/{number}")).await, 200);
            }
        });
    }
    while let Some(client) = within(clients.join_next()).await {
        client.unwrap();
    }
    let mut waited = HashMap::<_, usize>::new();
    for (_, target) in attempts.lock().unwrap().iter().filter(|attempt| attempt.0 == blackhole) {
        *waited.entry(target.clone()).or_default() += 1;
    }
    assert!((1..REQUESTS / 100).contains(&waited.len()), "{} of {REQUESTS} requests waited", waited.len());
    assert!(waited.values().all(|attempts| *attempts == 1), "a request waited twice: {waited:?}");
}

/// A backend that takes no connection: the queue of its listener is full, so that the kernel drops what opens one.
#[cfg(target_os = "linux")]
async fn full_backlog() -> (String, Vec<Box<dyn Send>>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let (mut held, mut waiting): (Vec<Box<dyn Send>>, _) = (vec![Box::new(listener)], 0);
    while waiting < 3 {
        match timeout(Duration::from_millis(300), TcpStream::connect(addr)).await {
            Ok(connected) => held.push(Box::new(connected.unwrap())),
            Err(_) => waiting += 1,
        }
    }
    (format!("http://{addr}"), held)
}
