//! Match: its request and its response.

use super::super::problem::Problem;
use super::sighting::{labels_to_wire, modality_to_wire, observation, observation_to_wire};
use super::{bounded_text, embedding, entry_id, filter, modality, model_digest, source_chip};
use crate::chip::{Modality, SourceChip};
use crate::config::Matching;
use crate::embedding::{Embedding, ModelDigest};
use crate::gallery::{EntryId, Filter, Group, Observation, Read, check_number};
use crate::matching::{Candidate, Gate, Least, Matched, Ranking, Sharing};
use crate::reason::Reason;
use crate::wire;
use crate::wire::match_query::Subject;

const RERANK_DEPTH_MAX: u32 = 1000;

/// A Match request whose every field has been read; queries fail one by one.
pub struct MatchCall {
    pub gallery: String,
    pub read: Read,
    pub model: Option<ModelDigest>,
    pub queries: Vec<QueryCall>,
    /// `None`: the default.
    pub top_k: Option<usize>,
    pub group: Group,
    pub filter: Filter,
    pub gate: Gate,
    /// `None`: up to the server.
    pub ranking: Option<Ranking>,
    pub sharing: Sharing,
    pub prior_unknown: Option<f64>,
    pub least: Least,
    pub details: Details,
}

/// What a candidate includes of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Details {
    /// Modality, observation and labels.
    With,
    Without,
}

/// A query, before its chips are embedded.
pub struct QueryCall {
    pub id: String,
    pub subject: Result<SubjectCall, Problem>,
}

/// What a query consists of.
pub enum SubjectCall {
    /// Chips, each with its observation.
    Tracklet(Vec<(SourceChip, Observation)>),
    Ready {
        embedding: Embedding,
        modality: Option<Modality>,
        observation: Observation,
    },
    Enrolled(EntryId),
}

impl MatchCall {
    /// # Errors
    /// What is wrong with the request as a whole.
    pub fn parse(request: wire::MatchRequest, limits: &Matching, chips_max: usize) -> Result<Self, Problem> {
        check_counts(&request, limits, chips_max)?;
        let top_k = request.top_k.map(|top_k| top_k as usize);
        if let Some(top_k) = top_k.filter(|top_k| *top_k == 0 || *top_k > limits.top_k_max) {
            let message = format!("top_k is {top_k}, it must be 1 to {}", limits.top_k_max);
            return Err(Problem::invalid(Reason::TopKInvalid, "top_k", message)
                .with_metadata("limit", limits.top_k_max));
        }
        if let Some(speed) = request.max_speed_knots {
            check_number("max_speed_knots", speed, "0 or more", |speed| speed >= 0.0)?;
        }
        if let Some(prior) = request.prior_unknown {
            check_number("prior_unknown", prior, "above 0 and below 1", |prior| prior > 0.0 && prior < 1.0)?;
        }
        let read = super::read(request.read, request.min_commit)?;
        let least = least(&request)?;
        let wanted =
            filter(request.filter.unwrap_or_default()).map_err(|problem| problem.within("filter"))?;
        let queries = request.queries.into_iter().enumerate().map(|(index, query)| {
            let id = query.query_id.clone();
            let subject = subject(query).map_err(|problem| problem.within(&format!("queries[{index}]")));
            QueryCall { id, subject }
        });
        Ok(Self {
            read,
            model: model_digest(&request.model)?,
            queries: queries.collect(),
            top_k,
            group: group(request.group_by)?,
            filter: wanted,
            gate: Gate { max_speed_knots: request.max_speed_knots },
            ranking: ranking(request.ranking, request.rerank_depth)?,
            sharing: if request.distinct_vessels { Sharing::DistinctVessels } else { Sharing::Independent },
            prior_unknown: request.prior_unknown,
            least,
            details: if request.with_details { Details::With } else { Details::Without },
            gallery: request.gallery,
        })
    }

    /// The number of chips, and the bytes of their images.
    pub fn chips(&self) -> (usize, usize) {
        let tracklets = self.queries.iter().filter_map(|query| match &query.subject {
            Ok(SubjectCall::Tracklet(chips)) => Some(chips),
            _ => None,
        });
        let images = tracklets.flatten().map(|(chip, _)| chip.image.len());
        images.fold((0, 0), |(count, bytes), image| (count + 1, bytes + image))
    }
}

