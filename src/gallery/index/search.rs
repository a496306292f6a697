//! The exact best of the selected rows: a scan of the codes leaves a few candidates, whose vectors decide.

use std::collections::HashMap;
use std::iter::Peekable;

use fixedbitset::Ones;

use super::codes::{Codes, QueryCode};
use super::floor::Floor;
use super::kernel::{Factor, Rows};
use super::select::IndexSelection;
use super::vessels::{VesselNumber, VesselSet};
use super::{Index, ROWS, RowId};

/// What is ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Vessels, each by its best entry. An entry without vessel id is a vessel of its own.
    Vessel,
    Entry,
}

/// One query of a search.
#[derive(Clone, Copy, Debug)]
pub struct IndexQuery<'a> {
    /// Of unit length.
    pub vector: &'a [f32],
    /// The part of the vectors that it is compared with: a member of an ensemble, else 0, the whole.
    pub part: usize,
    /// Number of hits wanted.
    pub k: usize,
    /// An entry to leave out, such as the query itself.
    pub without_row: Option<RowId>,
    pub without_vessels: &'a VesselSet,
}

/// The answer to one query.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchResult {
    /// Best first; on equal cosines, the lower row first.
    pub hits: Vec<Hit>,
}

/// One rank of a ranking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// In a ranking of vessels, the vessel's entry with the highest cosine, and of equals the lowest row.
    pub row: RowId,
    pub vessel: VesselNumber,
    /// Cosine of the entry and the query, in the query's part, as computed by [`cosine`].
    pub cosine: f32,
    /// Entries of the vessel that took part; 1 in a ranking of entries.
    pub entries: u32,
}

/// Rows that all queries score in turn while their codes are in the fastest cache.
const TILE: usize = 24;
/// Distance in rows between scoring and prefetching.
const AHEAD: usize = 4;
/// Tiles scored for one query between two checks of whether to continue.
const TILES_UNASKED: usize = 256;
/// Number of candidates at which those that can no longer be among the best are dropped.
const CANDIDATES_MIN: usize = 4096;

