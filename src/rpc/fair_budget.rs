//! Budgets that callers share fairly: no caller can use up a whole one.
//!
//! A [`Budget`](crate::budget::Budget) only knows amounts. Here a share has a holder, whose own limit depends on the
//! other holders, so both are decided under one lock.
//!
//! Below the server's bound there are bounds for a tenant and for a connection. A holder that is not alone may hold no
//! more than is still free: with n greedy holders each has one part in n + 1, and one part is left for the next one.
//! Switches share their buffers among ports by the same rule (dynamic thresholds, Choudhury and Hahne 1998).

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::context::Holder;

/// What may be held at once: in total, by one tenant, over one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub server: usize,
    pub tenant: usize,
    pub connection: usize,
}

/// Whose bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Server,
    Tenant,
    Connection,
}

/// A budget has no room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    pub scope: Scope,
    pub limit: usize,
}

/// An amount of a limited resource.
#[derive(Debug)]
pub struct FairBudget {
    bounds: Bounds,
    held: Mutex<Held>,
    /// Called with the whole amount whenever it changes.
    tell: fn(usize),
}

#[derive(Debug, Default)]
struct Held {
    server: usize,
    /// Holders with nothing are not listed.
    tenants: HashMap<Arc<str>, usize>,
    connections: HashMap<u64, usize>,
}

/// One holder's share of a budget, released when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<FairBudget>,
    holder: Holder,
    amount: usize,
}

impl FairBudget {
    pub fn new(bounds: Bounds, tell: fn(usize)) -> Arc<Self> {
        Arc::new(Self { bounds, held: Mutex::default(), tell })
    }

    /// A share of the budget that is still empty.
    pub fn share(self: &Arc<Self>, holder: Holder) -> Share {
        Share { budget: Arc::clone(self), holder, amount: 0 }
    }

    fn take(&self, holder: &Holder, more: usize) -> Result<(), Full> {
        let mut held = self.lock();
        let tenant_max = self.bounds.tenant.min(self.bounds.server);
        let of_tenant = Level {
            own: held.tenants.get(&holder.tenant).copied().unwrap_or(0),
            max: tenant_max,
            held: held.server,
            of: self.bounds.server,
            holders: held.tenants.len(),
        };
        if let Some(connection) = &holder.connection {
            let over_connection = Level {
                own: held.connections.get(connection).copied().unwrap_or(0),
                max: self.bounds.connection,
                held: of_tenant.own,
                of: tenant_max,
                holders: held.connections.len(),
            };
            match over_connection.check(more) {
                Ok(()) => {}
                Err(Short::Own) => return Err(self.full(Scope::Connection)),
                Err(Short::Whole) => return Err(self.full(Scope::Tenant)),
            }
        }
        match of_tenant.check(more) {
            Ok(()) => {}
            Err(Short::Own) => return Err(self.full(Scope::Tenant)),
            Err(Short::Whole) => return Err(self.full(Scope::Server)),
        }
        if let Some(connection) = holder.connection {
            *held.connections.entry(connection).or_default() += more;
        }
        *held.tenants.entry(Arc::clone(&holder.tenant)).or_default() += more;
        held.server += more;
        (self.tell)(held.server);
        Ok(())
    }

    fn give_back(&self, holder: &Holder, amount: usize) {
        let mut held = self.lock();
        lower(&mut held.tenants, &holder.tenant, amount);
        if let Some(connection) = &holder.connection {
            lower(&mut held.connections, connection, amount);
        }
        held.server -= amount;
        (self.tell)(held.server);
    }

