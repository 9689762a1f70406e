//! Decides what a response, an error or an abort shows about the member that an attempt was sent to.
//!
//! Only evidence against the member counts: a client that leaves early, an upstream layer that refuses a request, and a
//! lack of descriptors in this process show nothing about it.

use std::{
    error::Error as StdError,
    iter,
    time::{Duration, SystemTime},
};

use http::{
    HeaderMap, Response, StatusCode,
    header::{DATE, RETRY_AFTER},
};
use http_body::Body;
use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};

use super::eject::Eject;
use crate::{
    error::{Error, ErrorKind, Phase},
    headers::grpc,
};

/// What an attempt shows about its member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    /// A 5xx that the request may have provoked, such as 500: no fault in a row, but one in the comparison of the
    /// members.
    ServerError,
    Fault {
        /// `Retry-After` of a 503.
        retry_after: Option<Duration>,
    },
    /// No connection could be opened: a fault, and evidence that the member is down.
    Unreachable,
    /// Half a fault: the client left after the member had had more than enough time.
    HalfFault,
    Nothing,
}

/// The head of a response.
#[derive(Debug)]
pub(super) struct ResponseHead<'a> {
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
    /// Whether there is no body.
    pub(super) is_whole: bool,
}

impl<'a> ResponseHead<'a> {
    pub(super) fn of<B: Body>(response: &'a Response<B>) -> Self {
        let is_whole = response.body().is_end_stream();
        Self { status: response.status(), headers: response.headers(), is_whole }
    }
}

const FAULT: Outcome = Outcome::Fault { retry_after: None };

impl Outcome {
    /// Returns what the head of a response shows.
    pub(super) fn of_head(&ResponseHead { status, headers, is_whole }: &ResponseHead<'_>, eject: &Eject) -> Self {
        if eject.counts_status(status) {
            return Self::Fault { retry_after: retry_after(headers) };
        }
        match status {
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => FAULT,
            StatusCode::SERVICE_UNAVAILABLE => Self::Fault { retry_after: retry_after(headers) },
            // The limit is usually the client's.
            StatusCode::TOO_MANY_REQUESTS => Self::Nothing,
            _ if status.is_server_error() => Self::ServerError,
            // A trailers-only response has no body.
            _ if is_whole && grpc::is_unavailable(headers) => FAULT,
            _ => Self::Success,
        }
    }

    /// Returns what the error of an attempt shows. It's found in the chain of causes, because layers wrap errors.
    pub(super) fn of_error(error: &(dyn StdError + 'static)) -> Self {
        for cause in causes(error) {
            if let Some(error) = cause.downcast_ref::<Error>() {
                return Self::of_failure(error);
            }
            if cause.is::<Overloaded>() {
                return Self::Nothing;
            }
            if cause.is::<Elapsed>() {
                return FAULT;
            }
        }
        // The error of a service of another crate.
        FAULT
    }

    /// Returns what the error of a response's body shows.
    pub(super) fn of_body_error(error: &(dyn StdError + 'static)) -> Self {
        causes(error).find_map(<dyn StdError>::downcast_ref::<Error>).map_or(FAULT, Self::of_failure)
    }

    fn of_failure(error: &Error) -> Self {
        if error.is_client() || error.is_local() || error.phase() == Phase::Request {
            return Self::Nothing;
        }
        match error.kind() {
            ErrorKind::Connect | ErrorKind::ConnectTimeout => Self::Unreachable,
            ErrorKind::ConnectionClosed
            | ErrorKind::InvalidResponse
            | ErrorKind::HeaderTimeout
            | ErrorKind::SendTimeout
            | ErrorKind::UnexpectedUpgrade
            | ErrorKind::ResponseBody
            | ErrorKind::ResponseBodyTimeout
            | ErrorKind::Upstream => FAULT,
            // One URL may have such a response at each member.
            ErrorKind::ResponseHeadTooLarge => Self::ServerError,
            // A lack of capacity is the proxy's, and one of credentials the operator's.
            _ => Self::Nothing,
        }
    }

    /// Returns what an attempt shows that ended before its response, because its future was dropped after `elapsed`.
    ///
    /// `usual` is the median latency of the set. `timed_out`: the proxy gave up, by its header timeout or because the
    /// backend took no part of the request's body. Otherwise the client left. If it did so after more than enough time,
    /// the member may hang: clients leave before the header timeout elapses.
    pub(super) fn of_abort(elapsed: Duration, usual: Option<Duration>, timed_out: bool) -> Self {
        // The last attempt of several may have begun just before.
        let had_time = usual.is_none_or(|usual| elapsed >= usual.saturating_mul(2));
        if timed_out {
            if had_time { FAULT } else { Self::Nothing }
        } else if elapsed >= patience(usual) {
            Self::HalfFault
        } else {
            Self::Nothing
        }
    }

    /// Returns the faults in halves.
    pub(super) fn halves(self) -> u32 {
        match self {
            Self::Fault { .. } | Self::Unreachable => 2,
            Self::HalfFault => 1,
            Self::Success | Self::ServerError | Self::Nothing => 0,
        }
    }
}

/// Returns the time after which a client that leaves is evidence: ten times the usual latency, and at least a second.
pub(super) fn patience(usual: Option<Duration>) -> Duration {
    const LEAST: Duration = Duration::from_secs(1);
    usual.map_or(LEAST, |usual| usual.saturating_mul(10).max(LEAST))
}

/// Returns the time of a `Retry-After`, in seconds or as a date (RFC 9110, section 10.2.3). A date is compared with
/// that of the response, because the clocks of the member and of this machine may differ.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let value = text(RETRY_AFTER)?;
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let now = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or_else(SystemTime::now);
    Some(date.duration_since(now).unwrap_or_default())
}

/// Returns the error and the chain of its causes.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    // A chain that is longer than this is a cycle.
    iter::successors(Some(error), |&cause| cause.source()).take(64)
}

