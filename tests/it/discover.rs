//! Sources of members: what becomes of their answers, and when they end.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, timeout},
};
use tower::discover::Change;
use tower_reverse_proxy::{
    Backends, ReverseProxyLayer,
    balance::{
        Balance, Member,
        discover::{Changes, Dns},
    },
};

use crate::support::{PATIENCE, others_run, within};

const ONE: &str = "http://10.0.0.1:8000";
const TWO: &str = "http://10.0.0.2:8000";
const THREE: &str = "http://10.0.0.3:8000";

type Answer = Result<Vec<Member>, io::Error>;

/// A source whose answers a test sends.
struct Sent(UnboundedReceiver<Answer>);

impl Stream for Sent {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        self.0.poll_recv(cx)
    }
}

fn source() -> (UnboundedSender<Answer>, Sent) {
    let (sender, receiver) = unbounded_channel();
    (sender, Sent(receiver))
}

fn names(backends: &Backends) -> Vec<String> {
    backends.status().iter().map(|member| member.backend().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn each_answer_of_a_source_replaces_the_set() {
    let backends = Backends::new([ONE]);
    let (sender, source) = source();
    let _follow = backends.follow(source);
    for set in [vec![TWO], vec![TWO, ONE], vec![ONE]] {
        sender.send(Ok(set.iter().copied().map(Member::new).collect())).unwrap();
        others_run().await;
        assert_eq!(names(&backends), set);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_an_empty_answer_and_an_invalid_one_leave_the_set() {
    let backends = Backends::new([ONE]);
    let (sender, source) = source();
    let _follow = backends.follow(source);
    for wrong in [
        Err(io::Error::other("SERVFAIL")),
        Ok(vec![]),
        Ok(vec![Member::new("10.0.0.3:8000")]),
        Ok(vec![Member::new(TWO), Member::new(TWO)]),
        Ok(vec![Member::new(TWO).weight(0)]),
        Ok(vec![Member::named("blue")]),
    ] {
        sender.send(wrong).unwrap();
        others_run().await;
        assert_eq!(names(&backends), [ONE]);
    }
    // It's followed nevertheless.
    sender.send(Ok(vec![Member::new(TWO)])).unwrap();
    others_run().await;
    assert_eq!(names(&backends), [TWO]);
}

#[tokio::test(start_paused = true)]
async fn a_source_is_followed_after_a_layer_has_panicked() {
    let backends = Backends::new([ONE]);
    let _balance = Balance::new(&backends, |member: &Member| assert_ne!(member.name(), TWO, "a layer panics"));
    let (sender, source) = source();
    let _follow = backends.follow(source);
    for set in [TWO, THREE] {
        sender.send(Ok(vec![Member::new(set)])).unwrap();
        others_run().await;
        assert_eq!(names(&backends), [set]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_is_dropped_with_its_guard_or_with_the_last_handle() {
    // With the guard.
    let backends = Backends::new([ONE]);
    let (sender, answers) = source();
    drop(backends.follow(answers));
    within(sender.closed()).await;
    assert_eq!(names(&backends), [ONE]);
    // With the handle, and with the mount.
    for has_mount in [false, true] {
        let backends = Backends::new([ONE]);
        let (sender, answers) = source();
        backends.follow(answers).detach();
        let mount = has_mount.then(|| ReverseProxyLayer::balanced(&backends));
        drop(backends);
        others_run().await;
        assert_eq!(sender.is_closed(), !has_mount);
        drop(mount);
        within(sender.closed()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ends_leaves_its_last_set() {
    let backends = Backends::new([ONE]);
    let (sender, answers) = source();
    let _follow = backends.follow(answers);
    sender.send(Ok(vec![Member::new(TWO)])).unwrap();
    drop(sender);
    others_run().await;
    assert_eq!(names(&backends), [TWO]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_always_ready_leaves_others_their_turn() {
    let backends = Backends::new([ONE]);
    let endless = futures_util::stream::repeat_with(|| Ok::<_, Infallible>(vec![Member::new(TWO)]));
    let _follow = backends.follow(endless);
    others_run().await;
    assert_eq!(names(&backends), [TWO]);
}

#[tokio::test(start_paused = true)]
async fn the_changes_of_a_discover_are_sets() {
    let (sender, receiver) = unbounded_channel::<Result<Change<u8, &str>, io::Error>>();
    let changes = futures_util::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let mut sets = Box::pin(Changes::new(Box::pin(changes)));
    let mut next = async || {
        let set = timeout(Duration::from_secs(1), sets.next()).await.ok()??;
        Some(set.map(|members| members.iter().map(|member| member.name().to_owned()).collect::<Vec<_>>()).ok())
    };
    // Those that are there are one set.
    sender.send(Ok(Change::Insert(1, TWO))).unwrap();
    sender.send(Ok(Change::Insert(2, ONE))).unwrap();
    assert_eq!(next().await, Some(Some(vec![TWO.to_owned(), ONE.to_owned()])));
    sender.send(Ok(Change::Remove(1))).unwrap();
    assert_eq!(next().await, Some(Some(vec![ONE.to_owned()])));
    // An unknown key changes nothing.
    sender.send(Ok(Change::Remove(1))).unwrap();
    assert_eq!(next().await, None);
    // A change before an error isn't lost.
    sender.send(Ok(Change::Insert(1, TWO))).unwrap();
    sender.send(Err(io::Error::other("no"))).unwrap();
    assert_eq!(next().await, Some(None));
    assert_eq!(next().await, Some(Some(vec![ONE.to_owned(), TWO.to_owned()])));
}

/// Waits for the next set of a source.
async fn next(source: &mut (impl Stream<Item = Result<Vec<Member>, tower::BoxError>> + Unpin)) -> Vec<String> {
    let members = timeout(PATIENCE, source.next()).await.expect("an answer").unwrap().unwrap();
    members.iter().map(|member| member.name().to_owned()).collect()
}

#[tokio::test]
async fn the_system_looks_up_each_address_of_a_name() {
    let found = next(&mut Dns::new("http://localhost:81")).await;
    let is_local = |name: &String| {
        ["http://localhost:81 at 127.0.0.1:81", "http://localhost:81 at [::1]:81"].contains(&name.as_str())
    };
    assert!(!found.is_empty() && found.iter().all(is_local), "{found:?}");
    assert_eq!(next(&mut Dns::new("http://127.0.0.2")).await, ["http://127.0.0.2 at 127.0.0.2:80"]);
    assert_eq!(next(&mut Dns::new("http://[::1]:81")).await, ["http://[::1]:81 at [::1]:81"]);
    assert!(Dns::try_new("unix:/run/app.sock").unwrap_err().to_string().contains("write an origin"));
}

#[tokio::test]
async fn the_system_looks_up_a_name_again_after_the_interval() {
    let mut dns = Dns::new("http://127.0.0.2").interval(Duration::from_secs(1));
    next(&mut dns).await;
    let start = Instant::now();
    next(&mut dns).await;
    let waited = start.elapsed();
    // Give or take a tenth, and what a busy machine takes.
    assert!(waited >= Duration::from_millis(890), "{waited:?}");
}

/// Longer than a DNS label: resolvers refuse it without a query.
#[tokio::test]
async fn a_name_that_is_unknown_is_an_error() {
    let mut dns = Dns::new(format!("http://{}.example", "x".repeat(64)));
    assert!(within(dns.next()).await.unwrap().is_err());
}
