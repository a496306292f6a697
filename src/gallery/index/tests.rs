//! An index compared with a list of everything that it should contain.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::chip::Modality;
use crate::embedding::{Embedding, Part};
use crate::gallery::entry::{ContentHash, EntryId, Labels, Observation, Position, Time, VesselId};
use crate::gallery::filter::{Area, Filter, TimeRange};

mod saved;

const DIMENSION: usize = 96;

/// What was enrolled, by row.
#[derive(Clone, Default)]
struct Model(BTreeMap<RowId, (Entry, Vec<f32>)>);

/// An index, its model, and the next row.
#[derive(Clone)]
struct Pair {
    index: Index,
    model: Model,
    next: u64,
}

/// A hit in terms that do not depend on the index: row, vessel id or else the row itself, cosine, entries.
type Expected = (RowId, Result<VesselId, RowId>, f32, u32);

impl Model {
    /// Scores every entry that takes part; in a ranking of vessels, keeps the best of each.
    fn brute_force(&self, ask: &Ask, filter: &Filter, composition: Option<&Composition>) -> Vec<Expected> {
        let mut hits: Vec<Expected> = Vec::new();
        let mut places: HashMap<Result<VesselId, RowId>, usize> = HashMap::new();
        for (row, (entry, vector)) in &self.0 {
            let vessel = entry.vessel.clone().ok_or(*row);
            if !filter.admits(entry) || ask.without_row == Some(*row) || ask.without.contains(&vessel) {
                continue;
            }
            let parts = composition.map_or_else(|| vec![vector.clone()], |of| of.unit_parts(vector));
            let products =
                parts[ask.part].iter().zip(&ask.vector).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let cosine = products.sum::<f64>() as f32;
            let key = if ask.group == Group::Vessel { vessel.clone() } else { Err(*row) };
            match places.get(&key) {
                None => {
                    places.insert(key, hits.len());
                    hits.push((*row, vessel, cosine, 1));
                }
                Some(place) => {
                    let best = &mut hits[*place];
                    best.3 += 1;
                    if cosine > best.2 {
                        (best.0, best.2) = (*row, cosine);
                    }
                }
            }
        }
        hits.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
        hits.truncate(ask.k);
        hits
    }

    fn vessels(&self) -> HashSet<Result<VesselId, RowId>> {
        self.0.iter().map(|(row, (entry, _))| entry.vessel.clone().ok_or(*row)).collect()
    }
}

/// The numbers of vessels in an index.
type Vessels = HashMap<Result<VesselId, RowId>, VesselNumber>;

/// A query, in terms that do not depend on the index.
struct Ask {
    vector: Vec<f32>,
    part: usize,
    k: usize,
    group: Group,
    without_row: Option<RowId>,
    without: HashSet<Result<VesselId, RowId>>,
}

impl Ask {
    fn new(vector: Vec<f32>, k: usize, group: Group) -> Self {
        Self { vector, part: 0, k, group, without_row: None, without: HashSet::new() }
    }
}

impl Pair {
    fn new(dimension: usize) -> Self {
        Self { index: Index::new(dimension), model: Model::default(), next: 1 }
    }

    /// Of an ensemble whose members' vectors have these dimensions.
    fn composed(dimensions: &[usize]) -> Self {
        let part = |dimension: &usize| Part { dimension: *dimension, weight: *dimension as f64 };
        let parts: Vec<Part> = dimensions.iter().map(part).collect();
        let composition = Composition::new(&parts, 3, 100).expect("an ensemble");
        let index = Index::composed(composition.dimension(), Some(composition));
        Self { index, model: Model::default(), next: 1 }
    }

    fn push(&mut self, entry: Entry, vector: Vec<f32>) -> RowId {
        let row = RowId(self.next);
        self.next += 1;
        self.index.push(row, &Code::composed(&vector, self.index.composition.as_ref()), &entry);
        self.model.0.insert(row, (entry, vector));
        row
    }

    fn remove(&mut self, row: RowId) {
        let removed = self.model.0.remove(&row);
        let nobody = EntryId::new("nobody").expect("a name");
        let id = removed.as_ref().map_or(&nobody, |(entry, _)| &entry.id);
        assert_eq!(self.index.remove(row, id), removed.is_some());
    }

    fn update(&mut self, row: RowId, entry: Entry) {
        let known = self.model.0.get_mut(&row);
        assert_eq!(self.index.update(row, &entry), known.is_some());
        if let Some((before, _)) = known {
            *before = entry;
        }
    }

