//! The bodies of the fuzz targets: they call the pure functions that read untrusted bytes, and assert their invariants.
//!
//! Compiled for tests, which run the seeds, and with `--cfg fuzzing`, which cargo-fuzz sets.

use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Uri, Version,
    header::{CONTENT_LENGTH, COOKIE, REFRESH, SET_COOKIE, TRAILER, TRANSFER_ENCODING},
    uri::Scheme,
};
use http_body::SizeHint;

use crate::{
    client::oracle,
    headers::{
        cookie,
        forwarded::{ForwardedPolicy, Received},
        framing, hop,
        location::{self, Origin},
        present::Present,
        trailers::{self, ForbiddenTrailers},
        via::{self, Pseudonym},
    },
    path::{PathPolicy, Prefix, Target},
    upgrade,
};

const BACKEND: Origin<'static> = Origin { scheme: &Scheme::HTTP, authority: b"backend:9000" };

/// Request targets: a forwarded path is unchanged, can be decoded in one way only, and stays below its prefix by RFC
/// 3986, section 5.2.4.
pub fn path(data: &[u8]) {
    let Ok(uri) = Uri::try_from(data) else { return };
    let Ok(prefix) = "/mydir".parse::<Prefix>() else { return };
    let Ok(target) = Target::parse(&uri, None, &prefix) else { return };
    let Ok(sent) = target.for_backend(&PathPolicy::Keep) else { return };
    assert_eq!(Some(&sent), uri.path_and_query());
    for encoded in sent.path().split('%').skip(1) {
        let octet = encoded.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        assert!(octet.is_some_and(|octet| octet != 0), "{sent}");
    }
    let mut stack = Vec::new();
    for segment in sent.path()[1..].split('/') {
        match segment.to_ascii_lowercase().replace("%2e", ".").as_str() {
            "." => {}
            ".." => drop(stack.pop()),
            _ => stack.push(segment),
        }
    }
    assert_eq!(stack.first(), Some(&"mydir"));
    let _ = target.for_backend(&PathPolicy::Replace(Prefix::root()));
}

/// Fields, one per line: no field that a `Connection` line nominates is left. Only allowed protocols are offered, and a
/// proxy that has appended itself to `Via` detects itself.
pub fn hop(data: &[u8]) {
    let mut headers = fields(data);
    for token in upgrade::allowed_tokens(&headers, &upgrade::AllowedUpgrades::default()).split(|&b| b == b',') {
        assert!(token.is_empty() || token.trim_ascii().eq_ignore_ascii_case(b"websocket"), "{token:?}");
    }
    let mut answer = headers.clone();
    let named: Vec<_> = headers.get_all("connection").iter().cloned().collect();
    hop::remove_from_request(&mut headers, |_| false);
    hop::remove_from_response(&mut answer);
    for line in named {
        for member in line.as_bytes().split(|&b| b == b',') {
            let Ok(name) = HeaderName::from_bytes(member.trim_ascii()) else { continue };
            let kept = ["content-length", "host", "trailer"].contains(&name.as_str());
            assert!(kept || name == "te" || !headers.contains_key(&name), "{name}");
            assert!(kept || !answer.contains_key(&name), "{name} in the response");
        }
    }
    let _ = via::decrement_max_forwards(&mut headers);
    if let Some(own) = Pseudonym::new("front") {
        own.append_to(&mut headers, Version::HTTP_11);
        assert!(own.is_in(&headers));
    }
}

/// Fields, one per line: messages have at most one `Content-Length`, and never together with `Transfer-Encoding` in a
/// response.
pub fn framing(data: &[u8]) {
    let given = fields(data);
    for length in [None, Some(5)] {
        let mut headers = given.clone();
        let has = Present::in_response(&headers);
        if framing::reconcile_response(&mut headers, has, length).is_ok() {
            let lengths: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().collect();
            assert!(lengths.len() <= usize::from(!given.contains_key(TRANSFER_ENCODING)), "{lengths:?}");
            for value in lengths {
                let number = value.to_str().ok().and_then(|value| value.parse::<u64>().ok());
                assert!(number.is_some_and(|number| value == number.to_string().as_str()), "{value:?}");
                assert!(length.is_none() || value == "5", "{value:?}");
            }
        }
    }
    let mut headers = given.clone();
    if framing::check_transfer_encoding(&headers).is_ok() {
        if framing::reconcile_request(&mut headers, &SizeHint::with_exact(5)).is_err() {
            return;
        }
        let lengths: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().collect();
        assert_eq!(lengths.len(), usize::from(given.contains_key(CONTENT_LENGTH)), "{lengths:?}");
        assert!(framing::reconcile_request(&mut headers, &SizeHint::new()).is_ok());
        assert!(headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING));
    }
}

