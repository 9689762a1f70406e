//! The whole crate in a minute, in a browser: no setting, no other program.
//!
//! ```sh
//! cargo run --example quickstart
//! ```
//!
//! Two web servers run in this one process. The *front* is an axum app with a home page and a sign-in. The *backend* (see
//! `backend.rs`) stands for an old site without either. The front shows it as its own directory `/mydir`.
#![allow(clippy::print_stdout)]

mod backend;
mod page;

use std::{error::Error, io::IsTerminal, net::SocketAddr};

use axum::{
    Form, Router,
    extract::{Extension, Request},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{Next, from_fn},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_reverse_proxy::{
    BasicAuthLayer, ErrorKind, Failure, Forwarded, RemoteUser, RemoteUserLayer, ReverseProxyLayer, TraceRedirectLayer,
};
use tower_sessions::{MemoryStore, Session, SessionManagerLayer};

use self::page::{escape, page};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Without a setting, show this crate's events: redirects and failures.
    tracing_subscriber::fmt()
        .without_time()
        .with_ansi(std::io::stdout().is_terminal())
        .with_env_filter("tower_reverse_proxy=info")
        .init();

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let backend = backend::backend(&origin);
    tokio::spawn(async move { axum::serve(listener, backend).await });

    let listener = match TcpListener::bind("127.0.0.1:3000").await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind("127.0.0.1:0").await?,
    };
    let url = format!("http://{}", listener.local_addr()?);
    println!("Open {url} in a browser. Redirects and failures of the backend are traced here.");
    // With connect info, the proxy sends the visitor's address to the backend.
    axum::serve(listener, front(&url, &origin).into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

// ---- The front: your app ----

fn front(url: &str, origin: &str) -> Router {
    let (home_url, home_origin) = (url.to_owned(), origin.to_owned());
    let own_routes = Router::new()
        .route("/", get(|user| home(user, home_url, home_origin)))
        .route("/sign-in", post(sign_in))
        .route("/sign-out", post(sign_out))
        .route("/favicon.ico", get(|| async { ([(CONTENT_TYPE, "image/svg+xml")], page::ICON) }))
        .fallback(not_found);

    // <shown>
    let legacy = ReverseProxyLayer::new(origin)
        // Both sides have the same layout: /mydir/x is /mydir/x at the backend.
        // No link has to be rewritten.
        .prefix("/mydir")
        // How visitors reach the front. A request doesn't show it.
        .forwarded(Forwarded::new().proto("http"))
        // The session stays here. The backend needs only the name of its user.
        .hide_cookies(["id"])
        .on_error(failed)
        // The upstream side: no client can change what these add.
        .upstream_layer(
            ServiceBuilder::new()
                .layer(RemoteUserLayer::new())
                .layer(BasicAuthLayer::remote_user("s3cret"))
                .layer(TraceRedirectLayer::new()),
        );

    // Nothing listens there.
    let down = ReverseProxyLayer::new("http://127.0.0.1:1").prefix("/down").on_error(failed);

    own_routes
        .layer(legacy)
        .layer(down)
        // A layer that is added later sees the request first:
        // this one adds the signed-in user to it, for the proxy.
        .layer(from_fn(add_user))
        // By default the cookie is for https alone, and this example has none.
        .layer(SessionManagerLayer::new(MemoryStore::default()).with_secure(false))
    // </shown>
}

/// Adds the signed-in user to the request: for the own pages, and for the layers of the proxy.
async fn add_user(session: Session, mut request: Request, next: Next) -> Result<Response, StatusCode> {
    if let Some(name) = session.get::<String>("user").await.map_err(broken)? {
        request.extensions_mut().insert(RemoteUser::from(name));
    }
    Ok(next.run(request).await)
}

/// Makes the page of a failure. The cause is for the log, because it may hold internal addresses.
fn failed(failure: &Failure) -> Response {
    let status = failure.status();
    let (title, explanation, remedy) = match failure.kind() {
        ErrorKind::UnrepresentableUser => (
            "This name can't go to the backend",
            "With Basic credentials, a name ends at its first colon, and other names have characters that no field can \
             carry. The backend would take you for another user, so the proxy refuses to ask it.",
            "<form method=post action=/sign-out>Choose another name: <button>Sign out</button></form>",
        ),
        _ => (
            "The other site doesn't answer",
            "This page is the app's, made with <code>on_error</code>. The terminal shows why it failed.",
            "",
        ),
    };
    let body = format!("{remedy}<p>Status: <b>{status}</b><nav><a href=/>Back to the app</a></nav>");
    (status, page("front", title, explanation, &body)).into_response()
}

async fn not_found() -> (StatusCode, Html<String>) {
    let body = "<nav><a href=/>Back to the app</a></nav>";
    (StatusCode::NOT_FOUND, page("front", "Not found", "Neither the app nor the legacy site has this page.", body))
}

async fn home(user: Option<Extension<RemoteUser>>, url: String, origin: String) -> Html<String> {
    let sign_in = match user {
        Some(Extension(user)) => format!(
            "<form method=post action=/sign-out>You are signed in as <b>{}</b>. <button>Sign out</button></form>",
            escape(user.as_str())
        ),
        None => "<form method=post action=/sign-in><label>Sign in with any name: \
                 <input name=name value=alice required></label> <button>Sign in</button></form>"
            .to_owned(),
    };
    let code = escape(&shown());
    let body = format!(
        "{sign_in}<h2>What to click, and what to look at</h2>
        <ul>
        <li><a href='/mydir/request?a=1&amp;b=%2F'>The request</a>: what the backend gets. Path and query arrive as they
            are. Come back, sign in, look again: now the backend gets your name.
        <li><a href=/mydir/redirect>A redirect</a>: the backend sends you to its own address, and still you stay here.
            The terminal shows where it wanted to send you.
        <li><a href=/mydir/form>A form</a>: what you type passes through the proxy, and comes back.
        <li><a href=/mydir/cookie>A cookie</a>: the backend sets one for itself, and it works here.
        <li><a href=/mydir/stream>A stream</a>: each line is here as soon as the backend has written it.
        <li><a href=/mydir/websocket>A WebSocket</a>: the backend echoes what you type.
        <li><a href=/down/page>A failure</a>: a site that is down, and a page of the app's own about it.
        </ul>
        <h2>Try to be another user</h2>
        <p>The backend believes <code>Remote-User</code>, so no client may set it. This one tries, and there is no
        <code>root</code> in the page that it gets:
        <pre>curl -H 'Remote-User: root' -u root:guess {url}/mydir/request</pre>
        <p>Or sign in as <code>a:b</code>. With Basic credentials the backend would take you for <code>a</code>, so the
        proxy refuses to ask it.
        <h2>The code behind it</h2>
        <pre class=code tabindex=0>{code}</pre>"
    );
    let subtitle = format!(
        "This page is a route of the app. All below <code>/mydir/</code> comes from another web server, \
         <code>{origin}</code>, and looks like a directory of this one."
    );
    page("front", "One site out of two", &subtitle, &body)
}

/// The lines of this file that put the proxy into the app.
fn shown() -> String {
    let source = include_str!("main.rs").split("// <shown>\n").nth(1).unwrap_or_default();
    let source = source.split("    // </shown>").next().unwrap_or_default();
    source.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect()
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
