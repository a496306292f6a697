//! Conversions between wire messages and the domain. Every error a caller can make in a field is reported here.

mod chip;
mod embed;
mod filter;
mod gallery;
mod matching;
mod model;
mod read;
mod sighting;
mod training;

use std::time::Duration;

pub use chip::{modality, source_chip, warnings};
pub use embed::{EmbedCall, EmbedItem, MemberVectors, embed_response, embed_stream_response, embed_timings};
pub use filter::filter;
pub use gallery::{EnrollItem, EnrollSource, chips, entry, gallery, selector, updates, vessel};
pub use matching::{Details, MatchCall, QueryCall, SubjectCall, match_result};
pub use model::{hints, resident_model, stored_model, with_costs};
pub use read::read;
pub use sighting::{entry_id, modality_to_wire, vessel_id};
pub use training::{job, job_event, job_id, listing, order};

use super::context::CallContext;
use super::problem::Problem;
use crate::embedding::{Embedding, EmbeddingError, ModelDigest};
use crate::encoder::{Caller, Priority};
use crate::evaluate::Evaluation;
use crate::gallery::{TextError, check_text};
use crate::reason::Reason;
use crate::wire;

/// The caller as the queue sees it.
pub fn caller(context: &CallContext, priority: Priority) -> Caller {
    Caller { tenant: context.tenant.clone(), priority, deadline: context.deadline }
}

/// Reads every value of a repeated field; an invalid one is named by its index, as in `vessel_ids[3]`.
pub fn each<T>(
    field: &str,
    texts: &[String],
    read: impl Fn(&str, &str) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    texts.iter().enumerate().map(|(at, text)| read(&format!("{field}[{at}]"), text)).collect()
}

/// Refuses a text that is too long or contains control characters.
pub fn bounded_text(field: &str, text: &str) -> Result<(), Problem> {
    check_text(text).map_err(|cause| text_problem(field, cause))
}

/// The digest that a request names; `None` if it names none.
pub fn model_digest(text: &str) -> Result<Option<ModelDigest>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Problem::invalid(Reason::ModelMalformed, "model", "model is not a digest of 64 hexadecimal digits")
    })
}

/// The vector of a request, normalised.
pub fn embedding(field: &str, embedding: wire::Embedding) -> Result<Embedding, Problem> {
    Embedding::from_feature(embedding.values).map_err(|cause| {
        let reason = match cause {
            EmbeddingError::Empty => Reason::EmbeddingEmpty,
            EmbeddingError::NotFinite(_) => Reason::EmbeddingNotFinite,
            EmbeddingError::Zero => Reason::EmbeddingZero,
            EmbeddingError::NotUnit => Reason::EmbeddingNotUnit,
            EmbeddingError::Cancelled => Reason::EmbeddingCancelled,
        };
        Problem::invalid(reason, format!("{field}.values"), cause.to_string())
    })
}

/// The evaluation of a job's model or of a stored model.
fn evaluation(evaluation: Evaluation) -> wire::EvaluationResult {
    wire::EvaluationResult {
        protocol: evaluation.protocol,
        epoch: evaluation.epoch,
        map: evaluation.mean_average_precision,
        rank1: evaluation.hit_within_1,
        rank5: evaluation.hit_within_5,
        rank10: evaluation.hit_within_10,
        valid_queries: evaluation.queries_with_a_match,
    }
}

/// A duration on the wire; `None` beyond its range, which no stage reaches.
pub fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

fn priority(number: i32) -> Result<Priority, Problem> {
    match wire::Priority::try_from(number) {
        Ok(wire::Priority::Unspecified | wire::Priority::Interactive) => Ok(Priority::Interactive),
        Ok(wire::Priority::Bulk) => Ok(Priority::Bulk),
        Err(_) => Err(Problem::invalid(
            Reason::PriorityUnknown,
            "priority",
            format!("priority {number} is unknown"),
        )),
    }
}

fn text_problem(field: &str, cause: TextError) -> Problem {
    let reason = match cause {
        TextError::Empty => Reason::TextEmpty,
        TextError::TooLong { .. } => Reason::TextTooLong,
        TextError::Control => Reason::TextControl,
    };
    Problem::invalid(reason, field, format!("{field} {cause}"))
}
