//! The sign-in of the browser: a ticket (SPNEGO, RFC 4559), and after it a session.

use std::{
    collections::HashMap,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{AUTHORIZATION, COOKIE as COOKIES, SET_COOKIE, WWW_AUTHENTICATE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::{sync::Semaphore, task::spawn_blocking};
use tower_reverse_proxy::{
    DelegatedCredential, RemoteUser,
    authorize::negotiate::libgssapi::{
        context::{CtxFlags, SecurityContext, ServerCtx},
        credential::{Cred, CredUsage},
    },
};
use tower_sessions::session::Id;

/// The name of the session's cookie.
pub(crate) const COOKIE: &str = "front";
/// How long a session lasts. A forwarded ticket may expire earlier; then the backend's pages are 403.
const SESSION: Duration = Duration::from_secs(10 * 60);
/// How many sessions there may be. A client that keeps no cookies begins one with each request.
const SESSIONS: usize = 10_000;

pub(crate) struct SignIn {
    /// The keys of the keytab.
    key: Cred,
    /// How many tickets are verified at a time, because the library's calls block.
    threads: Arc<Semaphore>,
    /// Kept in memory, because a forwarded ticket can't be written to a store of sessions.
    sessions: Mutex<HashMap<Id, (User, Instant)>>,
}

#[derive(Clone)]
struct User {
    name: RemoteUser,
    ticket: Option<DelegatedCredential>,
}

/// The middleware: it passes requests of a session, or with a valid ticket, and adds their user to them.
pub(crate) async fn signed_in(State(sign_in): State<Arc<SignIn>>, mut request: Request, next: Next) -> Response {
    let (user, fields) = match sign_in.session(request.headers()) {
        Some(user) => (user, HeaderMap::new()),
        None => match sign_in.accept(request.headers()).await {
            Ok(accepted) => accepted,
            Err(StatusCode::UNAUTHORIZED) => {
                return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Negotiate")]).into_response();
            }
            Err(status) => return status.into_response(),
        },
    };
    request.extensions_mut().insert(user.name);
    if let Some(ticket) = user.ticket {
        request.extensions_mut().insert(ticket);
    }
    let mut response = next.run(request).await;
    for (name, value) in &fields {
        // `HeaderMap::extend` would replace the cookies that the backend sets.
        response.headers_mut().append(name, value.clone());
    }
    response
}

impl SignIn {
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        let key = Cred::acquire(None, None, CredUsage::Accept, None)?;
        Ok(Self { key, threads: Arc::new(Semaphore::new(8)), sessions: Mutex::default() })
    }

    fn session(&self, headers: &HeaderMap) -> Option<User> {
        let cookies = headers.get_all(COOKIES).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|line| line.split("; ")).filter_map(|pair| pair.split_once('='));
        let id: Id = pairs.find(|(name, _)| *name == COOKIE)?.1.parse().ok()?;
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&id).filter(|(_, end)| Instant::now() < *end).map(|(user, _)| user.clone())
    }

    /// Verifies the ticket of a request. Returns its user, and the fields of the response: the proof of the front's own
    /// identity, and the cookie of a new session.
    async fn accept(&self, headers: &HeaderMap) -> Result<(User, HeaderMap), StatusCode> {
        let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or(StatusCode::UNAUTHORIZED)?;
        let (scheme, token) = value.split_once(' ').ok_or(StatusCode::BAD_REQUEST)?;
        if !scheme.eq_ignore_ascii_case("Negotiate") {
            return Err(StatusCode::UNAUTHORIZED);
        }
        let token = BASE64_STANDARD.decode(token).map_err(|_| StatusCode::BAD_REQUEST)?;
        let permit = self.threads.clone().acquire_owned().await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
        let key = self.key.clone();
        // The permit is released by the thread, also if the request is cancelled meanwhile.
        let verified = spawn_blocking(move || (verify(key, &token).map_err(|error| error.to_string()), permit)).await;
        let (verified, _permit) = verified.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        let (user, proof) = verified.map_err(|error| {
            tracing::info!(error, "a ticket was refused");
            StatusCode::UNAUTHORIZED
        })?;

        let id = Id::default(); // random
        let now = Instant::now();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, (_, end)| now < *end);
        // The oldest one gives way: its client signs in again.
        if sessions.len() >= SESSIONS
            && let Some(oldest) = sessions.iter().min_by_key(|(_, (_, end))| *end).map(|(id, _)| *id)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(id, (user.clone(), now + SESSION));
        // `Secure` too, where the front has TLS.
        let cookie = format!("{COOKIE}={id}; Path=/; HttpOnly; SameSite=Lax");
        let fields = [(SET_COOKIE, Some(cookie)), (WWW_AUTHENTICATE, proof)];
        let fields = fields.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::try_from(value?).ok()?)));
        Ok((user, fields.collect()))
    }
}

/// Blocks. Returns the user, and the value of `WWW-Authenticate` that proves the front's own identity.
fn verify(key: Cred, token: &[u8]) -> Result<(User, Option<String>), Box<dyn Error>> {
    let mut context = ServerCtx::new(Some(key));
    let proof = context.step(token, None)?;
    // Kerberos has one step each way. NTLM has more, and would need one context per connection.
    if !context.is_complete() || context.flags()?.contains(CtxFlags::GSS_C_ANON_FLAG) {
        return Err("it's no ticket of a user".into());
    }
    let name = String::from_utf8(context.source_name()?.display_name()?.to_vec())?;
    let ticket = context.take_delegated_cred().map(DelegatedCredential::from);
    let proof = proof.map(|proof| format!("Negotiate {}", BASE64_STANDARD.encode(&*proof)));
    Ok((User { name: name.into(), ticket }, proof))
}
