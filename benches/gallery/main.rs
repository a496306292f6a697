//! Compares the search of a gallery with memory bandwidth, brute force and FAISS; prints tables and JSON.
//!
//! Rounds alternate between the candidates, so that drift of the machine affects all of them equally. Ratios
//! are medians over the rounds. Times are processor time of the searching thread, which other programs on the
//! machine do not inflate. Run it with `make bench-gallery`.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde_json::{Map, Value, json};
use shipreid::chip::Modality;
use shipreid::gallery::{
    Code, ContentHash, Entry, EntryId, Filter, Group, Index, IndexQuery, IndexSelection, Labels, Observation,
    RowId, Time, TimeRange, VesselId, VesselSet, cosine,
};

mod members;
mod parallel;

const DIMENSION: usize = 768;
const CHIPS_PER_VESSEL: usize = 20;
const K: usize = 10;
/// Queries per request in the measurement of a shared pass over memory.
const TOGETHER: usize = 16;
/// Queries that brute force answers as well.
const CHECKED: usize = 4;

#[derive(Parser)]
struct Arguments {
    /// Entries of the galleries
    #[arg(long, value_delimiter = ',', default_values_t = [100_000, 1_000_000])]
    entries: Vec<usize>,
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Searches of each kind in a round
    #[arg(long, default_value_t = 10)]
    searches: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also run searches of this many entries on 1 thread and on this many at once
    #[arg(long, num_args = 2, value_names = ["ENTRIES", "THREADS"])]
    parallel: Option<Vec<usize>>,
    /// Also search this many entries of an ensemble of two
    #[arg(long, value_name = "ENTRIES")]
    ensemble: Option<usize>,
    /// A Python that has faiss-cpu
    #[arg(long, default_value = ".venv/bin/python")]
    python: String,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    println!("CPU: {}; {DIMENSION} numbers, k = {K}, {CHIPS_PER_VESSEL} chips a vessel\n", cpu_name());
    let sizes = arguments.entries.iter().map(|entries| measure(&arguments, *entries));
    let sizes = sizes.collect::<Result<Vec<Value>>>()?;
    let parallel =
        arguments.parallel.as_deref().map(|shape| parallel::measure(&arguments, shape[0], shape[1]));
    let ensemble = arguments.ensemble.map(|entries| members::measure(&arguments, entries));
    let figures = json!({ "cpu": cpu_name(), "sizes": sizes, "parallel": parallel, "ensemble": ensemble });
    println!("{figures}");
    Ok(())
}

/// Measures one gallery, prints its table and returns the figures.
fn measure(arguments: &Arguments, entries: usize) -> Result<Value> {
    let gallery = Gallery::new(entries, arguments.seed);
    let recall = gallery.recall();
    ensure!(recall == 1.0, "recall@{K} is {recall}: an exact search must find what brute force finds");
    let mut faiss = Faiss::start(&arguments.python, entries)?;
    let mut contest = Contest::default();
    for round in 0..arguments.rounds {
        let seed = arguments.seed + round as u64;
        gallery.round(seed, arguments.searches, &mut contest);
        if let Some(faiss) = &mut faiss {
            faiss.round(arguments.searches, &mut contest)?;
        }
    }
    println!("{entries} entries, {:.0} bytes each in memory, recall@{K} = {recall}", gallery.bytes_per_entry);
    if faiss.is_none() {
        println!("FAISS was skipped: {} has none", arguments.python);
    }
    let rows = contest.report();
    Ok(json!({
        "entries": entries,
        "bytes_per_entry": gallery.bytes_per_entry,
        "recall": recall,
        "rescored": gallery.rescored(),
        "measured": rows,
    }))
}

/// Times of each candidate by name, one list per round.
#[derive(Default)]
struct Contest(Vec<(String, Vec<Vec<Duration>>)>);

impl Contest {
    fn add(&mut self, name: &str, times: Vec<Duration>) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, rounds)) => rounds.push(times),
            None => self.0.push((name.to_owned(), vec![times])),
        }
    }

    /// Prints a table; ratios are relative to the first row.
    fn report(&self) -> Value {
        println!("\n| | p50 ms | p99 ms | min ms | ratio |\n|---|---|---|---|---|");
        let mut figures = Map::new();
        let (_, baseline) = &self.0[0];
        for (name, rounds) in &self.0 {
            let all: Vec<Duration> = rounds.iter().flatten().copied().collect();
            let ratios: Vec<f64> = rounds
                .iter()
                .zip(baseline)
                .map(|(times, base)| quantile(times, 0.5).as_secs_f64() / quantile(base, 0.5).as_secs_f64())
                .collect();
            let [p50, p99, min] = [0.5, 0.99, 0.0].map(|part| quantile(&all, part).as_secs_f64() * 1e3);
            let ratio = median(ratios);
            println!("| {name} | {p50:.3} | {p99:.3} | {min:.3} | {ratio:.3} |");
            figures
                .insert(name.clone(), json!({ "p50_ms": p50, "p99_ms": p99, "min_ms": min, "ratio": ratio }));
        }
        println!();
        Value::Object(figures)
    }
}

