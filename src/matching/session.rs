//! A match in progress: what its queries share, and how a hit becomes a candidate.

use std::collections::{BTreeMap, HashMap};

use super::calibration::Calibrator;
use super::doubt::Doubt;
use super::evidence::{Evidence, ModalityPair, Outline, Resemblance};
use super::gate::{Leg, Trace, Verdict};
use super::plan::{Plan, Ranking, Sharing};
use super::posterior::{Prior, Unjudged, posterior};
use super::query::Resolved;
use super::screening::{Scope, Screening, Taking, Traces};
use crate::cancellation::Cancellation;
use crate::chip::Modality;
use crate::gallery::{
    Entry, Filter, GalleryReader, Group, Hit, IndexQuery, SearchResult, Selection, StoreError, VesselNumber,
    VesselSet,
};
use crate::reason::Removal;

/// Candidates that are evaluated for probabilities and assignment. Probabilities count the vessels beyond with the
/// appearance of the last of these; assignment needs them so that entries of one vessel do not crowd out all others.
const WEIGHED: usize = 256;

pub(super) struct Session<'s> {
    pub gallery: &'s dyn GalleryReader,
    pub plan: &'s Plan,
    /// The plan's, if it is of the gallery's model.
    pub calibrator: Option<&'s Calibrator>,
    pub selection: Selection,
    pub cancellation: &'s Cancellation,
}

/// A query after the gates.
pub(super) struct GatedQuery {
    pub resolved: Resolved,
    pub screening: Screening,
}

/// A hit with the evidence for and against it.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    pub hit: Hit,
    /// What a ranking by looks alone ranks it by: its cosine, or an ensemble's sum of reciprocal ranks.
    pub score: f64,
    pub entry: Entry,
    pub evidence: Evidence,
    pub leg: Option<Leg>,
    /// The gate's verdict; removed vessels are not among the contenders.
    pub is_unchecked: bool,
    /// Number of the vessel's entries that take part.
    pub entries: u32,
    /// Probability that it shows the query's ship; `None`: uncalibrated.
    pub probability: Option<f64>,
}

/// The candidates of one query, best first.
#[derive(Clone, Debug)]
pub(super) struct Ranked {
    /// The criterion that was used for this query.
    pub ranking: Ranking,
    pub contenders: Vec<Contender>,
    /// For each modality, the highest cosine that entries of vessels outside the contenders can have; empty if all
    /// vessels are among them.
    pub horizon: Vec<(Modality, f32)>,
    /// Whether brute force gives the same ranking.
    pub is_exact: bool,
    /// Probability that the ship is not in the gallery; `None`: uncalibrated.
    pub unknown_probability: Option<f64>,
    pub doubts: Vec<Doubt>,
}

impl Ranked {
    /// Ranked exactly by cosine, or by an order that is defined by it.
    pub fn exact(ranking: Ranking, contenders: Vec<Contender>, horizon: Vec<(Modality, f32)>) -> Self {
        Self { ranking, contenders, horizon, is_exact: true, unknown_probability: None, doubts: vec![] }
    }
}

