//! Looks up a backend's name: one look-up at a time serves all connections that wait for it. A set address needs none.
//!
//! The operating system's look-up can't be cancelled and keeps one of the runtime's blocking threads for as long as it
//! takes. If each connection had one of its own, a name server that doesn't answer would use up these threads, and with
//! them the look-ups of all other backends.

use std::{
    error, fmt,
    future::{Future, ready},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    vec,
};

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tokio::sync::watch;
use tower::ServiceExt;
use tower_service::Service;

/// The addresses that a client connects to.
#[derive(Clone)]
pub(super) enum Addresses {
    /// The one that the operator has set.
    Set(SocketAddr),
    /// Those of the backend's name.
    OfTheName(SharedLookup),
}

impl Addresses {
    pub(super) fn of_the_name() -> Self {
        Self::OfTheName(SharedLookup::new())
    }
}

impl Service<Name> for Addresses {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        match self {
            Self::Set(address) => Box::pin(ready(Ok(vec![*address].into_iter()))),
            Self::OfTheName(lookup) => lookup.call(name),
        }
    }
}

/// Looks up the one name that a backend has. Clones share the look-up that is under way. Its result isn't cached.
#[derive(Clone)]
pub(super) struct SharedLookup<R = GaiResolver> {
    resolver: R,
    last: Arc<Mutex<Option<watch::Receiver<Outcome>>>>,
}

/// `None`: the look-up is under way.
type Outcome = Option<Result<Vec<SocketAddr>, Arc<io::Error>>>;

impl SharedLookup {
    fn new() -> Self {
        Self::with_resolver(GaiResolver::new())
    }
}

impl<R> SharedLookup<R> {
    fn with_resolver(resolver: R) -> Self {
        Self { resolver, last: Arc::default() }
    }
}

impl<R> SharedLookup<R>
where
    R: Service<Name, Error = io::Error, Future: Send> + Clone + Send + 'static,
    R::Response: Iterator<Item = SocketAddr> + Send,
{
    /// Joins the look-up that is under way, or begins one; `true`: it has begun one.
    ///
    /// It runs in a task of its own, so that connections that are given up don't end it, and later ones join it.
    fn join(&self, name: &Name) -> (watch::Receiver<Outcome>, bool) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a sender, its runtime has been shut down.
        if let Some(last) = &*last
            && last.has_changed().is_ok()
            && last.borrow().is_none()
        {
            return (last.clone(), false);
        }
        let (sender, receiver) = watch::channel(None);
        *last = Some(receiver.clone());
        drop(last);
        let lookup = self.resolver.clone().oneshot(name.clone());
        tokio::spawn(async move {
            let addresses = lookup.await.map(Iterator::collect).map_err(Arc::new);
            sender.send_replace(Some(addresses));
        });
        (receiver, true)
    }

    async fn look_up(self, name: Name) -> io::Result<vec::IntoIter<SocketAddr>> {
        loop {
            let (mut receiver, is_own) = self.join(&name);
            let outcome = receiver.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
            match outcome {
                Some(Ok(addresses)) => return Ok(addresses.into_iter()),
                Some(Err(error)) => return Err(shared(error)),
                None if is_own => return Err(io::Error::other("the runtime of the look-up is shutting down")),
                // Another connection's runtime has been shut down.
                None => {}
            }
        }
    }
}

impl<R> Service<Name> for SharedLookup<R>
where
    R: Service<Name, Error = io::Error, Future: Send> + Clone + Send + Sync + 'static,
    R::Response: Iterator<Item = SocketAddr> + Send,
{
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().look_up(name))
    }
}

/// Returns the error for one of the connections that waited. One of the operating system keeps its code, which shows
/// whether this process lacks descriptors.
fn shared(error: Arc<io::Error>) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), Shared(error)),
    }
}

