//! Fields that only the proxy may set, because a backend reads them as an identity or as variables of its own. Every
//! spelling that a server folds into the same variable counts.

use http::{
    HeaderMap, HeaderName,
    header::{
        ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH,
        CONTENT_TYPE, COOKIE, DNT, HOST, IF_MODIFIED_SINCE, IF_NONE_MATCH, ORIGIN, PRAGMA, RANGE, REFERER, TRAILER,
        UPGRADE_INSECURE_REQUESTS, USER_AGENT,
    },
};

use super::{eq_folded, forwarded::is_forwarding_field, remove_where, retain_members};

/// The fields of a request that are kept although only the proxy may set them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KeptFields {
    /// Forwarding fields, because the peer is trusted.
    pub(crate) forwarding: bool,
    /// Identity claims, because the peer is trusted or an option keeps them.
    pub(crate) identity_claims: bool,
    /// Names with underscores, because an option keeps them.
    pub(crate) underscores: bool,
}

/// Whether only the proxy may set the field, so that a client's is removed.
pub(crate) fn is_for_the_proxy_only(name: &HeaderName, keep: KeptFields) -> bool {
    !is_common(name) && is_claimed(name.as_str(), keep)
}

fn is_claimed(name: &str, keep: KeptFields) -> bool {
    (!keep.forwarding && is_forwarding_field(name))
        || (!keep.identity_claims && is_identity_claim(name))
        || is_reserved(name)
        || (!keep.underscores && has_underscore(name))
}

/// Fast path: whether the field is one of those that most requests have, none of which is for the proxy only.
fn is_common(name: &HeaderName) -> bool {
    matches!(
        *name,
        ACCEPT
            | ACCEPT_ENCODING
            | ACCEPT_LANGUAGE
            | AUTHORIZATION
            | CACHE_CONTROL
            | CONNECTION
            | CONTENT_LENGTH
            | CONTENT_TYPE
            | COOKIE
            | DNT
            | HOST
            | IF_MODIFIED_SINCE
            | IF_NONE_MATCH
            | ORIGIN
            | PRAGMA
            | RANGE
            | REFERER
            | UPGRADE_INSECURE_REQUESTS
            | USER_AGENT
    )
}

/// Whether the field is removed from every request.
///
/// `Remote-User` is set by the proxy. `Proxy` becomes `HTTP_PROXY` in a CGI (CVE-2016-5385). `X-Original-URL` and
/// `X-Rewrite-URL` replace the path in some frameworks and would escape every prefix. They aren't accepted from a
/// trusted peer either, because trusted proxies forward these fields from their clients.
fn is_reserved(name: &str) -> bool {
    let name = name.as_bytes();
    match name.first() {
        Some(b'p') => name == b"proxy",
        Some(b'r') => eq_folded(name, "remote-user"),
        Some(b'x') => eq_folded(name, "x-original-url") || eq_folded(name, "x-rewrite-url"),
        _ => false,
    }
}

/// Whether the field carries the identity of a user or of a client certificate, as authenticating proxies set it. The
/// name is in lower case, as in a [`HeaderName`].
///
/// Backends trust these fields without a signature. Signed ones (`Cf-Access-Jwt-Assertion`, `X-Goog-IAP-JWT-Assertion`)
/// aren't included, because their readers verify them.
pub(crate) fn is_identity_claim(name: &str) -> bool {
    let name = name.as_bytes();
    // Prefixes of names, selected by the first octets, which already exclude nearly every other field.
    let claims: &[&str] = match name {
        [b'x', _, b'a', ..] => {
            &["x-arr-clientcert", "x-auth-request-", "x-authenticated-", "x-authentik-", "x-amzn-oidc-identity"]
        }
        [b'x', _, b'c', ..] => &["x-client-cert", "x-client-dn", "x-client-verify"],
        [b'x', _, b'g', ..] => &["x-goog-authenticated-user-"],
        [b'x', _, b'm', ..] => &["x-ms-client-principal"],
        [b'x', _, b'p', ..] => &["x-pomerium-claim-"],
        [b'x', _, b'r', ..] => &["x-remote-user", "x-remote-group", "x-remote-extra-"],
        [b'x', _, b's', ..] => &["x-ssl-"],
        [b'x', _, b'v', ..] => &["x-vouch-"],
        [b'x', _, b'w', ..] => &["x-webauth-"],
        [b'c', b'f', ..] => &["cf-access-authenticated-user-"],
        [b'c', b'l', ..] => &["client-cert"],
        [b'e', b's', ..] => &["es-security-runas-user"],
        [b'o', b'i', ..] => &["oidc-claim-"],
        [b'p', b'r', b'o', ..] => &["proxy-remote-user"],
        [b'r', b'e', b'm', ..] => &["remote-"],
        [b's', b's', ..] => &["ssl-client-"],
        [b't', b'a', ..] => &["tailscale-user-"],
        _ => return false,
    };
    claims.iter().any(|claim| name.get(..claim.len()).is_some_and(|start| eq_folded(start, claim)))
}

