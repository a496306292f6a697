//! Summaries of the vessels that an index's entries show.

use std::collections::{BTreeMap, HashMap};

use super::select::IndexSelection;
use super::{Index, ROWS};
use crate::chip::Modality;
use crate::gallery::entry::{Time, VesselId};

/// A vessel with an id, summarised over the selected entries.
#[derive(Clone, Debug, PartialEq)]
pub struct VesselSummary {
    pub id: VesselId,
    pub entries: u64,
    /// The earliest of the entries that have a time.
    pub first_observed: Option<Time>,
    pub last_observed: Option<Time>,
    /// Without duplicates, optical first.
    pub modalities: Vec<Modality>,
}

/// A summary of the entries seen so far of a vessel.
#[derive(Clone, Copy, Debug, Default)]
struct Tallied {
    entries: u64,
    first_observed: Option<Time>,
    last_observed: Option<Time>,
    is_optical: bool,
    is_sar: bool,
}

impl Tallied {
    fn add(&mut self, modality: Modality, observed_at: Option<Time>) {
        self.entries += 1;
        self.first_observed = self.first_observed.into_iter().chain(observed_at).min();
        self.last_observed = self.last_observed.max(observed_at);
        match modality {
            Modality::Optical => self.is_optical = true,
            Modality::Sar => self.is_sar = true,
        }
    }

    fn summary(self, id: &str) -> VesselSummary {
        let modalities = [(Modality::Optical, self.is_optical), (Modality::Sar, self.is_sar)];
        VesselSummary {
            id: VesselId::new(id).expect("an index has the ids of entries"),
            entries: self.entries,
            first_observed: self.first_observed,
            last_observed: self.last_observed,
            modalities: modalities
                .into_iter()
                .filter_map(|(modality, is_there)| is_there.then_some(modality))
                .collect(),
        }
    }
}

impl Index {
    /// The first `size` vessels above `after`, by id, that selected entries show. Entries without vessel id are
    /// skipped.
    pub fn vessel_summaries(
        &self,
        selection: &IndexSelection,
        after: Option<&VesselId>,
        size: usize,
    ) -> Vec<VesselSummary> {
        let mut tallied: HashMap<u32, Tallied> = HashMap::new();
        for slot in self.selected(selection) {
            let (columns, at) = (self.segments[slot / ROWS].columns(), slot % ROWS);
            if let Some(vessel) = columns.vessels[at] {
                let tallied = tallied.entry(vessel.number()).or_default();
                tallied.add(columns.modalities[at], columns.times[at]);
            }
        }
        let names = self.names();
        let mut first: BTreeMap<&str, Tallied> = BTreeMap::new();
        for (name, vessel) in names.vessels() {
            let is_wanted = after.is_none_or(|after| name > after.as_str());
            if let Some(tallied) = tallied.get(&vessel.number()).filter(|_| is_wanted) {
                first.insert(name, *tallied);
                if first.len() > size {
                    first.pop_last();
                }
            }
        }
        first.into_iter().map(|(name, tallied)| tallied.summary(name)).collect()
    }
}
