//! The records of a name, by queries to its name servers.

use std::{
    future::{Future, poll_fn},
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum_core::BoxError;
use futures_core::Stream;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, Record, RecordType},
};

use super::{
    dns::Name,
    rounds::{Found, LookUp, Rounds},
};
use crate::{
    backend::{Backend, InvalidBackend},
    balance::{InvalidBackends, Member},
};

/// How long an answer is valid at least, and at most.
const VALIDITY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// How many targets of a service are looked up.
const MOST_TARGETS: usize = 256;

/// The addresses of a name, or the servers of a service, by their records in the DNS: a source for
/// [`Backends::follow`](crate::Backends::follow).
///
/// They are queried at once, and again when the answer's time to live is over: after 5 seconds at least and 5 minutes
/// at most, give or take 10 %; after a failure, after 5 seconds. Each address is a member, to which `Host` and the
/// certificate's name apply as to the name.
///
/// If only one of the queries for A and AAAA fails, the addresses of its last answer stay.
///
/// ```
/// use tower_reverse_proxy::{Backends, balance::discover::DnsRecords};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// // Until the first answer, the system looks the name up for each connection.
/// let backends = Backends::new(["http://app.internal:8000"]);
/// backends.follow(DnsRecords::new("http://app.internal:8000")).detach();
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a source does nothing until it's followed"]
#[doc(alias = "resolver")]
#[doc(alias = "SRV")]
#[doc(alias = "TTL")]
pub struct DnsRecords {
    rounds: Rounds<Records>,
}

#[derive(Clone, Debug)]
struct Records {
    name: Name,
    is_service: bool,
    name_servers: Vec<SocketAddr>,
    /// Made at the first look-up.
    resolver: Option<TokioResolver>,
    known: Known,
}

/// The addresses of the last answers.
#[derive(Clone, Debug, Default)]
struct Known {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
}

impl DnsRecords {
    /// Queries the A and AAAA records of an origin's host. The members have its scheme and port: `http://name:port`.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::discover::DnsRecords;
    ///
    /// let records = DnsRecords::new("http://app.internal:8000");
    /// # let _ = records;
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't an origin with a host. [`try_new`](Self::try_new) returns the error.
    #[track_caller]
    pub fn new(origin: impl TryInto<Backend, Error: Into<InvalidBackend>>) -> Self {
        match Self::try_new(origin) {
            Ok(records) => records,
            Err(error) => panic!("{error}"),
        }
    }

    /// Queries the A and AAAA records of an origin's host, as [`new`](Self::new) does.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::discover::DnsRecords;
    ///
    /// assert!(DnsRecords::try_new("unix:/run/app.sock").is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// If it isn't an origin with a host.
    pub fn try_new(origin: impl TryInto<Backend, Error: Into<InvalidBackend>>) -> Result<Self, InvalidBackends> {
        Ok(Self::with_name(Name::new(origin)?, false))
    }

    /// Queries the SRV records of a service (RFC 2782), and the addresses of their targets. The name is written as the
    /// host of an origin, whose scheme is that of the members: `http://_http._tcp.app.internal`.
    ///
    /// The weights and ports are those of the records. Targets that haven't the lowest priority are
    /// [backups](crate::balance::Member::backup).
    ///
    /// ```
    /// use tower_reverse_proxy::balance::discover::DnsRecords;
    ///
    /// let records = DnsRecords::service("http://_http._tcp.app.internal")?;
    /// # let _ = records;
    /// # Ok::<_, tower_reverse_proxy::balance::InvalidBackends>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If it isn't a scheme and a name, without a port.
    ///
    /// # Security
    ///
    /// The certificate of an `https` member is verified for the target that the record names, so anyone who can forge
    /// the record can name a server of their own.
    pub fn service(name: impl TryInto<Backend, Error: Into<InvalidBackend>>) -> Result<Self, InvalidBackends> {
        let name = Name::new(name)?;
        if name.has_port() {
            let text = "a service has the ports of its records: write \"http://_http._tcp.name\", without a port";
            return Err(InvalidBackends::new(text.to_owned()));
        }
        Ok(Self::with_name(name, true))
    }

    fn with_name(name: Name, is_service: bool) -> Self {
        let known = Known::default();
        let source = Records { name, is_service, name_servers: Vec::new(), resolver: None, known };
        Self { rounds: Rounds::new(source) }
    }

