//! Accepts the connections of a port, at the pace that the system allows.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::net::{TcpListener, TcpStream};

use super::crowd::Crowd;
use crate::metrics;
use crate::rpc::sparing::Sparing;

/// The longest pause after a failed accept.
const PAUSE_MAX: Duration = Duration::from_secs(1);
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(10))
    .with_max_delay(PAUSE_MAX)
    .without_max_times();
/// The minimum time between two log lines about failed accepts.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Recent failures to accept a port's connections.
#[derive(Debug)]
pub struct Troubles {
    /// The port's name as a label.
    port: &'static str,
    /// The pauses after consecutive failures.
    pauses: ExponentialBackoff,
    log: Sparing,
}

impl Troubles {
    pub fn of(port: &'static str) -> Self {
        Self { port, pauses: PAUSES.build(), log: Sparing::new(1, LOG_EVERY) }
    }

    /// The next connection, once the crowd has room for one.
    pub async fn next(&mut self, listener: &TcpListener, crowd: &Crowd) -> (TcpStream, SocketAddr) {
        crowd.room().await;
        self.accepted(|| listener.accept()).await
    }

    /// The result of `accept`, after a pause for each failure; each pause is twice as long as the one before.
    async fn accepted<T, A>(&mut self, mut accept: impl FnMut() -> A) -> T
    where
        A: Future<Output = io::Result<T>>,
    {
        loop {
            match accept().await {
                Ok(accepted) => {
                    self.pauses = PAUSES.build();
                    return accepted;
                }
                // The peer has left already; the next one may still be there.
                Err(cause) if is_of_peer(&cause) => {
                    tracing::debug!(%cause, "a peer left before it was accepted")
                }
                Err(cause) => {
                    self.tell(&cause);
                    metrics::accepting_paused(self.port);
                    tokio::time::sleep(self.pauses.next().unwrap_or(PAUSE_MAX)).await;
                }
            }
        }
    }

    fn tell(&self, cause: &io::Error) {
        if let Some(untold) = self.log.line() {
            tracing::error!(%cause, port = self.port, untold, "connections cannot be accepted");
        }
    }
}

fn is_of_peer(cause: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(cause.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tokio::time::Instant;

    use super::*;

    fn out_of_files() -> io::Error {
        io::Error::from_raw_os_error(libc::EMFILE)
    }

    #[tokio::test(start_paused = true)]
    async fn without_descriptors_accepting_pauses_and_goes_on_when_there_are_some() {
        let (begun, mut tries) = (Instant::now(), 0);
        let minute = Duration::from_secs(60);
        let accepted = Troubles::of("grpc")
            .accepted(|| {
                tries += 1;
                assert!(tries < 1000, "it spins");
                ready(if begun.elapsed() < minute { Err(out_of_files()) } else { Ok(7) })
            })
            .await;
        assert_eq!(accepted, 7);
        assert!((60..100).contains(&tries), "{tries} tries in a minute");
        assert!(begun.elapsed() < minute + PAUSE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_left_costs_no_pause() {
        let (begun, mut tries) = (Instant::now(), 0);
        let accepted = Troubles::of("grpc")
            .accepted(|| {
                tries += 1;
                ready(if tries < 1000 { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) })
            })
            .await;
        assert_eq!((accepted, begun.elapsed()), ((), Duration::ZERO));
    }
}