/// The error of a look-up, for all connections that waited for it.
#[derive(Debug)]
struct Shared(Arc<io::Error>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl error::Error for Shared {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use tokio::{
        runtime::{Builder, Runtime},
        sync::Semaphore,
        time::timeout,
    };
    use tower::service_fn;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A resolver that takes a permit for each look-up, and counts them.
    #[derive(Clone)]
    struct Slow {
        begun: Arc<AtomicUsize>,
        permits: Arc<Semaphore>,
    }

    impl Slow {
        fn new() -> Self {
            Self { begun: Arc::default(), permits: Arc::new(Semaphore::new(0)) }
        }

        fn begun(&self) -> usize {
            self.begun.load(Ordering::SeqCst)
        }

        fn shared(&self) -> SharedLookup<impl Resolver> {
            let this = self.clone();
            SharedLookup::with_resolver(service_fn(move |_: Name| {
                let this = this.clone();
                let number = this.begun.fetch_add(1, Ordering::SeqCst);
                async move {
                    this.permits.acquire().await.map_err(io::Error::other)?.forget();
                    match number {
                        3 => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
                        _ => Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))].into_iter()),
                    }
                }
            }))
        }
    }

    trait Resolver:
        Service<Name, Response = vec::IntoIter<SocketAddr>, Error = io::Error, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
    {
    }
    impl<R> Resolver for R where
        R: Service<Name, Response = vec::IntoIter<SocketAddr>, Error = io::Error, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static
    {
    }

    fn name() -> Name {
        "backend.example".parse().unwrap()
    }

    /// Polls a look-up once.
    async fn begun(lookup: &mut (impl Future + Unpin)) {
        assert!(timeout(Duration::ZERO, lookup).await.is_err());
    }

    #[tokio::test]
    async fn a_slow_look_up_is_shared_by_all_waiters() {
        let slow = Slow::new();
        let mut shared = slow.shared();
        let mut waiting: Vec<_> = (0..700).map(|_| shared.call(name())).collect();
        for lookup in &mut waiting {
            begun(lookup).await;
        }
        // Those that are given up don't end it; those that come then join it.
        drop(waiting);
        let mut waiting: Vec<_> = (0..700).map(|_| shared.clone().call(name())).collect();
        for lookup in &mut waiting {
            begun(lookup).await;
        }
        assert_eq!(slow.begun(), 1);
        slow.permits.add_permits(1);
        for lookup in waiting {
            assert_eq!(timeout(PATIENCE, lookup).await.unwrap().unwrap().len(), 1);
        }
        assert_eq!(slow.begun(), 1);
    }

    #[tokio::test]
    async fn finished_look_ups_are_not_cached() {
        let slow = Slow::new();
        let mut shared = slow.shared();
        slow.permits.add_permits(5);
        for number in 0..5 {
            let outcome = timeout(PATIENCE, shared.call(name())).await.unwrap();
            assert_eq!(slow.begun(), number + 1);
            match outcome {
                Err(error) => assert_eq!((number, &*error.to_string()), (3, "no such name")),
                Ok(addresses) => assert_eq!(addresses.len(), 1),
            }
        }
    }

    #[tokio::test]
    async fn a_runtime_shut_down_does_not_cancel_look_ups_of_others() {
        let runtime = || -> Runtime { Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap() };
        let slow = Slow::new();
        let (mut shared, theirs) = (slow.shared(), runtime());
        let first = {
            let _inside = theirs.enter();
            let mut first = shared.call(name());
            assert!(first.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
            first
        };
        let mut second = shared.call(name());
        begun(&mut second).await;
        // The permits come after the end of that runtime, so that its look-up gets none.
        std::thread::spawn(move || drop(theirs)).join().unwrap();
        slow.permits.add_permits(2);
        assert_eq!(timeout(PATIENCE, second).await.unwrap().unwrap().len(), 1);
        let error = timeout(PATIENCE, first).await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the runtime of the look-up is shutting down");
        assert_eq!(slow.begun(), 2);
    }
}
