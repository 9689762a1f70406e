//! Keeps a connection from waking the very task that is driving it.
//!
//! hyper's connection and the two ends that its user holds (the response, the body) wake each other, as they're made to live
//! in different tasks. Here they live in one, and each such wake would cost a useless poll of that task and the attention of
//! another worker. Wakes that come from the thread that drives the connection, while it does so, are noted instead: the
//! driver looks for the note when it's through, and goes round again. All other wakes pass.

use std::{
    cell::Cell,
    ptr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

thread_local! {
    /// The gate whose connection this thread drives now.
    static INSIDE: Cell<*const Gate> = const { Cell::new(ptr::null()) };
}

/// The waker that a connection gets in place of its task's.
#[derive(Debug)]
pub(super) struct Gate {
    task: Mutex<Waker>,
    /// Whether a wake came from inside.
    noted: AtomicBool,
}

/// How often the driver goes round before it lets others run.
const ROUNDS: usize = 32;

impl Gate {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { task: Mutex::new(Waker::noop().clone()), noted: AtomicBool::new(false) })
    }

    /// Drives what's behind the gate until it has nothing more to do by itself. `waker` is the gate's.
    pub(super) fn poll<T>(
        self: &Arc<Self>,
        waker: &Waker,
        cx: &mut Context<'_>,
        mut drive: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        {
            let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            if !task.will_wake(cx.waker()) {
                task.clone_from(cx.waker());
            }
        }
        let mut inner = Context::from_waker(waker);
        for _ in 0..ROUNDS {
            // A note from before is of what is polled now.
            self.noted.store(false, Ordering::Relaxed);
            let outcome = {
                let _inside = Inside::enter(self);
                drive(&mut inner)
            };
            if outcome.is_ready() {
                return outcome;
            }
            // It was made on this thread, if at all.
            if !self.noted.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Gate {
    /// Keeps back the wakes that `act` makes.
    pub(super) fn hush(self: &Arc<Self>, act: impl FnOnce()) {
        let _inside = Inside::enter(self);
        act();
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if INSIDE.get() == Arc::as_ptr(self) {
            self.noted.store(true, Ordering::Relaxed);
        } else {
            // Not under the lock: a waker may do anything.
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).clone();
            task.wake();
        }
    }
}

/// While it lives, this thread is inside of a gate. Gates may be entered within each other.
struct Inside {
    outer: *const Gate,
}

impl Inside {
    fn enter(gate: &Arc<Gate>) -> Self {
        Self { outer: INSIDE.replace(Arc::as_ptr(gate)) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.outer);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, thread};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_during_a_poll_causes_another_poll() {
        let count = Arc::new(Count::default());
        let (gate, task) = (Gate::new(), Waker::from(count.clone()));
        let waker = Waker::from(gate.clone());
        let mut rounds = 0;
        let outcome = gate.poll(&waker, &mut Context::from_waker(&task), |cx| {
            rounds += 1;
            if rounds < 3 {
                cx.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        });
        assert!(outcome.is_pending());
        assert_eq!((rounds, count.0.load(Ordering::SeqCst)), (3, 0));
    }

    #[test]
    fn a_wake_from_outside_is_passed_on() {
        let count = Arc::new(Count::default());
        let (gate, task) = (Gate::new(), Waker::from(count.clone()));
        let waker = Waker::from(gate.clone());
        let outcome = gate.poll(&waker, &mut Context::from_waker(&task), |cx| {
            let waker = cx.waker().clone();
            thread::spawn(move || waker.wake()).join().unwrap();
            Poll::<()>::Pending
        });
        assert!(outcome.is_pending());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        waker.wake_by_ref();
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn nested_gates_are_distinguished() {
        let counts = [(); 2].map(|()| Arc::new(Count::default()));
        let ([outer, inner], [outer_task, inner_task]) =
            ([(); 2].map(|()| Gate::new()), counts.clone().map(Waker::from));
        let (waker, inner_waker) = (Waker::from(outer.clone()), Waker::from(inner.clone()));
        let mut rounds = 0;
        let outcome = outer.poll(&waker, &mut Context::from_waker(&outer_task), |cx| {
            rounds += 1;
            let within = inner.poll(&inner_waker, &mut Context::from_waker(&inner_task), |_| {
                if rounds == 1 {
                    // Of the other half, whose holder may be another task.
                    waker.wake_by_ref();
                }
                Poll::<()>::Pending
            });
            assert!(within.is_pending());
            inner_waker.wake_by_ref();
            if rounds == 1 {
                // Back in it.
                cx.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        });
        assert!(outcome.is_pending());
        assert_eq!(rounds, 2);
        assert_eq!(counts.map(|count| count.0.load(Ordering::SeqCst)), [1, 2]);
    }

    #[test]
    fn a_future_that_always_wakes_itself_yields() {
        let count = Arc::new(Count::default());
        let (gate, task) = (Gate::new(), Waker::from(count.clone()));
        let waker = Waker::from(gate.clone());
        let outcome = gate.poll(&waker, &mut Context::from_waker(&task), |cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert!(outcome.is_pending());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }
}
