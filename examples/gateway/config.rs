//! The configuration file, whose errors are one line each.

use std::{fs, net::SocketAddr, time::Duration};

use axum::http::uri::Scheme;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{Wrong, serve::Limits};

/// The parsed file. The options of the whole gateway have been checked; those of a mount are checked when it's created.
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) threads: Option<usize>,
    pub(crate) test_sign_in: bool,
    pub(crate) limits: Limits,
    pub(crate) trusted_proxies: Vec<String>,
    pub(crate) forwarded_proto: Proto,
    pub(crate) assertion_key: Option<String>,
    pub(crate) mounts: Vec<Mount>,
}

impl Config {
    pub(crate) fn read(path: &str) -> Result<Self, Wrong> {
        let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        Self::parse(&text).map_err(|wrong| format!("{path}: {wrong}"))
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
            let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            format!("{line}{}", error.message())
        })?;
        if file.threads == Some(0) {
            return Err("threads = 0: write 1 or more, or leave it out".into());
        }
        let header_read_timeout = Duration::from_millis(file.header_read_timeout_ms.unwrap_or(30_000));
        if header_read_timeout.is_zero() {
            return Err("header_read_timeout_ms = 0: no client is that fast; write 30000, or leave it out".into());
        }
        let max_header_bytes = file.max_header_bytes.unwrap_or(64 * 1024);
        if !(4096..=1024 * 1024).contains(&max_header_bytes) {
            return Err(format!("max_header_bytes = {max_header_bytes}: write a number from 4096 to 1048576"));
        }
        Ok(Self {
            listen: file.listen,
            threads: file.threads,
            test_sign_in: file.test_sign_in,
            limits: Limits { header_read_timeout, max_header_bytes },
            trusted_proxies: file.trusted_proxies,
            forwarded_proto: file.forwarded_proto.unwrap_or(Proto::Http),
            assertion_key: file.assertion_key,
            mounts: file.mounts,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: SocketAddr,
    threads: Option<usize>,
    #[serde(default)]
    test_sign_in: bool,
    header_read_timeout_ms: Option<u64>,
    max_header_bytes: Option<u32>,
    #[serde(default)]
    trusted_proxies: Vec<String>,
    forwarded_proto: Option<Proto>,
    assertion_key: Option<String>,
    #[serde(default, rename = "mount")]
    mounts: Vec<Mount>,
}

/// Reads a secret. Its error doesn't show the value, as serde's own does for a number without quotation marks.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(secret) => Ok(Some(secret)),
        _ => Err(D::Error::custom("a secret that isn't a string: write it in quotation marks")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mount {
    pub(crate) prefix: String,
    pub(crate) backend: Option<String>,
    #[serde(default)]
    pub(crate) http2: bool,
    #[serde(default)]
    pub(crate) strip_prefix: bool,
    pub(crate) host: Option<Host>,
    pub(crate) forwarded: Option<bool>,
    pub(crate) forwarded_proto: Option<Proto>,
    pub(crate) remote_user: Option<bool>,
    pub(crate) remote_groups_header: Option<String>,
    #[serde(default)]
    pub(crate) assertion: bool,
    #[serde(default, deserialize_with = "secret")]
    pub(crate) basic_password: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    pub(crate) bearer: Option<String>,
    #[serde(default)]
    pub(crate) hide_cookies: Vec<String>,
    #[serde(default)]
    pub(crate) allow_upgrades: Vec<String>,
    #[serde(default)]
    pub(crate) trace_redirects: bool,
    pub(crate) connect_timeout_ms: Option<u64>,
    pub(crate) header_timeout_ms: Option<u64>,
    pub(crate) body_idle_timeout_ms: Option<u64>,
    pub(crate) ca_file: Option<String>,
    pub(crate) negotiate: Option<String>,
    #[serde(default)]
    pub(crate) negotiate_as_user: bool,
    // Known, but not supported yet.
    backends: Option<toml::Value>,
}

impl Mount {
    /// Refuses keys that the crate doesn't support yet, because the mount would differ from its configuration without
    /// them.
    pub(crate) fn check_supported(&self) -> Result<(), Wrong> {
        if self.backends.is_some() {
            return Err("`backends` is not supported yet: leave it out".into());
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Host {
    Backend,
    Preserve,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Proto {
    Http,
    Https,
}

impl From<Proto> for Scheme {
    fn from(proto: Proto) -> Self {
        match proto {
            Proto::Http => Self::HTTP,
            Proto::Https => Self::HTTPS,
        }
    }
}
