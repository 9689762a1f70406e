//! Instructions and code lines per request, counted by callgrind. The figures don't depend on the load of the machine.
//!
//! ```sh
//! cargo bench --bench instructions
//! cargo bench --bench instructions -- --check
//! cargo bench --bench instructions -- small-get balanced-1
//! cargo bench --bench instructions -- --by-function small-get [--inclusive]
//! cargo bench --bench instructions -- --memory [--check]
//! ```
//!
//! This process is the client and the backend. The proxy is a child process under valgrind, and only its instructions
//! are counted. It runs twice for each scenario, with few requests and with many, so that the difference excludes the
//! start.
//!
//! A code line is a piece of 64 bytes of code, as the CPU's instruction cache has them. One is counted if an instruction
//! in it is executed at least once for every second request that the longer run has more.
#![allow(clippy::exit, clippy::print_stdout)] // the child ends with its input, whatever it serves

#[cfg(feature = "http2")]
mod http2;
mod memory;

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    env,
    error::Error,
    fs,
    future::ready,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, ExitCode, Stdio, exit},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::Request,
    response::Response,
    routing::get,
};
use tower::{Service, layer::layer_fn, service_fn, util::MapRequestLayer};
use tower_reverse_proxy::{
    Backend, Backends, BasicAuthLayer, BearerLayer, RemoteUser, RemoteUserLayer, Retry, RetryPolicy, ReverseProxyLayer,
    Target, Targets, Upstream,
    balance::{Balance, Member},
};

/// A kind of request to the proxy.
struct Scenario {
    name: &'static str,
    request: &'static str,
    body: usize,
    mounted: Option<Mounted>,
}

/// The proxy's layer in the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mounted {
    Plain,
    /// With a layer on the upstream side.
    Basic,
    Bearer,
    RemoteUser,
    /// Of so many members, all of which are the one backend.
    Balanced(usize),
    /// The same with `RetryPolicy::idempotent`.
    Idempotent(usize),
    /// With a target per request, of so many pools.
    Target(usize),
    /// Of so many services that respond at once, without a backend.
    Over(usize),
    /// In front of a backend that speaks HTTP/2, in cleartext and without negotiation.
    #[cfg(feature = "http2")]
    Http2,
    /// After the one of `RemoteUser`.
    #[cfg(all(feature = "assertion", feature = "tls-ring"))]
    Assertion,
}

const SCENARIOS: &[Scenario] = {
    use Mounted::{Balanced, Basic, Bearer, Idempotent, Over, Plain, RemoteUser, Target};
    const SMALL: &str = "GET /mydir/small";
    &[
        Scenario { name: "axum-alone", request: "GET /own", body: 0, mounted: None },
        Scenario { name: "pass-through", request: "GET /own", body: 0, mounted: Some(Plain) },
        Scenario { name: "small-get", request: SMALL, body: 0, mounted: Some(Plain) },
        Scenario { name: "chunked-get", request: "GET /mydir/chunked", body: 0, mounted: Some(Plain) },
        Scenario { name: "post", request: "POST /mydir/echo", body: 1024, mounted: Some(Plain) },
        Scenario { name: "basic", request: SMALL, body: 0, mounted: Some(Basic) },
        Scenario { name: "bearer", request: SMALL, body: 0, mounted: Some(Bearer) },
        Scenario { name: "remote-user", request: SMALL, body: 0, mounted: Some(RemoteUser) },
        Scenario { name: "balanced-1", request: SMALL, body: 0, mounted: Some(Balanced(1)) },
        Scenario { name: "balanced-10", request: SMALL, body: 0, mounted: Some(Balanced(10)) },
        Scenario { name: "retry-idempotent", request: SMALL, body: 0, mounted: Some(Idempotent(10)) },
        Scenario { name: "target", request: SMALL, body: 0, mounted: Some(Target(1000)) },
        Scenario { name: "over-10", request: SMALL, body: 0, mounted: Some(Over(10)) },
        Scenario { name: "over-1000", request: SMALL, body: 0, mounted: Some(Over(1000)) },
        #[cfg(feature = "http2")]
        Scenario { name: "h2-get", request: SMALL, body: 0, mounted: Some(Mounted::Http2) },
        #[cfg(feature = "http2")]
        Scenario { name: "h2-post", request: "POST /mydir/echo", body: 1024, mounted: Some(Mounted::Http2) },
        #[cfg(all(feature = "assertion", feature = "tls-ring"))]
        Scenario { name: "assertion", request: SMALL, body: 0, mounted: Some(Mounted::Assertion) },
    ]
};

