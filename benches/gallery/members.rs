//! The search of a gallery whose model is an ensemble of two, beside the search of one of its members.

use std::convert::Infallible;
use std::hint::black_box;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use shipreid::embedding::{Composition, Part};
use shipreid::gallery::{Code, Filter, Group, Index, IndexQuery, RowId, VesselNumber, VesselSet};
use shipreid::matching::fuse_ranks;

use super::{Arguments, CHIPS_PER_VESSEL, Contest, DIMENSION, K, around, chip, entry, gauss, timed};

const DEPTH: u32 = 100;

/// Prints a table of both searches, by vessel, and returns the figures.
pub fn measure(arguments: &Arguments, entries: usize) -> Value {
    let galleries = Galleries::new(entries, arguments.seed);
    let mut contest = Contest::default();
    for round in 0..arguments.rounds {
        let random = &mut ChaCha8Rng::seed_from_u64(arguments.seed + round as u64);
        let queries: Vec<[Vec<f32>; 2]> = (0..arguments.searches).map(|_| galleries.seen(random)).collect();
        let times =
            |search: &dyn Fn(&[Vec<f32>; 2])| queries.iter().map(|query| timed(|| search(query))).collect();
        contest.add(&format!("one member, k = {K}"), times(&|query| galleries.search_one(&query[0], K)));
        let deep = times(&|query| galleries.search_one(&query[0], DEPTH as usize));
        contest.add(&format!("one member, k = {DEPTH}"), deep);
        contest.add(
            &format!("two members, fused to rank {DEPTH}"),
            times(&|query| galleries.search_both(query)),
        );
    }
    println!("{entries} entries of one model and of an ensemble of two");
    contest.report()
}

/// The same entries as one member embeds them, and as both do.
struct Galleries {
    centres: Vec<[Vec<f32>; 2]>,
    composition: Composition,
    one: Index,
    of_one: Vec<Vec<f32>>,
    both: Index,
    of_both: Vec<Vec<f32>>,
}

impl Galleries {
    fn new(entries: usize, seed: u64) -> Self {
        let random = &mut ChaCha8Rng::seed_from_u64(seed);
        let common = [gauss(random), gauss(random)];
        let centre = |common: &[f32], random: &mut ChaCha8Rng| around(common, 0.6, &gauss(random), 0.6);
        let vessels = entries.div_ceil(CHIPS_PER_VESSEL);
        let centres = (0..vessels).map(|_| common.each_ref().map(|common| centre(common, random))).collect();
        let part = Part { dimension: DIMENSION, weight: 1.0 };
        let composition = Composition::new(&[part; 2], 3, DEPTH).expect("an ensemble");
        let both = Index::composed(composition.dimension(), Some(composition));
        let (one, of_one, of_both) = (Index::new(DIMENSION), vec![], vec![]);
        let mut galleries = Self { centres, composition, one, of_one, both, of_both };
        for row in 0..entries {
            let vessel = random.random_range(0..vessels);
            let seen = galleries.centres[vessel].each_ref().map(|centre| chip(centre, random));
            galleries.push(row, seen, &entry(row, vessel, random));
        }
        galleries
    }

    fn push(&mut self, row: usize, [first, second]: [Vec<f32>; 2], entry: &shipreid::gallery::Entry) {
        let whole = self.composition.compose([first.as_slice(), second.as_slice()]);
        let row = RowId::from_u64(row as u64);
        self.one.push(row, &Code::new(&first), entry);
        self.both.push(row, &Code::composed(&whole, Some(&self.composition)), entry);
        self.of_one.push(first);
        self.of_both.push(whole);
    }

    /// A chip of some vessel as both members embed it.
    fn seen(&self, random: &mut ChaCha8Rng) -> [Vec<f32>; 2] {
        let centres = &self.centres[random.random_range(0..self.centres.len())];
        centres.each_ref().map(|centre| chip(centre, random))
    }

    fn search_one(&self, query: &[f32], k: usize) {
        black_box(ranked(&self.one, &self.of_one, &[query], k));
    }

    fn search_both(&self, query: &[Vec<f32>; 2]) {
        let query = query.each_ref().map(Vec::as_slice);
        let lists = ranked(&self.both, &self.of_both, &query, DEPTH as usize);
        black_box(fuse_ranks(&lists, &self.composition));
    }
}

/// The vessels that each part of a query ranks.
fn ranked(index: &Index, vectors: &[Vec<f32>], query: &[&[f32]], k: usize) -> Vec<Vec<VesselNumber>> {
    let none = VesselSet::default();
    let queries: Vec<IndexQuery> = query
        .iter()
        .enumerate()
        .map(|(part, vector)| IndexQuery { vector, part, k, without_row: None, without_vessels: &none })
        .collect();
    let selection = index.select(&Filter::default(), None, &[]);
    let Ok(found) = index.search(&queries, &selection, Group::Vessel, |row, values| {
        values.copy_from_slice(&vectors[row.to_u64() as usize]);
        Ok::<_, Infallible>(())
    });
    found.iter().map(|found| found.hits.iter().map(|hit| hit.vessel).collect()).collect()
}
