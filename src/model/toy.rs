//! The toy family's forward pass, and tests that use it.
//!
//! Shapes: B batch, D embedding.

use tch::Tensor;

use super::network::{Input, Mode, Network};
use super::tensors::Tensors;

#[derive(Debug)]
pub struct Toy {
    /// [D, 3 * side * side]
    pixels: Tensor,
    /// [D]
    neck: Tensor,
}

impl Toy {
    pub fn new(tensors: &Tensors) -> Self {
        let [pixels, neck] = ["toy.pixels", "toy.neck"].map(|name| tensors[name].shallow_clone());
        Self { pixels, neck }
    }
}

impl Network for Toy {
    fn forward_before_neck(&self, input: &Input, _: &mut Mode) -> Tensor {
        input.pixels.flatten(1, 3).linear(&self.pixels, None::<&Tensor>)
    }

    fn forward_neck(&self, before_neck: &Tensor, _: &Mode) -> Tensor {
        before_neck * &self.neck
    }
}

mod tests {
    use crate::arithmetic::{Choice, Kernel, Precision};
    use crate::chip::{Chip, Modality};
    use crate::embedding::{Embedding, ModelDigest};
    use crate::encoder::Batch;
    use crate::model::{Device, LayerShape, SharedWeights, TorchSettings};
    use crate::weights::family::{Family, FeaturePoint, Preset};
    use crate::weights::seed::seeded;
    use crate::weights::tensors::NamedTensors;

    /// The expected output for a chip, computed by hand.
    fn expected(tensors: &NamedTensors, chip: &Chip, feature_point: FeaturePoint) -> Embedding {
        let area = chip.size().height * chip.size().width;
        let input: Vec<f32> = (0..3 * area)
            .map(|place| {
                let byte = chip.pixels()[place % area * 3 + place / area];
                (f32::from(byte) / 255.0 - 0.5) / 0.25
            })
            .collect();
        let rows = tensors["toy.pixels"].values.chunks(input.len());
        let mut feature: Vec<f32> =
            rows.map(|row| row.iter().zip(&input).map(|(w, x)| w * x).sum()).collect();
        if feature_point == FeaturePoint::AfterNeck {
            feature.iter_mut().zip(&tensors["toy.neck"].values).for_each(|(value, neck)| *value *= neck);
        }
        Embedding::from_feature(feature).expect("a feature")
    }

    #[test]
    fn a_model_of_another_family_embeds_with_its_own_preprocessing_and_forward_pass() {
        let architecture = Family::Toy.preset(Preset::Tiny);
        let tensors = seeded(&architecture, 1);
        let size = architecture.preprocessing().size;
        let chip = |number: usize| {
            let pixels = (0..size.height * size.width * 3).map(|byte| (byte * 31 * number) as u8).collect();
            Chip::new(pixels, size, Modality::Optical, [0.0; 3])
        };
        for feature_point in [FeaturePoint::BeforeNeck, FeaturePoint::AfterNeck] {
            let settings = TorchSettings {
                device: Device::open("cpu").expect("there is a processor"),
                precision: Precision::F32,
                kernels: Choice::only(Kernel::Aten, 8),
                threads: 1,
                feature_point,
            };
            let weights = SharedWeights::new(architecture, tensors.clone(), settings);
            let mut encoder = weights.factory()(0).expect("an encoder");
            let chips = [1, 2].map(chip);
            let batch =
                Batch { model: ModelDigest::new([0; 32]), chips: chips.clone().map(Into::into).to_vec() };
            let found = encoder.forward(&batch).expect("embeddings");
            for (chip, found) in chips.iter().zip(&found) {
                assert!(expected(&tensors, chip, feature_point).cosine(found) > 0.999_99);
            }
            assert!(found[0].cosine(&found[1]) < 0.999, "chips differ");
        }
        assert_eq!(LayerShape::of(&architecture), LayerShape { inputs: 48, outputs: 6, tokens: 1 });
    }
}
