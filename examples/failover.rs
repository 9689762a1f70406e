//! Two backends in turn. If nothing of a request was sent to one of them, the other one gets it.
//!
//! ```sh
//! cargo run --example failover                                                # one of the two is down
//! cargo run --example failover -- http://127.0.0.1:8000 http://127.0.0.1:8001 # with yours
//! ```
//!
//! In an app of your own: `cargo add tower --features util && cargo add tracing`.
#![allow(clippy::print_stdout)]

mod shared;

use std::{
    env,
    error::Error as StdError,
    future::Future,
    io::IsTerminal,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
};
use tower::{Service, ServiceExt};
use tower_reverse_proxy::{Client, Error, ReverseProxy, Upstream, client::ResponseBody};

/// The balancer: any `Service` from a request to a response that is `Clone`. A clone is made for each request.
#[derive(Clone)]
struct InTurn {
    members: [Upstream<Client>; 2],
    turn: Arc<AtomicUsize>,
}

impl Service<Request<Body>> for InTurn {
    type Response = Response<ResponseBody>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    /// Always ready, because the members are ready independently of each other. `call` waits for the member that it
    /// chooses.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let [mut first, mut second] = self.members.clone();
        if self.turn.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            std::mem::swap(&mut first, &mut second);
        }
        Box::pin(async move {
            match first.oneshot(request).await {
                // An unsent request comes back whole, with its body. One that was sent in part doesn't: the backend
                // may have acted on it.
                Err(mut error) => match error.take_request() {
                    Some(request) => {
                        // The crate emits no event for a request that is rescued.
                        tracing::warn!(error = &error as &dyn StdError, "the other backend gets the request");
                        second.oneshot(request).await
                    }
                    None => Err(error),
                },
                response => response,
            }
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    tracing_subscriber::fmt().with_ansi(std::io::stdout().is_terminal()).init();
    let mut urls = env::args().skip(1);
    let members = match (urls.next(), urls.next()) {
        (Some(one), Some(other)) => [Upstream::try_new(one)?, Upstream::try_new(other)?],
        // Nothing listens on port 9.
        _ => {
            [Upstream::try_new(shared::start(shared::mirror("backend A")).await?)?, Upstream::new("http://127.0.0.1:9")]
        }
    };
    let balancer = InTurn { members, turn: Arc::default() };
    let app = Router::new().nest_service("/mydir", ReverseProxy::with_upstream(balancer));

    let listener = shared::listen().await?;
    println!("Try several times: curl -d hello http://{}/mydir/", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
