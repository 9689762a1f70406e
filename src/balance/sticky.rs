//! Sticky sessions without shared state.

use std::{collections::HashMap, error, fmt, str, sync::Arc};

use axum_core::body::Body;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use http::{Extensions, Request, Response, request::Parts};
use sha2::Sha256;

use super::pick::KeyFn;
use crate::headers::{cookie, front::is_https, front_cookie::FrontCookie};

/// The fewest bytes of a key. A shorter one could be guessed.
const MIN_KEY: usize = 16;

/// Keeps the requests of a session at one member. Default: none, each request goes to the member that is [picked].
///
/// ```
/// use tower_reverse_proxy::{Backends, balance::Sticky};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // From the configuration: `openssl rand -hex 32` makes one.
/// let key = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// let backends = Backends::builder(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
///     .sticky(Sticky::cookie("backend", key)?)
///     .build()?;
/// # let _ = backends;
/// # Ok(())
/// # }
/// ```
///
/// The front stores nothing of a session. Replicas of the application with the same members agree, whichever of them a
/// request reaches.
///
/// A session whose member is out, or removed from the set, moves to another member. A session isn't balanced: a member
/// keeps its sessions however many requests they have.
///
/// [picked]: super::Pick
#[derive(Clone)]
#[must_use]
#[doc(alias("session affinity", "sticky session", "ip_hash", "JSESSIONID", "stick-table", "route cookie"))]
pub struct Sticky(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Cookie(Arc<SessionCookie>),
    By(KeyFn),
}

impl Sticky {
    /// Keeps a session at its member by a cookie of the front's own.
    ///
    /// The first response of a member sets the cookie: `HttpOnly`, `SameSite=Lax`, with the public prefix as its
    /// `Path`, without `Domain`, and `Secure` if clients use `https` ([`Forwarded::proto`](crate::Forwarded::proto)).
    /// It ends with the browser's session. A response that shared caches may store doesn't set it: a 304, or one with
    /// `Cache-Control: public` or `s-maxage`.
    ///
    /// The member doesn't get the cookie and can't set one of that name, and the other cookies stay unchanged. If
    /// another member answers, because the session's own is out or an attempt was repeated, the cookie is set again. A
    /// WebSocket is part of a session as any request is.
    ///
    /// [`ReverseProxyLayer::balanced`](crate::ReverseProxyLayer::balanced) keeps the cookie for the balancer. Around a
    /// [`Balance`](super::Balance) made by hand, or a set as a [`Target`](crate::Target), don't give its name to
    /// [`hide_cookies`](crate::ReverseProxyLayer::hide_cookies), which would remove the cookie before the balancer.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::Sticky;
    ///
    /// assert!(Sticky::cookie("backend", "0123456789abcdef0123456789abcdef").is_ok());
    /// let error = Sticky::cookie("backend", "secret").unwrap_err();
    /// assert!(error.to_string().contains("openssl rand"));
    /// ```
    ///
    /// # Errors
    ///
    /// If the key has fewer than 16 bytes, if the name isn't one of a cookie (a token, RFC 6265, section 4.1.1), or if
    /// it begins with `__`, because browsers refuse such a cookie unless it has a certain path and scheme.
    ///
    /// # Security
    ///
    /// The value is the HMAC-SHA-256 of the name and the member under the key, cut to 128 bits. It reveals no address,
    /// and without the key no client can make the one of another member; each value that isn't a member's is ignored.
    /// The key is the same in every replica. With another key, all sessions are assigned anew.
    ///
    /// The cookie identifies no user and proves nothing: two clients at one member have the same value.
    pub fn cookie(name: impl Into<String>, key: impl AsRef<[u8]>) -> Result<Self, InvalidSticky> {
        let (name, key) = (name.into(), key.as_ref());
        if !cookie::is_cookie_name(&name) || name.starts_with("__") {
            return Err(InvalidSticky(Reason::Name(name)));
        }
        let long_enough = Some(key).filter(|key| key.len() >= MIN_KEY);
        let mac = long_enough.and_then(|key| Hmac::new_from_slice(key).ok()).ok_or(InvalidSticky(Reason::Key))?;
        Ok(Self(Kind::Cookie(Arc::new(SessionCookie { names: [name.clone()], name: name.into(), mac }))))
    }

