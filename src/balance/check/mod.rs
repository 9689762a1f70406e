//! Active health checks: their options, and one check of one member.

mod task;

use std::{
    error, fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use axum_core::body::Body;
use http::{Request, StatusCode, Uri, header::HOST, response::Parts, uri::PathAndQuery};
use tower::ServiceExt;

pub(super) use self::task::CheckTask;
use crate::{backend::Backend, client::Client, observe};

/// An active health check: a `GET` that each member answers with a 2xx while it's well.
///
/// Every [interval](Self::interval), 5 seconds by default, each member gets a request over a connection of its own, by
/// the member's protocol: TLS, HTTP/2 and Unix sockets included. It has the member's authority as its `Host`, needs no
/// permit of [`max_requests`](super::BackendsBuilder::max_requests) or
/// [`max_connections`](crate::ClientBuilder::max_connections), and isn't counted in the [status](super::MemberStatus).
///
/// [Three](Self::fall) failures in a row take a member out, [two](Self::rise) successes bring it back. In between, it's
/// checked every second, or every interval if that is shorter. With a check, it alone brings a member back that was
/// taken out, whatever the reason. A member that is added to a running set gets requests after its first success.
///
/// ```
/// use std::time::Duration;
/// use tower_reverse_proxy::{Backends, balance::Check};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let backends = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
///     .check(Check::get("/healthz").interval(Duration::from_secs(2)))
///     .build()?;
/// # let _ = backends;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[doc(alias = "health check")]
#[doc(alias = "option httpchk")]
#[doc(alias = "healthcheck")]
#[must_use = "a check does nothing until it's an option of backends"]
pub struct Check {
    path: String,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    pub(super) fall: u32,
    pub(super) rise: u32,
    judge: Judge,
}

type Judge = Arc<dyn Fn(&Parts) -> Verdict + Send + Sync>;

/// What the response to a [`Check`] means: see [`Check::judge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The member is well.
    Up,
    /// The member is well, and is about to leave: it gets only the requests of the [sessions](super::Sticky::cookie)
    /// that it has, and those under way end by themselves.
    Drain,
    /// The member is well, and gets so many percent of what its own [weight](super::Member::weight) gives it, from 1 to
    /// 100: it announces its load, or that it warms up. `Up` is 100.
    ///
    /// 0 is [`Drain`](Self::Drain). More than 100 counts as 100, because a member that could raise its share would
    /// attract the requests of the others. [`MemberStatus::weight_percent`](super::MemberStatus::weight_percent) shows
    /// what counts.
    ///
    /// It applies to the requests in flight, to turns, and to hashed keys, of which a part goes to other members.
    /// Sessions stay.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::{Check, Verdict};
    ///
    /// // `X-Capacity: 25`: a quarter of its weight.
    /// let check = Check::get("/healthz").judge(|response| {
    ///     let capacity = response.headers.get("x-capacity").and_then(|value| value.to_str().ok()?.parse().ok());
    ///     match capacity {
    ///         _ if !response.status.is_success() => Verdict::Down,
    ///         Some(percent) => Verdict::Weight(percent),
    ///         None => Verdict::Up,
    ///     }
    /// });
    /// # let _ = check;
    /// ```
    Weight(u8),
    /// The check has failed.
    Down,
}

