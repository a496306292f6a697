//! Decides which chips run next: a pure function of the waiting chips, their deadlines and the time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::embedding::ModelDigest;

/// Priority classes; a higher one is always served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Priority {
    /// A user waits for the answer.
    Interactive,
    /// Backfilling an archive.
    Bulk,
}

const CLASSES: usize = 2;

/// One waiting chip; `payload` is what the queue needs to run and answer it.
#[derive(Debug)]
pub struct Entry<T> {
    pub id: u64,
    pub model: ModelDigest,
    pub tenant: Arc<str>,
    pub priority: Priority,
    pub deadline: Option<Instant>,
    pub payload: T,
}

/// Batch sizes that a worker has warmed, ascending: 1, 2, 4, ... and the largest allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets(Vec<usize>);

impl Buckets {
    /// Powers of two below `max`, and `max` (at least 1).
    pub fn up_to(max: usize) -> Self {
        let max = max.max(1);
        let mut sizes: Vec<usize> =
            std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|s| *s < max).collect();
        sizes.push(max);
        Self(sizes)
    }

    /// The largest batch that `waiting` chips fill; 0 if none wait. Batches are never padded.
    pub fn filled_by(&self, waiting: usize) -> usize {
        self.0.iter().rev().copied().find(|size| *size <= waiting).unwrap_or(0)
    }

    /// Drops sizes above half of the largest, after the device ran out of memory.
    pub fn halve(&mut self) {
        let half = (self.largest() / 2).max(1);
        self.0.retain(|size| *size <= half);
        if self.0.last() != Some(&half) {
            self.0.push(half);
        }
    }

    pub fn largest(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    pub fn sizes(&self) -> &[usize] {
        &self.0
    }
}

/// What [`Schedule::take_batch`] decided.
#[derive(Debug)]
pub struct NextBatch<T> {
    /// Run these together: one model, a bucket's size, or nothing.
    pub batch: Vec<Entry<T>>,
    /// Answer these with "too late": they would not be done by their deadline.
    pub expired: Vec<Entry<T>>,
}

/// All waiting chips, by class, model and tenant. Within a class, models take turns batch by batch, and a model's
/// tenants chip by chip: deficit round-robin with equal costs.
#[derive(Debug)]
pub struct Schedule<T> {
    classes: [VecDeque<ModelQueue<T>>; CLASSES],
    len: usize,
}

#[derive(Debug)]
struct ModelQueue<T> {
    model: ModelDigest,
    /// Tenants without entries are not listed.
    tenants: VecDeque<TenantQueue<T>>,
}

#[derive(Debug)]
struct TenantQueue<T> {
    tenant: Arc<str>,
    entries: VecDeque<Entry<T>>,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self { classes: Default::default(), len: 0 }
    }
}

impl<T> Schedule<T> {
    /// Number of waiting chips.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Number of chips that would be served before a new one of this tenant. It is the sum of all chips of higher
    /// classes and, for each tenant of the same class, at most as many as this tenant has waiting, plus one.
    pub fn ahead_of(&self, tenant: &str, priority: Priority) -> usize {
        let class = priority as usize;
        let lengths = |class: usize| {
            self.classes[class]
                .iter()
                .flat_map(|queue| &queue.tenants)
                .map(|waiting| (&*waiting.tenant, waiting.entries.len()))
        };
        let higher: usize = (0..class).flat_map(lengths).map(|(_, waiting)| waiting).sum();
        let own: usize = lengths(class).filter(|(name, _)| *name == tenant).map(|(_, waiting)| waiting).sum();
        let others = lengths(class).filter(|(name, _)| *name != tenant);
        higher + own + others.map(|(_, waiting)| waiting.min(own + 1)).sum::<usize>()
    }

    /// Inserts a chip behind those of its tenant.
    pub fn insert(&mut self, entry: Entry<T>) {
        let class = &mut self.classes[entry.priority as usize];
        let queue = match class.iter().position(|queue| queue.model == entry.model) {
            Some(index) => &mut class[index],
            None => {
                class.push_back(ModelQueue { model: entry.model, tenants: VecDeque::new() });
                class.back_mut().expect("just pushed")
            }
        };
        match queue.tenants.iter_mut().find(|waiting| waiting.tenant == entry.tenant) {
            Some(waiting) => waiting.entries.push_back(entry),
            None => {
                let tenant = Arc::clone(&entry.tenant);
                queue.tenants.push_back(TenantQueue { tenant, entries: VecDeque::from([entry]) });
            }
        }
        self.len += 1;
    }

