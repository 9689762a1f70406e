//! One key: what it signs, and its public half.

use std::{error, fmt};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use tokio_rustls::rustls::{
    self, SignatureAlgorithm, SignatureScheme,
    crypto::{CryptoProvider, SecureRandom, hash::HashAlgorithm},
    pki_types::{PrivateKeyDer, pem::PemObject},
    sign::{Signer, SigningKey},
};

use super::InvalidKey;
use crate::crypto;

/// A key that signs.
pub(super) struct Key {
    /// Its thumbprint (RFC 7638), which contains nothing that JSON or a quoted string would escape.
    pub(super) kid: Box<str>,
    /// The public half, as a JSON object (RFC 7517).
    pub(super) jwk: Box<str>,
    /// The first part of each token: `alg`, `typ` and `kid` in base64url.
    header: Box<str>,
    algorithm: Algorithm,
    signer: Box<dyn Signer>,
    random: &'static dyn SecureRandom,
}

#[derive(Clone, Copy, PartialEq)]
enum Algorithm {
    /// `ES256`: ECDSA with P-256 and SHA-256 (RFC 7518, section 3.4).
    P256,
    /// `EdDSA` with Ed25519 (RFC 8037, section 3.1).
    Ed25519,
}

impl Key {
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, InvalidKey> {
        let der = private_key(pem)?;
        let provider = crypto::provider().ok_or_else(|| InvalidKey::new(crypto::NO_PROVIDER))?;
        // Without the provider's error, which adds nothing to what to write.
        let key =
            provider.key_provider.load_private_key(der).map_err(|_| other_kind("of a kind that can't be used"))?;
        let (algorithm, signer) = signer(&*key)?;
        let spki = key.public_key();
        let point = spki.as_ref().and_then(|spki| algorithm.public_point(spki.as_ref())).ok_or_else(|| {
            InvalidKey::new("the provider of cryptography doesn't return its public half; install another provider")
        })?;
        let members = algorithm.jwk_members(point);
        let kid = thumbprint(&provider, &members)?;
        let alg = algorithm.name();
        Ok(Self {
            // Without the braces, the members are those of the thumbprint.
            jwk: format!(r#"{{{members},"kid":"{kid}","use":"sig","alg":"{alg}"}}"#).into(),
            header: encode(format!(r#"{{"alg":"{alg}","typ":"JWT","kid":"{kid}"}}"#)).into(),
            kid: kid.into(),
            algorithm,
            signer,
            random: provider.secure_random,
        })
    }

    /// Returns the token of these claims, in the compact form (RFC 7515, section 7.1).
    pub(super) fn sign(&self, claims: &[u8]) -> Result<String, SignError> {
        let mut token = String::with_capacity(self.header.len() + claims.len() * 4 / 3 + 96);
        token.push_str(&self.header);
        token.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.signer.sign(token.as_bytes()).map_err(SignError::Provider)?;
        token.push('.');
        match self.algorithm {
            Algorithm::P256 => {
                let raw = raw_signature(&signature).ok_or(SignError::Malformed)?;
                BASE64_URL_SAFE_NO_PAD.encode_string(raw, &mut token);
            }
            Algorithm::Ed25519 => BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut token),
        }
        Ok(token)
    }

    /// Returns 128 random bits in base64url.
    pub(super) fn random_id(&self) -> Result<String, SignError> {
        let mut bytes = [0; 16];
        self.random.fill(&mut bytes).map_err(|_| SignError::NoRandom)?;
        Ok(encode(bytes))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::P256 => "ES256",
            Self::Ed25519 => "EdDSA",
        }
    }

    /// Returns the public point of a SubjectPublicKeyInfo: `x` and `y` of P-256, `x` of Ed25519. All that precedes it
    /// is constant, an uncompressed point's 4 included (RFC 5480, section 2; RFC 8410, section 4).
    fn public_point(self, spki: &[u8]) -> Option<&[u8]> {
        const P256: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04";
        const ED25519: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
        let (prefix, length) = match self {
            Self::P256 => (P256, 64),
            Self::Ed25519 => (ED25519, 32),
        };
        spki.strip_prefix(prefix).filter(|point| point.len() == length)
    }

    /// Returns the members of a JWK that a thumbprint covers, in their lexicographic order (RFC 7638, section 3.2; RFC
    /// 8037, appendix A.3).
    fn jwk_members(self, point: &[u8]) -> String {
        let (x, y) = point.split_at(32);
        match self {
            Self::P256 => format!(r#""crv":"P-256","kty":"EC","x":"{}","y":"{}""#, encode(x), encode(y)),
            Self::Ed25519 => format!(r#""crv":"Ed25519","kty":"OKP","x":"{}""#, encode(x)),
        }
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns the one private key of a PEM file. No error contains a part of the file, because that may be the key.
fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, InvalidKey> {
    let contains = |text: &str| pem.windows(text.len()).any(|window| window == text.as_bytes());
    if contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains("Proc-Type: 4,ENCRYPTED") {
        return Err(InvalidKey::new(
            "it is encrypted; write it without a passphrase, in a file that only the server may read: \
             `openssl pkcs8 -topk8 -nocrypt -in key.pem -out assertion.pem`",
        ));
    }
    let mut keys = PrivateKeyDer::pem_slice_iter(pem);
    let key = match keys.next() {
        Some(Ok(key)) => key,
        Some(Err(_)) => return Err(InvalidKey::with_command("it isn't valid PEM")),
        None if !pem.is_empty() && !contains("-----BEGIN ") => {
            return Err(InvalidKey::with_command(
                "it isn't PEM, which is the contents of a key's file and not its path",
            ));
        }
        None => return Err(InvalidKey::with_command("it has no private key in it")),
    };
    if keys.next().is_some() {
        return Err(InvalidKey::new(
            "it has more than one private key in it; write one, and add the next one with `AssertionKeys::rotate`",
        ));
    }
    match key {
        PrivateKeyDer::Pkcs8(_) => Ok(key),
        PrivateKeyDer::Sec1(_) => Err(InvalidKey::new(
            "it is in the format SEC1 (`EC PRIVATE KEY`); convert it to PKCS #8: \
             `openssl pkcs8 -topk8 -nocrypt -in key.pem -out assertion.pem`",
        )),
        _ => Err(other_kind("an RSA key")),
    }
}

fn other_kind(what: &str) -> InvalidKey {
    InvalidKey::with_command(format_args!("it is {what}, not a P-256 or Ed25519 one"))
}

fn signer(key: &dyn SigningKey) -> Result<(Algorithm, Box<dyn Signer>), InvalidKey> {
    for (algorithm, scheme) in
        [(Algorithm::P256, SignatureScheme::ECDSA_NISTP256_SHA256), (Algorithm::Ed25519, SignatureScheme::ED25519)]
    {
        if let Some(signer) = key.choose_scheme(&[scheme]) {
            return Ok((algorithm, signer));
        }
    }
    Err(other_kind(match key.algorithm() {
        SignatureAlgorithm::RSA => "an RSA key",
        SignatureAlgorithm::ECDSA => "a key on another curve, such as P-384",
        _ => "of a kind that can't be used",
    }))
}

/// Returns the SHA-256 thumbprint of a JWK (RFC 7638), with the hash of the provider's cipher suites.
fn thumbprint(provider: &CryptoProvider, members: &str) -> Result<String, InvalidKey> {
    let hashes = provider.cipher_suites.iter().map(|suite| match suite {
        rustls::SupportedCipherSuite::Tls12(suite) => suite.common.hash_provider,
        rustls::SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider,
    });
    let sha256 = hashes.into_iter().find(|hash| hash.algorithm() == HashAlgorithm::SHA256).ok_or_else(|| {
        InvalidKey::new("the provider of cryptography has no cipher suite with SHA-256; install another provider")
    })?;
    Ok(encode(sha256.hash(format!("{{{members}}}").as_bytes())))
}

/// Converts a signature from DER (RFC 3279, section 2.2.3) to 32 octets each of `r` and `s` (RFC 7518, section 3.4).
fn raw_signature(der: &[u8]) -> Option<[u8; 64]> {
    // Two integers of at most 33 octets, so every length has one octet.
    let [0x30, length, integers @ ..] = der else { return None };
    if usize::from(*length) != integers.len() {
        return None;
    }
    let (r, rest) = integer(integers)?;
    let (s, rest) = integer(rest)?;
    if !rest.is_empty() {
        return None;
    }
    let mut raw = [0; 64];
    raw[32 - r.len()..32].copy_from_slice(r);
    raw[64 - s.len()..].copy_from_slice(s);
    Some(raw)
}

/// Reads a positive integer of DER: its octets without leading zeros, at most 32, and what follows it.
fn integer(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let [0x02, length, rest @ ..] = der else { return None };
    let (octets, rest) = rest.split_at_checked(usize::from(*length))?;
    // A zero precedes a first octet whose highest bit is set, because it would make the number negative.
    let octets = octets.strip_prefix(&[0]).unwrap_or(octets);
    (1..=32).contains(&octets.len()).then_some((octets, rest))
}

/// A token that couldn't be signed. It contains no part of the token.
#[derive(Debug)]
pub(super) enum SignError {
    Provider(rustls::Error),
    Malformed,
    NoRandom,
}

impl fmt::Display for SignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Provider(_) => "the assertion couldn't be signed",
            Self::Malformed => "the provider's signature isn't one of ECDSA in DER",
            Self::NoRandom => "the provider has no random numbers",
        })
    }
}

impl error::Error for SignError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Provider(error) => Some(error),
            Self::Malformed | Self::NoRandom => None,
        }
    }
}

