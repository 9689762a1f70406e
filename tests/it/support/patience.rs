//! Bounds: a test fails when it makes no progress, not when it takes long, and never hangs.

use std::{
    future::Future,
    panic::Location,
    pin::pin,
    process,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use tokio::time::timeout;

/// How long a test waits for one thing before it fails. A busy machine needs a fraction of it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a future, which has to complete within [`PATIENCE`].
#[track_caller]
pub(crate) fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move { timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("nothing happens at {caller}")) }
}

/// How long a test may take. The slowest test takes seconds, or a minute on a busy machine.
const HANGS: Duration = Duration::from_secs(600);

/// Counts the steps of a long test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<AtomicUsize>);

impl Progress {
    pub(crate) fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for a future while there is progress. Fails after [`PATIENCE`] without a step.
    pub(crate) async fn of<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            let before = self.0.load(Ordering::Relaxed);
            match timeout(PATIENCE, &mut future).await {
                Ok(output) => return output,
                Err(_) => assert_ne!(before, self.0.load(Ordering::Relaxed), "the test makes no progress"),
            }
        }
    }
}

/// Ends the process if the test that calls it hangs, whatever it awaits.
pub(crate) fn watch() {
    thread_local! {
        static WATCHED: Option<Sender<()>> = watched();
    }
    WATCHED.with(|_| ());
}

/// The sender is dropped with the thread, which ends with the test.
fn watched() -> Option<Sender<()>> {
    // The thread of a test has the test's name. Peers have other threads, some as long-lived as the process.
    let name = thread::current().name().filter(|name| *name != "main" && !name.starts_with("tokio"))?.to_owned();
    let (alive, ended) = channel();
    thread::spawn(move || {
        if ended.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout) {
            eprintln!("test {name} hangs");
            process::abort();
        }
    });
    Some(alive)
}