    /// Keeps all requests with the same key at one member, without a cookie: those of a user, of an address, of a
    /// tenant. Requests without a key are [picked](super::Pick) a member for.
    ///
    /// The closure finds the key in the head of the request, extensions included. Replicas of the application agree if
    /// their closures do: see [`stable_hash`](super::stable_hash).
    ///
    /// The member is the one of [`Pick::hash`](super::Pick::hash), however many requests it has. If it's out, its keys
    /// move to all the others, and return with it.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, RemoteUser, balance::{Sticky, stable_hash}};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let by_user = Sticky::by(|parts| Some(stable_hash(parts.extensions.get::<RemoteUser>()?.as_str())));
    /// let members = ["http://10.0.0.1:8000", "http://10.0.0.2:8000"];
    /// let backends = Backends::builder(members).sticky(by_user).build()?;
    /// # let _ = backends;
    /// # Ok(())
    /// # }
    /// ```
    pub fn by(key: impl Fn(&Parts) -> Option<u64> + Send + Sync + 'static) -> Self {
        Self(Kind::By(KeyFn::new(key)))
    }
}

impl fmt::Debug for Sticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sticky").field(&self.0).finish()
    }
}

/// What the requests of a session have in common, by the option.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Session {
    /// The cookie is that of a member.
    Assigned(CookieValue),
    /// There is no cookie, or none of a member: the response assigns the session.
    Unassigned,
    /// All requests with this key are of one session.
    Key(u64),
    /// The request is of no session.
    None,
}

impl Sticky {
    /// Whether sessions have keys, and no cookies.
    pub(super) fn is_by_key(&self) -> bool {
        matches!(self.0, Kind::By(_))
    }

    /// Returns the name of the cookies, if sessions have them.
    pub(super) fn cookie_name(&self) -> Option<Arc<str>> {
        match &self.0 {
            Kind::Cookie(cookie) => Some(cookie.name.clone()),
            Kind::By(_) => None,
        }
    }

    /// Returns the value of a member's cookie, if sessions have cookies.
    pub(super) fn value(&self, member: &str) -> Option<CookieValue> {
        match &self.0 {
            Kind::Cookie(cookie) => Some(cookie.value(member)),
            Kind::By(_) => None,
        }
    }

    /// Finds the session of a request, and removes the cookie from it.
    pub(super) fn session(&self, request: &mut Request<Body>, sessions: &Sessions) -> Session {
        match &self.0 {
            Kind::By(key) => key.of(request).map_or(Session::None, Session::Key),
            Kind::Cookie(cookie) => {
                let headers = request.headers_mut();
                cookie::join_crumbs(headers);
                let assigned = cookie::values(headers, &cookie.name).find_map(|value| sessions.known(value));
                cookie::hide(headers, &cookie.names);
                assigned.map_or(Session::Unassigned, Session::Assigned)
            }
        }
    }

    /// Returns the cookie that assigns a session to the member with this value, or that keeps a session as it is.
    pub(super) fn assignment(&self, request: &Request<Body>, value: Option<CookieValue>) -> Option<Assignment> {
        let Kind::Cookie(cookie) = &self.0 else { return None };
        let front = value.map(|value| {
            Box::new(FrontCookie {
                name: cookie.name.clone(),
                value: value.as_str().into(),
                nest: nest(request.extensions()),
                is_secure: is_https(request.headers()),
            })
        });
        Some(Assignment { cookie: cookie.clone(), front })
    }
}

/// The cookie of a response, for the member that answers.
#[derive(Debug)]
pub(super) struct Assignment {
    cookie: Arc<SessionCookie>,
    /// `None` if the client has it already.
    front: Option<Box<FrontCookie>>,
}

