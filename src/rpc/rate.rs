//! Limits how many calls a tenant may begin per second.

use std::num::NonZeroU32;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tonic::Status;

use super::context::Principal;
use super::method::{Kind, Method};
use super::problem::Problem;
use crate::config::Limits;
use crate::metrics;
use crate::reason::Reason;

/// A bucket of calls per tenant. There are as many tenants as the key file names.
#[derive(Clone)]
pub struct RateLimit(Option<Arc<Bounded>>);

struct Bounded {
    calls_per_second: u32,
    buckets: DefaultKeyedRateLimiter<Arc<str>>,
}

impl RateLimit {
    pub fn new(limits: &Limits) -> Self {
        let rate = NonZeroU32::new(limits.calls_per_second_max);
        let bounded = rate.map(|rate| {
            let burst = NonZeroU32::new(limits.calls_burst_max).unwrap_or(rate);
            let buckets = RateLimiter::keyed(Quota::per_second(rate).allow_burst(burst));
            Arc::new(Bounded { calls_per_second: rate.get(), buckets })
        });
        Self(bounded)
    }

    /// Takes a call out of the tenant's bucket.
    ///
    /// # Errors
    /// The bucket is empty; the error states when it no longer is.
    fn take(&self, tenant: &Arc<str>) -> Result<(), Problem> {
        let Some(bounded) = &self.0 else { return Ok(()) };
        bounded.buckets.check_key(tenant).map_err(|not_yet| {
            let message = format!("the tenant may begin {} calls per second", bounded.calls_per_second);
            Problem::new(Reason::RateLimited, message)
                .with_metadata("limit", bounded.calls_per_second)
                .retry_after(not_yet.wait_time_from(DefaultClock::default().now()))
        })
    }
}

/// Lets a call through, or refuses it.
pub async fn limit(State(rate): State<RateLimit>, request: Request, next: Next) -> Response {
    // Orchestrators ask for the server's health on behalf of no tenant.
    if Method::of(request.uri().path()).kind == Kind::Health {
        return next.run(request).await;
    }
    let tenant = Principal::behind(request.extensions()).tenant;
    match rate.take(&tenant) {
        Ok(()) => next.run(request).await,
        Err(problem) => {
            metrics::refused("RATE");
            Status::from(problem).into_http()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_tenant_has_a_bucket_of_its_own_and_hears_when_it_fills() {
        let limits = Limits { calls_per_second_max: 1, calls_burst_max: 3, ..Limits::default() };
        let rate = RateLimit::new(&limits);
        let (harbour, yard) = ("harbour".into(), "yard".into());
        for _ in 0..3 {
            rate.take(&harbour).expect("within the burst");
        }
        let problem = rate.take(&harbour).expect_err("an empty bucket");
        assert_eq!(problem.reason.name(), "RATE_LIMITED");
        assert!(problem.retry_after.is_some_and(|delay| delay <= Duration::from_secs(1)));
        rate.take(&yard).expect("another tenant's bucket");
    }

    #[test]
    fn without_a_limit_nobody_is_refused() {
        let rate = RateLimit::new(&Limits::default());
        for _ in 0..10_000 {
            rate.take(&"harbour".into()).expect("no limit");
        }
    }
}
