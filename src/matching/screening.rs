//! Applies the gates to all selected sightings: which vessels are removed, and how the others may have moved.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::gate::{Gate, GateQuery, Trace, Verdict};
use crate::gallery::{GalleryReader, Group, Selection, Sighting, VesselNumber, VesselSet};
use crate::reason::Removal;

/// The entries that take part.
#[derive(Clone, Copy)]
pub(super) struct Taking<'g> {
    pub gallery: &'g dyn GalleryReader,
    /// Made of this state of the gallery.
    pub selection: &'g Selection,
}

/// What is known from the sightings of each vessel.
pub(super) type Traces = FxHashMap<VesselNumber, Trace>;

/// The result of the gates for one query.
#[derive(Debug, Default)]
pub(super) struct Screening {
    pub removed: VesselSet,
    /// How many candidates each gate removed: vessels in a ranking of vessels, entries in one of entries.
    pub counts: BTreeMap<Removal, u64>,
    /// Of every vessel that takes part, if that was requested.
    traces: Option<Traces>,
}

/// The vessels whose movement is evaluated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scope {
    EveryVessel,
    /// Only vessels that share a scene with the query.
    Scenes,
}

impl<'g> Taking<'g> {
    fn for_each_sighting(self, mut see: impl FnMut(Sighting)) {
        self.gallery.for_each_sighting(self.selection, &mut see);
    }

    /// Traces of the vessels for which `wanted` holds.
    fn traces(self, asked: &GateQuery, wanted: impl Fn(VesselNumber) -> bool) -> Traces {
        let mut traces: Traces = Traces::default();
        self.for_each_sighting(|sighting| {
            if wanted(sighting.vessel) {
                traces.entry(sighting.vessel).or_default().add(asked, &sighting);
            }
        });
        traces
    }
}

impl Screening {
    /// Judges the vessels; speeds only with [`Scope::EveryVessel`].
    pub fn new(taking: Taking, asked: &GateQuery, gate: Gate, scope: Scope, group: Group) -> Self {
        let mut screening = Self::default();
        let traces = match scope {
            Scope::EveryVessel => taking.traces(asked, |_| true),
            Scope::Scenes if asked.detections.is_empty() => Traces::default(),
            Scope::Scenes => {
                let mut beside = VesselSet::default();
                taking.for_each_sighting(|sighting| {
                    if asked.is_beside(&sighting) {
                        beside.insert(sighting.vessel);
                    }
                });
                taking.traces(asked, |vessel| beside.contains(vessel))
            }
        };
        for (vessel, trace) in &traces {
            if let Verdict::Removed(reason) = gate.judge(trace) {
                screening.removed.insert(*vessel);
                *screening.counts.entry(reason).or_default() += match group {
                    Group::Vessel => 1,
                    Group::Entry => u64::from(trace.entries()),
                };
            }
        }
        screening.traces = (scope == Scope::EveryVessel).then_some(traces);
        screening
    }

    /// Traces of these vessels.
    pub fn traces_of(&self, taking: Taking, asked: &GateQuery, vessels: &VesselSet) -> Traces {
        match &self.traces {
            None => taking.traces(asked, |vessel| vessels.contains(vessel)),
            Some(traces) => {
                let wanted = traces.iter().filter(|(vessel, _)| vessels.contains(**vessel));
                wanted.map(|(vessel, trace)| (*vessel, *trace)).collect()
            }
        }
    }

    /// Traces of every vessel that takes part; `None` if they were not requested.
    pub fn every_trace(&self) -> Option<&Traces> {
        self.traces.as_ref()
    }

    /// How many vessels take part, including the removed ones.
    pub fn vessels(&self, taking: Taking, asked: &GateQuery) -> usize {
        if let Some(traces) = &self.traces {
            return traces.values().filter(|trace| trace.entries() > 0).count();
        }
        if asked.row.is_none() && taking.selection.len() == taking.gallery.entries() {
            return taking.gallery.vessels();
        }
        let mut others = VesselSet::default();
        taking.for_each_sighting(|sighting| {
            if asked.row != Some(sighting.row) {
                others.insert(sighting.vessel);
            }
        });
        others.len()
    }
}
