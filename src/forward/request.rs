//! The request half: from what the client said to what the backend may hear.

use std::net::IpAddr;

use axum_core::body::Body;
use http::{
    Extensions, HeaderValue, Method, Request, Uri, Version,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST},
    uri::PathAndQuery,
};

use super::rules::Rules;
use crate::{
    error::{Error, ErrorKind},
    headers::{
        self, cookie,
        destination::{self, DESTINATION},
        forwarded, framing,
        front::Front,
        hop, host, location, reserved,
        trailers::{self, ForbiddenTrailers},
        via,
    },
    identity::ClientAddr,
    path::{Nest, PathPolicy, Target},
    upgrade::Offer,
};

/// What the response half has to know of the request.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) method: Method,
    /// The client's.
    pub(super) version: Version,
    /// Whether failures have to be said in gRPC's way.
    pub(super) is_grpc: bool,
    /// What the client sees, if the backend sees another directory.
    pub(super) public: Option<Box<Public>>,
    /// The protocols that the client would switch to.
    pub(super) offer: Option<Offer>,
}

/// The front as the client sees it.
#[derive(Debug)]
pub(super) struct Public {
    pub(super) prefix: String,
    pub(super) front: Front,
}

/// What stops a request before it's forwarded.
#[derive(Debug)]
pub(super) enum Refusal {
    Failed(Error),
    /// `OPTIONS` with `Max-Forwards: 0`: we are its last recipient.
    Final,
}

impl From<ErrorKind> for Refusal {
    fn from(kind: ErrorKind) -> Self {
        Self::Failed(kind.into())
    }
}

/// Turns the client's request into the one for the upstream, step by step. One that is refused is left halfway.
pub(super) fn prepare(rules: &Rules, request: &mut Request<Body>) -> Result<Exchange, Refusal> {
    let (version, is_grpc) = (request.version(), is_grpc(request));
    let peer = peer(request.extensions());
    // HTTP/1 removes outer blanks when it reads a field.
    if version > Version::HTTP_11 {
        headers::trim_values(request.headers_mut());
    }

    // 1  what must not be forwarded
    refuse_method(request.method())?;
    let trusted = rules.forwarded.trusts(peer);
    let Destinations { target, public_prefix, destination } = destinations(rules, request, trusted)?;
    if let Some(destination) = destination {
        request.headers_mut().insert(DESTINATION, destination);
    }
    let host = host::authority(request.uri(), version, request.headers())?;
    framing::check_transfer_encoding(request.headers())?;
    if rules.via.as_ref().is_some_and(|via| via.is_in(request.headers())) {
        return Err(ErrorKind::LoopDetected.into());
    }
    if request.method() == Method::OPTIONS && !via::decrement_max_forwards(request.headers_mut()) {
        return Err(Refusal::Final);
    }

    // 2  the upgrade offer, before anything can clone the request
    let offer = Offer::take(request, &rules.upgrades)?;

    // 3, 4  hop-by-hop fields, and what isn't the client's to say
    hop::remove_from_request(request.headers_mut(), |name| {
        let name = name.as_str();
        (!trusted && forwarded::is_forwarding_field(name))
            || (!trusted && !rules.keep_identity_claims && is_identity_claim(name))
            || reserved::is_reserved(name)
            || (!rules.keep_underscores && reserved::has_underscore(name))
    });
    trailers::filter_announced_in_request(request.headers_mut());

    // 5  the target, as origin-form
    *request.uri_mut() = Uri::from(target);

    // 6  what the front knows
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
    }
    rules.forwarded.apply(request.headers_mut(), peer, public_prefix.as_deref());
    let public = public_prefix.map(|prefix| Box::new(Public { prefix, front: Front::of(request.headers()) }));
    if let Some(via) = &rules.via {
        via.append_to(request.headers_mut(), version);
    }
    cookie::join_crumbs(request.headers_mut());
    cookie::hide(request.headers_mut(), &rules.hidden_cookies);

    // 7, 8  framing and version
    let size = http_body::Body::size_hint(request.body());
    framing::reconcile_request(request.headers_mut(), &size)?;
    *request.version_mut() = Version::HTTP_11;
    if let Some(offer) = &offer {
        offer.make(request);
    }
    Ok(Exchange { method: request.method().clone(), version, is_grpc, public, offer })
}

