//! The front against an API server and pods on the loopback interface.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    iter,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{StreamExt, stream};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tower_reverse_proxy::{Backends, balance::Sticky};

use crate::{
    app,
    endpoints::Port,
    source::{Service, members},
};

const SERVICE: &str = "http://app.shop.svc:8000";
const PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";

/// What the API server knows, and how it answers.
#[derive(Default)]
struct Cluster {
    version: u64,
    slices: BTreeMap<&'static str, Value>,
    /// The watches that are open.
    watches: Vec<mpsc::UnboundedSender<String>>,
    /// The number of lists, and the versions that the watches began at.
    lists: usize,
    watched: Vec<String>,
    /// The status of each response other than 200, first of lists and then of watches.
    refusals: [Option<u16>; 2],
}

/// An API server that has the EndpointSlices of one Service.
#[derive(Clone, Default)]
struct ApiServer(Arc<Mutex<Cluster>>);

impl ApiServer {
    async fn start(&self, address: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
        let app = Router::new().route(PATH, get(slices)).with_state(self.clone());
        serve(address, app).await
    }

    fn with<T>(&self, act: impl FnOnce(&mut Cluster) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// Adds or changes a slice.
    fn apply(&self, name: &'static str, port: u16, conditions: Value) {
        self.with(|cluster| {
            let endpoints = json!([{ "addresses": ["127.0.0.1"], "conditions": conditions }]);
            let kind = if cluster.slices.contains_key(name) { "MODIFIED" } else { "ADDED" };
            let slice = cluster.slice(name, port, endpoints);
            cluster.slices.insert(name, slice.clone());
            cluster.send(kind, &slice);
        });
    }

    fn delete(&self, name: &'static str) {
        self.with(|cluster| {
            let mut slice = cluster.slices.remove(name).unwrap();
            cluster.version += 1;
            slice["metadata"]["resourceVersion"] = json!(cluster.version.to_string());
            cluster.send("DELETED", &slice);
        });
    }

    fn event(&self, kind: &str, object: Value) {
        self.with(|cluster| cluster.send(kind, &object));
    }

    /// Sends a line of any kind.
    fn line(&self, line: &str) {
        self.with(|cluster| cluster.watches.retain(|watch| watch.send(format!("{line}\n")).is_ok()));
    }

    /// Ends the watches, as the server does after some minutes.
    fn close_watches(&self) {
        self.with(|cluster| cluster.watches.clear());
    }

    /// Makes each list and each watch fail, or not.
    fn refuse(&self, list: Option<u16>, watch: Option<u16>) {
        self.with(|cluster| cluster.refusals = [list, watch]);
    }
}

impl Cluster {
    fn slice(&mut self, name: &str, port: u16, endpoints: Value) -> Value {
        self.version += 1;
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": name, "namespace": "shop", "resourceVersion": self.version.to_string() },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": port, "protocol": "TCP" }],
            "endpoints": endpoints,
        })
    }

    fn send(&mut self, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({ "type": kind, "object": object }));
        self.watches.retain(|watch| watch.send(line.clone()).is_ok());
    }
}

/// Lists the slices, or watches them.
async fn slices(State(server): State<ApiServer>, Query(query): Query<HashMap<String, String>>) -> Response {
    assert_eq!(query["labelSelector"], "kubernetes.io/service-name=app");
    let is_watch = query.get("watch").is_some_and(|watch| watch == "true");
    server.with(|cluster| {
        let refusal = cluster.refusals[usize::from(is_watch)];
        cluster.lists += usize::from(!is_watch);
        if let Some(code) = refusal {
            let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                                 "reason": "Expired", "message": "refused" });
            return (StatusCode::from_u16(code).unwrap(), Json(status)).into_response();
        }
        if is_watch {
            let (watch, lines) = mpsc::unbounded_channel::<String>();
            cluster.watches.push(watch);
            cluster.watched.push(query["resourceVersion"].clone());
            let lines = stream::unfold(lines, |mut lines| async { Some((lines.recv().await?, lines)) });
            return Body::from_stream(lines.map(|line| Ok::<_, Infallible>(Bytes::from(line)))).into_response();
        }
        let items: Vec<_> = cluster.slices.values().collect();
        Json(json!({ "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1",
                     "metadata": { "resourceVersion": cluster.version.to_string() }, "items": items }))
        .into_response()
    })
}

async fn serve(address: SocketAddr, app: Router) -> (SocketAddr, JoinHandle<()>) {
    let listener = within(async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    let address = listener.local_addr().unwrap();
    (address, tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }))
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Starts a pod, which answers with its name, the path and the `Host`. Returns its port.
async fn pod(name: &'static str) -> u16 {
    let answer = move |uri: Uri, headers: HeaderMap| async move {
        format!("{name} {} {}", uri.path(), headers["host"].to_str().unwrap())
    };
    serve(any_port(), Router::new().fallback(answer)).await.0.port()
}

fn ready() -> Value {
    json!({ "ready": true, "serving": true, "terminating": false })
}

fn terminating() -> Value {
    json!({ "ready": false, "serving": true, "terminating": true })
}

