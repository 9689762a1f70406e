//! Every event that the crate emits, one function for each. The guide `telemetry` lists them, which a test holds.

use std::{error::Error as StdError, fmt, iter, time::Duration};

use axum_core::BoxError;
use http::{HeaderName, Method, StatusCode};

use crate::error::Error;

/// Logs a failure, once: at debug level if it's the client's, at warn level if it's the backend's.
pub(crate) fn failure(error: &Error) {
    let (cause, member) = (causes(error), error.member());
    let (kind, phase) = (error.kind(), error.phase());
    if error.is_client() {
        tracing::debug!(target: "tower_reverse_proxy", ?kind, ?phase, member, cause, "{error}");
    } else {
        tracing::warn!(target: "tower_reverse_proxy", ?kind, ?phase, member, cause, "{error}");
    }
}

/// Logs a failed attempt of a request that is sent again, because no response shows the failure.
#[cold]
pub(crate) fn retried_failure(error: &BoxError) {
    let cause = chain(Some(&**error));
    let member = Error::find(error).and_then(Error::member);
    tracing::warn!(target: "tower_reverse_proxy", member, cause, "an attempt failed, and the request is sent again");
}

/// Logs a response that is dropped, because its request is sent again.
#[cold]
pub(crate) fn retried_response(status: StatusCode) {
    tracing::warn!(
        target: "tower_reverse_proxy",
        status = status.as_u16(),
        "a backend is unavailable, and the request is sent again"
    );
}

/// Returns the whole chain of causes, because the first one rarely contains the reason.
fn causes(error: &Error) -> String {
    chain(error.source())
}

