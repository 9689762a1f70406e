//! The pools of the targets, under one lock.
//!
//! Under it, pools and services are found, counted and moved. They are made and dropped outside of it, because that
//! runs code of the application.

use std::{
    any::Any,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Options,
    origin::Origin,
    pools::{Full, Pools, Slot},
};
use crate::{balance::Backends, client::Client, tried::SetId, tunnel_guard::TunnelResource};

/// The pools of all proxies that have the same [`Targets`](super::Targets).
pub(super) struct Registry {
    pub(super) options: Options,
    state: Mutex<State>,
    /// Ends the sweeper.
    dropped: CancellationToken,
}

struct State {
    pools: Pools<Key, Pool>,
    /// The number of the task that removes idle pools.
    sweeper: Option<u64>,
    sweepers: u64,
}

/// By what a pool is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Origin(Origin),
    Set(SetId),
}

/// Where the requests of a pool go.
#[derive(Clone)]
pub(super) enum Destination {
    /// The connections to one origin.
    Client(Client),
    Set(Backends),
}

/// A destination, and the services around it.
struct Pool {
    destination: Destination,
    /// One for each proxy, because each has its own layers.
    services: Vec<(Weak<ProxyId>, AnyService)>,
}

/// A service whose type is known by the proxy that has made it.
pub(super) type AnyService = Arc<dyn Any + Send + Sync>;

/// Identifies a proxy, by its address.
#[derive(Debug, Default)]
pub(super) struct ProxyId {
    /// A type without a size would have no address of its own.
    _address: u8,
}

/// What a lease has found.
pub(super) enum Leased {
    Service(Lease, AnyService),
    /// The proxy has no service around this pool yet.
    Pool(Lease, Destination),
}

/// Why there is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotLeased {
    /// No pool of this target exists.
    Missing,
    /// None exists, and there is no room for one, because all are in use.
    Full,
}

impl Registry {
    pub(super) fn new(options: Options) -> Self {
        let pools = Pools::new(options.capacity);
        let state = Mutex::new(State { pools, sweeper: None, sweepers: 0 });
        Self { options, state, dropped: CancellationToken::new() }
    }

    /// Returns the number of pools.
    pub(super) fn len(&self) -> usize {
        self.lock().pools.len()
    }

    /// Leases the pool of a target.
    pub(super) fn lease(self: &Arc<Self>, key: &Key, proxy: &Arc<ProxyId>) -> Result<Leased, NotLeased> {
        let mut state = self.lock();
        if let Some(slot) = state.pools.lease(key)
            && let Some(leased) = self.leased(&mut state, slot, proxy)
        {
            return Ok(leased);
        }
        Err(if state.pools.is_full() { NotLeased::Full } else { NotLeased::Missing })
    }

    /// Leases the pool of a target, whose destination is the given one if it still has none.
    pub(super) fn insert(
        self: &Arc<Self>,
        key: Key,
        destination: Destination,
        proxy: &Arc<ProxyId>,
    ) -> Result<Leased, NotLeased> {
        let pool = Pool { destination, services: Vec::new() };
        let mut state = self.lock();
        let (slot, unused) = match state.pools.lease(&key) {
            // Another request was faster.
            Some(slot) => (Ok(slot), Some(pool)),
            None => match state.pools.insert(key, pool) {
                Ok((slot, removed)) => (Ok(slot), removed),
                Err(Full(pool)) => (Err(NotLeased::Full), Some(pool)),
            },
        };
        let leased = slot.and_then(|slot| self.leased(&mut state, slot, proxy).ok_or(NotLeased::Missing));
        drop(state);
        drop(unused);
        leased
    }

    /// Adds the service of a proxy around a leased pool, and returns it, or the one that another request has added.
    pub(super) fn add_service(&self, lease: &Lease, proxy: &Arc<ProxyId>, service: AnyService) -> AnyService {
        let mut state = self.lock();
        let Some(pool) = state.pools.get_mut(lease.slot) else { return service };
        if let Some(found) = pool.service(proxy) {
            drop(state);
            // Its own is dropped here.
            return found;
        }
        let unused;
        (pool.services, unused) =
            mem::take(&mut pool.services).into_iter().partition(|(proxy, _)| proxy.strong_count() > 0);
        pool.services.push((Arc::downgrade(proxy), service.clone()));
        drop(state);
        drop::<Vec<_>>(unused);
        service
    }

    fn leased(self: &Arc<Self>, state: &mut State, slot: Slot, proxy: &Arc<ProxyId>) -> Option<Leased> {
        let pool = state.pools.get_mut(slot)?;
        let found = pool.service(proxy).ok_or_else(|| pool.destination.clone());
        let lease = Lease { registry: self.clone(), slot };
        Some(match found {
            Ok(service) => Leased::Service(lease, service),
            Err(destination) => Leased::Pool(lease, destination),
        })
    }

    fn release(self: &Arc<Self>, slot: Slot) {
        let mut state = self.lock();
        let is_idle = state.pools.release(slot, Instant::now);
        let sweeper = match is_idle && self.options.idle.is_some() && state.sweeper.is_none() {
            true => {
                state.sweepers += 1;
                state.sweeper = Some(state.sweepers);
                state.sweeper
            }
            false => None,
        };
        drop(state);
        if let Some(number) = sweeper {
            // Without a runtime, it's dropped at once, and the next release starts one.
            let sweeper = Sweeper { registry: Arc::downgrade(self), dropped: self.dropped.clone(), number };
            if let Ok(runtime) = Handle::try_current() {
                drop(runtime.spawn(sweeper.run()));
            }
        }
    }

    /// Removes the pools that have been idle for long enough. Returns when the next one will have been.
    fn sweep(&self) -> Option<Instant> {
        let (idle, now) = (self.options.idle?, Instant::now());
        let mut removed = Vec::new();
        let mut state = self.lock();
        let due = loop {
            match state.pools.idle_since().map(|since| since + idle) {
                Some(due) if due <= now => removed.extend(state.pools.take_idle()),
                due => break due,
            }
        };
        if due.is_none() {
            state.sweeper = None;
        }
        drop(state);
        drop(removed);
        due
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.dropped.cancel();
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Pool {
    fn service(&self, proxy: &Arc<ProxyId>) -> Option<AnyService> {
        let is_its = |(of, _): &&(Weak<ProxyId>, _)| of.as_ptr() == Arc::as_ptr(proxy);
        self.services.iter().find(is_its).map(|(_, service)| service.clone())
    }
}

/// The right to use a pool. The pool isn't removed before it's dropped.
pub(super) struct Lease {
    registry: Arc<Registry>,
    slot: Slot,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.registry.release(self.slot);
    }
}

impl TunnelResource for Lease {}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// Removes idle pools for as long as there are any.
struct Sweeper {
    registry: Weak<Registry>,
    dropped: CancellationToken,
    number: u64,
}

impl Sweeper {
    async fn run(self) {
        while let Some(due) = self.registry.upgrade().and_then(|registry| registry.sweep()) {
            self.dropped.run_until_cancelled(sleep_until(due)).await;
        }
    }
}

impl Drop for Sweeper {
    /// Its runtime may have been shut down. Then the next release starts another one.
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            let mut state = registry.lock();
            state.sweeper = state.sweeper.filter(|&number| number != self.number);
        }
    }
}