const FEW: usize = 500;
const MANY: usize = 2500;
/// Kept alive and used in turn. There is one request at a time, so that each run does the same work.
const CONNECTIONS: usize = 8;
/// The body of a small response.
const SMALL: [u8; 128] = [b'x'; 128];
/// By how many percent the instructions of a row may differ from the recorded ones.
const TOLERANCE: f64 = 3.0;
/// The same for its code lines. They depend on where the linker puts a function.
const LINES_TOLERANCE: f64 = 5.0;
/// The size of a code line, as a power of two.
const LINE_BITS: u32 = 6;
/// The number of functions that are listed.
const FUNCTIONS: usize = 60;
/// The timeout of a response, far above what it takes.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

const USAGE: &str =
    "write --check, --by-function SCENARIO [--inclusive], --memory [--check], the names of scenarios, or nothing";

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // `cargo bench` adds it, and `cargo test --benches` doesn't.
    let is_bench = arguments.contains(&"--bench");
    arguments.retain(|&argument| argument != "--bench");
    let outcome = match arguments[..] {
        ["--proxy", name, backend] => proxy(name, backend),
        ["--proxy-threads", backend] => memory::proxy(backend),
        _ if !is_bench => Ok(()),
        ["--check"] => table(true, &[]),
        ["--memory"] => memory::table(false),
        ["--memory", "--check"] => memory::table(true),
        ["--by-function", name] => by_function(name, false),
        ["--by-function", name, "--inclusive"] => by_function(name, true),
        ref names if names.iter().all(|name| SCENARIOS.iter().any(|scenario| scenario.name == *name)) => {
            table(false, names)
        }
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

// ---- The reports ----

/// The cost of a request.
struct Cost {
    instructions: u64,
    lines: u64,
}

/// Prints the cost of a request in each scenario, or in those that are named. With `check`, compares it with the table in
/// the README.
fn table(check: bool, names: &[&str]) -> Outcome {
    let recorded_costs = if check { recorded()? } else { HashMap::new() };
    let (mut above, mut below) = (false, false);
    if check {
        println!(
            "| scenario | instructions per request | recorded | change | code lines per request | recorded | change |"
        );
        println!("|---|---:|---:|---:|---:|---:|---:|");
    } else {
        println!("| scenario | instructions per request | code lines per request |");
        println!("|---|---:|---:|");
    }
    for scenario in SCENARIOS.iter().filter(|scenario| names.is_empty() || names.contains(&scenario.name)) {
        let (name, cost) = (scenario.name, cost(scenario)?);
        if !check {
            println!("| {name} | {} | {} |", grouped(cost.instructions), grouped(cost.lines));
            continue;
        }
        let recorded = recorded_costs.get(name).ok_or(format!("benches/README.md has no row {name}"))?;
        let mut compare = |count: u64, recorded: u64, tolerance: f64| {
            let change = (count as f64 / recorded as f64 - 1.0) * 100.0;
            above |= change > tolerance;
            below |= change < -tolerance;
            format!("{} | {} | {change:+.1} %", grouped(count), grouped(recorded))
        };
        let instructions = compare(cost.instructions, recorded.instructions, TOLERANCE);
        let lines = compare(cost.lines, recorded.lines, LINES_TOLERANCE);
        println!("| {name} | {instructions} | {lines} |");
    }
    if below {
        eprintln!("instructions: fewer than recorded; update the table in benches/README.md");
    }
    if above {
        let tolerance = format!("{TOLERANCE} % (code lines: {LINES_TOLERANCE} %)");
        return Err(format!("more than {tolerance} above the table in benches/README.md").into());
    }
    Ok(())
}

/// Runs a scenario with few requests and with many.
fn cost(scenario: &Scenario) -> Outcome<Cost> {
    let (few, many) = (run(scenario, FEW)?, run(scenario, MANY)?);
    let requests = (MANY - FEW) as u64;
    let instructions = total(&many)?.saturating_sub(total(&few)?) / requests;
    let (few, many) = (executions(&few)?, executions(&many)?);
    let lines: HashSet<_> = many
        .iter()
        .filter(|&(place, count)| (count - few.get(place).unwrap_or(&0).min(count)) * 2 >= requests)
        .map(|((object, address), _)| (object, address >> LINE_BITS))
        .collect();
    Ok(Cost { instructions, lines: lines.len() as u64 })
}

/// Reads the rows of the table in the README.
fn recorded() -> Outcome<HashMap<&'static str, Cost>> {
    let rows = include_str!("../README.md").lines().filter_map(|line| {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let (name, instructions, lines) = (cells.next()?, cells.next()?, cells.next()?);
        SCENARIOS.iter().any(|scenario| scenario.name == name).then_some((name, instructions, lines))
    });
    let number = |cell: &str| cell.replace(',', "").parse::<u64>();
    rows.map(|(name, instructions, lines)| {
        Ok((name, Cost { instructions: number(instructions)?, lines: number(lines)? }))
    })
    .collect()
}

