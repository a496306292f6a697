//! Between wire messages and the domain. Everything a caller can get wrong about a field is said here.

use std::time::Duration;

use super::context::CallContext;
use super::problem::Problem;
use crate::chip::{Modality, OrientedBox, PixelSize, SourceChip, View};
use crate::embedding::ModelDigest;
use crate::encoder::{Caller, Embedded, ModelCard, Priority};
use crate::wire;

/// Bytes of an identifier that callers choose.
const ID_BYTES_MAX: usize = 256;

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
            return Err(Problem::invalid("NO_CHIPS", "chips", "chips is empty"));
        }
        if count > chips_max {
            let message = format!("chips has {count} elements, the limit is {chips_max}");
            return Err(
                Problem::invalid("TOO_MANY_CHIPS", "chips", message).with_metadata("limit", chips_max)
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
        self.chips.iter().flatten().map(|job| job.image.len()).sum()
    }
}

/// Who calls, in the terms of the queue.
pub fn caller(context: &CallContext, priority: Priority) -> Caller {
    Caller { tenant: context.tenant.clone(), priority, deadline: context.deadline }
}

/// One result a chip, in order.
pub fn embed_response(
    outcomes: Vec<Result<Embedded, Problem>>,
    model: &ModelCard,
    total: Duration,
) -> wire::EmbedResponse {
    let mut timings = wire::Timings { total: duration(total), ..wire::Timings::default() };
    let embedded: Vec<_> = outcomes.iter().flatten().collect();
    if !embedded.is_empty() {
        timings.decode = duration(embedded.iter().map(|chip| chip.decode).sum());
        timings.queue = embedded.iter().map(|chip| chip.queued).max().and_then(duration);
        timings.forward = embedded.iter().map(|chip| chip.forward).max().and_then(duration);
    }
    let results = outcomes.into_iter().map(embed_result).collect();
    wire::EmbedResponse { results, model: model.digest.to_string(), timings: Some(timings) }
}

/// Refuses an identifier that is too long.
pub fn bounded_text(field: &'static str, text: &str) -> Result<(), Problem> {
    if text.len() <= ID_BYTES_MAX {
        return Ok(());
    }
    let message = format!("{field} has {} bytes, the limit is {ID_BYTES_MAX}", text.len());
    Err(Problem::invalid("TEXT_TOO_LONG", field, message))
}

fn source_chip(chip: wire::Chip) -> Result<SourceChip, Problem> {
    let modality = match chip.modality() {
        wire::Modality::Optical => Modality::Optical,
        wire::Modality::Sar => Modality::Sar,
        wire::Modality::Unspecified => {
            let message = match chip.modality {
                0 => "modality is not set".to_owned(),
                number => format!("modality {number} is unknown"),
            };
            return Err(Problem::invalid("MODALITY_UNKNOWN", "modality", message));
        }
    };
    let default = PixelSize::default_for(modality);
    let x_m = chip.pixel_size_x_m.unwrap_or(default.x_m());
    let y_m = chip.pixel_size_y_m.unwrap_or(default.y_m());
    let pixel_size = PixelSize::new(x_m, y_m)?;
    let oriented_box = chip.oriented_box.map(oriented_box).transpose()?;
    Ok(SourceChip { image: chip.image, view: View { modality, pixel_size, oriented_box } })
}

fn oriented_box(cut: wire::OrientedBox) -> Result<OrientedBox, Problem> {
    Ok(OrientedBox::new(cut.center_x, cut.center_y, cut.length, cut.width, cut.angle_deg)?)
}

fn model_digest(text: &str) -> Result<Option<ModelDigest>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Problem::invalid("MODEL_MALFORMED", "model", "model is not a digest of 64 hexadecimal digits")
    })
}

fn priority(number: i32) -> Result<Priority, Problem> {
    match wire::Priority::try_from(number) {
        Ok(wire::Priority::Unspecified | wire::Priority::Interactive) => Ok(Priority::Interactive),
        Ok(wire::Priority::Bulk) => Ok(Priority::Bulk),
        Err(_) => {
            Err(Problem::invalid("PRIORITY_UNKNOWN", "priority", format!("priority {number} is unknown")))
        }
    }
}

fn embed_result(outcome: Result<Embedded, Problem>) -> wire::EmbedResult {
    match outcome {
        Ok(embedded) => {
            let warnings = embedded
                .warnings
                .iter()
                .map(|warning| wire::Warning { code: warning.code().into(), message: warning.to_string() });
            let embedding = wire::Embedding { values: embedded.embedding.into_vec() };
            wire::EmbedResult {
                warnings: warnings.collect(),
                outcome: Some(wire::embed_result::Outcome::Embedding(embedding)),
            }
        }
        Err(problem) => wire::EmbedResult {
            warnings: Vec::new(),
            outcome: Some(wire::embed_result::Outcome::Error(problem.into())),
        },
    }
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}