/// Whether a client, or a peer that isn't trusted, claims somebody's identity. Says so: the application may wonder where it is.
fn is_identity_claim(name: &str) -> bool {
    let is_claim = reserved::is_identity_field(name);
    if is_claim {
        tracing::debug!(
            target: "tower_reverse_proxy",
            header = name,
            "the peer isn't trusted and claims an identity: the field is removed"
        );
    }
    is_claim
}

/// `TRACE` would show the client what was added for the backend alone.
fn refuse_method(method: &Method) -> Result<(), ErrorKind> {
    if method == Method::TRACE { Err(ErrorKind::UnsupportedMethod) } else { Ok(()) }
}

/// Where a request leads.
struct Destinations {
    target: PathAndQuery,
    /// The directory as the client sees it, if the backend sees another one.
    public_prefix: Option<String>,
    /// What its `Destination` has to become.
    destination: Option<HeaderValue>,
}

fn destinations(rules: &Rules, request: &Request<Body>, trusted: bool) -> Result<Destinations, ErrorKind> {
    let target = Target::parse(request.uri(), nest(request.extensions()), &rules.prefix)?;
    let public_prefix = (rules.path != PathPolicy::Keep).then(|| target.public_prefix().into_owned());
    let destination = match destination::is_for(request.method()) {
        true => destination(rules, request, &target, trusted)?,
        false => None,
    };
    Ok(Destinations { target: target.for_backend(&rules.path)?, public_prefix, destination })
}

/// Makes the `Destination` one that the backend takes for its own, whatever its scheme and its `Host`: an absolute path.
fn destination(
    rules: &Rules,
    request: &Request<Body>,
    target: &Target<'_>,
    trusted: bool,
) -> Result<Option<HeaderValue>, ErrorKind> {
    let mut lines = request.headers().get_all(DESTINATION).iter();
    let Some(value) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(ErrorKind::InvalidDestination);
    }
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let host = authority.or_else(|| request.headers().get(HOST).map(HeaderValue::as_bytes));
    // Where a trusted proxy has another `Host` for us, this is what the client knows.
    let forwarded = trusted.then(|| forwarded::hosts(request.headers())).into_iter().flatten();
    let path = destination::path_and_query(value.as_bytes(), host.into_iter().chain(forwarded))?;
    let path = location::path_absolute(target.rebase(&path, &rules.path)?.as_bytes());
    HeaderValue::try_from(path).map(Some).map_err(|_| ErrorKind::InvalidDestination)
}

/// Inserts the list of trailers that upstream layers forbid, if the client's body may end in trailers. In HTTP/1.1 these are
/// part of the chunked coding, and a body with a length has none.
pub(super) fn forbidden_trailers(request: &mut Request<Body>, version: Version) -> Option<ForbiddenTrailers> {
    let has_length =
        request.headers().contains_key(CONTENT_LENGTH) || http_body::Body::size_hint(request.body()).exact().is_some();
    if version <= Version::HTTP_11 && has_length {
        return None;
    }
    let forbidden = ForbiddenTrailers::default();
    request.extensions_mut().insert(forbidden.clone());
    Some(forbidden)
}

/// Whether failures have to be said in gRPC's way.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    request.headers().get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .trim_ascii_start()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
    })
}

fn peer(extensions: &Extensions) -> Option<IpAddr> {
    let addr = extensions.get::<ClientAddr>().map(ClientAddr::ip);
    #[cfg(feature = "axum")]
    let addr = addr.or_else(|| crate::axum::peer(extensions));
    addr
}

/// Returns the target as the client sent it.
pub(super) fn original_uri<B>(request: &Request<B>) -> &Uri {
    nest(request.extensions()).map_or(request.uri(), |nest| nest.original)
}

fn nest(extensions: &Extensions) -> Option<Nest<'_>> {
    #[cfg(feature = "axum")]
    return crate::axum::nest(extensions);
    #[cfg(not(feature = "axum"))]
    {
        let _ = extensions;
        None
    }
}
