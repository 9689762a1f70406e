//! Which addresses a client may connect to.

use std::{
    error, fmt,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    vec,
};

use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;

/// The application's answer to whether the client may connect to an address.
#[derive(Clone)]
pub(in crate::client) struct AddressFilter(Arc<dyn Fn(IpAddr) -> bool + Send + Sync>);

impl AddressFilter {
    pub(in crate::client) fn new(allows: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(allows))
    }

    /// Returns an error if this host is an address that isn't allowed. Names are looked up first.
    pub(super) fn check_literal(&self, host: &str) -> io::Result<()> {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match host.parse() {
            Ok(addr) => self.check(addr),
            Err(_) => Ok(()),
        }
    }

    /// Removes the addresses that aren't allowed. If none is left of some, that is the error.
    fn retain(&self, mut addresses: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
        let mut refused = None;
        addresses.retain(|address| match self.check(address.ip()) {
            Ok(()) => true,
            Err(error) => {
                refused = Some(error);
                false
            }
        });
        match refused {
            Some(error) if addresses.is_empty() => Err(error),
            _ => Ok(addresses),
        }
    }

    /// Returns an error if this address isn't allowed.
    ///
    /// An IPv4 address that is written as an IPv6 one leads to the same host, so the filter gets the former.
    fn check(&self, addr: IpAddr) -> io::Result<()> {
        let addr = addr.to_canonical();
        if (self.0)(addr) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, RefusedAddress(addr)))
    }
}

impl fmt::Debug for AddressFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressFilter").finish_non_exhaustive()
    }
}

/// A resolver without the addresses that the filter refuses.
///
/// The connection is made to one of the addresses that are left, without a second look-up, so that a name which changes
/// its address (DNS rebinding) can't pass the filter.
#[derive(Clone)]
pub(super) struct Filtered<R> {
    resolver: R,
    filter: Option<AddressFilter>,
}

impl<R> Filtered<R> {
    pub(super) fn new(resolver: R, filter: Option<AddressFilter>) -> Self {
        Self { resolver, filter }
    }
}

impl<R> Service<Name> for Filtered<R>
where
    R: Service<Name, Response = vec::IntoIter<SocketAddr>, Error = io::Error, Future: Send + 'static>,
{
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.resolver.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (lookup, filter) = (self.resolver.call(name), self.filter.clone());
        Box::pin(async move {
            let addresses = lookup.await?;
            match filter {
                Some(filter) => filter.retain(addresses.collect()).map(Vec::into_iter),
                None => Ok(addresses),
            }
        })
    }
}

/// An address that the filter refuses.
#[derive(Debug)]
struct RefusedAddress(IpAddr);

impl fmt::Display for RefusedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} isn't an allowed address", self.0)
    }
}

impl error::Error for RefusedAddress {}

/// Returns whether an address is one of the public Internet: neither this machine's, nor a private network's, nor one
/// with another special purpose (IANA's registries, RFC 6890).
///
/// It's for [`allow_address`](crate::ClientBuilder::allow_address). Besides loopback (`127.0.0.0/8`, `::1`), private
/// (`10.0.0.0/8`, `172.16.0.0/12`, `192.168.0.0/16`, `fc00::/7`) and link-local addresses (`169.254.0.0/16`, where
/// clouds have their metadata, and `fe80::/10`), it refuses shared, benchmarking, documentation, multicast, broadcast,
/// unspecified and reserved ones. An IPv6 address that has an IPv4 address in it, by NAT64 (`64:ff9b::/96`), 6to4 or
/// the IPv4-compatible form, is refused, because a translator may lead to that address.
///
/// ```
/// use std::net::IpAddr;
/// use tower_reverse_proxy::{Client, client::is_public};
///
/// assert!(is_public("93.184.215.14".parse::<IpAddr>()?));
/// assert!(!is_public("169.254.169.254".parse::<IpAddr>()?));
/// assert!(!is_public("::ffff:127.0.0.1".parse::<IpAddr>()?));
///
/// let client = Client::builder("http://webhooks.example").allow_address(is_public);
/// # let _ = client;
/// # Ok::<_, std::net::AddrParseError>(())
/// ```
///
/// # Security
///
/// A network may have servers at public addresses that are reachable from inside only. A filter of one's own refuses
/// those, too: `|addr| is_public(addr) && !ours.contains(&addr)`.
#[must_use]
#[doc(alias = "SSRF")]
pub fn is_public(addr: IpAddr) -> bool {
    match addr.to_canonical() {
        IpAddr::V4(addr) => is_public_v4(addr),
        IpAddr::V6(addr) => is_public_v6(addr),
    }
}

