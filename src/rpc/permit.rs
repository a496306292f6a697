//! Call permits: a call takes its place on its headers, before a byte of its body is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tonic::{Code, Status};

use super::held::until_answered;
use super::method::is_health;
use super::problem::Problem;
use crate::metrics;

/// How long a refused caller is asked to wait.
pub const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Answers even when the server is full, so that it can be looked at; health does as well.
const REFLECTION: &str = "/grpc.reflection.";

/// The calls that may be in flight at once, over all connections.
#[derive(Clone, Debug)]
pub struct CallPermits {
    taken: Arc<AtomicUsize>,
    max: usize,
}

/// One call's place, given back when dropped.
#[derive(Debug)]
pub struct CallPermit(Arc<AtomicUsize>);

impl CallPermits {
    pub fn new(max: usize) -> Self {
        Self { taken: Arc::default(), max }
    }

    /// A place, or `None` at once.
    pub fn try_take(&self) -> Option<CallPermit> {
        let grow = |taken: usize| (taken < self.max).then_some(taken + 1);
        let before = self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow).ok()?;
        metrics::calls_in_flight(before + 1);
        Some(CallPermit(Arc::clone(&self.taken)))
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        metrics::calls_in_flight(self.0.fetch_sub(1, Ordering::AcqRel) - 1);
    }
}

/// Lets a call in, or refuses it; a place is held until the last byte of the answer is gone.
pub async fn take(State(permits): State<CallPermits>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if is_health(path) || path.starts_with(REFLECTION) {
        return next.run(request).await;
    }
    let Some(permit) = permits.try_take() else {
        metrics::refused("CALLS");
        return Status::from(full(permits.max)).into_http();
    };
    until_answered(next.run(request).await, permit)
}

fn full(max: usize) -> Problem {
    Problem::new(Code::ResourceExhausted, "TOO_MANY_CALLS", format!("all {max} call places are taken"))
        .with_metadata("limit", max)
        .retry_after(RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_is_refused_at_the_limit_and_free_again_after_a_drop() {
        let permits = CallPermits::new(2);
        let first = permits.try_take().expect("a place");
        let _second = permits.try_take().expect("a place");
        assert!(permits.try_take().is_none());
        drop(first);
        assert!(permits.try_take().is_some());
    }
}