impl Index {
    /// The best of the selected entries for every query: the same result as brute force over the vectors, regardless of
    /// the codes. Returns `k` hits, or all if fewer vessels or entries take part.
    ///
    /// `vector` writes the unit vector that a row's code was computed from.
    ///
    /// # Errors
    /// The first error of `vector`.
    ///
    /// # Panics
    /// A query has another dimension or names no part, or the selection is of another state of the index.
    pub fn search<E>(
        &self,
        queries: &[IndexQuery<'_>],
        selection: &IndexSelection,
        group: Group,
        vector: impl FnMut(RowId, &mut [f32]) -> Result<(), E>,
    ) -> Result<Vec<SearchResult>, E> {
        self.search_while(queries, selection, group, || Ok(()), vector)
    }

    /// The same, for as long as `go_on` succeeds: it is called often enough to stop within a millisecond.
    ///
    /// # Errors
    /// The first error of `go_on` or `vector`.
    ///
    /// # Panics
    /// Those of [`search`](Self::search).
    pub fn search_while<E>(
        &self,
        queries: &[IndexQuery<'_>],
        selection: &IndexSelection,
        group: Group,
        mut go_on: impl FnMut() -> Result<(), E>,
        mut vector: impl FnMut(RowId, &mut [f32]) -> Result<(), E>,
    ) -> Result<Vec<SearchResult>, E> {
        let dimensions: Vec<usize> = self.part_dimensions().collect();
        let fits = |query: &IndexQuery| dimensions.get(query.part) == Some(&query.vector.len());
        assert!(queries.iter().all(fits), "one dimension");
        selection.check(self);
        let mut races: Vec<Race> = queries.iter().map(|query| Race::new(*query, group)).collect();
        for part in 0..dimensions.len() {
            let mut of_part: Vec<&mut Race> =
                races.iter_mut().filter(|race| race.query.part == part).collect();
            if !of_part.is_empty() {
                self.scan(selection, part, &mut of_part, &mut go_on)?;
            }
        }
        let mut vector = |row: RowId, values: &mut [f32]| {
            go_on()?;
            vector(row, values)
        };
        let hits = races.into_iter().map(|race| self.decide(race, &mut vector));
        let mut found = hits.collect::<Result<Vec<_>, E>>()?;
        if group == Group::Vessel {
            self.count_entries(queries, selection, &mut found);
        }
        Ok(found.into_iter().map(|hits| SearchResult { hits }).collect())
    }

    /// Scores one part of the selected rows, all queries in one pass over memory. Runs on one thread, which almost saturates the
    /// memory bandwidth: a second one would gain little and slow down other requests.
    fn scan<E>(
        &self,
        selection: &IndexSelection,
        part: usize,
        races: &mut [&mut Race],
        go_on: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        // The more queries score a tile, the fewer tiles fit in a millisecond.
        let leg = (TILES_UNASKED / races.len().max(1)).max(1);
        let mut tiles = Tiles::new(self, part, selection);
        let mut next = tiles.next();
        let mut scored = 0;
        while let Some(tile) = next {
            if scored % leg == 0 {
                go_on()?;
            }
            scored += 1;
            next = tiles.next();
            let mut products = [0; TILE];
            let products = &mut products[..tile.at().len()];
            for (number, race) in races.iter_mut().enumerate() {
                if number == 0 {
                    // The first query prefetches the codes for all.
                    tile.products(race.code.coarse(), next.as_ref(), products);
                } else {
                    race.code.coarse().products(tile.codes.rows(tile.at()), Rows::NONE, products);
                }
                race.run(self, &tile, products);
            }
        }
        Ok(())
    }

    /// Reads the vectors of candidates in descending order of their upper bounds, until no other can be among the best.
    fn decide<E>(
        &self,
        race: Race,
        vector: &mut impl FnMut(RowId, &mut [f32]) -> Result<(), E>,
    ) -> Result<Vec<Hit>, E> {
        let (query, group) = (race.query, race.group);
        let mut exact = Floor::new(query.k);
        let mut hits: HashMap<u32, Hit> = HashMap::new();
        let mut values = vec![0.0; self.dimension()];
        for candidate in race.ranked() {
            if candidate.upper < exact.level() {
                break;
            }
            let key = group.key(candidate.vessel, candidate.slot);
            if hits.get(&key).is_some_and(|hit| candidate.upper < hit.cosine) {
                continue;
            }
            let row = self.row(candidate.slot);
            vector(row, &mut values)?;
            let cosine = cosine(query.vector, self.unit_part(query.part, &mut values));
            let hit = Hit { row, vessel: candidate.vessel, cosine, entries: 1 };
            exact.offer(key, hit.cosine);
            hits.entry(key).and_modify(|best| *best = better(*best, hit)).or_insert(hit);
        }
        let mut hits: Vec<Hit> = hits.into_values().collect();
        hits.sort_by(|a, b| b.cosine.total_cmp(&a.cosine).then(a.row.cmp(&b.row)));
        hits.truncate(query.k);
        Ok(hits)
    }

    fn row(&self, slot: usize) -> RowId {
        self.segments[slot / ROWS].columns().rows[slot % ROWS]
    }

    fn vessel(&self, slot: usize) -> VesselNumber {
        VesselNumber::of(self.segments[slot / ROWS].columns().vessels[slot % ROWS], slot)
    }

    /// Counts the entries that took part of each hit's vessel.
    fn count_entries(&self, queries: &[IndexQuery<'_>], selection: &IndexSelection, found: &mut [Vec<Hit>]) {
        let wanted: VesselSet = found.iter().flatten().map(|hit| hit.vessel).collect();
        let mut counts: HashMap<VesselNumber, u32> = HashMap::new();
        if selection.len() == self.len() {
            // Without a filter this is the count of the whole index.
            let whole =
                |hit: &Hit| (hit.vessel, hit.vessel.named().map_or(1, |number| self.tally.count(number)));
            counts.extend(found.iter().flatten().map(whole));
        } else {
            let vessels = self.selected(selection).map(|slot| self.vessel(slot));
            vessels
                .filter(|vessel| wanted.contains(*vessel))
                .for_each(|vessel| *counts.entry(vessel).or_default() += 1);
        }
        for (query, hits) in queries.iter().zip(found) {
            let without = query.without_row.and_then(|row| self.slot(row));
            let without =
                without.filter(|slot| selection.slots.contains(*slot)).map(|slot| self.vessel(slot));
            for hit in hits {
                hit.entries = counts[&hit.vessel] - u32::from(without == Some(hit.vessel));
            }
        }
    }
}

/// The cosine of two unit vectors, summed in f64.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    /// Independent sums, which do not wait for each other.
    const LANES: usize = 8;
    let mut sums = [0.0_f64; LANES];
    let (a, b) = (a.chunks(LANES), b.chunks(LANES));
    for (a, b) in a.zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    sums.iter().sum::<f64>() as f32
}

fn better(a: Hit, b: Hit) -> Hit {
    if b.cosine > a.cosine || (b.cosine == a.cosine && b.row < a.row) { b } else { a }
}

impl Group {
    /// The key under which a row counts once.
    fn key(self, vessel: VesselNumber, slot: usize) -> u32 {
        match self {
            Self::Vessel => vessel.raw(),
            Self::Entry => slot as u32,
        }
    }
}

/// Rows of one segment whose codes the queries share.
struct Tile<'a> {
    codes: &'a Codes,
    /// The slot of the segment's first row.
    start: usize,
    at: [u16; TILE],
    len: usize,
}

impl Tile<'_> {
    fn at(&self) -> &[u16] {
        &self.at[..self.len]
    }

