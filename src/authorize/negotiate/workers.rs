//! The threads that make tokens, with a bounded queue in front of each.
//!
//! The library's calls block, on a dead KDC for half a minute, and it serialises the calls with one credential.
//! Therefore they have threads of their own, of which more wouldn't help. Tokens that need no call of the KDC have one of
//! their own, so that the users who have tickets aren't delayed by those who need one. A request waits for its token in a
//! queue with a bound and a deadline.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    mechanism::{Failure, Mechanism, Reason},
    minter::{Initiator, Minted, Minter},
};
use crate::observe;

/// The requests that may wait for a call that is slow.
const QUEUE: usize = 64;
/// The requests that may wait for a thread whose calls aren't slow, because a burst is served within milliseconds then.
const BURST: usize = 1024;
/// A call that has begun this long ago is slow. The calls for the first token take a tenth of it with a KDC that
/// answers.
const SLOW: Duration = Duration::from_millis(250);

pub(super) type Answer<M> = Result<Minted<<M as Mechanism>::Context>, Failure>;

struct Task<M: Mechanism> {
    initiator: Initiator<M::Cred>,
    answer: oneshot::Sender<Answer<M>>,
}

/// The threads. They end when it's dropped, each after the call that it is in, which nothing waits for.
pub(super) struct Workers<M: Mechanism> {
    minter: Arc<Minter<M>>,
    threads: Vec<Worker<M>>,
    /// For tokens of tickets that are cached. `None`: the others make them.
    cached: Option<Worker<M>>,
    hasher: RandomState,
}

struct Worker<M: Mechanism> {
    queue: Sender<Task<M>>,
    load: Arc<Load>,
}

#[derive(Default)]
struct Load(Mutex<Loaded>);

#[derive(Default)]
struct Loaded {
    waiting: usize,
    /// When the thread began the call that it is in.
    since: Option<Instant>,
}

impl Load {
    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more request that waits, if it may.
    fn admit(&self, now: Instant, deadline: Duration) -> Result<(), Unavailable> {
        let mut load = self.lock();
        let age = load.since.map(|since| now.saturating_duration_since(since)).unwrap_or_default();
        match load.waiting {
            _ if age > deadline => Err(Unavailable::Stuck),
            waiting if waiting >= if age > SLOW { QUEUE } else { BURST } => Err(Unavailable::Full),
            _ => {
                load.waiting += 1;
                Ok(())
            }
        }
    }
}

/// Why no thread makes the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unavailable {
    /// As many requests wait as may.
    Full,
    /// The thread has been in one call for longer than the deadline.
    Stuck,
    /// The thread has ended, which only a defect can cause.
    Ended,
}

/// Why the threads didn't start.
#[derive(Debug)]
pub(super) enum NotStarted {
    Thread(io::Error),
    /// The front's own credential can't be acquired.
    Credential(Failure),
}

impl<M: Mechanism> Workers<M> {
    /// Starts the threads, and one for cached tickets. With `acquire`, the first one acquires the front's own credential,
    /// which is waited for so long.
    pub(super) fn start(
        mechanism: M,
        names: &[&str],
        cached: Option<&str>,
        acquire: Option<Duration>,
    ) -> Result<Self, NotStarted> {
        let minter = Arc::new(Minter::new(mechanism));
        let (ready, is_ready) = mpsc::sync_channel(1);
        let mut ready = acquire.map(|_| ready);
        let mut handles = Vec::new();
        let mut start = |name: &str, ready| {
            let (worker, handle) = Worker::start(name, minter.clone(), ready).map_err(NotStarted::Thread)?;
            handles.push(handle);
            Ok(worker)
        };
        let threads = names.iter().map(|name| start(name, ready.take())).collect::<Result<Vec<_>, _>>()?;
        let cached = cached.map(|name| start(name, None)).transpose()?;
        if let Some(limit) = acquire {
            // A KDC that doesn't answer now may answer later. The rest of the application starts meanwhile.
            match is_ready.recv_timeout(limit) {
                Ok(Ok(())) => {}
                Ok(Err(failure)) if failure.reason == Reason::Unreachable => observe::unreachable_at_start(&failure),
                Ok(Err(failure)) => {
                    drop((threads, cached));
                    // No thread is in a call. The application is likely to exit now, and the library complains if a
                    // thread of its own ends during that.
                    for handle in handles {
                        let _ = handle.join();
                    }
                    return Err(NotStarted::Credential(failure));
                }
                Err(_) => observe::unreachable_at_start(&format_args!("it's silent for {limit:?}")),
            }
        }
        Ok(Self { minter, threads, cached, hasher: RandomState::new() })
    }

    pub(super) fn minter(&self) -> &Minter<M> {
        &self.minter
    }

    /// Queues a request for a token. Dropping the receiver cancels it.
    ///
    /// One thread makes the first tokens of a user, so that the user's credential is acquired once.
    pub(super) fn mint(
        &self,
        initiator: Initiator<M::Cred>,
        deadline: Duration,
    ) -> Result<oneshot::Receiver<Answer<M>>, Unavailable> {
        let hash = match &initiator {
            Initiator::Own => 0,
            Initiator::Delegated { credential, .. } => self.hasher.hash_one(credential.id),
            Initiator::User(name) => self.hasher.hash_one(name),
        };
        let worker = match &self.cached {
            Some(cached) if self.minter.has_ticket(&initiator) => cached,
            _ => &self.threads[usize::try_from(hash % self.threads.len() as u64).unwrap_or(0)],
        };
        worker.load.admit(self.minter.now(), deadline)?;
        let (answer, answered) = oneshot::channel();
        worker.queue.send(Task { initiator, answer }).map_err(|_| Unavailable::Ended)?;
        Ok(answered)
    }
}

impl<M: Mechanism> Worker<M> {
    fn start(
        name: &str,
        minter: Arc<Minter<M>>,
        ready: Option<SyncSender<Result<(), Failure>>>,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (queue, tasks) = mpsc::channel();
        let load = Arc::<Load>::default();
        let of_thread = load.clone();
        // Detached, because waiting for a call to a dead KDC would delay a shutdown.
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Some(ready) = ready {
                let _ = ready.send(minter.acquire());
            }
            work(&minter, &tasks, &of_thread);
        })?;
        Ok((Self { queue, load }, handle))
    }
}

fn work<M: Mechanism>(minter: &Minter<M>, tasks: &Receiver<Task<M>>, load: &Load) {
    while let Ok(Task { initiator, answer }) = tasks.recv() {
        load.lock().waiting -= 1;
        // Its request has been cancelled, or its deadline has passed.
        if answer.is_closed() {
            continue;
        }
        load.lock().since = Some(minter.now());
        // A panic would end the thread, and with it every later request of the account.
        let minted = catch_unwind(AssertUnwindSafe(|| minter.mint(&initiator)));
        load.lock().since = None;
        if let Ok(minted) = minted {
            let _ = answer.send(minted);
        }
    }
}
