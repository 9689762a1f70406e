//! A sign-in for test beds: it takes the user's name from the request without a check.

use axum::{
    http::{HeaderMap, Request, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use tower_reverse_proxy::RemoteUser;

/// Signs in the user that the request names: `X-Test-User`, else Basic credentials with the password `front-secret`.
#[expect(clippy::result_large_err, reason = "it is the response")]
pub(crate) fn sign_in<B>(request: &mut Request<B>) -> Result<(), Response> {
    let user = test_user(request.headers());
    let user = user.map_err(|wrong| (StatusCode::BAD_REQUEST, wrong).into_response())?;
    if let Some(user) = user {
        request.extensions_mut().insert(RemoteUser::from(user));
    }
    request.headers_mut().remove("x-test-user");
    Ok(())
}

fn test_user(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    if let Some(value) = headers.get("x-test-user") {
        let name = percent_encoding::percent_decode(value.as_bytes()).decode_utf8();
        return name.map(|name| Some(name.into_owned())).map_err(|_| "X-Test-User isn't UTF-8");
    }
    let basic = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Basic "));
    let decoded = basic.and_then(|encoded| BASE64_STANDARD.decode(encoded).ok());
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(text.and_then(|text| text.strip_suffix(":front-secret").map(str::to_owned)))
}
