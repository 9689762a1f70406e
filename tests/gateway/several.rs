//! Mounts with several backends: their keys, and `/front/backends`.

use std::{
    collections::BTreeMap,
    io::Write,
    net::TcpListener,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Gateway, PATIENCE, backend, head, refuses, rest};

/// A backend that responds with its own origin.
fn named() -> String {
    backend(|mut stream| {
        let origin = format!("http://{}", stream.local_addr().unwrap());
        while head(&mut stream).ends_with("\r\n\r\n") {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{origin}", origin.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                break;
            }
        }
    })
}

/// A backend whose responses wait until the returned sender sends, or is dropped.
fn held() -> (String, Sender<()>) {
    let (sender, receiver): (Sender<()>, Receiver<()>) = channel();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            head(&mut stream);
            let _ = receiver.recv_timeout(PATIENCE);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nheld");
        }
    });
    (origin, sender)
}

/// An origin that refuses connections.
fn refusing() -> String {
    format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

pub(crate) fn several(prefix: &str, backends: &[&str], keys: &str) -> String {
    format!("[[mount]]\nprefix = {prefix:?}\nbackends = {backends:?}\n{keys}\n")
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer:?}")).1
}

/// The rows of `/front/backends`.
fn status(gateway: &Gateway) -> Vec<Value> {
    let answer = gateway.get("/front/backends", "");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("content-type: application/json"), "{answer}");
    serde_json::from_str(body(&answer)).unwrap()
}

/// Replaces a set. Returns the status of the response.
fn post(gateway: &Gateway, text: &str) -> u16 {
    let length = text.len();
    let request = format!(
        "POST /front/backends HTTP/1.1\r\nHost: front.example\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n{text}"
    );
    let answer = rest(&mut gateway.send(request));
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("{answer:?}")).parse().unwrap()
}

fn replace(gateway: &Gateway, mount: &str, backends: &[&str]) -> u16 {
    post(gateway, &json!({ "mount": mount, "backends": backends }).to_string())
}

/// How many of so many requests each backend has answered.
fn shares(gateway: &Gateway, count: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        *shares.entry(body(&gateway.get("/app/x", "")).to_owned()).or_default() += 1;
    }
    shares
}

#[test]
fn a_mount_balances_its_backends_and_shows_them() {
    let (one, two) = (named(), named());
    let gateway = Gateway::start(&several("/app", &[&one, &two], "balance = \"least\""));
    let shares = shares(&gateway, 40);
    assert_eq!(shares.keys().collect::<Vec<_>>(), {
        let mut both = [&one, &two];
        both.sort();
        both
    });
    let expected = [&one, &two].map(|backend| {
        let requests = shares[backend];
        json!({
            "mount": "/app", "backend": backend, "state": "up", "in_flight": 0, "requests": requests, "failures": 0
        })
    });
    assert_eq!(status(&gateway), expected);
}

#[test]
fn a_backend_that_refuses_costs_no_request() {
    let (bad, good) = (refusing(), named());
    let gateway = Gateway::start(&several("/app", &[&bad, &good], ""));
    assert_eq!(shares(&gateway, 20), BTreeMap::from([(good, 20)]));
    let rows = status(&gateway);
    // Its first failure counts as load, so that the idle one gets the others.
    assert_eq!((&rows[0]["requests"], &rows[0]["failures"]), (&json!(1), &json!(1)), "{rows:?}");
    assert_eq!((&rows[1]["requests"], &rows[1]["failures"]), (&json!(20), &json!(0)), "{rows:?}");
}

#[test]
fn a_mount_without_retries_answers_with_its_first_failure() {
    let gateway = Gateway::start(&several("/app", &[&refusing(), &refusing()], "retry = \"none\""));
    assert!(gateway.get("/app/x", "").starts_with("HTTP/1.1 502 "));
    let requests: u64 = status(&gateway).iter().map(|row| row["requests"].as_u64().unwrap()).sum();
    assert_eq!(requests, 1);
}