    /// Removes a chip whose caller has left. `None` if it is no longer waiting.
    pub fn remove(&mut self, id: u64) -> Option<Entry<T>> {
        self.extract(|entry| entry.id == id).pop()
    }

    /// Removes all chips.
    pub fn drain(&mut self) -> Vec<Entry<T>> {
        self.extract(|_| true)
    }

    /// Decides what a free device runs now.
    ///
    /// The model whose turn it is in the highest class gets the batch; chips of lower classes fill it up. Chips of that
    /// model that would miss their deadline even in this batch are removed first.
    pub fn take_batch(
        &mut self,
        now: Instant,
        buckets: &Buckets,
        predict: impl Fn(ModelDigest, usize) -> Duration,
    ) -> NextBatch<T> {
        let mut expired = Vec::new();
        while let Some(model) = self.next_model() {
            let expected = buckets.filled_by(self.waiting(model));
            let done = now + predict(model, expected);
            expired.extend(
                self.extract(|entry| entry.model == model && entry.deadline.is_some_and(|d| d < done)),
            );
            let size = buckets.filled_by(self.waiting(model));
            if size > 0 {
                let batch = self.take(model, size);
                return NextBatch { batch, expired };
            }
        }
        NextBatch { batch: Vec::new(), expired }
    }

    fn next_model(&self) -> Option<ModelDigest> {
        self.classes.iter().find_map(|class| class.front().map(|queue| queue.model))
    }

    /// Waiting chips of `model`, in every class.
    pub fn waiting(&self, model: ModelDigest) -> usize {
        let queues = self.classes.iter().flatten().filter(|queue| queue.model == model);
        queues.flat_map(|queue| &queue.tenants).map(|tenant| tenant.entries.len()).sum()
    }

    /// Takes `size` chips of `model`, which must have that many, from its tenants in turn.
    fn take(&mut self, model: ModelDigest, size: usize) -> Vec<Entry<T>> {
        let mut batch = Vec::with_capacity(size);
        for class in &mut self.classes {
            if batch.len() == size {
                // A class that gets nothing of a full batch keeps its turn.
                break;
            }
            let Some(index) = class.iter().position(|queue| queue.model == model) else { continue };
            let Some(mut queue) = class.remove(index) else { continue };
            while batch.len() < size
                && let Some(mut tenant) = queue.tenants.pop_front()
            {
                batch.extend(tenant.entries.pop_front());
                if !tenant.entries.is_empty() {
                    queue.tenants.push_back(tenant);
                }
            }
            if !queue.tenants.is_empty() {
                // The model has had its turn.
                class.push_back(queue);
            }
        }
        self.len -= batch.len();
        batch
    }