    /// Checks every answer of the index against the model.
    fn check(&self, asks: &[Ask], filter: &Filter) {
        let model = &self.model.0;
        assert_eq!((self.index.len(), self.index.vessels()), (model.len(), self.model.vessels().len()));
        let admitted: Vec<RowId> =
            model.iter().filter(|(_, (entry, _))| filter.admits(entry)).map(|(row, _)| *row).collect();
        let of = |ids: &[EntryId]| -> Vec<RowId> {
            model.iter().filter(|(_, (entry, _))| ids.contains(&entry.id)).map(|(row, _)| *row).collect()
        };
        let listed = (!filter.entries.is_empty()).then(|| of(&filter.entries));
        let excluded = of(&filter.excluded_entries);
        let selection = self.index.select(filter, listed.as_deref(), &excluded);
        assert_eq!(self.index.rows(&selection).collect::<Vec<_>>(), admitted, "{filter:?}");
        assert_eq!(selection.len(), admitted.len());
        let vessels = self.check_sightings(&selection);
        let brute_force = |ask: &Ask| self.model.brute_force(ask, filter, self.index.composition.as_ref());
        for ask in asks {
            assert_eq!(self.search(&[ask], &selection, &vessels), [brute_force(ask)]);
        }
        for group in [Group::Vessel, Group::Entry] {
            let asks: Vec<&Ask> = asks.iter().filter(|ask| ask.group == group).collect();
            let expected: Vec<_> = asks.iter().map(|ask| brute_force(ask)).collect();
            assert_eq!(self.search(&asks, &selection, &vessels), expected);
        }
    }

    /// The result of a search for several queries at once.
    fn search(&self, asks: &[&Ask], selection: &IndexSelection, vessels: &Vessels) -> Vec<Vec<Expected>> {
        let Some(first) = asks.first() else { return vec![] };
        let numbers =
            |ask: &&Ask| ask.without.iter().filter_map(|vessel| vessels.get(vessel).copied()).collect();
        let without: Vec<VesselSet> = asks.iter().map(numbers).collect();
        let queries: Vec<IndexQuery> = asks
            .iter()
            .zip(&without)
            .map(|(ask, without_vessels)| IndexQuery {
                vector: &ask.vector,
                part: ask.part,
                k: ask.k,
                without_row: ask.without_row,
                without_vessels,
            })
            .collect();
        let model = &self.model.0;
        let Ok(found) = self.index.search(&queries, selection, first.group, |row, values| {
            values.copy_from_slice(&model[&row].1);
            Ok::<_, Infallible>(())
        });
        let expected = |hit: &Hit| {
            let vessel = model[&hit.row].0.vessel.clone().ok_or(hit.row);
            assert_eq!(vessels[&vessel], hit.vessel);
            (hit.row, vessel, hit.cosine, hit.entries)
        };
        found.iter().map(|found| found.hits.iter().map(expected).collect()).collect()
    }

    /// Checks that sightings agree with entries, and that vessels, scenes and detections have one number each.
    fn check_sightings(&self, selection: &IndexSelection) -> Vessels {
        let mut vessels = HashMap::new();
        let mut numbers = HashMap::new();
        for sighting in self.index.sightings(selection) {
            let entry = &self.model.0[&sighting.row].0;
            let Observation { observed_at, position, scene_id, detection_id, .. } = &entry.observation;
            assert_eq!((sighting.observed_at, sighting.position), (*observed_at, *position));
            assert_eq!(sighting.scene, self.index.scene_number(scene_id));
            assert_eq!(sighting.scene.is_none(), scene_id.is_empty());
            assert_eq!(sighting.detection, DetectionHash::of(detection_id));
            let vessel = entry.vessel.clone().ok_or(sighting.row);
            assert_eq!(*vessels.entry(vessel.clone()).or_insert(sighting.vessel), sighting.vessel);
            assert_eq!(*numbers.entry(sighting.vessel).or_insert(vessel.clone()), vessel);
        }
        vessels
    }
}

fn unit(values: impl Iterator<Item = f32>) -> Vec<f32> {
    Embedding::from_feature(values.collect()).expect("a direction").into_vec()
}

fn random_unit(random: &mut ChaCha8Rng, dimension: usize) -> Vec<f32> {
    unit((0..dimension).map(|_| random.random_range(-1.0..1.0)))
}

fn near(base: &[f32], spread: f32, random: &mut ChaCha8Rng) -> Vec<f32> {
    unit(base.iter().map(|value| value + random.random_range(-1.0..=1.0) * spread))
}

