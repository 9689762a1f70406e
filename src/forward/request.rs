//! The request half: turns the client's request into the one for the upstream.

use std::net::IpAddr;

use axum_core::body::Body;
use http::{
    Extensions, HeaderValue, Method, Request, Uri, Version,
    header::{CONTENT_LENGTH, HOST},
    uri::PathAndQuery,
};

use super::config::ForwardConfig;
use crate::{
    error::{Error, ErrorKind},
    headers::{
        self, cookie,
        destination::{self, DESTINATION},
        forwarded::{self, Received},
        framing,
        front::Front,
        grpc, hop, host, location,
        present::Present,
        reserved::{self, KeptFields},
        trailers::{self, ForbiddenTrailers},
        via,
    },
    identity::ClientAddr,
    observe,
    path::{Nest, PathPolicy, Target},
    upgrade::UpgradeOffer,
};

/// The properties of a request that the response half needs.
#[derive(Debug)]
pub(super) struct RequestContext {
    pub(super) method: Method,
    /// The client's version.
    pub(super) version: Version,
    /// Whether a failure is answered with a gRPC status.
    pub(super) is_grpc: bool,
    /// The public prefix and origin, if the backend sees another directory than the client.
    pub(super) public: Option<Box<Public>>,
    /// Whether the request has an `Expect`.
    pub(super) has_expect: bool,
    /// The protocols that the client offers to switch to.
    pub(super) offer: Option<UpgradeOffer>,
}

/// The front as the client sees it.
#[derive(Debug)]
pub(super) struct Public {
    pub(super) prefix: String,
    pub(super) front: Front,
}

/// Why a request isn't forwarded.
#[derive(Debug)]
pub(super) enum Refusal {
    Failed(Error),
    /// An `OPTIONS` with `Max-Forwards: 0`, whose final recipient is the proxy.
    Final,
}

impl From<ErrorKind> for Refusal {
    fn from(kind: ErrorKind) -> Self {
        Self::Failed(kind.into())
    }
}

/// Turns the client's request into the one for the upstream. The steps are numbered as in the crate's documentation.
///
/// A refused request is left partly transformed.
pub(super) fn prepare(config: &ForwardConfig, request: &mut Request<Body>) -> Result<RequestContext, Refusal> {
    let version = request.version();
    // An HTTP/1 parser removes the whitespace around a value.
    if version > Version::HTTP_11 {
        headers::trim_values(request.headers_mut());
    }
    let peer = peer(request.extensions());
    let trusted = config.forwarded.trusts(peer);
    let keep = KeptFields {
        forwarding: trusted,
        identity_claims: trusted || config.keep_identity_claims,
        underscores: config.keep_underscores,
    };
    let has = Present::in_request(request.headers(), keep);
    let is_grpc = has.content_type && grpc::is_grpc(request.headers());

    // 1  refuse requests that must not be forwarded
    refuse_method(request.method())?;
    let Destinations { target, public_prefix, destination } = destinations(config, request, trusted)?;
    if let Some(destination) = destination {
        request.headers_mut().insert(DESTINATION, destination);
    }
    let host = host::requested(request.uri(), version, request.headers())?;
    if has.transfer_encoding {
        framing::check_transfer_encoding(request.headers())?;
    }
    if has.via && config.via.as_ref().is_some_and(|via| via.is_in(request.headers())) {
        return Err(ErrorKind::LoopDetected.into());
    }
    if request.method() == Method::OPTIONS && !via::decrement_max_forwards(request.headers_mut()) {
        return Err(Refusal::Final);
    }

    // 2  the upgrade offer, taken before the request can be cloned
    let offer = UpgradeOffer::take(request, &config.upgrades)?;

    // 3, 4  hop-by-hop fields, and fields that only the proxy may set
    if has.unwanted {
        hop::remove_from_request(request.headers_mut(), |name| {
            let is_reserved = reserved::is_for_the_proxy_only(name, keep);
            if is_reserved {
                trace_removed(name.as_str(), keep);
            }
            is_reserved
        });
    }
    if has.trailer {
        trailers::filter_announced_in_request(request.headers_mut());
    }

    // 5  the target, in origin-form
    *request.uri_mut() = Uri::from(target);

    // 6  the fields that the front adds
    if let Some(host) = host.as_ref().filter(|host| host.is_from_target) {
        request.headers_mut().insert(HOST, host.value.clone());
    }
    let (host, prefix) = (host.as_ref().map(|host| &host.value), public_prefix.as_deref());
    config.forwarded.apply(request.headers_mut(), Received { peer, is_trusted: trusted, host, prefix });
    let public = public_prefix.map(|prefix| Box::new(Public { prefix, front: Front::of(request.headers()) }));
    if let Some(via) = &config.via {
        via.append_to(request.headers_mut(), version);
    }
    cookie::join_crumbs(request.headers_mut());
    cookie::hide(request.headers_mut(), &config.hidden_cookies);

    // 7, 8  framing and version
    let size = http_body::Body::size_hint(request.body());
    // A body of known length needs no field: the client adds it.
    if has.content_length || size.exact().is_none() {
        framing::reconcile_request(request.headers_mut(), &size)?;
    }
    *request.version_mut() = Version::HTTP_11;
    if let Some(offer) = &offer {
        offer.apply_to(request);
    }
    Ok(RequestContext { method: request.method().clone(), version, is_grpc, public, has_expect: has.expect, offer })
}