fn least(request: &wire::MatchRequest) -> Result<Least, Problem> {
    if let Some(similarity) = request.min_similarity {
        check_number("min_similarity", similarity, "-1 to 1", |least| least.abs() <= 1.0)?;
    }
    if let Some(probability) = request.min_probability {
        check_number("min_probability", probability, "0 to 1", |least| (0.0..=1.0).contains(&least))?;
    }
    Ok(Least { similarity: request.min_similarity, probability: request.min_probability })
}

fn check_counts(request: &wire::MatchRequest, limits: &Matching, chips_max: usize) -> Result<(), Problem> {
    let queries = request.queries.len();
    if queries == 0 {
        return Err(Problem::invalid(Reason::NoQueries, "queries", "queries is empty"));
    }
    if queries > limits.queries_max {
        let message = format!("queries has {queries} elements, the limit is {}", limits.queries_max);
        return Err(Problem::invalid(Reason::TooManyQueries, "queries", message)
            .with_metadata("limit", limits.queries_max));
    }
    let chips = request.queries.iter().map(|query| match &query.subject {
        Some(Subject::Tracklet(tracklet)) => tracklet.chips.len(),
        _ => 0,
    });
    let chips: usize = chips.sum();
    if chips > chips_max {
        let message = format!("the queries have {chips} chips together, the limit is {chips_max}");
        return Err(
            Problem::invalid(Reason::TooManyChips, "queries", message).with_metadata("limit", chips_max)
        );
    }
    Ok(())
}

fn subject(query: wire::MatchQuery) -> Result<SubjectCall, Problem> {
    bounded_text("query_id", &query.query_id)?;
    let observed = query.observation.map(observation).transpose();
    let observed = observed.map_err(|problem| problem.within("observation"))?;
    match query.subject {
        None => Err(Problem::invalid(
            Reason::NoSubject,
            "tracklet",
            "none of tracklet, embedding, entry_id is set",
        )),
        Some(Subject::EntryId(id)) => Ok(SubjectCall::Enrolled(entry_id("entry_id", &id)?)),
        Some(Subject::Embedding(ready)) => Ok(SubjectCall::Ready {
            embedding: embedding("embedding", ready)?,
            modality: modality("modality", query.modality)?,
            observation: observed.unwrap_or_default(),
        }),
        Some(Subject::Tracklet(tracklet)) => {
            if tracklet.chips.is_empty() {
                return Err(Problem::invalid(Reason::NoChips, "tracklet.chips", "tracklet.chips is empty"));
            }
            let chips = tracklet.chips.into_iter().enumerate().map(|(index, chip)| {
                sighted(chip).map_err(|problem| problem.within(&format!("tracklet.chips[{index}]")))
            });
            Ok(SubjectCall::Tracklet(chips.collect::<Result<_, _>>()?))
        }
    }
}

fn sighted(mut chip: wire::Chip) -> Result<(SourceChip, Observation), Problem> {
    let observed = observation(chip.observation.take().unwrap_or_default());
    let observed = observed.map_err(|problem| problem.within("observation"))?;
    Ok((source_chip(chip)?, observed))
}

fn group(number: i32) -> Result<Group, Problem> {
    match wire::GroupBy::try_from(number) {
        Ok(wire::GroupBy::Unspecified | wire::GroupBy::Vessel) => Ok(Group::Vessel),
        Ok(wire::GroupBy::Entry) => Ok(Group::Entry),
        Err(_) => {
            Err(Problem::invalid(Reason::GroupByUnknown, "group_by", format!("group_by {number} is unknown")))
        }
    }
}

