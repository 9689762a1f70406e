//! Sticky sessions through the wire.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::Request,
    http::{request::Parts, response},
    middleware::map_request,
};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};
use tower_reverse_proxy::{
    Backends, Forwarded, RemoteUser, Retry, RetryPolicy, ReverseProxyLayer, Upstream,
    balance::{Balance, Check, Member, State, Sticky, Verdict, stable_hash},
};

use crate::support::{Message, Wire, answering, ask, client, front, get, others_run, time_passes, watch, within};

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// A member, which ends with its connections when it's dropped.
struct Server {
    url: String,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a member that names itself, and the `Cookie` that it gets.
async fn server(name: &'static str) -> Server {
    watch();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut wire = Wire::new(stream);
                while let Some(request) = wire.message().await {
                    wire.send(answer(name, &request).as_bytes()).await;
                }
            });
        }
    });
    Server { url, task }
}

fn answer(name: &str, request: &Message) -> String {
    let target = request.start_line().split(' ').nth(1).unwrap();
    let (status, fields) = match target.rsplit('/').next().unwrap() {
        "304" => ("304 Not Modified", "Content-Length: 0"),
        "public" => ("200 OK", "Cache-Control: max-age=60, public\r\nContent-Length: 0"),
        "503" => ("503 Service Unavailable", "Content-Length: 0"),
        "sets" => ("200 OK", "Set-Cookie: backend=forged; Path=/\r\nSet-Cookie: own=1; Path=/x\r\nContent-Length: 0"),
        "chat" => (
            "101 Switching Protocols",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        ),
        _ => ("200 OK", "Content-Length: 0"),
    };
    let cookie = request.field("cookie").unwrap_or("none");
    format!("HTTP/1.1 {status}\r\nX-Member: {name}\r\nX-Cookie: {cookie}\r\n{fields}\r\n\r\n")
}

async fn servers() -> [Server; 3] {
    [server("a").await, server("b").await, server("c").await]
}

fn urls(servers: &[Server]) -> Vec<&str> {
    servers.iter().map(|server| &*server.url).collect()
}

fn backends<'a>(urls: impl IntoIterator<Item = &'a str>, key: &str) -> Backends {
    Backends::builder(urls).sticky(Sticky::cookie("backend", key).unwrap()).build().unwrap()
}

async fn mounted(backends: &Backends) -> SocketAddr {
    front(Router::new().layer(ReverseProxyLayer::balanced(backends).prefix("/app"))).await
}

/// The same with a policy of retries.
async fn retried(backends: &Backends, policy: RetryPolicy) -> SocketAddr {
    let balance = Balance::new(backends, |member: &Member| Upstream::new(member.client().unwrap().clone()));
    front(Router::new().layer(ReverseProxyLayer::with_upstream(Retry::new(balance, policy)).prefix("/app"))).await
}

/// The member that answered.
fn member(answer: &Message) -> String {
    answer.field("x-member").unwrap_or_else(|| panic!("no member: {answer:?}")).to_owned()
}

/// The cookie that a response sets, whose attributes are these.
fn assigned(answer: &Message, attributes: &str) -> String {
    let line = answer.field("set-cookie").unwrap_or_else(|| panic!("no cookie: {answer:?}"));
    let cookie = line.strip_suffix(attributes).unwrap_or_else(|| panic!("other attributes: {line}"));
    let value = cookie.strip_prefix("backend=").unwrap();
    assert!(value.len() == 22 && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)), "{value}");
    cookie.to_owned()
}

const ATTRIBUTES: &str = "; Path=/app; HttpOnly; SameSite=Lax";

/// A session: its member and its cookie.
async fn session(addr: SocketAddr) -> (String, String) {
    let first = get(addr, "/app/x", "").await;
    (member(&first), assigned(&first, ATTRIBUTES))
}

async fn visit(addr: SocketAddr, cookie: &str) -> Message {
    get(addr, "/app/x", &format!("Cookie: {cookie}\r\n")).await
}

#[tokio::test]
async fn a_session_stays_at_its_member_and_the_cookie_is_set_once() {
    let servers = servers().await;
    let addr = mounted(&backends(urls(&servers), KEY)).await;
    let mut homes = BTreeSet::new();
    for _ in 0..12 {
        let (home, cookie) = session(addr).await;
        for _ in 0..5 {
            let again = visit(addr, &cookie).await;
            assert_eq!((member(&again), again.field("set-cookie")), (home.clone(), None));
        }
        homes.insert(home);
    }
    assert!(homes.len() > 1, "all sessions are at {homes:?}");
}

