//! One site on three backends, of which one dies. The status shows it.
//!
//! ```sh
//! cargo run --example balanced
//! cargo run --example balanced -- http://127.0.0.1:8000 http://127.0.0.1:8001 # with yours
//! ```
#![allow(clippy::print_stdout)]

mod shared;

use std::{env, error::Error, io::IsTerminal, net::SocketAddr, time::Duration};

use axum::{Router, extract::State, routing::get};
use tokio::{net::TcpListener, time::sleep};
use tower_reverse_proxy::{Backends, ReverseProxyLayer};

/// Which backends get requests, for a page of the operator's. Behind a sign-in in an app of your own.
async fn status(State(backends): State<Backends>) -> String {
    let line = |member: &tower_reverse_proxy::balance::MemberStatus| {
        let (name, state) = (member.backend(), member.state());
        format!("{name} {state}: {} faults in {} requests\n", member.faults(), member.requests())
    };
    backends.status().iter().map(line).collect()
}

fn app(backends: &Backends) -> Router {
    Router::new()
        .route("/status", get(status))
        .with_state(backends.clone())
        .layer(ReverseProxyLayer::balanced(backends).prefix("/mydir"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_ansi(std::io::stdout().is_terminal()).init();
    let urls: Vec<String> = env::args().skip(1).collect();
    let backends = match &*urls {
        [] => {
            let [one, other] = ["backend A", "backend B"].map(shared::mirror);
            Backends::new([shared::start(one).await?, shared::start(other).await?, mortal().await?])
        }
        urls => Backends::try_new(urls)?,
    };

    let listener = shared::listen().await?;
    let address = listener.local_addr()?;
    println!("Try several times: curl http://{address}/mydir/ http://{address}/status");
    axum::serve(listener, app(&backends).into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// A backend that dies after 20 seconds.
async fn mortal() -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let server = tokio::spawn(async move { axum::serve(listener, shared::mirror("backend C")).await });
    tokio::spawn(async move {
        sleep(Duration::from_secs(20)).await;
        server.abort();
        println!("backend C has died");
    });
    Ok(origin)
}