impl<'s> Session<'s> {
    pub fn taking(&self) -> Taking<'_> {
        Taking { gallery: self.gallery, selection: &self.selection }
    }

    /// Number of candidates that must be exactly the best: those that are returned, and one for each query that may
    /// take one away.
    pub fn goal(&self) -> usize {
        match self.plan.sharing {
            Sharing::Independent => self.plan.top_k,
            Sharing::DistinctVessels => self.plan.top_k.max(self.plan.queries.len()),
        }
    }

    /// Number of candidates to evaluate, enough for assignment and probabilities.
    pub fn depth(&self) -> usize {
        match self.plan.sharing {
            Sharing::Independent if self.calibrator.is_none() => self.goal(),
            Sharing::Independent | Sharing::DistinctVessels => self.goal().max(WEIGHED),
        }
    }

    pub fn screen(&self, resolved: Resolved) -> GatedQuery {
        let plan = self.plan;
        let weighs_ways =
            plan.ranking.weighs_evidence() && self.calibrator.is_some_and(Calibrator::weighs_kinematics);
        let is_somewhere = !resolved.gate_query.places.is_empty();
        let scope = if is_somewhere && (plan.gate.max_speed_knots.is_some() || weighs_ways) {
            Scope::EveryVessel
        } else {
            Scope::Scenes
        };
        let screening = Screening::new(self.taking(), &resolved.gate_query, plan.gate, scope, plan.group);
        GatedQuery { resolved, screening }
    }

    /// Modalities of entries that the filter admits.
    pub fn modalities(&self) -> impl Iterator<Item = Modality> {
        let wanted = &self.plan.filter.modalities;
        let both = [Modality::Optical, Modality::Sar];
        both.into_iter().filter(|modality| wanted.is_empty() || wanted.contains(modality))
    }

    /// The part of the selection that is of one modality.
    ///
    /// # Errors
    /// The gallery cannot be read.
    pub fn selection_of(&self, modality: Modality) -> Result<Selection, StoreError> {
        self.gallery.select(&Filter { modalities: vec![modality], ..self.plan.filter.clone() })
    }

    /// The best by cosine for every query.
    ///
    /// # Errors
    /// The gallery cannot be read.
    pub fn search<'q>(
        &self,
        gated_queries: impl IntoIterator<Item = &'q GatedQuery>,
        k: usize,
        group: Group,
    ) -> Result<Vec<SearchResult>, StoreError> {
        let queries: Vec<IndexQuery> = gated_queries.into_iter().map(|gated| gated.index_query(k)).collect();
        self.gallery.search(&queries, &self.selection, group, self.cancellation)
    }

    /// Bounds on the cosines beyond `hits`, of which at most `k` were requested.
    pub fn horizon(&self, hits: &[Hit], k: usize) -> Vec<(Modality, f32)> {
        let last = hits.last().filter(|_| hits.len() == k);
        last.map_or(vec![], |last| self.modalities().map(|modality| (modality, last.cosine)).collect())
    }

    /// Reads hits and computes their evidence.
    ///
    /// # Errors
    /// The gallery cannot be read.
    pub fn weigh(&self, gated: &GatedQuery, hits: &[Hit]) -> Result<Vec<Contender>, StoreError> {
        let traces = if self.needs_traces(gated) {
            let vessels: VesselSet = hits.iter().map(|hit| hit.vessel).collect();
            gated.screening.traces_of(self.taking(), &gated.resolved.gate_query, &vessels)
        } else {
            Traces::default()
        };
        hits.iter().map(|hit| self.contender(gated, *hit, &traces)).collect()
    }

    /// Whether movement must be reported, or the search did not count the entries of vessels.
    fn needs_traces(&self, gated: &GatedQuery) -> bool {
        !matches!(self.plan.ranking, Ranking::Cosine | Ranking::ReciprocalRank)
            || self.plan.gate.max_speed_knots.is_some()
            || !gated.resolved.gate_query.places.is_empty()
    }

    fn contender(&self, gated: &GatedQuery, hit: Hit, traces: &Traces) -> Result<Contender, StoreError> {
        self.cancellation.check()?;
        let entry = self.gallery.entry(hit.row)?;
        let trace = traces.get(&hit.vessel);
        let leg = trace.and_then(Trace::leg);
        let resemblance = gated.resolved.tracklet.outline().map(|query| {
            let outline =
                Outline { modality: entry.modality, length_m: entry.length_m(), width_m: entry.width_m() };
            Resemblance {
                pair: ModalityPair::of(query.modality, entry.modality),
                cosine: hit.cosine,
                log_ratios: query.log_ratios(&outline),
            }
        });
        let evidence = match self.calibrator {
            Some(calibrator) => calibrator.evidence(resemblance, leg.as_ref()),
            None => Evidence::uncalibrated(resemblance, leg.as_ref()),
        };
        let is_unchecked = trace.is_some_and(|trace| self.plan.gate.judge(trace) == Verdict::Unchecked);
        let entries = trace.map_or(hit.entries, Trace::entries);
        let score = f64::from(hit.cosine);
        Ok(Contender { hit, score, entry, evidence, leg, is_unchecked, entries, probability: None })
    }

    /// The calibrator and the query's modality, if that is known and calibrated with a modality that takes part.
    pub fn judge_of(&self, gated: &GatedQuery) -> Option<(&'s Calibrator, Modality)> {
        let (calibrator, query) = self.calibrator.zip(gated.resolved.tracklet.modality())?;
        let is_calibrated = |modality: Modality| calibrator.pair(ModalityPair::of(query, modality)).is_some();
        self.modalities().any(is_calibrated).then_some((calibrator, query))
    }

    /// The judge of a query that is to be ranked by evidence; `None` if it is to be ranked by cosine.
    ///
    /// # Errors
    /// The gallery cannot be read.
    pub fn judge_of_ranking(
        &self,
        gated: &GatedQuery,
    ) -> Result<Option<(&'s Calibrator, Modality)>, StoreError> {
        let Some((calibrator, query)) = self.judge_of(gated) else { return Ok(None) };
        if self.plan.ranking == Ranking::FusedWhereCalibrated {
            let is_calibrated =
                |modality: &Modality| calibrator.pair(ModalityPair::of(query, *modality)).is_some();
            for modality in self.modalities().filter(|modality| !is_calibrated(modality)) {
                if !self.selection_of(modality)?.is_empty() {
                    return Ok(None);
                }
            }
        }
        Ok(Some((calibrator, query)))
    }

    /// Which minimum a contender does not reach, if any.
    pub fn missed(&self, contender: &Contender) -> Option<Removal> {
        self.plan.least.missed(contender.hit.cosine, contender.probability)
    }

    /// The prior of a query.
    pub fn prior(&self, calibrator: &Calibrator, gated: &GatedQuery) -> Prior {
        Prior {
            unknown: self.plan.prior_unknown.unwrap_or(calibrator.prior_unknown()),
            vessels: gated.screening.vessels(self.taking(), &gated.resolved.gate_query),
        }
    }

    /// Gives every contender the probability of its vessel, which is judged by the vessel's contender with the most
    /// evidence. A contender whose pair of modalities was not calibrated takes part with its prior likelihood, and gets
    /// no probability.
    pub fn believe(&self, gated: &GatedQuery, ranked: &mut Ranked) {
        let Some((calibrator, query)) = self.judge_of(gated) else { return };
        let prior = self.prior(calibrator, gated);
        let reach = |(modality, cosine): &(Modality, f32)| {
            calibrator.appearance(ModalityPair::of(query, *modality), *cosine)
        };
        let (vessels, ratios): (Vec<VesselNumber>, Vec<f64>) =
            best_of_vessels(&ranked.contenders).into_iter().unzip();
        let looked_at = vessels.len() + gated.screening.removed.len();
        let unjudged = Unjudged {
            vessels: if ranked.horizon.is_empty() { 0 } else { prior.vessels.saturating_sub(looked_at) },
            log_likelihood_ratio: ranked.horizon.iter().map(reach).fold(f64::NEG_INFINITY, f64::max),
        };
        let found = posterior(&ratios, unjudged, prior);
        let probabilities: HashMap<VesselNumber, f64> = vessels.into_iter().zip(found.candidates).collect();
        for contender in &mut ranked.contenders {
            let probability = probabilities[&contender.hit.vessel];
            contender.probability = contender.evidence.appearance.map(|_| probability);
        }
        ranked.unknown_probability = Some(found.unknown);
    }
}

impl GatedQuery {
    pub fn index_query(&self, k: usize) -> IndexQuery<'_> {
        IndexQuery {
            vector: self.resolved.tracklet.embedding().as_slice(),
            part: 0,
            k,
            without_row: self.resolved.gate_query.row,
            without_vessels: &self.screening.removed,
        }
    }
}

/// The largest evidence for each vessel.
pub(super) fn best_of_vessels<'c>(
    contenders: impl IntoIterator<Item = &'c Contender>,
) -> BTreeMap<VesselNumber, f64> {
    let mut best: BTreeMap<VesselNumber, f64> = BTreeMap::new();
    for contender in contenders {
        let most = best.entry(contender.hit.vessel).or_insert(f64::NEG_INFINITY);
        *most = most.max(contender.evidence.total());
    }
    best
}