    fn extract(&mut self, wanted: impl Fn(&Entry<T>) -> bool) -> Vec<Entry<T>> {
        let mut found = Vec::new();
        for class in &mut self.classes {
            for queue in class.iter_mut() {
                for tenant in &mut queue.tenants {
                    if !tenant.entries.iter().any(&wanted) {
                        continue;
                    }
                    let (out, kept) = tenant.entries.drain(..).partition::<VecDeque<_>, _>(&wanted);
                    tenant.entries = kept;
                    found.extend(out);
                }
                queue.tenants.retain(|tenant| !tenant.entries.is_empty());
            }
            class.retain(|queue| !queue.tenants.is_empty());
        }
        self.len -= found.len();
        found
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn digest(model: u8) -> ModelDigest {
        ModelDigest::new([model; 32])
    }

    fn entry(id: u64, model: u8, tenant: &str, priority: Priority) -> Entry<()> {
        Entry { id, model: digest(model), tenant: tenant.into(), priority, deadline: None, payload: () }
    }

    fn ids(entries: &[Entry<()>]) -> Vec<u64> {
        entries.iter().map(|entry| entry.id).collect()
    }

    fn take(schedule: &mut Schedule<()>, max: usize) -> Vec<u64> {
        ids(&schedule.take_batch(Instant::now(), &Buckets::up_to(max), |_, _| Duration::ZERO).batch)
    }

    #[test]
    fn buckets_are_powers_of_two_and_the_largest() {
        assert_eq!(Buckets::up_to(1).sizes(), [1]);
        assert_eq!(Buckets::up_to(12).sizes(), [1, 2, 4, 8, 12]);
        let mut buckets = Buckets::up_to(8);
        assert_eq!([0, 1, 3, 7, 8, 100].map(|n| buckets.filled_by(n)), [0, 1, 2, 4, 8, 8]);
        buckets.halve();
        assert_eq!(buckets.largest(), 4);
        (0..5).for_each(|_| buckets.halve());
        assert_eq!(buckets.sizes(), [1]);
        let mut odd = Buckets::up_to(12);
        odd.halve();
        assert_eq!(odd.sizes(), [1, 2, 4, 6]);
    }

    #[test]
    fn tenants_take_turns_and_a_flood_does_not_delay_a_single_chip() {
        let mut schedule = Schedule::default();
        (0..10).for_each(|id| schedule.insert(entry(id, 0, "flood", Priority::Interactive)));
        schedule.insert(entry(100, 0, "quiet", Priority::Interactive));
        assert_eq!(take(&mut schedule, 4), [0, 100, 1, 2]);
    }

    #[test]
    fn only_chips_that_will_be_served_before_are_ahead() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.ahead_of("quiet", Priority::Bulk), 0);
        (0..10).for_each(|id| schedule.insert(entry(id, 0, "flood", Priority::Interactive)));
        assert_eq!(schedule.ahead_of("flood", Priority::Interactive), 10);
        assert_eq!(schedule.ahead_of("quiet", Priority::Interactive), 1);
        schedule.insert(entry(10, 1, "quiet", Priority::Interactive));
        assert_eq!(schedule.ahead_of("quiet", Priority::Interactive), 3);
        (20..25).for_each(|id| schedule.insert(entry(id, 0, "flood", Priority::Bulk)));
        assert_eq!(schedule.ahead_of("quiet", Priority::Bulk), 12);
        assert_eq!(schedule.ahead_of("quiet", Priority::Interactive), 3);
    }

    #[test]
    fn a_higher_class_goes_first_and_a_lower_one_fills_the_batch() {
        let mut schedule = Schedule::default();
        (0..4).for_each(|id| schedule.insert(entry(id, 0, "t", Priority::Bulk)));
        schedule.insert(entry(10, 0, "t", Priority::Interactive));
        assert_eq!(take(&mut schedule, 4), [10, 0, 1, 2]);
    }

    #[test]
    fn a_batch_has_one_model_and_models_take_turns() {
        let mut schedule = Schedule::default();
        for id in 0..4 {
            schedule.insert(entry(id, 0, "t", Priority::Interactive));
            schedule.insert(entry(10 + id, 1, "t", Priority::Interactive));
        }
        assert_eq!(take(&mut schedule, 2), [0, 1]);
        assert_eq!(take(&mut schedule, 2), [10, 11]);
        assert_eq!(take(&mut schedule, 2), [2, 3]);
    }

    #[test]
    fn a_full_interactive_batch_leaves_the_turns_of_bulk_as_they_are() {
        let mut schedule = Schedule::default();
        for id in 0..4 {
            schedule.insert(entry(id, 0, "t", Priority::Bulk));
            schedule.insert(entry(10 + id, 1, "t", Priority::Bulk));
        }
        let mut served = vec![];
        for id in [20, 22, 24, 26] {
            schedule.insert(entry(id, 0, "t", Priority::Interactive));
            schedule.insert(entry(id + 1, 0, "t", Priority::Interactive));
            assert_eq!(take(&mut schedule, 2), [id, id + 1]);
            served.push(take(&mut schedule, 2));
        }
        assert_eq!(served, [[0, 1], [10, 11], [2, 3], [12, 13]]);
    }

    #[test]
    fn a_chip_that_cannot_be_in_time_is_taken_out_before_it_costs_the_device() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        for (id, milliseconds) in [(0, 5), (1, 15), (2, 500)] {
            let deadline = Some(now + Duration::from_millis(milliseconds));
            schedule.insert(Entry { deadline, ..entry(id, 0, "t", Priority::Interactive) });
        }
        let taken = schedule.take_batch(now, &Buckets::up_to(8), |_, n| Duration::from_millis(10 * n as u64));
        assert_eq!((ids(&taken.expired), ids(&taken.batch)), (vec![0, 1], vec![2]));
        assert_eq!(schedule.len(), 0);
    }

    #[test]
    fn a_model_whose_chips_are_all_late_leaves_the_turn_to_the_next() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.insert(Entry { deadline: Some(now), ..entry(0, 0, "t", Priority::Interactive) });
        schedule.insert(entry(1, 1, "t", Priority::Interactive));
        let taken = schedule.take_batch(now, &Buckets::up_to(8), |_, _| Duration::from_millis(1));
        assert_eq!((ids(&taken.expired), ids(&taken.batch)), (vec![0], vec![1]));
    }

    #[test]
    fn a_removed_chip_is_gone_at_once() {
        let mut schedule = Schedule::default();
        (0..3).for_each(|id| schedule.insert(entry(id, 0, "t", Priority::Interactive)));
        assert_eq!(schedule.remove(1).map(|entry| entry.id), Some(1));
        assert!(schedule.remove(1).is_none());
        assert_eq!((schedule.len(), take(&mut schedule, 2)), (2, vec![0, 2]));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { model: u8, tenant: u8, bulk: bool },
        Remove(usize),
        Take(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3u8, 0..4u8, any::<bool>()).prop_map(|(model, tenant, bulk)| Step::Insert { model, tenant, bulk }),
            1 => any::<usize>().prop_map(Step::Remove),
            2 => (1..9usize).prop_map(Step::Take),
        ]
    }

    proptest! {
        /// Nothing is lost or duplicated, models never mix, and a tenant's chips of one class keep their order.
        #[test]
        fn every_chip_leaves_once_and_in_its_tenants_order(steps in prop::collection::vec(step(), 0..200)) {
            let mut schedule = Schedule::default();
            let mut waiting: Vec<u64> = Vec::new();
            let mut last: HashMap<(ModelDigest, Arc<str>, Priority), u64> = HashMap::new();
            for (id, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert { model, tenant, bulk } => {
                        let priority = if bulk { Priority::Bulk } else { Priority::Interactive };
                        schedule.insert(entry(id as u64, model, &format!("t{tenant}"), priority));
                        waiting.push(id as u64);
                    }
                    Step::Remove(index) if !waiting.is_empty() => {
                        let gone = waiting.remove(index % waiting.len());
                        prop_assert_eq!(schedule.remove(gone).map(|entry| entry.id), Some(gone));
                    }
                    Step::Remove(_) => prop_assert!(schedule.remove(0).is_none()),
                    Step::Take(max) => {
                        let batch = schedule.take_batch(Instant::now(), &Buckets::up_to(max), |_, _| Duration::ZERO).batch;
                        prop_assert_eq!(batch.is_empty(), waiting.is_empty());
                        for entry in &batch {
                            prop_assert_eq!(entry.model, batch[0].model);
                            prop_assert!(waiting.contains(&entry.id));
                            waiting.retain(|id| *id != entry.id);
                            let key = (entry.model, Arc::clone(&entry.tenant), entry.priority);
                            if let Some(before) = last.insert(key, entry.id) {
                                prop_assert!(before < entry.id);
                            }
                        }
                    }
                }
                prop_assert_eq!(schedule.len(), waiting.len());
            }
        }

        /// While tenants have work, none is ever more than one chip ahead of another.
        #[test]
        fn backlogged_tenants_are_served_evenly(tenants in 2..6usize, max in 1..9usize, batches in 1..20usize) {
            let mut schedule = Schedule::default();
            let backlog = max * batches;
            for id in 0..tenants * backlog {
                schedule.insert(entry(id as u64, 0, &format!("t{}", id / backlog), Priority::Interactive));
            }
            let mut served = vec![0usize; tenants];
            for _ in 0..batches {
                for id in take(&mut schedule, max) {
                    served[id as usize / backlog] += 1;
                }
                let spread = served.iter().max().unwrap_or(&0) - served.iter().min().unwrap_or(&0);
                prop_assert!(spread <= 1, "{served:?}");
            }
        }
    }
}