fn not_ready() -> Value {
    json!({ "ready": false, "serving": false, "terminating": false })
}

/// A front, and what it watches.
struct Fixture {
    server: ApiServer,
    api: (SocketAddr, JoinHandle<()>),
    backends: Backends,
    front: SocketAddr,
    /// How many errors the source has returned.
    errors: Arc<AtomicUsize>,
}

impl Fixture {
    /// Starts a front whose Service has one pod, `a`, and waits until it has it.
    async fn start() -> (Self, u16) {
        let server = ApiServer::default();
        let a = pod("a").await;
        server.apply("slice-a", a, ready());
        let api = server.start(any_port()).await;
        let this = Self::with(server, api).await;
        this.members(&[(a, "up")]).await;
        (this, a)
    }

    async fn with(server: ApiServer, api: (SocketAddr, JoinHandle<()>)) -> Self {
        let client = Client::try_from(Config::new(format!("http://{}", api.0).parse().unwrap())).unwrap();
        let sticky = Sticky::cookie("pod", "0123456789abcdef").unwrap();
        let backends = Backends::builder([SERVICE]).sticky(sticky).build().unwrap();
        let service = Service::new(SERVICE, Port::from("http")).unwrap();
        let delays = iter::repeat(Duration::from_millis(20));
        let errors = Arc::new(AtomicUsize::new(0));
        let count = errors.clone();
        let source = members(client, service, delays).inspect(move |set| {
            count.fetch_add(usize::from(set.is_err()), Ordering::Relaxed);
        });
        backends.follow(source).detach();
        let front = serve(any_port(), app(&backends)).await.0;
        Self { server, api, backends, front, errors }
    }

    fn status(&self) -> Vec<String> {
        let status = self.backends.status();
        status.iter().map(|member| format!("{} {}", member.backend(), member.state())).collect()
    }