#[cfg(test)]
mod tests {
    use axum_core::BoxError;

    use super::*;

    fn of_head(status: u16, fields: &[(&'static str, &'static str)]) -> Outcome {
        let headers = fields.iter().map(|(name, value)| (name.parse().unwrap(), http::HeaderValue::from_static(value)));
        let (status, headers) = (StatusCode::from_u16(status).unwrap(), &headers.collect());
        Outcome::of_head(&ResponseHead { status, headers, is_whole: true }, &Eject::default())
    }

    #[test]
    fn a_status_shows_what_the_table_says() {
        for (status, expected) in [
            (101, Outcome::Success),
            (200, Outcome::Success),
            (304, Outcome::Success),
            (404, Outcome::Success),
            (429, Outcome::Nothing),
            (500, Outcome::ServerError),
            (501, Outcome::ServerError),
            (502, FAULT),
            (503, FAULT),
            (504, FAULT),
            (505, Outcome::ServerError),
            (599, Outcome::ServerError),
        ] {
            assert_eq!(of_head(status, &[]), expected, "{status}");
        }
    }

    #[test]
    fn only_the_status_of_a_response_without_messages_counts_in_grpc() {
        for (value, expected) in
            [("14", FAULT), ("0", Outcome::Success), ("13", Outcome::Success), ("1", Outcome::Success)]
        {
            assert_eq!(of_head(200, &[("grpc-status", value)]), expected, "{value}");
        }
    }

    #[test]
    fn retry_after_is_read_in_seconds() {
        for (value, expected) in [
            ("7", Some(7)),
            (" 7 ", Some(7)),
            ("0", Some(0)),
            ("-1", None),
            ("7.5", None),
            // It's over.
            ("Fri, 31 Dec 1999 23:59:59 GMT", Some(0)),
            ("Fri, 31 Dec 1999", None),
            ("99999999999999999999", None),
            ("", None),
        ] {
            let retry_after = expected.map(Duration::from_secs);
            assert_eq!(of_head(503, &[("retry-after", value)]), Outcome::Fault { retry_after }, "{value:?}");
        }
        assert_eq!(of_head(502, &[("retry-after", "7")]), FAULT);
    }