#[test]
fn a_set_is_replaced_at_once_and_as_a_whole() {
    let (one, two, three) = (named(), named(), named());
    let mounts = [several("/app", &[&one, &two], ""), several("/other", &[&one], "")].concat();
    let gateway = Gateway::start(&format!("test_sign_in = true\n{mounts}"));
    assert_eq!(replace(&gateway, "/app", &[&three]), 204);
    assert_eq!(shares(&gateway, 5), BTreeMap::from([(three.clone(), 5)]));
    let rows: Vec<_> = status(&gateway).iter().map(|row| (row["mount"].clone(), row["backend"].clone())).collect();
    assert_eq!(rows, [(json!("/app"), json!(three)), (json!("/other"), json!(one))]);
    // What is wrong changes nothing.
    for (text, expected) in [
        ("{", 400),
        ("[]", 400),
        ("{\"mount\":\"/app\"}", 400),
        ("{\"mount\":\"/app\",\"backends\":[]}", 400),
        ("{\"mount\":\"/app\",\"backends\":[\"127.0.0.1:1\"]}", 400),
        ("{\"mount\":\"/app\",\"backends\":[\"https://127.0.0.1:1\"]}", 400),
        ("{\"mount\":\"/app\",\"backends\":[\"http://127.0.0.1:1\",\"http://127.0.0.1:1/\"]}", 400),
        ("{\"mount\":\"/app\",\"backends\":[\"http://127.0.0.1:1\"],\"more\":1}", 400),
        ("{\"mount\":\"/nowhere\",\"backends\":[\"http://127.0.0.1:1\"]}", 404),
    ] {
        assert_eq!(post(&gateway, text), expected, "{text}");
    }
    assert_eq!(shares(&gateway, 3), BTreeMap::from([(three, 3)]));
}

#[test]
fn a_set_is_not_replaced_without_the_test_sign_in() {
    let (one, two) = (named(), named());
    let gateway = Gateway::start(&several("/app", &[&one], ""));
    assert_eq!(replace(&gateway, "/app", &[&two]), 405);
    assert_eq!(shares(&gateway, 3), BTreeMap::from([(one, 3)]));
}

#[test]
fn a_removed_backend_drains_until_its_last_exchange_ends() {
    let ((one, go), two) = (held(), named());
    let gateway = Gateway::start(&format!("test_sign_in = true\n{}", several("/app", &[&one], "")));
    let mut slow = gateway.send("GET /app/x HTTP/1.1\r\nHost: front.example\r\nConnection: close\r\n\r\n");
    until(|| status(&gateway)[0]["in_flight"] == 1);
    assert_eq!(replace(&gateway, "/app", &[&two]), 204);
    assert_eq!(shares(&gateway, 5), BTreeMap::from([(two.clone(), 5)]));
    let rows = status(&gateway);
    assert_eq!((&rows[0]["backend"], &rows[1]["backend"]), (&json!(two), &json!(one)), "{rows:?}");
    assert_eq!((&rows[1]["state"], &rows[1]["in_flight"]), (&json!("draining"), &json!(1)), "{rows:?}");
    go.send(()).unwrap();
    assert_eq!(body(&rest(&mut slow)), "held");
    until(|| status(&gateway).len() == 1);
}

#[test]
fn the_keys_of_a_mount_choose_its_backends() {
    let (one, two) = (named(), named());
    let mut both = [one.clone(), two.clone()];
    both.sort();
    let shares_with = |keys: &str, count| shares(&Gateway::start(&several("/app", &[&one, &two], keys)), count);
    let even = BTreeMap::from(both.clone().map(|backend| (backend, 10)));
    assert_eq!(shares_with("balance = \"round-robin\"", 20), even);
    assert_eq!(shares_with("balance = \"round-robin\"\nweights = [1, 3]", 20)[&two], 15);
    // One path, and no user.
    assert_eq!(shares_with("balance = \"hash-path\"", 10).len(), 1);
    let sticky = "sticky = \"cookie\"\nsticky_key = \"0123456789abcdef\"";
    let gateway = Gateway::start(&several("/app", &[&one, &two], sticky));
    let answer = gateway.get("/app/x", "");
    let cookie = answer.to_ascii_lowercase();
    let start = cookie.find("set-cookie: ").unwrap_or_else(|| panic!("{answer}")) + "set-cookie: ".len();
    let pair = answer[start..].split(';').next().unwrap();
    assert!(pair.starts_with("backend="), "{answer}");
    for _ in 0..5 {
        assert_eq!(body(&gateway.get("/app/x", &format!("Cookie: {pair}\r\n"))), body(&answer));
    }
}