#[tokio::test]
async fn the_cookie_is_removed_from_the_request_and_others_stay() {
    let servers = servers().await;
    let addr = mounted(&backends(urls(&servers), KEY)).await;
    let (home, cookie) = session(addr).await;
    for (sent, received) in [
        (cookie.clone(), "none"),
        (format!("a=1; {cookie}; b=\"x  y\""), "a=1; b=\"x  y\""),
        (format!("{cookie};b=2"), "b=2"),
        (format!("backend=forged; {cookie}"), "none"),
        (format!("backend2=2; {cookie}; xbackend=1"), "backend2=2; xbackend=1"),
    ] {
        let answer = visit(addr, &sent).await;
        assert_eq!((member(&answer), answer.field("x-cookie")), (home.clone(), Some(received)), "{sent}");
    }
}

#[tokio::test]
async fn a_cookie_that_is_hidden_from_the_backends_still_keeps_its_session() {
    let servers = servers().await;
    let proxy = ReverseProxyLayer::balanced(backends(urls(&servers), KEY)).prefix("/app");
    let addr = front(Router::new().layer(proxy.hide_cookies(["id", "backend"]))).await;
    let (home, cookie) = session(addr).await;
    for _ in 0..6 {
        let answer = get(addr, "/app/sets", &format!("Cookie: id=1; {cookie}; a=1\r\n")).await;
        assert_eq!((member(&answer), answer.field("x-cookie")), (home.clone(), Some("a=1")));
        assert_eq!(answer.field("set-cookie"), Some("own=1; Path=/x"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_forged_cookie_is_removed_and_replaced() {
    let servers = servers().await;
    let addr = mounted(&backends(urls(&servers), KEY)).await;
    let (_, cookie) = session(mounted(&backends(urls(&servers), "another key, 16 bytes")).await).await;
    for forged in [&*cookie, "backend=", "backend=http://127.0.0.1:80", "backend=AAAAAAAAAAAAAAAAAAAAAA"] {
        let answer = visit(addr, forged).await;
        assert_eq!(answer.field("x-cookie"), Some("none"));
        assert_ne!(assigned(&answer, ATTRIBUTES), forged);
    }
}

#[tokio::test]
async fn the_cookie_has_the_path_and_the_scheme_of_the_front() {
    let servers = servers().await;
    let backends = backends(urls(&servers), KEY);
    let layer = || ReverseProxyLayer::balanced(&backends);
    let secure = Forwarded::new().proto("https");
    let behind = Forwarded::new().trust(["127.0.0.0/8"]);
    for (app, target, fields, attributes) in [
        (Router::new().layer(layer()), "/x", "", "; Path=/; HttpOnly; SameSite=Lax"),
        (
            Router::new().layer(layer().prefix("/a/b").strip_prefix()),
            "/a/b/x",
            "",
            "; Path=/a/b; HttpOnly; SameSite=Lax",
        ),
        (Router::new().nest_service("/n", layer().into_service()), "/n/x", "", "; Path=/n; HttpOnly; SameSite=Lax"),
        (
            Router::new().nest("/n/{m}", Router::new().fallback(|| async {}).layer(layer().prefix("/a"))),
            "/n/m/a/x",
            "",
            "; Path=/n/m/a; HttpOnly; SameSite=Lax",
        ),
        (Router::new().layer(layer().forwarded(secure.clone())), "/x", "", "; Path=/; HttpOnly; SameSite=Lax; Secure"),
        (
            Router::new().layer(layer().forwarded(secure.x_forwarded(false))),
            "/x",
            "X-Forwarded-Proto: http\r\n",
            "; Path=/; HttpOnly; SameSite=Lax; Secure",
        ),
        (
            Router::new().layer(layer().forwarded(behind)),
            "/x",
            "X-Forwarded-Proto: https\r\n",
            "; Path=/; HttpOnly; SameSite=Lax; Secure",
        ),
        (Router::new().layer(layer()), "/x", "X-Forwarded-Proto: https\r\n", "; Path=/; HttpOnly; SameSite=Lax"),
    ] {
        let answer = get(front(app).await, target, fields).await;
        assigned(&answer, attributes);
    }
}

#[tokio::test]
async fn responses_for_shared_caches_do_not_set_it() {
    let servers = servers().await;
    let addr = mounted(&backends(urls(&servers), KEY)).await;
    for (target, is_set) in [("/app/304", false), ("/app/public", false), ("/app/503", true), ("/app/x", true)] {
        let answer = get(addr, target, "").await;
        assert_eq!(answer.field("set-cookie").is_some(), is_set, "{target}");
    }
}

#[tokio::test]
async fn a_member_sets_its_own_cookies_but_not_this_one() {
    let servers = servers().await;
    let addr = mounted(&backends(urls(&servers), KEY)).await;
    let (_, cookie) = session(addr).await;
    let answer = get(addr, "/app/sets", &format!("Cookie: {cookie}\r\n")).await;
    assert_eq!(answer.all("set-cookie"), ["own=1; Path=/x"]);
    let answer = get(addr, "/app/sets", "").await;
    let [own, ours] = answer.all("set-cookie")[..] else { panic!("{answer:?}") };
    assert!(own == "own=1; Path=/x" && ours.ends_with(ATTRIBUTES) && !ours.contains("forged"), "{answer:?}");
}

#[tokio::test]
async fn a_websocket_begins_and_continues_a_session() {
    let servers = servers().await;
    let addr = mounted(&backends(urls(&servers), KEY)).await;
    let open = async |cookie: &str| {
        let mut wire = client(addr).await;
        wire.send(offer(cookie).as_bytes()).await;
        let answer = wire.message().await.unwrap();
        assert_eq!(answer.status(), 101, "{answer:?}");
        (answer, wire)
    };
    let (first, _open) = open("").await;
    let cookie = assigned(&first, ATTRIBUTES);
    let mut tunnels = Vec::new();
    for _ in 0..4 {
        assert_eq!(member(&visit(addr, &cookie).await), member(&first));
        let (again, wire) = open(&format!("Cookie: {cookie}\r\n")).await;
        assert_eq!((member(&again), again.field("set-cookie")), (member(&first), None));
        tunnels.push(wire);
    }
}

#[tokio::test]
async fn the_session_of_a_removed_member_moves_and_no_other() {
    let servers = servers().await;
    let backends = backends(urls(&servers), KEY);
    let addr = mounted(&backends).await;
    let mut sessions = Vec::new();
    while sessions.iter().map(|(home, _)| home).collect::<BTreeSet<_>>().len() < 3 {
        sessions.push(session(addr).await);
    }
    backends.set(urls(&servers[1..])).unwrap();
    for (home, cookie) in &sessions {
        let answer = visit(addr, cookie).await;
        if home == "a" {
            assert_ne!(member(&answer), "a");
            let cookie = assigned(&answer, ATTRIBUTES);
            assert_eq!(member(&visit(addr, &cookie).await), member(&answer));
        } else {
            assert_eq!((member(&answer), answer.field("set-cookie")), (home.clone(), None));
        }
    }
    // The session of a member that comes back is its own again.
    backends.set(urls(&servers)).unwrap();
    for (home, cookie) in sessions {
        assert_eq!(member(&visit(addr, &cookie).await), home);
    }
}

#[tokio::test]
async fn the_session_of_a_dead_member_moves_without_an_error() {
    let mut servers = Vec::from(servers().await);
    let backends = backends(urls(&servers), KEY);
    let addr = retried(&backends, RetryPolicy::unsent()).await;
    let mut sessions = Vec::new();
    while sessions.iter().filter(|(home, _)| home == "b").count() < 2 {
        sessions.push(session(addr).await);
    }
    drop(servers.remove(1));
    for (home, cookie) in sessions {
        let answer = visit(addr, &cookie).await;
        assert_eq!(answer.status(), 200);
        if home == "b" {
            let cookie = assigned(&answer, ATTRIBUTES);
            for _ in 0..3 {
                let again = visit(addr, &cookie).await;
                assert_eq!((member(&again), again.field("set-cookie")), (member(&answer), None));
            }
        } else {
            assert_eq!((member(&answer), answer.field("set-cookie")), (home, None));
        }
    }
}

#[tokio::test]
async fn a_repeated_request_assigns_the_member_that_answered() {
    let good = server("good").await;
    let bad = answering("HTTP/1.1 503 Service Unavailable\r\nX-Member: bad\r\nContent-Length: 0\r\n\r\n").await;
    let backends = backends([&*good.url, &bad], KEY);
    let plain = mounted(&backends).await;
    let addr = retried(&backends, RetryPolicy::idempotent()).await;
    let cookie = loop {
        let first = get(plain, "/app/x", "").await;
        if member(&first) == "bad" {
            break assigned(&first, ATTRIBUTES);
        }
    };
    let moved = visit(addr, &cookie).await;
    assert_eq!((member(&moved), moved.field("x-cookie")), ("good".into(), Some("none")));
    let cookie = assigned(&moved, ATTRIBUTES);
    let again = visit(addr, &cookie).await;
    assert_eq!((member(&again), again.field("set-cookie")), ("good".into(), None));
}

#[tokio::test]
async fn a_session_waits_for_its_member_although_others_have_room() {
    let servers = servers().await;
    let sticky = Sticky::cookie("backend", KEY).unwrap();
    let backends =
        Backends::builder(urls(&servers)).sticky(sticky).max_requests(1).queue_timeout(None).build().unwrap();
    let addr = mounted(&backends).await;
    let (home, cookie) = session(addr).await;
    // A tunnel holds the member's only place.
    let tunnel = async || {
        let mut wire = client(addr).await;
        wire.send(offer(&format!("Cookie: {cookie}\r\n")).as_bytes()).await;
        assert_eq!(member(&wire.message().await.unwrap()), home);
        wire
    };
    let wait = async || {
        let cookie = cookie.clone();
        let waits = tokio::spawn(async move { visit(addr, &cookie).await });
        others_run().await;
        assert_ne!(member(&get(addr, "/app/x", "").await), home, "another has room");
        (waits,)
    };
    let held = tunnel().await;
    let (waits,) = wait().await;
    drop(held);
    let answer = within(waits).await.unwrap();
    assert_eq!((member(&answer), answer.field("set-cookie")), (home.clone(), None));
    // If the member is removed in the meantime, the session moves.
    let _held = tunnel().await;
    let (waits,) = wait().await;
    let at = ["a", "b", "c"].iter().position(|name| *name == home).unwrap();
    let mut left = urls(&servers);
    left.remove(at);
    backends.set(left).unwrap();
    let answer = within(waits).await.unwrap();
    assert_ne!(member(&answer), home);
    assigned(&answer, ATTRIBUTES);
}

/// An offer of a WebSocket with these further fields.
fn offer(fields: &str) -> String {
    format!(
        "GET /app/chat HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{fields}\r\n"
    )
}

#[tokio::test]
async fn no_session_leaves_its_member_for_the_trial_of_another() {
    let servers = [server("a").await, server("b").await];
    let addr = mounted(&backends(urls(&servers), KEY)).await;
    let (mut a, mut b) = (None, None);
    while a.is_none() || b.is_none() {
        let (home, cookie) = session(addr).await;
        *(if home == "a" { &mut a } else { &mut b }) = Some(cookie);
    }
    let (a, b) = (a.unwrap(), b.unwrap());
    for _ in 0..5 {
        let answer = get(addr, "/app/503", &format!("Cookie: {b}\r\n")).await;
        assert_eq!((answer.status(), &*member(&answer)), (503, "b"));
    }
    let moved = visit(addr, &b).await;
    assert_eq!((member(&moved), assigned(&moved, ATTRIBUTES)), ("a".into(), a.clone()), "b is out");
    time_passes(Duration::from_secs(2)).await;
    for _ in 0..5 {
        assert_eq!(member(&visit(addr, &a).await), "a");
    }
    // A request whose session was there is the trial.
    let back = visit(addr, &b).await;
    assert_eq!((member(&back), back.field("set-cookie")), ("b".into(), None));
    assert_eq!(member(&visit(addr, &b).await), "b");
}

#[tokio::test]
async fn a_trial_assigns_a_new_session() {
    let servers = [server("a").await, server("b").await];
    let addr = mounted(&backends(urls(&servers), KEY)).await;
    let mut b = session(addr).await;
    while b.0 != "b" {
        b = session(addr).await;
    }
    for _ in 0..5 {
        get(addr, "/app/503", &format!("Cookie: {}\r\n", b.1)).await;
    }
    for _ in 0..5 {
        assert_eq!(session(addr).await.0, "a", "b is out");
    }
    time_passes(Duration::from_secs(2)).await;
    assert_eq!(session(addr).await, b);
}

#[tokio::test]
async fn a_member_that_its_check_drains_keeps_its_sessions() {
    let servers = servers().await;
    let drains = Arc::new(AtomicBool::new(false));
    let judge = {
        let drains = drains.clone();
        move |parts: &response::Parts| match parts.headers.get("x-member") {
            Some(name) if name == "b" && drains.load(Ordering::Relaxed) => Verdict::Drain,
            _ => Verdict::Up,
        }
    };
    let backends = Backends::builder(urls(&servers))
        .sticky(Sticky::cookie("backend", KEY).unwrap())
        .check(Check::get("/healthz").interval(Duration::from_millis(10)).judge(judge))
        .build()
        .unwrap();
    let addr = mounted(&backends).await;
    let mut b = session(addr).await;
    while b.0 != "b" {
        b = session(addr).await;
    }
    drains.store(true, Ordering::Relaxed);
    let is_draining = || backends.status()[1].state() == State::Draining;
    within(async {
        while !is_draining() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for _ in 0..5 {
        let answer = visit(addr, &b.1).await;
        assert_eq!((member(&answer), answer.field("set-cookie")), ("b".into(), None));
        assert_ne!(session(addr).await.0, "b", "new sessions go elsewhere");
    }
}

#[tokio::test]
async fn a_member_that_the_set_drains_keeps_its_sessions() {
    let servers = servers().await;
    let backends = backends(urls(&servers), KEY);
    let addr = mounted(&backends).await;
    let mut b = session(addr).await;
    while b.0 != "b" {
        b = session(addr).await;
    }
    let members = |drain: &dyn Fn(Member) -> Member| {
        let [a, b, c] = [&servers[0], &servers[1], &servers[2]].map(|server| Member::new(&server.url));
        [a, drain(b), c]
    };
    backends.set(members(&Member::draining)).unwrap();
    assert_eq!(backends.status()[1].state(), State::Draining);
    for _ in 0..5 {
        let answer = visit(addr, &b.1).await;
        assert_eq!((member(&answer), answer.field("set-cookie")), ("b".into(), None));
        assert_ne!(session(addr).await.0, "b", "new sessions go elsewhere");
    }
    backends.set(members(&|member| member)).unwrap();
    assert_eq!(backends.status()[1].state(), State::Up);
    while session(addr).await.0 != "b" {}
}

#[tokio::test]
async fn replicas_with_one_key_agree() {
    let servers = servers().await;
    let one = mounted(&backends(urls(&servers), KEY)).await;
    let two = mounted(&backends(urls(&servers).into_iter().rev(), KEY)).await;
    let other = mounted(&backends(urls(&servers), "another key, 16 bytes")).await;
    for _ in 0..6 {
        let (home, cookie) = session(one).await;
        let answer = visit(two, &cookie).await;
        assert_eq!((member(&answer), answer.field("set-cookie")), (home, None));
        assigned(&visit(other, &cookie).await, ATTRIBUTES);
    }
}

/// Inserts the user whom a field names.
async fn sign_in(mut request: Request) -> Request {
    if let Some(user) = request.headers().get("x-user").map(|user| user.to_str().unwrap().to_owned()) {
        request.extensions_mut().insert(RemoteUser::new(user));
    }
    request
}

#[tokio::test]
async fn a_key_of_the_request_keeps_a_session_without_a_cookie() {
    let servers = servers().await;
    let by_user = |parts: &Parts| Some(stable_hash(parts.extensions.get::<RemoteUser>()?.as_str()));
    let backends = Backends::builder(urls(&servers)).sticky(Sticky::by(by_user)).build().unwrap();
    let layer = ReverseProxyLayer::balanced(&backends).prefix("/app");
    let addr = front(Router::new().layer(layer).layer(map_request(sign_in))).await;
    let mut homes = BTreeSet::new();
    for n in 0..12 {
        let visit = async || {
            let answer = get(addr, "/app/x", &format!("X-User: user{n}\r\nCookie: backend=1\r\n")).await;
            assert_eq!((answer.field("x-cookie"), answer.field("set-cookie")), (Some("backend=1"), None));
            member(&answer)
        };
        let home = visit().await;
        // Many at once stay, too.
        let mut open = Vec::new();
        for _ in 0..5 {
            let mut wire = client(addr).await;
            wire.send(offer(&format!("X-User: user{n}\r\n")).as_bytes()).await;
            assert_eq!(member(&wire.message().await.unwrap()), home);
            open.push(wire);
        }
        assert_eq!(visit().await, home);
        homes.insert(home);
    }
    assert!(homes.len() > 1, "all users are at {homes:?}");
    // No user, no session.
    let answer = ask(addr, "GET /app/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((answer.status(), answer.field("set-cookie")), (200, None));
}