fn ranking(number: i32, rerank_depth: Option<u32>) -> Result<Option<Ranking>, Problem> {
    let depth = rerank_depth.unwrap_or(0);
    if depth > RERANK_DEPTH_MAX {
        let message = format!("rerank_depth is {depth}, the limit is {RERANK_DEPTH_MAX}");
        return Err(Problem::invalid(Reason::RerankDepthInvalid, "rerank_depth", message)
            .with_metadata("limit", RERANK_DEPTH_MAX));
    }
    match wire::Ranking::try_from(number) {
        Ok(wire::Ranking::Unspecified | wire::Ranking::Cosine) if depth > 0 => {
            Ok(Some(Ranking::Reranked { depth: depth as usize }))
        }
        Ok(wire::Ranking::Unspecified) => Ok(None),
        Ok(wire::Ranking::ReciprocalRank) if depth > 0 => {
            let message = "rerank_depth re-ranks by cosine: it cannot be combined with reciprocal ranks";
            Err(Problem::invalid(Reason::RerankOfFused, "rerank_depth", message))
        }
        Ok(wire::Ranking::ReciprocalRank) => Ok(Some(Ranking::ReciprocalRank)),
        Ok(wire::Ranking::Cosine) => Ok(Some(Ranking::Cosine)),
        Ok(wire::Ranking::Fused) if depth > 0 => {
            let message = "rerank_depth re-ranks by cosine: it cannot be combined with a fused ranking";
            Err(Problem::invalid(Reason::RerankOfFused, "rerank_depth", message))
        }
        Ok(wire::Ranking::Fused) => Ok(Some(Ranking::Fused)),
        Err(_) => {
            Err(Problem::invalid(Reason::RankingUnknown, "ranking", format!("ranking {number} is unknown")))
        }
    }
}

/// The response to one query; `warnings` are those about its chips.
pub fn match_result(
    query_id: String,
    matched: Result<Matched, Problem>,
    mut warnings: Vec<wire::Warning>,
    details: Details,
) -> wire::MatchResult {
    let matched = match matched {
        Ok(matched) => matched,
        Err(problem) => {
            return wire::MatchResult {
                query_id,
                error: Some(problem.into()),
                warnings,
                ..wire::MatchResult::default()
            };
        }
    };
    let doubts = matched.doubts.iter();
    warnings.extend(
        doubts.map(|doubt| wire::Warning { code: doubt.code().name().into(), message: doubt.to_string() }),
    );
    let removed = matched.removed.into_iter();
    wire::MatchResult {
        query_id,
        error: None,
        candidates: matched.candidates.into_iter().map(|found| candidate(found, details)).collect(),
        embedding: Some(wire::Embedding { values: matched.embedding.into_vec() }),
        unknown_probability: matched.unknown_probability,
        matched: matched.matched,
        removed: removed
            .map(|(reason, count)| wire::Removed { reason: reason.name().into(), count })
            .collect(),
        exact: matched.is_exact,
        warnings,
        ranking: ranking_to_wire(matched.ranking).into(),
    }
}

fn ranking_to_wire(ranking: Ranking) -> wire::Ranking {
    match ranking {
        Ranking::Cosine | Ranking::Reranked { .. } => wire::Ranking::Cosine,
        Ranking::ReciprocalRank => wire::Ranking::ReciprocalRank,
        Ranking::Fused | Ranking::FusedWhereCalibrated => wire::Ranking::Fused,
    }
}

fn candidate(candidate: Candidate, details: Details) -> wire::Candidate {
    let evidence = candidate
        .evidence
        .terms()
        .map(|(term, log_likelihood_ratio)| wire::Evidence { term: term.into(), log_likelihood_ratio });
    let bare = wire::Candidate {
        evidence: evidence.collect(),
        entry_id: candidate.entry.to_string(),
        vessel_id: candidate.vessel.map(|vessel| vessel.to_string()).unwrap_or_default(),
        similarity: candidate.similarity,
        rank_score: candidate.rank_score,
        probability: candidate.probability,
        implied_speed_knots: candidate.implied_speed_knots,
        entries: candidate.entries,
        gate_unchecked: candidate.is_unchecked,
        ..wire::Candidate::default()
    };
    match details {
        Details::Without => bare,
        Details::With => wire::Candidate {
            modality: modality_to_wire(candidate.modality).into(),
            observation: Some(observation_to_wire(candidate.observation)),
            labels: labels_to_wire(&candidate.labels),
            ..bare
        },
    }
}
