//! Copies bytes between two connections, in both directions at once.
//!
//! Each read goes into a buffer that all tunnels of a thread share, and is written from there at once. A direction has
//! memory of its own for what its writer hasn't taken, and reads no more before that is written. An idle tunnel holds
//! no buffer.

use std::{
    cell::Cell,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The size of a thread's buffer, in bytes.
const BUFFER: usize = 64 * 1024;

/// How many operations one direction performs before other tasks run.
///
/// An operation is a read with its write, or a write alone. Both directions together use no more than the budget of 128
/// that tokio gives to a task, so that the one that is polled second can progress, too.
const OPERATIONS: usize = 32;

/// A copy in both directions, until both sides have ended or one has failed.
///
/// The end of a side is passed on by a shutdown of the other one, and the other direction continues.
pub(super) struct BidirectionalCopy<C, B> {
    client: C,
    backend: B,
    up: Direction,
    down: Direction,
    /// The side that ended or failed first.
    ended: Option<Side>,
    /// Which direction is polled first. The two take turns, because a connection may use up the task's budget.
    is_down_first: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Side {
    Client,
    Backend,
}

impl<C, B> BidirectionalCopy<C, B>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    /// `leftover` has been read from the backend before.
    pub(super) fn new(client: C, backend: B, leftover: Bytes) -> Self {
        let up = Direction::new(Side::Client, Side::Backend, Bytes::new());
        let down = Direction::new(Side::Backend, Side::Client, leftover);
        Self { client, backend, up, down, ended: None, is_down_first: false }
    }

    /// Returns the number of bytes from the client.
    pub(super) fn up(&self) -> u64 {
        self.up.bytes
    }

    /// Returns the number of bytes from the backend.
    pub(super) fn down(&self) -> u64 {
        self.down.bytes
    }

    /// Returns the side that ended or failed first.
    pub(super) fn ended(&self) -> Option<Side> {
        self.ended
    }

    /// Ready when both sides have ended.
    ///
    /// # Errors
    ///
    /// The first error of a side. Bytes that have been read may be lost then.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_down_first = !self.is_down_first;
        with_buffer(|buffer| {
            let mut is_done = true;
            for is_down in [self.is_down_first, !self.is_down_first] {
                let outcome = if is_down {
                    self.down.poll(cx, &mut self.backend, &mut self.client, buffer, &mut self.ended)
                } else {
                    self.up.poll(cx, &mut self.client, &mut self.backend, buffer, &mut self.ended)
                };
                is_done &= outcome?.is_ready();
            }
            if is_done { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
    }
}

/// The copy of one direction.
struct Direction {
    from: Side,
    to: Side,
    /// The bytes that have been read and not yet written.
    unwritten: Bytes,
    /// The number of bytes that have been read.
    bytes: u64,
    state: State,
    /// Whether bytes have been written since the last flush.
    needs_flush: bool,
}

#[derive(Clone, Copy)]
enum State {
    Copying,
    /// The reader has ended, and the writer is flushed.
    Flushing,
    ShuttingDown,
    Done,
}

impl Direction {
    fn new(from: Side, to: Side, unwritten: Bytes) -> Self {
        let bytes = unwritten.len() as u64;
        Self { from, to, unwritten, bytes, state: State::Copying, needs_flush: false }
    }

    /// Copies until an operation is pending.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        buffer: &mut [MaybeUninit<u8>],
        ended: &mut Option<Side>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let (mut reader, mut writer) = (Pin::new(reader), Pin::new(writer));
        for _ in 0..OPERATIONS {
            if !self.unwritten.is_empty() {
                let written = self.written(ready!(writer.as_mut().poll_write(cx, &self.unwritten)), ended)?;
                self.unwritten.advance(written.min(self.unwritten.len()));
                if self.unwritten.is_empty() {
                    // Frees the memory.
                    self.unwritten = Bytes::new();
                }
                continue;
            }
            match self.state {
                State::Copying => {
                    let mut read = ReadBuf::uninit(buffer);
                    let Poll::Ready(outcome) = reader.as_mut().poll_read(cx, &mut read) else {
                        if self.needs_flush {
                            // The reader may wait for a response to what the writer holds back.
                            self.failed_by(self.to, ready!(writer.poll_flush(cx)), ended)?;
                            self.needs_flush = false;
                        }
                        return Poll::Pending;
                    };
                    match outcome {
                        Ok(()) if read.filled().is_empty() => {
                            ended.get_or_insert(self.from);
                            self.state = State::Flushing;
                        }
                        Ok(()) => self.write(cx, read.filled(), writer.as_mut(), ended)?,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => self.failed_by(self.from, Err(error), ended)?,
                    }
                }
                State::Flushing => {
                    self.failed_by(self.to, ready!(writer.as_mut().poll_flush(cx)), ended)?;
                    self.state = State::ShuttingDown;
                }
                State::ShuttingDown => {
                    self.failed_by(self.to, ready!(writer.as_mut().poll_shutdown(cx)), ended)?;
                    self.state = State::Done;
                }
                State::Done => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what has been read, and keeps what the writer doesn't take.
    fn write<W>(
        &mut self,
        cx: &mut Context<'_>,
        read: &[u8],
        writer: Pin<&mut W>,
        ended: &mut Option<Side>,
    ) -> io::Result<()>
    where
        W: AsyncWrite,
    {
        self.bytes += read.len() as u64;
        let written = match writer.poll_write(cx, read) {
            Poll::Ready(outcome) => self.written(outcome, ended)?,
            Poll::Pending => 0,
        };
        if let Some(rest @ [_, ..]) = read.get(written..) {
            self.unwritten = Bytes::copy_from_slice(rest);
        }
        Ok(())
    }

    /// Returns how many bytes a write has taken: none if it was interrupted.
    fn written(&mut self, outcome: io::Result<usize>, ended: &mut Option<Side>) -> io::Result<usize> {
        match outcome {
            Ok(0) => self.failed_by(self.to, Err(io::ErrorKind::WriteZero.into()), ended).map(|()| 0),
            Ok(written) => {
                self.needs_flush = true;
                Ok(written)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => self.failed_by(self.to, Err(error), ended).map(|()| 0),
        }
    }

    /// Records a failure of a side.
    fn failed_by(&self, side: Side, outcome: io::Result<()>, ended: &mut Option<Side>) -> io::Result<()> {
        if outcome.is_err() {
            ended.get_or_insert(side);
        }
        outcome
    }
}

thread_local! {
    static SHARED: Cell<Option<Box<[MaybeUninit<u8>]>>> = const { Cell::new(None) };
}

/// Calls `f` with the thread's buffer.
///
/// The buffer is taken out for that time, because a connection of the application may run any code, such as another
/// tunnel on this thread, which allocates a second buffer.
fn with_buffer<T>(f: impl FnOnce(&mut [MaybeUninit<u8>]) -> T) -> T {
    let shared = SHARED.try_with(Cell::take).ok().flatten();
    let mut buffer = shared.unwrap_or_else(|| Box::new_uninit_slice(BUFFER));
    let value = f(&mut buffer);
    let _ = SHARED.try_with(|shared| shared.set(Some(buffer)));
    value
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        future::poll_fn,
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Wake, Waker},
        time::Duration,
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
        task::JoinHandle,
        time::timeout,
    };

    use super::*;

    /// A connection whose operations have the results that a test sets, in order. Without a result they are pending.
    #[derive(Default)]
    struct Script {
        reads: VecDeque<io::Result<&'static str>>,
        /// How many bytes each write takes at most.
        writes: VecDeque<io::Result<usize>>,
        flushes: VecDeque<io::Result<()>>,
        shutdowns: VecDeque<io::Result<()>>,
        /// The bytes that were written, and the other operations in brackets.
        log: Vec<u8>,
    }

    impl Script {
        fn reading(reads: impl IntoIterator<Item = io::Result<&'static str>>) -> Self {
            Self { reads: reads.into_iter().collect(), ..Self::default() }
        }

        fn writing(writes: impl IntoIterator<Item = io::Result<usize>>) -> Self {
            Self { writes: writes.into_iter().collect(), ..Self::default() }
        }

        fn log(&mut self) -> String {
            String::from_utf8(std::mem::take(&mut self.log)).unwrap()
        }
    }

    fn next<T>(results: &mut VecDeque<io::Result<T>>) -> Poll<io::Result<T>> {
        results.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    impl AsyncRead for Script {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.log.extend(b"<read>");
            next(&mut self.reads).map_ok(|text| buf.put_slice(text.as_bytes()))
        }
    }

    impl AsyncWrite for Script {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let written = ready!(next(&mut self.writes))?.min(buf.len());
            self.log.extend(&buf[..written]);
            Poll::Ready(Ok(written))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.log.extend(b"<flush>");
            next(&mut self.flushes)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.log.extend(b"<shutdown>");
            next(&mut self.shutdowns)
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn copy(client: Script, backend: Script) -> BidirectionalCopy<Script, Script> {
        BidirectionalCopy::new(client, backend, Bytes::new())
    }

    /// Polls once, and returns how often the task was woken in it, too.
    fn poll(copy: &mut BidirectionalCopy<Script, Script>) -> (Poll<Result<(), io::ErrorKind>>, usize) {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let outcome = copy.poll(&mut Context::from_waker(&waker));
        (outcome.map_err(|error| error.kind()), wakes.0.load(Ordering::SeqCst))
    }

    const PENDING: (Poll<Result<(), io::ErrorKind>>, usize) = (Poll::Pending, 0);
    const DONE: (Poll<Result<(), io::ErrorKind>>, usize) = (Poll::Ready(Ok(())), 0);
    const ALL: usize = usize::MAX;

    fn failed(kind: io::ErrorKind) -> (Poll<Result<(), io::ErrorKind>>, usize) {
        (Poll::Ready(Err(kind)), 0)
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(20), future).await.expect("it ends")
    }

    #[test]
    fn a_message_is_one_read_and_one_write_and_is_flushed_when_no_more_is_there() {
        let mut copy = copy(Script::reading([Ok("one"), Ok("two")]), Script::writing([Ok(ALL), Ok(ALL)]));
        copy.backend.flushes.push_back(Ok(()));
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!(copy.client.log(), "<read><read><read>");
        assert_eq!(copy.backend.log(), "<read>onetwo<flush>");
        // Nothing is flushed twice.
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!((copy.client.log(), copy.backend.log()), ("<read>".into(), "<read>".into()));
        assert_eq!((copy.up(), copy.down(), copy.ended()), (6, 0, None));
    }

    #[test]
    fn nothing_is_read_before_the_last_read_is_written() {
        let mut copy = copy(Script::reading([Ok("abcdef"), Ok("g")]), Script::writing([Ok(1)]));
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!((copy.client.log(), copy.backend.log()), ("<read>".into(), "<read>a".into()));
        assert_eq!(&*copy.up.unwritten, b"bcdef");
        copy.backend.writes.extend([Ok(2), Err(io::ErrorKind::Interrupted.into()), Ok(1)]);
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!((copy.client.log(), copy.backend.log()), (String::new(), "bcd<read>".into()));
        copy.backend.writes.extend([Ok(ALL), Ok(ALL)]);
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!((copy.client.log(), copy.backend.log()), ("<read><read>".into(), "<read>efg<flush>".into()));
    }

    #[test]
    fn the_end_of_a_side_is_passed_on_after_its_bytes_and_the_other_direction_continues() {
        let mut copy = copy(Script::reading([Ok("last"), Ok("")]), Script::writing([Ok(1)]));
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!((copy.backend.log(), copy.ended()), ("<read>l".into(), None));
        copy.backend.writes.push_back(Ok(ALL));
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!((copy.backend.log(), copy.ended()), ("ast<flush><read>".into(), Some(Side::Client)));
        copy.backend.flushes.push_back(Ok(()));
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!(copy.backend.log(), "<read><flush><shutdown>");
        copy.backend.shutdowns.push_back(Ok(()));
        copy.backend.reads.extend([Ok("reply"), Ok("")]);
        copy.client.writes.push_back(Ok(ALL));
        copy.client.flushes.push_back(Ok(()));
        copy.client.log.clear();
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!(
            (copy.client.log(), copy.backend.log()),
            ("reply<flush><shutdown>".into(), "<shutdown><read><read>".into())
        );
        copy.client.shutdowns.push_back(Ok(()));
        assert_eq!(poll(&mut copy), DONE);
        // Neither side is shut down twice.
        assert_eq!((copy.client.log(), copy.backend.log()), ("<shutdown>".into(), String::new()));
        assert_eq!((copy.up(), copy.down(), copy.ended()), (4, 5, Some(Side::Client)));
    }

    #[test]
    fn the_side_that_fails_first_is_the_one_that_ended() {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, WriteZero};
        // A write in the midst of a message.
        let mut tunnel = copy(Script::reading([Ok("abc")]), Script::writing([Ok(1), Err(BrokenPipe.into())]));
        assert_eq!((poll(&mut tunnel), tunnel.ended()), (failed(BrokenPipe), Some(Side::Backend)));
        let mut tunnel = copy(Script::default(), Script::reading([Err(ConnectionReset.into())]));
        assert_eq!((poll(&mut tunnel), tunnel.ended()), (failed(ConnectionReset), Some(Side::Backend)));
        let mut tunnel = copy(Script::reading([Ok("abc")]), Script::writing([Ok(0)]));
        assert_eq!((poll(&mut tunnel), tunnel.ended()), (failed(WriteZero), Some(Side::Backend)));
        let mut tunnel = copy(Script::reading([Ok("abc")]), Script::writing([Ok(ALL)]));
        tunnel.backend.flushes.push_back(Err(TimedOut.into()));
        assert_eq!((poll(&mut tunnel), tunnel.ended()), (failed(TimedOut), Some(Side::Backend)));
        let mut tunnel = copy(Script::reading([Ok("")]), Script::default());
        tunnel.backend.flushes.push_back(Ok(()));
        tunnel.backend.shutdowns.push_back(Err(TimedOut.into()));
        assert_eq!((poll(&mut tunnel), tunnel.ended()), (failed(TimedOut), Some(Side::Client)));
        // The client's end comes before the backend's failure.
        let mut tunnel = copy(Script::reading([Ok("")]), Script::default());
        assert_eq!((poll(&mut tunnel), tunnel.ended()), (PENDING, Some(Side::Client)));
        tunnel.backend.reads.push_back(Err(ConnectionReset.into()));
        assert_eq!((poll(&mut tunnel), tunnel.ended()), (failed(ConnectionReset), Some(Side::Client)));
    }

    #[test]
    fn an_interrupted_operation_is_repeated() {
        let interrupted = || io::ErrorKind::Interrupted.into();
        let mut copy = copy(
            Script::reading([Err(interrupted()), Ok("abc")]),
            Script::writing([Err(interrupted()), Ok(2), Err(interrupted()), Ok(ALL)]),
        );
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!((copy.backend.log(), copy.ended()), ("<read>abc<flush>".into(), None));
    }

    #[test]
    fn a_direction_that_is_always_ready_stops_for_other_tasks_and_for_the_other_direction() {
        let endless = || Script {
            reads: std::iter::repeat_with(|| Ok("x")).take(1000).collect(),
            writes: std::iter::repeat_with(|| Ok(ALL)).take(1000).collect(),
            ..Script::default()
        };
        let mut copy = copy(endless(), endless());
        let (outcome, wakes) = poll(&mut copy);
        // It has to be polled again, because it stopped by itself.
        assert_eq!((outcome, wakes), (Poll::Pending, 2));
        assert_eq!((copy.up(), copy.down()), (OPERATIONS as u64, OPERATIONS as u64));
    }

    #[test]
    fn the_directions_take_turns_in_being_first() {
        let mut copy = copy(Script::default(), Script::default());
        // The direction that is polled first ends the copy.
        let mut firsts = Vec::new();
        for _ in 0..4 {
            copy.ended = None;
            copy.client.reads = [Err(io::ErrorKind::TimedOut.into())].into();
            copy.backend.reads = [Err(io::ErrorKind::TimedOut.into())].into();
            assert_eq!(poll(&mut copy), failed(io::ErrorKind::TimedOut));
            firsts.push(copy.ended().unwrap());
        }
        assert_eq!(firsts, [Side::Backend, Side::Client, Side::Backend, Side::Client]);
    }

    #[test]
    fn what_was_read_before_the_copy_comes_first_and_is_freed_when_it_is_written() {
        let memory = Arc::new(*b"first ");
        let leftover = Bytes::from_owner(Shared(memory.clone()));
        let mut copy = BidirectionalCopy::new(Script::writing([Ok(4)]), Script::default(), leftover);
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!((copy.client.log(), Arc::strong_count(&memory)), ("firs<read>".into(), 2));
        copy.client.writes.push_back(Ok(ALL));
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!((copy.client.log(), Arc::strong_count(&memory)), ("<read>t <flush>".into(), 1));
        copy.backend.reads.push_back(Ok("second"));
        copy.client.writes.push_back(Ok(ALL));
        assert_eq!(poll(&mut copy), PENDING);
        assert_eq!((copy.client.log(), copy.down()), ("second<flush><read>".into(), 12));
    }

    struct Shared(Arc<[u8; 6]>);

    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            &*self.0
        }
    }

    /// The bytes up and down, and the side that ended first.
    type Copied = (u64, u64, Option<Side>);

    /// Runs a copy between two pipes in memory, and returns their ends.
    fn piped(size: usize) -> (DuplexStream, DuplexStream, JoinHandle<Copied>) {
        let ((client, theirs), (ours, backend)) = (duplex(size), duplex(size));
        let mut copy = BidirectionalCopy::new(theirs, ours, Bytes::new());
        let task = tokio::spawn(async move {
            poll_fn(|cx| copy.poll(cx)).await.unwrap();
            assert_eq!((copy.up.unwritten.len(), copy.down.unwritten.len()), (0, 0));
            (copy.up(), copy.down(), copy.ended())
        });
        (client, backend, task)
    }

    #[tokio::test]
    async fn both_directions_are_copied_at_once_to_slow_readers() {
        const SIZE: usize = 300_000;
        async fn exchange(stream: DuplexStream, factor: usize) -> Vec<u8> {
            let (mut read, mut write) = split(stream);
            let data: Vec<u8> = (0..SIZE).map(|i| (i * factor % 251) as u8).collect();
            let send = async {
                write.write_all(&data).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let receive = async {
                let (mut got, mut piece) = (Vec::new(), [0; 97]);
                loop {
                    let size = read.read(&mut piece).await.unwrap();
                    if size == 0 {
                        return got;
                    }
                    got.extend(&piece[..size]);
                    // Other tasks run, so that the copy fills the pipe before each read.
                    tokio::task::yield_now().await;
                }
            };
            tokio::join!(send, receive).1
        }
        let (client, backend, task) = piped(1000);
        let (down, up) = within(async { tokio::join!(exchange(client, 7), exchange(backend, 11)) }).await;
        let expected = |factor: usize| (0..SIZE).map(|i| (i * factor % 251) as u8).collect::<Vec<_>>();
        assert!(up == expected(7) && down == expected(11));
        let (up, down, _) = within(task).await.unwrap();
        assert_eq!((up, down), (SIZE as u64, SIZE as u64));
    }

    #[tokio::test]
    async fn ten_thousand_small_messages_arrive() {
        let (mut client, mut backend, task) = piped(1024);
        for number in 0..10_000_u32 {
            within(client.write_u32(number)).await.unwrap();
            assert_eq!(within(backend.read_u32()).await.unwrap(), number);
            within(backend.write_u32(!number)).await.unwrap();
            assert_eq!(within(client.read_u32()).await.unwrap(), !number);
        }
        drop((client, backend));
        let (up, down, _) = within(task).await.unwrap();
        assert_eq!((up, down), (40_000, 40_000));
    }

    #[tokio::test]
    async fn either_side_may_end_first() {
        for first in [Side::Client, Side::Backend] {
            let (client, backend, task) = piped(1024);
            let (mut ending, mut other) = if first == Side::Client { (client, backend) } else { (backend, client) };
            ending.write_all(b"last").await.unwrap();
            ending.shutdown().await.unwrap();
            let mut got = Vec::new();
            within(other.read_to_end(&mut got)).await.unwrap();
            assert_eq!(got, b"last");
            other.write_all(b"reply").await.unwrap();
            other.shutdown().await.unwrap();
            got.clear();
            within(ending.read_to_end(&mut got)).await.unwrap();
            assert_eq!((got, within(task).await.unwrap().2), (b"reply".to_vec(), Some(first)));
        }
    }

    /// A connection that drives another copy on the same thread at each write.
    struct Nested {
        inner: BidirectionalCopy<DuplexStream, DuplexStream>,
        written: Vec<u8>,
    }

    impl AsyncRead for Nested {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Nested {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            assert!(self.inner.poll(cx).is_pending());
            self.written.extend(buf);
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_copy_within_a_write_of_another_one_has_a_buffer_of_its_own() {
        let ((mut client, theirs), (ours, mut backend)) = (duplex(1024), duplex(1024));
        client.write_all(b"inner").await.unwrap();
        let nested = Nested { inner: BidirectionalCopy::new(theirs, ours, Bytes::new()), written: Vec::new() };
        let mut copy = BidirectionalCopy::new(Script::reading([Ok("outer")]), nested, Bytes::new());
        let mut once = pin!(poll_fn(|cx| Poll::Ready(copy.poll(cx).is_pending())));
        assert!(within(&mut once).await);
        let mut got = [0; 5];
        within(backend.read_exact(&mut got)).await.unwrap();
        assert_eq!((&got, &*copy.backend.written), (b"inner", &b"outer"[..]));
    }
}