    /// Waits until these are the members.
    async fn members(&self, ports: &[(u16, &str)]) {
        let mut ports = ports.to_vec();
        ports.sort_unstable();
        let wanted: Vec<_> =
            ports.iter().map(|(port, state)| format!("{SERVICE} at 127.0.0.1:{port} {state}")).collect();
        let reached = timeout(Duration::from_secs(10), async {
            while self.status() != wanted {
                sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(reached.await.is_ok(), "wanted {wanted:?}, got {:?}", self.status());
    }

    /// Waits until so many watches have begun.
    async fn watches(&self, count: usize) {
        self.until(|cluster| cluster.watched.len() >= count).await;
    }

    /// Waits until this is so.
    async fn until(&self, holds: impl Fn(&Cluster) -> bool) {
        within(async {
            while !self.server.with(|cluster| holds(cluster)) {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Sends requests without a session, and returns the names of the pods that answered.
    async fn names(&self, count: usize) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for _ in 0..count {
            names.insert(visit(self.front, "").await.0);
        }
        names
    }
}

/// Requests a page, and returns the name of the pod and the cookie that is set.
async fn visit(front: SocketAddr, cookie: &str) -> (String, Option<String>) {
    let mut stream = TcpStream::connect(front).await.unwrap();
    let request =
        format!("GET /app/x HTTP/1.1\r\nHost: front.example\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    within(stream.read_to_string(&mut response)).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    let name = body.strip_suffix(" /app/x front.example").unwrap_or_else(|| panic!("{response}"));
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next());
    (name.to_owned(), cookie.map(str::to_owned))
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.expect("it takes more than ten seconds")
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[tokio::test]
async fn pods_come_drain_and_go() {
    let (fixture, a) = Fixture::start().await;
    fixture.watches(1).await;
    let session = visit(fixture.front, "").await;
    assert_eq!(session.0, "a");
    let (b, c) = (pod("b").await, pod("c").await);
    fixture.server.apply("slice-b", b, ready());
    fixture.server.apply("slice-c", c, not_ready());
    fixture.members(&[(a, "up"), (b, "up")]).await;
    fixture.server.apply("slice-c", c, ready());
    fixture.members(&[(a, "up"), (b, "up"), (c, "up")]).await;
    fixture.server.apply("slice-a", a, terminating());
    fixture.members(&[(a, "draining"), (b, "up"), (c, "up")]).await;
    assert_eq!(fixture.names(20).await, set(&["b", "c"]));
    assert_eq!(visit(fixture.front, &session.1.clone().unwrap()).await, ("a".into(), None), "its session stays");
    fixture.server.delete("slice-a");
    fixture.members(&[(b, "up"), (c, "up")]).await;
    let (moved, cookie) = visit(fixture.front, &session.1.unwrap()).await;
    assert!(moved != "a" && cookie.is_some(), "its session moves to {moved}");
    assert_eq!(fixture.server.with(|cluster| cluster.lists), 1);
}

#[tokio::test]
async fn a_service_without_a_ready_pod_keeps_those_that_it_had() {
    let (fixture, a) = Fixture::start().await;
    fixture.watches(1).await;
    fixture.server.apply("slice-a", a, terminating());
    fixture.members(&[(a, "draining")]).await;
    assert_eq!(fixture.names(3).await, set(&["a"]), "it's the only one, and it serves");
    fixture.server.apply("slice-a", a, not_ready());
    // Another one, by which it's known that the front has seen the change.
    let b = pod("b").await;
    fixture.server.apply("slice-b", b, not_ready());
    sleep(Duration::from_millis(100)).await;
    fixture.members(&[(a, "draining")]).await;
    fixture.server.apply("slice-b", b, ready());
    fixture.members(&[(b, "up")]).await;
}

#[tokio::test]
async fn a_watch_that_ends_continues_where_it_was() {
    let (fixture, a) = Fixture::start().await;
    fixture.watches(1).await;
    let metadata = json!({ "resourceVersion": "77" });
    let bookmark = json!({ "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata });
    fixture.server.event("BOOKMARK", bookmark);
    fixture.server.close_watches();
    fixture.watches(2).await;
    let b = pod("b").await;
    fixture.server.apply("slice-b", b, ready());
    fixture.members(&[(a, "up"), (b, "up")]).await;
    assert_eq!(
        fixture.server.with(|cluster| (cluster.lists, cluster.watched.clone())),
        (1, vec!["1".into(), "77".into()])
    );
}

#[tokio::test]
async fn an_expired_watch_begins_anew_and_the_set_is_never_empty() {
    let (fixture, a) = Fixture::start().await;
    fixture.watches(1).await;
    let b = pod("b").await;
    let backends = fixture.backends.clone();
    let observer = tokio::spawn(async move {
        loop {
            assert!(!backends.status().is_empty());
            tokio::task::yield_now().await;
        }
    });
    // The watch misses the new pod.
    fixture.server.with(|cluster| {
        let slice = cluster.slice("slice-b", b, json!([{ "addresses": ["127.0.0.1"] }]));
        cluster.slices.insert("slice-b", slice);
    });
    fixture.server.event("ERROR", json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" }));
    fixture.members(&[(a, "up"), (b, "up")]).await;
    fixture.watches(2).await;
    // This time the expiry is the status of a watch.
    fixture.server.with(|cluster| cluster.slices.remove("slice-a"));
    fixture.server.refuse(None, Some(410));
    fixture.server.close_watches();
    fixture.members(&[(b, "up")]).await;
    fixture.server.refuse(None, None);
    fixture.watches(3).await;
    assert!(!observer.is_finished());
    observer.abort();
    assert_eq!(fixture.errors.load(Ordering::Relaxed), 0, "an expiry is no failure");
}

#[tokio::test]
async fn an_api_server_that_fails_changes_nothing() {
    let (mut fixture, a) = Fixture::start().await;
    fixture.watches(1).await;
    let object = |name: &str| json!({ "type": "ADDED", "object": { "metadata": { "name": name } } }).to_string();
    for line in ["garbage", "{}", "[1]", &object(""), r#"{"type":"ERROR","object":{"code":500}}"#, "\u{0}"] {
        let (lists, watches) = fixture.server.with(|cluster| (cluster.lists, cluster.watched.len()));
        fixture.server.line(line);
        fixture.watches(watches + 1).await;
        assert_eq!(fixture.server.with(|cluster| cluster.lists), lists + 1, "{line}");
        assert_eq!(fixture.errors.swap(0, Ordering::Relaxed), 1, "{line}");
        fixture.members(&[(a, "up")]).await;
    }
    // The client itself repeats requests that are answered with 503.
    for (list, watch) in [(Some(500), Some(500)), (Some(403), Some(403)), (None, Some(404))] {
        fixture.server.refuse(list, watch);
        fixture.server.close_watches();
        let lists = fixture.server.with(|cluster| cluster.lists);
        fixture.until(|cluster| cluster.lists >= lists + 3).await;
        assert_eq!(fixture.names(3).await, set(&["a"]));
    }
    // It's down, and comes back at the same address.
    fixture.api.1.abort();
    let _ = (&mut fixture.api.1).await;
    fixture.server.close_watches();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(fixture.names(3).await, set(&["a"]));
    fixture.server.refuse(None, None);
    let b = pod("b").await;
    fixture.server.apply("slice-b", b, ready());
    fixture.api = fixture.server.start(fixture.api.0).await;
    fixture.members(&[(a, "up"), (b, "up")]).await;
    assert_eq!(fixture.names(20).await, set(&["a", "b"]));
}

#[tokio::test]
async fn a_front_that_starts_without_an_api_server_uses_the_address_of_the_service() {
    let server = ApiServer::default();
    server.refuse(Some(500), None);
    let api = server.start(any_port()).await;
    let fixture = Fixture::with(server, api).await;
    fixture.until(|cluster| cluster.lists >= 3).await;
    assert_eq!(fixture.status(), [format!("{SERVICE} up")]);
    let a = pod("a").await;
    fixture.server.apply("slice-a", a, ready());
    fixture.server.refuse(None, None);
    fixture.members(&[(a, "up")]).await;
}

/// The client of a pod has TLS, whose cryptography is chosen when it's made.
#[tokio::test]
async fn a_client_with_tls_is_made() {
    assert!(Client::try_from(Config::new("https://127.0.0.1:1".parse().unwrap())).is_ok());
}
