//! Computes the answer to a match from its plan.

use std::collections::{BTreeMap, BTreeSet};

use super::assignment::{Alternative, Choice, assign};
use super::calibration::Calibrator;
use super::doubt::Doubt;
use super::evidence::{Evidence, ModalityPair};
use super::fusion::{Fusion, SECOND_LOOK};
use super::plan::{Plan, Ranking, Sharing};
use super::query::{QueryError, resolve};
use super::ranks::rank_by_members;
use super::reranking::rank_reranked;
use super::session::{Contender, GatedQuery, Ranked, Session, best_of_vessels};
use crate::cancellation::Cancellation;
use crate::chip::Modality;
use crate::embedding::{Embedding, ModelDigest};
use crate::gallery::{
    About, EntryId, GalleryReader, Group, Labels, Observation, RowId, SearchResult, StoreError, VesselId,
    VesselNumber,
};
use crate::reason::Removal;

/// The answer to one query.
#[derive(Clone, Debug, PartialEq)]
pub struct Matched {
    /// What its candidates are ranked by, which the plan may leave open.
    pub ranking: Ranking,
    /// Best first: those of the best `top_k` that reach the minimum.
    pub candidates: Vec<Candidate>,
    /// The embedding of the query.
    pub embedding: Embedding,
    /// Probability that the ship is none of the vessels that the filter admits; `None`: uncalibrated.
    pub unknown_probability: Option<f64>,
    /// Number of entries that the filter admits, without the query itself.
    pub matched: u64,
    /// Number of candidates that a gate removed, vessels in a ranking of vessels and entries in one of entries; and
    /// those of the best `top_k` that do not reach the minimum.
    pub removed: Vec<(Removal, u64)>,
    /// Whether the ranking is the same as by brute force.
    pub is_exact: bool,
    pub doubts: Vec<Doubt>,
}

/// One rank of a ranking.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The entry, or the one that represents the vessel.
    pub entry: EntryId,
    pub vessel: Option<VesselId>,
    /// Cosine; of an ensemble, the mean of its members' cosines, weighted as their ranks are.
    pub similarity: f32,
    /// The sum of weighted reciprocal ranks, in a ranking by these.
    pub rank_score: Option<f64>,
    /// Probability that it shows the query's ship; `None`: uncalibrated.
    pub probability: Option<f64>,
    pub evidence: Evidence,
    /// Between the query and the vessel's sighting nearest in time.
    pub implied_speed_knots: Option<f64>,
    /// Number of the vessel's entries that the filter admits; 1 in a ranking of entries.
    pub entries: u32,
    /// A gate could not judge it, because a time or position is missing.
    pub is_unchecked: bool,
    /// Of the entry, as are the following fields.
    pub modality: Modality,
    pub observation: Observation,
    pub labels: Labels,
}

