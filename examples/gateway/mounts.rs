//! The mounts: the table that finds the mount of a path, and the creation of a mount from its configuration.

use std::{collections::HashMap, convert::Infallible, future::Future, pin::Pin, time::Duration};

use axum::{
    http::{HeaderName, Request, uri::Scheme},
    response::Response,
};
use hyper::body::Incoming;
use tower::{
    Service, ServiceBuilder,
    layer::util::{Identity, Stack},
    util::Either,
};
use tower_reverse_proxy::{
    Backend, BasicAuthLayer, BearerLayer, Client, ClientBuilder, Forwarded, HostPolicy, HttpService, Prefix,
    RemoteUserLayer, RetryPolicy, ReverseProxy, ReverseProxyLayer, TraceRedirectLayer, TrustedPeers, Tunnels, Upstream,
};

use super::{
    Wrong,
    assertion::{self, Assertions},
    backends::{Set, Sets},
    config::{Config, Mount, Retry, Target},
    negotiate,
    sign_in::Groups,
    tls::Roots,
};

/// The mounts by their prefixes. A look-up finds the longest prefix, segment by segment. Its cost doesn't depend on the
/// number of mounts, and it doesn't read a path beyond the deepest prefix.
pub(crate) struct Table<T> {
    /// The directories; the first one is `/`.
    directories: Vec<Directory<T>>,
}

struct Directory<T> {
    mounted: Option<T>,
    /// The subdirectories, by name.
    below: HashMap<Box<str>, usize>,
}

impl<T> Directory<T> {
    fn new() -> Self {
        Self { mounted: None, below: HashMap::new() }
    }
}

impl<T> Table<T> {
    pub(crate) fn new() -> Self {
        Self { directories: vec![Directory::new()] }
    }

    /// Inserts a mount. Returns the previous mount at the same prefix.
    pub(crate) fn insert(&mut self, prefix: &str, mount: T) -> Option<T> {
        let mut at = 0;
        for segment in prefix.split('/').filter(|segment| !segment.is_empty()) {
            let next = self.directories.len();
            at = *self.directories[at].below.entry(segment.into()).or_insert(next);
            if at == next {
                self.directories.push(Directory::new());
            }
        }
        self.directories[at].mounted.replace(mount)
    }

    /// Finds the mount at the longest prefix of the path. Segments are compared byte for byte, as by [`Prefix`].
    pub(crate) fn find(&self, path: &str) -> Option<&T> {
        let mut segments = path.strip_prefix('/')?.split('/');
        let mut directory = &self.directories[0];
        let mut found = &directory.mounted;
        while !directory.below.is_empty()
            && let Some(&next) = segments.next().and_then(|segment| directory.below.get(segment))
        {
            directory = &self.directories[next];
            found = if directory.mounted.is_some() { &directory.mounted } else { found };
        }
        found.as_ref()
    }
}

/// A boxed proxy, because its layers depend on the configuration.
pub(crate) type Proxy = Box<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

fn boxed<U>(proxy: ReverseProxy<U>) -> Proxy
where
    ReverseProxy<U>: Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send + 'static>,
    U: Clone + Send + Sync + 'static,
{
    Box::new(move |request| Box::pin(proxy.clone().call(request)))
}

/// Creates every mount of the file. Returns them, and the sets of those with several backends.
pub(crate) async fn table(
    config: &Config,
    tunnels: &Tunnels,
    assertions: &Assertions,
) -> Result<(Table<Proxy>, Sets), Wrong> {
    let common = Common::new(config, tunnels, assertions)?;
    let (mut table, mut sets) = (Table::new(), Sets::default());
    for mount in &config.mounts {
        let proxy = common.proxy(mount, &mut sets).await;
        let proxy = proxy.map_err(|wrong| format!("mount {:?}: {wrong}", mount.prefix))?;
        if table.insert(&mount.prefix, proxy).is_some() {
            return Err(format!("mount {:?}: two mounts have this prefix: write each prefix once", mount.prefix));
        }
    }
    Ok((table, sets))
}

/// The options that all mounts share.
struct Common<'a> {
    tunnels: &'a Tunnels,
    proto: Scheme,
    trusted: Vec<TrustedPeers>,
    trust_unix: bool,
    roots: Roots,
    assertions: &'a Assertions,
}

impl<'a> Common<'a> {
    fn new(config: &Config, tunnels: &'a Tunnels, assertions: &'a Assertions) -> Result<Self, Wrong> {
        let is_unix = |block: &&String| *block == "unix";
        let blocks = config.trusted_proxies.iter().filter(|block| !is_unix(block)).map(|text| {
            let wrong =
                |_| format!("trusted_proxies: {text:?}: write a CIDR block, such as \"10.0.0.0/8\", or \"unix\"");
            TrustedPeers::try_from(text).map_err(wrong)
        });
        Ok(Self {
            tunnels,
            proto: config.forwarded_proto.into(),
            trusted: blocks.collect::<Result<_, _>>()?,
            trust_unix: config.trusted_proxies.iter().any(|block| is_unix(&block)),
            roots: Roots::new(),
            assertions,
        })
    }