    fn full(&self, scope: Scope) -> Full {
        let Bounds { server, tenant, connection } = self.bounds;
        match scope {
            Scope::Connection => Full { scope, limit: connection },
            Scope::Tenant if tenant < server => Full { scope, limit: tenant },
            // A tenant that may use everything is equivalent to the server.
            Scope::Tenant | Scope::Server => Full { scope: Scope::Server, limit: server },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Takes `more` of the budget, all or nothing.
    ///
    /// # Errors
    /// Fails immediately when a bound would be exceeded.
    pub fn grow(&mut self, more: usize) -> Result<(), Full> {
        self.budget.take(&self.holder, more)?;
        self.amount += more;
        Ok(())
    }

    /// Releases the whole share.
    pub fn clear(&mut self) {
        if self.amount > 0 {
            self.budget.give_back(&self.holder, self.amount);
            self.amount = 0;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Scope {
    /// Its name in errors and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Tenant => "tenant",
            Self::Connection => "connection",
        }
    }
}

/// What one holder has of something that is shared with others.
struct Level {
    own: usize,
    /// The holder's own bound.
    max: usize,
    /// Held by all holders together.
    held: usize,
    /// The whole amount.
    of: usize,
    /// The number of holders.
    holders: usize,
}

/// Which amount is too small for a holder.
enum Short {
    /// Its own bound.
    Own,
    /// The whole: it holds less than an even share.
    Whole,
}

impl Level {
    fn check(&self, more: usize) -> Result<(), Short> {
        let wanted = self.own.saturating_add(more);
        if wanted > self.max {
            return Err(Short::Own);
        }
        let is_alone = self.own == self.held;
        if is_alone || wanted <= self.of.saturating_sub(self.held) {
            return Ok(());
        }
        let is_below_an_even_part = self.own == 0 || wanted <= self.of / self.holders;
        Err(if is_below_an_even_part { Short::Whole } else { Short::Own })
    }
}

fn lower<K: Hash + Eq>(held: &mut HashMap<K, usize>, holder: &K, amount: usize) {
    if let Some(own) = held.get_mut(holder) {
        *own = own.saturating_sub(amount);
        if *own == 0 {
            held.remove(holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { server: 100, tenant: 80, connection: 60 };

    fn holder(tenant: &str, connection: u64) -> Holder {
        Holder { tenant: tenant.into(), connection: Some(connection) }
    }

    /// Takes one after another for as long as it may.
    fn greedy(share: &mut Share) -> (usize, Full) {
        loop {
            if let Err(full) = share.grow(1) {
                return (share.amount, full);
            }
        }
    }

    #[test]
    fn whoever_is_alone_meets_the_nearest_bound() {
        let budget = FairBudget::new(BOUNDS, |_| {});
        let mut over_one = budget.share(holder("a", 1));
        assert_eq!(greedy(&mut over_one), (60, Full { scope: Scope::Connection, limit: 60 }));
        drop(over_one);
        let behind_a_proxy = Holder { tenant: "a".into(), connection: None };
        let mut all = budget.share(behind_a_proxy);
        assert_eq!(greedy(&mut all), (80, Full { scope: Scope::Tenant, limit: 80 }));
        drop(all);
        assert!(budget.lock().tenants.is_empty() && budget.lock().connections.is_empty());
    }

    #[test]
    fn greedy_tenants_leave_room_for_the_next_one() {
        let budget = FairBudget::new(BOUNDS, |_| {});
        let mut shares = Vec::new();
        for tenant in 0..5 {
            let mut share = budget.share(holder(&format!("t{tenant}"), tenant));
            let (held, _) = greedy(&mut share);
            assert!(held > 0, "tenant {tenant} finds nothing: {:?}", budget.lock());
            shares.push(share);
        }
    }

    #[test]
    fn greedy_connections_of_one_tenant_leave_room_for_the_next_one() {
        let bounds = Bounds { server: 1 << 20, tenant: 1 << 19, connection: 1 << 18 };
        let budget = FairBudget::new(bounds, |_| {});
        let mut shares: Vec<Share> = (0..16).map(|n| budget.share(holder("default", n))).collect();
        // All holders together, one piece at a time, as messages arrive.
        loop {
            let grown = shares.iter_mut().filter_map(|share| share.grow(1024).ok()).count();
            if grown == 0 {
                break;
            }
        }
        let mut quiet = budget.share(holder("default", 99));
        quiet.grow(16 << 10).expect("room for a chip");
    }

    #[test]
    fn a_refusal_takes_nothing_and_a_huge_amount_does_not_overflow() {
        let budget = FairBudget::new(BOUNDS, |_| {});
        let mut share = budget.share(holder("a", 1));
        share.grow(10).expect("room");
        share.grow(usize::MAX).expect_err("too much");
        assert_eq!(budget.lock().server, 10);
    }
}