/// Logs the removal of an identity claim, which an operator may look for.
#[cold]
fn trace_removed(name: &str, keep: KeptFields) {
    if !keep.identity_claims && reserved::is_identity_claim(name) {
        observe::removed_identity_claim(name);
    }
}

/// Refuses `TRACE`, because its response would show the client the fields that are added for the backend.
fn refuse_method(method: &Method) -> Result<(), ErrorKind> {
    if method == Method::TRACE { Err(ErrorKind::UnsupportedMethod) } else { Ok(()) }
}

/// The mapped paths of a request.
struct Destinations {
    target: PathAndQuery,
    /// The directory as the client sees it, if the backend sees another one.
    public_prefix: Option<String>,
    /// The value to set `Destination` to, if the request has one.
    destination: Option<HeaderValue>,
}

fn destinations(config: &ForwardConfig, request: &Request<Body>, trusted: bool) -> Result<Destinations, ErrorKind> {
    let target = Target::parse(request.uri(), nest(request.extensions()), &config.prefix)?;
    let public_prefix = (config.path != PathPolicy::Keep).then(|| target.public_prefix().into_owned());
    let destination = match destination::is_for(request.method()) {
        true => destination(config, request, &target, trusted)?,
        false => None,
    };
    Ok(Destinations { target: target.for_backend(&config.path)?, public_prefix, destination })
}

/// Returns the `Destination` for the backend: an absolute path, which names the backend itself regardless of its scheme
/// and `Host`.
fn destination(
    config: &ForwardConfig,
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
    // A trusted proxy may send another `Host` than the client did; the client's is in `X-Forwarded-Host`.
    let forwarded = trusted.then(|| forwarded::hosts(request.headers())).into_iter().flatten();
    let path = destination::path_and_query(value.as_bytes(), host.into_iter().chain(forwarded))?;
    let path = location::path_absolute(target.rebase(&path, &config.path)?.as_bytes());
    HeaderValue::try_from(path).map(Some).map_err(|_| ErrorKind::InvalidDestination)
}

/// Inserts the list of trailers that upstream layers forbid, if the client's body may end in trailers. In HTTP/1.1
/// these are part of the chunked coding, so a body with a length has none.
pub(super) fn forbidden_trailers(request: &mut Request<Body>, version: Version) -> Option<ForbiddenTrailers> {
    let has_length =
        http_body::Body::size_hint(request.body()).exact().is_some() || request.headers().contains_key(CONTENT_LENGTH);
    if version <= Version::HTTP_11 && has_length {
        return None;
    }
    let forbidden = ForbiddenTrailers::default();
    request.extensions_mut().insert(forbidden.clone());
    Some(forbidden)
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