#[cfg(test)]
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, jwk::Jwk};
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn pem(algorithm: &'static rcgen::SignatureAlgorithm) -> String {
        KeyPair::generate_for(algorithm).unwrap().serialize_pem()
    }

    fn key(algorithm: &'static rcgen::SignatureAlgorithm) -> Key {
        Key::from_pem(pem(algorithm).as_bytes()).unwrap()
    }

    /// The inverse of `raw_signature`.
    fn der_signature(raw: &[u8]) -> Vec<u8> {
        let integers = raw.chunks(32).flat_map(|integer| {
            let zeros = integer.iter().take_while(|&&b| b == 0).count().min(31);
            let mut octets = integer[zeros..].to_vec();
            if octets[0] > 0x7f {
                octets.insert(0, 0);
            }
            [&[0x02, octets.len() as u8], &*octets].concat()
        });
        let integers: Vec<u8> = integers.collect();
        [&[0x30, integers.len() as u8], &*integers].concat()
    }

    #[test]
    fn signatures_are_converted_without_a_loss() {
        let key = key(&PKCS_ECDSA_P256_SHA256);
        let (mut short, mut long) = (0, 0);
        for number in 0..4000_u32 {
            let der = key.signer.sign(&number.to_be_bytes()).unwrap();
            let raw = raw_signature(&der).unwrap();
            assert_eq!(der_signature(&raw), der);
            short += u32::from(raw[0] == 0 || raw[32] == 0);
            long += u32::from(raw[0] > 0x7f && raw[32] > 0x7f);
        }
        // One of 128 and one of 4, by chance.
        assert!(short > 5 && long > 500, "{short} with a short integer, {long} with two long ones");
    }

    #[test]
    fn malformed_signatures_are_refused() {
        let integer = |length: usize, first: u8| {
            let mut octets = vec![0x11; length];
            octets[0] = first;
            [&[0x02, length as u8], &*octets].concat()
        };
        let sequence = |parts: &[Vec<u8>]| [&[0x30, parts.concat().len() as u8], &*parts.concat()].concat();
        let good = sequence(&[integer(1, 1), integer(33, 0)]);
        let raw = raw_signature(&good).unwrap();
        assert_eq!((raw[30], raw[31], raw[32], raw[63]), (0, 1, 0x11, 0x11));
        for bad in [
            vec![],
            good[..good.len() - 1].to_vec(),
            [&*good, &[0]].concat(),
            sequence(&[integer(33, 0)]),
            sequence(&[integer(33, 1), integer(1, 1)]),
            sequence(&[integer(34, 0), integer(1, 1)]),
            sequence(&[integer(1, 0), integer(1, 1)]),
            sequence(&[integer(1, 1), integer(1, 1), integer(1, 1)]),
            sequence(&[vec![0x02, 0], integer(1, 1)]),
            sequence(&[vec![0x02, 9, 1]]),
            sequence(&[vec![0x04, 1, 1], integer(1, 1)]),
        ] {
            assert_eq!(raw_signature(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_independent_verifier_accepts_the_tokens_and_the_published_key() {
        for (algorithm, name) in
            [(&PKCS_ECDSA_P256_SHA256, jsonwebtoken::Algorithm::ES256), (&PKCS_ED25519, jsonwebtoken::Algorithm::EdDSA)]
        {
            let key = key(algorithm);
            let jwk: Jwk = serde_json::from_str(&key.jwk).unwrap();
            assert_eq!(jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256).unwrap(), *key.kid);
            assert_eq!(jwk.common.key_id.as_deref(), Some(&*key.kid));
            let verifier = DecodingKey::from_jwk(&jwk).unwrap();
            let mut validation = Validation::new(name);
            validation.set_required_spec_claims::<&str>(&[]);
            for number in 0..20 {
                let claims = format!(r#"{{"n":{number}}}"#);
                let token = key.sign(claims.as_bytes()).unwrap();
                let verified = jsonwebtoken::decode::<serde_json::Value>(&token, &verifier, &validation).unwrap();
                assert_eq!(verified.claims["n"], number);
                assert_eq!(
                    (verified.header.kid.as_deref(), verified.header.typ.as_deref()),
                    (Some(&*key.kid), Some("JWT"))
                );
                let tampered = token.replace(&encode(claims), &encode(r#"{"n":99}"#));
                assert_ne!(tampered, token);
                assert!(jsonwebtoken::decode::<serde_json::Value>(&tampered, &verifier, &validation).is_err());
            }
        }
    }

    #[test]
    fn a_published_key_has_no_private_half() {
        for (algorithm, names) in [
            (&PKCS_ECDSA_P256_SHA256, &["alg", "crv", "kid", "kty", "use", "x", "y"][..]),
            (&PKCS_ED25519, &["alg", "crv", "kid", "kty", "use", "x"]),
        ] {
            let jwk: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&key(algorithm).jwk).unwrap();
            let mut members: Vec<_> = jwk.keys().collect();
            members.sort();
            assert_eq!(members, names);
            assert_eq!((&jwk["use"], jwk["x"].as_str().unwrap().len()), (&"sig".into(), 43));
        }
    }

    /// RFC 8037, appendices A.1 to A.4: the key, its thumbprint, and a signature, which has no chance in it.
    #[test]
    fn the_example_of_rfc_8037_has_its_thumbprint_and_signature() {
        let seed =
            base64::prelude::BASE64_URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
        // RFC 8410, section 7, without the public half, as OpenSSL writes it.
        let der = [&b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"[..], &seed].concat();
        let body = base64::prelude::BASE64_STANDARD.encode(der);
        let key = Key::from_pem(format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n").as_bytes())
            .unwrap();
        assert_eq!(&*key.kid, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
        assert!(key.jwk.contains(r#""x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#));
        let signature = key.signer.sign(b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc").unwrap();
        let expected =
            concat!("hgyY0il_MGCjP0JzlnLWG1PPO", "t7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg");
        assert_eq!(encode(signature), expected);
    }

    #[test]
    fn keys_that_cannot_sign_name_what_to_write() {
        let good = pem(&PKCS_ECDSA_P256_SHA256);
        let labelled = |label: &str| good.replace("PRIVATE KEY", label);
        let certificate = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        for (text, hint) in [
            (String::new(), "no private key in it; write a P-256 key"),
            ("assertion.pem".to_owned(), "the contents of a key's file and not its path; write a P-256 key"),
            (certificate, "no private key in it"),
            (labelled("PUBLIC KEY"), "no private key in it"),
            (labelled("ENCRYPTED PRIVATE KEY"), "encrypted; write it without a passphrase"),
            (good.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n", 1), "encrypted; write it without a passphrase"),
            (labelled("EC PRIVATE KEY"), "openssl pkcs8 -topk8"),
            (labelled("RSA PRIVATE KEY"), "it is an RSA key"),
            (pem(&PKCS_ECDSA_P384_SHA384), "another curve, such as P-384"),
            ([&*good, &*pem(&PKCS_ED25519)].concat(), "more than one private key"),
            (good[..good.len() - 30].to_owned(), "isn't valid PEM"),
            ("-----BEGIN PRIVATE KEY-----\nMAAA\n-----END PRIVATE KEY-----\n".to_owned(), "can't be used"),
        ] {
            let error = Key::from_pem(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("invalid key for assertions: it ") && error.contains(hint), "{error}");
            assert!(error.contains("write") || error.contains("convert"), "{error}");
            let body = text.lines().nth(1).unwrap_or("----");
            assert!(!error.contains(body), "{error}");
        }
    }

    #[test]
    fn debug_output_does_not_show_the_key() {
        let pem = pem(&PKCS_ECDSA_P256_SHA256);
        let shown = format!("{:?}", Key::from_pem(pem.as_bytes()).unwrap());
        assert!(
            shown.contains("kid") && pem.lines().skip(1).all(|line| line.starts_with('-') || !shown.contains(line))
        );
    }
}
