//! Single sign-on from the browser to the backend: Kerberos tickets on both sides.
//!
//! ```sh
//! export KRB5_KTNAME=/etc/front.keytab KRB5_CLIENT_KTNAME=/etc/front.keytab KRB5CCNAME=MEMORY:front
//! cargo run --example kerberos --features negotiate -- http://127.0.0.1:8000 HTTP@backend.example
//! curl --negotiate -u : http://localhost:3000/legacy/
//! ```
//!
//! The arguments are the backend, whose pages have to be below /legacy, and its service name. The keytab has the key of
//! the front, `HTTP/localhost` here. A browser has to be set to sign in there (Firefox:
//! `network.negotiate-auth.trusted-uris`).
//!
//! The first request of a session has a ticket, and later ones have a cookie. If the browser forwards the ticket of its
//! user (`curl --delegation always`), the front signs in to the backend with it. Otherwise the KDC gives the front a
//! ticket for the user, which the front's account needs a right for (constrained delegation).
//!
//! A sign-in that fails is 401, 403 or 502 for the client. The log of the example has the reason: a ticket for another
//! name than that of the keytab, a service that the KDC doesn't know, or a front without the right.
//!
//! `sign_in` is the browser's side, and `front` is the backend's side and the app.

#[cfg(unix)]
mod front;
#[path = "../shared/mod.rs"]
mod shared;
#[cfg(unix)]
mod sign_in;

#[cfg(unix)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    front::main()
}

/// The feature `negotiate` adds nothing here.
#[cfg(not(unix))]
fn main() {}