    /// The products with all rows, while the rows that follow here and in the next tile are prefetched.
    fn products(&self, factor: &Factor, next: Option<&Self>, products: &mut [i32]) {
        let first = next.map(|tile| tile.codes.rows(&tile.at()[..tile.len.min(AHEAD)]));
        let following = self.at().chunks(AHEAD).skip(1).map(|at| self.codes.rows(at));
        let following = following.chain(first).chain([Rows::NONE]);
        let rows = self.at().chunks(AHEAD).zip(following).zip(products.chunks_mut(AHEAD));
        for ((at, ahead), products) in rows {
            factor.products(self.codes.rows(at), ahead, products);
        }
    }
}

/// The selected rows, tile by tile.
struct Tiles<'a> {
    index: &'a Index,
    part: usize,
    slots: Peekable<Ones<'a>>,
}

impl<'a> Tiles<'a> {
    fn new(index: &'a Index, part: usize, selection: &'a IndexSelection) -> Self {
        Self { index, part, slots: selection.slots.ones().peekable() }
    }
}

impl<'a> Iterator for Tiles<'a> {
    type Item = Tile<'a>;

    fn next(&mut self) -> Option<Tile<'a>> {
        let segment = self.slots.peek()? / ROWS;
        let codes = self.index.segments[segment].codes(self.part);
        let mut tile = Tile { codes, start: segment * ROWS, at: [0; TILE], len: 0 };
        while tile.len < TILE
            && let Some(slot) = self.slots.next_if(|slot| slot / ROWS == segment)
        {
            tile.at[tile.len] = (slot - tile.start) as u16;
            tile.len += 1;
        }
        Some(tile)
    }
}

/// The state of one query during the scan.
struct Race<'q> {
    query: IndexQuery<'q>,
    group: Group,
    code: QueryCode,
    /// Of lower bounds: candidates whose upper bound is below it are out.
    floor: Floor,
    found: Vec<Candidate>,
    prune_at: usize,
}

/// A row that could be among the best.
struct Candidate {
    slot: usize,
    vessel: VesselNumber,
    /// Upper bound of its cosine.
    upper: f32,
}

impl<'q> Race<'q> {
    fn new(query: IndexQuery<'q>, group: Group) -> Self {
        Self {
            query,
            group,
            code: QueryCode::new(query.vector),
            floor: Floor::new(query.k),
            found: vec![],
            prune_at: CANDIDATES_MIN,
        }
    }

    /// Scores the rows of a tile.
    fn run(&mut self, index: &Index, tile: &Tile, products: &[i32]) {
        let measures = tile.codes.measures();
        for (at, product) in tile.at().iter().zip(products) {
            let at = usize::from(*at);
            if self.code.upper(*product, measures[at]) >= self.floor.level() {
                self.consider(index, tile.start + at, *product);
            }
        }
    }

    /// Makes a row a candidate, unless its finer bounds rule it out.
    #[cold]
    fn consider(&mut self, index: &Index, slot: usize, coarse: i32) {
        let codes = index.segments[slot / ROWS].codes(self.query.part);
        let (at, mut fine) = (slot % ROWS, [0]);
        self.code.fine().products(codes.rows(&[at as u16]), Rows::NONE, &mut fine);
        let bounds = self.code.bounds([coarse, fine[0]], codes.measures()[at]);
        let vessel = index.vessel(slot);
        if bounds.upper < self.floor.level()
            || self.query.without_vessels.contains(vessel)
            || self.query.without_row == Some(index.row(slot))
        {
            return;
        }
        self.floor.offer(self.group.key(vessel, slot), bounds.lower);
        self.found.push(Candidate { slot, vessel, upper: bounds.upper });
        if self.found.len() >= self.prune_at {
            self.prune();
            self.prune_at = CANDIDATES_MIN.max(2 * self.found.len());
        }
    }

    /// Drops candidates that can neither be among the best nor be the best entry of their vessel.
    fn prune(&mut self) {
        let (floor, group) = (&self.floor, self.group);
        let reach = |candidate: &Candidate| {
            let own = floor.score(group.key(candidate.vessel, candidate.slot));
            candidate.upper >= own.unwrap_or(floor.level())
        };
        self.found.retain(reach);
    }

    /// The remaining candidates, in descending order of their upper bounds.
    fn ranked(mut self) -> Vec<Candidate> {
        self.prune();
        self.found.sort_unstable_by(|a, b| b.upper.total_cmp(&a.upper).then(a.slot.cmp(&b.slot)));
        self.found
    }
}
