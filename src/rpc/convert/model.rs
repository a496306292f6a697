//! Models, and a client's hints about a checkpoint.

use prost_types::Timestamp;

use super::super::context::CallContext;
use super::super::problem::Problem;
use super::bounded_text;
use crate::chip::{ChipForm, ChipSize, SarStretch};
use crate::embedding::{Composition, ModelDigest, Part};
use crate::encoder::ModelCard;
use crate::reason::Reason;
use crate::registry::{Condition, Facts, StoredModel};
use crate::weights::family::{ArchitectureHints, FeaturePoint};
use crate::weights::native::Description;
use crate::weights::open::Hints;
use crate::weights::wrapper::WeightsChoice;
use crate::wire;

/// The origin of a model that another tenant has trained.
const TRAINED_ELSEWHERE: &str = "a training job";
/// In place of a family.
const ENSEMBLE: &str = "ensemble";

/// A model kept on disk, as this caller may see it.
pub fn stored_model(stored: &StoredModel, caller: &CallContext) -> wire::Model {
    let model = wire::Model {
        digest: stored.digest.to_string(),
        stored_bytes: stored.bytes,
        ..wire::Model::default()
    };
    match &stored.condition {
        Condition::Damaged(reason) => wire::Model { damage: reason.clone(), ..model },
        Condition::Intact(facts) if is_told_all(facts, caller) => with_facts(model, facts),
        Condition::Intact(facts) => without_training(with_facts(model, facts)),
    }
}

/// A training run belongs to its tenant. One whose tenant is unknown belongs to the server.
fn is_told_all(facts: &Facts, caller: &CallContext) -> bool {
    caller.is_admin || facts.provenance.tenant.as_deref() == Some(&*caller.tenant)
}

/// Only what serving needs, and the model's evaluation.
fn without_training(model: wire::Model) -> wire::Model {
    let origin = if model.config_toml.is_empty() { model.origin } else { TRAINED_ELSEWHERE.into() };
    wire::Model { origin, data_fingerprint: String::new(), config_toml: String::new(), ..model }
}

/// A model that is only on the devices.
pub fn resident_model(card: &ModelCard) -> wire::Model {
    wire::Model {
        digest: card.digest.to_string(),
        dimension: number(card.dimension),
        image_height: number(card.chip_size.height),
        image_width: number(card.chip_size.width),
        sar_stretch: on_wire(card.sar_stretch).into(),
        origin: "the configuration".into(),
        ensemble: card.members.as_deref().map(|members| ensemble(&members.composition, members.digests())),
        ..wire::Model::default()
    }
}

/// An ensemble with what its members have cost on the devices.
pub fn with_costs(model: wire::Model, card: &ModelCard) -> wire::Model {
    let (Some(mut ensemble), Some(members)) = (model.ensemble.clone(), &card.members) else { return model };
    for (member, time) in ensemble.members.iter_mut().zip(members.forward_times()) {
        member.forward = time.and_then(super::duration);
    }
    wire::Model { ensemble: Some(ensemble), ..model }
}

fn ensemble(composition: &Composition, digests: impl Iterator<Item = ModelDigest>) -> wire::Ensemble {
    let member = |(part, digest): (&Part, ModelDigest)| wire::EnsembleMember {
        digest: digest.to_string(),
        weight: part.weight,
        dimension: number(part.dimension),
        ..wire::EnsembleMember::default()
    };
    wire::Ensemble {
        members: composition.parts().iter().zip(digests).map(member).collect(),
        k: composition.k(),
        depth: number(composition.depth()),
    }
}

/// The same with what their descriptions tell of the members.
fn described_ensemble(composition: &Composition, networks: &[Description]) -> wire::Ensemble {
    let digests = networks.iter().filter_map(|network| network.digest.parse().ok());
    let mut ensemble = ensemble(composition, digests);
    for (member, network) in ensemble.members.iter_mut().zip(networks) {
        member.family = network.architecture.family().name().into();
        member.parameters_millions = millions(network.architecture.parameters());
    }
    ensemble
}

/// A client's hints about a checkpoint.
pub fn hints(hints: &wire::CheckpointHints) -> Result<Hints, Problem> {
    let feature_point = match wire::FeaturePoint::try_from(hints.feature_point) {
        Ok(wire::FeaturePoint::Unspecified) => None,
        Ok(wire::FeaturePoint::BeforeNeck) => Some(FeaturePoint::BeforeNeck),
        Ok(wire::FeaturePoint::AfterNeck) => Some(FeaturePoint::AfterNeck),
        Err(_) => {
            let message = format!("feature_point {} is unknown", hints.feature_point);
            return Err(Problem::invalid(Reason::FeaturePointUnknown, "hints.feature_point", message));
        }
    };
    let sar_stretch = match wire::SarStretch::try_from(hints.sar_stretch) {
        Ok(wire::SarStretch::Unspecified) => None,
        Ok(wire::SarStretch::Maximum) => Some(SarStretch::Maximum),
        Ok(wire::SarStretch::Denoised) => Some(SarStretch::Denoised),
        Err(_) => {
            let message = format!("sar_stretch {} is unknown", hints.sar_stretch);
            return Err(Problem::invalid(Reason::SarStretchUnknown, "hints.sar_stretch", message));
        }
    };
    let set = |value: u32| (value > 0).then_some(value as usize);
    let image = match (set(hints.image_height), set(hints.image_width)) {
        (Some(height), Some(width)) => Some(ChipSize { height, width }),
        (None, None) => None,
        _ => {
            let message = "image_height and image_width must be set together";
            return Err(Problem::invalid(Reason::ImageSizeIncomplete, "hints.image_height", message));
        }
    };
    let architecture = ArchitectureHints {
        image,
        stride: set(hints.stride),
        heads: set(hints.heads),
        mie_coefficient: hints.mie_coefficient,
        sar_stretch,
    };
    bounded_text("hints.weights", &hints.weights)?;
    Ok(Hints { feature_point, architecture, weights: WeightsChoice::new(&hints.weights) })
}