/// Whether the name has an underscore, which WSGI and CGI servers don't distinguish from a hyphen: `Remote_User`
/// becomes `HTTP_REMOTE_USER` too, and `SCRIPT_NAME` is one of the server's own variables.
fn has_underscore(name: &str) -> bool {
    name.bytes().any(|b| b == b'_')
}

/// Removes a field in every spelling that a server folds into the same variable, also from the announced trailers.
pub(crate) fn remove_folded(headers: &mut HeaderMap, name: &HeaderName) {
    remove_where(headers, |other| eq_folded(other.as_str().as_bytes(), name.as_str()));
    retain_members(headers, TRAILER, |member| !eq_folded(member, name.as_str()));
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn spellings() {
        for name in
            ["remote-user", "remote_user", "remote.user", "Remote-User", "REMOTE_USER", "remote~user", "remote!user"]
        {
            assert!(eq_folded(name.as_bytes(), "remote-user"), "{name}");
            assert!(eq_folded(name.as_bytes(), "Remote_User"), "{name}");
        }
        for name in ["remote-users", "x-remote-user", "remoteuser", ""] {
            assert!(!eq_folded(name.as_bytes(), "remote-user"), "{name}");
        }
    }

    #[test]
    fn reserved_names() {
        for name in ["proxy", "remote-user", "remote_user", "x-original-url", "x_original_url", "x-rewrite.url"] {
            assert!(is_reserved(name), "{name}");
        }
        for name in ["proxy-x", "remote-users", "x-original-host", "x-rewrite-urls", "x", "accept", ""] {
            assert!(!is_reserved(name), "{name}");
        }
    }

    #[test]
    fn no_common_field_is_for_the_proxy_only() {
        for name in [
            "accept",
            "accept-encoding",
            "accept-language",
            "authorization",
            "cache-control",
            "connection",
            "content-length",
            "content-type",
            "cookie",
            "dnt",
            "host",
            "if-modified-since",
            "if-none-match",
            "origin",
            "pragma",
            "range",
            "referer",
            "upgrade-insecure-requests",
            "user-agent",
        ] {
            assert!(is_common(&HeaderName::from_static(name)), "{name}");
            assert!(!is_claimed(name, KeptFields::default()), "{name}");
        }
    }

    #[test]
    fn claims_of_an_identity() {
        for name in [
            "Remote-Groups",
            "remote_name",
            "Remote.Email",
            "REMOTE-ADDR",
            "X-WEBAUTH-USER",
            "x_webauth_email",
            "X-Auth-Request-User",
            "x.auth.request.groups",
            "X-Authenticated-User",
            "X-Authenticated-Userid",
            "Tailscale-User-Login",
            "X-MS-CLIENT-PRINCIPAL",
            "x-ms-client-principal-name",
            "X-Goog-Authenticated-User-Email",
            "X-Authentik-Username",
            "Client-Cert",
            "client_cert-chain",
            "X-SSL-Client-S-DN",
            "x~ssl~cert",
            "SSL-Client-Verify",
            "ssl_client_cert",
            "X-Client-Cert",
            "X-Client-Certificate",
            "X-ARR-ClientCert",
            "es-security-runas-user",
            "ES_Security.Runas-User",
            "X-Remote-User",
            "X-Remote-Extra-Scopes",
            "OIDC_CLAIM_sub",
            "Cf-Access-Authenticated-User-Email",
            "X-Amzn-Oidc-Identity",
            "X-Client-DN",
            "X_Client_Verify",
            "X-Pomerium-Claim-Email",
            "X-Vouch-User",
            "Proxy-Remote-User",
        ] {
            assert!(is_identity_claim(&name.to_ascii_lowercase()), "{name}");
        }
        for name in [
            "referer",
            "range",
            "remotes",
            "x-auth-token",
            "x-api-key",
            "x-requested-with",
            "x-request-id",
            "x-csrf-token",
            "x-client-id",
            "x-ms-version",
            "x-goog-iap-jwt-assertion",
            "cf-access-jwt-assertion",
            "client-hint",
            "cookie",
            "x-amz-date",
            "x-ssl",
            "ssl",
            "tailscale",
            "x",
            "xxa",
            "es",
            "expect",
            "origin",
            "authorization",
            "x-remote",
        ] {
            assert!(!is_identity_claim(&name.to_ascii_lowercase()), "{name}");
        }
    }

    #[test]
    fn folded_names_are_removed_from_fields_and_trailers() {
        let mut headers = HeaderMap::new();
        for name in ["x-user", "x_user", "x.user", "x-users"] {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("admin"));
        }
        headers.append(TRAILER, HeaderValue::from_static("x-ok, X_User"));
        headers.append(TRAILER, HeaderValue::from_static("x-user"));
        remove_folded(&mut headers, &HeaderName::from_static("x-user"));
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>().len(), 2);
        assert!(headers.contains_key("x-users"));
        assert_eq!(headers[TRAILER], "x-ok");
    }
}
