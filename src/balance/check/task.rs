//! The task that checks the members of a set.

use std::{
    collections::{HashMap, HashSet},
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use super::super::{member::MemberState, set::Shared};
use crate::tried::MemberId;

/// The interval of a member whose state may be about to change.
const UNDECIDED: Duration = Duration::from_secs(1);

/// Whether a task checks the members, and what wakes it.
///
/// The task ends with its runtime, and the next request starts another one on its own.
#[derive(Debug, Default)]
pub(in super::super) struct CheckTask {
    is_running: Arc<AtomicBool>,
    set_changed: Arc<Notify>,
}

impl CheckTask {
    /// Starts the task, unless it's running, or there is no runtime.
    pub(in super::super) fn ensure(&self, shared: &Arc<Shared>) {
        if self.is_running.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_running.swap(true, Ordering::Relaxed) {
            return;
        }
        let running = Running(self.is_running.clone());
        let (shared, set_changed) = (Arc::downgrade(shared), self.set_changed.clone());
        drop(runtime.spawn(async move {
            let _running = running;
            supervise(shared, &set_changed).await;
        }));
    }

    /// Lets the task check new members, and no removed ones.
    pub(in super::super) fn set_changed(&self) {
        self.set_changed.notify_one();
    }
}

impl Drop for CheckTask {
    fn drop(&mut self) {
        // The set is gone, which ends the task.
        self.set_changed.notify_one();
    }
}

struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Checks each member of a set in a task of its own, for as long as it's a member.
async fn supervise(shared: Weak<Shared>, set_changed: &Notify) {
    let mut tasks = JoinSet::new();
    let mut checked = HashMap::<MemberId, AbortHandle>::new();
    let mut has_panicked = false;
    loop {
        let Some(set) = shared.upgrade() else { return };
        let members = set.members();
        drop(set);
        let ids: HashSet<MemberId> = members.iter().map(|member| member.id).collect();
        checked.retain(|id, task| {
            let is_member = ids.contains(id);
            if !is_member {
                task.abort();
            }
            is_member && !(has_panicked && task.is_finished())
        });
        for (at, member) in members.iter().enumerate() {
            checked.entry(member.id).or_insert_with(|| {
                // The first checks spread over the interval. One after a panic waits, because it may panic again.
                let share = if has_panicked { 1.0 } else { at as f64 / members.len() as f64 };
                tasks.spawn(check(shared.clone(), member.clone(), share))
            });
        }
        drop(members);
        has_panicked = changed(set_changed, &mut tasks).await;
    }
}

/// Waits until the set has changed, or until the check of a member has panicked: in a function of the application, such as
/// its connector. Returns whether it was a panic.
async fn changed(set_changed: &Notify, checks: &mut JoinSet<()>) -> bool {
    let mut set_changed = pin!(set_changed.notified());
    poll_fn(|cx| {
        while let Poll::Ready(Some(ended)) = checks.poll_join_next(cx) {
            if ended.is_err_and(|error| error.is_panic()) {
                return Poll::Ready(true);
            }
        }
        set_changed.as_mut().poll(cx).map(|()| false)
    })
    .await
}

/// Checks a member. `share`: which part of the first interval passes before the first check.
async fn check(shared: Weak<Shared>, member: Arc<MemberState>, share: f64) {
    let first = |shared: &Shared| Some(shared.options.health.check.as_ref()?.interval.min(UNDECIDED).mul_f64(share));
    let Some(pause) = shared.upgrade().and_then(|shared| first(&shared)) else { return };
    sleep(pause).await;
    loop {
        let Some(set) = shared.upgrade() else { return };
        let (Some(check), Some(client)) = (set.options.health.check.clone(), member.watch.checker.clone()) else {
            return;
        };
        drop(set);
        let checked = check.run(client).await;
        let Some(set) = shared.upgrade() else { return };
        if let Some(checked) = checked {
            set.checked(&member, checked);
        }
        let interval = if member.is_undecided() { check.interval.min(UNDECIDED) } else { check.interval };
        let pause = interval.mul_f64(0.2f64.mul_add(set.random.fraction(), 0.9));
        drop(set);
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, time::timeout};
    use tracing::{Event, Level, Metadata, Subscriber, span};

    use crate::balance::{Backends, Check};

    use super::*;

    /// Panics at the first event of a member that is out.
    struct Panicking(AtomicBool);

    impl Subscriber for Panicking {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= Level::WARN
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, _: &Event<'_>) {
            assert!(self.0.swap(true, Ordering::Relaxed), "the application's subscriber panics");
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[tokio::test]
    async fn a_member_is_checked_again_after_a_panic() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let _subscriber = tracing::subscriber::set_default(Panicking(AtomicBool::new(false)));
        let check = Check::get("/healthz").interval(Duration::from_millis(10)).timeout(Duration::from_secs(2));
        let _backends = Backends::builder([origin]).check(check).build().unwrap();
        // The third failure is an event.
        for number in 1..=8 {
            let accepted = timeout(Duration::from_secs(5), listener.accept()).await;
            drop(accepted.unwrap_or_else(|_| panic!("there is no check number {number}")).unwrap());
        }
    }
}