fn quantile(times: &[Duration], part: f64) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[((times.len() - 1) as f64 * part).round() as usize]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A gallery of clustered vectors: vessels around a common direction, chips around their vessel.
struct Gallery {
    index: Index,
    vectors: Vec<f32>,
    centres: Vec<Vec<f32>>,
    bytes_per_entry: f64,
    /// As many bytes as the codes occupy.
    memory: Vec<u64>,
}

impl Gallery {
    fn new(entries: usize, seed: u64) -> Self {
        let random = &mut ChaCha8Rng::seed_from_u64(seed);
        let common = gauss(random);
        let vessels = entries.div_ceil(CHIPS_PER_VESSEL);
        let centres: Vec<Vec<f32>> =
            (0..vessels).map(|_| around(&common, 0.6, &gauss(random), 0.6)).collect();
        let mut vectors = Vec::with_capacity(entries * DIMENSION);
        let vessel_of: Vec<usize> = (0..entries).map(|_| random.random_range(0..vessels)).collect();
        for vessel in &vessel_of {
            vectors.extend(chip(&centres[*vessel], random));
        }
        let before = resident_bytes();
        let mut index = Index::new(DIMENSION);
        for (row, (vector, vessel)) in vectors.chunks(DIMENSION).zip(&vessel_of).enumerate() {
            index.push(RowId::from_u64(row as u64), &Code::new(vector), &entry(row, *vessel, random));
        }
        let bytes_per_entry = (resident_bytes() - before) as f64 / entries as f64;
        let memory = numbers(entries * DIMENSION / 8);
        Self { index, vectors, centres, bytes_per_entry, memory }
    }

    fn queries(&self, count: usize, seed: u64) -> Vec<Vec<f32>> {
        let random = &mut ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
        (0..count).map(|_| chip(&self.centres[random.random_range(0..self.centres.len())], random)).collect()
    }

    /// No filter, a random tenth, and a tenth seen in one contiguous period.
    fn filters(&self) -> [(&'static str, Filter); 3] {
        let random = Filter { labels: vec![("tenth".into(), "0".into())], ..Filter::default() };
        let (from, to) = (self.index.len() / 2, self.index.len() / 2 + self.index.len() / 10);
        let range = TimeRange::new(Some(seen_at(from)), Some(seen_at(to))).expect("in order");
        let correlated = Filter { time_range: Some(range), ..Filter::default() };
        [("unfiltered", Filter::default()), ("random 10 %", random), ("correlated 10 %", correlated)]
    }

    fn select(&self, filter: &Filter) -> IndexSelection {
        self.index.select(filter, None, &[])
    }

    /// The rows and cosines of the best entries, and how many vectors were fetched.
    fn search(
        &self,
        queries: &[Vec<f32>],
        selection: &IndexSelection,
        group: Group,
    ) -> (Vec<Vec<(RowId, f32)>>, usize) {
        let none = VesselSet::default();
        let query = |vector| IndexQuery { vector, part: 0, k: K, without_row: None, without_vessels: &none };
        let queries: Vec<IndexQuery> = queries.iter().map(|vector| query(vector)).collect();
        let mut fetched = 0;
        let Ok(found) = self.index.search(&queries, selection, group, |row, values| {
            fetched += 1;
            values.copy_from_slice(self.vector(row));
            Ok::<_, Infallible>(())
        });
        let hits = found.iter().map(|found| found.hits.iter().map(|hit| (hit.row, hit.cosine)).collect());
        (hits.collect(), fetched)
    }

    fn vector(&self, row: RowId) -> &[f32] {
        &self.vectors[row.to_u64() as usize * DIMENSION..][..DIMENSION]
    }

    /// The fraction of brute force's best entries that a search finds, under every filter.
    fn recall(&self) -> f64 {
        let queries = self.queries(CHECKED, 0);
        let (mut found, mut wanted) = (0, 0);
        for (_, filter) in self.filters() {
            let selection = self.select(&filter);
            let (hits, _) = self.search(&queries, &selection, Group::Entry);
            for (query, hits) in queries.iter().zip(hits) {
                let score = |row| (row, cosine(query, self.vector(row)));
                let mut best: Vec<(RowId, f32)> = self.index.rows(&selection).map(score).collect();
                best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                best.truncate(K);
                wanted += best.len();
                found += best.iter().filter(|hit| hits.contains(hit)).count();
            }
        }
        found as f64 / wanted as f64
    }

    /// Vectors fetched per query, on average, by vessel and by entry.
    fn rescored(&self) -> [f64; 2] {
        let (queries, selection) = (self.queries(20, 1), self.select(&Filter::default()));
        [Group::Vessel, Group::Entry]
            .map(|group| self.search(&queries, &selection, group).1 as f64 / queries.len() as f64)
    }

    /// Streams as many bytes as the codes occupy, then runs every kind of search `searches` times.
    fn round(&self, seed: u64, searches: usize, contest: &mut Contest) {
        let times = |mut search: Box<dyn FnMut(usize) + '_>| -> Vec<Duration> {
            (0..searches).map(|at| timed(|| search(at))).collect()
        };
        let queries = self.queries(searches.max(TOGETHER), seed);
        contest.add("read as many bytes", times(Box::new(|_| stream(&self.memory))));
        for (name, filter) in &self.filters() {
            for (unit, group) in [("vessel", Group::Vessel), ("entry", Group::Entry)] {
                let search = |at: usize| {
                    std::hint::black_box(self.search(&queries[at..=at], &self.select(filter), group));
                };
                contest.add(&format!("{name}, by {unit}"), times(Box::new(search)));
            }
        }
        let together = |_| {
            let selection = self.select(&Filter::default());
            std::hint::black_box(self.search(&queries[..TOGETHER], &selection, Group::Vessel));
        };
        let each = times(Box::new(together)).into_iter().map(|time| time / TOGETHER as u32).collect();
        contest.add(&format!("unfiltered, by vessel, each of {TOGETHER} together"), each);
    }
}

