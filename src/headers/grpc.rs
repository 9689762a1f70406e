//! gRPC over HTTP/2: requests whose clients expect a gRPC status, and that status for a failure.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};

use crate::error::ErrorKind;

// Not a constant, which would be made and dropped for each comparison.
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_RETRY_PUSHBACK_MS: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Whether a request is a gRPC call: its media type is `application/grpc`, with or without a suffix or parameters.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .trim_ascii_start()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
    })
}

/// Whether a response is a trailers-only one with the status `UNAVAILABLE`: its server had no capacity for the call.
pub(crate) fn is_unavailable(headers: &HeaderMap) -> bool {
    // Nearly every response has other fields only, and reading their names costs less than a look-up does.
    let mut statuses = headers.iter().filter(|&(name, _)| *name == GRPC_STATUS);
    statuses.any(|(_, status)| status.as_bytes().trim_ascii() == UNAVAILABLE.as_bytes())
}

/// Sets the fields of a trailers-only response, which is how a gRPC server reports a failure before any message.
pub(crate) fn set_failure(headers: &mut HeaderMap, kind: ErrorKind, status: StatusCode) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(&GRPC_STATUS, HeaderValue::from_static(status_of(kind, status)));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(status.canonical_reason().unwrap_or("Error")));
}

/// Sets when the client may try again: gRPC's `Retry-After` (gRFC A6, "Pushback").
pub(crate) fn set_pushback(headers: &mut HeaderMap, seconds: u16) {
    headers.insert(GRPC_RETRY_PUSHBACK_MS, HeaderValue::from(u32::from(seconds) * 1000));
}

/// Maps a failure to a gRPC status code, by the HTTP status that other clients get.
fn status_of(kind: ErrorKind, status: StatusCode) -> &'static str {
    match status {
        // Without a challenge, its HTTP status is 403, which would be PERMISSION_DENIED.
        _ if kind == ErrorKind::SignInRequired => UNAUTHENTICATED,
        StatusCode::UNAUTHORIZED => UNAUTHENTICATED,
        StatusCode::BAD_REQUEST | StatusCode::INTERNAL_SERVER_ERROR => INTERNAL,
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => DEADLINE_EXCEEDED,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            RESOURCE_EXHAUSTED
        }
        StatusCode::NOT_IMPLEMENTED | StatusCode::NOT_FOUND => UNIMPLEMENTED,
        StatusCode::FORBIDDEN => PERMISSION_DENIED,
        StatusCode::LOOP_DETECTED => FAILED_PRECONDITION,
        _ => UNAVAILABLE,
    }
}

const DEADLINE_EXCEEDED: &str = "4";
const PERMISSION_DENIED: &str = "7";
const RESOURCE_EXHAUSTED: &str = "8";
const FAILED_PRECONDITION: &str = "9";
const UNIMPLEMENTED: &str = "12";
const INTERNAL: &str = "13";
const UNAVAILABLE: &str = "14";
const UNAUTHENTICATED: &str = "16";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_recognized_by_its_media_type() {
        for (content_type, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            (" application/grpc", true),
            ("application/grpc-web", false),
            ("application/grpcx", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
            assert_eq!(is_grpc(&headers), expected, "{content_type:?}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn each_failure_has_one_status() {
        use ErrorKind as E;
        for (kind, code) in [
            (E::InvalidTarget, INTERNAL),
            (E::InvalidHost, INTERNAL),
            (E::TargetTooLong, RESOURCE_EXHAUSTED),
            (E::RequestHeadTooLarge, RESOURCE_EXHAUSTED),
            (E::RequestBodyTooLarge, RESOURCE_EXHAUSTED),
            (E::UnsupportedMethod, UNIMPLEMENTED),
            (E::UnsupportedTransferCoding, UNIMPLEMENTED),
            (E::LoopDetected, FAILED_PRECONDITION),
            (E::SignInRequired, UNAUTHENTICATED),
            (E::UnrepresentableUser, PERMISSION_DENIED),
            (E::RequestBodyTimeout, DEADLINE_EXCEEDED),
            (E::SendTimeout, DEADLINE_EXCEEDED),
            (E::HeaderTimeout, DEADLINE_EXCEEDED),
            (E::ConnectTimeout, DEADLINE_EXCEEDED),
            (E::Connect, UNAVAILABLE),
            (E::Overloaded, UNAVAILABLE),
            (E::ConnectionClosed, UNAVAILABLE),
            (E::Upstream, UNAVAILABLE),
        ] {
            assert_eq!(status_of(kind, crate::error::Error::from(kind).status()), code, "{kind:?}");
        }
        for (status, code) in [
            (StatusCode::UNAUTHORIZED, UNAUTHENTICATED),
            (StatusCode::FORBIDDEN, PERMISSION_DENIED),
            (StatusCode::NOT_FOUND, UNIMPLEMENTED),
            (StatusCode::INTERNAL_SERVER_ERROR, INTERNAL),
            (StatusCode::TOO_MANY_REQUESTS, UNAVAILABLE),
        ] {
            assert_eq!(status_of(E::Upstream, status), code, "{status}");
        }
    }

    #[test]
    fn a_failure_is_a_trailers_only_response() {
        let mut headers = HeaderMap::new();
        set_failure(&mut headers, ErrorKind::HeaderTimeout, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(headers[CONTENT_TYPE], "application/grpc");
        assert_eq!(headers[&GRPC_STATUS], DEADLINE_EXCEEDED);
        assert_eq!(headers[GRPC_MESSAGE], "Gateway Timeout");
    }

    #[test]
    fn an_unavailable_server_is_recognized_in_a_trailers_only_response() {
        for (status, expected) in [("14", true), (" 14", true), ("0", false), ("1", false), ("140", false)] {
            let headers = HeaderMap::from_iter([(GRPC_STATUS.clone(), HeaderValue::from_str(status).unwrap())]);
            assert_eq!(is_unavailable(&headers), expected, "{status:?}");
        }
        assert!(!is_unavailable(&HeaderMap::new()));
    }
}
