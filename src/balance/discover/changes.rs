//! tower's `Discover` as a source of members.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tower::discover::{Change, Discover};

use crate::balance::Member;

pin_project! {
    /// The members that a [`Discover`] has inserted and not removed: a source for
    /// [`Backends::follow`](crate::Backends::follow).
    ///
    /// A `Discover` is a stream of [`Change`]s, as tower's own balancer takes it. Its keys are its own; the members are
    /// compared by their origins and addresses.
    ///
    /// ```
    /// use std::convert::Infallible;
    ///
    /// use tower::discover::Change;
    /// use tower_reverse_proxy::{Backends, balance::{Member, discover::Changes}};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let backends = Backends::new(["http://10.0.0.1:8000"]);
    /// let changes = futures_util::stream::iter([
    ///     Ok::<_, Infallible>(Change::Insert("a", Member::new("http://10.0.0.2:8000"))),
    ///     Ok(Change::Insert("b", Member::new("http://10.0.0.3:8000"))),
    ///     Ok(Change::Remove("a")),
    /// ]);
    /// let _follow = backends.follow(Changes::new(changes));
    /// # tokio::task::yield_now().await;
    /// assert_eq!(backends.status()[0].backend(), "http://10.0.0.3:8000");
    /// # }
    /// ```
    pub struct Changes<D: Discover> {
        #[pin]
        discover: D,
        members: HashMap<D::Key, Inserted>,
        inserted: u64,
        // Whether the members differ from those of the last set that was yielded.
        has_changed: bool,
        has_ended: bool,
    }
}

/// A member, and its place in the order of the insertions.
struct Inserted {
    number: u64,
    member: Member,
}

impl<D: Discover> Changes<D> {
    /// Follows the changes of a `Discover`, whose services are members, or what becomes one, such as a URL.
    ///
    /// ```
    /// use std::convert::Infallible;
    ///
    /// use tower::discover::Change;
    /// use tower_reverse_proxy::balance::discover::Changes;
    ///
    /// let changes = futures_util::stream::iter([Ok::<_, Infallible>(Change::Insert(1, "http://10.0.0.2:8000"))]);
    /// let source = Changes::new(changes);
    /// # let _ = source;
    /// ```
    pub fn new(discover: D) -> Self {
        Self { discover, members: HashMap::new(), inserted: 0, has_changed: false, has_ended: false }
    }
}

impl<D> Stream for Changes<D>
where
    D: Discover<Key: Hash, Service: Into<Member>>,
{
    type Item = Result<Vec<Member>, D::Error>;

    /// Yields one set for all changes that are there.
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        /// How many changes one set contains at most, so that an endless row of them is followed, too.
        const MOST: usize = 10_000;
        let mut this = self.project();
        for _ in 0..MOST {
            if *this.has_ended {
                break;
            }
            match this.discover.as_mut().poll_discover(cx) {
                Poll::Ready(Some(Ok(Change::Insert(key, member)))) => {
                    let inserted = Inserted { number: *this.inserted, member: member.into() };
                    *this.inserted += 1;
                    this.members.insert(key, inserted);
                    *this.has_changed = true;
                }
                Poll::Ready(Some(Ok(Change::Remove(key)))) => *this.has_changed |= this.members.remove(&key).is_some(),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => *this.has_ended = true,
                Poll::Pending if *this.has_changed => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        if !*this.has_changed {
            if *this.has_ended {
                return Poll::Ready(None);
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        *this.has_changed = false;
        let mut members: Vec<_> = this.members.values().collect();
        members.sort_unstable_by_key(|inserted| inserted.number);
        Poll::Ready(Some(Ok(members.into_iter().map(|inserted| inserted.member.clone()).collect())))
    }
}

impl<D: Discover> fmt::Debug for Changes<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("members", &self.members.len()).finish_non_exhaustive()
    }
}
