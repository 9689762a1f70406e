//! A chat through the proxy: WebSockets need no setting.
//!
//! ```sh
//! cargo run --example websocket
//! ```
//!
//! Open the URL that it prints in two windows.

#![allow(clippy::print_stdout)]

use std::{error::Error, net::SocketAddr};

use axum::{
    Router,
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::{Html, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::broadcast};
use tower_reverse_proxy::ReverseProxyLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend = chat_server().await?;

    // The page is the app's own, the chat is the other server's: below /chat, and nothing more to say.
    let app = Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .layer(ReverseProxyLayer::new(format!("http://{backend}")).prefix("/chat"));

    let listener = match TcpListener::bind("127.0.0.1:3000").await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind("127.0.0.1:0").await?,
    };
    println!("open http://{} in two windows", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// The other server: tells everybody what anybody says.
async fn chat_server() -> Result<SocketAddr, Box<dyn Error>> {
    let (said, _) = broadcast::channel::<String>(64);
    let app = Router::new().route("/chat/socket", get(join)).with_state(said);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(addr)
}

async fn join(State(said): State<broadcast::Sender<String>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|socket| talk(socket, said))
}

async fn talk(mut socket: WebSocket, said: broadcast::Sender<String>) {
    let mut heard = said.subscribe();
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => drop(said.send(text.to_string())),
                Some(Ok(_)) => {}
                _ => return,
            },
            text = heard.recv() => {
                let Ok(text) = text else { return };
                if socket.send(Message::Text(text.into())).await.is_err() {
                    return;
                }
            }
        }
    }
}

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<title>Chat</title>
<style>body { font: 1.1rem/1.5 system-ui; max-width: 36rem; margin: 3rem auto; padding: 0 1rem } input { font: inherit; width: 100% }</style>
<h1>Chat</h1>
<p>This page is the app's own. What is said goes over a WebSocket, through the proxy, to another server.</p>
<form><input placeholder="Say something" autofocus></form>
<ul></ul>
<script>
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/chat/socket");
  const show = text => document.querySelector("ul").prepend(Object.assign(document.createElement("li"), { textContent: text }));
  socket.onopen = () => show("connected");
  socket.onmessage = event => show(event.data);
  socket.onclose = () => show("closed");
  document.querySelector("form").onsubmit = event => {
    event.preventDefault();
    socket.send(event.target[0].value);
    event.target.reset();
  };
</script>
"#;
