//! A sign-in in front of a backend that has none: the user of the session becomes the backend's `Remote-User`.
//!
//! ```sh
//! cargo run --example signed_in                          # with a small backend of its own, which greets the user
//! cargo run --example signed_in -- http://127.0.0.1:8000 # with yours, which has to have its pages below /legacy
//! ```
//!
//! The backend has to be reachable through the front only: whoever else reaches it can say any name.
#![allow(clippy::print_stdout)]

use std::{env, error::Error, net::SocketAddr};

use axum::{
    Form, Router,
    extract::Request,
    http::{HeaderMap, StatusCode, Uri},
    middleware::{Next, from_fn},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_reverse_proxy::{RemoteUser, RemoteUserLayer, ReverseProxyLayer};
use tower_sessions::{MemoryStore, Session, SessionManagerLayer};

/// FOR THE DEMO ONLY. An app keeps its users in a database, with a slow hash (argon2) of each password.
const DEMO_USER: (&str, &str) = ("alice", "wonderland");

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend = match env::args().nth(1) {
        Some(url) => url,
        None => own_backend().await?,
    };
    // `required`: should the order of the layers below ever be wrong, then nobody gets in, not everybody.
    let legacy = ReverseProxyLayer::try_new(backend)?
        .prefix("/legacy")
        // The session's cookie: the backend needs only the name of its user.
        .hide_cookies(["id"])
        .upstream_layer(RemoteUserLayer::new().required(true));

    let app = Router::new()
        .route("/", get(home))
        .route("/sign-out", post(sign_out))
        .layer(legacy)
        // A layer that is added later is asked earlier, so this one guards the proxy too. `route_layer` would not: it
        // guards routes, and a directory that a layer serves is none. Then /legacy would be open to everybody.
        .layer(from_fn(signed_in))
        // A route that is added later isn't guarded.
        .route("/sign-in", get(sign_in_page).post(sign_in))
        // Outermost, as all of the above asks for the session. By default its cookie is for https alone, and is sent only
        // along with requests from the site's own pages (SameSite=Strict), so that no other site can post a sign-out.
        .layer(SessionManagerLayer::new(MemoryStore::default()).with_secure(false));

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("Open http://{} and sign in as alice, password wonderland.", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// Lets the signed-in through, and tells the proxy who it is. Reading a session may be a database query: hence async.
async fn signed_in(session: Session, mut request: Request, next: Next) -> Result<Response, Broken> {
    let Some(name) = session.get::<String>("user").await? else {
        return Ok(Redirect::to("/sign-in").into_response());
    };
    request.extensions_mut().insert(RemoteUser::from(name));
    Ok(next.run(request).await)
}

async fn home() -> Html<&'static str> {
    Html(
        "<p>You are signed in. Here is <a href=/legacy/hello>the legacy site</a>, which knows your name.\
         <form method=post action=/sign-out><button>Sign out</button></form>",
    )
}

async fn sign_in_page() -> Html<&'static str> {
    Html(
        "<form method=post action=/sign-in><p>Name <input name=name autofocus> \
         <p>Password <input name=password type=password> <p><button>Sign in</button></form>",
    )
}

#[derive(Deserialize)]
struct SignIn {
    name: String,
    password: String,
}

async fn sign_in(session: Session, Form(form): Form<SignIn>) -> Result<Response, Broken> {
    if (form.name.as_str(), form.password.as_str()) != DEMO_USER {
        return Ok((StatusCode::FORBIDDEN, sign_in_page().await).into_response());
    }
    // A new id: one that somebody knew before the sign-in is worth nothing after it (session fixation).
    session.cycle_id().await?;
    session.insert("user", form.name).await?;
    Ok(Redirect::to("/").into_response())
}

async fn sign_out(session: Session) -> Result<Redirect, Broken> {
    session.flush().await?;
    Ok(Redirect::to("/sign-in"))
}

/// The session store failed. Nobody is let in then.
struct Broken;

impl From<tower_sessions::session::Error> for Broken {
    fn from(_: tower_sessions::session::Error) -> Self {
        Self
    }
}

impl IntoResponse for Broken {
    fn into_response(self) -> Response {
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

/// Starts a backend that greets whom `Remote-User` says, and returns its origin.
async fn own_backend() -> Result<String, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let backend = Router::new().fallback(|uri: Uri, headers: HeaderMap| async move {
        format!("the backend's {uri}, for {:?}\n", headers.get("remote-user"))
    });
    tokio::spawn(async move { axum::serve(listener, backend).await });
    Ok(origin)
}