    #[test]
    fn a_date_is_compared_with_that_of_the_response() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:30 GMT");
        for (value, expected) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(7)),
            ("Sun Nov  6 08:49:37 1994", Some(7)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
        ] {
            let retry_after = expected.map(Duration::from_secs);
            assert_eq!(of_head(503, &[("retry-after", value), date]), Outcome::Fault { retry_after }, "{value:?}");
        }
        // Without a date, this machine's counts.
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let fields = [(RETRY_AFTER, later.parse().unwrap())].into_iter().collect();
        let time = retry_after(&fields).unwrap();
        assert!((90..=100).contains(&time.as_secs()), "{time:?}");
    }

    #[test]
    fn a_status_of_the_operator_is_a_fault() {
        let eject = Eject::default().statuses([StatusCode::TOO_MANY_REQUESTS]);
        let headers = &HeaderMap::new();
        let of_head = |status| Outcome::of_head(&ResponseHead { status, headers, is_whole: true }, &eject);
        assert_eq!(of_head(StatusCode::TOO_MANY_REQUESTS), FAULT);
        assert_eq!(of_head(StatusCode::INTERNAL_SERVER_ERROR), Outcome::ServerError);
    }

    #[derive(Debug)]
    struct Wrapped(BoxError);

    impl std::fmt::Display for Wrapped {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a layer wraps it")
        }
    }

    impl StdError for Wrapped {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&*self.0)
        }
    }

    #[test]
    fn only_an_error_against_the_member_counts() {
        use ErrorKind as K;
        for (kind, expected) in [
            (K::Connect, Outcome::Unreachable),
            (K::ConnectTimeout, Outcome::Unreachable),
            (K::ConnectionClosed, FAULT),
            (K::InvalidResponse, FAULT),
            (K::HeaderTimeout, FAULT),
            (K::SendTimeout, FAULT),
            (K::UnexpectedUpgrade, FAULT),
            (K::ResponseBody, FAULT),
            (K::ResponseBodyTimeout, FAULT),
            (K::Upstream, FAULT),
            (K::ResponseHeadTooLarge, Outcome::ServerError),
            (K::Overloaded, Outcome::Nothing),
            (K::ClientGone, Outcome::Nothing),
            (K::RequestBody, Outcome::Nothing),
            (K::RequestBodyTimeout, Outcome::Nothing),
            (K::InvalidTarget, Outcome::Nothing),
            (K::SignInRequired, Outcome::Nothing),
            (K::IdentityUnknown, Outcome::Nothing),
            (K::CredentialsMissing, Outcome::Nothing),
            (K::CredentialsRefused, Outcome::Nothing),
            (K::WrongSpeaker, Outcome::Nothing),
        ] {
            assert_eq!(Outcome::of_error(&Error::new(kind)), expected, "{kind:?}");
            assert_eq!(Outcome::of_error(&Wrapped(Error::new(kind).into())), expected, "wrapped {kind:?}");
        }
    }

    #[test]
    fn a_refusal_of_a_layer_is_no_fault_whatever_its_status() {
        for status in [StatusCode::FORBIDDEN, StatusCode::SERVICE_UNAVAILABLE] {
            assert_eq!(Outcome::of_error(&Error::rejected(status, "no")), Outcome::Nothing, "{status}");
        }
    }

    #[test]
    fn errors_of_other_crates_are_faults_but_for_shed_load() {
        assert_eq!(Outcome::of_error(&Overloaded::new()), Outcome::Nothing);
        assert_eq!(Outcome::of_error(&Wrapped(Elapsed::new().into())), FAULT);
        assert_eq!(Outcome::of_error(&std::io::Error::other("reset")), FAULT);
    }

    #[test]
    fn a_client_that_leaves_late_is_half_a_fault() {
        let ms = Duration::from_millis;
        for (elapsed, usual, timed_out, expected) in [
            (ms(150), None, false, Outcome::Nothing),
            (ms(999), Some(ms(20)), false, Outcome::Nothing),
            (ms(1000), Some(ms(20)), false, Outcome::HalfFault),
            (ms(1000), None, false, Outcome::HalfFault),
            (ms(2999), Some(ms(300)), false, Outcome::Nothing),
            (ms(3000), Some(ms(300)), false, Outcome::HalfFault),
            (ms(150), None, true, FAULT),
            (ms(600), Some(ms(300)), true, FAULT),
            (ms(599), Some(ms(300)), true, Outcome::Nothing),
        ] {
            assert_eq!(Outcome::of_abort(elapsed, usual, timed_out), expected, "{elapsed:?} {usual:?} {timed_out}");
        }
    }
}