    async fn proxy(&self, mount: &Mount, sets: &mut Sets) -> Result<Proxy, Wrong> {
        let target = mount.target()?;
        let backend = Backend::try_from(target.origin()).map_err(|error| error.to_string())?;
        let layers = self.layers(mount, &backend.to_string())?;
        let set = match target {
            Target::One(_) => {
                let tls = self.roots.of(mount, backend.scheme())?;
                let client = tls.apply(client_options(mount)(Client::builder(backend)));
                let mut upstream = Upstream::try_new(client).map_err(|error| error.to_string())?;
                if let Some(host) = mount.host {
                    upstream = upstream.host(HostPolicy::from(host));
                }
                let proxy = self.options(ReverseProxyLayer::with_upstream(upstream), mount)?;
                return Ok(boxed(proxy.upstream_layer(layers).into_service()));
            }
            Target::Several(origins) => Set::new(mount, origins, &self.roots, client_options(mount))?,
            Target::Name(name) => Set::found(mount, name, &self.roots, client_options(mount)).await?,
        };
        let policy = match mount.retry {
            Some(Retry::None) => RetryPolicy::none(),
            Some(Retry::Unsent) | None => RetryPolicy::unsent(),
            Some(Retry::Idempotent) => RetryPolicy::idempotent(),
        };
        let mut proxy = self.options(ReverseProxyLayer::balanced(set.backends()), mount)?.retry(policy);
        if let Some(host) = mount.host {
            proxy = proxy.map_members(move |upstream| upstream.host(HostPolicy::from(host)));
        }
        sets.push(set);
        Ok(boxed(proxy.upstream_layer(layers).into_service()))
    }

    /// Sets the options of the front's side.
    fn options<U: HttpService>(
        &self,
        proxy: ReverseProxyLayer<U>,
        mount: &Mount,
    ) -> Result<ReverseProxyLayer<U>, Wrong> {
        let prefix = Prefix::try_from(&mount.prefix).map_err(|error| error.to_string())?;
        let forwarded = Forwarded::new()
            .proto(mount.forwarded_proto.map_or_else(|| self.proto.clone(), Scheme::from))
            .trust(self.trusted.iter().copied())
            .trust_unix_peers(self.trust_unix)
            .x_forwarded(mount.forwarded.unwrap_or(true));
        let mut proxy = proxy.prefix(prefix).forwarded(forwarded).tunnels(self.tunnels.clone());
        if mount.strip_prefix {
            proxy = proxy.strip_prefix();
        }
        if let Some(ms) = mount.header_timeout_ms {
            proxy = proxy.header_timeout(Duration::from_millis(ms));
        }
        if let Some(ms) = mount.body_idle_timeout_ms {
            proxy = proxy.body_idle_timeout(Duration::from_millis(ms));
        }
        if let Some(name) = mount.hide_cookies.iter().find(|name| !is_token(name)) {
            return Err(format!("hide_cookies: {name:?}: write a cookie's name alone, such as \"id\""));
        }
        proxy = proxy.hide_cookies(mount.hide_cookies.iter().cloned());
        for token in &mount.allow_upgrades {
            let is_http =
                token.to_ascii_lowercase().starts_with("h2c") || token.to_ascii_lowercase().starts_with("http/");
            if is_http || !token.splitn(2, '/').all(is_token) {
                return Err(format!(
                    "allow_upgrades: {token:?}: write a protocol's token, not HTTP's, such as \"tcp\""
                ));
            }
            proxy = proxy.allow_upgrade(token);
        }
        Ok(proxy)
    }

    /// Makes the layers around each client. `audience` is whom assertions are for.
    fn layers(&self, mount: &Mount, audience: &str) -> Result<ServiceBuilder<Layers>, Wrong> {
        let basic = match &mount.basic_password {
            Some(password) if password.contains(char::is_control) => {
                return Err("basic_password: write one without control characters".into());
            }
            // Some users have no account at the backend. They get its own 401, and sign in there.
            password => password.as_deref().map(|password| BasicAuthLayer::remote_user(password).pass_challenges(true)),
        };
        let bearer = match &mount.bearer {
            Some(_) if basic.is_some() || mount.negotiate.is_some() => {
                return Err("bearer: write one of basic_password, bearer and negotiate".into());
            }
            // Without the token, which is a secret.
            Some(token) if !is_bearer_token(token) => {
                let wrong = "bearer: write a token without \"Bearer\" and blanks, of letters, digits and \"-._~+/\", \
                             then any number of \"=\"";
                return Err(wrong.into());
            }
            token => token.as_deref().map(BearerLayer::fixed),
        };
        // In the order in which they see a request.
        Ok(ServiceBuilder::new()
            .option_layer(remote_user(mount)?)
            .option_layer(self.assertions.layer(mount, audience)?)
            .option_layer(basic)
            .option_layer(bearer)
            .option_layer(negotiate::layer(mount)?)
            .option_layer(mount.trace_redirects.then(TraceRedirectLayer::new)))
    }
}

