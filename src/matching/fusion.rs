//! Ranking by posterior probability: by the evidence of appearance, size and movement together.

use std::collections::HashSet;

use super::calibration::Calibrator;
use super::evidence::ModalityPair;
use super::gate::Trace;
use super::plan::Ranking;
use super::session::{Contender, GatedQuery, Ranked, Session};
use crate::chip::Modality;
use crate::gallery::{Group, Hit, IndexQuery, RowId, Selection, StoreError, VesselSet};

/// Limits the second search to some ten milliseconds.
pub(super) const SECOND_LOOK: usize = 4096;

/// A query whose candidates are to be ranked by evidence.
#[derive(Clone, Copy)]
pub(super) struct Fusion<'s> {
    pub session: &'s Session<'s>,
    pub gated: &'s GatedQuery,
    pub calibrator: &'s Calibrator,
    /// Modality of the query.
    pub modality: Modality,
    /// Number of hits in one modality that the second search returns.
    pub second_look: usize,
}

impl Fusion<'_> {
    /// Ranks by evidence. A vessel is represented by its most similar entry of each modality, because cosines of
    /// different modalities are not comparable.
    ///
    /// First come the best by cosine. A second search adds those beyond them that could still be among the best by size
    /// and movement. The ranking is exact unless there are more of these than the second search returns.
    ///
    /// # Errors
    /// The gallery cannot be read.
    pub fn rank(self) -> Result<Ranked, StoreError> {
        let session = self.session;
        let fields = session.modalities().map(|modality| Field::new(self, modality));
        let fields = fields.collect::<Result<Vec<Field>, StoreError>>()?;
        let hits: Vec<Hit> = fields.iter().flat_map(|field| &field.hits).copied().collect();
        let contenders = best_first(session.weigh(self.gated, &hits)?, session.plan.group);
        let floor = floor(&contenders, session.goal());

        let looks = fields.iter().map(|field| field.look_again(floor));
        let looks = looks.collect::<Result<Vec<SecondSearch>, StoreError>>()?;
        let known: HashSet<RowId> = hits.iter().map(|hit| hit.row).collect();
        let new = looks.iter().flat_map(|look| &look.hits).filter(|hit| !known.contains(&hit.row));
        let new = session.weigh(self.gated, &new.copied().collect::<Vec<_>>())?;
        let contenders = best_first([contenders, new].concat(), session.plan.group);
        let floor = self::floor(&contenders, session.goal());
        let horizon = fields.iter().filter_map(|field| Some((field.modality, field.horizon?))).collect();
        let is_beaten = |look: &SecondSearch| look.reach == NOBODY || look.reach < floor;
        let is_exact = looks.iter().all(is_beaten);
        Ok(Ranked { is_exact, ..Ranked::exact(Ranking::Fused, contenders, horizon) })
    }
}

/// The most evidence first; of equals, the higher cosine, then the lower row. In a ranking of vessels, each vessel
/// once.
fn best_first(mut contenders: Vec<Contender>, group: Group) -> Vec<Contender> {
    contenders.sort_by(|a, b| {
        let evidence = b.evidence.total().total_cmp(&a.evidence.total());
        evidence.then(b.hit.cosine.total_cmp(&a.hit.cosine)).then(a.hit.row.cmp(&b.hit.row))
    });
    if group == Group::Vessel {
        let mut seen = HashSet::new();
        contenders.retain(|contender| seen.insert(contender.hit.vessel));
    }
    contenders
}

/// The evidence at rank `goal`, which a new candidate must reach; negative infinity if there are fewer.
fn floor(contenders: &[Contender], goal: usize) -> f64 {
    let last = goal.checked_sub(1).and_then(|last| contenders.get(last));
    last.map_or(f64::NEG_INFINITY, |last| last.evidence.total())
}

/// The entries of one modality.
struct Field<'s> {
    fusion: Fusion<'s>,
    modality: Modality,
    selection: Selection,
    /// The best by cosine.
    hits: Vec<Hit>,
    /// Upper bound of the cosines beyond them; `None`: there are no more.
    horizon: Option<f32>,
}

/// The result of a second search.
struct SecondSearch {
    hits: Vec<Hit>,
    /// Upper bound of the evidence of all vessels not seen.
    reach: f64,
}

const NOBODY: f64 = f64::NEG_INFINITY;

impl<'s> Field<'s> {
    fn new(fusion: Fusion<'s>, modality: Modality) -> Result<Self, StoreError> {
        let selection = fusion.session.selection_of(modality)?;
        let mut field = Self { fusion, modality, selection, hits: vec![], horizon: None };
        let depth = fusion.session.depth();
        field.hits = field.search(depth, &fusion.gated.screening.removed)?;
        field.horizon = field.hits.last().filter(|_| field.hits.len() == depth).map(|last| last.cosine);
        Ok(field)
    }

    fn search(&self, k: usize, without_vessels: &VesselSet) -> Result<Vec<Hit>, StoreError> {
        let session = self.fusion.session;
        let query = IndexQuery { without_vessels, ..self.fusion.gated.index_query(k) };
        let found =
            session.gallery.search(&[query], &self.selection, session.plan.group, session.cancellation)?;
        Ok(found.into_iter().flat_map(|found| found.hits).collect())
    }

    /// Searches candidates beyond the horizon whose evidence could reach `floor`.
    fn look_again(&self, floor: f64) -> Result<SecondSearch, StoreError> {
        let Some(horizon) = self.horizon else { return Ok(SecondSearch { hits: vec![], reach: NOBODY }) };
        let missing = floor - self.reach(horizon);
        let screening = &self.fusion.gated.screening;
        let mut without = screening.removed.clone();
        if self.fusion.session.plan.group == Group::Vessel {
            self.hits.iter().for_each(|hit| without.insert(hit.vessel));
        }
        // The largest movement evidence of the remaining vessels; without such evidence all are equal.
        let mut most = if screening.every_trace().is_none() { 0.0 } else { NOBODY };
        for (vessel, trace) in screening.every_trace().into_iter().flatten() {
            let way = self.way(trace);
            if way < missing {
                without.insert(*vessel);
            } else if !without.contains(*vessel) {
                most = way.max(most);
            }
        }
        if most < missing {
            return Ok(SecondSearch { hits: vec![], reach: most + self.reach(horizon) });
        }
        let hits = self.search(self.fusion.second_look, &without)?;
        let beyond = hits.last().filter(|_| hits.len() == self.fusion.second_look);
        let reach = beyond.map_or(NOBODY, |last| most + self.reach(last.cosine));
        Ok(SecondSearch { hits, reach })
    }

    /// The largest evidence of appearance and size at a cosine.
    fn reach(&self, cosine: f32) -> f64 {
        let pair = ModalityPair::of(self.fusion.modality, self.modality);
        self.fusion.calibrator.resemblance_max(pair, cosine)
    }

    /// The movement evidence of a vessel; 0 if it is unknown.
    fn way(&self, trace: &Trace) -> f64 {
        trace.leg().and_then(|leg| self.fusion.calibrator.kinematics(&leg)).unwrap_or(0.0)
    }
}