fn with_facts(model: wire::Model, facts: &Facts) -> wire::Model {
    let Facts { networks, composition, provenance, calibrator } = facts;
    let Some(first) = networks.first() else { return model };
    let ChipForm { size: chip_size, sar_stretch } = first.architecture.preprocessing().form();
    let dimension = composition.map_or(first.architecture.embed_dim(), |composition| composition.dimension());
    let parameters = networks.iter().map(|network| network.architecture.parameters()).sum();
    let family = composition.map_or(first.architecture.family().name(), |_| ENSEMBLE);
    let made_from = first.quantization.as_ref().filter(|_| composition.is_none());
    wire::Model {
        dimension: number(dimension),
        image_height: number(chip_size.height),
        image_width: number(chip_size.width),
        family: family.into(),
        sar_stretch: on_wire(sar_stretch).into(),
        parameters_millions: millions(parameters),
        origin: provenance.origin.clone(),
        parent_digest: provenance.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        created_at: Some(Timestamp { seconds: provenance.created_at.cast_signed(), nanos: 0 }),
        evaluations: provenance.evaluations.iter().cloned().map(super::evaluation).collect(),
        data_fingerprint: provenance.data_fingerprint.clone().unwrap_or_default(),
        config_toml: provenance.configuration.clone().unwrap_or_default(),
        calibrator: calibrator.as_ref().map(|calibrator| calibrator.id().to_owned()).unwrap_or_default(),
        quantized_from_digest: made_from.map(|made| made.source.to_string()).unwrap_or_default(),
        ensemble: composition.as_ref().map(|composition| described_ensemble(composition, networks)),
        ..model
    }
}

fn on_wire(sar_stretch: SarStretch) -> wire::SarStretch {
    match sar_stretch {
        SarStretch::Maximum => wire::SarStretch::Maximum,
        SarStretch::Denoised => wire::SarStretch::Denoised,
    }
}

fn millions(parameters: u64) -> u32 {
    u32::try_from(parameters.div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Extensions;

    use super::super::super::context::Principal;
    use super::*;
    use crate::registry::Provenance;
    use crate::weights::family::{Family, Preset};

    #[test]
    fn a_training_is_told_to_its_tenant_and_to_an_admin_alone() {
        let stored = |tenant: Option<&str>, configuration: Option<&str>| StoredModel {
            digest: ModelDigest::new([1; 32]),
            bytes: 1,
            condition: Condition::Intact(Box::new(Facts {
                networks: vec![Description {
                    digest: "01".repeat(32),
                    feature_point: FeaturePoint::BeforeNeck,
                    source: "test".into(),
                    architecture: Family::default().preset(Preset::Tiny),
                    quantization: None,
                }],
                composition: None,
                provenance: Provenance {
                    tenant: tenant.map(str::to_owned),
                    configuration: configuration.map(str::to_owned),
                    data_fingerprint: configuration.map(|_| "sha256:1".to_owned()),
                    ..Provenance::now("job-7, attempt 2")
                },
                calibrator: None,
            })),
        };
        let caller = |tenant: &str, is_admin| {
            let mut extensions = Extensions::new();
            extensions.insert(Principal { key_id: None, tenant: Arc::from(tenant), is_admin });
            CallContext::new(&extensions, None)
        };
        let told = |owner, tenant, is_admin| {
            let model = stored_model(&stored(owner, Some("seed = 1")), &caller(tenant, is_admin));
            let all = !model.config_toml.is_empty() && !model.data_fingerprint.is_empty();
            assert_eq!(all, model.origin == "job-7, attempt 2");
            assert!(all || (model.config_toml + &model.data_fingerprint).is_empty());
            assert!(model.dimension > 0, "serving needs it");
            all
        };
        assert!(told(Some("a"), "a", false));
        assert!(!told(Some("a"), "b", false));
        assert!(told(Some("a"), "b", true));
        assert!(!told(None, "b", false));
        assert!(told(None, "b", true));
        let imported = stored_model(&stored(None, None), &caller("b", false));
        assert_eq!(imported.origin, "job-7, attempt 2", "the name of a file is nobody's training");
    }
}
