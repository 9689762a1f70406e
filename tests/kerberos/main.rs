//! Kerberos to a backend, in a real realm: a KDC, and Apache with mod_auth_gssapi.
//!
//! `.ci/kerberos/run.py` starts the realm and runs each module in a process with its own environment, because the library
//! takes accounts and caches from there. The tests of a module run one after the other. What is said of threads, caches and
//! deadlines in general is tested with a library of their own in `src/authorize/negotiate`.
#![cfg(unix)]
#![allow(clippy::expect_used, clippy::unwrap_used)] // a missing value fails the test
#![allow(clippy::print_stdout)] // measurements, with `--nocapture`

mod delegated;
mod expiring;
mod jobs;
mod on_behalf;
mod outage;
mod own;
mod owners;
mod realm;
mod stampede;

#[allow(dead_code, unused_imports)] // the other binary uses all of it
#[path = "../it/support/mod.rs"]
mod support;
