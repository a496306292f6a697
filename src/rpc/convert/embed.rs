//! Embed: its request and its response.

use std::time::Duration;

use super::super::problem::Problem;
use super::{bounded_text, duration, model_digest, priority, source_chip, warnings};
use crate::chip::SourceChip;
use crate::embedding::ModelDigest;
use crate::encoder::{Embedded, ModelCard, ModelLease, Priority};
use crate::reason::Reason;
use crate::wire;

/// An Embed request whose every field has been read; chips fail one by one.
pub struct EmbedCall {
    pub chips: Vec<Result<SourceChip, Problem>>,
    pub model: Option<ModelDigest>,
    pub priority: Priority,
    pub members: MemberVectors,
}

/// Whether the vectors of an ensemble's members are returned beside the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberVectors {
    With,
    Without,
}

impl MemberVectors {
    fn asked(with_members: bool) -> Self {
        if with_members { Self::With } else { Self::Without }
    }
}

impl EmbedCall {
    /// # Errors
    /// What is wrong with the request as a whole.
    pub fn parse(request: wire::EmbedRequest, chips_max: usize) -> Result<Self, Problem> {
        let count = request.chips.len();
        if count == 0 {
            return Err(Problem::invalid(Reason::NoChips, "chips", "chips is empty"));
        }
        if count > chips_max {
            let message = format!("chips has {count} elements, the limit is {chips_max}");
            return Err(
                Problem::invalid(Reason::TooManyChips, "chips", message).with_metadata("limit", chips_max)
            );
        }
        let model = model_digest(&request.model)?;
        let priority = priority(request.priority)?;
        let chips = request.chips.into_iter().enumerate();
        let chips =
            chips.map(|(index, chip)| source_chip(chip).map_err(|p| p.within(&format!("chips[{index}]"))));
        let members = MemberVectors::asked(request.with_members);
        Ok(Self { chips: chips.collect(), model, priority, members })
    }

    /// Bytes of the encoded images.
    pub fn image_bytes(&self) -> usize {
        self.chips.iter().flatten().map(|chip| chip.image.len()).sum()
    }
}

/// One chip of a stream, every field of which has been read.
pub struct EmbedItem {
    pub chip: SourceChip,
    pub model: Option<ModelDigest>,
    pub priority: Priority,
    pub members: MemberVectors,
}

impl EmbedItem {
    /// # Errors
    /// What is wrong with the item, by field.
    pub fn parse(item: wire::EmbedStreamRequest) -> Result<Self, Problem> {
        bounded_text("chip_id", &item.chip_id)?;
        let model = model_digest(&item.model)?;
        let priority = priority(item.priority)?;
        let chip = item.chip.ok_or_else(|| Problem::invalid(Reason::NoChips, "chip", "chip is not set"))?;
        let members = MemberVectors::asked(item.with_members);
        let chip = source_chip(chip).map_err(|problem| problem.within("chip"))?;
        Ok(Self { chip, model, priority, members })
    }
}

/// The response to one chip of a stream, with the model that embedded it.
pub fn embed_stream_response(
    chip_id: String,
    outcome: Result<(Embedded, ModelLease, MemberVectors), Problem>,
    total: Duration,
) -> wire::EmbedStreamResponse {
    let mut timings = embed_timings(outcome.iter().map(|(embedded, ..)| embedded));
    timings.total = duration(total);
    let model = outcome.as_ref().map_or_else(|_| String::new(), |(_, model, _)| model.digest.to_string());
    let result = match outcome {
        Ok((embedded, model, members)) => embed_result(Ok(embedded), &model, members),
        Err(problem) => failed(problem),
    };
    wire::EmbedStreamResponse { chip_id, result: Some(result), model, timings: Some(timings) }
}

/// One result per chip, in order.
pub fn embed_response(
    outcomes: Vec<Result<Embedded, Problem>>,
    model: &ModelCard,
    members: MemberVectors,
    total: Duration,
) -> wire::EmbedResponse {
    let mut timings = embed_timings(outcomes.iter().flatten());
    timings.total = duration(total);
    let results = outcomes.into_iter().map(|outcome| embed_result(outcome, model, members)).collect();
    wire::EmbedResponse { results, model: model.digest.to_string(), timings: Some(timings) }
}

/// The time spent on embedding some chips; unset if there are none.
pub fn embed_timings<'a>(embedded: impl IntoIterator<Item = &'a Embedded>) -> wire::Timings {
    let embedded: Vec<_> = embedded.into_iter().collect();
    if embedded.is_empty() {
        return wire::Timings::default();
    }
    wire::Timings {
        decode: duration(embedded.iter().map(|chip| chip.decode).sum()),
        queue: embedded.iter().map(|chip| chip.queued).max().and_then(duration),
        forward: embedded.iter().map(|chip| chip.forward).max().and_then(duration),
        ..wire::Timings::default()
    }
}

fn embed_result(
    outcome: Result<Embedded, Problem>,
    model: &ModelCard,
    members: MemberVectors,
) -> wire::EmbedResult {
    match outcome {
        Ok(embedded) => {
            let whole = wire::Embedding { values: embedded.embedding.into_vec() };
            wire::EmbedResult {
                warnings: warnings(&embedded.warnings),
                members: match members {
                    MemberVectors::Without => Vec::new(),
                    MemberVectors::With => member_vectors(&whole, model),
                },
                outcome: Some(wire::embed_result::Outcome::Embedding(whole)),
            }
        }
        Err(problem) => failed(problem),
    }
}

fn failed(problem: Problem) -> wire::EmbedResult {
    let outcome = Some(wire::embed_result::Outcome::Error(problem.into()));
    wire::EmbedResult { outcome, ..wire::EmbedResult::default() }
}

fn member_vectors(whole: &wire::Embedding, model: &ModelCard) -> Vec<wire::Embedding> {
    match model.composition() {
        None => vec![whole.clone()],
        Some(composition) => {
            let vectors = composition.unit_parts(&whole.values).into_iter();
            vectors.map(|values| wire::Embedding { values }).collect()
        }
    }
}
