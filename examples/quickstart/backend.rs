//! The backend: the legacy site.

use std::time::Duration;

use axum::{
    Form, Router,
    body::{Body, Bytes},
    extract::ws::{Message, WebSocket, WebSocketUpgrade},
    http::{HeaderMap, StatusCode, Uri, header::SET_COOKIE},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use http_body_util::channel::Channel;
use serde::Deserialize;

use super::page::{escape, page};

pub(crate) fn backend(origin: &str) -> Router {
    // Old servers like to redirect to an absolute URL of their own, which a visitor of the front can't or shouldn't reach.
    let (start, landed) = (format!("{origin}/mydir/"), format!("{origin}/mydir/landed"));
    let sent_to = escape(&landed);
    Router::new()
        .route("/mydir", get(|| async move { Redirect::to(&start) }))
        .route("/mydir/", get(start_page))
        .route("/mydir/request", get(request))
        .route("/mydir/redirect", get(|| async move { Redirect::to(&landed) }))
        .route("/mydir/landed", get(|| landed_page(sent_to)))
        .route("/mydir/form", get(form).post(form_sent))
        .route("/mydir/cookie", get(cookie))
        .route("/mydir/stream", get(stream))
        .route("/mydir/websocket", get(websocket))
        .route("/mydir/echo", get(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, legacy_page("Not found", "The backend has no such page.", "")) })
}

async fn start_page() -> Html<String> {
    legacy_page("The legacy site", "This is the backend's start page; its links are as the backend wrote them.", "")
}

async fn request(uri: Uri, headers: HeaderMap) -> Html<String> {
    let field = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let user = field("authorization").and_then(|value| {
        let credentials = BASE64_STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
        let (user, _password) = str::from_utf8(&credentials).ok()?.split_once(':')?;
        Some(format!("Basic, user {user}, the password isn't shown"))
    });
    let rows = [
        ("Path and query", Some(uri.to_string()), "byte for byte as the browser sent them"),
        ("Remote-User", field("remote-user"), "who is signed in at the front; never the client's word"),
        ("Authorization", user, "the same user, and a password that only the two servers know"),
        ("Cookie", field("cookie"), "the legacy site's own; the front's session isn't among them"),
        ("Host", field("host"), "the front's, so that absolute links lead there"),
        (
            "X-Forwarded-For",
            field("x-forwarded-for"),
            "the visitor's address; the backend sees a connection of the front's",
        ),
        ("X-Forwarded-Host", field("x-forwarded-host"), "the front's name"),
        ("X-Forwarded-Proto", field("x-forwarded-proto"), "how visitors reach the front"),
    ]
    .map(|(name, value, why)| {
        let value = value.map_or("<i>not sent</i>".to_owned(), |value| format!("<code>{}</code>", escape(&value)));
        format!("<tr><th>{name}<td>{value}<small>{why}</small>")
    });
    let table = format!("<table>{}</table>", rows.concat());
    legacy_page(
        "The request",
        "This is your request as it arrived at the backend. Signed in, it has your name in it.",
        &table,
    )
}

async fn landed_page(sent_to: String) -> Html<String> {
    let body = format!(
        "<p>The backend sent <code>Location: {sent_to}</code>. The proxy made <code>/mydir/landed</code> of it: look at \
         the address bar. A redirect to any other site passes as it is."
    );
    legacy_page("Redirected", "The backend sent you to its own address, and you are still at the front.", &body)
}

#[derive(Deserialize)]
struct Note {
    note: String,
}

const FORM: &str = "<form method=post><label>A note: <input name=note value='5 &lt; 6, &amp;c.'></label> \
                    <button>Send</button></form>";

async fn form() -> Html<String> {
    legacy_page("A form", "What you enter is sent to the backend with a POST.", FORM)
}

async fn form_sent(Form(form): Form<Note>) -> Html<String> {
    let body = format!("<p>You entered: <b>{}</b></p>{FORM}", escape(&form.note));
    legacy_page("A form", "The backend got your POST, and shows what was in it.", &body)
}

async fn cookie(headers: HeaderMap) -> Response {
    let cookies = headers.get("cookie").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let visits = cookies.split("; ").find_map(|cookie| cookie.strip_prefix("visits=")?.parse::<u32>().ok());
    let visits = visits.unwrap_or_default().saturating_add(1);
    // For itself: a browser that asked another host would drop it.
    let set = format!("visits={visits}; Domain=127.0.0.1; Path=/mydir");
    let body = format!(
        "<p>This is your visit number <b>{visits}</b>; reload for the next one.\
         <p>The backend sent <code>Set-Cookie: {set}</code>. The proxy removes a <code>Domain</code> that names the backend, \
         so that the cookie is the front's."
    );
    let page = legacy_page("A cookie", "The backend counts your visits in a cookie of its own.", &body);
    ([(SET_COOKIE, set)], page).into_response()
}

async fn stream() -> Html<Body> {
    let Html(page) = legacy_page(
        "A stream",
        "The backend writes a line every half a second; a proxy that held the answer back would show all ten at once.",
        "<ul><!-- lines --></ul>",
    );
    let (mut lines, body) = Channel::<Bytes>::new(1);
    tokio::spawn(async move {
        let (head, tail) = page.split_once("<!-- lines -->").unwrap_or_default();
        // Sending fails when the visitor has left: the proxy closes its connection to the backend too.
        lines.send_data(head.to_owned().into()).await?;
        for line in 1..=10 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            lines.send_data(format!("<li>line {line} of 10\n").into()).await?;
        }
        lines.send_data(tail.to_owned().into()).await
    });
    Html(Body::new(body))
}

async fn websocket() -> Html<String> {
    let body =
        "<form id=talk><label>A message: <input value=hello></label> <button>Send</button></form><ul id=log></ul>
        <script>
        const log = text => document.getElementById('log').append(
            Object.assign(document.createElement('li'), { textContent: text }));
        const socket = new WebSocket(location.origin.replace(/^http/, 'ws') + '/mydir/echo');
        socket.onopen = () => log('connected');
        socket.onmessage = event => log('the backend: ' + event.data);
        socket.onclose = () => log('closed');
        document.getElementById('talk').onsubmit = event => {
            event.preventDefault();
            socket.send(event.target[0].value);
        };
        </script>";
    legacy_page("A WebSocket", "The backend echoes each message. The proxy needs no setting for it.", body)
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Text(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}

fn legacy_page(title: &str, subtitle: &str, body: &str) -> Html<String> {
    let links = "<nav><a href=/mydir/>Start</a> <a href='/mydir/request?a=1&amp;b=%2F'>Request</a> \
                 <a href=/mydir/redirect>Redirect</a> <a href=/mydir/form>Form</a> <a href=/mydir/cookie>Cookie</a> \
                 <a href=/mydir/stream>Stream</a> <a href=/mydir/websocket>WebSocket</a> \
                 <a href=/>Back to the app</a></nav>";
    page("backend", title, subtitle, &format!("{body}{links}"))
}
