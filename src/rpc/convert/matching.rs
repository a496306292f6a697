//! Match: its request and its answer.

use std::time::Duration;

use super::super::problem::Problem;
use super::{bounded_text, embedding, entry_id, filter, modality, model_digest, observation, source_chip};
use crate::chip::{Modality, SourceChip};
use crate::config::Matching;
use crate::embedding::{Embedding, ModelDigest};
use crate::gallery::{EntryId, Filter, Group, Observation, check_number};
use crate::wire;
use crate::wire::match_query::Subject;

const TOP_K_DEFAULT: u32 = 10;
const RERANK_DEPTH_MAX: u32 = 1000;

/// A Match request whose every field has been read; queries fail one by one.
pub struct MatchCall {
    pub gallery: String,
    pub model: Option<ModelDigest>,
    pub queries: Vec<(String, Result<QueryCall, Problem>)>,
    pub settings: MatchSettings,
}

/// A query before it has an embedding.
pub struct QueryCall {
    pub subject: SubjectCall,
    pub observation: Option<Observation>,
    pub modality: Option<Modality>,
}

/// What a query shows.
pub enum SubjectCall {
    /// Chips, and what was observed with each.
    Tracklet(Vec<(SourceChip, Option<Observation>)>),
    Embedding(Embedding),
    Entry(EntryId),
}
