//! Responses, as the client receives them.

use std::sync::Arc;

use axum::{Router, body::Body, extract::Request, http::Version};
use http_body_util::BodyExt;
use tokio::sync::Notify;
use tower_reverse_proxy::{Client, ReverseProxyLayer};

use crate::support::{
    Message, answering, ask, backend, client, closing, front, get, http2, http2_get, mounts, recording, within,
};

/// `/mydir` belongs to the backend.
fn app(origin: &str) -> Router {
    Router::new().layer(layer(origin))
}

fn layer(origin: &str) -> ReverseProxyLayer {
    ReverseProxyLayer::new(origin).prefix("/mydir").via("front")
}

#[tokio::test]
async fn a_response_is_forwarded_with_the_documented_changes_only() {
    let origin = answering(
        "HTTP/1.1 200 OK\r\nDate: Wed, 01 Jan 2020 00:00:00 GMT\r\nServer: b\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let answer = get(front(app(&origin)).await, "/mydir/x", "").await;
    let mut lines: Vec<_> = answer.head.trim_end().lines().collect();
    lines.sort_unstable();
    let expected = [
        "HTTP/1.1 200 OK",
        "content-length: 2",
        "date: Wed, 01 Jan 2020 00:00:00 GMT",
        "server: b",
        "via: 1.1 front",
        "x-a: 1",
    ];
    assert_eq!(lines, expected);
    assert_eq!(answer.text(), "ok");
}

#[tokio::test]
async fn status_and_reason_phrase_are_forwarded_unchanged() {
    for line in
        ["200 Everything Fine", "299 Whatever You Like", "404 Gone Fishing", "418 Teapot", "503 Back In A Minute"]
    {
        let origin = answering(format!("HTTP/1.1 {line}\r\nContent-Length: 2\r\n\r\nok")).await;
        let answer = get(front(app(&origin)).await, "/mydir/x", "").await;
        assert_eq!(answer.start_line(), format!("HTTP/1.1 {line}"));
        assert_eq!(answer.text(), "ok");
    }
}

#[tokio::test]
async fn set_cookie_lines_stay_separate_and_in_order() {
    let cookies = ["b=2; Expires=Wed, 01 Jan 2031 00:00:00 GMT", "a=1", "b=3; Path=/mydir; Domain=front.example"];
    let fields: String = cookies.iter().map(|cookie| format!("Set-Cookie: {cookie}\r\nX-Between: 1\r\n")).collect();
    let origin = answering(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n")).await;
    let addr = front(app(&origin)).await;
    assert_eq!(get(addr, "/mydir/x", "").await.all("set-cookie"), cookies);
    let answer = http2_get(addr, "/mydir/x").await;
    assert_eq!(answer.headers().get_all("set-cookie").iter().collect::<Vec<_>>(), cookies);
}

#[tokio::test]
async fn non_ascii_octets_of_a_response_are_forwarded_unchanged() {
    let origin = answering(b"HTTP/1.1 200 OK\r\nX-Latin: caf\xe9 \xff\r\nX-Empty:\r\nContent-Length: 0\r\n\r\n").await;
    let answer = get(front(app(&origin)).await, "/mydir/x", "").await;
    assert_eq!(answer.field("x-latin"), Some("caf\u{e9} \u{ff}"));
    assert_eq!(answer.field("x-empty"), Some(""));
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_response_are_removed() {
    let origin = answering(
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nConnection: X-Hop-2\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Hop: 1\r\nX-Hop-2: 1\r\n\
         X-Stay: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    )
    .await;
    let addr = front(app(&origin)).await;
    let answer = get(addr, "/mydir/x", "").await;
    let gone = ["connection", "keep-alive", "proxy-connection", "proxy-authenticate", "upgrade", "x-hop", "x-hop-2"];
    for name in gone {
        assert_eq!(answer.field(name), None, "{name}");
    }
    assert_eq!(answer.field("x-stay"), Some("1"));
    assert_eq!(answer.text(), "ok");

    let answer = http2_get(addr, "/mydir/x").await;
    for name in gone.into_iter().chain(["transfer-encoding"]) {
        assert!(!answer.headers().contains_key(name), "{name} over HTTP/2");
    }
    assert_eq!(answer.headers()["via"], "1.1 front");
    assert_eq!(answer.into_body().to_bytes(), "ok");
}

#[tokio::test]
async fn a_closing_backend_does_not_close_the_client_connection() {
    for response in [
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nconnection: Close, X-Hop\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nok",
        "HTTP/1.0 200 OK\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    ] {
        let mut wire = client(front(app(&closing(response).await)).await).await;
        for _ in 0..2 {
            wire.send(b"GET /mydir/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let answer = wire.message().await.unwrap_or_else(|| panic!("closed after {response}"));
            assert_eq!(answer.start_line(), "HTTP/1.1 200 OK", "{response}");
            assert_eq!(answer.field("connection"), None, "{response}");
            assert!(answer.complete && answer.text() == "ok", "{response}");
        }
    }
}

#[tokio::test]
async fn a_response_has_one_framing() {
    let lengths =
        |answer: &Message| (answer.all("content-length").join("|"), answer.all("transfer-encoding").join("|"));
    for (fields, body, framing) in [
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", ("", "chunked")),
        ("Content-Length: 5\r\nContent-Length: 5", "hello", ("5", "")),
        ("Content-Length: 5, 5", "hello", ("5", "")),
        ("Content-Length: 5", "hello", ("5", "")),
    ] {
        let origin = answering(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}")).await;
        let mut wire = client(front(app(&origin)).await).await;
        for _ in 0..2 {
            wire.send(b"GET /mydir/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let answer = wire.message().await.unwrap();
            assert_eq!(lengths(&answer), (framing.0.to_owned(), framing.1.to_owned()), "{fields}");
            assert!(answer.complete && answer.text() == "hello", "{fields}");
        }
    }
}

#[tokio::test]
async fn a_response_with_two_framings_is_refused() {
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 15",
        "Content-Length: 5\r\nContent-Length: 6",
    ] {
        let origin = answering(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n")).await;
        let answer = get(front(app(&origin)).await, "/mydir/x", "").await;
        assert_eq!((answer.status(), answer.field("transfer-encoding")), (502, None), "{fields}");
        assert!(!answer.text().contains("hello"), "{fields}");
    }
}

#[tokio::test]
async fn a_response_with_an_unsupported_transfer_coding_is_refused() {
    for coding in ["gzip, chunked", "chunked, chunked", "identity, chunked"] {
        let origin =
            answering(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n5\r\nhello\r\n0\r\n\r\n")).await;
        let answer = get(front(app(&origin)).await, "/mydir/x", "").await;
        assert_eq!((answer.status(), answer.field("transfer-encoding")), (502, None), "{coding}");
        assert!(!answer.text().contains("hello"), "{coding}");
    }
}

#[tokio::test]
async fn a_bodiless_response_keeps_the_content_length_of_the_backend() {
    for (method, response, status, length) in [
        ("HEAD", "200 OK\r\nContent-Length: 1234", 200, Some("1234")),
        ("HEAD", "200 OK\r\nX-A: b", 200, None),
        ("HEAD", "404 Not Found\r\nContent-Length: 9", 404, Some("9")),
        ("GET", "204 No Content", 204, None),
        // hyper's server sends no Content-Length with a 304.
        ("GET", "304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 500", 304, None),
        ("GET", "304 Not Modified\r\nETag: \"x\"", 304, None),
        ("GET", "200 OK\r\nContent-Length: 0", 200, Some("0")),
    ] {
        let origin = answering(format!("HTTP/1.1 {response}\r\n\r\n")).await;
        for (mount, addr) in mounts(&origin).await {
            let mut wire = client(addr).await;
            // Twice: if the end of the first response were misread, the second would be part of it.
            for _ in 0..2 {
                wire.send(format!("{method} /mydir/x HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
                let answer = wire.message().await.unwrap();
                assert_eq!(answer.status(), status, "{mount}: {method} {response}");
                assert_eq!(answer.field("content-length"), length, "{mount}: {method} {response}");
                assert_eq!(answer.field("transfer-encoding"), None, "{mount}: {method} {response}");
            }
        }
    }
}

#[tokio::test]
async fn head_over_http2_keeps_its_content_length() {
    let origin = answering("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await;
    let request = Request::head("http://front.example/mydir/x").body(Body::empty()).unwrap();
    let answer = within(http2(front(app(&origin)).await).await.send_request(request)).await.unwrap();
    assert_eq!(answer.headers()["content-length"], "1234");
    assert!(within(answer.into_body().collect()).await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn partial_content_is_forwarded_unchanged() {
    let (origin, mut requests) =
        recording("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1-2/10\r\nContent-Length: 2\r\n\r\n12").await;
    let answer = get(front(app(&origin)).await, "/mydir/x", "Range: bytes=1-2\r\nIf-Range: \"x\"\r\n").await;
    assert_eq!((answer.status(), answer.field("content-range")), (206, Some("bytes 1-2/10")));
    assert_eq!(answer.text(), "12");
    let request = within(requests.recv()).await.unwrap();
    assert_eq!((request.field("range"), request.field("if-range")), (Some("bytes=1-2"), Some("\"x\"")));
}

#[tokio::test]
async fn interim_responses_do_not_replace_the_final_response() {
    for interim in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
    ] {
        let origin = answering(format!("{interim}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).await;
        let answer = get(front(app(&origin)).await, "/mydir/x", "").await;
        assert_eq!((answer.status(), &*answer.text()), (200, "ok"), "{interim}");
        assert_eq!(answer.field("link"), None, "{interim}");
    }
}

#[tokio::test]
async fn a_close_delimited_body_is_forwarded_complete() {
    let answer = get(front(app(&closing("HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nhello").await)).await, "/mydir/x", "").await;
    assert_eq!(answer.field("transfer-encoding"), Some("chunked"));
    assert!(answer.complete && answer.text() == "hello");
}

#[tokio::test]
async fn an_http_1_0_client_gets_no_chunked_body() {
    let origin = answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
    let mut wire = client(front(app(&origin)).await).await;
    wire.send(b"GET /mydir/x HTTP/1.0\r\nHost: a\r\n\r\n").await;
    let answer = wire.message().await.unwrap();
    assert_eq!((answer.field("transfer-encoding"), &*answer.text()), (None, "hello"));
}

const WITH_TRAILERS: &str = "HTTP/1.1 200 OK\r\nTrailer: X-Sum, X-More\r\nTransfer-Encoding: chunked\r\n\r\n\
                             5\r\nhello\r\n0\r\nX-Sum: 5\r\nX-More: caf\u{e9}\r\n\r\n";

#[tokio::test]
async fn trailers_reach_a_client_that_accepts_them() {
    let addr = front(app(&answering(WITH_TRAILERS).await)).await;
    let answer = get(addr, "/mydir/x", "Connection: TE\r\nTE: trailers\r\n").await;
    assert_eq!(answer.field("trailer"), Some("X-Sum, X-More"));
    assert_eq!(answer.text(), "hello");
    assert_eq!(answer.trailers, "x-sum: 5\r\nx-more: caf\u{c3}\u{a9}\r\n");

    let answer = get(addr, "/mydir/x", "").await;
    assert_eq!((&*answer.text(), &*answer.trailers), ("hello", ""), "the client doesn't accept trailers");

    let answer = http2_get(addr, "/mydir/x").await;
    assert_eq!(answer.version(), Version::HTTP_2);
    assert_eq!(answer.body().trailers().unwrap()["x-sum"], "5");
    assert_eq!(answer.into_body().to_bytes(), "hello");
}

#[tokio::test]
async fn a_response_is_streamed() {
    for head in
        ["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n"]
    {
        let chunked = head.contains("chunked");
        let (first, later) =
            if chunked { ("5\r\nfirst\r\n", "5\r\nlater\r\n0\r\n\r\n") } else { ("first89012", "later89012") };
        let go_on = Arc::new(Notify::new());
        let wait = go_on.clone();
        let origin = backend(move |mut wire| {
            let wait = wait.clone();
            async move {
                wire.message().await;
                wire.send(head.as_bytes()).await;
                wire.send(first.as_bytes()).await;
                wait.notified().await;
                wire.send(later.as_bytes()).await;
            }
        })
        .await;
        let mut wire = client(front(app(&origin)).await).await;
        wire.send(b"GET /mydir/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        wire.head().await.unwrap();
        // The second part is sent after the first has arrived.
        assert_eq!(wire.bytes(first.len()).await, first.as_bytes());
        go_on.notify_one();
        assert_eq!(wire.bytes(later.len()).await, later.as_bytes());
    }
}

#[tokio::test]
async fn small_chunks_that_arrive_together_are_forwarded_as_one() {
    let head = "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n";
    // Trailers and the last chunk follow the data.
    for (end, arrives) in [("0\r\n\r\n", "0\r\n\r\n"), ("0\r\nX-Sum: 3\r\n\r\n", "0\r\nx-sum: 3\r\n\r\n")] {
        let origin = answering(format!("{head}1\r\na\r\n1\r\nb\r\n1\r\nc\r\n{end}")).await;
        let mut wire = client(front(app(&origin)).await).await;
        wire.send(b"GET /mydir/x HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: trailers\r\n\r\n").await;
        assert!(wire.head().await.unwrap().contains("transfer-encoding: chunked"));
        assert_eq!(wire.chunk().await.unwrap(), b"abc");
        assert_eq!(wire.bytes(arrives.len()).await, arrives.as_bytes());
    }
}

#[tokio::test]
async fn a_response_head_is_forwarded_before_its_body() {
    let go_on = Arc::new(Notify::new());
    let wait = go_on.clone();
    let origin = backend(move |mut wire| {
        let wait = wait.clone();
        async move {
            wire.message().await;
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            wait.notified().await;
            wire.send(b"0\r\n\r\n").await;
        }
    })
    .await;
    let mut wire = client(front(app(&origin)).await).await;
    wire.send(b"GET /mydir/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200 OK\r\n"));
    go_on.notify_one();
    assert_eq!(wire.bytes(5).await, b"0\r\n\r\n");
}

#[tokio::test]
async fn via_of_the_response_has_the_version_of_the_backend() {
    for (version, via) in [("1.1", "1.1 first, 1.1 front"), ("1.0", "1.1 first, 1.0 front")] {
        let origin = closing(match version {
            "1.0" => "HTTP/1.0 200 OK\r\nVia: 1.1 first\r\nContent-Length: 0\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nVia: 1.1 first\r\nContent-Length: 0\r\n\r\n",
        })
        .await;
        let answer = get(front(app(&origin)).await, "/mydir/x", "").await;
        assert_eq!(answer.all("via").join(", "), via);
    }
    let origin = answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let silent = front(Router::new().layer(layer(&origin).via(None))).await;
    assert_eq!(get(silent, "/mydir/x", "").await.field("via"), None);
}

#[tokio::test]
async fn the_names_of_request_fields_are_in_title_case_on_request() {
    let (origin, mut requests) = recording("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    for (title_case, names) in [
        (true, ["X-Own-Name: 1", "Transfer-Encoding: chunked"]),
        (false, ["x-own-name: 1", "transfer-encoding: chunked"]),
    ] {
        let client = Client::builder(&origin).title_case_headers(title_case);
        let addr = front(Router::new().layer(ReverseProxyLayer::new(client).prefix("/mydir"))).await;
        let request = "POST /mydir/x HTTP/1.1\r\nHost: a\r\nx-OWN-name: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
        assert_eq!(ask(addr, request).await.text(), "ok");
        let got = within(requests.recv()).await.unwrap();
        for name in names {
            assert!(got.head.contains(&format!("\r\n{name}\r\n")), "{}", got.head);
        }
        assert_eq!(got.body, b"a");
    }
}