/// An entry from few values, so that filters and groups match many entries.
fn some<T: Clone>(of: &[T], random: &mut ChaCha8Rng) -> T {
    of[random.random_range(0..of.len())].clone()
}

fn random_entry(random: &mut ChaCha8Rng) -> Entry {
    let vessel = random.random_range(0..60);
    let text = |random: &mut ChaCha8Rng| some(&["", "a", "b", "c"], random).to_owned();
    let position = Position::new(
        some(&[-90.0, -10.0, 0.0, 10.0, 90.0], random),
        some(&[-180.0, -170.0, 0.0, 170.0, 180.0], random),
        50.0,
    );
    let labels = (0..random.random_range(0..3))
        .map(|_| (some(&["port", "kind"], random).to_owned(), text(random)))
        .collect::<Vec<_>>();
    Entry {
        id: EntryId::new(&random.next_u64().to_string()).expect("a number"),
        vessel: (vessel > 10).then(|| VesselId::new(&vessel.to_string()).expect("a number")),
        modality: some(&[Modality::Optical, Modality::Sar], random),
        observation: Observation {
            detection_id: text(random),
            scene_id: text(random),
            observed_at: some(&[None, Some(-5), Some(0), Some(5), Some(9)], random).map(Time::from_nanos),
            position: position.ok().filter(|_| random.random_bool(0.8)),
            ..Observation::default()
        },
        labels: Labels::new(labels).expect("few and short"),
        extent_m: None,
        enrolled_at: Time::from_nanos(0),
        precision: None,
        content: ContentHash::new([0; 32]),
    }
}

fn random_filter(pair: &Pair, random: &mut ChaCha8Rng) -> Filter {
    let mut filter = Filter::default();
    let entries: Vec<&Entry> = pair.model.0.values().map(|(entry, _)| entry).collect();
    let wants = |random: &mut ChaCha8Rng| random.random_bool(0.25);
    if wants(random) {
        filter.modalities.push(some(&[Modality::Optical, Modality::Sar], random));
    }
    if wants(random) {
        let ends = [(None, Some(0)), (Some(-5), Some(5)), (Some(5), None), (Some(1), Some(1)), (None, None)];
        let (from, to) = some(&ends, random);
        filter.time_range = TimeRange::new(from.map(Time::from_nanos), to.map(Time::from_nanos)).ok();
    }
    if wants(random) {
        let (west, east) = some(&[(-170.0, 170.0), (170.0, -170.0), (180.0, 180.0), (0.0, 170.0)], random);
        filter.area =
            Area::new(some(&[-90.0, -10.0, 0.0], random), west, some(&[0.0, 10.0, 90.0], random), east).ok();
    }
    if wants(random) {
        let ids = ["0", "20", "30", "nobody"].map(|id| VesselId::new(id).expect("a name"));
        filter.vessels = ids[..random.random_range(1..4)].to_vec();
    }
    if wants(random) {
        let labels = [("port", "a"), ("kind", "b"), ("port", ""), ("port", "nowhere"), ("nothing", "a")];
        let pairs = (0..random.random_range(1..3)).map(|_| some(&labels, random));
        filter.labels = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    }
    if wants(random) && !entries.is_empty() {
        filter.entries = (0..50).map(|_| some(&entries, random).id.clone()).collect();
    }
    if wants(random) {
        let ids = ["0", "1", "20", "nobody"].map(|id| VesselId::new(id).expect("a name"));
        filter.excluded_vessels = ids[..random.random_range(1..4)].to_vec();
    }
    if wants(random) {
        let labels = [("port", "a"), ("kind", "b"), ("port", "nowhere")];
        let pairs = (0..random.random_range(1..3)).map(|_| some(&labels, random));
        filter.excluded_labels = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    }
    if wants(random) && !entries.is_empty() {
        filter.excluded_entries = (0..50).map(|_| some(&entries, random).id.clone()).collect();
    }
    filter.is_unnamed = random.random_bool(0.1);
    filter
}

