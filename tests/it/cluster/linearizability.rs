//! Whether a history of concurrent calls has an order in which an object could have answered them one at a time (Wing and
//! Gong's search, with Lowe's memory of what was tried).
//!
//! A call takes effect at one moment between its beginning and its answer. One without an answer may take effect at any
//! moment after its beginning, or never. Objects that share no state are judged one by one, which decides the same
//! (linearizability is local) and costs less.

use std::collections::{HashMap, HashSet};
use std::fmt::{Debug, Write};
use std::hash::Hash;

use fixedbitset::FixedBitSet;

/// What an object does, one call at a time.
pub trait Object {
    type State: Clone + Debug + Eq + Hash;
    type Call: Debug;
    type Answer: Debug + PartialEq;

    /// The state after a call, and its answer.
    fn apply(state: &Self::State, call: &Self::Call) -> (Self::State, Self::Answer);

    /// Whether a call whose answer fits may be placed at once where it changes nothing. Not if it could have the same answer
    /// and an effect later.
    fn has_no_better_place(_: &Self::Call) -> bool {
        true
    }

    /// What only this call writes.
    fn mark(call: &Self::Call) -> Option<u32>;

    /// What calls have written of which this answer tells.
    fn marks(answer: &Self::Answer) -> Vec<u32>;
}

/// A call in a history. Moments are numbered in the order in which they were seen.
#[derive(Debug)]
pub struct Event<O: Object> {
    pub call: O::Call,
    pub begun: usize,
    /// When it was answered, and what. `None`: it may have happened or not.
    pub answered: Option<(usize, O::Answer)>,
}

#[derive(Debug, PartialEq)]
pub enum Verdict {
    Linearizable,
    /// Why, by the longest order that was found.
    Violated(String),
    /// Too many orders are possible; the longest that was found.
    Undecided(String),
}

/// Steps of the search; a history that needs more has too many calls without an answer.
const STEPS_MAX: usize = 200_000;

/// One call that was put into the order, and what else could have come in its place.
struct Choice<S> {
    former: S,
    chosen: usize,
    others: Vec<usize>,
}

struct Search<'h, O: Object> {
    events: &'h [Event<O>],
    /// When each must have taken effect, if it must.
    due: &'h [Option<usize>],
    /// How many may have their place of those that need not have taken effect, and how many have.
    unnoticed_max: usize,
    unnoticed: usize,
    /// Which have their place in the order.
    placed: FixedBitSet,
    state: O::State,
    choices: Vec<Choice<O::State>>,
    tried: HashSet<(FixedBitSet, O::State)>,
    /// The most calls with an answer that any order had, and why it ended.
    furthest: (usize, String),
}

/// Judges the history of one object. `events` are in the order of their beginnings.
pub fn check<O: Object>(start: &O::State, events: &[Event<O>]) -> Verdict {
    assert!(events.is_sorted_by_key(|event| event.begun));
    let due = due(events);
    let unanswered = due.iter().filter(|due| due.is_none()).count();
    // Most calls that nobody answered or noticed have not happened, so orders with few of them are tried first.
    for unnoticed_max in [0, 1, 2, 4, 8].into_iter().filter(|few| *few < unanswered) {
        let search = Search::new(start.clone(), events, &due, unnoticed_max);
        if search.run(STEPS_MAX / 10) == Verdict::Linearizable {
            return Verdict::Linearizable;
        }
    }
    Search::new(start.clone(), events, &due, unanswered).run(STEPS_MAX)
}

/// A call must have taken effect when it is answered, or once an answer to another tells of what it wrote.
fn due<O: Object>(events: &[Event<O>]) -> Vec<Option<usize>> {
    let mut seen: HashMap<u32, usize> = HashMap::new();
    for (moment, answer) in events.iter().filter_map(|event| event.answered.as_ref()) {
        for mark in O::marks(answer) {
            let first = seen.entry(mark).or_insert(*moment);
            *first = (*first).min(*moment);
        }
    }
    let due = |event: &Event<O>| match &event.answered {
        Some((moment, _)) => Some(*moment),
        None => seen.get(&O::mark(&event.call)?).copied(),
    };
    events.iter().map(due).collect()
}

