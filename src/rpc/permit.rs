//! Call permits: a call takes its slot on its headers, before a byte of its body is read. If all slots are taken, a
//! stream that has long been idle gives way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;
use tonic::Status;

use super::activity::Activity;
use super::context::{Holder, Peer};
use super::fair_budget::{Bounds, FairBudget, Full, Scope, Share};
use super::held::until_answered;
use super::method::{Kind, Method, Shape};
use super::problem::Problem;
use crate::config::Limits;
use crate::metrics;
use crate::reason::Reason;

/// Reflection streams and health watches at once, of which a peer needs only a few: over one connection, from one
/// address, and in total.
const LOOKS: Bounds = Bounds { server: 512, tenant: 64, connection: 4 };

/// The calls that may be in flight at once, over all connections.
#[derive(Clone, Debug)]
pub struct CallPermits(Arc<Places>);

#[derive(Debug)]
struct Places {
    budget: Arc<FairBudget>,
    /// A stream that has been idle for this long gives way.
    yield_after: Duration,
    next: AtomicU64,
    taken: Mutex<HashMap<u64, Taken>>,
    looks: Arc<FairBudget>,
}

#[derive(Debug)]
struct Taken {
    holder: Holder,
    activity: Activity,
    /// Releases the slot when dropped.
    _share: Share,
}

/// One call's slot, released when dropped. Not the [`Share`] itself: another call may have the slot while this one
/// still runs.
#[derive(Debug)]
pub struct CallPermit {
    places: Arc<Places>,
    id: u64,
}

impl CallPermits {
    /// `has_keys` where tenants are distinguished: otherwise one tenant stands for all callers.
    pub fn new(limits: &Limits, has_keys: bool) -> Self {
        let max = limits.calls_max;
        let tenant = if has_keys { limits.calls_of_tenant() } else { max };
        let connection = usize::try_from(limits.streams_per_connection_max).unwrap_or(max);
        let bounds = Bounds { server: max, tenant, connection };
        Self(Arc::new(Places {
            budget: FairBudget::new(bounds, metrics::calls_in_flight),
            yield_after: Duration::from_secs_f64(limits.stream_yield_seconds),
            next: AtomicU64::default(),
            taken: Mutex::default(),
            looks: FairBudget::new(LOOKS, |_| {}),
        }))
    }

    /// A slot for a call that inspects the server, or an immediate refusal. Such a caller may have no key, so addresses
    /// are distinguished and not tenants.
    fn look(&self, peer: Option<&Peer>) -> Result<Share, Full> {
        let address = peer.map_or_else(String::new, |peer| peer.address.ip().to_canonical().to_string());
        let connection = peer.filter(|peer| !peer.is_proxy).map(|peer| peer.connection);
        let mut share = self.0.looks.share(Holder { tenant: address.into(), connection });
        share.grow(1)?;
        Ok(share)
    }

    /// A slot, or an immediate refusal. If there is none, the stream that has been idle longest loses its own.
    fn try_take(&self, holder: &Holder, activity: &Activity) -> Result<CallPermit, Full> {
        loop {
            let mut share = self.0.budget.share(holder.clone());
            let Err(full) = share.grow(1) else {
                let id = self.0.next.fetch_add(1, Ordering::Relaxed);
                let taken = Taken { holder: holder.clone(), activity: activity.clone(), _share: share };
                self.0.lock().insert(id, taken);
                return Ok(CallPermit { places: Arc::clone(&self.0), id });
            };
            let Some(idle) = self.0.take_idlest(full.scope, holder) else { return Err(full) };
            idle.activity.displace();
        }
    }
}

impl Places {
    /// Takes a slot among those that `scope` bounds and whose streams have been idle for long enough: from the
    /// connection with the most of them, that of the stream that has been idle longest.
    fn take_idlest(&self, scope: Scope, holder: &Holder) -> Option<Taken> {
        let mut taken = self.lock();
        let now = Instant::now();
        let idle: Vec<(u64, Option<u64>, Duration)> = taken
            .iter()
            .filter(|(_, call)| match scope {
                Scope::Server => true,
                Scope::Tenant => call.holder.tenant == holder.tenant,
                Scope::Connection => call.holder.connection == holder.connection,
            })
            .filter_map(|(id, call)| Some((*id, call.holder.connection, now - call.activity.idle_since()?)))
            .filter(|(_, _, idle)| *idle >= self.yield_after)
            .collect();
        let mut by_connection: HashMap<Option<u64>, usize> = HashMap::new();
        idle.iter().for_each(|(_, connection, _)| *by_connection.entry(*connection).or_default() += 1);
        let (id, ..) =
            idle.iter().max_by_key(|(_, connection, idle)| (by_connection[connection], *idle)).copied()?;
        taken.remove(&id)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        // It has been removed already if another call has the slot.
        let taken = self.places.lock().remove(&self.id);
        drop(taken);
    }
}

/// Lets a call in, or refuses it; a slot is held until the last byte of the response is sent. A full server can still
/// be inspected.
pub async fn take(State(permits): State<CallPermits>, request: Request, next: Next) -> Response {
    let method = Method::of(request.uri().path());
    match (method.kind, method.shape) {
        (Kind::Ordinary, _) => call(&permits, request, next).await,
        (Kind::Look, _) | (Kind::Health, Shape::Streaming) => look(&permits, request, next).await,
        (Kind::Health, Shape::Unary | Shape::Lengthy) => next.run(request).await,
    }
}

