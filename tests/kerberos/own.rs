//! The front's own account.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, Uri},
};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tower::service_fn;
use tower_reverse_proxy::{Client, HostPolicy, Negotiate, NegotiateLayer, Upstream};

use super::{
    realm::{
        BACKEND, FRONT, KdcLog, accesses, app, app_to, ask, ask_as, events, observed, origin, pooled, send, unseen, var,
    },
    support::{Message, Wire, client, front, websocket, within},
};

fn own() -> Negotiate {
    Negotiate::own(BACKEND).unwrap()
}

fn layer() -> NegotiateLayer {
    NegotiateLayer::with_source(own())
}

#[tokio::test]
async fn the_backend_sees_the_account_of_the_front() {
    let app = app(layer());
    let answer = ask(&app, "/app/krb/own").await;
    assert_eq!(answer.user(), FRONT);
    assert_eq!(answer.line("scheme"), "Negotiate");
    // Also for requests of a user.
    assert_eq!(ask_as(&app, "/app/krb/own", "alice").await.user(), FRONT);
    let posted = Request::post("/app/krb/own").body(Body::from("seven!!")).unwrap();
    let posted = send(&app, posted).await;
    assert_eq!((posted.user(), posted.line("method"), posted.line("body")), (FRONT, "POST", "7"));
}

#[tokio::test]
async fn the_clients_own_authorization_never_gets_through() {
    let app = app(layer());
    let request = Request::get("/app/krb/basic").header("authorization", "Basic YWxpY2U6eA==").body(Body::empty());
    assert_eq!(send(&app, request.unwrap()).await.user(), FRONT);
    let negotiate = Request::get("/app/krb/basic").header("authorization", "Negotiate YWJj").body(Body::empty());
    assert_eq!(send(&app, negotiate.unwrap()).await.user(), FRONT);
}

#[tokio::test]
async fn requests_of_the_account_share_connections() {
    let app = app(layer());
    observed(&app, "/app/krb/shared", "alice").await;
    for location in ["krb", "krb-conn"] {
        let first = ask(&app, &format!("/app/{location}/shared")).await;
        for _ in 0..5 {
            pooled().await;
            let next = ask(&app, &format!("/app/{location}/shared")).await;
            assert_eq!((next.user(), next.line("connection")), (FRONT, first.line("connection")));
        }
    }
}