/// Prints the most expensive functions in a request of one scenario.
fn by_function(name: &str, inclusive: bool) -> Outcome {
    let names = SCENARIOS.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ");
    let scenario =
        SCENARIOS.iter().find(|scenario| scenario.name == name).ok_or(format!("{name:?} isn't one of {names}"))?;
    let before = functions(&run(scenario, FEW)?, inclusive)?;
    let mut rows: Vec<_> = functions(&run(scenario, MANY)?, inclusive)?
        .into_iter()
        .map(|(function, count)| (count.saturating_sub(*before.get(&function).unwrap_or(&0)), function))
        .collect();
    rows.sort_unstable_by(|one, other| other.cmp(one));
    println!("| instructions per request | function |\n|---:|---|");
    for (count, function) in rows.into_iter().take(FUNCTIONS) {
        println!("| {} | `{function}` |", grouped(count / (MANY - FEW) as u64));
    }
    Ok(())
}

/// Parses the output of `callgrind_annotate`: `1,234 (5.6%)  file:function [object]`.
fn functions(counts: &PathBuf, inclusive: bool) -> Outcome<HashMap<String, u64>> {
    let how = ["--auto=no", "--threshold=100", if inclusive { "--inclusive=yes" } else { "--inclusive=no" }];
    let output = Command::new("callgrind_annotate").args(how).arg(counts).output()?;
    let mut functions = HashMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((count, place)) = line.trim_start().split_once(' ') else { continue };
        let (Ok(count), Some((_, place))) = (count.replace(',', "").parse::<u64>(), place.split_once("  ")) else {
            continue;
        };
        let place = place.rsplit_once(" [").map_or(place, |(place, _)| place);
        let function = place.split_once(':').map_or(place, |(_, function)| function);
        let sum: &mut u64 = functions.entry(function.to_owned()).or_default();
        // A function has one line for each file that code was inlined from. With inclusive costs, one of them has the
        // whole.
        *sum = if inclusive { count.max(*sum) } else { count + *sum };
    }
    Ok(functions)
}

fn grouped(count: u64) -> String {
    if count < 1000 { count.to_string() } else { format!("{},{:03}", grouped(count / 1000), count % 1000) }
}

// ---- The client and the backend ----

/// Sends requests through a proxy under valgrind. Returns the file with the counts.
fn run(scenario: &Scenario, requests: usize) -> Outcome<PathBuf> {
    let counts = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("callgrind.{}.{requests}", scenario.name));
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--tool=callgrind"]).arg(format!("--callgrind-out-file={}", counts.display()));
    // A count for each instruction, with names and addresses in full.
    command.args(["--dump-instr=yes", "--compress-strings=no", "--compress-pos=no"]);
    command.arg(env::current_exe()?).args(["--proxy", scenario.name]).arg(backend(scenario)?);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "valgrind isn't installed".to_owned(),
            _ => format!("valgrind: {error}"),
        })?;
    let mut address = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut address)?;
    let address: SocketAddr = address.trim().parse().map_err(|_| "the proxy didn't start")?;

    let length = if scenario.body > 0 { format!("content-length: {}\r\n", scenario.body) } else { String::new() };
    let fields = "host: front.example\r\nuser-agent: bench\r\naccept: */*";
    let mut request = format!("{} HTTP/1.1\r\n{fields}\r\n{length}\r\n", scenario.request).into_bytes();
    request.resize(request.len() + scenario.body, b'x');
    let connect = |_| {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
        Ok(stream)
    };
    let mut connections = (0..CONNECTIONS).map(connect).collect::<io::Result<Vec<_>>>()?;
    for number in 0..requests {
        let stream = &mut connections[number % CONNECTIONS];
        stream.write_all(&request)?;
        let response = message(stream)?.ok_or("the proxy closed a connection")?;
        if !response.starts_with(b"HTTP/1.1 200 ") {
            return Err(format!("unexpected response: {}", String::from_utf8_lossy(&response)).into());
        }
    }
    // The proxy exits when its input ends. The connections are closed afterwards, because closing them isn't to be
    // counted.
    drop(child.stdin.take());
    let status = child.wait()?;
    if status.success() { Ok(counts) } else { Err(format!("the proxy: {status}").into()) }
}

