//! The name of a model: a SHA-256 over everything that determines its output.

use sha2::{Digest as _, Sha256};

use super::coded::Quantized;
use super::family::{Architecture, FeaturePoint};
use super::rules::STEPS;
use super::tensors::{NamedTensors, file_bytes};
use crate::embedding::ModelDigest;

/// Separates these hashes from any other use of SHA-256, and from a later layout.
const DOMAIN: &str = "shipreid model digest 1";
/// Separates the layers of a model in int8 from its tensors, whose names are longer.
const INT8: &[u8] = b"int8";

/// Digest of a model that reads its features at `feature_point`.
///
/// Only tensors that a served feature depends on are included: not the classifier nor the step counts of a
/// BatchNorm. A checkpoint therefore equals its import, and differs from its next training step. Every field
/// is preceded by its length, so that no two models give the same bytes.
pub fn digest(
    architecture: &Architecture,
    feature_point: FeaturePoint,
    tensors: &NamedTensors,
) -> ModelDigest {
    ModelDigest::new(hashed(architecture, feature_point, tensors).finalize().into())
}

/// Digest of a model in int8, which is of its source as well: rounded from another model, the same codes are another.
pub fn digest_in_int8(
    architecture: &Architecture,
    feature_point: FeaturePoint,
    tensors: &NamedTensors,
    quantized: &Quantized,
) -> ModelDigest {
    let mut hasher = hashed(architecture, feature_point, tensors);
    field(&mut hasher, INT8);
    field(&mut hasher, quantized.origin.source.as_bytes());
    for (name, layer) in &quantized.layers {
        field(&mut hasher, name.as_bytes());
        let shape: Vec<u8> = [layer.outputs(), layer.inputs()].into_iter().flat_map(number).collect();
        field(&mut hasher, &shape);
        layer.scales().iter().for_each(|scale| hasher.update(scale.to_le_bytes()));
        hasher.update(bytemuck::cast_slice::<i8, u8>(layer.codes()));
    }
    ModelDigest::new(hasher.finalize().into())
}

fn hashed(architecture: &Architecture, feature_point: FeaturePoint, tensors: &NamedTensors) -> Sha256 {
    let mut hasher = Sha256::new();
    field(&mut hasher, DOMAIN.as_bytes());
    if !architecture.family().is_default() {
        field(&mut hasher, architecture.family().name().as_bytes());
    }
    field(&mut hasher, &architecture.digest_bytes());
    let feature_point: &[u8] = match feature_point {
        FeaturePoint::BeforeNeck => b"before neck",
        FeaturePoint::AfterNeck => b"after neck",
    };
    field(&mut hasher, feature_point);
    field(&mut hasher, architecture.preprocessing().description.as_bytes());
    for (name, tensor) in tensors.iter().filter(|(name, _)| counts(architecture, name)) {
        field(&mut hasher, name.as_bytes());
        let shape: Vec<u8> = tensor.shape.iter().flat_map(|length| number(*length)).collect();
        field(&mut hasher, &shape);
        hasher.update(number(tensor.values.len() * size_of::<f32>()));
        hasher.update(file_bytes(&tensor.values));
    }
    hasher
}

fn counts(architecture: &Architecture, name: &str) -> bool {
    !architecture.is_unused_in_serving(name) && !name.ends_with(STEPS)
}

fn field(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update(number(bytes.len()));
    hasher.update(bytes);
}

fn number(value: usize) -> [u8; 8] {
    (value as u64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::SarStretch;
    use crate::weights::family::transoss::TransOssArchitecture;
    use crate::weights::golden::{self, MICRO};
    use crate::weights::tensors::HostTensor;

    fn micro() -> NamedTensors {
        golden::tensors("micro_weights")
    }

    fn of(tensors: &NamedTensors) -> ModelDigest {
        digest(&MICRO.into(), FeaturePoint::BeforeNeck, tensors)
    }

    #[test]
    fn the_digest_of_a_recorded_model_stays_the_same() {
        assert_eq!(
            of(&micro()).to_string(),
            "cb60c88e1dd0e0aebcad4ebf26ecfe9ca95fa1758d132cbae1564e9e8af5e7c7"
        );
    }

    #[test]
    fn what_no_feature_depends_on_does_not_change_the_digest() {
        let mut tensors = micro();
        for name in ["classifier.weight", "base.fc.weight", "base.fc.bias", "logit_scale"] {
            tensors.remove(name).expect("recorded");
        }
        let counter = HostTensor { shape: vec![], values: vec![1234.0] };
        tensors.insert("bottleneck.num_batches_tracked".to_owned(), counter);
        assert_eq!(of(&tensors), of(&micro()));
        let other_classes = TransOssArchitecture { classes: 99, ..MICRO }.into();
        assert_eq!(digest(&other_classes, FeaturePoint::BeforeNeck, &micro()), of(&micro()));
    }

    #[test]
    fn everything_else_changes_the_digest() {
        let mut digests = vec![of(&micro()), digest(&MICRO.into(), FeaturePoint::AfterNeck, &micro())];
        for architecture in [
            TransOssArchitecture { heads: 4, ..MICRO },
            TransOssArchitecture { mie_coefficient: 3.5, ..MICRO },
            TransOssArchitecture { size_token: false, ..MICRO },
            TransOssArchitecture { modality_embedding: false, ..MICRO },
            TransOssArchitecture { sar_stretch: SarStretch::Denoised, ..MICRO },
        ] {
            digests.push(digest(&architecture.into(), FeaturePoint::BeforeNeck, &micro()));
        }
        let mut changed = |change: fn(&mut NamedTensors)| {
            let mut tensors = micro();
            change(&mut tensors);
            digests.push(of(&tensors));
        };
        changed(|tensors| tensors.get_mut("base.cls_token").expect("recorded").values[3] += 1.0);
        changed(|tensors| tensors.get_mut("base.cls_token").expect("recorded").shape = vec![16]);
        changed(|tensors| drop(tensors.remove("base.norm.bias")));
        changed(|tensors| {
            let bias = tensors.remove("base.norm.bias").expect("recorded");
            tensors.insert("base.norm.bias2".to_owned(), bias);
        });
        let count = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }
}
