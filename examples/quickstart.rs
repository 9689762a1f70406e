//! The whole crate in a minute, in a browser: no setting, no other program.
//!
//! ```sh
//! cargo run --example quickstart
//! ```
//!
//! Two web servers run in this one process. The *front* is an axum app with a home page and a sign-in. The *backend* stands
//! for an old site that knows nothing of them. The front shows it as its own directory `/mydir`.
#![allow(clippy::print_stdout)]

use std::{error::Error, net::SocketAddr, time::Duration};

use axum::{
    Form, Router,
    body::{Body, Bytes},
    extract::{Extension, Request},
    http::{HeaderMap, StatusCode, Uri, uri::Scheme},
    middleware::{Next, from_fn},
    response::{Html, Redirect, Response},
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use http_body_util::channel::Channel;
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_reverse_proxy::{BasicAuthLayer, RemoteUser, RemoteUserLayer, ReverseProxyLayer, TraceRedirectLayer};
use tower_sessions::{MemoryStore, Session, SessionManagerLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Without a setting, show what this crate has to say: redirects and failures.
    tracing_subscriber::fmt().without_time().with_env_filter("tower_reverse_proxy=info").init();

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let backend = backend(&origin);
    tokio::spawn(async move { axum::serve(listener, backend).await });

    let listener = match TcpListener::bind("127.0.0.1:3000").await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind("127.0.0.1:0").await?,
    };
    let url = format!("http://{}", listener.local_addr()?);
    println!("Open {url} in a browser. Redirects of the backend are traced here.");
    // With connect info, the proxy knows the visitor's address and tells it to the backend.
    axum::serve(listener, front(&url, &origin).into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

// ---- The front: your app ----

fn front(url: &str, origin: &str) -> Router {
    let legacy = ReverseProxyLayer::new(origin)
        // Both sides have the same layout: /mydir/x is /mydir/x at the backend too, so that no link has to be rewritten.
        .prefix("/mydir")
        // A request doesn't tell how visitors reach the front: with or without TLS.
        .forwarded_proto(Scheme::HTTP)
        // From here on nothing that a client sends can change what the layers say.
        .upstream_layer(RemoteUserLayer::new())
        .upstream_layer(BasicAuthLayer::remote_user("s3cret"))
        .upstream_layer(TraceRedirectLayer::new());

    let (url, origin) = (url.to_owned(), origin.to_owned());
    Router::new()
        .route("/", get(|user| home(user, url, origin)))
        .route("/sign-in", post(sign_in))
        .route("/sign-out", post(sign_out))
        .layer(legacy)
        // A layer that is added later is asked earlier: the proxy learns here who is signed in.
        .layer(from_fn(who_is_it))
        // By default the cookie is for https alone, and this example has none.
        .layer(SessionManagerLayer::new(MemoryStore::default()).with_secure(false))
}

/// Hands the signed-in user on: to the own pages, and to the layers of the proxy.
async fn who_is_it(session: Session, mut request: Request, next: Next) -> Result<Response, StatusCode> {
    if let Some(name) = session.get::<String>("user").await.map_err(broken)? {
        request.extensions_mut().insert(RemoteUser::from(name));
    }
    Ok(next.run(request).await)
}

async fn home(user: Option<Extension<RemoteUser>>, url: String, origin: String) -> Html<String> {
    let sign_in = match user {
        Some(Extension(user)) => format!(
            "<form method=post action=/sign-out>You are signed in as <b>{}</b>. <button>Sign out</button></form>",
            escape(user.as_str())
        ),
        None => "<form method=post action=/sign-in>Sign in with any name: <input name=name value=alice required> \
                 <button>Sign in</button></form>"
            .to_owned(),
    };
    let body = format!(
        "{sign_in}<h2>What to click, and what to look at</h2>
        <ul>
        <li><a href='/mydir/request?a=1&amp;b=%2F'>The request</a>: what the backend gets. Path and query arrive as they
            are. Come back, sign in, look again: now the backend knows your name.
        <li><a href=/mydir/redirect>A redirect</a>: the backend sends you to its own address, and still you stay here.
            The terminal shows where it wanted to send you.
        <li><a href=/mydir/form>A form</a>: what you type passes through the proxy, and comes back.
        <li><a href=/mydir/stream>A stream</a>: each line is here as soon as the backend has written it.
        </ul>
        <h2>Try to be somebody else</h2>
        <p>The backend believes <code>Remote-User</code>, so a client must not be able to say it. This one tries, and there
        is no <code>root</code> in the page that it gets:
        <pre>curl -H 'Remote-User: root' -u root:guess {url}/mydir/request</pre>
        <p>Or sign in as <code>a:b</code>. With Basic credentials the backend would take you for <code>a</code>, so the
        proxy refuses to ask it: 403."
    );
    let says = format!(
        "This page is a route of the app. All below <code>/mydir/</code> comes from another web server, \
         <code>{origin}</code>, and looks like a directory of this one."
    );
    page("front", "One site out of two", &says, &body)
}

#[derive(Deserialize)]
struct SignIn {
    name: String,
}

async fn sign_in(session: Session, Form(form): Form<SignIn>) -> Result<Redirect, StatusCode> {
    session.cycle_id().await.map_err(broken)?;
    session.insert("user", form.name).await.map_err(broken)?;
    Ok(Redirect::to("/"))
}

async fn sign_out(session: Session) -> Result<Redirect, StatusCode> {
    session.flush().await.map_err(broken)?;
    Ok(Redirect::to("/"))
}

fn broken(_: tower_sessions::session::Error) -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

// ---- The backend: the legacy site ----

fn backend(origin: &str) -> Router {
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
        .route("/mydir/stream", get(stream))
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
        "<p>The backend said <code>Location: {sent_to}</code>. The proxy made <code>/mydir/landed</code> of it: look at \
         the address bar. A redirect to any other site passes as it is."
    );
    legacy_page("Redirected", "The backend sent you to its own address, and you are still at the front.", &body)
}

#[derive(Deserialize)]
struct Note {
    note: String,
}

const FORM: &str = "<form method=post>A note: <input name=note value='5 &lt; 6, &amp;c.'> <button>Send</button></form>";

async fn form() -> Html<String> {
    legacy_page("A form", "What you enter is sent to the backend with a POST.", FORM)
}

async fn form_sent(Form(form): Form<Note>) -> Html<String> {
    let body = format!("<p>You entered: <b>{}</b></p>{FORM}", escape(&form.note));
    legacy_page("A form", "The backend got your POST, and shows what was in it.", &body)
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

fn legacy_page(title: &str, says: &str, body: &str) -> Html<String> {
    let links = "<nav><a href=/mydir/>Start</a> <a href='/mydir/request?a=1&amp;b=%2F'>Request</a> \
                 <a href=/mydir/redirect>Redirect</a> <a href=/mydir/form>Form</a> <a href=/mydir/stream>Stream</a> \
                 <a href=/>Back to the app</a></nav>";
    page("backend", title, says, &format!("{body}{links}"))
}

// ---- The look, shared by both ----

/// A page, in the colour of the site that made it. `title`, `says` and `body` are HTML.
fn page(site: &str, title: &str, says: &str, body: &str) -> Html<String> {
    Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>{title}</title><style>{CSS}</style>\
         <body class={site}><header>Made by the {site}</header><main><h1>{title}</h1><p class=says>{says}</p>{body}</main>"
    ))
}

