//! Shutting down a server: what it announces, the order in which its parts stop, and their time limits.

use std::time::Duration;

use tokio::sync::watch;

use super::Running;
use crate::config;
use crate::rpc::Drain;

/// The share of the time to shut down for calls in flight and training jobs; the rest is for stores.
const CALLS_SHARE: f64 = 0.8;

/// The shutdown signal and its time limits.
pub struct Shutdown {
    begun: watch::Sender<bool>,
    /// From not ready to refusing calls, so that load balancers stop sending calls in time.
    notice: Duration,
    /// From refusing calls to the end.
    bound: Duration,
}

/// How a server shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    InOrder,
    /// Something did not end in time; it may still be running.
    CutShort,
}

impl Shutdown {
    pub fn new(server: &config::Server) -> Self {
        Self {
            begun: watch::Sender::new(false),
            notice: Duration::from_secs_f64(server.drain_notice_seconds),
            bound: Duration::from_secs_f64(server.drain_seconds_max),
        }
    }

    /// The signal for layers and services that shutdown has begun.
    pub fn drain(&self) -> Drain {
        Drain::new(self.begun.subscribe())
    }

    /// The part of the bound for calls in flight and training jobs.
    pub fn calls_max(&self) -> Duration {
        self.bound.mul_f64(CALLS_SHARE)
    }
}

impl Running {
    /// Reports that the server is not ready, continues to serve until load balancers have had time to react, then
    /// [stops](Self::stop).
    pub async fn drain(self) -> Drained {
        self.model.announce_drain();
        tokio::time::sleep(self.shutdown.notice).await;
        self.stop().await
    }

    /// Refuses new calls, lets those in flight and training jobs finish, stops the device threads, closes the stores:
    /// within the configured time, even if something hangs.
    pub async fn stop(self) -> Drained {
        self.model.announce_drain();
        self.shutdown.begun.send_replace(true);
        let bound = self.shutdown.bound;
        match tokio::time::timeout(bound, self.end_in_order()).await {
            Ok(()) => Drained::InOrder,
            Err(_) => {
                tracing::error!(seconds = bound.as_secs_f64(), "the server did not shut down in time");
                Drained::CutShort
            }
        }
    }

    async fn end_in_order(self) {
        // Watchers of a job see how it ends here, and are only disconnected afterwards.
        self.stores.end_jobs(self.shutdown.calls_max()).await;
        self.serving.ended().await;
        self.model.stop().await;
        self.stores.close().await;
    }
}
