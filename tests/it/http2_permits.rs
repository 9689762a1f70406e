//! The permits and streams of HTTP/2 connections: neither a failed handshake nor a cancelled request keeps one.

use std::{
    future::{Future, pending, poll_fn},
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::Response,
    routing::any,
};
use http_body_util::{BodyExt, Channel};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::{sleep, timeout},
};
use tower::{ServiceExt, service_fn};
use tower_reverse_proxy::{Client, Error, ErrorKind};

use crate::support::{
    frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, STATUS_200, frame},
    http2_backends::{greet, read_frame},
    others_run,
    pipes::Pipe,
    within,
};

/// How the first connection fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Handshake {
    /// The connector returns an error.
    Refused,
    /// The connector never completes.
    Dialing,
    /// The backend closes the connection at once.
    Closed,
    /// The backend reads, and sends nothing.
    NoSettings,
    /// The backend sends SETTINGS in part, and then nothing.
    HalfSettings,
    /// The backend responds in HTTP/1.1.
    NotHttp2,
    /// The backend's SETTINGS allow no stream.
    NoStreams,
    /// The backend sends a GOAWAY behind its SETTINGS.
    GoAway,
    /// The backend breaks the protocol behind its SETTINGS.
    Violation,
    /// The backend closes the connection behind its SETTINGS.
    SettingsOnly,
}

/// A client with one permit, whose first connection fails and whose later ones serve an app, one stream at a time. With
/// it, the number of connections.
fn failing_first(origin: &str, first: Handshake) -> (Client, Arc<AtomicUsize>) {
    let (made, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = made.clone();
    let negotiates = origin.starts_with("https");
    let connector = service_fn(move |_| {
        let (number, open) = (counted.fetch_add(1, Ordering::SeqCst), open.clone());
        async move {
            match first {
                Handshake::Refused if number == 0 => return Err(io::ErrorKind::ConnectionRefused.into()),
                Handshake::Dialing if number == 0 => pending().await,
                _ => {}
            }
            let (ours, theirs) = Pipe::pair();
            tokio::spawn(async move {
                assert_eq!(open.fetch_add(1, Ordering::SeqCst), 0, "{first:?}: there is a connection already");
                match number {
                    0 => fail(theirs, first).await,
                    _ => serve(theirs, Router::new().fallback(async || "whole")).await,
                }
                open.fetch_sub(1, Ordering::SeqCst);
            });
            // The first one negotiates HTTP/1.1, where that is negotiated.
            Ok::<_, io::Error>(ours.negotiated_http2(negotiates && number > 0))
        }
    });
    let client = Client::builder(origin).connector(connector).http2(true).max_connections(1);
    (client.build().unwrap(), made)
}

async fn fail(mut stream: DuplexStream, how: Handshake) {
    match how {
        Handshake::Refused | Handshake::Dialing | Handshake::Closed => return,
        Handshake::NoSettings => {}
        Handshake::HalfSettings => stream.write_all(&[0, 0, 6, 4, 0]).await.unwrap(),
        Handshake::NotHttp2 => {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
        // SETTINGS_MAX_CONCURRENT_STREAMS of 0.
        Handshake::NoStreams => greet(&mut stream, &[0, 3, 0, 0, 0, 0]).await,
        Handshake::GoAway => {
            greet(&mut stream, &[]).await;
            let _ = stream.write_all(&frame(GOAWAY, 0, 0, &[0; 8])).await;
        }
        Handshake::Violation => {
            greet(&mut stream, &[]).await;
            let _ = stream.write_all(&frame(DATA, 0, 0, b"on no stream")).await;
        }
        Handshake::SettingsOnly => return greet(&mut stream, &[]).await,
    }
    // Until the proxy closes the connection.
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

async fn serve(stream: DuplexStream, app: Router) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http2().max_concurrent_streams(1);
    let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).await;
}

fn request(method: &str, path: &str) -> Request {
    Request::builder().method(method).uri(path).header("host", "front.example").body(Body::empty()).unwrap()
}

/// The body of the response, or the kind of the failure.
async fn outcome(client: &Client, method: &str) -> Result<Bytes, ErrorKind> {
    let response = within(client.clone().oneshot(request(method, "/x"))).await.map_err(|error| error.kind())?;
    let body: Result<_, Error> = within(response.into_body().collect()).await;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| error.kind())
}

const WHOLE: Result<Bytes, ErrorKind> = Ok(Bytes::from_static(b"whole"));

#[tokio::test(start_paused = true)]
async fn a_failed_handshake_releases_its_permit() {
    const PRIOR_KNOWLEDGE: &str = "http://backend.example";
    const NEGOTIATED: &str = "https://backend.example";
    for (origin, first, expected) in [
        (PRIOR_KNOWLEDGE, Handshake::Refused, Err(ErrorKind::Connect)),
        (PRIOR_KNOWLEDGE, Handshake::Dialing, Err(ErrorKind::ConnectTimeout)),
        (PRIOR_KNOWLEDGE, Handshake::Closed, Err(ErrorKind::Connect)),
        (PRIOR_KNOWLEDGE, Handshake::NoSettings, Err(ErrorKind::ConnectTimeout)),
        (PRIOR_KNOWLEDGE, Handshake::HalfSettings, Err(ErrorKind::ConnectTimeout)),
        (PRIOR_KNOWLEDGE, Handshake::NotHttp2, Err(ErrorKind::Connect)),
        (PRIOR_KNOWLEDGE, Handshake::NoStreams, Err(ErrorKind::ConnectTimeout)),
        (PRIOR_KNOWLEDGE, Handshake::Violation, Err(ErrorKind::Connect)),
        // Nothing of the request was sent, so that another connection carries it.
        (PRIOR_KNOWLEDGE, Handshake::GoAway, WHOLE),
        (PRIOR_KNOWLEDGE, Handshake::SettingsOnly, WHOLE),
        (NEGOTIATED, Handshake::Refused, Err(ErrorKind::Connect)),
        (NEGOTIATED, Handshake::Dialing, Err(ErrorKind::ConnectTimeout)),
        // The backend chose HTTP/1.1, which has no handshake.
        (NEGOTIATED, Handshake::Closed, Err(ErrorKind::ConnectionClosed)),
    ] {
        for method in ["GET", "POST"] {
            let (client, made) = failing_first(origin, first);
            assert_eq!(outcome(&client, method).await, expected, "{origin} {first:?} {method}");
            for _ in 0..3 {
                assert_eq!(outcome(&client, method).await, WHOLE, "{origin} {first:?} {method}");
            }
            assert_eq!(made.load(Ordering::SeqCst), 2, "{origin} {first:?} {method}");
        }
    }
}

