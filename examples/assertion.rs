//! A backend that doesn't have to trust the network: it verifies a signed assertion of the user, with the keys at a
//! route of the front.
//!
//! ```sh
//! cargo run --example assertion --features assertion,tls-ring
//! cargo run --example assertion --features assertion,tls-ring -- http://127.0.0.1:8000 # its pages have to be below /app
//! ```
//!
//! In an app of your own: `cargo add tower-reverse-proxy --features assertion,tls-ring`. The backend may be in any
//! language: it needs a JWT library and the URL of the keys.
//!
//! Environment: `ASSERTION_KEY`, the file of a key; in seconds `ROTATE_EVERY`, `MAX_AGE` of the keys and `LIFETIME` of
//! an assertion; `PER_REQUEST`, to bind each assertion to its request.
#![allow(clippy::print_stdout)]

mod shared;

use std::{
    collections::HashMap,
    env,
    error::Error,
    fs,
    io::IsTerminal,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode, Uri},
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use rcgen::KeyPair;
use serde::Deserialize;
use tokio::{sync::Mutex, time::interval_at};
use tower::ServiceExt;
use tower_reverse_proxy::{AssertionKeys, AssertionLayer, Client, RemoteUser, ReverseProxyLayer};

const JWKS: &str = "/.well-known/jwks.json";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_ansi(std::io::stdout().is_terminal()).init();
    let listener = shared::listen().await?;
    let front = format!("http://{}", listener.local_addr()?);
    let backend = match env::args().nth(1) {
        Some(url) => url,
        None => shared::start(Backend::app(&front)?).await?,
    };

    let keys = AssertionKeys::from_pem(match env::var("ASSERTION_KEY") {
        Ok(path) => fs::read_to_string(path)?,
        // FOR THE DEMO ONLY. Another instance of the front, and the next start, would sign with another key.
        Err(_) => KeyPair::generate()?.serialize_pem(),
    })?;
    let max_age = seconds("MAX_AGE", 300)?;
    tokio::spawn(rotate(keys.clone(), seconds("ROTATE_EVERY", 24 * 3600)?, max_age));

    let assertion = AssertionLayer::new(keys.clone(), &front)
        // Its default is the backend's URL, which this backend doesn't know.
        .audience("app")
        .lifetime(seconds("LIFETIME", 120)?)
        .per_request(env::var_os("PER_REQUEST").is_some());
    let app = Router::new()
        .route("/", get(|| async { "the app's own page; the backend is at /app/x?user=alice\n" }))
        .route_service(JWKS, keys.jwks().max_age(max_age))
        .layer(ReverseProxyLayer::try_new(backend)?.prefix("/app").upstream_layer(assertion))
        // Added later, it sees the request first.
        .layer(from_fn(sign_in));

    println!("Open {front}/app/x?user=alice and {front}{JWKS}");
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

fn seconds(name: &str, default: u64) -> Result<Duration, Box<dyn Error>> {
    Ok(Duration::from_secs(env::var(name).map_or(Ok(default), |text| text.parse())?))
}

/// Rotates the keys. A new one is published for twice as long as backends cache the keys, before it signs.
async fn rotate(keys: AssertionKeys, every: Duration, max_age: Duration) {
    let mut ticks = interval_at(tokio::time::Instant::now() + every, every);
    loop {
        ticks.tick().await;
        match KeyPair::generate().map(|key| AssertionKeys::from_pem(key.serialize_pem())) {
            Ok(Ok(next)) => keys.rotate(next, max_age * 2),
            _ => eprintln!("no new key; the old one is kept"),
        }
    }
}

/// FOR THE DEMO ONLY: the user is whom the query names. An app has a session.
async fn sign_in(Query(query): Query<HashMap<String, String>>, mut request: Request, next: Next) -> Response {
    if let Some(user) = query.get("user") {
        request.extensions_mut().insert(RemoteUser::from(user));
    }
    next.run(request).await
}

/// A backend that lets in users with a valid assertion only.
struct Backend {
    front: String,
    client: Client,
    /// The front's keys, and when they were fetched.
    keys: Mutex<Option<(Instant, JwkSet)>>,
}

impl Backend {
    fn app(front: &str) -> Result<Router, Box<dyn Error>> {
        let backend = Self { front: front.to_owned(), client: front.try_into()?, keys: Mutex::default() };
        Ok(Router::new().fallback(Self::page).with_state(Arc::new(backend)))
    }

    async fn page(State(backend): State<Arc<Self>>, uri: Uri, headers: HeaderMap) -> (StatusCode, String) {
        match backend.user(&headers).await {
            Ok(user) => (StatusCode::OK, format!("the backend has verified that {user} gets {}\n", uri.path())),
            Err(error) => (StatusCode::UNAUTHORIZED, format!("the backend refuses: {error}\n")),
        }
    }

    /// Returns the user of a verified assertion.
    async fn user(&self, headers: &HeaderMap) -> Result<String, Box<dyn Error + Send + Sync>> {
        let token = headers.get("x-jwt-assertion").ok_or("no assertion")?.to_str()?;
        let kid = decode_header(token)?.kid.ok_or("no kid")?;
        let mut keys = self.keys.lock().await;
        // No other fetch is needed, because the front publishes a key for longer before it signs.
        if keys.as_ref().is_none_or(|(fetched, _)| fetched.elapsed() > Duration::from_secs(300)) {
            let request = Request::get(format!("{}{JWKS}", self.front)).body(Body::empty())?;
            let response = self.client.clone().oneshot(request).await?;
            let body = to_bytes(Body::new(response.into_body()), 64 * 1024).await?;
            *keys = Some((Instant::now(), serde_json::from_slice(&body)?));
        }
        let key = keys.as_ref().and_then(|(_, keys)| keys.find(&kid)).ok_or("an unknown key")?;
        // The algorithm is pinned: that of the token's header is the sender's choice.
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.front]);
        validation.set_audience(&["app"]);
        validation.set_required_spec_claims(&["iss", "aud", "exp", "sub"]);
        #[derive(Deserialize)]
        struct Claims {
            sub: String,
        }
        Ok(decode::<Claims>(token, &DecodingKey::from_jwk(key)?, &validation)?.claims.sub)
    }
}
