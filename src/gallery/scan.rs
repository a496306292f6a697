//! The exact best of many rows: a scan of the codes leaves few, whose vectors decide.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::codes::{Code, Codes};

/// Candidates that are kept before those are dropped that can no longer be among the best.
const CANDIDATES_MIN: usize = 4096;

/// A row and its cosine with the query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    pub row: usize,
    pub cosine: f32,
}

/// The `k` rows of `rows` with the highest cosine, best first; of equals, the lower row first. Fewer only where `rows`
/// has fewer. The ranking is that of all vectors in f32, whatever the codes say.
///
/// `vector` gives the unit vector that a row's code was made of.
pub fn search<'v>(
    codes: &Codes,
    query: &[f32],
    rows: impl IntoIterator<Item = usize>,
    k: usize,
    vector: impl Fn(usize) -> &'v [f32],
) -> Vec<Hit> {
    let mut best = Best::new(k);
    for candidate in candidates(codes, query, rows, k) {
        if best.is_full() && best.worst().is_some_and(|worst| worst.cosine > candidate.upper) {
            // Candidates come by what they could reach at most, so none of the rest gets in.
            break;
        }
        let products = query.iter().zip(vector(candidate.row)).map(|(a, b)| f64::from(*a) * f64::from(*b));
        best.offer(Hit { row: candidate.row, cosine: products.sum::<f64>() as f32 });
    }
    best.ranked()
}

struct Candidate {
    row: usize,
    upper: f32,
}

/// Every row that could be among the best `k`, by the most that it could reach.
fn candidates(
    codes: &Codes,
    query: &[f32],
    rows: impl IntoIterator<Item = usize>,
    k: usize,
) -> Vec<Candidate> {
    let query = Code::new(query);
    // The k-th highest lower bound: what stays below it for certain is out.
    let mut surely = BinaryHeap::with_capacity(k + 1);
    let mut found: Vec<Candidate> = Vec::new();
    let mut prune_at = CANDIDATES_MIN.max(2 * k);
    for row in rows {
        let bounds = codes.bounds(&query, row);
        let enough = surely.len() == k;
        if enough && surely.peek().is_some_and(|Reverse(Ordered(floor))| bounds.upper < *floor) {
            continue;
        }
        found.push(Candidate { row, upper: bounds.upper });
        surely.push(Reverse(Ordered(bounds.lower)));
        if surely.len() > k {
            surely.pop();
        }
        if found.len() >= prune_at {
            keep_possible(&mut found, &surely, k);
            prune_at = CANDIDATES_MIN.max(2 * found.len());
        }
    }
    keep_possible(&mut found, &surely, k);
    found.sort_by(|a, b| b.upper.total_cmp(&a.upper).then(a.row.cmp(&b.row)));
    found
}

fn keep_possible(found: &mut Vec<Candidate>, surely: &BinaryHeap<Reverse<Ordered>>, k: usize) {
    if let Some(Reverse(Ordered(floor))) = surely.peek().filter(|_| surely.len() == k) {
        found.retain(|candidate| candidate.upper >= *floor);
    }
}

#[derive(PartialEq)]
struct Ordered(f32);

impl Eq for Ordered {}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The best hits so far, best first.
struct Best {
    k: usize,
    hits: Vec<Hit>,
}

impl Best {
    fn new(k: usize) -> Self {
        Self { k, hits: Vec::with_capacity(k.min(CANDIDATES_MIN)) }
    }

    fn is_full(&self) -> bool {
        self.hits.len() == self.k
    }

    fn worst(&self) -> Option<&Hit> {
        self.hits.last()
    }

    fn offer(&mut self, hit: Hit) {
        let before = |other: &Hit| {
            other.cosine.total_cmp(&hit.cosine).then(hit.row.cmp(&other.row)) == Ordering::Greater
        };
        let place = self.hits.partition_point(before);
        if place < self.k {
            self.hits.insert(place, hit);
            self.hits.truncate(self.k);
        }
    }

    fn ranked(self) -> Vec<Hit> {
        self.hits
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::embedding::Embedding;

    const DIMENSION: usize = 96;

    fn unit(values: impl Iterator<Item = f32>) -> Vec<f32> {
        Embedding::from_feature(values.collect()).expect("a direction").into_vec()
    }

    fn random_unit(random: &mut ChaCha8Rng) -> Vec<f32> {
        unit((0..DIMENSION).map(|_| random.random_range(-1.0..1.0)))
    }

    fn brute_force(vectors: &[Vec<f32>], query: &[f32], rows: &[usize], k: usize) -> Vec<Hit> {
        let hit = |row: &usize| {
            let products = vectors[*row].iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b));
            Hit { row: *row, cosine: products.sum::<f64>() as f32 }
        };
        let mut hits: Vec<Hit> = rows.iter().map(hit).collect();
        hits.sort_by(|a, b| b.cosine.total_cmp(&a.cosine).then(a.row.cmp(&b.row)));
        hits.truncate(k);
        hits
    }

    fn check(vectors: &[Vec<f32>], query: &[f32], rows: &[usize], k: usize) {
        let mut codes = Codes::new(DIMENSION);
        vectors.iter().for_each(|vector| codes.push(vector));
        let found = search(&codes, query, rows.iter().copied(), k, |row| &vectors[row]);
        assert_eq!(found, brute_force(vectors, query, rows, k));
    }

    #[test]
    fn a_search_is_brute_force_whatever_the_filter_leaves() {
        let random = &mut ChaCha8Rng::seed_from_u64(1);
        let vectors: Vec<_> = (0..6000).map(|_| random_unit(random)).collect();
        let all: Vec<usize> = (0..vectors.len()).collect();
        let tenth: Vec<usize> = all.iter().copied().filter(|_| random.random_bool(0.1)).collect();
        for rows in [&[][..], &[17], &tenth, &all] {
            for k in [1, 10, 700, 10_000] {
                check(&vectors, &random_unit(random), rows, k);
            }
        }
    }

    #[test]
    fn near_duplicates_and_equals_are_ranked_as_in_f32() {
        let random = &mut ChaCha8Rng::seed_from_u64(2);
        let base = random_unit(random);
        for spread in [0.0, 1e-7, 1e-6, 1e-4] {
            let near: Vec<_> = (0..5000)
                .map(|_| unit(base.iter().map(|value| value + random.random_range(-1.0..=1.0) * spread)))
                .collect();
            let rows: Vec<usize> = (0..near.len()).collect();
            check(&near, &base, &rows, 10);
            check(&near, &random_unit(random), &rows, 10);
        }
    }
}
