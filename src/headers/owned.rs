//! Fields that an upstream layer sets in place of the client's.

use http::{HeaderName, Request};

use super::{hop::is_framing, reserved::remove_folded, trailers::ForbiddenTrailers};

/// Returns the name of a field that a layer is to set. `example` is shown in the panics.
///
/// # Panics
///
/// If it isn't the name of a header field, or is that of a field of the connection or the message.
#[track_caller]
pub(crate) fn field_name(name: impl TryInto<HeaderName>, example: &str) -> HeaderName {
    let Ok(name) = name.try_into() else {
        panic!("invalid name of a header field: write letters, digits and hyphens, such as {example:?}")
    };
    assert!(
        !is_framing(&name),
        "the field {name} is the connection's or the message's own: write another name, such as {example:?}"
    );
    name
}

/// Removes the client's copies of a field in every spelling that a server folds into the same variable, those among the
/// trailers included.
pub(crate) fn remove<B>(request: &mut Request<B>, name: &HeaderName) {
    remove_folded(request.headers_mut(), name);
    ForbiddenTrailers::add(request.extensions(), name);
}