/// Returns an error and its causes as text.
pub(crate) fn chain(error: Option<&(dyn StdError + 'static)>) -> String {
    let causes = iter::successors(error, |&cause| cause.source());
    // A chain that is longer than this is a cycle.
    causes.take(64).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Logs that no `X-Forwarded-For` can be sent, because nothing else shows it.
#[cold]
pub(crate) fn no_peer_address() {
    tracing::warn!(
        target: "tower_reverse_proxy",
        "requests have no peer address, so the backend gets no X-Forwarded-For; serve the application with \
         `into_make_service_with_connect_info::<SocketAddr>()`, or insert a `ClientAddr` into their extensions"
    );
}

/// Logs a user name that isn't a field value.
#[cold]
pub(crate) fn unrepresentable_user(user: &str, header: &HeaderName) {
    tracing::error!(
        target: "tower_reverse_proxy",
        user = ?user,
        header = %header,
        "the user name can't be represented in a header field; the request is refused"
    );
}

/// Logs a user whom the application maps to no name.
#[cold]
pub(crate) fn unmapped_user(user: &str, header: &HeaderName) {
    tracing::error!(
        target: "tower_reverse_proxy",
        user = ?user,
        header = %header,
        "the application's `map` has no name of the user for the backend; the request is refused"
    );
}

/// Logs that a value which is sent along with a user isn't a field value. The value isn't shown, because it may be a
/// secret.
#[cold]
pub(crate) fn unrepresentable_value(header: &HeaderName, reason: &str) {
    tracing::error!(
        target: "tower_reverse_proxy",
        header = %header,
        reason,
        "a value that goes with the user can't be represented in a header field; the request is refused"
    );
}

/// Logs that a request doesn't have the extension from which a layer reads the user, or what belongs to the user.
#[cold]
pub(crate) fn missing_extension(extension: &str) {
    tracing::warn!(
        target: "tower_reverse_proxy",
        extension,
        "a request has no extension of the type that an upstream layer reads; unless only requests of signed-in users \
         have it, add the layer that inserts it to the router after the proxy, and look for a second version of its \
         crate with `cargo tree --duplicates`"
    );
}

/// Logs a user name that Basic credentials can't contain.
#[cold]
pub(crate) fn unrepresentable_in_basic(user: &str) {
    tracing::error!(
        target: "tower_reverse_proxy",
        user = ?user,
        "the user name can't be represented in Basic credentials; the request is refused"
    );
}

/// Logs that the backend answered 401 to the proxy's credentials: at error level if they are the front's, whose
/// configuration is wrong, at warn level if they are a user's. `schemes` are names of schemes only.
#[cold]
pub(crate) fn credentials_refused(of_front: bool, backend: &str, schemes: &str) {
    if of_front {
        tracing::error!(target: "tower_reverse_proxy", backend, schemes, "the backend refuses the front's credentials");
    } else {
        tracing::warn!(target: "tower_reverse_proxy", backend, schemes, "the backend refuses a user's credentials");
    }
}

/// Logs that a request is, or would be, another principal's than the one meant.
#[cfg(all(unix, feature = "negotiate"))]
#[cold]
pub(crate) fn wrong_speaker(error: &dyn fmt::Display) {
    tracing::error!(
        target: "tower_reverse_proxy",
        %error,
        "the Kerberos credentials speak for another principal than the one meant; the request is refused"
    );
}

/// Logs that the front's own Kerberos credential isn't renewed, which an operator can mend before it expires.
#[cfg(all(unix, feature = "negotiate"))]
#[cold]
pub(crate) fn credentials_not_renewed(principal: &str, error: &dyn fmt::Display) {
    tracing::warn!(
        target: "tower_reverse_proxy",
        principal,
        %error,
        "the front's Kerberos credential can't be renewed; the previous one is used until it expires"
    );
}

/// Logs that no KDC answers at the start, because the application starts nevertheless.
#[cfg(all(unix, feature = "negotiate"))]
#[cold]
pub(crate) fn unreachable_at_start(error: &dyn fmt::Display) {
    tracing::warn!(
        target: "tower_reverse_proxy",
        %error,
        "no KDC answers; requests that need a Kerberos ticket fail until one does"
    );
}

/// Logs that a token can't be fetched, which no response shows while the old one is valid.
#[cold]
pub(crate) fn failed_fetch(error: &Error) {
    tracing::warn!(target: "tower_reverse_proxy", cause = causes(error), "a bearer token can't be fetched");
}

/// Logs that a source of members fails, which no response shows.
#[cold]
pub(crate) fn source_fails(error: &(dyn StdError + 'static)) {
    tracing::warn!(
        target: "tower_reverse_proxy",
        cause = chain(Some(error)),
        "a source of backends fails; the last ones stay"
    );
}

/// Logs that a source of members is well again.
#[cold]
pub(crate) fn source_is_back() {
    tracing::info!(target: "tower_reverse_proxy", "a source of backends is well again");
}

/// Logs the removal of an identity claim, which an operator may look for.
pub(crate) fn removed_identity_claim(header: &str) {
    tracing::debug!(
        target: "tower_reverse_proxy",
        header,
        "an identity claim of an untrusted peer is removed"
    );
}

/// Logs the removal of a `Set-Cookie`. The cookie's name isn't shown, because the field is the backend's.
pub(crate) fn removed_set_cookie() {
    tracing::debug!(target: "tower_reverse_proxy", "a Set-Cookie for a hidden cookie is removed");
}

/// Logs a 1xx response of the backend.
pub(crate) fn informational_response(status: StatusCode) {
    tracing::debug!(
        target: "tower_reverse_proxy",
        status = status.as_u16(),
        "an informational response isn't forwarded"
    );
}

/// Logs that a member of a set gets no more requests. `cause`: why its last check has failed.
#[cold]
pub(crate) fn member_out(member: &str, state: &dyn fmt::Display, reason: &str, cause: Option<&str>) {
    tracing::warn!(target: "tower_reverse_proxy", member, %state, reason, cause, "a member is taken out of its set");
}

/// Logs that a member of a set gets requests again.
#[cold]
pub(crate) fn member_back(member: &str) {
    tracing::info!(target: "tower_reverse_proxy", member, "a member is back in its set");
}

/// Logs that a member's check asks for no new requests.
#[cold]
pub(crate) fn member_drains(member: &str) {
    tracing::info!(target: "tower_reverse_proxy", member, "a member is drained by its check");
}

/// Logs the end of an HTTP/2 connection to the backend.
#[cfg(feature = "http2")]
pub(crate) fn broken_connection(error: &dyn fmt::Display) {
    tracing::debug!(target: "tower_reverse_proxy", %error, "an HTTP/2 connection broke off");
}

/// Logs an upgrade of which one side left.
pub(crate) fn incomplete_upgrade(error: &dyn fmt::Display) {
    tracing::debug!(target: "tower_reverse_proxy::tunnel", %error, "an upgrade isn't completed");
}

/// What a tunnel was, at its end.
pub(crate) struct EndedTunnel<'a> {
    /// Bytes from the client.
    pub(crate) up: u64,
    /// Bytes from the backend.
    pub(crate) down: u64,
    pub(crate) age: Duration,
    pub(crate) ended_by: &'static str,
    pub(crate) error: Option<&'a str>,
}

/// Logs the end of a tunnel.
pub(crate) fn ended_tunnel(tunnel: &EndedTunnel<'_>) {
    let &EndedTunnel { up, down, age, ended_by, error } = tunnel;
    tracing::info!(
        target: "tower_reverse_proxy::tunnel",
        up,
        down,
        age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        ended_by,
        error,
        "a tunnel has ended"
    );
}

/// Logs a redirect of the backend. `target` and `location` have been redacted.
pub(crate) fn redirect(method: &Method, target: &str, status: StatusCode, location: &str) {
    tracing::info!(
        target: "tower_reverse_proxy::redirect",
        method = %method,
        target = %target,
        status = status.as_u16(),
        location = ?location,
        "the backend redirects"
    );
}
