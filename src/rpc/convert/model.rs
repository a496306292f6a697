//! Models, and what a client knows of a checkpoint.

use prost_types::Timestamp;

use super::super::problem::Problem;
use super::bounded_text;
use crate::chip::ChipSize;
use crate::encoder::ModelCard;
use crate::registry::{Condition, Evaluation, Facts, StoredModel};
use crate::weights::architecture::{ArchitectureHints, FeaturePoint};
use crate::weights::open::Hints;
use crate::weights::wrapper::WeightsChoice;
use crate::wire;

/// What is said of a model that is kept on disk.
pub fn stored_model(stored: &StoredModel) -> wire::Model {
    let model = wire::Model {
        digest: stored.digest.to_string(),
        stored_bytes: stored.bytes,
        ..wire::Model::default()
    };
    match &stored.condition {
        Condition::Damaged(reason) => wire::Model { damage: reason.clone(), ..model },
        Condition::Intact(facts) => with_facts(model, facts),
    }
}

/// What is said of a model that is on the devices alone.
pub fn resident_model(card: &ModelCard) -> wire::Model {
    wire::Model {
        digest: card.digest.to_string(),
        dimension: number(card.dimension),
        image_height: number(card.chip_size.height),
        image_width: number(card.chip_size.width),
        origin: "the configuration".into(),
        ..wire::Model::default()
    }
}

/// What a client says of a checkpoint.
pub fn hints(hints: &wire::CheckpointHints) -> Result<Hints, Problem> {
    let feature_point = match wire::FeaturePoint::try_from(hints.feature_point) {
        Ok(wire::FeaturePoint::Unspecified | wire::FeaturePoint::BeforeNeck) => FeaturePoint::BeforeNeck,
        Ok(wire::FeaturePoint::AfterNeck) => FeaturePoint::AfterNeck,
        Err(_) => {
            let message = format!("feature_point {} is unknown", hints.feature_point);
            return Err(Problem::invalid("FEATURE_POINT_UNKNOWN", "hints.feature_point", message));
        }
    };
    let set = |value: u32| (value > 0).then_some(value as usize);
    let image = match (set(hints.image_height), set(hints.image_width)) {
        (Some(height), Some(width)) => Some(ChipSize { height, width }),
        (None, None) => None,
        _ => {
            let message = "image_height and image_width must be set together";
            return Err(Problem::invalid("IMAGE_SIZE_INCOMPLETE", "hints.image_height", message));
        }
    };
    let architecture = ArchitectureHints {
        image,
        stride: set(hints.stride),
        heads: set(hints.heads),
        mie_coefficient: hints.mie_coefficient,
    };
    bounded_text("hints.weights", &hints.weights)?;
    Ok(Hints { feature_point, architecture, weights: WeightsChoice::new(&hints.weights) })
}

fn with_facts(model: wire::Model, facts: &Facts) -> wire::Model {
    let Facts { architecture, provenance } = facts;
    wire::Model {
        dimension: number(architecture.embed_dim),
        image_height: number(architecture.image.height),
        image_width: number(architecture.image.width),
        parameters_millions: u32::try_from(architecture.parameters().div_ceil(1_000_000)).unwrap_or(u32::MAX),
        origin: provenance.origin.clone(),
        parent_digest: provenance.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        created_at: Some(Timestamp { seconds: provenance.created_at.cast_signed(), nanos: 0 }),
        evaluations: provenance.evaluations.iter().map(evaluation).collect(),
        data_fingerprint: provenance.data_fingerprint.clone().unwrap_or_default(),
        config_toml: provenance.configuration.clone().unwrap_or_default(),
        ..model
    }
}

fn evaluation(evaluation: &Evaluation) -> wire::EvaluationResult {
    wire::EvaluationResult {
        protocol: evaluation.protocol.clone(),
        epoch: evaluation.epoch,
        map: evaluation.mean_average_precision,
        rank1: evaluation.hit_within_1,
        rank5: evaluation.hit_within_5,
        rank10: evaluation.hit_within_10,
        valid_queries: evaluation.queries_with_a_match,
    }
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
