//! Decides who searches next: a pure function of the waiting searches and the thread time that each account has used.
//!
//! An account that has used less goes first, so that light callers never wait for heavy ones. An account that returns
//! after a pause starts from the least that any active account has used: idle time is not saved up.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::rpc::context::Holder;

/// The weight of the newest search in the mean cost of an account's searches.
const NEWEST_WEIGHT: f64 = 0.3;

/// A bounded number of threads, and the searches that run on one or wait for one; `W` is the means to notify a waiter.
#[derive(Debug)]
pub struct Ledger<W> {
    threads: usize,
    running: usize,
    next: u64,
    /// What the account that was served last had used.
    floor: Duration,
    /// Seconds per code.
    pace: f64,
    accounts: HashMap<Holder, Account<W>>,
}

#[derive(Debug)]
struct Account<W> {
    used: Duration,
    running: usize,
    waiting: VecDeque<(u64, W)>,
    /// Searches that have been admitted and will wait.
    announced: usize,
    /// The cost of one search.
    cost: Cost,
}

#[derive(Clone, Copy, Debug)]
enum Cost {
    /// Until one has ended.
    Foreseen(Duration),
    Measured(Duration),
}

/// Codes that a search goes through; 0 if unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SearchSize(pub u64);

impl<W> Ledger<W> {
    /// `pace` is how many seconds a code takes until searches have been measured.
    pub fn new(threads: usize, pace: f64) -> Self {
        let floor = Duration::ZERO;
        Self { threads: threads.max(1), running: 0, next: 0, floor, pace, accounts: HashMap::new() }
    }

    pub fn running(&self) -> usize {
        self.running
    }

    /// Counts a search that has been admitted and will wait, until it is [withdrawn](Self::withdraw).
    pub fn announce(&mut self, holder: &Holder, size: SearchSize) {
        let foreseen = self.foresee(size);
        let account = self.account(holder);
        account.announced += 1;
        account.cost = account.cost.at_least(foreseen);
    }

    pub fn withdraw(&mut self, holder: &Holder) {
        if let Some(account) = self.accounts.get_mut(holder) {
            account.announced -= 1;
        }
        self.tidy();
    }

    /// Waits behind the others of its account.
    pub fn wait(&mut self, holder: &Holder, waiter: W, size: SearchSize) -> u64 {
        let (id, foreseen) = (self.number(), self.foresee(size));
        let account = self.account(holder);
        account.cost = account.cost.at_least(foreseen);
        account.waiting.push_back((id, waiter));
        id
    }

    /// Waits before the others of its account: what has begun is finished first.
    pub fn wait_first(&mut self, holder: &Holder, waiter: W) {
        let id = self.number();
        self.account(holder).waiting.push_front((id, waiter));
    }

    /// Removes a waiter that left. `None` if it has a thread already.
    pub fn leave(&mut self, holder: &Holder, id: u64) -> Option<W> {
        let account = self.accounts.get_mut(holder)?;
        let index = account.waiting.iter().position(|(waiting, _)| *waiting == id)?;
        let (_, waiter) = account.waiting.remove(index)?;
        self.tidy();
        Some(waiter)
    }

    /// Gives a free thread to the next waiter.
    pub fn begin(&mut self) -> Option<(Holder, W)> {
        if self.running >= self.threads {
            return None;
        }
        let waiting = self.accounts.iter().filter(|(_, account)| !account.waiting.is_empty());
        let (holder, _) =
            waiting.min_by_key(|(_, account)| (account.used, account.running, account.waiting[0].0))?;
        let holder = holder.clone();
        let account = self.accounts.get_mut(&holder)?;
        let (_, waiter) = account.waiting.pop_front()?;
        account.running += 1;
        self.floor = self.floor.max(account.used);
        self.running += 1;
        Some((holder, waiter))
    }

    /// Records that a thread was used for this long.
    pub fn charge(&mut self, holder: &Holder, used: Duration) {
        if let Some(account) = self.accounts.get_mut(holder) {
            account.used += used;
        }
    }

    /// Whether an account that has used less is waiting.
    pub fn is_due(&self, holder: &Holder) -> bool {
        let Some(own) = self.accounts.get(holder) else { return false };
        let others = self.accounts.iter().filter(|(other, _)| *other != holder);
        others.into_iter().any(|(_, account)| !account.waiting.is_empty() && account.used < own.used)
    }

    /// Returns a thread whose search resumes later.
    pub fn pause(&mut self, holder: &Holder) {
        self.running -= 1;
        if let Some(account) = self.accounts.get_mut(holder) {
            account.running -= 1;
        }
    }

