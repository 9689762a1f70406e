//! A chat through the proxy: WebSockets need no option.
//!
//! ```sh
//! cargo run --example websocket
//! ```
#![allow(clippy::print_stdout)]

mod shared;

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
use tokio::sync::broadcast;
use tower_reverse_proxy::ReverseProxyLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The backend: each message of a client goes to all clients.
    let (messages, _) = broadcast::channel::<String>(64);
    let backend = shared::start(Router::new().route("/chat/socket", get(join)).with_state(messages)).await?;

    // The page is the app's own, the chat is the backend's.
    let app =
        Router::new().route("/", get(|| async { Html(PAGE) })).layer(ReverseProxyLayer::new(backend).prefix("/chat"));

    let listener = shared::listen().await?;
    println!("Open http://{} in two windows.", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

async fn join(State(messages): State<broadcast::Sender<String>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|socket| talk(socket, messages))
}

async fn talk(mut socket: WebSocket, messages: broadcast::Sender<String>) {
    let mut incoming = messages.subscribe();
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => drop(messages.send(text.to_string())),
                Some(Ok(_)) => {}
                _ => return,
            },
            text = incoming.recv() => {
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
<h1>Chat</h1>
<p>This page is the app's own. Messages go over a WebSocket, through the proxy, to the backend.</p>
<form><input placeholder="A message" autofocus></form>
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
