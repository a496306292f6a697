//! Initial weights from a seed: identical bits on every machine, regardless of the order of the tensors.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest as _, Sha256};

use super::family::{Architecture, Initial};
use super::tensors::{HostTensor, NamedTensors};

/// Separates the streams from any other use of the same seed.
const DOMAIN: &[u8] = b"shipreid initial weights 1";

/// Fraction of a normal distribution below the lower cut; between the cuts, the inverse below needs
/// no logarithm.
const CUT: f64 = 0.02425;
/// Standard deviation of a unit normal between the two cuts, which lie 1.973 deviations from the middle.
const CUT_STD: f64 = 0.873_922_942_716_433_8;

/// Initial weights of every tensor of `architecture`, distributed as its family specifies. Each tensor has
/// its own stream, derived from seed and name.
pub fn seeded(architecture: &Architecture, seed: u64) -> NamedTensors {
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let count = shape.iter().product();
        let values = values(architecture.initial(&name, &shape), count, stream(&name, seed));
        (name, HostTensor { shape, values })
    };
    architecture.expected_tensors().into_iter().map(tensor).collect()
}

fn values(initial: Initial, count: usize, mut stream: ChaCha8Rng) -> Vec<f32> {
    let mut draw = |value: &dyn Fn(f64) -> f64| (0..count).map(|_| value(unit(&mut stream)) as f32).collect();
    match initial {
        Initial::Constant(value) => vec![value; count],
        Initial::Uniform(bound) => draw(&|unit| (2.0 * unit - 1.0) * bound),
        Initial::Normal(std) => draw(&|unit| truncated_normal(unit) * std),
    }
}

fn stream(name: &str, seed: u64) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update(seed.to_le_bytes());
    hasher.update(name.as_bytes());
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

/// A number strictly between 0 and 1.
fn unit(stream: &mut ChaCha8Rng) -> f64 {
    (f64::from(stream.next_u32()) + 0.5) * f64::exp2(-32.0)
}

/// A normal number of deviation one, truncated near two deviations, computed from a uniform one.
///
/// The central part of Acklam's approximation of the inverse normal distribution: a ratio of polynomials
/// (relative error 1.2e-9), so that only IEEE arithmetic determines the bits.
fn truncated_normal(unit: f64) -> f64 {
    let q = CUT + unit * (1.0 - 2.0 * CUT) - 0.5;
    let r = q * q;
    let polynomial = |coefficients: [f64; 6]| coefficients.into_iter().fold(0.0, |sum, c| sum * r + c);
    let numerator = polynomial([
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ]);
    let denominator = polynomial([
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
        1.0,
    ]);
    q * numerator / denominator / CUT_STD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::family::transoss::TransOssArchitecture;
    use crate::weights::rules::for_serving;

    const SMALL: TransOssArchitecture = TransOssArchitecture::small();

    fn moments(values: &[f32]) -> (f64, f64, f32) {
        let count = values.len() as f64;
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
        let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
        (mean, variance.sqrt(), values.iter().fold(0.0, |most, value| value.abs().max(most)))
    }

    #[test]
    fn seeded_weights_are_a_whole_model() {
        let architecture = TransOssArchitecture { classes: 50, ..SMALL }.into();
        let tensors = seeded(&architecture, 1);
        assert_eq!(for_serving(&architecture, tensors.clone()).as_ref(), Ok(&tensors));
    }

    #[test]
    fn a_tensor_depends_on_seed_and_name_alone() {
        let small = seeded(&SMALL.into(), 1);
        let deeper = seeded(&TransOssArchitecture { depth: 5, size_token: false, ..SMALL }.into(), 1);
        let shared = small.iter().filter(|(name, _)| deeper.contains_key(*name));
        shared.for_each(|(name, tensor)| assert_eq!(tensor, &deeper[name], "{name}"));
        let other = seeded(&SMALL.into(), 2);
        assert_ne!(small["base.cls_token"], other["base.cls_token"]);
        assert_ne!(small["base.blocks.0.attn.proj.weight"], small["base.blocks.1.attn.proj.weight"]);
    }

    #[test]
    fn the_numbers_of_a_seed_stay_the_same() {
        let tensors = seeded(&SMALL.into(), 1);
        let first = |name: &str| tensors[name].values[..2].to_vec();
        assert_eq!(first("base.cls_token"), [0.016_937_537, -0.021_828_678]);
        assert_eq!(first("base.patch_embed.proj.weight"), [-0.020_359_801, -0.027_755_15]);
    }

    #[test]
    fn weights_spread_as_announced() {
        let tensors = seeded(&TransOssArchitecture { classes: 500, ..SMALL }.into(), 3);
        let check = |name: &str, std: f64, bound: f64| {
            let (mean, found, most) = moments(&tensors[name].values);
            assert!(mean.abs() < std / 50.0, "{name}: mean {mean}");
            assert!((found / std - 1.0).abs() < 0.02, "{name}: deviation {found}");
            assert!(f64::from(most) <= bound, "{name}: {most}");
        };
        let std = 1.0 / 192_f64.sqrt();
        check("base.blocks.0.mlp.fc1.weight", std, 2.26 * std);
        let std = 1.0 / 768_f64.sqrt();
        check("base.blocks.0.mlp.fc2.weight", std, 2.26 * std);
        check("base.pos_embed", 0.4, 0.904);
        check("classifier.weight", 0.001, 0.002_26);
        let bound = 1.0 / 768_f64.sqrt();
        check("base.patch_embed_SAR.proj.weight", bound / 3_f64.sqrt(), bound);
        let all =
            |name: &str, value: f32| assert!(tensors[name].values.iter().all(|v| *v == value), "{name}");
        all("base.blocks.3.norm2.weight", 1.0);
        all("base.blocks.3.norm2.bias", 0.0);
        all("base.blocks.3.attn.qkv.bias", 0.0);
        all("bottleneck.weight", 1.0);
        all("bottleneck.running_var", 1.0);
        all("bottleneck.running_mean", 0.0);
        all("bottleneck.num_batches_tracked", 0.0);
        all("logit_scale", 2.6592);
    }

    #[test]
    fn the_inverse_normal_distribution_is_right_in_the_middle_and_at_the_cuts() {
        let check = |unit: f64, expected: f64| {
            let found = truncated_normal(unit) * CUT_STD;
            assert!((found - expected).abs() < 1e-8, "{found}");
        };
        check(0.5, 0.0);
        check(0.0, -1.972_961_051_311_884_5);
        check(1.0, 1.972_961_051_311_884_5);
        // The upper quartile of the whole distribution.
        check((0.75 - CUT) / (1.0 - 2.0 * CUT), 0.674_489_750_196_081_7);
    }
}
