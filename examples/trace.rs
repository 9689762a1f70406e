//! tower-http's `TraceLayer` with OpenTelemetry: a span per request, continued by the backend.
//!
//! ```sh
//! cargo run --example trace -- http://127.0.0.1:8000
//! ```
//!
//! In an app of your own: `cargo add tower --features util`, `cargo add tower-http --features trace`, and versions of
//! opentelemetry, opentelemetry_sdk and tracing-opentelemetry that go together, such as 0.33, 0.33 and 0.34.
#![allow(clippy::print_stdout)]

mod shared;

use std::{error::Error, io::IsTerminal, net::SocketAddr};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Request},
    routing::get,
};
use opentelemetry::{global, propagation::Injector, trace::TracerProvider};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tower::util::MapRequestLayer;
use tower_http::trace::TraceLayer;
use tower_reverse_proxy::ReverseProxyLayer;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // An app of your own gives the provider an exporter (`with_batch_exporter`), such as that of opentelemetry-otlp.
    let provider = SdkTracerProvider::builder().build();
    global::set_text_map_propagator(TraceContextPropagator::new());
    tracing_subscriber::registry()
        .with(EnvFilter::new("info"))
        .with(tracing_subscriber::fmt::layer().with_ansi(std::io::stdout().is_terminal()))
        .with(tracing_opentelemetry::layer().with_tracer(provider.tracer("front")))
        .init();

    // The upstream side runs within the span of the request, and so do the crate's own events.
    let proxy = ReverseProxyLayer::try_new(shared::backend_url().await?)?
        .prefix("/mydir")
        .upstream_layer(MapRequestLayer::new(continue_trace));

    // Added last, it sees each request first: its span covers the app's own routes and the proxy.
    // The span has the level INFO. The one that `TraceLayer` makes by default has the level DEBUG: the filter `info` would
    // disable it, and the backend would get no traceparent.
    let spans = TraceLayer::new_for_http().make_span_with(
        |request: &Request<_>| tracing::info_span!("request", method = %request.method(), path = request.uri().path()),
    );
    let app = Router::new().route("/", get(|| async { "home\n" })).layer(proxy).layer(spans);

    let listener = shared::listen().await?;
    println!("Try http://{}/mydir/ and look for the traceparent", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// Names the current span to the backend, in place of what the client may have sent as `traceparent`.
fn continue_trace(mut request: Request<Body>) -> Request<Body> {
    let context = tracing::Span::current().context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Fields(request.headers_mut()));
    });
    request
}

struct Fields<'a>(&'a mut HeaderMap);

impl Injector for Fields<'_> {
    fn set(&mut self, name: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
