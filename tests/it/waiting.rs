//! Requests that wait for a connection: none is forgotten in races with other requests, idle checks or runtime
//! shutdowns.

use std::{
    convert::Infallible,
    future::{Future, pending},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, http::Uri, response::Response};
use http_body_util::BodyExt;
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, ClientBuilder, Error, ErrorKind, ReverseProxy, ReverseProxyLayer};

use crate::support::{
    self, PATIENCE, Wire,
    pipes::{Hook, Pipe},
};

fn answering(hook: Hook) -> Pipe {
    let (ours, theirs) = Pipe::pair();
    tokio::spawn(async move {
        let mut wire = Wire::new(theirs);
        while wire.message().await.is_some() {
            wire.send(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    });
    ours.on_read(hook)
}

/// A proxy of a backend in memory.
fn hooked(origin: &str) -> (ClientBuilder, Hook, Arc<AtomicUsize>) {
    let (hook, connects) = (Hook::default(), Arc::new(AtomicUsize::new(0)));
    let (hooked, counted) = (hook.clone(), connects.clone());
    let client = Client::builder(origin).connector(service_fn(move |_: Uri| {
        counted.fetch_add(1, Ordering::SeqCst);
        let hook = hooked.clone();
        async move { Ok::<_, io::Error>(answering(hook)) }
    }));
    (client, hook, connects)
}

type Exchange = Pin<Box<dyn Future<Output = (u16, Option<ErrorKind>)> + Send>>;

fn exchange(proxy: &ReverseProxy, method: &str) -> Exchange {
    let request = Request::builder().method(method).uri("/x").header("host", "front.example");
    let call = proxy.clone().oneshot(request.body(Body::empty()).unwrap());
    Box::pin(async move {
        let Ok(response): Result<Response, Infallible> = call.await;
        let kind = response.extensions().get::<Error>().map(Error::kind);
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        (status, kind)
    })
}

async fn done(exchange: Exchange) -> (u16, Option<ErrorKind>) {
    timeout(PATIENCE, exchange).await.expect("the exchange ends")
}

fn polled(exchange: &mut Exchange) -> Poll<(u16, Option<ErrorKind>)> {
    exchange.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Begins a request while the pool checks its idle connections: the request finds none, and may not open one.
async fn begun_meanwhile(proxy: &ReverseProxy, hook: &Hook, method: &'static str) -> Exchange {
    let (begun, mut exchanges) = mpsc::unbounded_channel();
    let proxy = proxy.clone();
    *hook.lock().unwrap() = Some(Box::new(move || {
        let mut exchange = exchange(&proxy, method);
        assert!(polled(&mut exchange).is_pending());
        begun.send(exchange).unwrap();
    }));
    timeout(PATIENCE, exchanges.recv()).await.expect("the pool checks its connections").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_during_the_idle_check_gets_a_connection() {
    // For an HTTPS backend that negotiates HTTP/1.1, the requests wait in another queue.
    for (origin, http2) in [("http://backend.example", false), ("https://backend.example", true)] {
        let (client, hook, connects) = hooked(origin);
        // Idle connections are checked every 200 ms, and are then young enough for a POST.
        let client = client.max_connections(1).queue_timeout(None).pool_idle_timeout(Duration::from_millis(400));
        let proxy = ReverseProxy::new(client.http2(http2));
        assert_eq!(done(exchange(&proxy, "GET")).await, (204, None));
        for method in ["GET", "POST", "GET"] {
            let waiting = begun_meanwhile(&proxy, &hook, method).await;
            assert_eq!(done(waiting).await, (204, None), "{origin} {method}");
        }
        assert_eq!(connects.load(Ordering::SeqCst), 1, "{origin}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_beside_the_idle_check_find_their_connections() {
    // The connection limit is always reached, and idle connections are checked all the time.
    for (origin, http2) in [("http://backend.example", false), ("https://backend.example", true)] {
        let (client, _, _) = hooked(origin);
        let client = client.max_connections(2).queue_timeout(None).pool_idle_timeout(Duration::from_millis(20));
        let proxy = ReverseProxy::new(client.http2(http2));
        let mut clients = JoinSet::new();
        for client in 0..6_u64 {
            let proxy = proxy.clone();
            clients.spawn(async move {
                for round in 0..150 {
                    let method = if (client + round) % 3 == 0 { "POST" } else { "GET" };
                    assert_eq!(done(exchange(&proxy, method)).await, (204, None));
                    if round % 8 == client {
                        // In real time: the race is with the pool's timer on another thread.
                        sleep(Duration::from_millis(11)).await;
                    }
                }
            });
        }
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
    }
}

/// A waker that calls a function once.
struct OnWake(Hook);

impl Wake for OnWake {
    fn wake(self: Arc<Self>) {
        let hook = self.0.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_arrive_during_others_wait_no_longer_than_the_queue_timeout() {
    let (hook, connects) = (Hook::default(), AtomicUsize::new(0));
    let (hooked, connects) = (hook.clone(), Arc::new(connects));
    // Only the first connect completes.
    let connector = service_fn(move |_: Uri| {
        let (hook, number) = (hooked.clone(), connects.fetch_add(1, Ordering::SeqCst));
        async move {
            if number > 0 {
                pending::<()>().await;
            }
            Ok::<_, io::Error>(answering(hook))
        }
    });
    let client = Client::builder("http://backend.example").connector(connector).connect_timeout(None);
    let client = client.pool_idle_timeout(Duration::from_millis(400)).max_connections(3);
    let client = client.queue_timeout(Duration::from_millis(50));
    let proxy = ReverseProxyLayer::new(client).header_timeout(None).into_service();
    assert_eq!(done(exchange(&proxy, "GET")).await, (204, None));
    let (begun, mut exchanges) = mpsc::unbounded_channel();
    // Three requests arrive as the first one gets the checked connection. One takes over the first one's connect, one
    // opens its own, and one has to wait.
    *hook.lock().unwrap() = Some(Box::new(move || {
        let mut first = exchange(&proxy, "GET");
        let others_begun = begun.clone();
        let others: Hook = Arc::new(Mutex::new(Some(Box::new(move || {
            for _ in 0..3 {
                let mut exchange = exchange(&proxy, "GET");
                assert!(polled(&mut exchange).is_pending());
                others_begun.send(exchange).unwrap();
            }
        }))));
        let waker = Waker::from(Arc::new(OnWake(others)));
        assert!(first.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        begun.send(first).unwrap();
    }));
    let mut begun = Vec::new();
    for _ in 0..4 {
        begun.push(timeout(PATIENCE, exchanges.recv()).await.expect("the connection is checked").unwrap());
    }
    assert_eq!(done(begun.pop().unwrap()).await, (503, Some(ErrorKind::Overloaded)));
    for exchange in &mut begun[1..] {
        assert!(polled(exchange).is_pending());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_connection_is_being_opened_outlasts_the_queue_timeout() {
    let millis = Duration::from_millis;
    let connector = service_fn(move |_: Uri| async move {
        sleep(millis(300)).await;
        let (ours, theirs) = Pipe::pair();
        tokio::spawn(async move {
            let mut wire = Wire::new(theirs);
            wire.message().await;
            sleep(millis(100)).await;
            wire.send(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        });
        Ok::<_, io::Error>(ours)
    });
    let client = Client::builder("http://backend.example").connector(connector);
    let client = client.max_connections(1).queue_timeout(millis(150));
    let proxy = ReverseProxyLayer::new(client).into_service();
    let mut first = exchange(&proxy, "GET");
    assert!(polled(&mut first).is_pending());
    sleep(millis(300)).await;
    assert!(polled(&mut first).is_pending());
    // The second one waits 100 ms for the place of the first, and 300 ms for its own connection.
    let second = done(exchange(&proxy, "GET"));
    assert_eq!(tokio::join!(done(first), second), ((204, None), (204, None)));
    // One that only waits doesn't outlast it.
    let (first, second) = (exchange(&proxy, "GET"), exchange(&proxy, "GET"));
    assert_eq!(tokio::join!(done(first), done(second)), ((204, None), (503, Some(ErrorKind::Overloaded))));
}

/// A proxy whose first `connects` connects don't complete.
fn stuck(connects: usize) -> (ClientBuilder, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let client =
        Client::builder("http://backend.example").connect_timeout(None).connector(service_fn(move |_: Uri| {
            let is_stuck = counted.fetch_add(1, Ordering::SeqCst) < connects;
            async move {
                if is_stuck {
                    pending::<()>().await;
                }
                Ok::<_, io::Error>(answering(Hook::default()))
            }
        }));
    (client, asked)
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Begins an exchange on a runtime, to be polled on another.
fn begun_on(runtime: &Runtime, proxy: &ReverseProxy) -> Exchange {
    let _inside = runtime.enter();
    let mut exchange = exchange(proxy, "GET");
    assert!(polled(&mut exchange).is_pending());
    exchange
}

/// Waits until so many connects have been asked for.
async fn asked(count: usize, asked: &AtomicUsize) {
    let all = async {
        while asked.load(Ordering::SeqCst) < count {
            // In real time, because the connects begin on another runtime.
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, all).await.expect("the connects begin");
}

#[tokio::test]
async fn a_dropped_runtime_fails_requests_that_wait_for_its_connects() {
    for (round, limit) in [None, Some(3)].into_iter().cycle().take(20).enumerate() {
        let (client, count) = stuck(5);
        let proxy = ReverseProxy::new(client.max_connections(limit).queue_timeout(None));
        let theirs = runtime();
        let waiting: Vec<_> = (0..5).map(|_| begun_on(&theirs, &proxy)).collect();
        // In half of the rounds, the runtime may end before a connect was polled.
        if round % 4 < 2 {
            asked(limit.unwrap_or(5), &count).await;
        }
        theirs.shutdown_background();
        for waiting in waiting {
            assert_eq!(done(waiting).await, (502, Some(ErrorKind::Connect)));
        }
        count.store(5, Ordering::SeqCst);
        assert_eq!(done(exchange(&proxy, "GET")).await, (204, None));
    }
}

#[tokio::test]
async fn requests_on_other_runtimes_get_their_connections() {
    for limit in [None, Some(1)].into_iter().cycle().take(20) {
        let (client, count) = stuck(1);
        let proxy = ReverseProxy::new(client.max_connections(limit).queue_timeout(None));
        let theirs = runtime();
        theirs.spawn(exchange(&proxy, "GET"));
        asked(1, &count).await;
        // With a limit of 1, the others wait for the first one's connection.
        let mut ours = exchange(&proxy, "GET");
        assert!(polled(&mut ours).is_pending());
        for _ in 0..3 {
            theirs.spawn(exchange(&proxy, "GET"));
        }
        theirs.shutdown_background();
        assert_eq!(done(ours).await, (204, None), "{limit:?}");
        assert_eq!(done(exchange(&proxy, "GET")).await, (204, None), "{limit:?}");
    }
}

#[test]
fn a_server_stops_with_requests_waiting() {
    const CLIENTS: usize = 20;
    for round in 0..20 {
        // In the last rounds, all requests wait for one connect.
        let limit = (round >= 10).then_some(1);
        let server = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        server.block_on(async {
            let (client, count) = stuck(usize::MAX);
            let app = Router::new().fallback_service(ReverseProxy::new(client.max_connections(limit)));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let clients = async {
                let mut wires = Vec::new();
                for _ in 0..CLIENTS {
                    let mut wire = support::client(addr).await;
                    wire.send(b"GET /x HTTP/1.1\r\nHost: front.example\r\n\r\n").await;
                    wires.push(wire);
                }
                asked(limit.unwrap_or(CLIENTS), &count).await;
            };
            tokio::select! {
                served = axum::serve(listener, app) => served.unwrap(),
                () = clients => {}
            }
        });
        drop(server);
    }
}
