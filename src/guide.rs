//! Guides: one page per subject, with examples that compile.
//!
//! The reference of each item describes that item. These pages describe how the parts work together, in which order
//! they run, and what to check before production.
// Each page is a file of `src/docs`. It defines its links at its end (``[`Client`]: crate::Client``), so that it can be
// included anywhere.

#[doc = include_str!("docs/mounting.md")]
#[doc(alias(
    "nest",
    "nest_service",
    "fallback_service",
    "handler",
    "mount",
    "strangler",
    "strip prefix",
    "rewrite",
    "trailing slash"
))]
pub mod mounting {}

#[doc = include_str!("docs/layer_order.md")]
#[doc(alias = "middleware order")]
pub mod layer_order {}

#[doc = include_str!("docs/security.md")]
#[doc(alias("request smuggling", "impersonation"))]
pub mod security {}

#[doc = include_str!("docs/identity.md")]
#[doc(alias(
    "sign in",
    "single sign-on",
    "SSO",
    "login",
    "authentication",
    "axum-login",
    "jwt",
    "kerberos",
    "Negotiate",
    "bearer",
    "cors",
    "Remote-User"
))]
pub mod identity {}

#[doc = include_str!("docs/backends.md")]
#[doc(alias(
    "https",
    "tls",
    "ssl",
    "custom CA",
    "self-signed",
    "root certificate",
    "certificate",
    "client certificate",
    "mTLS",
    "sni",
    "unix socket",
    "host header",
    "h2c",
    "grpc"
))]
pub mod backends {}

#[doc = include_str!("docs/timeouts.md")]
#[doc(alias("proxy_read_timeout", "deadline", "long polling", "upload"))]
pub mod timeouts {}

#[doc = include_str!("docs/pooling_and_retries.md")]
#[doc(alias("retry", "retries", "keepalive", "proxy_next_upstream"))]
pub mod pooling_and_retries {}

#[doc = include_str!("docs/failures.md")]
#[doc(alias("error page", "502", "503", "504", "grpc"))]
pub mod failures {}

#[doc = include_str!("docs/telemetry.md")]
#[doc(alias("metrics", "prometheus", "opentelemetry", "logging", "tracing", "request id"))]
pub mod telemetry {}

#[doc = include_str!("docs/upgrades.md")]
#[doc(alias(
    "websocket",
    "ws",
    "sse",
    "server-sent events",
    "streaming",
    "trailers",
    "grpc",
    "long polling",
    "graceful shutdown"
))]
pub mod upgrades {}

#[doc = include_str!("docs/several_backends.md")]
#[doc(alias(
    "load balance",
    "load balancer",
    "load balancing",
    "balancer",
    "circuit breaker",
    "failover",
    "canary",
    "health check",
    "sticky session",
    "discovery",
    "rolling deploy",
    "drain",
    "handler",
    "state",
    "tenant",
    "database"
))]
pub mod several_backends {}

#[doc = include_str!("docs/many_replicas.md")]
#[doc(alias("replica", "horizontal scaling", "HAProxy", "Kubernetes", "subset", "sticky session"))]
pub mod many_replicas {}

#[doc = include_str!("docs/testing.md")]
#[doc(alias("mock", "oneshot"))]
pub mod testing {}

#[doc = include_str!("docs/behind_a_proxy.md")]
#[doc(alias("nginx", "Caddy", "X-Forwarded-For", "X-Forwarded-Proto", "unix socket"))]
pub mod behind_a_proxy {}

#[doc = include_str!("docs/production.md")]
#[doc(alias("checklist", "deployment", "body limit", "rate limit"))]
pub mod production {}

#[doc = include_str!("docs/from_iis.md")]
#[doc(alias("iisproxy", "ARR"))]
pub mod from_iis {}

#[doc = include_str!("docs/from_nginx.md")]
#[doc(alias("proxy_pass", "proxy_set_header", "proxy_redirect", "rewrite"))]
pub mod from_nginx {}

#[doc = include_str!("docs/from_axum_reverse_proxy.md")]
#[doc(alias = "axum-reverse-proxy")]
pub mod from_axum_reverse_proxy {}

#[doc = include_str!("docs/not_included.md")]
#[doc(alias(
    "rate limit",
    "set header",
    "remove header",
    "cors",
    "cache",
    "caching",
    "compression",
    "forward proxy",
    "http3",
    "FastCGI",
    "SOCKS",
    "kerberos",
    "metrics",
    "retry"
))]
pub mod not_included {}

#[doc = include_str!("docs/limits.md")]
#[doc(alias = "limitations")]
pub mod limits {}
