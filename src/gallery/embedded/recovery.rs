//! Lets a gallery that a full disk made read-only check for room, and accept writes again once there is some.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::writer::Writer;

const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// After accepting writes for this long, the wait starts again at its minimum.
const SETTLED: Duration = Duration::from_secs(300);

/// When a writer checks for room again: at growing intervals, while there is none or not enough.
#[derive(Debug)]
pub struct Recovery {
    wait: Duration,
    last: Option<Instant>,
}

/// The outcome of receiving from a queue.
#[derive(Debug)]
pub enum Received<T> {
    Item(T),
    /// Nothing arrived in time.
    Nothing,
    /// The queue is closed.
    End,
}

impl Default for Recovery {
    fn default() -> Self {
        Self { wait: WAIT_MIN, last: None }
    }
}

impl Recovery {
    /// How long to wait for the next attempt.
    pub fn wait(&mut self) -> Duration {
        if self.last.is_some_and(|last| last.elapsed() > SETTLED + self.wait) {
            self.wait = WAIT_MIN;
        }
        self.wait
    }

    /// Makes the writer check for room; `None` where the queue was closed before its files could be opened again.
    pub fn attempt<T>(&mut self, writer: Writer, queue: &mut mpsc::Receiver<T>) -> Option<Writer> {
        self.later();
        let mut recovered = writer.recover();
        loop {
            match recovered {
                Ok(writer) => return Some(writer),
                Err(shut) => match receive(queue, Some(self.wait)) {
                    Received::End => return None,
                    // Dropping the item drops the sender of its answer, which reports that the gallery does not accept
                    // writes.
                    Received::Item(_) => recovered = Err(shut),
                    Received::Nothing => {
                        self.later();
                        recovered = shut.open();
                    }
                },
            }
        }
    }

    fn later(&mut self) {
        self.wait = (self.wait * 2).min(WAIT_MAX);
        self.last = Some(Instant::now());
    }
}

/// Receives the next item of a queue, on a thread that may block; `wait` limits the time.
pub fn receive<T>(queue: &mut mpsc::Receiver<T>, wait: Option<Duration>) -> Received<T> {
    let Some(wait) = wait else { return queue.blocking_recv().map_or(Received::End, Received::Item) };
    let until = Instant::now() + wait;
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let context = &mut Context::from_waker(&waker);
    loop {
        if let Poll::Ready(received) = queue.poll_recv(context) {
            return received.map_or(Received::End, Received::Item);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Received::Nothing;
        }
        thread::park_timeout(left);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_ends_the_wait_and_so_does_the_end_of_the_queue() {
        let (sender, mut queue) = mpsc::channel(1);
        assert!(matches!(receive(&mut queue, Some(Duration::ZERO)), Received::<u8>::Nothing));
        let sending = thread::spawn(move || sender.blocking_send(7));
        assert!(matches!(receive(&mut queue, Some(WAIT_MAX)), Received::Item(7)));
        sending.join().expect("no panic").expect("it was taken");
        assert!(matches!(receive(&mut queue, Some(WAIT_MAX)), Received::End));
    }

    #[test]
    fn attempts_come_ever_later() {
        let mut recovery = Recovery::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            waits.push(recovery.wait().as_secs());
            recovery.later();
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