/// Fields, one per line: trailers that `Trailer` still announces are forwarded, and unsafe ones, or those that a layer
/// forbids, are removed in every spelling.
pub fn trailers(data: &[u8]) {
    let given = fields(data);
    let forbidden = ForbiddenTrailers::default();
    let mut extensions = Extensions::new();
    extensions.insert(forbidden.clone());
    ForbiddenTrailers::add(&extensions, &HeaderName::from_static("x-user"));
    let from_request = |trailers: &mut HeaderMap| ForbiddenTrailers::default().remove_from(trailers);
    type Step<'a> = &'a dyn Fn(&mut HeaderMap);
    let both: [(Step<'_>, Step<'_>); 2] = [
        (&trailers::filter_announced_in_request, &from_request),
        (&trailers::filter_announced_in_response, &trailers::remove_from_response),
    ];
    for (announce, remove) in both {
        let mut headers = given.clone();
        announce(&mut headers);
        let members = headers.get_all(TRAILER).iter().flat_map(|line| line.as_bytes().split(|&b| b == b','));
        for member in members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty()) {
            let name = HeaderName::from_bytes(member);
            let mut trailers = HeaderMap::from_iter(name.map(|name| (name, HeaderValue::from_static("1"))));
            assert_eq!(trailers.len(), 1, "{member:?} isn't a name");
            remove(&mut trailers);
            assert_eq!(trailers.len(), 1, "{member:?} is announced and removed");
        }
    }
    let mut left = given.clone();
    forbidden.remove_from(&mut left);
    for name in left.keys() {
        let harmful = ["authorization", "content-length", "cookie", "host", "transfer-encoding"];
        assert!(!harmful.contains(&name.as_str()), "{name}");
        let folded = name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        assert!(!["remote-user", "x-user"].contains(&&*folded) && !folded.starts_with("x-forwarded-"), "{name}");
    }
    let mut left = given;
    trailers::remove_from_response(&mut left);
    for name in ["connection", "content-length", "set-cookie", "trailer", "transfer-encoding"] {
        assert!(!left.contains_key(name), "{name}");
    }
}