    /// Returns a thread after a search that took `took` in all.
    pub fn end(&mut self, holder: &Holder, took: Duration, size: SearchSize) {
        self.pause(holder);
        if let Some(account) = self.accounts.get_mut(holder) {
            account.cost = account.cost.measured(took);
        }
        if size.0 > 0 {
            let newest = took.as_secs_f64() / size.0 as f64;
            self.pace = newest * NEWEST_WEIGHT + self.pace * (1.0 - NEWEST_WEIGHT);
        }
        self.tidy();
    }

    /// How long a new search of an account would wait: for its own, and for as much of every other.
    pub fn expected_wait(&self, holder: &Holder, size: SearchSize) -> Duration {
        let foreseen = self.foresee(size);
        let ahead = |account: &Account<W>| {
            let searches = account.waiting.len() + account.running + account.announced;
            account.cost.one().saturating_mul(u32::try_from(searches).unwrap_or(u32::MAX))
        };
        let own = self.accounts.get(holder).map_or(Duration::ZERO, &ahead);
        let own_cost = self.accounts.get(holder).map_or(Cost::Foreseen(foreseen), |account| account.cost);
        let own_cost = own_cost.at_least(foreseen).one();
        let others = self.accounts.iter().filter(|(other, _)| *other != holder);
        let others: Duration = others.map(|(_, account)| ahead(account).min(own + own_cost)).sum();
        (own + others) / u32::try_from(self.threads).unwrap_or(u32::MAX)
    }

    fn account(&mut self, holder: &Holder) -> &mut Account<W> {
        let floor = self.floor;
        let account = self.accounts.entry(holder.clone()).or_insert_with(|| Account {
            used: floor,
            running: 0,
            waiting: VecDeque::new(),
            announced: 0,
            cost: Cost::Foreseen(Duration::ZERO),
        });
        if !account.is_at_work() {
            account.used = account.used.max(floor);
        }
        account
    }

    /// Forgets accounts that are indistinguishable from new ones; without any at work, all.
    fn tidy(&mut self) {
        if !self.accounts.values().any(Account::is_at_work) {
            self.accounts.clear();
            self.floor = Duration::ZERO;
        }
        let floor = self.floor;
        self.accounts.retain(|_, account| account.is_at_work() || account.used > floor);
    }

