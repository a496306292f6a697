//! Histories of a simulated service, with and without faults, by which the checker itself is checked.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::gallery::{Answer, Call, Contents, EMPTY, Gallery, Held};
use super::linearizability::{Event, Object, Verdict, check};

const CALLERS: usize = 6;
const CALLS: usize = 200;
/// After so many calls, callers wait for each other.
const CALLS_TOGETHER: usize = 25;
const SEEDS: u64 = 50;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// An enrolment is answered, and has no effect.
    LostWrite,
    /// A read is answered by a state before a change that was acknowledged before the read began.
    StaleRead,
    /// An entry that was deleted comes back.
    ResurrectedDelete,
    /// A reader sees some entries of a merge moved, and others not yet.
    HalfMerge,
    /// A list has an entry twice.
    DoubledEntry,
}

/// A call on its way, and its answer once it has taken effect.
struct Pending {
    event: usize,
    answer: Option<Answer>,
}

struct Service {
    random: ChaCha8Rng,
    /// One call in so many is never answered.
    unanswered: Option<u32>,
    /// The fault, until it has happened.
    fault: Option<Fault>,
    moment: usize,
    events: Vec<Event<Gallery>>,
    /// Every state, the latest last.
    states: Vec<Contents>,
    /// For every call, the latest state that was acknowledged when it began, and the one that it made, if any.
    known: Vec<usize>,
    made: Vec<usize>,
    /// The latest state that is acknowledged.
    acknowledged: usize,
    /// Whether no other call is on its way.
    is_alone: bool,
    /// An entry that a call deleted.
    deleted: Option<(usize, u8, Held)>,
    /// The state within the merge that was the last change.
    half: Option<Contents>,
}

impl Service {
    fn new(seed: u64, unanswered: Option<u32>, fault: Option<Fault>) -> Self {
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            unanswered,
            fault,
            moment: 0,
            events: vec![],
            states: vec![EMPTY],
            known: vec![],
            made: vec![],
            acknowledged: 0,
            is_alone: false,
            deleted: None,
            half: None,
        }
    }

    /// The history of callers that each make one call after the other, and whether the fault has happened.
    fn run(mut self) -> (Vec<Event<Gallery>>, bool) {
        let had_fault = self.fault;
        let mut callers: Vec<Option<Pending>> = (0..CALLERS).map(|_| None).collect();
        while self.events.len() < CALLS {
            let caller = self.random.random_range(0..CALLERS);
            callers[caller] = self.go_on(callers[caller].take());
            if self.events.len().is_multiple_of(CALLS_TOGETHER) {
                callers.iter_mut().for_each(|caller| self.finish(caller));
                self.read_alone();
            }
        }
        // Whatever happened shows in the end.
        callers.iter_mut().for_each(|caller| self.finish(caller));
        let has_happened = had_fault.is_some() && self.fault.take().is_none();
        self.read_alone();
        (self.events, has_happened)
    }

    fn finish(&mut self, caller: &mut Option<Pending>) {
        while caller.is_some() {
            *caller = self.go_on(caller.take());
        }
    }

    fn read_alone(&mut self) {
        self.is_alone = true;
        let mut read = Some(self.begin(Call::List));
        self.finish(&mut read);
        self.is_alone = false;
    }

    fn go_on(&mut self, pending: Option<Pending>) -> Option<Pending> {
        self.moment += 1;
        match pending {
            None => {
                let call = Call::draw(&mut self.random, self.events.len() as u32);
                Some(self.begin(call))
            }
            Some(Pending { event, answer: None }) => {
                if self.unanswered.is_some_and(|one_in| self.random.random_ratio(1, one_in)) {
                    if self.random.random() {
                        self.perform(event);
                    }
                    return None;
                }
                let answer = Some(self.perform(event));
                Some(Pending { event, answer })
            }
            Some(Pending { event, answer: Some(answer) }) => {
                self.events[event].answered = Some((self.moment, answer));
                self.acknowledged = self.acknowledged.max(self.made[event]);
                None
            }
        }
    }

    fn begin(&mut self, call: Call) -> Pending {
        self.events.push(Event { call, begun: self.moment, answered: None });
        self.known.push(self.acknowledged);
        self.made.push(0);
        Pending { event: self.events.len() - 1, answer: None }
    }

    fn perform(&mut self, event: usize) -> Answer {
        let before = *self.states.last().expect("the first");
        let call = self.events[event].call.clone();
        let (mut after, mut answer) = Gallery::apply(&before, &call);
        let is_late_enough = event > CALLS / 4;
        if is_late_enough && self.fault.is_some_and(|fault| self.fail(fault, event, &mut after, &mut answer))
        {
            self.fault = None;
        }
        if after != before {
            self.half = half(&before, &after);
            let gone = (0..)
                .zip(before.iter().zip(&after))
                .find(|(_, (before, after))| before.is_some() && after.is_none());
            if let Some((key, (Some(held), _))) = gone {
                self.deleted = Some((event, key, *held));
            }
            self.states.push(after);
            self.made[event] = self.states.len() - 1;
        }
        answer
    }

    /// Lets the fault happen if this call can have it.
    fn fail(&mut self, fault: Fault, event: usize, after: &mut Contents, answer: &mut Answer) -> bool {
        let call = &self.events[event].call;
        let before = self.states.last().expect("the first");
        match fault {
            Fault::LostWrite => {
                // What another call replaces at the same time might as well have been replaced by it.
                let is_created = *answer == Answer::Created;
                if is_created {
                    *after = *before;
                }
                is_created
            }
            Fault::StaleRead => {
                let known = self.known[event];
                if !self.is_alone || known == 0 {
                    return false;
                }
                // Replacements of one entry at the same time have more than one order; its creation has not.
                let (former, acknowledged) = (&self.states[known - 1], &self.states[known]);
                if (former.iter().zip(acknowledged)).all(|(former, now)| former.is_some() || now.is_none()) {
                    return false;
                }
                let read = |state: &Contents| Gallery::apply(state, call).1;
                let stale = read(&self.states[known - 1]);
                let is_stale = self.states[known..].iter().all(|state| read(state) != stale);
                if is_stale {
                    *answer = stale;
                }
                is_stale
            }
            Fault::ResurrectedDelete => {
                let Some((deletion, key, held)) = self.deleted else { return false };
                let is_answered = self.events[deletion].answered.is_some();
                let can_return = is_answered && before == after && after[usize::from(key)].is_none();
                if can_return {
                    after[usize::from(key)] = Some(held);
                }
                can_return
            }
            Fault::HalfMerge => {
                let is_of_all = matches!(call, Call::List | Call::Match);
                let Some(half) = self.half.filter(|_| is_of_all) else { return false };
                *answer = Gallery::apply(&half, call).1;
                true
            }
            Fault::DoubledEntry => match answer {
                Answer::Entries(entries) if !entries.is_empty() => {
                    entries.insert(0, entries[0]);
                    true
                }
                _ => false,
            },
        }
    }
}