/// A `Set-Cookie`: its name, its value and every attribute but the mapped one stay unchanged and in order, and mapping
/// is idempotent. `Cookie` lines, one per line of the input, are joined.
pub fn cookie(data: &[u8]) {
    let crumbs: HeaderMap = data
        .split(|&b| b == b'\n')
        .filter_map(|line| HeaderValue::from_bytes(line).ok())
        .map(|crumb| (COOKIE, crumb))
        .collect();
    let mut joined = crumbs.clone();
    cookie::join_crumbs(&mut joined);
    let whole = crumbs.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    assert!(joined.get_all(COOKIE).iter().map(HeaderValue::as_bytes).eq((!crumbs.is_empty()).then_some(&*whole)));
    let hidden = ["id".to_owned()];
    cookie::hide(&mut joined, &hidden);
    assert_eq!(cookie::values(&joined, "id").next(), None);
    if let Some(left) = joined.get(COOKIE) {
        assert!(!cookie_parts(left).into_iter().any(|pair| cookie_name(pair) == b"id"), "{left:?}");
        let kept = whole.split(|&b| b == b';').filter(|pair| cookie_name(pair) != b"id");
        assert!(cookie_parts(left).into_iter().map(<[u8]>::trim_ascii).eq(kept.map(<[u8]>::trim_ascii)), "{left:?}");
    }

    let Ok(given) = HeaderValue::from_bytes(data) else { return };
    let map = |value: &HeaderValue, map: &dyn Fn(&mut HeaderMap)| {
        let mut headers = HeaderMap::from_iter([(SET_COOKIE, value.clone())]);
        map(&mut headers);
        headers.remove(SET_COOKIE).unwrap_or_else(|| panic!("{value:?} is gone"))
    };
    for (from, to) in [("", "/mydir"), ("/old", "/mydir"), ("/old", "")] {
        let by = |headers: &mut HeaderMap| cookie::map_path(headers, from, to);
        let mapped = map(&given, &by);
        let (before, after) = (cookie_parts(&given), cookie_parts(&mapped));
        assert_eq!(before.len(), after.len(), "{given:?} {mapped:?}");
        for (index, (before, after)) in before.iter().zip(after).enumerate() {
            if *before != after {
                let path = attribute(after, b"path").unwrap_or_else(|| panic!("{given:?} {mapped:?}"));
                assert!(index > 0 && path.starts_with(if to.is_empty() { b"/" } else { to.as_bytes() }), "{mapped:?}");
                assert!(attribute(before, b"path").is_some_and(|path| path.starts_with(from.as_bytes())), "{given:?}");
            }
        }
        if !to.is_empty() {
            assert_eq!(map(&mapped, &by), mapped, "{given:?}");
        }
    }
    let mapped = map(&given, &|headers| cookie::drop_domain(headers, || "backend"));
    let is_own_domain = |part: &&[u8]| {
        attribute(part, b"domain").is_some_and(|domain| {
            let domain = domain.to_ascii_lowercase();
            domain == b"backend" || domain == b".backend"
        })
    };
    let left = cookie_parts(&given).into_iter().enumerate().filter(|(index, part)| *index == 0 || !is_own_domain(part));
    assert!(cookie_parts(&mapped).into_iter().eq(left.map(|(_, part)| part)), "{given:?} {mapped:?}");
}

/// A reference: a mapped one is a path, in which no browser reads another host.
pub fn location(data: &[u8]) {
    let Some(reference) = location::strip_origin(data, BACKEND) else { return };
    let mapped = location::rebase(&reference, "", "/mydir").unwrap_or_else(|| reference.clone());
    for reference in [reference, mapped] {
        assert!(is_path(&reference), "{reference:?}");
    }
}

/// A `Refresh`: if a browser reads the backend's URL, it reads the mapped path afterwards; otherwise the value is
/// unchanged.
pub fn refresh(data: &[u8]) {
    let Ok(given) = HeaderValue::from_bytes(data) else { return };
    let mut headers = HeaderMap::from_iter([(REFRESH, given.clone())]);
    location::map_references(&mut headers, |url| location::strip_origin(url, BACKEND));
    let mapped = &headers[REFRESH];
    match refresh_url(given.as_bytes()).map(|url| (url, location::strip_origin(url, BACKEND))) {
        Some((_, Some(path))) => {
            assert!(is_path(&path), "{path:?}");
            assert_eq!(refresh_url(mapped.as_bytes()), Some(&*path), "{given:?} {mapped:?}");
        }
        _ => assert_eq!(&given, mapped),
    }
}

/// A valid `Host`: it can't end a parameter of `Forwarded` or begin another one.
pub fn forwarded(data: &[u8]) {
    let Ok(host) = HeaderValue::from_bytes(data) else { return };
    if !crate::authority::is_authority(host.as_bytes()) {
        return;
    }
    let mut headers = HeaderMap::new();
    let policy = ForwardedPolicy { forwarded: true, ..ForwardedPolicy::default() };
    policy.apply(&mut headers, Received { host: Some(&host), ..Received::default() });
    let element = headers["forwarded"].as_bytes();
    let (mut quoted, mut parameters) = (false, 1);
    for byte in element {
        match byte {
            b'"' => quoted = !quoted,
            b';' if !quoted => parameters += 1,
            b',' if !quoted => panic!("two elements"),
            _ => {}
        }
    }
    assert!(!quoted && parameters == 2, "{element:?}");
}

