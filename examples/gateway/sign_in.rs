//! A sign-in for test beds: it takes the user's name and groups from the request without a check.

use axum::{
    http::{HeaderMap, Request, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use tower_reverse_proxy::RemoteUser;

/// The groups of the user that is signed in, as a request extension.
#[derive(Clone)]
pub(crate) struct Groups(pub(crate) Vec<String>);

/// Signs in the user that the request names: `X-Test-User`, else Basic credentials with the password `front-secret`.
/// `X-Test-Groups` names the user's groups.
#[expect(clippy::result_large_err, reason = "it is the response")]
pub(crate) fn sign_in<B>(request: &mut Request<B>) -> Result<(), Response> {
    let user = test_user(request.headers());
    let bad_request = |wrong| (StatusCode::BAD_REQUEST, wrong).into_response();
    let user = user.map_err(bad_request)?;
    let groups = test_groups(request.headers()).map_err(bad_request)?;
    if let Some(user) = user {
        request.extensions_mut().insert(RemoteUser::from(user));
        request.extensions_mut().insert(Groups(groups));
    }
    for name in ["x-test-user", "x-test-groups"] {
        request.headers_mut().remove(name);
    }
    Ok(())
}

/// Each member of the list is percent-decoded by itself, so that a test can put a comma into it.
fn test_groups(headers: &HeaderMap) -> Result<Vec<String>, &'static str> {
    let lines = headers.get_all("x-test-groups").iter().filter(|line| !line.is_empty());
    let members = lines.flat_map(|line| line.as_bytes().split(|&b| b == b','));
    let decoded = members.map(|member| percent_encoding::percent_decode(member.trim_ascii()).decode_utf8());
    let groups: Result<_, _> = decoded.map(|group| group.map(String::from)).collect();
    groups.map_err(|_| "X-Test-Groups isn't UTF-8")
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
