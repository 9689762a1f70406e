//! The app, and the sign-in to the backend.
#![allow(clippy::print_stdout)]

use std::{env, error::Error, io::IsTerminal, net::SocketAddr, sync::Arc};

use axum::{Extension, Router, middleware::from_fn_with_state, routing::get};
use tower_reverse_proxy::{
    AuthorizationLayer, DelegatedCredential, HostPolicy, Negotiate, RemoteUser, ReverseProxyLayer, Upstream,
    authorize::{Ask, CredentialSource},
};

use super::{
    shared,
    sign_in::{COOKIE, SignIn, signed_in},
};

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(backend), Some(service)) = (arguments.next(), arguments.next()) else {
        return Err("usage: kerberos BACKEND SERVICE, such as http://127.0.0.1:8000 HTTP@backend.example".into());
    };
    // A refused ticket is an event, whose text has the reason: the client gets a status only.
    tracing_subscriber::fmt().with_ansi(std::io::stdout().is_terminal()).init();
    // The user's name is a principal with its realm, which the ticket has established: it needs no mapping.
    let principal = |user: &RemoteUser| Some(user.as_str().to_owned());
    let source = AsTheUser {
        delegated: Negotiate::delegated(&service)?.principal(principal),
        on_behalf: Negotiate::on_behalf(&service)?.principal(principal),
    };
    // `HostPolicy::Backend`, because a backend may accept tickets for the name in `Host` only.
    let legacy = ReverseProxyLayer::with_upstream(Upstream::try_new(&*backend)?.host(HostPolicy::Backend))
        .prefix("/legacy")
        .hide_cookies([COOKIE])
        .upstream_layer(AuthorizationLayer::with_source(source).required(true));

    let app = Router::new()
        .route("/", get(|Extension(user): Extension<RemoteUser>| async move { format!("You are {user}.\n") }))
        .layer(legacy)
        // Added last, so that it sees each request first.
        .layer(from_fn_with_state(Arc::new(SignIn::new()?), signed_in));
    let listener = shared::listen().await?;
    println!("Try: curl --negotiate -u : http://localhost:{}/legacy/", listener.local_addr()?.port());
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// Signs in with the ticket that the browser has forwarded, or on behalf of the user if there is none.
#[derive(Clone)]
struct AsTheUser {
    delegated: Negotiate,
    on_behalf: Negotiate,
}

impl CredentialSource for AsTheUser {
    type Proof = <Negotiate as CredentialSource>::Proof;
    type Future = <Negotiate as CredentialSource>::Future;

    fn credentials(&self, ask: &Ask<'_>) -> Self::Future {
        match ask.extensions().get::<DelegatedCredential>() {
            Some(_) => self.delegated.credentials(ask),
            None => self.on_behalf.credentials(ask),
        }
    }
}
