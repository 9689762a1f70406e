"""diagnostics.py: checks what the compiler says about common mistakes.

Each program has a mistake that `#[diagnostic::on_unimplemented]` explains. It mustn't compile, and the compiler's output
has to contain the explanation. Nothing else of the output is compared, because it differs from compiler to compiler.
"""

import os, shutil, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORK = os.path.join(ROOT, "target", "diagnostics")

MANIFEST = """
[package]
name = "mistakes"
version = "0.0.0"
edition = "2024"

[dependencies]
axum = "0.8"
tower = { version = "0.5", features = ["buffer", "limit"] }
tower-reverse-proxy = { path = %r }

[workspace]
"""

# Name: the program, and what the output has to contain; the first one has no mistake.
PROGRAMS = {
    "correct": ("""
        use std::time::Duration;
        use tower::{ServiceBuilder, util::MapRequestLayer};
        use tower_reverse_proxy::ReverseProxyLayer;

        fn main() {
            let limit = ServiceBuilder::new().buffer(1024).rate_limit(100, Duration::from_secs(1));
            let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000")
                .upstream_layer(MapRequestLayer::new(|request: axum::extract::Request| request))
                .upstream_layer(limit);
            let _: axum::Router = axum::Router::new().layer(proxy);
        }
    """, []),
    "a_wrong_upstream": ("""
        use tower_reverse_proxy::ReverseProxyLayer;

        fn main() {
            let _ = ReverseProxyLayer::with_upstream("http://127.0.0.1:8000");
        }
    """, ["`&str` can't be an upstream of a reverse proxy", "`ReverseProxyLayer::new`"]),
    "from_fn_as_an_upstream_layer": ("""
        use axum::{extract::Request, middleware::{Next, from_fn}, response::Response};
        use tower_reverse_proxy::ReverseProxyLayer;

        async fn pass(request: Request, next: Next) -> Response {
            next.run(request).await
        }

        fn main() {
            let _ = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(from_fn(pass));
        }
    """, ["can't be an upstream of a reverse proxy", "`tower::util::MapRequestLayer`"]),
    "a_layer_that_signs_in_on_the_wrong_side": ("""
        use tower_reverse_proxy::BearerLayer;

        fn main() {
            let _: axum::Router = axum::Router::new().layer(BearerLayer::fixed("s3cret"));
        }
    """, ["a layer that rejects requests can't wrap a service whose error is `Infallible`", "`ReverseProxyLayer::upstream_layer(..)`"]),
    "a_rate_limit_without_a_buffer": ("""
        use std::time::Duration;
        use tower::limit::RateLimitLayer;
        use tower_reverse_proxy::ReverseProxyLayer;

        fn main() {
            let limit = RateLimitLayer::new(100, Duration::from_secs(1));
            let _ = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(limit);
        }
    """, ["can't be an upstream of a reverse proxy", ".buffer(1024).rate_limit("]),
}


def main():
    shutil.rmtree(WORK, ignore_errors=True)
    programs = os.path.join(WORK, "src", "bin")
    os.makedirs(programs)
    with open(os.path.join(WORK, "Cargo.toml"), "w") as manifest:
        manifest.write(MANIFEST % ROOT)
    lock = os.path.join(ROOT, "Cargo.lock")
    if os.path.exists(lock):
        shutil.copyfile(lock, os.path.join(WORK, "Cargo.lock"))
    for name, (program, _) in PROGRAMS.items():
        with open(os.path.join(programs, name + ".rs"), "w") as file:
            file.write(program)
    wrong = []
    for name, (_, expected) in PROGRAMS.items():
        result = subprocess.run(
            ["cargo", "check", "--quiet", "--bin", name], cwd=WORK, capture_output=True, text=True,
            env={**os.environ, "CARGO_TARGET_DIR": os.path.join(ROOT, "target"), "CARGO_TERM_COLOR": "never"})
        missing = [text for text in expected if text not in result.stderr]
        if (result.returncode == 0) != (not expected) or missing:
            wrong.append("%s: %s\n%s" % (name, "not in the output: %s" % missing if missing else "", result.stderr))
        else:
            print("%s: %s" % (name, "explained" if expected else "compiles"), flush=True)
    print("\n".join(wrong), end="")
    return 1 if wrong else 0


sys.exit(main())