/// Where a change has moved several entries to other vessels, and nothing else: a state in which only the first has moved.
fn half(before: &Contents, after: &Contents) -> Option<Contents> {
    let moved: Vec<usize> = (0..before.len()).filter(|key| before[*key] != after[*key]).collect();
    let is_merge = moved.iter().all(|key| {
        let [former, now] = [before[*key], after[*key]];
        former.zip(now).is_some_and(|(former, now)| former.note == now.note)
    });
    let mut half = *before;
    half[*moved.first()?] = after[moved[0]];
    (is_merge && moved.len() > 1).then_some(half)
}

#[test]
fn a_history_with_an_order_is_accepted_whatever_became_of_unanswered_calls() {
    for seed in 0..SEEDS {
        for unanswered in [None, Some(40), Some(20)] {
            let (events, _) = Service::new(seed, unanswered, None).run();
            assert_eq!(check(&EMPTY, &events), Verdict::Linearizable, "seed {seed}, {unanswered:?}");
        }
    }
}

fn check_fault(fault: Fault) {
    let mut happened = 0;
    for seed in 0..SEEDS {
        let (events, has_happened) = Service::new(seed, None, Some(fault)).run();
        let verdict = check(&EMPTY, &events);
        if has_happened {
            happened += 1;
            assert!(matches!(verdict, Verdict::Violated(_)), "seed {seed}: {verdict:?}");
        } else {
            assert_eq!(verdict, Verdict::Linearizable, "seed {seed}");
        }
    }
    assert!(happened > SEEDS / 2, "it happened {happened} times");
}

#[test]
fn a_lost_write_is_rejected() {
    check_fault(Fault::LostWrite);
}

#[test]
fn a_stale_read_is_rejected() {
    check_fault(Fault::StaleRead);
}

#[test]
fn a_resurrected_delete_is_rejected() {
    check_fault(Fault::ResurrectedDelete);
}

#[test]
fn a_half_merge_is_rejected() {
    check_fault(Fault::HalfMerge);
}

#[test]
fn a_doubled_entry_is_rejected() {
    check_fault(Fault::DoubledEntry);
}