#[tokio::test]
async fn the_backends_side_of_the_sign_in_stays_in_front() {
    let app = app(layer());
    for (path, status) in [("/app/krb/x", 200), ("/app/krb-conn/x", 200), ("/app/krb-404/x", 404)] {
        let answer = ask(&app, path).await;
        assert_eq!(answer.status, status, "{answer:?}");
        for field in ["www-authenticate", "persistent-auth", "proxy-support"] {
            assert!(!answer.headers.contains_key(field), "{path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_backend_that_proves_itself_satisfies_require_mutual() {
    let app = app(NegotiateLayer::with_source(own().require_mutual(true)));
    assert_eq!(ask(&app, "/app/krb/mutual").await.user(), FRONT);
}

#[tokio::test]
async fn a_backend_that_proves_nothing_fails_require_mutual_only() {
    let lenient = app(layer());
    assert_eq!(ask(&lenient, "/app/krb-mute/x").await.user(), FRONT);
    let strict = app(NegotiateLayer::with_source(own().require_mutual(true)));
    ask(&strict, "/app/krb-mute/x").await.failed(502, "BackendUnproven");
}

/// A backend that responds to each request with this challenge. `None`: it sends the token of its first request to
/// Apache, and responds to all with the challenge of that response.
async fn impostor(challenge: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stolen = Arc::new(Mutex::new(None::<String>));
    tokio::spawn(async move {
        loop {
            let mut wire = Wire::new(listener.accept().await.unwrap().0);
            let stolen = stolen.clone();
            tokio::spawn(async move {
                while let Some(request) = wire.message().await {
                    let known = challenge.map(str::to_owned).or_else(|| stolen.lock().unwrap().clone());
                    let challenge = match known {
                        Some(known) => known,
                        None => {
                            let answered = steal(request.field("authorization").unwrap()).await;
                            stolen.lock().unwrap().insert(answered).clone()
                        }
                    };
                    let response = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n{}\r\nevil",
                        if challenge.is_empty() { challenge } else { format!("WWW-Authenticate: {challenge}\r\n") }
                    );
                    wire.send(response.as_bytes()).await;
                }
            });
        }
    });
    addr
}

async fn steal(authorization: &str) -> String {
    to_apache("/krb/stolen", authorization).await.field("www-authenticate").unwrap().to_owned()
}

/// Sends a request with this token to Apache.
async fn to_apache(path: &str, authorization: &str) -> Message {
    let port = var("KIT_BACKEND_PORT").parse().unwrap();
    let mut apache = Wire::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    let fields = format!("Host: x\r\nAuthorization: {authorization}\r\nConnection: close\r\n");
    apache.send(format!("GET {path} HTTP/1.1\r\n{fields}\r\n").as_bytes()).await;
    apache.message().await.unwrap()
}

#[tokio::test]
async fn an_impostor_never_satisfies_require_mutual() {
    let challenges = [
        "",
        "Negotiate",
        "Negotiate YWJj",
        "Negotiate !",
        "Negotiate oRQwEqADCgEAoQsGCSqGSIb3EgECAg==",
        "Basic realm=x",
    ];
    for challenge in challenges {
        let upstream = Upstream::new(format!("http://{}", impostor(Some(challenge)).await).as_str());
        let app = app_to(upstream, NegotiateLayer::with_source(own().require_mutual(true)));
        let answer = ask(&app, "/app/x").await;
        answer.failed(502, "BackendUnproven");
        assert!(!events().is_empty(), "{challenge}");
    }
}

#[tokio::test]
async fn the_proof_of_another_sign_in_proves_nothing() {
    let upstream = Upstream::new(format!("http://{}", impostor(None).await).as_str());
    let app = app_to(upstream, NegotiateLayer::with_source(own().require_mutual(true)));
    // Of the first token, it's the right proof.
    assert_eq!(ask(&app, "/app/x").await.text, "evil");
    ask(&app, "/app/x").await.failed(502, "BackendUnproven");
}

#[tokio::test]
async fn a_wrong_proof_is_refused_without_require_mutual_too() {
    let upstream = Upstream::new(format!("http://{}", impostor(Some("Negotiate YWJj")).await).as_str());
    let app = app_to(upstream, layer());
    ask(&app, "/app/x").await.failed(502, "BackendUnproven");
}

#[tokio::test]
async fn an_alias_without_a_principal_is_a_clear_event() {
    let app = app(NegotiateLayer::with_source(Negotiate::own("HTTP@alias.kit.test").unwrap()));
    events();
    ask(&app, "/app/krb/alias").await.failed(502, "CredentialsMissing");
    let events = events();
    assert!(events.contains("HTTP/alias.kit.test"), "{events}");
    assert!(events.contains("not found in Kerberos database"), "{events}");
    unseen("/krb/alias").await;
}

#[tokio::test]
async fn the_clients_host_never_picks_the_service() {
    let app = app_to(Upstream::new(&*origin()).host(HostPolicy::Preserve), layer());
    let log = KdcLog::now();
    for host in ["other.kit.test", "alias.kit.test", "localhost", "krbtgt"] {
        let request = Request::get("/app/krb/host").header("host", host).body(Body::empty()).unwrap();
        assert_eq!(send(&app, request).await.user(), FRONT);
    }
    let others = ["other.kit.test", "alias.kit.test"].map(|host| log.count("TGS_REQ", host));
    assert_eq!(others, [0, 0]);
}

/// Apache that derives its acceptor name from `Host` has a key for its own name only.
#[tokio::test]
async fn a_backend_that_derives_its_name_from_host_needs_host_policy_backend() {
    let preserve = app_to(Upstream::new(&*origin()).host(HostPolicy::Preserve), layer());
    let request = || Request::get("/app/krb-host/x").header("host", "front.example").body(Body::empty()).unwrap();
    send(&preserve, request()).await.failed(502, "CredentialsRefused");
    let apache = format!("127.0.0.1:{}", var("KIT_BACKEND_PORT"));
    let connector = service_fn(move |_: Uri| {
        let stream = TcpStream::connect(apache.clone());
        async { stream.await.map(TokioIo::new) }
    });
    let named = Client::builder("http://backend.kit.test").connector(connector);
    let own_host = app_to(Upstream::new(named).host(HostPolicy::Backend), layer());
    assert_eq!(send(&own_host, request()).await.user(), FRONT);
}

#[tokio::test]
async fn a_refusal_of_the_account_stays_in_front() {
    let app = app(layer());
    events();
    ask(&app, "/app/krb-alice/x").await.failed(502, "CredentialsRefused");
    let events = events();
    assert!(events.contains("ERROR") && events.contains("Negotiate"), "{events}");
    assert_eq!(accesses("/krb-alice/x", 1).await[0].status, "401");
}

#[tokio::test]
async fn passed_challenges_have_no_token() {
    let app = app(layer().pass_challenges(true));
    let answer = ask(&app, "/app/krb-alice/pass").await;
    assert_eq!(answer.status, 401);
    let challenges: Vec<_> = answer.headers.get_all("www-authenticate").iter().collect();
    assert!(challenges.iter().all(|challenge| *challenge == "Negotiate"), "{challenges:?}");
}

#[tokio::test]
async fn a_websocket_is_signed_in_and_keeps_its_connection() {
    let backend = TcpListener::bind(("127.0.0.1", var("KIT_WS_PORT").parse().unwrap())).await.unwrap();
    let served = tokio::spawn(async move {
        let mut wire = Wire::new(backend.accept().await.unwrap().0);
        let request = wire.message().await.unwrap();
        let accept = websocket::accept_of(request.field("sec-websocket-key").unwrap());
        let fields = format!("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n");
        let response = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
        wire.send(response.as_bytes()).await;
        let ping = wire.bytes(4).await;
        wire.send(&ping).await;
        assert!(wire.closed().await);
        request.field("x-remote-user").unwrap().to_owned()
    });
    let app = app(layer());
    let addr = front(app.clone()).await;
    let mut browser = client(addr).await;
    browser
        .send(
            b"GET /app/krb-ws/chat HTTP/1.1\r\nHost: front.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
    let switched = browser.message().await.unwrap();
    assert_eq!(switched.status(), 101, "{switched:?}");
    assert!(switched.field("www-authenticate").is_none(), "{switched:?}");
    browser.send(b"ping").await;
    assert_eq!(browser.bytes(4).await, b"ping");
    let during = ask(&app, "/app/krb/meanwhile").await.line("connection").to_owned();
    drop(browser);
    assert_eq!(within(served).await.unwrap(), FRONT);
    let after = ask(&app, "/app/krb/meanwhile").await.line("connection").to_owned();
    let tunnel = &accesses("/krb-ws/chat", 1).await[0].port;
    assert!(*tunnel != during && *tunnel != after);
}

/// A backend that sends the token of each request to Apache. It closes the next connection instead of a response if
/// `cut` is set.
async fn relay(path: &'static str, cut: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let mut wire = Wire::new(listener.accept().await.unwrap().0);
            let cut = cut.clone();
            tokio::spawn(async move {
                while let Some(request) = wire.message().await {
                    let status = to_apache(path, request.field("authorization").unwrap()).await.status();
                    if cut.swap(false, Ordering::SeqCst) {
                        break;
                    }
                    wire.send(format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
                }
            });
        }
    });
    addr
}

#[tokio::test]
async fn a_request_that_the_backend_has_read_is_not_sent_again() {
    let cut = Arc::new(AtomicBool::new(false));
    let upstream = Upstream::new(format!("http://{}", relay("/krb/relayed", cut.clone()).await).as_str());
    let app = app_to(upstream, layer());
    // Until the pool lets such requests use an idle connection.
    for pause in [1200, 20] {
        assert_eq!(ask(&app, "/app/x").await.status, 200);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    cut.store(true, Ordering::SeqCst);
    ask(&app, "/app/x").await.failed(502, "ConnectionClosed");
    assert_eq!(ask(&app, "/app/x").await.status, 200);
    let seen = accesses("/krb/relayed", 4).await;
    assert!(seen.len() == 4 && seen.iter().all(|access| access.status == "200"), "{seen:?}");
}

/// Apache closes connections that are idle for 20 ms, and each one after 5 requests, so many requests race with a
/// close.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_stale_connections_makes_no_replay() {
    let stale = format!("http://127.0.0.1:{}", var("KIT_STALE_PORT"));
    let app = app_to(Upstream::new(&*stale).host(HostPolicy::Backend), layer());
    let clients = (0..8u64).map(|client| {
        let app = app.clone();
        tokio::spawn(async move {
            let mut good = 0;
            for round in 0..40 {
                let answer = ask(&app, "/app/krb/stale").await;
                match answer.status.as_u16() {
                    200 => good += usize::from(answer.user() == FRONT),
                    _ => assert_eq!((answer.status.as_u16(), answer.kind()), (502, "ConnectionClosed"), "{answer:?}"),
                }
                tokio::time::sleep(Duration::from_millis((client * 7 + round * 3) % 30)).await;
            }
            good
        })
    });
    let mut good = 0;
    for client in clients.collect::<Vec<_>>() {
        good += within(client).await.unwrap();
    }
    assert!(good > 280, "{good} of 320");
    let log = std::fs::read_to_string(var("KIT_ERROR_LOG")).unwrap();
    assert!(!log.contains("replay"), "{log}");
    let refused = accesses("/krb/stale", 1).await.iter().filter(|access| access.status == "401").count();
    assert_eq!(refused, 0);
}

#[tokio::test]
async fn debug_output_has_no_token_and_no_keytab() {
    let negotiate = own();
    let printed = format!("{negotiate:?} {:?}", NegotiateLayer::with_source(negotiate.clone()));
    assert!(!printed.contains("YII") && !printed.contains("keytab"), "{printed}");
}
