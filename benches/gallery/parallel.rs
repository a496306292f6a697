//! Searches on several threads at once beside one: they share nothing but memory bandwidth.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use shipreid::gallery::{Code, Filter, Group, Index, IndexQuery, RowId, VesselSet};

use super::{Arguments, CHIPS_PER_VESSEL, DIMENSION, K, around, chip, entry, gauss, median, numbers, stream};

/// Prints and returns searches per second of wall time on one thread and on several, and reading as many bytes likewise.
pub fn measure(arguments: &Arguments, entries: usize, threads: usize) -> Value {
    let gallery = Gallery::new(entries, arguments.seed);
    let memory = numbers(entries * DIMENSION / 8);
    let (mut searches, mut readings) = (Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        // Whoever goes first may find a cooler machine.
        let order = if round % 2 == 0 { [1, threads] } else { [threads, 1] };
        let rates = |work: &(dyn Fn(usize) + Sync)| {
            let mut rates = order.map(|count| (count, at_once(count, arguments.searches, work)));
            rates.sort_by_key(|(count, _)| *count);
            rates.map(|(_, rate)| rate)
        };
        searches.push(rates(&|at| gallery.search(round * arguments.searches + at)));
        readings.push(rates(&|_| stream(&memory)));
    }
    println!(
        "{entries} entries, unfiltered, by vessel, per second\n\n| | 1 thread | {threads} threads | ratio |\n|---|---|---|---|"
    );
    let rows = [("searches", searches), ("reading as many bytes", readings)]
        .map(|(name, rounds)| row(name, &rounds));
    println!();
    json!({ "entries": entries, "threads": threads, "searches": rows[0], "readings": rows[1] })
}

fn row(name: &str, rounds: &[[f64; 2]]) -> Value {
    let [one, several] = [0, 1].map(|at| median(rounds.iter().map(|rates| rates[at]).collect()));
    let mut ratios: Vec<f64> = rounds.iter().map(|[one, several]| several / one).collect();
    ratios.sort_by(f64::total_cmp);
    let (ratio, least, most) = (median(ratios.clone()), ratios[0], ratios[ratios.len() - 1]);
    println!("| {name} | {one:.2} | {several:.2} | {ratio:.2} ({least:.2} to {most:.2}) |");
    json!({ "one": one, "several": several, "ratio": ratio })
}

/// How often work is done per second of wall time while each thread does it `times` times.
fn at_once(threads: usize, times: usize, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || (0..times).for_each(|time| work(thread * times + time)));
        }
    });
    let taken: Duration = begun.elapsed();
    (threads * times) as f64 / taken.as_secs_f64()
}

/// Codes alone, as a server has them in memory. A vector is drawn again whenever a search asks for it, as the f32 of ten
/// million entries would take 30 GB.
struct Gallery {
    index: Index,
    common: Vec<f32>,
    seed: u64,
}

impl Gallery {
    fn new(entries: usize, seed: u64) -> Self {
        let common = gauss(&mut ChaCha8Rng::seed_from_u64(seed));
        let mut gallery = Self { index: Index::new(DIMENSION), common, seed };
        let random = &mut ChaCha8Rng::seed_from_u64(seed ^ 0xe47);
        for row in 0..entries {
            let vessel = row / CHIPS_PER_VESSEL;
            let code = Code::new(&gallery.vector(row as u64));
            gallery.index.push(RowId::from_u64(row as u64), &code, &entry(row, vessel, random));
        }
        gallery
    }

    /// The vector of an entry, or of a query by a number beyond them.
    fn vector(&self, row: u64) -> Vec<f32> {
        let drawn = |stream: u64, number: u64| {
            let mut random = ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(number));
            random.set_stream(stream);
            random
        };
        let centre = around(&self.common, 0.6, &gauss(&mut drawn(1, row / CHIPS_PER_VESSEL as u64)), 0.6);
        chip(&centre, &mut drawn(2, row))
    }

    /// Searches for another chip of some vessel.
    fn search(&self, number: usize) {
        let row = (number * 7919) % self.index.len();
        let vessel = (row - row % CHIPS_PER_VESSEL) as u64;
        let query = self.vector(vessel);
        let none = VesselSet::default();
        let query = IndexQuery {
            vector: &query,
            part: 0,
            k: K,
            without_row: Some(RowId::from_u64(vessel)),
            without_vessels: &none,
        };
        let selection = self.index.select(&Filter::default(), None, &[]);
        let Ok(found) = self.index.search(&[query], &selection, Group::Vessel, |row, values| {
            values.copy_from_slice(&self.vector(row.to_u64()));
            Ok::<_, Infallible>(())
        });
        std::hint::black_box(found);
    }
}