fn is_public_v4(addr: Ipv4Addr) -> bool {
    !matches!(
        addr.octets(),
        // "This network"; private; loopback; link-local; multicast, reserved and broadcast.
        [0 | 10 | 127 | 224..=255, ..] | [172, 16..=31, ..] | [192, 168, ..] | [169, 254, ..]
        // Shared by the customers of a provider; benchmarks.
        | [100, 64..=127, ..] | [198, 18 | 19, ..]
        // Protocol assignments; documentation; the former 6to4 relays.
        | [192, 0, 0 | 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [192, 88, 99, _]
    )
}

fn is_public_v6(addr: Ipv6Addr) -> bool {
    match addr.segments() {
        // Protocol assignments, which Teredo, benchmarks and ORCHID are in; documentation; 6to4.
        [0x2001, 0..=0x01ff | 0x0db8, ..] | [0x2002, ..] | [0x3fff, 0..=0x0fff, ..] => false,
        // All that is assigned as global unicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        for addr in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.1.2.3",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b::5db8:d70e",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(addr.parse().unwrap()), "{addr}");
        }
        for addr in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.1",
            "93.184.215.14",
            "100.63.255.255",
            "100.128.0.1",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "191.255.255.255",
            "192.0.1.1",
            "192.167.0.1",
            "192.169.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00::1",
            "3fff:1000::1",
        ] {
            assert!(is_public(addr.parse().unwrap()), "{addr}");
        }
    }

    #[test]
    fn a_literal_is_checked_in_each_of_its_spellings() {
        let filter = AddressFilter::new(is_public);
        for host in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:1]", "::1"] {
            let error = filter.check_literal(host).unwrap_err();
            assert!(error.to_string().ends_with(" isn't an allowed address"), "{host}: {error}");
        }
        // Names, also those that a resolver reads as numbers, are looked up.
        for host in ["1.1.1.1", "[2606:4700::1111]", "localhost", "127.1", "2130706433", "0x7f000001", "[::1", ""] {
            assert!(filter.check_literal(host).is_ok(), "{host}");
        }
    }

    #[test]
    fn addresses_that_the_filter_refuses_are_left_out() {
        let filter = AddressFilter::new(|addr| !addr.is_loopback());
        for (addresses, left) in [
            (&["192.0.2.1", "127.0.0.1", "2001:db8::1", "::1"][..], Ok(vec!["192.0.2.1", "2001:db8::1"])),
            (&["127.0.0.1", "::ffff:127.0.0.2"], Err("127.0.0.2 isn't an allowed address")),
            // The connector has an error for a name without addresses.
            (&[], Ok(vec![])),
        ] {
            let found = filter.retain(addresses.iter().map(|addr| SocketAddr::new(addr.parse().unwrap(), 0)).collect());
            let found = found.map(|found| found.iter().map(|addr| addr.ip().to_string()).collect::<Vec<_>>());
            let left = left.map(|left| left.into_iter().map(str::to_owned).collect::<Vec<_>>()).map_err(str::to_owned);
            assert_eq!(found.map_err(|error| error.to_string()), left, "{addresses:?}");
        }
    }

    #[test]
    fn a_filter_gets_the_address_that_a_mapped_one_stands_for() {
        let filter = AddressFilter::new(|addr| {
            assert_eq!(addr.to_string(), "10.0.0.7");
            false
        });
        let error = filter.check("::ffff:10.0.0.7".parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "10.0.0.7 isn't an allowed address");
    }
}
