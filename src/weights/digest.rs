//! The name of a model: a SHA-256 over everything that decides the numbers it gives.

use sha2::{Digest as _, Sha256};

use super::architecture::{Architecture, FeaturePoint, is_unused_in_serving};
use super::tensors::NamedTensors;
use crate::embedding::ModelDigest;

/// How pixels become the network's input; a change here makes other models of the same weights.
pub const PREPROCESSING: &str = "rgb u8, bilinear resize of Pillow 11 (antialiased, fixed point), /255, \
     mean 0.485 0.456 0.406, std 0.229 0.224 0.225, size token of the reference";

/// Keeps these hashes apart from any other use of SHA-256, and from a later layout.
const DOMAIN: &str = "shipreid model digest 1";
/// Values converted at a time.
const CHUNK: usize = 16 << 10;

/// Digest of a model that reads its features at `feature_point`.
///
/// Of the tensors only those count that a served feature depends on: not the classifier, `base.fc`, `logit_scale`
/// and the neck's step counter, so that a checkpoint equals its import and differs from its next training step.
/// Every field is preceded by its length, so that no two models give the same bytes.
pub fn digest(
    architecture: &Architecture,
    feature_point: FeaturePoint,
    tensors: &NamedTensors,
) -> ModelDigest {
    let mut hasher = Sha256::new();
    field(&mut hasher, DOMAIN.as_bytes());
    field(&mut hasher, &architecture_bytes(architecture));
    let feature_point: &[u8] = match feature_point {
        FeaturePoint::BeforeNeck => b"before neck",
        FeaturePoint::AfterNeck => b"after neck",
    };
    field(&mut hasher, feature_point);
    field(&mut hasher, PREPROCESSING.as_bytes());
    for (name, tensor) in tensors.iter().filter(|(name, _)| counts(name)) {
        field(&mut hasher, name.as_bytes());
        let shape: Vec<u8> = tensor.shape.iter().flat_map(|length| number(*length)).collect();
        field(&mut hasher, &shape);
        hasher.update(number(tensor.values.len() * size_of::<f32>()));
        for values in tensor.values.chunks(CHUNK) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
    }
    ModelDigest::new(hasher.finalize().into())
}

fn counts(name: &str) -> bool {
    !is_unused_in_serving(name) && !name.ends_with("num_batches_tracked")
}

/// All fields but `classes`, which no feature depends on.
fn architecture_bytes(architecture: &Architecture) -> Vec<u8> {
    let Architecture {
        image,
        patch,
        stride,
        embed_dim,
        depth,
        heads,
        mlp_ratio,
        size_token,
        modality_embedding,
        mie_coefficient,
        classes: _,
    } = architecture;
    let numbers = [image.height, image.width, *patch, *stride, *embed_dim, *depth, *heads, *mlp_ratio];
    let mut bytes: Vec<u8> = numbers.into_iter().flat_map(number).collect();
    bytes.extend([u8::from(*size_token), u8::from(*modality_embedding)]);
    bytes.extend(mie_coefficient.to_le_bytes());
    bytes
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
    use crate::weights::golden::{self, MICRO};
    use crate::weights::tensors::HostTensor;

    fn micro() -> NamedTensors {
        golden::tensors("micro_weights")
    }

    fn of(tensors: &NamedTensors) -> ModelDigest {
        digest(&MICRO, FeaturePoint::BeforeNeck, tensors)
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
        let other_classes = Architecture { classes: 99, ..MICRO };
        assert_eq!(digest(&other_classes, FeaturePoint::BeforeNeck, &micro()), of(&micro()));
    }

    #[test]
    fn everything_else_changes_the_digest() {
        let mut digests = vec![of(&micro()), digest(&MICRO, FeaturePoint::AfterNeck, &micro())];
        for architecture in [
            Architecture { heads: 4, ..MICRO },
            Architecture { mie_coefficient: 3.5, ..MICRO },
            Architecture { size_token: false, ..MICRO },
            Architecture { modality_embedding: false, ..MICRO },
        ] {
            digests.push(digest(&architecture, FeaturePoint::BeforeNeck, &micro()));
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
