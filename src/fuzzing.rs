//! What the fuzz targets call: pure functions that read what a client or a backend sends, and what must hold of them.
//!
//! Built with `--cfg fuzzing` only, which cargo-fuzz sets.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header::HOST, uri::Scheme};

use crate::{
    headers::{
        forwarded::ForwardedPolicy,
        hop,
        location::{self, Origin},
    },
    path::{PathPolicy, Prefix, Target},
};

/// A request target: what is forwarded is what came, can be decoded in one way, and stays below its prefix by RFC 3986, section 5.2.4.
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

/// Fields, one per line: after the removal, none that a `Connection` line named is left.
pub fn hop(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|&b| b == b'\n') {
        let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&line[colon + 1..])) {
            headers.append(name, value);
        }
    }
    let named: Vec<_> = headers.get_all("connection").iter().cloned().collect();
    hop::remove_from_request(&mut headers, |_| false);
    for line in named {
        for member in line.as_bytes().split(|&b| b == b',') {
            let Ok(name) = HeaderName::from_bytes(member.trim_ascii()) else { continue };
            let kept = ["content-length", "host", "te", "trailer"].contains(&name.as_str());
            assert!(kept || !headers.contains_key(&name), "{name}");
        }
    }
}

/// A reference: what is mapped is a path, and no browser reads another host in it.
pub fn location(data: &[u8]) {
    let origin = Origin { scheme: &Scheme::HTTP, authority: b"backend:9000" };
    let Some(reference) = location::without_origin(data, origin) else { return };
    let mapped = location::with_prefix(&reference, "", "/mydir").unwrap_or_else(|| reference.clone());
    for reference in [reference, mapped] {
        let seen: Vec<_> = reference.iter().filter(|&&b| b != b'\t').take(2).collect();
        assert!(seen.first() == Some(&&b'/') && !matches!(seen.get(1), Some(b'/' | b'\\')), "{reference:?}");
    }
}

/// A `Host` that passed: it can't end a parameter of `Forwarded` or begin another one.
pub fn forwarded(data: &[u8]) {
    let Ok(host) = HeaderValue::from_bytes(data) else { return };
    if !crate::backend::is_authority(host.as_bytes()) {
        return;
    }
    let mut headers = HeaderMap::from_iter([(HOST, host)]);
    let policy = ForwardedPolicy { forwarded: true, ..ForwardedPolicy::default() };
    policy.apply(&mut headers, None, None);
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