impl Assignment {
    /// Inserts the cookie as an extension, and removes one of the same name that the member sets.
    pub(super) fn apply_to<B>(self, response: &mut Response<B>) {
        cookie::drop_set(response.headers_mut(), &self.cookie.names);
        if let Some(front) = self.front {
            response.extensions_mut().insert(*front);
        }
    }
}

/// The members of a set by the values of their cookies.
#[derive(Debug, Default)]
pub(super) struct Sessions(HashMap<CookieValue, usize>);

impl Sessions {
    /// Takes the values in the order of the members' positions.
    pub(super) fn new(values: impl IntoIterator<Item = CookieValue>) -> Self {
        Self(values.into_iter().enumerate().map(|(member, value)| (value, member)).collect())
    }

    /// Returns the position of the member with this value. `None` if it isn't in the set any more.
    pub(super) fn member(&self, value: &CookieValue) -> Option<usize> {
        self.0.get(value).copied()
    }

    fn known(&self, value: &[u8]) -> Option<CookieValue> {
        let value = CookieValue(value.try_into().ok()?);
        self.0.contains_key(&value).then_some(value)
    }
}

/// The value of a cookie. It's the same for all sessions of a member.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CookieValue([u8; VALUE_LENGTH]);

/// The digits of 16 bytes in base64.
const VALUE_LENGTH: usize = 22;

impl CookieValue {
    fn as_str(&self) -> &str {
        // Digits of base64 are ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for CookieValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Who has the value can have requests sent to that member.
        f.write_str("CookieValue")
    }
}

/// The name and the key of the cookies.
struct SessionCookie {
    name: Arc<str>,
    names: [String; 1],
    mac: Hmac<Sha256>,
}

impl SessionCookie {
    /// Returns the value for a member, which its name stands for.
    fn value(&self, member: &str) -> CookieValue {
        // A cookie's name has no NUL, so that no other two names are the same text.
        let mac = self.mac.clone().chain_update(&*self.name).chain_update([0]).chain_update(member);
        let mut value = [0; VALUE_LENGTH];
        // 16 bytes have exactly as many digits.
        let _ = BASE64_URL_SAFE_NO_PAD.encode_slice(&mac.finalize().into_bytes()[..16], &mut value);
        CookieValue(value)
    }
}

impl fmt::Debug for SessionCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionCookie").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Returns the path that outer routers have stripped from a request.
fn nest(extensions: &Extensions) -> Option<Box<str>> {
    #[cfg(feature = "axum")]
    return crate::axum::nest(extensions).map(|nest| nest.outer().into());
    #[cfg(not(feature = "axum"))]
    {
        let _ = extensions;
        None
    }
}

/// The error returned when a [`Sticky::cookie`] can't be made. Its text is what to write instead, and doesn't contain
/// the key.
///
/// ```
/// use tower_reverse_proxy::balance::Sticky;
///
/// let error = Sticky::cookie("my backend", "0123456789abcdef").unwrap_err();
/// assert!(error.to_string().contains("my backend"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidSticky(Reason);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    Name(String),
    Key,
}

impl fmt::Display for InvalidSticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reason::Name(name) => write!(
                f,
                "invalid name of a sticky cookie {name:?}: write letters, digits, `-` or `_`, without `__` at the \
                 beginning, such as \"backend\""
            ),
            Reason::Key => write!(
                f,
                "the key of a sticky cookie needs {MIN_KEY} bytes or more, which are secret and the same in every \
                 replica; make one with `openssl rand -hex 32`"
            ),
        }
    }
}

impl error::Error for InvalidSticky {}

#[cfg(test)]
mod tests {
    use http::{
        HeaderValue,
        header::{COOKIE, SET_COOKIE},
    };

    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const MEMBERS: [&str; 3] = ["http://10.0.0.1:8000", "http://10.0.0.2:8000", "unix:/run/app.sock"];