fn gauss(random: &mut ChaCha8Rng) -> Vec<f32> {
    (0..DIMENSION).map(|_| random.sample::<f32, _>(StandardNormal)).collect()
}

/// The unit vector of a weighted sum.
fn around(a: &[f32], weight_a: f32, b: &[f32], weight_b: f32) -> Vec<f32> {
    let sum: Vec<f32> = a.iter().zip(b).map(|(a, b)| a * weight_a + b * weight_b).collect();
    let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
    sum.into_iter().map(|value| value / length).collect()
}

/// A chip of a vessel; the cosine of two such chips is about 0.74.
fn chip(centre: &[f32], random: &mut ChaCha8Rng) -> Vec<f32> {
    let spread = 0.6 / (DIMENSION as f32).sqrt();
    around(centre, 1.0, &gauss(random), spread)
}

/// Entries are enrolled in the order they are seen, one per second.
fn seen_at(row: usize) -> Time {
    Time::from_nanos(row as i64 * 1_000_000_000)
}

fn entry(row: usize, vessel: usize, random: &mut ChaCha8Rng) -> Entry {
    let tenth = ("tenth".to_owned(), random.random_range(0..10).to_string());
    let observation = Observation { observed_at: Some(seen_at(row)), ..Observation::default() };
    Entry {
        id: EntryId::new(&row.to_string()).expect("a number"),
        vessel: VesselId::new(&vessel.to_string()).ok(),
        modality: Modality::Optical,
        observation,
        labels: Labels::new([tenth]).expect("one label"),
        extent_m: None,
        enrolled_at: seen_at(row),
        precision: None,
        content: ContentHash::new([0; 32]),
    }
}

/// Memory in huge pages, where the kernel supports them: the fastest to read.
fn numbers(count: usize) -> Vec<u64> {
    let mut numbers: Vec<u64> = Vec::with_capacity(count);
    let start = (numbers.as_mut_ptr() as usize).next_multiple_of(4096);
    // SAFETY: the advice changes no content, and the range lies within the vector's memory.
    unsafe { libc::madvise(start as *mut libc::c_void, count * 8 - 4096, libc::MADV_HUGEPAGE) };
    numbers.extend(0..count as u64);
    numbers
}

/// Reads all of it, in lanes, so that memory is the bottleneck.
fn stream(memory: &[u64]) {
    let mut sums = [0_u64; 16];
    for values in memory.chunks_exact(sums.len()) {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum ^= value);
    }
    std::hint::black_box(sums);
}

/// Processor time of this thread.
fn timed(run: impl FnOnce()) -> Duration {
    let before = thread_time();
    run();
    thread_time() - before
}

fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the struct that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    name.unwrap_or("unknown").to_owned()
}

/// `benches/gallery_faiss.py`, which reads a line describing the search and replies with times.
struct Faiss {
    process: Child,
    asks: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Faiss {
    /// `None` where Python has no FAISS.
    fn start(python: &str, entries: usize) -> Result<Option<Self>> {
        let installed = Command::new(python).args(["-c", "import faiss"]).stderr(Stdio::null()).status();
        if !installed.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gallery_faiss.py");
        let mut process = Command::new(python)
            .arg(script)
            .args([entries, DIMENSION, K].map(|number| number.to_string()))
            // Some machines set both for other workloads, and both affect kernel selection.
            .env_remove("OPENBLAS_CORETYPE")
            .env_remove("OPENBLAS_L2_SIZE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let asks = process.stdin.take().context("piped")?;
        let answers = BufReader::new(process.stdout.take().context("piped")?).lines();
        Ok(Some(Self { process, asks, answers }))
    }

    fn round(&mut self, searches: usize, contest: &mut Contest) -> Result<()> {
        for (kind, threads) in [("flat", 1), ("sq8", 1), ("flat", 2), ("sq8", 2)] {
            writeln!(self.asks, "{kind} {threads} {searches}")?;
            let answer = self.answers.next().context("FAISS ended early")??;
            let seconds: Vec<f64> = serde_json::from_str(&answer)?;
            let times = seconds.into_iter().map(Duration::from_secs_f64).collect();
            contest.add(&format!("FAISS {kind}, threads: {threads}"), times);
        }
        Ok(())
    }
}

impl Drop for Faiss {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