/// A response in pieces: the client's codec reads it as hyper's client does, or refuses it for a documented reason.
///
/// The first octet chooses the method of the request, the limits and the pieces.
pub fn response(data: &[u8]) {
    let Some(case) = oracle::response::Case::from_octets(data) else { return };
    case.check().unwrap_or_else(|what| panic!("{what}"));
}

/// A request: the client's codec writes it as hyper's client does, or as it documents. It can be read back.
///
/// The first three octets choose the method, the length that the body announces, and the sizes of the writes.
pub fn request(data: &[u8]) {
    let Some(case) = oracle::request::Case::from_octets(data) else { return };
    case.check().unwrap_or_else(|what| panic!("{what}"));
}

/// Parses fields, one per line, without surrounding whitespace, as the HTTP stack returns them.
fn fields(data: &[u8]) -> HeaderMap {
    data.split(|&b| b == b'\n')
        .filter_map(|line| {
            let colon = line.iter().position(|&b| b == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
        })
        .collect()
}

/// Splits a cookie and its attributes at the semicolons (RFC 6265, section 5.2).
fn cookie_parts(cookie: &HeaderValue) -> Vec<&[u8]> {
    cookie.as_bytes().split(|&b| b == b';').collect()
}

/// Returns the name in a cookie pair.
fn cookie_name(pair: &[u8]) -> &[u8] {
    pair.split(|&b| b == b'=').next().unwrap_or_default().trim_ascii()
}

/// Returns the value of an attribute, if the part has this name.
fn attribute<'a>(part: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let equals = part.iter().position(|&b| b == b'=')?;
    part[..equals].trim_ascii().eq_ignore_ascii_case(name).then(|| part[equals + 1..].trim_ascii())
}

/// Whether a browser reads a path here and not an authority: it treats `\` as `/` and ignores tabs (WHATWG URL).
fn is_path(reference: &[u8]) -> bool {
    let seen: Vec<_> = reference.iter().filter(|&&b| b != b'\t').take(2).collect();
    seen.first() == Some(&&b'/') && !matches!(seen.get(1), Some(b'/' | b'\\'))
}

/// Returns the URL that a browser reads in a `Refresh` (HTML, "shared declarative refresh steps").
fn refresh_url(value: &[u8]) -> Option<&[u8]> {
    let rest = value.trim_ascii_start();
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    if digits == 0 && rest.first() != Some(&b'.') {
        return None;
    }
    let rest = &rest[rest.iter().take_while(|b| b.is_ascii_digit() || **b == b'.').count()..];
    if !rest.first().is_some_and(|&b| b";,".contains(&b) || b.is_ascii_whitespace()) {
        return None;
    }
    let rest = rest.trim_ascii_start();
    let ([b';' | b',', url @ ..] | url) = rest;
    let url = url.trim_ascii_start();
    let named = url.split_at_checked(3).filter(|(name, _)| name.eq_ignore_ascii_case(b"url"));
    let named = named.and_then(|(_, rest)| rest.trim_ascii_start().strip_prefix(b"=")).map(<[u8]>::trim_ascii_start);
    let url = match named.unwrap_or(url) {
        [quote @ (b'"' | b'\''), url @ ..] => url.split(|b| b == quote).next().unwrap_or_default(),
        url => url,
    };
    Some(url.trim_ascii())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn seeds_and_past_findings_pass() {
        type Target = fn(&[u8]);
        let targets: [(&str, Target); 10] = [
            ("cookie", cookie),
            ("forwarded", forwarded),
            ("framing", framing),
            ("hop", hop),
            ("location", location),
            ("path", path),
            ("refresh", refresh),
            ("request", request),
            ("response", response),
            ("trailers", trailers),
        ];
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        // The published package is without them.
        if !seeds.exists() {
            return;
        }
        assert_eq!(fs::read_dir(&seeds).unwrap().count(), targets.len());
        for (name, target) in targets {
            let files: Vec<_> = fs::read_dir(seeds.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(files.len() > 4, "{name}");
            for file in files {
                target(&fs::read(file).unwrap());
            }
        }
    }
}