fn random_ask(pair: &Pair, random: &mut ChaCha8Rng) -> Ask {
    let group = some(&[Group::Vessel, Group::Entry], random);
    let dimensions: Vec<usize> = pair.index.part_dimensions().collect();
    let part = random.random_range(0..dimensions.len());
    let vector = random_unit(random, dimensions[part]);
    let mut ask = Ask { part, ..Ask::new(vector, some(&[0, 1, 3, 10, 40, 5000], random), group) };
    let rows: Vec<RowId> = pair.model.0.keys().copied().collect();
    if !rows.is_empty() && random.random_bool(0.5) {
        let row = some(&rows, random);
        let vector = &pair.model.0[&row].1;
        ask.vector = match &pair.index.composition {
            None => vector.clone(),
            Some(composition) => composition.unit_parts(vector).swap_remove(part),
        };
        ask.without_row = Some(row);
    }
    if random.random_bool(0.5) {
        let vessels: Vec<_> = pair.model.vessels().into_iter().collect();
        ask.without.extend(vessels.into_iter().filter(|_| random.random_bool(0.3)));
    }
    ask
}

#[test]
fn a_search_is_brute_force_whatever_was_enrolled_and_changed_before() {
    for seed in 0..12 {
        let random = &mut ChaCha8Rng::seed_from_u64(seed);
        let mut pair = match seed % 3 {
            0 => Pair::composed(&some(&[[1, 63], [64, 64], [96, 5]], random)),
            1 => Pair::composed(&[7, 16, 65]),
            _ => Pair::new(some(&[1, 63, 64, 96], random)),
        };
        let dimension = pair.index.dimension();
        let bases: Vec<_> = (0..5).map(|_| random_unit(random, dimension)).collect();
        let mut earlier = Vec::new();
        for step in 0..4000 {
            let rows = pair.next;
            // The index grows first, then shrinks.
            let removes = if step < 2500 { 0.15 } else { 0.8 };
            if random.random_bool(removes) {
                pair.remove(RowId(random.random_range(0..=rows)));
            } else if random.random_bool(0.2) {
                pair.update(RowId(random.random_range(0..=rows)), random_entry(random));
            } else {
                let spread = some(&[0.0, 1e-6, 1e-2, 1.0], random);
                let vector = near(&some(&bases, random), spread, random);
                pair.push(random_entry(random), vector);
            }
            if step % 500 == 0 {
                earlier.push(pair.clone());
                pair.index.renew_names();
            }
        }
        earlier.push(pair);
        for pair in &earlier {
            let asks: Vec<Ask> = (0..3).map(|_| random_ask(pair, random)).collect();
            for filter in [Filter::default(), random_filter(pair, random), random_filter(pair, random)] {
                pair.check(&asks, &filter);
            }
        }
    }
}

#[test]
fn every_row_can_go_and_come_again() {
    let random = &mut ChaCha8Rng::seed_from_u64(3);
    let mut pair = Pair::new(DIMENSION);
    for _ in 0..3 {
        for _ in 0..2500 {
            pair.push(random_entry(random), random_unit(random, DIMENSION));
        }
        let full = pair.clone();
        let mut rows: Vec<RowId> = pair.model.0.keys().copied().collect();
        while !rows.is_empty() {
            pair.remove(rows.swap_remove(random.random_range(0..rows.len())));
        }
        assert!(pair.index.is_empty() && pair.index.vessels() == 0);
        let ask = random_ask(&full, random);
        pair.check(&[], &Filter::default());
        full.check(&[ask], &Filter::default());
    }
}

#[test]
fn a_search_spans_segments_also_when_they_were_merged() {
    let random = &mut ChaCha8Rng::seed_from_u64(8);
    let mut pair = Pair::new(16);
    for _ in 0..3 * ROWS + 100 {
        pair.push(random_entry(random), random_unit(random, 16));
    }
    let full = pair.clone();
    for row in 0..pair.next {
        if random.random_bool(0.7) {
            pair.remove(RowId(row));
        }
    }
    for _ in 0..ROWS {
        pair.push(random_entry(random), random_unit(random, 16));
    }
    for pair in [full, pair] {
        let asks: Vec<Ask> = (0..3).map(|_| random_ask(&pair, random)).collect();
        pair.check(&asks, &Filter::default());
        pair.check(&asks, &random_filter(&pair, random));
    }
}