/// The layers of a mount, of which each may be missing. The last one sees a request first.
type Layers = And<
    TraceRedirectLayer,
    And<negotiate::Layer, And<BearerLayer, And<BasicAuthLayer, And<assertion::Layer, And<RemoteUserLayer, Identity>>>>>,
>;
type And<Inner, Outer> = Stack<Either<Inner, Identity>, Outer>;

/// Returns how the client of each of a mount's backends is built.
fn client_options(mount: &Mount) -> impl Fn(ClientBuilder) -> ClientBuilder + Send + Sync + use<> {
    let (http2, connect_timeout) = (mount.http2, mount.connect_timeout_ms.map(Duration::from_millis));
    move |client| {
        let client = client.http2(http2);
        match connect_timeout {
            Some(timeout) => client.connect_timeout(timeout),
            None => client,
        }
    }
}

/// The layer for the user's name, and for the groups, which imply it.
fn remote_user(mount: &Mount) -> Result<Option<RemoteUserLayer>, Wrong> {
    let Some(name) = &mount.remote_groups_header else {
        return Ok(mount.remote_user.unwrap_or(false).then(RemoteUserLayer::new));
    };
    if mount.remote_user == Some(false) {
        return Err("remote_groups_header: leave out remote_user = false, because groups belong to a user".into());
    }
    let name = name.parse().ok().filter(|name| !is_taken(name));
    let Some(name) = name else {
        return Err("remote_groups_header: write the name of a field of its own, such as \"Remote-Groups\"".into());
    };
    Ok(Some(RemoteUserLayer::new().also_list(name, ',', |groups: &Groups| groups.0.clone())))
}

/// Whether a server may read the field as `Remote-User`, or as one of the connection's or the message's own.
fn is_taken(name: &HeaderName) -> bool {
    const TAKEN: [&str; 10] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "remote-user",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let folded = name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    TAKEN.contains(&&*folded) || folded.starts_with("proxy-") || folded == "http2-settings"
}

/// Whether it's a token of RFC 6750, section 2.1.
fn is_bearer_token(text: &str) -> bool {
    let characters = text.trim_end_matches('=');
    !characters.is_empty() && characters.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b))
}

/// Whether it's a token (RFC 9110, section 5.6.2), as field names and cookie names are.
fn is_token(text: &str) -> bool {
    HeaderName::from_bytes(text.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_segment_by_segment() {
        let mut table = Table::new();
        for prefix in ["/a", "/a/b/c", "/x/y"] {
            assert!(table.insert(prefix, prefix).is_none());
        }
        let find = |table: &Table<&'static str>, path: &str| table.find(path).copied();
        for (path, found) in [
            ("/a", Some("/a")),
            ("/a/", Some("/a")),
            ("/a/b", Some("/a")),
            ("/a/b/c", Some("/a/b/c")),
            ("/a/b/c/d", Some("/a/b/c")),
            ("/a/b/cc", Some("/a")),
            ("/a//b/c", Some("/a")),
            ("/ab", None),
            ("/x", None),
            ("/x/y/", Some("/x/y")),
            ("//a", None),
            ("/", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(find(&table, path), found, "{path}");
        }
        assert!(table.insert("/", "/").is_none());
        for (path, found) in
            [("/", Some("/")), ("/x", Some("/")), ("//a", Some("/")), ("/a/b", Some("/a")), ("*", None)]
        {
            assert_eq!(find(&table, path), found, "{path}");
        }
        assert_eq!(table.insert("/x/y", "again"), Some("/x/y"));
    }

    /// The work is bounded by the deepest prefix, and nothing here recurses.
    #[test]
    fn deep_paths_and_many_mounts_are_found() {
        let mut table = Table::new();
        for number in 0..5000 {
            assert!(table.insert(&format!("/mydir{number}/app"), number).is_none());
        }
        let deep = "/x".repeat(30_000);
        assert_eq!(table.find(&deep), None);
        assert_eq!(table.find(&format!("/mydir4999/app{deep}")), Some(&4999));
        assert!(table.insert(&deep, 5000).is_none());
        assert_eq!(table.find(&format!("{deep}/y")), Some(&5000));
    }
}