#[test]
fn the_addresses_of_a_name_are_backends() {
    let origin = named();
    let port = origin.rsplit(':').next().unwrap();
    let mount = format!("[[mount]]\nprefix = \"/app\"\nbackend = \"http://127.0.0.1:{port}\"\ndiscover = \"dns\"\n");
    let gateway = Gateway::start(&format!("test_sign_in = true\n{mount}"));
    assert_eq!(shares(&gateway, 3), BTreeMap::from([(origin.clone(), 3)]));
    assert_eq!(status(&gateway)[0]["backend"], json!(format!("{origin} at 127.0.0.1:{port}")));
    // They aren't the file's to replace.
    assert_eq!(replace(&gateway, "/app", &[&origin]), 409);
}

/// Waits until something is true.
#[track_caller]
fn until(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "it becomes so");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn keys_of_several_backends_that_make_no_sense_are_refused() {
    const URL: &str = "http://127.0.0.1:1";
    let listen = "listen = \"127.0.0.1:0\"\n";
    let with = |keys: &str| format!("{listen}{}", several("/a", &[URL, "http://127.0.0.1:2"], keys));
    let one = |keys: &str| format!("{listen}[[mount]]\nprefix = \"/a\"\nbackend = {URL:?}\n{keys}\n");
    let key = "sticky_key = \"0123456789abcdef\"";
    let mut cases = vec![
        (format!("{listen}{}", several("/a", &[], "")), "mount \"/a\": backends = []: write one backend or more"),
        (with("backend = \"http://127.0.0.1:1\""), "mount \"/a\": backends: write one of backend and backends"),
        (format!("{listen}{}", several("/a", &[URL, "http://127.0.0.1:1/"], "")), "twice"),
        (format!("{listen}{}", several("/a", &["127.0.0.1:1"], "")), "http://127.0.0.1:8000"),
        (format!("{listen}{}", several("/a", &[URL, "https://127.0.0.1:2"], "")), "write https:// for all backends"),
        (with("balancer = \"least\""), "line 5: unknown field `balancer`"),
        (with("balance = \"fastest\""), "line 5: unknown variant `fastest`"),
        (with("retry = \"always\""), "line 5: unknown variant `always`"),
        (with("sticky = \"header\""), "line 5: unknown variant `header`"),
        (with("discover = \"srv\""), "line 5: unknown variant `srv`"),
        (with("eject = 1"), "line 5: "),
        (with("weights = [1]"), "weights: there are 1 for 2 backends: write as many"),
        (with("weights = [1, 0]"), "weights: a weight of 0"),
        (with("weights = [1, -1]"), "line 5: "),
        (with("max_requests = 0"), "max_requests = 0: write 1 or more"),
        (with("sticky = \"cookie\""), "sticky: write sticky_key, too"),
        (with(key), "sticky_key: write sticky = \"cookie\", too"),
        (with("sticky = \"cookie\"\nsticky_key = \"15-bytes-secret\""), "sticky_key: write 16 bytes or more"),
        (with("sticky = \"cookie\"\nsticky_key = 12345678"), "a secret that isn't a string"),
        (with("check = \"healthz\""), "check: \"healthz\": write a path"),
        (with("check = \"/healthz\"\ncheck_interval_ms = 0"), "check_interval_ms = 0: write 5000"),
        (with("check_interval_ms = 500"), "check_interval_ms: write check = \"/healthz\", too"),
        (with("discover = \"dns\""), "discover: write the name as backend = \"http://name:port\""),
        (with("dns_server = \"127.0.0.1:53\""), "dns_server: write discover = \"dns\", too"),
        (with("dns_server = \"localhost\""), "line 5: "),
        (one("discover = \"dns\"\nweights = [1]"), "weights: leave them out"),
        #[cfg(not(feature = "dns"))]
        (one("discover = \"dns\"\ndns_server = \"127.0.0.1:53\""), "dns_server: this build has no DNS queries"),
        (
            format!("{listen}[[mount]]\nprefix = \"/a\"\nbackend = \"unix:/run/app.sock\"\ndiscover = \"dns\"\n"),
            "write an origin",
        ),
    ];
    for key in ["balance = \"least\"", "weights = [1]", "check = \"/x\"", "retry = \"none\"", "max_requests = 1"] {
        cases.push((one(key), "write backends = [\"http://…\"] in place of backend"));
    }
    refuses(&cases);
}