/// Why a match has no answer at all.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MatchError {
    #[error("{what} needs a calibrator for model {model}, and there is none")]
    Uncalibrated { what: &'static str, model: ModelDigest },
    #[error(
        "model {model} is an ensemble: its galleries are ranked by reciprocal rank, not {}",
        .ranking.name()
    )]
    Ensemble { model: ModelDigest, ranking: Ranking },
    #[error("model {model} is no ensemble: there are no ranked lists of members to fuse")]
    NoEnsemble { model: ModelDigest },
    #[error("top_k is {top_k}, and the ensemble {model} fuses only the first {depth} ranks of each member")]
    BeyondDepth { model: ModelDigest, top_k: usize, depth: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Ranks the candidates of every query. An invalid query fails alone.
///
/// Reads the disk and computes, so it must not run on an async task.
///
/// # Errors
/// The gallery cannot be read, there is no calibrator for a fused ranking or a minimum probability, the gallery cannot be
/// ranked so or so far, or it was cancelled.
pub fn match_queries(
    gallery: &dyn GalleryReader,
    plan: &Plan,
    cancellation: &Cancellation,
) -> Result<Vec<Result<Matched, QueryError>>, MatchError> {
    let about = gallery.about();
    let model = about.model;
    check_ranking(about, plan.ranking, plan.top_k)?;
    let of_gallery = |calibrator: &&Calibrator| calibrator.model() == model && about.composition.is_none();
    let calibrator = plan.calibrator.as_deref().filter(of_gallery);
    let needs = [
        ("a fused ranking", plan.ranking == Ranking::Fused),
        ("min_probability", plan.least.probability.is_some()),
    ];
    if let Some((what, _)) = needs.into_iter().find(|(_, is_asked)| *is_asked && calibrator.is_none()) {
        return Err(MatchError::Uncalibrated { what, model });
    }
    cancellation.check().map_err(StoreError::from)?;
    let selection = gallery.select(&plan.filter)?;
    let session = Session { gallery, plan, calibrator, selection, cancellation };
    let (mut gated_queries, mut failures) = (Vec::new(), Vec::new());
    for query in &plan.queries {
        // Screening may look at every sighting.
        cancellation.check().map_err(StoreError::from)?;
        match resolve(gallery, query)? {
            Ok(resolved) => {
                gated_queries.push(session.screen(resolved));
                failures.push(None);
            }
            Err(failure) => failures.push(Some(failure)),
        }
    }
    let mut answers = answer(&session, &gated_queries)?.into_iter();
    let next = |failure: Option<QueryError>| match failure {
        Some(failure) => Err(failure),
        None => Ok(answers.next().expect("one answer for each query that is asked")),
    };
    Ok(failures.into_iter().map(next).collect())
}

/// Whether a gallery can be ranked so, and so far: that of an ensemble by its members' lists, and no other by these.
///
/// # Errors
/// It cannot.
pub fn check_ranking(about: &About, ranking: Ranking, top_k: usize) -> Result<(), MatchError> {
    let model = about.model;
    match (&about.composition, ranking) {
        (Some(composition), Ranking::ReciprocalRank) => {
            let depth = composition.depth();
            if top_k > depth { Err(MatchError::BeyondDepth { model, top_k, depth }) } else { Ok(()) }
        }
        (Some(_), ranking) => Err(MatchError::Ensemble { model, ranking }),
        (None, Ranking::ReciprocalRank) => Err(MatchError::NoEnsemble { model }),
        (None, _) => Ok(()),
    }
}

fn answer(session: &Session, gated_queries: &[GatedQuery]) -> Result<Vec<Matched>, StoreError> {
    let mut rankings = rank(session, gated_queries)?;
    for (gated, ranked) in gated_queries.iter().zip(&mut rankings) {
        session.believe(gated, ranked);
    }
    if session.plan.sharing == Sharing::DistinctVessels {
        share_out(session, gated_queries, &mut rankings);
    }
    let answers = gated_queries.iter().zip(rankings);
    Ok(answers.map(|(gated, ranked)| matched(session, gated, ranked)).collect())
}

fn rank(session: &Session, gated_queries: &[GatedQuery]) -> Result<Vec<Ranked>, StoreError> {
    if let Some(composition) = &session.gallery.about().composition {
        return rank_by_members(session, gated_queries, composition);
    }
    match session.plan.ranking {
        Ranking::Cosine | Ranking::ReciprocalRank => {
            rank_by_cosine(session, &gated_queries.iter().collect::<Vec<_>>())
        }
        Ranking::Reranked { depth } => rank_reranked(session, gated_queries, depth),
        Ranking::Fused | Ranking::FusedWhereCalibrated => rank_by_evidence(session, gated_queries),
    }
}

fn rank_by_cosine(session: &Session, gated_queries: &[&GatedQuery]) -> Result<Vec<Ranked>, StoreError> {
    let depth = session.depth();
    let found = session.search(gated_queries.iter().copied(), depth, session.plan.group)?;
    let ranked = |(gated, found): (&&GatedQuery, SearchResult)| {
        let horizon = session.horizon(&found.hits, depth);
        Ok(Ranked::exact(Ranking::Cosine, session.weigh(gated, &found.hits)?, horizon))
    };
    gated_queries.iter().zip(found).map(ranked).collect()
}

fn rank_by_evidence(session: &Session, gated_queries: &[GatedQuery]) -> Result<Vec<Ranked>, StoreError> {
    let judges = gated_queries.iter().map(|gated| session.judge_of_ranking(gated));
    let judges = judges.collect::<Result<Vec<_>, StoreError>>()?;
    // Those that nobody judges share one pass over memory.
    let unjudged = gated_queries.iter().zip(&judges).filter(|(_, judge)| judge.is_none());
    let unjudged: Vec<&GatedQuery> = unjudged.map(|(gated, _)| gated).collect();
    let mut by_cosine = rank_by_cosine(session, &unjudged)?.into_iter();
    let ranked = gated_queries.iter().zip(judges).map(|(gated, judge)| match judge {
        Some((calibrator, modality)) => {
            Fusion { session, gated, calibrator, modality, second_look: SECOND_LOOK }.rank()
        }
        None => Ok(by_cosine.next().expect("one ranking for each query that nobody judges")),
    });
    ranked.collect()
}

/// Moves the vessel assigned to each query to the front, among those that reach the minimum.
fn share_out(session: &Session, gated_queries: &[GatedQuery], rankings: &mut [Ranked]) {
    let reaches = |contender: &&Contender| session.missed(contender).is_none();
    let likelihoods = |(gated, ranked): (&GatedQuery, &Ranked)| {
        let (calibrator, _) = session.judge_of(gated)?;
        let prior = session.prior(calibrator, gated);
        let candidates = best_of_vessels(ranked.contenders.iter().filter(reaches)).into_iter();
        Some(Choice {
            candidates: candidates.map(|(vessel, ratio)| (vessel, ratio + prior.log_vessel())).collect(),
            alternative: Alternative::Weight(prior.log_unknown()),
        })
    };
    let looks = |ranked: &Ranked| {
        let mut best: BTreeMap<VesselNumber, f64> = BTreeMap::new();
        for Contender { hit, score, .. } in ranked.contenders.iter().filter(reaches) {
            let most = best.entry(hit.vessel).or_insert(f64::NEG_INFINITY);
            *most = most.max(*score);
        }
        Choice { candidates: best.into_iter().collect(), alternative: Alternative::LastResort }
    };
    let weighed: Option<Vec<_>> = gated_queries.iter().zip(&*rankings).map(likelihoods).collect();
    let choices = weighed.unwrap_or_else(|| rankings.iter().map(looks).collect());
    for (ranked, assigned) in rankings.iter_mut().zip(assign(&choices)) {
        match assigned {
            None => ranked.doubts.push(Doubt::Unassigned),
            Some(vessel) => {
                let is_assigned =
                    |contender: &Contender| contender.hit.vessel == vessel && reaches(&contender);
                let place = ranked.contenders.iter().position(is_assigned);
                let place = place.expect("a vessel is assigned from the contenders");
                ranked.contenders[..=place].rotate_right(1);
            }
        }
    }
}

fn matched(session: &Session, gated: &GatedQuery, ranked: Ranked) -> Matched {
    let Ranked { ranking, mut contenders, is_exact, unknown_probability, mut doubts, .. } = ranked;
    contenders.truncate(session.plan.top_k);
    doubts.extend(doubts_of(session, gated, &contenders));
    let mut removed = gated.screening.counts.clone();
    contenders.retain(|contender| match session.missed(contender) {
        None => true,
        Some(missed) => {
            *removed.entry(missed).or_default() += 1;
            false
        }
    });
    let takes_part = |own: RowId| session.gallery.is_selected(&session.selection, own);
    let itself = usize::from(gated.resolved.gate_query.row.is_some_and(takes_part));
    Matched {
        ranking,
        candidates: contenders.into_iter().map(|contender| candidate(session, ranking, contender)).collect(),
        embedding: gated.resolved.tracklet.embedding().clone(),
        unknown_probability,
        matched: (session.selection.len() - itself) as u64,
        removed: removed.into_iter().collect(),
        is_exact,
        doubts,
    }
}

/// Reports what is not calibrated, if there is a calibrator.
fn doubts_of(session: &Session, gated: &GatedQuery, contenders: &[Contender]) -> Vec<Doubt> {
    if session.calibrator.is_none() {
        return vec![];
    }
    let Some(query) = gated.resolved.tracklet.modality() else { return vec![Doubt::ModalityUnknown] };
    let unjudged = contenders.iter().filter(|contender| contender.evidence.appearance.is_none());
    let pairs: BTreeSet<ModalityPair> =
        unjudged.map(|contender| ModalityPair::of(query, contender.entry.modality)).collect();
    pairs.into_iter().map(Doubt::PairUncalibrated).collect()
}

fn candidate(session: &Session, ranking: Ranking, contender: Contender) -> Candidate {
    Candidate {
        similarity: contender.hit.cosine,
        rank_score: (ranking == Ranking::ReciprocalRank).then_some(contender.score),
        probability: contender.probability,
        evidence: contender.evidence,
        implied_speed_knots: contender.leg.and_then(|leg| leg.implied_speed_knots()),
        entries: match session.plan.group {
            Group::Vessel => contender.entries,
            Group::Entry => 1,
        },
        is_unchecked: contender.is_unchecked,
        entry: contender.entry.id,
        vessel: contender.entry.vessel,
        modality: contender.entry.modality,
        observation: contender.entry.observation,
        labels: contender.entry.labels,
    }
}