/// Reads the total that callgrind counted.
fn total(counts: &PathBuf) -> Outcome<u64> {
    let text = fs::read_to_string(counts)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")));
    Ok(total.ok_or("callgrind counted nothing")?.trim().parse()?)
}

/// Reads how often each instruction was executed: by the file of its code, and its address there.
fn executions(counts: &PathBuf) -> Outcome<HashMap<(String, u64), u64>> {
    let mut executions: HashMap<_, u64> = HashMap::new();
    let (mut object, mut is_call) = ("", false);
    let text = fs::read_to_string(counts)?;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("ob=") {
            object = name;
        } else if line.starts_with("calls=") {
            // The next line has what the called function cost.
            is_call = true;
        } else if let Some(line) = line.strip_prefix("0x") {
            // The address, the number of the source line, and the count.
            let mut columns = line.split(' ');
            let (address, count) = (columns.next(), columns.nth(1));
            if let (false, Some(address), Some(count)) = (is_call, address, count) {
                let place = (object.to_owned(), u64::from_str_radix(address, 16)?);
                *executions.entry(place).or_default() += count.parse::<u64>()?;
            }
            is_call = false;
        }
    }
    if executions.is_empty() { Err("callgrind counted no instruction".into()) } else { Ok(executions) }
}

/// Starts a backend and returns its origin.
fn backend(scenario: &Scenario) -> io::Result<String> {
    let answer = match scenario.mounted {
        #[cfg(feature = "http2")]
        Some(Mounted::Http2) => http2::answer,
        _ => answer,
    };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let origin = format!("http://{}", listener.local_addr()?);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    Ok(origin)
}

/// Answers each request on a connection in a single write, so that the proxy reads the same number of pieces in each
/// run.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nserver: bench\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
                content-type: text/plain; charset=utf-8\r\ncache-control: no-store\r\n";
    let sized = |body: &[u8]| [format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat();
    let chunk = [b"400\r\n", &[b'x'; 1024][..], b"\r\n"].concat();
    let chunked = [format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes(), &chunk.repeat(8), END].concat();
    let small = sized(&SMALL);
    stream.set_nodelay(true)?;
    while let Some(request) = message(&mut stream)? {
        let response = if request.starts_with(b"POST ") {
            &sized(&request[request.len() - 1024..])
        } else if request.starts_with(b"GET /mydir/chunked ") {
            &chunked
        } else {
            &small
        };
        stream.write_all(response)?;
    }
    Ok(())
}

/// The end of a chunked body.
const END: &[u8] = b"0\r\n\r\n";

/// Reads a message with head and body. `None` at the end of the connection.
fn message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let (mut message, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(None);
        }
        message.extend_from_slice(&buffer[..read]);
        let Some(end) = message.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&message[..end]).to_ascii_lowercase();
        let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let is_whole = match length {
            Some(length) => message.len() - end - 4 >= length,
            None => !head.contains("transfer-encoding: chunked") || message.ends_with(END),
        };
        if is_whole {
            return Ok(Some(message));
        }
    }
}

// ---- The proxy ----

