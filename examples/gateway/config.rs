//! The configuration file, whose errors are one line each.

use std::{fs, net::SocketAddr, time::Duration};

use axum::http::uri::Scheme;
use serde::{Deserialize, Deserializer, de::Error as _};
use tower_reverse_proxy::HostPolicy;

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
    pub(crate) backends: Option<Vec<String>>,
    pub(crate) balance: Option<Balance>,
    pub(crate) weights: Option<Vec<u32>>,
    pub(crate) sticky: Option<Sticky>,
    #[serde(default, deserialize_with = "secret")]
    pub(crate) sticky_key: Option<String>,
    pub(crate) check: Option<String>,
    pub(crate) check_interval_ms: Option<u64>,
    pub(crate) eject: Option<bool>,
    pub(crate) retry: Option<Retry>,
    pub(crate) max_requests: Option<u32>,
    pub(crate) queue_timeout_ms: Option<u64>,
    pub(crate) slow_start_ms: Option<u64>,
    pub(crate) discover: Option<Discover>,
    pub(crate) dns_server: Option<SocketAddr>,
    pub(crate) drain_timeout_ms: Option<u64>,
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
}

/// How a mount's backend is picked for a request.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Balance {
    Least,
    RoundRobin,
    HashUser,
    HashPath,
}

/// How a session stays at a backend.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sticky {
    Cookie,
}

/// Which failed requests are sent to another backend.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Retry {
    None,
    Unsent,
    Idempotent,
}

/// Where a mount's backends come from, if not from the file.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Discover {
    Dns,
}

/// Where the requests of a mount are sent.
pub(crate) enum Target<'a> {
    One(&'a str),
    Several(&'a [String]),
    /// The addresses of a name.
    Name(&'a str),
}

impl<'a> Target<'a> {
    /// Returns the first origin that the file names.
    pub(crate) fn origin(&self) -> &'a str {
        match self {
            Self::One(origin) | Self::Name(origin) => origin,
            Self::Several(origins) => origins.first().map_or("", String::as_str),
        }
    }
}

impl Mount {
    /// Returns where requests are sent. Refuses keys that would have no effect or make no sense, because the mount
    /// would differ from its configuration.
    pub(crate) fn target(&self) -> Result<Target<'_>, Wrong> {
        let target = match (&self.backend, &self.backends, self.discover) {
            (None, None, _) => return Err("no backend: write backend = \"http://…\"".into()),
            (Some(_), Some(_), _) => return Err("backends: write one of backend and backends".into()),
            (None, Some(_), Some(_)) => {
                return Err("discover: write the name as backend = \"http://name:port\", in place of backends".into());
            }
            (None, Some(backends), None) if backends.is_empty() => {
                return Err("backends = []: write one backend or more".into());
            }
            (None, Some(backends), None) => Target::Several(backends),
            (Some(name), None, Some(Discover::Dns)) => Target::Name(name),
            (Some(backend), None, None) => Target::One(backend),
        };
        if let (Target::One(_), Some(key)) = (&target, self.key_of_several()) {
            return Err(format!("{key}: write backends = [\"http://…\"] in place of backend"));
        }
        self.check_weights(&target)?;
        self.check_values()?;
        Ok(target)
    }

    /// Returns a key that mounts with several backends have.
    fn key_of_several(&self) -> Option<&'static str> {
        let keys = [
            ("balance", self.balance.is_some()),
            ("weights", self.weights.is_some()),
            ("sticky", self.sticky.is_some()),
            ("sticky_key", self.sticky_key.is_some()),
            ("check", self.check.is_some()),
            ("check_interval_ms", self.check_interval_ms.is_some()),
            ("eject", self.eject.is_some()),
            ("retry", self.retry.is_some()),
            ("max_requests", self.max_requests.is_some()),
            ("queue_timeout_ms", self.queue_timeout_ms.is_some()),
            ("slow_start_ms", self.slow_start_ms.is_some()),
            ("dns_server", self.dns_server.is_some()),
            ("drain_timeout_ms", self.drain_timeout_ms.is_some()),
        ];
        keys.into_iter().find_map(|(key, is_there)| is_there.then_some(key))
    }

    fn check_weights(&self, target: &Target<'_>) -> Result<(), Wrong> {
        let Some(weights) = &self.weights else { return Ok(()) };
        match target {
            Target::Several(backends) if backends.len() != weights.len() => {
                Err(format!("weights: there are {} for {} backends: write as many", weights.len(), backends.len()))
            }
            Target::Several(_) if weights.contains(&0) => {
                Err("weights: a weight of 0: write 1 or more, or leave the backend out".into())
            }
            Target::Several(_) => Ok(()),
            Target::One(_) | Target::Name(_) => Err("weights: leave them out, because DNS has none".into()),
        }
    }

    fn check_values(&self) -> Result<(), Wrong> {
        match (self.sticky, &self.sticky_key) {
            (Some(Sticky::Cookie), None) => {
                return Err("sticky: write sticky_key, too: 16 bytes or more, the same in every replica".into());
            }
            (None, Some(_)) => return Err("sticky_key: write sticky = \"cookie\", too".into()),
            // Without the key, which is a secret.
            (_, Some(key)) if key.len() < 16 => return Err("sticky_key: write 16 bytes or more".into()),
            _ => {}
        }
        if self.max_requests == Some(0) {
            return Err("max_requests = 0: write 1 or more, or leave it out".into());
        }
        match (&self.check, self.check_interval_ms) {
            (Some(path), _) if !path.starts_with('/') => {
                return Err(format!("check: {path:?}: write a path, such as \"/healthz\""));
            }
            (_, Some(0)) => return Err("check_interval_ms = 0: write 5000, or leave it out".into()),
            (None, Some(_)) => return Err("check_interval_ms: write check = \"/healthz\", too".into()),
            _ => {}
        }
        if self.dns_server.is_some() && self.discover.is_none() {
            return Err("dns_server: write discover = \"dns\", too".into());
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Host {
    Backend,
    Preserve,
}

impl From<Host> for HostPolicy {
    fn from(host: Host) -> Self {
        match host {
            Host::Backend => Self::Backend,
            Host::Preserve => Self::Preserve,
        }
    }
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