/// A client with one permit, to a backend that allows one stream. The number of connections comes with it.
///
/// The connect and the backend's SETTINGS take a while. Of responses, `/never` doesn't begin, `/half` doesn't end, and
/// `/late` takes a while.
fn single() -> (Client, Arc<AtomicUsize>) {
    let half = async || {
        let (mut sender, body) = Channel::<Bytes>::new(1);
        tokio::spawn(async move {
            let _ = sender.send_data("half".into()).await;
            let () = pending().await;
        });
        Response::new(Body::new(body))
    };
    let late = async || {
        sleep(WHILE * 5).await;
        "whole"
    };
    let app = Router::new()
        .route("/never", any(async || pending::<()>().await))
        .route("/half", any(half))
        .route("/late", any(late))
        .fallback(async || "whole");
    let (made, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = made.clone();
    let connector = service_fn(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        let (open, app) = (open.clone(), app.clone());
        async move {
            sleep(WHILE).await;
            let (ours, theirs) = Pipe::pair();
            tokio::spawn(async move {
                assert_eq!(open.fetch_add(1, Ordering::SeqCst), 0, "there is a connection already");
                sleep(WHILE).await;
                serve(theirs, app).await;
                open.fetch_sub(1, Ordering::SeqCst);
            });
            Ok::<_, io::Error>(ours)
        }
    });
    let client = Client::builder("http://backend.example").connector(connector).http2(true).max_connections(1);
    (client.build().unwrap(), made)
}

const WHILE: Duration = Duration::from_millis(10);

/// Polls a future so often at the most, and drops it: at once, or when the clock reaches what it waits for.
async fn polled(times: usize, drops_at_once: bool, future: impl Future) -> bool {
    let (mut future, mut left) = (Box::pin(future), times);
    let last = poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending if left == 0 && drops_at_once => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    });
    // Less than the silence after which a connection counts as frozen.
    timeout(WHILE * 50, last).await.unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_exchange_releases_its_stream_and_its_permit() {
    // An exchange that completes takes four.
    const MOST_POLLS: usize = 8;
    for path in ["/x", "/never", "/half"] {
        for (method, is_warm, is_held, drops_at_once) in
            (0..16).map(|bits| (["GET", "POST"][bits & 1], bits & 2 > 0, bits & 4 > 0, bits & 8 > 0))
        {
            let mut completes = false;
            for polls in 0..MOST_POLLS {
                let case = format!("{method} {path} {is_warm} {is_held} {drops_at_once}: {polls} polls");
                let (client, made) = single();
                if is_warm {
                    assert_eq!(outcome(&client, "GET").await, WHOLE, "{case}");
                }
                // Another request has the only stream for a while.
                let held = is_held.then(|| tokio::spawn(client.clone().oneshot(request("GET", "/late"))));
                others_run().await;
                let exchange = client.clone().oneshot(request(method, path));
                completes =
                    polled(polls, drops_at_once, async { exchange.await.unwrap().into_body().collect().await }).await;
                if let Some(held) = held {
                    assert_eq!(within(held).await.unwrap().unwrap().status(), 200, "{case}");
                }
                for method in ["GET", "POST"] {
                    assert_eq!(outcome(&client, method).await, WHOLE, "{case}");
                }
                // A connect may be cancelled with its request.
                assert!(made.load(Ordering::SeqCst) <= 2, "{case}");
                if completes {
                    break;
                }
            }
            assert_eq!(completes, path == "/x", "{method} {path} {is_warm} {is_held} {drops_at_once}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_response_holds_no_stream_while_its_client_reads_nothing() {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let connector = service_fn(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {
            let (ours, mut theirs) = Pipe::pair();
            tokio::spawn(async move {
                // SETTINGS_MAX_CONCURRENT_STREAMS of 1.
                greet(&mut theirs, &[0, 3, 0, 0, 0, 1]).await;
                while let Some(received) = read_frame(&mut theirs).await {
                    let id = received.stream;
                    let reply = match received.kind {
                        HEADERS => [frame(HEADERS, END_HEADERS, id, STATUS_200), frame(DATA, END_STREAM, id, b"whole")]
                            .concat(),
                        _ => received.acknowledgement(),
                    };
                    theirs.write_all(&reply).await.unwrap();
                }
            });
            Ok::<_, io::Error>(ours)
        }
    });
    let client = Client::builder("http://backend.example").connector(connector).http2(true).max_connections(1);
    let client = client.build().unwrap();
    let mut unread = Vec::new();
    for _ in 0..5 {
        unread.push(within(client.clone().oneshot(request("GET", "/x"))).await.unwrap());
    }
    for response in unread {
        assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes(), "whole");
    }
    assert_eq!(made.load(Ordering::SeqCst), 1);
}
