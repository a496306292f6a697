//! Prepares batches ahead on a few threads, in order.

use std::ops::ControlFlow;
use std::sync::mpsc::sync_channel;
use std::thread;

/// Computes every item on `threads` threads and passes the results to `take` in the items' order,
/// until it breaks.
///
/// Each thread works on every `threads`-th item and is at most two results ahead. Results therefore come in
/// order, the memory is bounded, and the number of threads affects only the speed.
pub fn in_order<I: Sync, R: Send, B>(
    items: &[I],
    threads: usize,
    make: impl Fn(&I) -> R + Sync,
    mut take: impl FnMut(R) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let threads = threads.clamp(1, items.len().max(1));
    thread::scope(|scope| {
        let makers: Vec<_> = (0..threads)
            .map(|first| {
                let (sender, receiver) = sync_channel(1);
                let make = &make;
                scope.spawn(move || {
                    for item in items.iter().skip(first).step_by(threads) {
                        if sender.send(make(item)).is_err() {
                            return;
                        }
                    }
                });
                receiver
            })
            .collect();
        for number in 0..items.len() {
            match makers[number % threads].recv() {
                Ok(result) => take(result)?,
                // The thread has panicked; the scope propagates the panic.
                Err(_) => break,
            }
        }
        ControlFlow::Continue(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_number_of_threads() {
        let items: Vec<u32> = (0..100).collect();
        for threads in [1, 3, 8, 1000] {
            let mut seen = Vec::new();
            let flow = in_order(
                &items,
                threads,
                |item| item * 2,
                |result| {
                    seen.push(result);
                    ControlFlow::<()>::Continue(())
                },
            );
            assert!(flow.is_continue());
            assert_eq!(seen, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_taker_that_breaks_ends_the_makers() {
        let items: Vec<u32> = (0..1_000_000).collect();
        let stop =
            |result: u32| if result == 5 { ControlFlow::Break(result) } else { ControlFlow::Continue(()) };
        assert_eq!(in_order(&items, 2, |item| *item, stop), ControlFlow::Break(5));
    }
}