async fn look(permits: &CallPermits, request: Request, next: Next) -> Response {
    match permits.look(request.extensions().get()) {
        Ok(place) => until_answered(next.run(request).await, place),
        Err(full) => {
            metrics::refused("LOOKS");
            Status::from(too_many_looks(full)).into_http()
        }
    }
}

async fn call(permits: &CallPermits, request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let activity = extensions.get().cloned().unwrap_or_else(Activity::new);
    match permits.try_take(&Holder::behind(extensions), &activity) {
        Ok(permit) => until_answered(next.run(request).await, permit),
        Err(full) => {
            metrics::refused("CALLS");
            Status::from(refusal(full)).into_http()
        }
    }
}

fn refusal(full: Full) -> Problem {
    let message = match full.scope {
        Scope::Server => format!("all {} call places are taken", full.limit),
        Scope::Tenant => format!("the tenant has its share of call places, at most {}", full.limit),
        Scope::Connection => format!("the connection has its share of call places, at most {}", full.limit),
    };
    Problem::new(Reason::TooManyCalls, message)
        .with_metadata("limit", full.limit)
        .with_metadata("scope", full.scope.name())
}

fn too_many_looks(full: Full) -> Problem {
    let from = match full.scope {
        Scope::Server => "all peers",
        Scope::Tenant => "one address",
        Scope::Connection => "one connection",
    };
    let message = format!("{from} may have {} streams of reflection and health at once", full.limit);
    Problem::new(Reason::TooManyLooks, message).with_metadata("limit", full.limit)
}

/// The response to a stream whose slot was given to another call.
pub fn displaced() -> Problem {
    let message = "the stream was idle and the server full; open it again when there is something to send";
    Problem::new(Reason::StreamDisplaced, message)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn permits(calls_max: usize) -> CallPermits {
        CallPermits::new(&Limits { calls_max, stream_yield_seconds: 5.0, ..Limits::default() }, true)
    }

    fn holder(tenant: &str, connection: u64) -> Holder {
        Holder { tenant: tenant.into(), connection: Some(connection) }
    }

    #[test]
    fn a_permit_is_refused_at_the_limit_and_free_again_after_a_drop() {
        let permits = CallPermits::new(&Limits { calls_max: 2, ..Limits::default() }, false);
        let take = || permits.try_take(&holder("default", 1), &Activity::new());
        let first = take().expect("a place");
        let _second = take().expect("a place");
        assert_eq!(take().expect_err("full"), Full { scope: Scope::Server, limit: 2 });
        drop(first);
        assert!(take().is_ok());
    }

    #[test]
    fn streams_that_look_at_the_server_are_bounded_by_connection_and_address() {
        let permits = permits(1);
        let peer = |last: u8, connection: u64| {
            Some(Peer { address: ([192, 0, 2, last], 1).into(), connection, is_proxy: false })
        };
        let mut held: Vec<Share> =
            (0..4).map(|_| permits.look(peer(1, 0).as_ref()).expect("a place")).collect();
        let full = permits.look(peer(1, 0).as_ref()).expect_err("it has four");
        assert_eq!((full.scope, full.limit), (Scope::Connection, 4));
        held.extend((1..1000).filter_map(|connection| permits.look(peer(1, connection).as_ref()).ok()));
        assert_eq!(held.len(), 64, "of one address");
        held.push(permits.look(peer(2, 1000).as_ref()).expect("another one has places"));
        drop(held);
        permits.look(peer(1, 0).as_ref()).expect("they are given back");
    }

    #[test]
    fn a_tenant_leaves_places_for_others() {
        let permits = permits(16);
        let mut held = Vec::new();
        let full = loop {
            match permits.try_take(&holder("greedy", held.len() as u64), &Activity::new()) {
                Ok(permit) => held.push(permit),
                Err(full) => break full,
            }
        };
        assert_eq!((held.len(), full.scope), (12, Scope::Tenant));
        assert!(permits.try_take(&holder("quiet", 99), &Activity::new()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_takes_the_place_of_the_stream_that_is_idle_and_not_of_one_at_work() {
        let permits = permits(4);
        let call = || {
            let activity = Activity::new();
            let permit = permits.try_take(&Holder { tenant: "t".into(), connection: None }, &activity);
            permit.map(|permit| (permit, activity))
        };
        let [working, recent, idle] = [call(), call(), call()].map(|call| call.expect("a place"));
        idle.1.wait(Waker::noop());
        recent.1.wait(Waker::noop());
        assert!(call().is_err(), "no stream has been idle for long");
        tokio::time::advance(3 * SECOND).await;
        recent.1.received();
        recent.1.wait(Waker::noop());
        tokio::time::advance(3 * SECOND).await;
        let _next = call().expect("the place of the idle one");
        let displaced = [&working, &recent, &idle].map(|(_, activity)| activity.is_displaced());
        assert_eq!(displaced, [false, false, true]);
        drop(idle);
        assert!(call().is_err(), "a place is given back once");
    }
}