impl<'h, O: Object> Search<'h, O> {
    fn new(state: O::State, events: &'h [Event<O>], due: &'h [Option<usize>], unnoticed_max: usize) -> Self {
        Self {
            events,
            due,
            unnoticed_max,
            unnoticed: 0,
            placed: FixedBitSet::with_capacity(events.len()),
            state,
            choices: vec![],
            tried: HashSet::new(),
            furthest: (0, String::new()),
        }
    }

    fn run(mut self, steps: usize) -> Verdict {
        for _ in 0..steps {
            let Some(deadline) = self.deadline() else { return Verdict::Linearizable };
            let mut next = self.candidates(deadline);
            next.reverse();
            if !self.place_one_of(next) {
                self.remember(deadline);
                if !self.go_back() {
                    return Verdict::Violated(self.furthest.1);
                }
            }
        }
        Verdict::Undecided(self.furthest.1)
    }

    /// The moment by which the next of those that have no place yet is due. Whatever comes before it had begun by then.
    fn deadline(&self) -> Option<usize> {
        self.placed.zeroes().filter_map(|event| self.due[event]).min()
    }

    /// Calls that may come next, the likely ones first.
    fn candidates(&self, deadline: usize) -> Vec<usize> {
        let (mut needed, mut possible) = (vec![], vec![]);
        let begun = self.placed.zeroes().take_while(|event| self.events[*event].begun < deadline);
        for number in begun {
            let event = &self.events[number];
            let (after, answer) = O::apply(&self.state, &event.call);
            let changes = after != self.state;
            match &event.answered {
                // What fits and changes nothing may as well come now as later.
                Some((_, given)) if *given == answer && !changes && O::has_no_better_place(&event.call) => {
                    return vec![number];
                }
                Some((_, given)) if *given == answer => needed.push(number),
                // Without an effect it may as well never have happened.
                None if changes && self.due[number].is_some() => needed.push(number),
                None if changes && self.unnoticed < self.unnoticed_max => possible.push(number),
                _ => {}
            }
        }
        needed.append(&mut possible);
        needed
    }

    /// Puts the last of these that leads to something new into the order.
    fn place_one_of(&mut self, mut next: Vec<usize>) -> bool {
        while let Some(number) = next.pop() {
            let (after, _) = O::apply(&self.state, &self.events[number].call);
            self.insert(number);
            if self.tried.insert((self.placed.clone(), after.clone())) {
                let former = std::mem::replace(&mut self.state, after);
                self.choices.push(Choice { former, chosen: number, others: next });
                return true;
            }
            self.remove(number);
        }
        false
    }

    fn insert(&mut self, number: usize) {
        self.placed.insert(number);
        self.unnoticed += usize::from(self.due[number].is_none());
    }

    fn remove(&mut self, number: usize) {
        self.placed.remove(number);
        self.unnoticed -= usize::from(self.due[number].is_none());
    }

    fn go_back(&mut self) -> bool {
        while let Some(Choice { former, chosen, others }) = self.choices.pop() {
            self.remove(chosen);
            self.state = former;
            if self.place_one_of(others) {
                return true;
            }
        }
        false
    }

    fn remember(&mut self, deadline: usize) {
        let answered = self.placed.ones().filter(|event| self.events[*event].answered.is_some()).count();
        if answered < self.furthest.0 || (answered == self.furthest.0 && !self.furthest.1.is_empty()) {
            return;
        }
        let mut told = format!("after {answered} calls the state is {:?}, and none fits of:\n", self.state);
        for number in self.placed.zeroes().take_while(|event| self.events[*event].begun < deadline) {
            let Event { call, begun, answered } = &self.events[number];
            let expected = O::apply(&self.state, call).1;
            let _ = writeln!(told, "{begun}: {call:?} -> {answered:?}, here {expected:?}");
        }
        let _ = writeln!(told, "the last in the order:");
        for Choice { chosen, .. } in self.choices.iter().rev().take(20) {
            let Event { call, begun, answered } = &self.events[*chosen];
            let _ = writeln!(told, "{begun}: {call:?} -> {answered:?}");
        }
        self.furthest = (answered, told);
    }
}