/// Serves the app of a scenario until the input ends.
fn proxy(name: &str, backend: &str) -> Outcome {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).ok_or(USAGE)?;
    let app = Router::new().route("/own", get(|| async { &SMALL[..] }));
    let proxy = || ReverseProxyLayer::new(backend).prefix("/mydir");
    let app = match scenario.mounted {
        None => app,
        Some(Mounted::Plain) => app.layer(proxy()),
        Some(Mounted::Basic) => app.layer(proxy().upstream_layer(BasicAuthLayer::new("front", "s3cret"))),
        Some(Mounted::Bearer) => app.layer(proxy().upstream_layer(BearerLayer::fixed("s3cret"))),
        // The application's layer that inserts the user is a part of the row.
        Some(Mounted::RemoteUser) => {
            app.layer(proxy().upstream_layer(RemoteUserLayer::new())).layer(Extension(RemoteUser::from("alice")))
        }
        Some(Mounted::Balanced(count)) => app.layer(balanced(backend, count)?),
        Some(Mounted::Idempotent(count)) => app.layer(balanced(backend, count)?.retry(RetryPolicy::idempotent())),
        Some(Mounted::Target(count)) => with_targets(app, backend, count)?,
        Some(Mounted::Over(count)) => {
            let service = service_fn(|_: Request| {
                ready(Ok::<_, Infallible>(Response::new(Body::from(Bytes::from_static(&SMALL)))))
            });
            app.layer(ReverseProxyLayer::with_upstream(Balance::over(vec![service; count])).prefix("/mydir"))
        }
        #[cfg(feature = "http2")]
        Some(Mounted::Http2) => {
            let client = tower_reverse_proxy::Client::builder(backend).http2(true);
            app.layer(ReverseProxyLayer::new(client).prefix("/mydir"))
        }
        #[cfg(all(feature = "assertion", feature = "tls-ring"))]
        Some(Mounted::Assertion) => {
            use tower_reverse_proxy::{AssertionKeys, AssertionLayer};
            let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
            // Far longer than a run, so that all but the first request find the assertion in the cache.
            let assertion = AssertionLayer::new(keys, "https://front.example").lifetime(Duration::from_secs(24 * 3600));
            let layers = tower::ServiceBuilder::new().layer(RemoteUserLayer::new()).layer(assertion);
            app.layer(proxy().upstream_layer(layers)).layer(Extension(RemoteUser::from("alice")))
        }
    };
    serve(&tokio::runtime::Builder::new_current_thread().enable_all().build()?, app)
}

fn balanced(backend: &str, count: usize) -> Outcome<ReverseProxyLayer<Retry<Balance<Upstream>>>> {
    let address = address(backend)?;
    let member = |number| Member::new(format!("http://member{number}.example")).at(address);
    let backends = Backends::builder((0..count).map(member)).seed(1);
    Ok(ReverseProxyLayer::try_balanced(backends)?.prefix("/mydir"))
}

/// The app with a target per request. All of them are the one backend.
fn with_targets(app: Router, backend: &str, count: usize) -> Outcome<Router> {
    let address = address(backend)?;
    let tenant = |number| Ok(Target::to(format!("http://tenant{number}.example").parse::<Backend>()?));
    let tenants = (0..count).map(tenant).collect::<Outcome<Vec<_>>>()?;
    let targets = Targets::new().client(move |client| client.address(address));
    // The pools are shared with another proxy, which makes them all without a connection.
    let unconnected = layer_fn(|_| service_fn(|_: Request| ready(Ok::<_, Infallible>(Response::new(Body::empty())))));
    let _ = ReverseProxyLayer::to(targets.clone()).upstream_layer(unconnected).map_upstream(|mut service| {
        for tenant in &tenants {
            let mut request = Request::new(Body::empty());
            request.extensions_mut().insert(tenant.clone());
            drop(service.call(request));
        }
        service
    });
    assert_eq!(targets.pools(), count);
    // The application's layer that inserts the target is a part of the row. The requests go to as many pools as there
    // are members in the other rows, so that connecting to them belongs to the start.
    let (next, tenants) = (Arc::new(AtomicUsize::new(0)), Arc::new(tenants));
    let choose = move |mut request: Request| -> Request {
        let number = next.fetch_add(1, Ordering::Relaxed) % 10;
        request.extensions_mut().insert(tenants[number * count / 10].clone());
        request
    };
    Ok(app.layer(ReverseProxyLayer::to(targets).prefix("/mydir")).layer(MapRequestLayer::new(choose)))
}

fn address(backend: &str) -> Outcome<SocketAddr> {
    Ok(backend.trim_start_matches("http://").parse()?)
}

fn serve(runtime: &tokio::runtime::Runtime, app: Router) -> Outcome {
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        exit(0);
    });
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
        Ok(())
    })
}