    fn sticky(key: &str) -> Sticky {
        Sticky::cookie("backend", key).unwrap()
    }

    fn sessions(sticky: &Sticky, members: &[&str]) -> Sessions {
        Sessions::new(members.iter().map(|member| sticky.value(member).unwrap()))
    }

    fn text(sticky: &Sticky, member: &str) -> String {
        sticky.value(member).unwrap().as_str().to_owned()
    }

    /// The member whose cookie a request has, which is removed from it.
    fn assigned(sticky: &Sticky, request: &mut Request<Body>, sessions: &Sessions) -> Option<usize> {
        match sticky.session(request, sessions) {
            Session::Assigned(value) => Some(sessions.member(&value).unwrap()),
            Session::Unassigned => None,
            session => panic!("{session:?}"),
        }
    }

    fn request(cookie: &str) -> Request<Body> {
        Request::get("/").header(COOKIE, cookie).body(Body::empty()).unwrap()
    }

    #[test]
    fn the_value_is_the_hmac_of_both_names() {
        // printf 'backend\0http://10.0.0.1:8000' | openssl dgst -sha256 -hmac 0123… -binary |
        // head -c 16 | basenc --base64url
        assert_eq!(text(&sticky(KEY), MEMBERS[0]), "IxwYi7ibk6q6ML0Z8SLTqA");
        let values: Vec<_> = [sticky(KEY), sticky("another key, 16 bytes"), Sticky::cookie("b", KEY).unwrap()]
            .iter()
            .flat_map(|sticky| MEMBERS.map(|member| text(sticky, member)))
            .collect();
        assert!((1..values.len()).all(|at| !values[..at].contains(&values[at])), "{values:?}");
    }

    #[test]
    fn a_session_is_found_and_its_cookie_removed() {
        let sticky = sticky(KEY);
        let sessions = sessions(&sticky, &MEMBERS);
        let [first, second, third] = MEMBERS.map(|member| text(&sticky, member));
        let forged = text(&self::sticky("another key, 16 bytes"), MEMBERS[0]);
        for (cookie, session, left) in [
            (format!("backend={second}"), Some(1), None),
            (format!("a=1; backend={third}; b=2"), Some(2), Some("a=1; b=2")),
            (format!("a=1;backend={first}"), Some(0), Some("a=1")),
            // A browser sends the one with the longer path first.
            (format!("backend={second}; backend={first}"), Some(1), None),
            (format!("backend={forged}; backend={first}; c"), Some(0), Some("c")),
            (format!("backend={forged}"), None, None),
            (format!("backend={}", &first[1..]), None, None),
            (format!("backend=\"{first}\""), None, None),
            ("backend=; backend; backend=http://10.0.0.1:8000; a=1".into(), None, Some("a=1")),
            (format!("xbackend={first}; backend2={first}"), None, Some("")),
            ("a=1".into(), None, Some("a=1")),
        ] {
            let mut request = request(&cookie);
            assert_eq!(assigned(&sticky, &mut request, &sessions), session, "{cookie}");
            let left = left.map(|left| if left.is_empty() { &cookie } else { left });
            assert_eq!(request.headers().get(COOKIE).map(|line| line.to_str().unwrap()), left, "{cookie}");
        }
        assert_eq!(assigned(&sticky, &mut Request::new(Body::empty()), &sessions), None);
    }

