//! Mounts a Service of Kubernetes as a directory. Requests go to its pods, which are known from its EndpointSlices.
//!
//! ```sh
//! kubectl apply -f examples/kubernetes/deploy.yaml # a front with it, and a backend
//! cargo run -p tower-reverse-proxy-kubernetes -- http://app.shop.svc http # where the pods can be reached
//! ```
#![allow(clippy::print_stdout)]

#[cfg(test)]
mod end_to_end;
mod endpoints;
mod source;

use std::{env, io, net::SocketAddr};

use axum::{BoxError, Router, extract::State, routing::get};
use kube::{Client, runtime::watcher::DefaultBackoff};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tower_reverse_proxy::{Backends, RetryPolicy, ReverseProxyLayer, balance::MemberStatus};

use crate::{
    endpoints::Port,
    source::{Service, members},
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt().with_ansi(false).init();
    let mut arguments = env::args().skip(1);
    let url = arguments.next().ok_or("the first argument is the address of a Service, such as http://app.shop.svc")?;
    let service = Service::new(&url, arguments.next().as_deref().map_or(Port::Only, Port::from))?;

    // Until the first list has come, requests go to the Service's own address, which needs no API server.
    let backends = Backends::try_new([&url])?;
    // In a pod by its service account, elsewhere by the kubeconfig.
    let client = Client::try_default().await?;
    backends.follow(members(client, service, DefaultBackoff::default())).detach();

    let listener = TcpListener::bind("0.0.0.0:3000").await?;
    println!("listens on {}", listener.local_addr()?);
    axum::serve(listener, app(&backends).into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(stopped()?)
        .await?;
    Ok(())
}

/// The application, which has pages of its own beside the mounted Service.
fn app(backends: &Backends) -> Router {
    Router::new()
        .route("/", get(|| async { "home\n" }))
        // The front is ready although the Service isn't: its own pages don't need it.
        .route("/readyz", get(|| async { "ready\n" }))
        .route("/backends", get(status))
        .with_state(backends.clone())
        .layer(ReverseProxyLayer::balanced(backends).prefix("/app").retry(RetryPolicy::idempotent()))
}

/// Which pods get requests. Behind a sign-in in an app of your own.
async fn status(State(backends): State<Backends>) -> String {
    let line =
        |member: &MemberStatus| format!("{} {}, {} in flight\n", member.backend(), member.state(), member.in_flight());
    backends.status().iter().map(line).collect()
}

/// Completes on SIGTERM, which the kubelet sends, and on Ctrl-C.
fn stopped() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
