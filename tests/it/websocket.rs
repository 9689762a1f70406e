//! WebSocket libraries on both sides, over every protocol of the client and every protocol and transport of the
//! backend.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::ws::{self, WebSocketUpgrade},
    http::{HeaderMap, Request},
    routing::any,
};
use futures_util::{SinkExt, StreamExt};
use hyper::{ext::Protocol, upgrade::Upgraded};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Message,
        client::IntoClientRequest,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};
use tower_reverse_proxy::{Backends, Client, ClientBuilder, RemoteUser, RemoteUserLayer, ReverseProxyLayer};

use crate::support::{front, http2, within};

/// A chat server: it sends the user's name first, echoes messages, and closes after `leave`.
fn chat() -> Router {
    let join = any(|headers: HeaderMap, upgrade: WebSocketUpgrade| async move {
        let user = headers.get("remote-user").map(|user| user.to_str().unwrap().to_owned()).unwrap_or_default();
        upgrade.protocols(["chat.v2"]).on_upgrade(|mut socket| async move {
            socket.send(user.into()).await.unwrap();
            while let Some(Ok(message)) = within(socket.recv()).await {
                match message {
                    ws::Message::Text(text) if text == "leave" => {
                        let frame = ws::CloseFrame { code: 4001, reason: "bye".into() };
                        socket.send(ws::Message::Close(Some(frame))).await.unwrap();
                    }
                    message @ (ws::Message::Text(_) | ws::Message::Binary(_)) => socket.send(message).await.unwrap(),
                    _ => {}
                }
            }
        })
    });
    Router::new().route("/chat/{room}", join)
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http2().enable_connect_protocol();
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(chat())).await;
}

async fn over_tcp() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    origin
}

/// The conversation of every client.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>) {
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("alice"));
    let large = vec![7; 200_000];
    for message in [Message::text("hello"), Message::text("é"), Message::binary(large), Message::binary(vec![])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.send(Message::Ping(b"still there".as_slice().into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong(b"still there".as_slice().into()));
    socket.send(Message::text("leave")).await.unwrap();
    let frame = CloseFrame { code: CloseCode::from(4001), reason: "bye".into() };
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Close(Some(frame)));
    while let Some(Ok(_)) = socket.next().await {}
}

async fn of_http1(addr: SocketAddr) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{addr}/chat/a%2Fb?x").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "chat.v1, chat.v2".parse().unwrap());
    let stream = TcpStream::connect(addr).await.unwrap();
    let (socket, response) = client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat.v2");
    socket
}

async fn of_http2(addr: SocketAddr) -> WebSocketStream<TokioIo<Upgraded>> {
    let mut request = Request::connect(format!("http://{addr}/chat/a%2Fb?x")).body(axum::body::Body::empty()).unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    request.headers_mut().insert("sec-websocket-protocol", "chat.v1, chat.v2".parse().unwrap());
    let response = within(http2(addr).await.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat.v2");
    let stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    WebSocketStream::from_raw_socket(stream, Role::Client, None).await
}

/// Both clients, with an HTTP/1.1 backend and an HTTP/2 one.
async fn all(client: impl Fn() -> ClientBuilder) {
    for to_http2 in [false, true] {
        let layer = ReverseProxyLayer::new(client().http2(to_http2)).upstream_layer(RemoteUserLayer::new());
        let app = Router::new().layer(layer).layer(axum::Extension(RemoteUser::from("alice")));
        let addr = front(app).await;
        converse(of_http1(addr).await).await;
        converse(of_http2(addr).await).await;
    }
}

#[tokio::test]
async fn websockets_work_over_tcp() {
    let origin = over_tcp().await;
    all(|| Client::builder(&*origin)).await;
}

/// Talks until the backend has closed. It's in flight until then.
async fn counted<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>, backends: &Backends) {
    assert_eq!(within(socket.next()).await.unwrap().unwrap(), Message::text(""));
    assert_eq!(backends.status()[0].in_flight(), 1);
    socket.send(Message::text("leave")).await.unwrap();
    while let Some(Ok(_)) = within(socket.next()).await {}
    let ended = async {
        while backends.status()[0].in_flight() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    within(ended).await;
}

#[tokio::test]
async fn websockets_over_every_protocol_count_until_their_end() {
    let origin = over_tcp().await;
    for to_http2 in [false, true] {
        let backends = Backends::builder([&*origin]).client(move |client| client.http2(to_http2)).build().unwrap();
        let addr = front(Router::new().layer(ReverseProxyLayer::balanced(&backends))).await;
        counted(of_http1(addr).await, &backends).await;
        counted(of_http2(addr).await, &backends).await;
        assert_eq!((backends.status()[0].requests(), backends.status()[0].faults()), (2, 0));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn websockets_work_over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chat.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    all(|| Client::builder(format!("unix:{}", path.display()))).await;
}

#[cfg(feature = "tls-ring")]
#[tokio::test]
async fn websockets_work_over_tls() {
    use std::sync::Arc;

    use tower_reverse_proxy::{
        Tls,
        rustls::{ServerConfig, crypto::ring},
    };

    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    // The backend prefers HTTP/2.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { serve(acceptor.accept(stream).await.unwrap()).await });
        }
    });
    let tls = Tls::with_ca(made.cert.pem()).unwrap();
    all(|| Client::builder(&*origin).tls(tls.clone())).await;
}