    /// Adds a name server to be queried. Default: those of the system, with its search domains and `/etc/hosts`. With a
    /// name server, the name is queried as it is.
    ///
    /// ```
    /// use tower_reverse_proxy::balance::discover::DnsRecords;
    ///
    /// # fn main() -> Result<(), std::net::AddrParseError> {
    /// let records = DnsRecords::new("http://app.service.consul:8000").name_server("127.0.0.1:8600".parse()?);
    /// # let _ = records;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "nameserver")]
    pub fn name_server(mut self, address: SocketAddr) -> Self {
        self.rounds.source.name_servers.push(address);
        self
    }
}

impl Stream for DnsRecords {
    type Item = Result<Vec<Member>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.rounds.poll_found(cx).map(Some)
    }
}

impl LookUp for Records {
    async fn look_up(&mut self) -> Found {
        let resolver = match &self.resolver {
            Some(resolver) => resolver.clone(),
            None => self.resolver.insert(resolver(&self.name_servers)?).clone(),
        };
        let (members, valid_until) = if self.is_service {
            self.targets(&resolver).await?
        } else {
            let host = self.name.host().to_owned();
            let (addresses, valid_until) = addresses(&resolver, &host, &mut self.known).await?;
            (self.name.members(addresses.into_iter()), valid_until)
        };
        let (least, most) = VALIDITY;
        Ok((members, valid_until.saturating_duration_since(Instant::now()).clamp(least, most)))
    }
}

impl Records {
    /// Looks up the targets of a service. Those without addresses are left out.
    async fn targets(&self, resolver: &TokioResolver) -> Result<(Vec<Member>, Instant), BoxError> {
        let answer = resolver.lookup(self.name.host(), RecordType::SRV).await?;
        let targets = answer.answers().iter().filter_map(|record| match &record.data {
            // The root is the target of a service that isn't there (RFC 2782).
            RData::SRV(target) if !target.target.is_root() => Some(target),
            _ => None,
        });
        let targets: Vec<_> = targets.take(MOST_TARGETS).collect();
        let first = targets.iter().map(|target| target.priority).min();
        let (mut members, mut valid_until) = (Vec::new(), answer.valid_until());
        for target in targets {
            let host = target.target.to_utf8();
            let host = host.trim_end_matches('.');
            let name = Name::new(format!("{}://{host}:{}", self.name.scheme(), target.port))?;
            let (addresses, until) = addresses(resolver, host, &mut Known::default()).await?;
            if addresses.is_empty() {
                continue;
            }
            valid_until = valid_until.min(until);
            let found = name.members(addresses.into_iter()).into_iter();
            let found = found.map(|member| member.weight(u32::from(target.weight).max(1)));
            match Some(target.priority) == first {
                true => members.extend(found),
                false => members.extend(found.map(Member::backup)),
            }
        }
        Ok((members, valid_until))
    }
}