    fn foresee(&self, size: SearchSize) -> Duration {
        Duration::try_from_secs_f64(self.pace * size.0 as f64).unwrap_or(Duration::MAX)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl<W> Account<W> {
    fn is_at_work(&self) -> bool {
        self.running > 0 || self.announced > 0 || !self.waiting.is_empty()
    }
}

impl Cost {
    fn one(self) -> Duration {
        let (Self::Foreseen(one) | Self::Measured(one)) = self;
        one
    }

    /// Raises a foreseen cost to at least `foreseen`; a measured cost has precedence.
    fn at_least(self, foreseen: Duration) -> Self {
        match self {
            Self::Foreseen(before) => Self::Foreseen(before.max(foreseen)),
            measured @ Self::Measured(_) => measured,
        }
    }

    fn measured(self, newest: Duration) -> Self {
        Self::Measured(match self {
            Self::Foreseen(_) => newest,
            Self::Measured(before) => newest.mul_f64(NEWEST_WEIGHT) + before.mul_f64(1.0 - NEWEST_WEIGHT),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(tenant: &str) -> Holder {
        Holder { tenant: tenant.into(), connection: None }
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// Serves all waiters on one thread, each for its cost; returns the accounts served, in order.
    fn served(ledger: &mut Ledger<Duration>, searches: usize) -> Vec<String> {
        let mut served = Vec::new();
        while let Some((holder, cost)) = ledger.begin() {
            ledger.charge(&holder, cost);
            served.push(holder.tenant.to_string());
            ledger.end(&holder, cost, SearchSize::default());
            if served.len() == searches {
                break;
            }
        }
        served
    }

    #[test]
    fn accounts_share_the_threads_by_time_and_not_by_number() {
        let mut ledger = Ledger::new(1, 0.0);
        for _ in 0..20 {
            ledger.wait(&holder("heavy"), 10 * SECOND, SearchSize::default());
        }
        for _ in 0..20 {
            ledger.wait(&holder("light"), SECOND, SearchSize::default());
        }
        let served = served(&mut ledger, 22);
        let heavy = served.iter().filter(|tenant| *tenant == "heavy").count();
        assert_eq!(heavy, 2, "as much time as twenty light ones take: {served:?}");
    }

    #[test]
    fn whoever_comes_new_waits_for_one_and_whoever_comes_back_has_saved_nothing() {
        let mut ledger = Ledger::new(1, 0.0);
        for _ in 0..20 {
            ledger.wait(&holder("first"), SECOND, SearchSize::default());
        }
        assert_eq!(served(&mut ledger, 10), ["first"; 10]);
        for _ in 0..20 {
            ledger.wait(&holder("late"), SECOND, SearchSize::default());
        }
        let served = served(&mut ledger, 10);
        assert_eq!(served[0], "late");
        assert_eq!(served.iter().filter(|tenant| *tenant == "late").count(), 5, "{served:?}");
    }

    #[test]
    fn a_search_is_due_to_pause_when_one_waits_that_has_used_less() {
        let mut ledger = Ledger::new(1, 0.0);
        ledger.wait(&holder("heavy"), SECOND, SearchSize::default());
        ledger.wait(&holder("heavy"), SECOND, SearchSize::default());
        let (heavy, _) = ledger.begin().expect("a thread");
        ledger.charge(&heavy, SECOND);
        assert!(!ledger.is_due(&heavy), "only its own kind waits");
        ledger.wait(&holder("light"), SECOND, SearchSize::default());
        assert!(ledger.is_due(&heavy));
        ledger.pause(&heavy);
        ledger.wait_first(&heavy, SECOND);
        let next: Vec<_> = std::iter::from_fn(|| {
            let (holder, cost) = ledger.begin()?;
            ledger.charge(&holder, 5 * cost);
            ledger.end(&holder, cost, SearchSize::default());
            Some(holder.tenant.to_string())
        })
        .collect();
        assert_eq!(next, ["light", "heavy", "heavy"]);
    }

    #[test]
    fn a_wait_is_foreseen_by_what_others_cost_but_no_longer_than_ones_own_share() {
        let mut ledger = Ledger::new(2, 0.0);
        let (heavy, light) = (holder("heavy"), holder("light"));
        for _ in 0..3 {
            ledger.wait(&heavy, 10 * SECOND, SearchSize::default());
        }
        ledger.wait(&light, SECOND, SearchSize::default());
        for _ in 0..2 {
            let (holder, cost) = ledger.begin().expect("a thread");
            ledger.charge(&holder, cost);
            ledger.end(&holder, cost, SearchSize::default());
        }
        // One of the heavy searches and the light one were served; two heavy ones wait.
        assert_eq!(ledger.expected_wait(&heavy, SearchSize::default()), 10 * SECOND);
        assert_eq!(
            ledger.expected_wait(&light, SearchSize::default()),
            SECOND / 2,
            "of the heavy ones no more than its own"
        );
        assert_eq!(ledger.expected_wait(&holder("new"), SearchSize::default()), Duration::ZERO);
    }

    #[test]
    fn what_is_not_measured_yet_is_foreseen_by_its_codes_and_by_what_others_took() {
        let mut ledger = Ledger::new(1, 1e-3);
        let (first, second) = (holder("first"), holder("second"));
        let size = SearchSize(1000);
        for _ in 0..3 {
            // A second each, by the ledger's initial pace.
            assert!(ledger.expected_wait(&first, size) <= 3 * SECOND);
            ledger.announce(&first, size);
        }
        assert_eq!(ledger.expected_wait(&first, size), 3 * SECOND, "none of them waits for a thread yet");
        assert_eq!(ledger.expected_wait(&second, size), SECOND, "as much of another's as its own");
        assert_eq!(ledger.expected_wait(&second, SearchSize::default()), Duration::ZERO, "it may be short");
        ledger.withdraw(&first);
        ledger.wait(&first, SECOND, SearchSize::default());
        assert_eq!(ledger.expected_wait(&first, size), 3 * SECOND);
        let (running, _) = ledger.begin().expect("a thread");
        ledger.charge(&running, 5 * SECOND);
        ledger.end(&running, 5 * SECOND, size);
        assert_eq!(ledger.expected_wait(&first, size), 10 * SECOND, "two are to come, of five seconds each");
        let of_others = ledger.expected_wait(&second, size).as_secs_f64();
        assert!((of_others - 2.2).abs() < 1e-6, "three tenths of the new pace: {of_others}");
        ledger.withdraw(&first);
        ledger.withdraw(&first);
        assert!(ledger.accounts.is_empty());
    }

    #[test]
    fn nothing_is_kept_of_whoever_is_gone() {
        let mut ledger = Ledger::new(1, 0.0);
        for tenant in 0..100 {
            let holder = holder(&format!("t{tenant}"));
            let id = ledger.wait(&holder, SECOND, SearchSize::default());
            if tenant % 2 == 0 {
                assert_eq!(ledger.leave(&holder, id), Some(SECOND));
                assert_eq!(ledger.leave(&holder, id), None);
            }
        }
        assert_eq!(served(&mut ledger, 100).len(), 50);
        assert!(ledger.accounts.is_empty() && ledger.running == 0);
    }
}
