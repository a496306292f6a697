//! Embed: its request and its answer.

use std::time::Duration;

use super::super::problem::Problem;
use super::{duration, model_digest, priority, source_chip, warnings};
use crate::chip::SourceChip;
use crate::embedding::ModelDigest;
use crate::encoder::{Embedded, ModelCard, Priority};
use crate::reason::Reason;
use crate::wire;

/// An Embed request whose every field has been read; chips fail one by one.
pub struct EmbedCall {
    pub chips: Vec<Result<SourceChip, Problem>>,
    pub model: Option<ModelDigest>,
    pub priority: Priority,
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
        Ok(Self { chips: chips.collect(), model, priority })
    }

    /// Bytes of the encoded images.
    pub fn image_bytes(&self) -> usize {
        self.chips.iter().flatten().map(|chip| chip.image.len()).sum()
    }
}

/// One result a chip, in order.
pub fn embed_response(
    outcomes: Vec<Result<Embedded, Problem>>,
    model: &ModelCard,
    total: Duration,
) -> wire::EmbedResponse {
    let mut timings = embed_timings(outcomes.iter().flatten());
    timings.total = duration(total);
    let results = outcomes.into_iter().map(embed_result).collect();
    wire::EmbedResponse { results, model: model.digest.to_string(), timings: Some(timings) }
}

/// What embedding some chips took; unset without any.
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

fn embed_result(outcome: Result<Embedded, Problem>) -> wire::EmbedResult {
    match outcome {
        Ok(embedded) => wire::EmbedResult {
            warnings: warnings(&embedded.warnings),
            outcome: Some(wire::embed_result::Outcome::Embedding(wire::Embedding {
                values: embedded.embedding.into_vec(),
            })),
        },
        Err(problem) => wire::EmbedResult {
            warnings: Vec::new(),
            outcome: Some(wire::embed_result::Outcome::Error(problem.into())),
        },
    }
}