/// Makes a resolver that queries these name servers, or those of the system.
fn resolver(name_servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let mut builder = if name_servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let servers = name_servers.iter().map(|address| {
            let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
            connections.iter_mut().for_each(|connection| connection.port = address.port());
            NameServerConfig::new(address.ip(), true, connections)
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    // The members are the cache. The validity of a name without records isn't ours to wait for.
    options.cache_size = 0;
    options.timeout = Duration::from_secs(2);
    builder.build()
}

/// Queries the addresses of a host. The addresses of a kind whose query fails stay, if the other one's doesn't.
async fn addresses(
    resolver: &TokioResolver,
    host: &str,
    known: &mut Known,
) -> Result<(Vec<IpAddr>, Instant), BoxError> {
    if let Ok(address) = host.parse() {
        return Ok((vec![address], Instant::now() + VALIDITY.1));
    }
    let query = |kind| async move {
        match resolver.lookup(host, kind).await {
            Ok(answer) => Ok((answer.answers().iter().filter_map(address).collect(), Some(answer.valid_until()))),
            Err(error) if error.is_no_records_found() => Ok((Vec::new(), None)),
            Err(error) => Err(error),
        }
    };
    let (v4, v6) = both(query(RecordType::A), query(RecordType::AAAA)).await;
    if let (Err(error), Err(_)) = (&v4, &v6) {
        return Err(error.clone().into());
    }
    let mut valid_until = None;
    let mut merge = |answer: Result<(Vec<IpAddr>, Option<Instant>), NetError>, known: &mut Vec<IpAddr>| {
        let until = match answer {
            Ok((addresses, until)) => {
                *known = addresses;
                until
            }
            Err(_) => Some(Instant::now()),
        };
        valid_until = valid_until.into_iter().chain(until).min();
    };
    merge(v4, &mut known.v4);
    merge(v6, &mut known.v6);
    let all: Vec<_> = known.v4.iter().chain(&known.v6).copied().collect();
    Ok((all, valid_until.unwrap_or_else(Instant::now)))
}

fn address(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}

/// Waits for both of two futures.
async fn both<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut first, mut second) = (None, None);
    poll_fn(|cx| {
        if first.is_none() {
            first = Some(a.as_mut().poll(cx)).and_then(ready);
        }
        if second.is_none() {
            second = Some(b.as_mut().poll(cx)).and_then(ready);
        }
        match (first.take(), second.take()) {
            (Some(first), Some(second)) => Poll::Ready((first, second)),
            (one, other) => {
                (first, second) = (one, other);
                Poll::Pending
            }
        }
    })
    .await
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, UdpSocket},
    };

    use super::*;
    use crate::balance::Backends;

    /// The code of a response, the data of its records, and their time to live in seconds.
    type Response = (u8, Vec<Vec<u8>>, u32);

    const SERVFAIL: u8 = 2;
    const NXDOMAIN: u8 = 3;

    /// How many records a response over UDP has at most. One that has more is truncated, and complete over TCP.
    const MOST_OVER_UDP: usize = 20;

    /// Starts a name server whose responses are those of a function of the name and the type.
    async fn serve(respond: impl Fn(&str, RecordType) -> Response + Send + Sync + 'static) -> SocketAddr {
        let (socket, listener) = sockets().await;
        let address = socket.local_addr().unwrap();
        let respond = Arc::new(move |query: &[u8], is_udp| response_to(query, &respond, is_udp));
        let over_tcp = respond.clone();
        tokio::spawn(async move {
            let mut query = [0; 1024];
            while let Ok((_, peer)) = socket.recv_from(&mut query).await {
                socket.send_to(&respond(&query, true), peer).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let respond = over_tcp.clone();
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut query = vec![0; length.into()];
                        stream.read_exact(&mut query).await.unwrap();
                        let response = respond(&query, false);
                        stream.write_u16(response.len() as u16).await.unwrap();
                        stream.write_all(&response).await.unwrap();
                    }
                });
            }
        });
        address
    }

    /// Binds one port of both protocols.
    async fn sockets() -> (UdpSocket, TcpListener) {
        loop {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await {
                return (socket, listener);
            }
        }
    }

    fn response_to(query: &[u8], respond: &impl Fn(&str, RecordType) -> Response, is_udp: bool) -> Vec<u8> {
        let (name, end) = name_at(query, 12);
        let kind = u16::from_be_bytes([query[end], query[end + 1]]);
        let (code, mut records, ttl) = respond(&name, kind.into());
        let is_truncated = is_udp && records.len() > MOST_OVER_UDP;
        if is_truncated {
            records.clear();
        }
        let mut response = query[..2].to_vec();
        let flags = if is_truncated { 0x83 } else { 0x81 };
        response.extend([flags, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        response.extend(&query[12..end + 4]);
        for data in records {
            // The name of the question, and the class IN.
            response.extend([0xc0, 12]);
            response.extend([&kind.to_be_bytes()[..], &[0, 1], &ttl.to_be_bytes()].concat());
            response.extend((data.len() as u16).to_be_bytes());
            response.extend(data);
        }
        response
    }

    /// Reads an uncompressed name. Returns where it ends, too.
    fn name_at(message: &[u8], mut at: usize) -> (String, usize) {
        let mut labels = Vec::new();
        while message[at] > 0 {
            let end = at + 1 + usize::from(message[at]);
            labels.push(String::from_utf8(message[at + 1..end].to_vec()).unwrap());
            at = end;
        }
        (labels.join("."), at + 1)
    }

    fn v4(last: u8) -> Vec<u8> {
        vec![127, 0, 0, last]
    }

    fn v6(last: u8) -> Vec<u8> {
        [vec![0; 15], vec![last]].concat()
    }

    fn service(priority: u16, weight: u16, port: u16, target: &str) -> Vec<u8> {
        let mut data: Vec<u8> = [priority, weight, port].into_iter().flat_map(u16::to_be_bytes).collect();
        for label in target.split('.').filter(|label| !label.is_empty()) {
            data.push(label.len() as u8);
            data.extend(label.as_bytes());
        }
        data.push(0);
        data
    }

    async fn look_up(records: &mut DnsRecords) -> Result<(Vec<String>, u64), BoxError> {
        let found = tokio::time::timeout(Duration::from_secs(20), records.rounds.source.look_up());
        let (members, validity) = found.await.unwrap()?;
        Ok((members.iter().map(|member| member.name().to_owned()).collect(), validity.as_secs_f64().round() as u64))
    }

    #[tokio::test]
    async fn addresses_of_both_kinds_are_members_for_their_time_to_live() {
        for (ttl, validity) in [(0, 5), (1, 5), (60, 60), (100_000, 300)] {
            let server = serve(move |name, kind| match kind {
                RecordType::A if name == "app.test" => (0, vec![v4(3), v4(2), v4(3)], ttl),
                RecordType::AAAA if name == "app.test" => (0, vec![v6(1)], ttl),
                _ => (NXDOMAIN, vec![], 0),
            });
            let mut records = DnsRecords::new("http://app.test:81").name_server(server.await);
            let at = |address| format!("http://app.test:81 at {address}");
            let members = [at("127.0.0.2:81"), at("127.0.0.3:81"), at("[::1]:81")];
            assert_eq!(look_up(&mut records).await.unwrap(), (members.to_vec(), validity), "{ttl}");
        }
    }

    #[tokio::test]
    async fn addresses_of_a_kind_that_fails_stay_if_the_other_kind_is_there() {
        let (sender, failing) = tokio::sync::watch::channel(None);
        let server = serve(move |_, kind| match kind {
            _ if failing.borrow().is_some_and(|failing| failing == kind || failing == RecordType::ANY) => {
                (SERVFAIL, vec![], 0)
            }
            RecordType::A => (0, vec![v4(2)], 60),
            _ => (0, vec![v6(1)], 60),
        });
        let mut records = DnsRecords::new("http://app.test").name_server(server.await);
        let all = ["http://app.test at 127.0.0.2:80", "http://app.test at [::1]:80"].map(str::to_owned).to_vec();
        assert_eq!(look_up(&mut records).await.unwrap(), (all.clone(), 60));
        for kind in [RecordType::A, RecordType::AAAA] {
            sender.send_replace(Some(kind));
            assert_eq!(look_up(&mut records).await.unwrap(), (all.clone(), 5), "{kind}");
        }
        sender.send_replace(Some(RecordType::ANY));
        assert!(look_up(&mut records).await.is_err());
    }

    #[tokio::test]
    async fn a_name_without_addresses_has_no_members() {
        for code in [0, NXDOMAIN] {
            let mut records =
                DnsRecords::new("http://app.test").name_server(serve(move |_, _| (code, vec![], 0)).await);
            assert_eq!(look_up(&mut records).await.unwrap(), (vec![], 5));
        }
        assert_eq!(look_up(&mut DnsRecords::new("http://[::1]:81")).await.unwrap().0, ["http://[::1]:81 at [::1]:81"]);
    }

    #[tokio::test]
    async fn a_response_that_is_too_long_for_udp_is_complete_over_tcp() {
        let server = serve(|_, kind| match kind {
            RecordType::A => (0, (1..=60).map(v4).collect(), 60),
            _ => (0, (1..=60).map(v6).collect(), 60),
        });
        let (members, _) = look_up(&mut DnsRecords::new("http://app.test").name_server(server.await)).await.unwrap();
        assert_eq!(members.len(), 120);
        assert!(members.contains(&"http://app.test at 127.0.0.60:80".to_owned()), "{members:?}");
    }

    #[tokio::test]
    async fn a_name_with_addresses_of_one_kind_has_these_members() {
        for kind in [RecordType::A, RecordType::AAAA] {
            for code in [0, NXDOMAIN] {
                let server = serve(move |_, queried| match queried {
                    _ if queried != kind => (code, vec![], 0),
                    RecordType::A => (0, vec![v4(2)], 60),
                    _ => (0, vec![v6(1)], 60),
                });
                let mut records = DnsRecords::new("http://app.test").name_server(server.await);
                let address = if kind == RecordType::A { "127.0.0.2:80" } else { "[::1]:80" };
                assert_eq!(look_up(&mut records).await.unwrap().0, [format!("http://app.test at {address}")]);
            }
        }
    }

    /// The clock is paused, so that no time passes.
    #[tokio::test(start_paused = true)]
    async fn a_name_server_that_does_not_respond_is_an_error() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut records = DnsRecords::new("http://app.test").name_server(socket.local_addr().unwrap());
        assert!(look_up(&mut records).await.is_err());
    }

    /// Starts a name server that responds to each query with these octets, after its id and its flags, or not at all.
    async fn serve_rubbish(rubbish: Option<&'static [u8]>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut query = [0; 1024];
            while let Ok((_, peer)) = socket.recv_from(&mut query).await {
                if let Some(rubbish) = rubbish {
                    let response = [&query[..2], &[0x81, 0x80], rubbish].concat();
                    socket.send_to(&response, peer).await.unwrap();
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn a_set_keeps_its_members_if_its_name_server_is_silent_or_sends_rubbish() {
        for rubbish in [
            None,
            Some(&b""[..]),
            Some(b"HTTP/1.1 200 OK\r\n\r\n"),
            // A pointer to itself as the name, and more records than there are octets.
            Some(b"\0\x01\xff\xff\xff\xff\xff\xff\xc0\x0c\0\x01\0\x01"),
        ] {
            let records = DnsRecords::new("http://app.test").name_server(serve_rubbish(rubbish).await);
            let backends = Backends::new(["http://10.0.0.1:8000"]);
            let (sender, outcome) = tokio::sync::oneshot::channel();
            let mut sender = Some(sender);
            let source = futures_util::StreamExt::inspect(records, move |found| {
                if let Some(sender) = sender.take() {
                    let _ = sender.send(found.is_err());
                }
            });
            let _follow = backends.follow(source);
            let has_failed = tokio::time::timeout(Duration::from_secs(20), outcome).await;
            assert_eq!(has_failed.unwrap(), Ok(true), "{rubbish:?}");
            tokio::task::yield_now().await;
            assert_eq!(backends.status()[0].backend(), "http://10.0.0.1:8000");
        }
    }

    #[tokio::test]
    async fn the_targets_of_a_service_have_its_ports_weights_and_priorities() {
        let server = serve(|name, kind| match (name, kind) {
            ("_http._tcp.test", RecordType::SRV) => {
                let spare = service(20, 0, 83, "c.test");
                let (a, b) = (service(10, 3, 81, "a.test"), service(10, 0, 82, "b.test"));
                (0, vec![spare, a, b, service(0, 0, 0, "."), service(10, 1, 84, "gone.test")], 100)
            }
            ("a.test", RecordType::A) => (0, vec![v4(2), v4(3)], 50),
            ("b.test", RecordType::AAAA) => (0, vec![v6(1)], 100),
            ("c.test", RecordType::A) => (0, vec![v4(4)], 100),
            _ => (NXDOMAIN, vec![], 0),
        });
        let mut records = DnsRecords::service("http://_http._tcp.test").unwrap().name_server(server.await);
        let (members, validity) = records.rounds.source.look_up().await.unwrap();
        let mut shown: Vec<_> = members.iter().map(|member| format!("{member:?}")).collect();
        shown.sort_unstable();
        let member = |name, weight, is_backup| {
            format!("Member {{ name: {name:?}, weight: {weight}, is_backup: {is_backup}, is_draining: false, .. }}")
        };
        let expected = [
            member("http://a.test:81 at 127.0.0.2:81", 3, false),
            member("http://a.test:81 at 127.0.0.3:81", 3, false),
            member("http://b.test:82 at [::1]:82", 1, false),
            member("http://c.test:83 at 127.0.0.4:83", 1, true),
        ];
        assert_eq!((shown.as_slice(), validity.as_secs_f64().round() as u64), (&expected[..], 50));
        assert!(DnsRecords::service("http://_http._tcp.test:80").unwrap_err().to_string().contains("without a port"));
    }
}
