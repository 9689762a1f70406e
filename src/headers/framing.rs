//! Fields that delimit a message (RFC 9112, section 6). The HTTP stack does the framing itself.

use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
};
use http_body::SizeHint;

use super::{members, present::Present};
use crate::error::ErrorKind;

/// Refuses a message whose `Transfer-Encoding` isn't exactly one `chunked`.
///
/// hyper decodes `chunked` and ignores the other codings in `gzip, chunked` or a repeated `chunked`. The body would be
/// forwarded without the field that names its other codings (RFC 9112, section 6.1).
pub(crate) fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), ErrorKind> {
    let mut lines = headers.get_all(TRANSFER_ENCODING).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(()),
        (Some(value), None) if value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ if members(headers, TRANSFER_ENCODING).all(|coding| coding.eq_ignore_ascii_case(b"chunked")) => {
            Err(ErrorKind::InvalidTransferEncoding)
        }
        _ => Err(ErrorKind::UnsupportedTransferCoding),
    }
}

/// Makes `Content-Length` and `Transfer-Encoding` match the body of a request. Equal lengths become one
/// `Content-Length` without leading zeros (RFC 9110, section 8.6).
///
/// An outer layer may have removed or replaced the body and left the field. hyper drops the body of a GET if its length
/// is unknown and no field announces it.
///
/// # Errors
///
/// If the lengths differ or aren't numbers. HTTP/2 servers may read the first line only, and the backend would then get
/// another length than the body has.
pub(crate) fn reconcile_request(headers: &mut HeaderMap, body: &SizeHint) -> Result<(), ErrorKind> {
    match (content_length(headers), body.exact()) {
        (Some(declared), exact) => {
            let given = declared.length.ok_or(ErrorKind::InvalidContentLength)?;
            let length = exact.unwrap_or(given);
            if given != length || !declared.canonical {
                headers.insert(CONTENT_LENGTH, length.into());
            }
        }
        (None, Some(_)) => {}
        (None, None) => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    Ok(())
}

/// Leaves one framing in a response (RFC 9112, section 6.3).
///
/// The `Content-Length` of a chunked response is removed, and equal lengths become one. If the body's `length` is
/// known, it replaces a different `Content-Length`, which an upstream layer may have left.
///
/// `has` is what the response had before `Transfer-Encoding` is removed.
///
/// # Errors
///
/// If there is a coding other than `chunked`, because the client would take the encoded body for the decoded one; and
/// if the lengths differ or aren't numbers.
pub(crate) fn reconcile_response(headers: &mut HeaderMap, has: Present, length: Option<u64>) -> Result<(), ErrorKind> {
    if has.transfer_encoding {
        check_transfer_encoding(headers).map_err(|_| ErrorKind::InvalidResponse)?;
        headers.remove(CONTENT_LENGTH);
    } else if has.content_length
        && let Some(declared) = content_length(headers)
    {
        let length = length.or(declared.length).ok_or(ErrorKind::InvalidResponse)?;
        if declared.length != Some(length) || !declared.canonical {
            headers.insert(CONTENT_LENGTH, length.into());
        }
    }
    Ok(())
}

/// A parsed `Content-Length`.
struct DeclaredLength {
    /// `None` if it isn't a number, or if several numbers differ.
    length: Option<u64>,
    /// Whether it's a single number without leading zeros, which some parsers read as octal.
    canonical: bool,
}

fn content_length(headers: &HeaderMap) -> Option<DeclaredLength> {
    let mut lines = headers.get_all(CONTENT_LENGTH).iter();
    let first = lines.next()?;
    // Fast path: one line with one number.
    let digits = first.as_bytes();
    if let (Some(length), None) = (parse_length(digits), lines.next()) {
        return Some(DeclaredLength { length: Some(length), canonical: digits[0] != b'0' || digits.len() == 1 });
    }
    let mut declared = members(headers, CONTENT_LENGTH).map(parse_length);
    let length = declared.next().flatten();
    let others = declared.map(|other| other == length).collect::<Vec<_>>();
    Some(DeclaredLength { length: length.filter(|_| others.iter().all(|&same| same)), canonical: false })
}

/// Parses digits only, because `str::parse` accepts a sign.
fn parse_length(digits: &[u8]) -> Option<u64> {
    let digit = |b: u8| b.is_ascii_digit().then(|| u64::from(b - b'0'));
    let (&first, rest) = digits.split_first()?;
    rest.iter().try_fold(digit(first)?, |number, &b| number.checked_mul(10)?.checked_add(digit(b)?))
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn map(lines: &[(HeaderName, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn only_a_single_chunked_is_accepted() {
        for (lines, result) in [
            (&[][..], Ok(())),
            (&["chunked"], Ok(())),
            (&["CHUnked"], Ok(())),
            (&["chunked, chunked"], Err(ErrorKind::InvalidTransferEncoding)),
            (&["chunked", "chunked"], Err(ErrorKind::InvalidTransferEncoding)),
            (&[""], Err(ErrorKind::InvalidTransferEncoding)),
            (&["chunked,"], Err(ErrorKind::InvalidTransferEncoding)),
            (&["gzip, chunked"], Err(ErrorKind::UnsupportedTransferCoding)),
            (&["identity", "chunked"], Err(ErrorKind::UnsupportedTransferCoding)),
            (&["chunked;a=b"], Err(ErrorKind::UnsupportedTransferCoding)),
        ] {
            let lines: Vec<_> = lines.iter().map(|&line| (TRANSFER_ENCODING, line)).collect();
            assert_eq!(check_transfer_encoding(&map(&lines)), result, "{lines:?}");
        }
    }

    #[test]
    fn the_framing_fields_of_a_request_match_its_body() {
        for (field, body, length, chunked) in [
            (Some("5"), SizeHint::with_exact(5), Some("5"), false),
            (Some("5"), SizeHint::with_exact(0), Some("0"), false),
            (None, SizeHint::with_exact(0), None, false),
            (None, SizeHint::with_exact(5), None, false),
            (None, SizeHint::new(), None, true),
            (Some("5"), SizeHint::new(), Some("5"), false),
        ] {
            let mut headers = map(&field.map(|value| (CONTENT_LENGTH, value)).into_iter().collect::<Vec<_>>());
            assert_eq!(reconcile_request(&mut headers, &body), Ok(()));
            assert_eq!(headers.get(CONTENT_LENGTH).map(|value| value.to_str().unwrap()), length);
            assert_eq!(headers.contains_key(TRANSFER_ENCODING), chunked);
        }
    }

    #[test]
    fn a_request_has_one_length() {
        for (lines, result) in [
            (&[][..], Ok(None)),
            (&["5"], Ok(Some("5"))),
            (&["5", "5"], Ok(Some("5"))),
            (&["5, 5", "5"], Ok(Some("5"))),
            (&["5,"], Ok(Some("5"))),
            (&["005"], Ok(Some("5"))),
            (&["5", "6"], Err(ErrorKind::InvalidContentLength)),
            (&["5, 6"], Err(ErrorKind::InvalidContentLength)),
            (&["+5"], Err(ErrorKind::InvalidContentLength)),
            (&[""], Err(ErrorKind::InvalidContentLength)),
            (&["5", ""], Ok(Some("5"))),
            (&["99999999999999999999"], Err(ErrorKind::InvalidContentLength)),
        ] {
            let mut headers = map(&lines.iter().map(|&line| (CONTENT_LENGTH, line)).collect::<Vec<_>>());
            let outcome = reconcile_request(&mut headers, &SizeHint::with_exact(5));
            assert_eq!(outcome, result.map(|_| ()), "{lines:?}");
            if let Ok(length) = result {
                assert_eq!(headers.get_all(CONTENT_LENGTH).iter().collect::<Vec<_>>(), Vec::from_iter(length));
            }
        }
    }

    #[test]
    fn a_response_has_one_framing() {
        for (lines, length, result) in [
            (&["3"][..], None, Some("3")),
            (&["3"], Some(3), Some("3")),
            (&["3"], Some(5), Some("5")),
            (&["2", "2"], None, Some("2")),
            (&["2, 2"], None, Some("2")),
            (&["02"], None, Some("2")),
            (&["0"], None, Some("0")),
            (&["00"], Some(0), Some("0")),
            (&["2", "3"], None, None),
            (&["2, 3"], None, None),
        ] {
            let mut headers = map(&lines.iter().map(|&line| (CONTENT_LENGTH, line)).collect::<Vec<_>>());
            let has = Present::in_response(&headers);
            let outcome = reconcile_response(&mut headers, has, length);
            assert_eq!(outcome.is_ok(), result.is_some(), "{lines:?}");
            if let Some(result) = result {
                assert_eq!(headers.get_all(CONTENT_LENGTH).iter().collect::<Vec<_>>(), [result], "{lines:?}");
            }
        }
        let mut headers = map(&[(CONTENT_LENGTH, "3"), (TRANSFER_ENCODING, "chunked")]);
        let has = Present::in_response(&headers);
        assert_eq!(reconcile_response(&mut headers, has, None), Ok(()));
        assert!(!headers.contains_key(CONTENT_LENGTH));
        let mut headers = map(&[(TRANSFER_ENCODING, "gzip, chunked")]);
        let has = Present::in_response(&headers);
        assert_eq!(reconcile_response(&mut headers, has, None), Err(ErrorKind::InvalidResponse));
    }
}
