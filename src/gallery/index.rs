//! All entries of a gallery in memory, as far as a search needs them; the plainest form that is right.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;

use super::entry::{Entry, VesselId};
use super::filter::Filter;

/// A row of the store; never used twice. Ascending in order of enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(pub u64);

/// One vector as `scale * codes`, and the length of the residual that this leaves out.
#[derive(Clone, Debug, PartialEq)]
pub struct Code {
    codes: Vec<i8>,
    scale: f32,
    residual: f32,
}

/// A [`Code`] that an index keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeRef<'a> {
    pub codes: &'a [i8],
    pub scale: f32,
    pub residual: f32,
}

impl Code {
    pub fn new(vector: &[f32]) -> Self {
        let largest = vector.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let scale = largest / 127.0;
        let codes = vector.iter().map(|value| (value / scale).round() as i8).collect();
        Self { codes, scale, residual: 0.0 }
    }

    pub fn from_parts(codes: Vec<i8>, scale: f32, residual: f32) -> Self {
        Self { codes, scale, residual }
    }
}

#[derive(Clone, Debug)]
pub struct Index {
    dimension: usize,
    rows: Arc<BTreeMap<RowId, (Code, Entry)>>,
}

#[derive(Clone, Debug)]
pub struct Selection(Vec<RowId>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Vessel,
    Entry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VesselNumber(u64);

#[derive(Clone, Debug, Default)]
pub struct VesselSet(HashSet<VesselNumber>);

#[derive(Clone, Copy, Debug)]
pub struct IndexQuery<'a> {
    pub vector: &'a [f32],
    pub k: usize,
    pub without_row: Option<RowId>,
    pub without_vessels: &'a VesselSet,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub hits: Vec<Hit>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    pub row: RowId,
    pub cosine: f32,
    pub entries: u32,
}

impl Index {
    pub fn new(dimension: usize) -> Self {
        Self { dimension, rows: Arc::default() }
    }

    pub fn dimension(&self) -> usize {
        self.dimension
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn vessels(&self) -> usize {
        let entries = || self.rows.values().map(|(_, entry)| &entry.vessel);
        let named: HashSet<&VesselId> = entries().flatten().collect();
        named.len() + entries().filter(|vessel| vessel.is_none()).count()
    }

    pub fn push(&mut self, row: RowId, code: &Code, entry: &Entry) {
        assert!(self.rows.last_key_value().is_none_or(|(last, _)| *last < row), "rows ascend");
        Arc::make_mut(&mut self.rows).insert(row, (code.clone(), entry.clone()));
    }

    pub fn remove(&mut self, row: RowId) -> bool {
        Arc::make_mut(&mut self.rows).remove(&row).is_some()
    }

    pub fn update(&mut self, row: RowId, entry: &Entry) -> bool {
        let found = Arc::make_mut(&mut self.rows).get_mut(&row);
        found.map(|(_, known)| *known = entry.clone()).is_some()
    }

    pub fn select(&self, filter: &Filter, listed: Option<&[RowId]>) -> Selection {
        let listed = |row: &RowId| listed.is_none_or(|rows| rows.contains(row));
        let admitted = |(row, (_, entry)): (&RowId, &(Code, Entry))| {
            (listed(row) && filter.admits(entry)).then_some(*row)
        };
        Selection(self.rows.iter().filter_map(admitted).collect())
    }

    pub fn search<E>(
        &self,
        queries: &[IndexQuery<'_>],
        selection: &Selection,
        group: Group,
        mut vector: impl FnMut(RowId, &mut [f32]) -> Result<(), E>,
    ) -> Result<Vec<Found>, E> {
        let mut values = vec![0.0; self.dimension];
        let mut found = Vec::new();
        for query in queries {
            let mut hits = Vec::new();
            for row in selection.0.iter().filter(|row| Some(**row) != query.without_row) {
                vector(*row, &mut values)?;
                hits.push(Hit { row: *row, cosine: cosine(query.vector, &values), entries: 1 });
            }
            hits.sort_by(|a, b| b.cosine.total_cmp(&a.cosine).then(a.row.cmp(&b.row)));
            if group == Group::Vessel {
                hits = self.by_vessel(hits);
            }
            hits.truncate(query.k);
            found.push(Found { hits });
        }
        Ok(found)
    }

    fn by_vessel(&self, hits: Vec<Hit>) -> Vec<Hit> {
        let mut best: Vec<(Option<&VesselId>, Hit)> = Vec::new();
        for hit in hits {
            let vessel = self.rows[&hit.row].1.vessel.as_ref();
            match best.iter_mut().find(|(other, _)| vessel.is_some() && *other == vessel) {
                Some((_, best)) => best.entries += 1,
                None => best.push((vessel, hit)),
            }
        }
        best.into_iter().map(|(_, hit)| hit).collect()
    }

    pub fn rows<'a>(&'a self, selection: &'a Selection) -> impl Iterator<Item = RowId> + 'a {
        selection.0.iter().copied()
    }

    pub fn codes(&self) -> impl Iterator<Item = (RowId, CodeRef<'_>)> {
        self.rows.iter().map(|(row, (code, _))| {
            (*row, CodeRef { codes: &code.codes, scale: code.scale, residual: code.residual })
        })
    }
}

impl Selection {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The cosine of two unit vectors, summed in f64.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}
