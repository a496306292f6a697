//! The score that a new candidate must reach to be among the best k, where each key counts once.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

/// The best `k` keys, each by its highest offered score.
#[derive(Debug)]
pub(super) struct Floor {
    k: usize,
    level: f32,
    best: BTreeSet<(Score, u32)>,
    scores: HashMap<u32, Score>,
}

impl Floor {
    pub fn new(k: usize) -> Self {
        // With k = 0 no score suffices.
        let level = if k == 0 { f32::INFINITY } else { f32::NEG_INFINITY };
        Self { k, level, best: BTreeSet::new(), scores: HashMap::new() }
    }

    /// The k-th best score; with fewer keys, a value below every score.
    pub fn level(&self) -> f32 {
        self.level
    }

    /// The best score of a key, if it is among the best.
    pub fn score(&self, key: u32) -> Option<f32> {
        self.scores.get(&key).map(|score| score.0)
    }

    pub fn offer(&mut self, key: u32, score: f32) {
        let score = Score(score);
        if let Some(before) = self.scores.get(&key).copied() {
            if score <= before {
                return;
            }
            self.best.remove(&(before, key));
        }
        self.scores.insert(key, score);
        self.best.insert((score, key));
        if self.best.len() > self.k
            && let Some((_, dropped)) = self.best.pop_first()
        {
            self.scores.remove(&dropped);
        }
        if self.best.len() == self.k
            && let Some((lowest, _)) = self.best.first()
        {
            self.level = lowest.0;
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Score(f32);

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Score {}