const CSS: &str = "
    body { margin: 0; font: 17px/1.5 system-ui, sans-serif; color: #1d2433; background: #f4f5f8; --colour: #2456c7 }
    body.backend { --colour: #b4530a }
    header { padding: .5rem 1.5rem; color: #fff; background: var(--colour); font-weight: 600 }
    main { max-width: 44rem; margin: 2rem auto; padding: 1.5rem 2rem; background: #fff; border-radius: .6rem;
        border: 1px solid #dfe2ea }
    h1 { margin: 0; font-size: 1.7rem } h2 { margin: 2rem 0 .5rem; font-size: 1.15rem }
    .says { margin: .3rem 0 1.5rem; color: #545d70 }
    li { margin: .4rem 0 } a { color: var(--colour) }
    code, pre { font: .9em ui-monospace, monospace; background: #eff1f5; border-radius: .3rem; padding: .1em .3em }
    pre { padding: .8rem; white-space: pre-wrap }
    table { border-collapse: collapse; width: 100% }
    th, td { text-align: left; vertical-align: top; padding: .5rem 0; border-top: 1px solid #dfe2ea }
    th { padding-right: 1.5rem; white-space: nowrap } td { width: 100% } small { display: block; color: #545d70 }
    form { padding: 1rem; background: #f4f5f8; border-radius: .4rem }
    input, button { font: inherit; padding: .25rem .6rem; border: 1px solid #b9bfcc; border-radius: .3rem }
    button { color: #fff; background: var(--colour); border-color: var(--colour); cursor: pointer }
    nav { margin-top: 2rem; padding-top: 1rem; border-top: 1px solid #dfe2ea } nav a { margin-right: 1rem }";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
