//! The next connection of a port, at the pace that the system allows.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

/// The first pause after an accept that failed, and the longest.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Between two lines of the log about it.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What went wrong lately with accepting connections.
#[derive(Debug, Default)]
pub struct Troubles {
    in_a_row: u32,
    told: Option<Instant>,
    untold: u64,
}

impl Troubles {
    /// What `accept` gives, after as many pauses as it fails: each is twice as long as the one before.
    pub async fn accepted<T, A>(&mut self, mut accept: impl FnMut() -> A) -> T
    where
        A: Future<Output = io::Result<T>>,
    {
        loop {
            match accept().await {
                Ok(accepted) => {
                    self.in_a_row = 0;
                    return accepted;
                }
                // The peer has left already: the next one may not have.
                Err(cause) if is_of_peer(&cause) => {
                    tracing::debug!(%cause, "a peer left before it was accepted")
                }
                Err(cause) => {
                    self.tell(&cause);
                    let pause = PAUSE.saturating_mul(1 << self.in_a_row.min(16)).min(PAUSE_MAX);
                    self.in_a_row += 1;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    fn tell(&mut self, cause: &io::Error) {
        let now = Instant::now();
        if self.told.is_some_and(|told| now - told < LOG_EVERY) {
            self.untold += 1;
            return;
        }
        tracing::error!(%cause, untold = self.untold, "connections cannot be accepted");
        (self.told, self.untold) = (Some(now), 0);
    }
}

fn is_of_peer(cause: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(cause.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    fn out_of_files() -> io::Error {
        io::Error::from_raw_os_error(libc::EMFILE)
    }

    #[tokio::test(start_paused = true)]
    async fn without_descriptors_accepting_pauses_and_goes_on_when_there_are_some() {
        let (begun, mut tries) = (Instant::now(), 0);
        let minute = Duration::from_secs(60);
        let mut troubles = Troubles::default();
        let accepted = troubles
            .accepted(|| {
                tries += 1;
                ready(if begun.elapsed() < minute { Err(out_of_files()) } else { Ok(7) })
            })
            .await;
        assert_eq!(accepted, 7);
        assert!((60..100).contains(&tries), "{tries} tries in a minute");
        assert!(begun.elapsed() < minute + PAUSE_MAX);
        assert!(troubles.untold <= 10, "a line every {LOG_EVERY:?}: {}", troubles.untold);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_left_costs_no_pause() {
        let (begun, mut tries) = (Instant::now(), 0);
        let accepted = Troubles::default()
            .accepted(|| {
                tries += 1;
                ready(if tries < 1000 { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) })
            })
            .await;
        assert_eq!((accepted, begun.elapsed()), ((), Duration::ZERO));
    }
}
