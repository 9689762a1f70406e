//! A sign-in in front of a backend that has none: the user of the session becomes the backend's `Remote-User`.
//!
//! ```sh
//! cargo run --example signed_in -- http://127.0.0.1:8000 # its pages have to be below /legacy
//! ```
//!
//! In an app of your own: `cargo add tower-sessions`. With axum-login, its version of it: `cargo add tower-sessions@0.14`
//! for axum-login 0.18, and `use axum_login::tower_sessions`.
//!
//! The backend has to be reachable through the front only, because any other peer could send any name.
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, net::SocketAddr};

use axum::{
    Form, Router,
    extract::Request,
    http::StatusCode,
    middleware::{Next, from_fn},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;
use tower_reverse_proxy::{RemoteUser, RemoteUserLayer, ReverseProxyLayer};
use tower_sessions::{MemoryStore, Session, SessionManagerLayer};

/// FOR THE DEMO ONLY. An app keeps its users in a database, with a slow hash (argon2) of each password.
const DEMO_USER: (&str, &str) = ("alice", "wonderland");

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // `required`: if the order of the layers below is ever wrong, every request is refused, and none is let in.
    let legacy = ReverseProxyLayer::try_new(shared::backend_url().await?)?
        .prefix("/legacy")
        // The session's cookie: the backend needs only the name of its user.
        .hide_cookies(["id"])
        .upstream_layer(RemoteUserLayer::new().required(true));

    let app = Router::new()
        .route("/", get(home))
        .route("/sign-out", post(sign_out))
        .layer(legacy)
        // A layer that is added later sees the request first, so this one guards the proxy too. `route_layer` would
        // not: it guards routes, and a directory that a layer serves isn't one. Then /legacy would be open to
        // everyone.
        .layer(from_fn(signed_in))
        // A route that is added later isn't guarded.
        .route("/sign-in", get(sign_in_page).post(sign_in))
        // Outermost, because all of the above needs the session. By default its cookie is for https alone.
        .layer(SessionManagerLayer::new(MemoryStore::default()).with_secure(false));

    let listener = shared::listen().await?;
    println!("Open http://{} and sign in as alice, password wonderland.", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// Passes requests of signed-in users on, with the name for the proxy. Reading a session may be a database query:
/// hence async.
async fn signed_in(session: Session, mut request: Request, next: Next) -> Result<Response, Broken> {
    let Some(name) = session.get::<String>("user").await? else {
        return Ok(Redirect::to("/sign-in").into_response());
    };
    request.extensions_mut().insert(RemoteUser::from(name));
    Ok(next.run(request).await)
}

async fn home() -> Html<&'static str> {
    Html(
        "<p>You are signed in. Here is <a href=/legacy/hello>the legacy site</a>, which gets your name.\
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
    // A new id, so that one that was known before the sign-in is worth nothing after it (session fixation).
    session.cycle_id().await?;
    session.insert("user", form.name).await?;
    Ok(Redirect::to("/").into_response())
}

async fn sign_out(session: Session) -> Result<Redirect, Broken> {
    session.flush().await?;
    Ok(Redirect::to("/sign-in"))
}

/// The session store failed: the request is refused.
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
