//! Sign-ins to a backend by Kerberos, in a real realm: a KDC, and Apache with mod_auth_gssapi.
//!
//! `.ci/kerberos/run.py` starts the realm. It runs each module in a process with its own environment, because the
//! library reads accounts and caches from there, and the tests of a module one after the other.
//! `src/authorize/negotiate` has the tests of threads, caches and deadlines that need no realm.
#![cfg(unix)]
#![allow(clippy::expect_used, clippy::unwrap_used)] // a missing value fails the test
#![allow(clippy::print_stdout)] // measurements, with `--nocapture`

mod bare;
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