impl Check {
    /// Checks with a `GET` of this path, which may have a query. It's the path at the member itself, without the
    /// proxy's prefix.
    ///
    /// A path without a `/` at its beginning is an error of [`build`](super::BackendsBuilder::build).
    ///
    /// ```
    /// use tower_reverse_proxy::balance::Check;
    ///
    /// let check = Check::get("/healthz");
    /// # let _ = check;
    /// ```
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            fall: 3,
            rise: 2,
            judge: Arc::new(|parts| if parts.status.is_success() { Verdict::Up } else { Verdict::Down }),
        }
    }

    /// Sets the time from one check of a member to the next. Default: 5 seconds. It varies by 10 %, so that checks
    /// spread. The shortest interval is 10 ms.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::balance::Check;
    ///
    /// let check = Check::get("/healthz").interval(Duration::from_secs(1));
    /// # let _ = check;
    /// ```
    pub fn interval(mut self, interval: Duration) -> Self {
        const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        self.interval = interval.clamp(Duration::from_millis(10), LONGEST);
        self
    }

    /// Sets how long a check may take, from the connect to the response head. Default: 2 seconds. Unlike the other
    /// timeouts, it can't be disabled, because a check that never ends would never find that its member hangs. 0 is an
    /// error of [`build`](super::BackendsBuilder::build).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::balance::Check;
    ///
    /// let check = Check::get("/healthz").timeout(Duration::from_millis(500));
    /// # let _ = check;
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how many failures in a row take a member out. Default: 3. `0` is taken as 1.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::Check;
    ///
    /// let check = Check::get("/healthz").fall(2);
    /// # let _ = check;
    /// ```
    pub fn fall(mut self, failures: u32) -> Self {
        self.fall = failures.max(1);
        self
    }

    /// Sets how many successes in a row bring a member back. Default: 2. `0` is taken as 1.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::Check;
    ///
    /// let check = Check::get("/healthz").rise(1);
    /// # let _ = check;
    /// ```
    pub fn rise(mut self, successes: u32) -> Self {
        self.rise = successes.max(1);
        self
    }

    /// Sets what a response means. Default: a 2xx is [`Up`](Verdict::Up), and all others are [`Down`](Verdict::Down).
    ///
    /// A check without a response has failed, whatever the function.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::{Check, Verdict};
    ///
    /// // The member announces that it's about to stop.
    /// let check = Check::get("/healthz").judge(|response| {
    ///     match response.headers.get("x-state").map(|state| state.as_bytes()) {
    ///         _ if !response.status.is_success() => Verdict::Down,
    ///         Some(b"stopping") => Verdict::Drain,
    ///         _ => Verdict::Up,
    ///     }
    /// });
    /// # let _ = check;
    /// ```
    #[doc(alias = "agent-check")]
    pub fn judge(mut self, judge: impl Fn(&Parts) -> Verdict + Send + Sync + 'static) -> Self {
        self.judge = Arc::new(judge);
        self
    }

    /// Returns the path.
    ///
    /// # Errors
    ///
    /// It isn't one.
    pub(super) fn path(&self) -> Result<PathAndQuery, InvalidPath> {
        let valid = self.path.starts_with('/') && !self.path.contains('#');
        let parsed = if valid { self.path.parse().ok() } else { None };
        parsed.ok_or_else(|| InvalidPath { given: self.path.clone() })
    }

    /// Checks a member once. `None`: this process lacks descriptors or the like, which shows nothing about the member.
    pub(super) async fn run(&self, client: Client) -> Option<Checked> {
        let Some(request) = self.request(client.backend()) else {
            return Some(Checked::down("no request can be made".to_owned()));
        };
        let response = match tokio::time::timeout(self.timeout, client.oneshot(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_local() => return None,
            Ok(Err(error)) => return Some(Checked::down(observe::chain(Some(&error)))),
            Err(_) => return Some(Checked::down(format!("no response within {:?}", self.timeout))),
        };
        // Its connection is closed, because a member may have no end of a body.
        let (mut parts, body) = response.into_parts();
        drop(body);
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            return Some(Checked::down("the status is 101".to_owned()));
        }
        parts.extensions.clear();
        // A panic of the application's function must not end the checks.
        let verdict = catch_unwind(AssertUnwindSafe(|| (self.judge)(&parts)));
        Some(match verdict {
            Ok(Verdict::Down) => Checked::down(format!("the status is {}", parts.status.as_u16())),
            Ok(verdict) => Checked { verdict, cause: None },
            Err(_) => Checked::down("the function that judges the response has panicked".to_owned()),
        })
    }

    fn request(&self, backend: &Backend) -> Option<Request<Body>> {
        let uri = Uri::builder()
            .scheme(backend.scheme().clone())
            .authority(backend.authority().clone())
            .path_and_query(self.path().ok()?)
            .build()
            .ok()?;
        Request::get(uri).header(HOST, backend.host()).body(Body::empty()).ok()
    }
}

/// What a check has shown.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) verdict: Verdict,
    /// Why the member is down.
    pub(super) cause: Option<String>,
}

impl Checked {
    fn down(cause: String) -> Self {
        Self { verdict: Verdict::Down, cause: Some(cause) }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("path", &self.path)
            .field("interval", &self.interval)
            .field("timeout", &self.timeout)
            .field("fall", &self.fall)
            .field("rise", &self.rise)
            .finish_non_exhaustive()
    }
}

/// The path of a check isn't one.
#[derive(Clone, Debug)]
pub(super) struct InvalidPath {
    given: String,
}

impl fmt::Display for InvalidPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} isn't the path of a health check, which begins with `/` and has no fragment; write for example \
             \"/healthz\"",
            self.given
        )
    }
}

impl error::Error for InvalidPath {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_absolute_and_may_have_a_query() {
        for path in ["/", "/healthz", "/health?full=1", "/a%20b"] {
            assert_eq!(Check::get(path).path().unwrap().as_str(), path);
        }
        for path in ["", "healthz", "http://a/healthz", "/a b", "/a#b", "?x", "*"] {
            let error = Check::get(path).path().unwrap_err().to_string();
            assert!(error.contains("\"/healthz\"") && error.contains(&format!("{path:?}")), "{error}");
        }
    }

    #[test]
    fn a_check_addresses_the_member_itself() {
        let backend: Backend = "http://10.0.0.1:8000".parse().unwrap();
        let request = Check::get("/healthz?full=1").request(&backend).unwrap();
        assert_eq!(request.uri(), "http://10.0.0.1:8000/healthz?full=1");
        assert_eq!(request.headers()["host"], "10.0.0.1:8000");
    }

    #[test]
    fn debug_does_not_show_the_function() {
        assert!(format!("{:?}", Check::get("/healthz")).starts_with("Check { path: \"/healthz\", interval: 5s"));
    }
}
