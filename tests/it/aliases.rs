//! The search of the documentation finds what people type, also for what the crate doesn't do.

use std::{fs, path::Path};

const WORDS: [&str; 55] = [
    "websocket",
    "X-Forwarded-For",
    "host header",
    "strip prefix",
    "rewrite",
    "error page",
    "load balance",
    "retry",
    "metrics",
    "kerberos",
    "grpc",
    "sse",
    "unix socket",
    "proxy_pass",
    "load balancing",
    "balancer",
    "login",
    "authentication",
    "axum-login",
    "tower-sessions",
    "TypedHeader",
    "roles",
    "jwt",
    "custom CA",
    "self-signed",
    "root certificate",
    "certificate",
    "ssl",
    "tls",
    "sni",
    "rate limit",
    "circuit breaker",
    "strangler",
    "fallback_service",
    "nest_service",
    "handler",
    "state",
    "tenant",
    "database",
    "cors",
    "body limit",
    "upload",
    "set header",
    "remove header",
    "request id",
    "prometheus",
    "trailing slash",
    "long polling",
    "streaming",
    "trailers",
    "ws",
    "trusted proxy",
    "mTLS",
    "https",
    "h2c",
];

#[test]
fn each_word_is_an_alias_of_a_public_item() {
    let mut source = String::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut source);
    let aliases: String = source.split("#[doc(alias").skip(1).filter_map(|rest| rest.split(")]").next()).collect();
    for word in WORDS {
        assert!(aliases.contains(&format!("\"{word}\"")), "no item has the alias {word:?}");
    }
}

fn read(dir: &Path, source: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, source);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            source.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}
