//! The tasks and the clock of a test's runtime.

use std::{
    future::{Future, pending},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    task::yield_now,
    time::{advance, pause, resume, sleep},
};

use super::within;

/// Lets all other tasks of a test's runtime run until they wait for something.
pub(crate) async fn others_run() {
    for _ in 0..100 {
        yield_now().await;
    }
}

/// Sets the clock forward, which takes no real time. Timers that are due fire, and their tasks run.
///
/// Tests with a paused clock sleep instead. This is for tests with sockets, for which a paused clock doesn't wait.
pub(crate) async fn time_passes(duration: Duration) {
    others_run().await;
    pause();
    advance(duration).await;
    others_run().await;
    resume();
}

/// Lets the pool observe that the backend keeps its idle connections: only then are they used for requests that can't be
/// replayed, and only if they have been idle for less than a second.
pub(crate) async fn seen_to_be_kept() {
    time_passes(Duration::from_millis(1900)).await;
}

/// Waits until a count has risen and rises no more. In real time, because the kernel's buffers fill up.
pub(crate) async fn settled(count: &AtomicUsize) -> usize {
    let settles = async {
        let mut before = 0;
        loop {
            sleep(Duration::from_millis(200)).await;
            let now = count.load(Ordering::SeqCst);
            // A count without limit fails the caller's assertion.
            if (now == before && now > 0) || now > 256 << 20 {
                return now;
            }
            before = now;
        }
    };
    within(settles).await
}

/// Makes a peer in a runtime of its own, so that the test's runtime has the proxy's tasks only.
pub(crate) fn elsewhere<T: Send + 'static>(make: impl Future<Output = T> + Send + 'static) -> T {
    let (report, made) = channel();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            report.send(make.await).unwrap();
            pending::<()>().await;
        });
    });
    made.recv().unwrap()
}

/// Waits until the test's runtime has at most `count` tasks.
pub(crate) async fn tasks_left(count: usize) {
    let metrics = Handle::current().metrics();
    let fewer = async {
        while metrics.num_alive_tasks() > count {
            // Real time passes, because peers on other threads take it.
            sleep(Duration::from_millis(10)).await;
        }
    };
    within(fewer).await;
    assert_eq!(metrics.num_alive_tasks(), count);
}