#[test]
fn names_that_nobody_has_any_more_take_no_memory() {
    let random = &mut ChaCha8Rng::seed_from_u64(6);
    let mut pair = Pair::new(4);
    for _ in 0..100 {
        pair.push(random_entry(random), random_unit(random, 4));
    }
    for number in 0..20_000_u64 {
        let text = format!("{number:0200}");
        let entry = random_entry(random);
        let observation = Observation { scene_id: text.clone(), ..entry.observation };
        let labels = Labels::new([("port".to_owned(), text.clone())]).expect("few and short");
        let vessel = VesselId::new(&text).ok();
        pair.update(RowId(1 + number % 100), Entry { vessel, observation, labels, ..entry });
        pair.index.tidy_names();
    }
    let bytes = pair.index.names_bytes();
    assert!(bytes < 4 << 20, "{bytes}");
    pair.check(&[random_ask(&pair, random)], &Filter::default());
    let filter = Filter {
        vessels: vec![VesselId::new(&format!("{:0200}", 19_950)).expect("an id")],
        ..Filter::default()
    };
    pair.check(&[], &filter);
}

#[test]
fn memory_follows_the_rows_that_are_left() {
    let random = &mut ChaCha8Rng::seed_from_u64(4);
    let mut pair = Pair::new(4);
    for _ in 0..20 * ROWS {
        pair.push(random_entry(random), random_unit(random, 4));
    }
    for row in 0..20 * ROWS as u64 {
        if row % 8 != 0 {
            pair.remove(RowId(row));
        }
    }
    assert!(pair.index.segments.len() <= 5, "{} segments", pair.index.segments.len());
    pair.check(&[], &Filter::default());
}

#[test]
fn near_duplicates_and_equals_are_ranked_as_in_f32() {
    let random = &mut ChaCha8Rng::seed_from_u64(2);
    let base = random_unit(random, DIMENSION);
    for spread in [0.0, 1e-7, 1e-6, 1e-4] {
        let mut pair = Pair::new(DIMENSION);
        for _ in 0..3000 {
            pair.push(random_entry(random), near(&base, spread, random));
        }
        let vectors =
            [base.clone(), random_unit(random, DIMENSION), base.iter().map(|value| -value).collect()];
        let asks = vectors.into_iter().flat_map(|vector| {
            [Group::Vessel, Group::Entry].map(|group| Ask::new(vector.clone(), 10, group))
        });
        pair.check(&asks.collect::<Vec<_>>(), &Filter::default());
    }
}

#[test]
fn few_vectors_are_fetched() {
    let random = &mut ChaCha8Rng::seed_from_u64(5);
    let (dimension, mut index, mut vectors) = (768, Index::new(768), HashMap::new());
    for row in 0..4000 {
        let vector = random_unit(random, dimension);
        index.push(RowId(row), &Code::new(&vector), &random_entry(random));
        vectors.insert(RowId(row), vector);
    }
    let (none, query) = (VesselSet::default(), random_unit(random, dimension));
    let query = IndexQuery { vector: &query, part: 0, k: 10, without_row: None, without_vessels: &none };
    let mut fetched = 0;
    let selection = index.select(&Filter::default(), None, &[]);
    let Ok(found) = index.search(&[query], &selection, Group::Entry, |row, values| {
        fetched += 1;
        values.copy_from_slice(&vectors[&row]);
        Ok::<_, Infallible>(())
    });
    assert!(found[0].hits.len() == 10 && fetched < 80, "{fetched}");
}

#[test]
fn what_the_store_says_goes_wrong_ends_the_search() {
    let random = &mut ChaCha8Rng::seed_from_u64(7);
    let mut index = Index::new(8);
    index.push(RowId(1), &Code::new(&random_unit(random, 8)), &random_entry(random));
    let (vector, none) = (random_unit(random, 8), VesselSet::default());
    let query = IndexQuery { vector: &vector, part: 0, k: 1, without_row: None, without_vessels: &none };
    let selection = index.select(&Filter::default(), None, &[]);
    assert_eq!(index.search(&[query], &selection, Group::Entry, |_, _| Err("gone")), Err("gone"));
}

#[test]
fn a_search_that_may_not_go_on_stops_between_its_rows() {
    let random = &mut ChaCha8Rng::seed_from_u64(8);
    let mut index = Index::new(8);
    for row in 0..20_000 {
        index.push(RowId(row), &Code::new(&random_unit(random, 8)), &random_entry(random));
    }
    let (vector, none) = (random_unit(random, 8), VesselSet::default());
    let query = IndexQuery { vector: &vector, part: 0, k: 1, without_row: None, without_vessels: &none };
    let selection = index.select(&Filter::default(), None, &[]);
    let mut asked = 0;
    let go_on = || {
        asked += 1;
        if asked == 2 { Err("stop") } else { Ok(()) }
    };
    let stopped =
        index.search_while(&[query], &selection, Group::Entry, go_on, |_, _| panic!("nothing is read"));
    assert_eq!(stopped, Err("stop"));
}