    #[test]
    fn a_cookie_in_several_lines_is_found() {
        let sticky = sticky(KEY);
        let mut request = request("a=1");
        let line = format!("backend={}", text(&sticky, MEMBERS[2]));
        request.headers_mut().append(COOKIE, HeaderValue::try_from(line).unwrap());
        assert_eq!(assigned(&sticky, &mut request, &sessions(&sticky, &MEMBERS)), Some(2));
        assert_eq!(request.headers().get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1"]);
    }

    #[test]
    fn replicas_with_one_key_agree_in_any_order_of_the_members() {
        let (one, two) = (sticky(KEY), sticky(KEY));
        let reversed: Vec<_> = MEMBERS.iter().rev().copied().collect();
        let reversed = sessions(&two, &reversed);
        for (at, member) in MEMBERS.into_iter().enumerate() {
            let mut request = request(&format!("backend={}", text(&one, member)));
            assert_eq!(assigned(&two, &mut request, &reversed), Some(2 - at));
        }
    }

    /// 10,000 sessions at ten members, one of which is replaced: only its own are assigned anew.
    #[test]
    fn only_the_sessions_of_a_removed_member_move() {
        let sticky = sticky(KEY);
        let name = |n: usize| format!("http://10.0.0.{n}:8000");
        let after: Vec<_> = (0..11).filter(|n| *n != 4).map(name).collect();
        let sessions = Sessions::new(after.iter().map(|name| sticky.value(name).unwrap()));
        for session in 0..10_000 {
            let home = name(session % 10);
            let mut request = request(&format!("backend={}", text(&sticky, &home)));
            match assigned(&sticky, &mut request, &sessions) {
                Some(at) => assert_eq!(after[at], home),
                None => assert_eq!(session % 10, 4),
            }
        }
    }

    #[test]
    fn a_closure_finds_the_key() {
        let by = Sticky::by(|parts| Some(parts.headers.get(COOKIE)?.len() as u64));
        assert_eq!(by.session(&mut request("abc"), &Sessions::default()), Session::Key(3));
        assert_eq!(by.session(&mut Request::new(Body::empty()), &Sessions::default()), Session::None);
        assert!(by.value("a").is_none() && by.assignment(&request("abc"), None).is_none());
    }

    #[test]
    fn a_response_has_the_cookie_of_the_member_that_answered() {
        let sticky = sticky(KEY);
        let mut request = request("a=1");
        request.headers_mut().insert("x-forwarded-proto", HeaderValue::from_static("https"));
        for value in [sticky.value(MEMBERS[1]), None] {
            let mut response = Response::new(());
            response.headers_mut().append(SET_COOKIE, HeaderValue::from_static("backend=forged; Path=/"));
            response.headers_mut().append(SET_COOKIE, HeaderValue::from_static("a=2"));
            sticky.assignment(&request, value).unwrap().apply_to(&mut response);
            assert_eq!(response.headers().get_all(SET_COOKIE).iter().collect::<Vec<_>>(), ["a=2"]);
            let cookie = response.extensions().get::<FrontCookie>();
            let expected = value.map(|value| ("backend", value.as_str().to_owned(), Some(true)));
            let cookie = cookie.map(|cookie| (&*cookie.name, cookie.value.to_string(), cookie.is_secure));
            assert_eq!(cookie, expected);
        }
    }

    #[test]
    fn invalid_ones_are_errors_that_name_what_to_write() {
        for (name, key, hint) in [
            ("", KEY, "\"backend\""),
            ("a b", KEY, "\"a b\""),
            ("a;b", KEY, "\"backend\""),
            ("__Host-backend", KEY, "`__`"),
            ("backend", "", "openssl"),
            ("backend", "fifteen bytes!!", "16 bytes"),
        ] {
            let error = Sticky::cookie(name, key).unwrap_err();
            assert!(error.to_string().contains(hint), "{error}");
            assert!(!format!("{error} {error:?}").contains("fifteen"), "{error:?}");
        }
        assert!(Sticky::cookie("backend", "sixteen bytes!!!").is_ok());
    }

    #[test]
    fn no_secret_is_shown() {
        let sticky = sticky(KEY);
        let shown = format!("{sticky:?} {:?} {:?}", sessions(&sticky, &MEMBERS), sticky.value(MEMBERS[0]));
        assert!(!shown.contains(KEY) && !shown.contains(&text(&sticky, MEMBERS[0])), "{shown}");
        assert!(!shown.contains("48, 49"), "{shown}");
        assert!(shown.contains("backend"), "{shown}");
    }
}
