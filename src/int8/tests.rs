//! Every kernel against the portable one, and layers against their exact products.

use proptest::prelude::*;

use super::kernel::Kernel;
use super::layout::PANEL;
use super::memory::Lines;
use super::operands::Codes;
use super::rows::Rows;
use super::weight::Weight;
use super::*;

/// How inputs and weights are drawn: anywhere, or only the largest, where sums would overflow first.
#[derive(Clone, Copy, Debug)]
enum Draw {
    Any,
    Extreme,
    AllLargest,
}

fn draws() -> impl Strategy<Value = Draw> {
    prop_oneof![Just(Draw::Any), Just(Draw::Extreme), Just(Draw::AllLargest)]
}

/// A stream of numbers from 0 to 1.
fn uniform(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    }
}

/// `count` sums of uniform numbers, about normal.
fn normal(seed: u64, count: usize) -> Vec<f32> {
    let mut uniform = uniform(seed);
    (0..count).map(|_| (0..6).map(|_| uniform()).sum::<f32>() - 3.0).collect()
}

fn weights(draw: Draw, seed: u64, count: usize) -> Vec<f32> {
    let normal = normal(seed, count);
    match draw {
        Draw::Any => normal,
        Draw::Extreme => normal.into_iter().map(f32::signum).collect(),
        Draw::AllLargest => vec![1.0; count],
    }
}

/// What the portable kernel, in the plainest order, makes of codes and weights: `[rows][panel's outputs]`.
fn sums(kernel: Kernel, weight: &Weight, codes: Codes<'_>) -> Vec<Vec<i32>> {
    let mut all = vec![Vec::new(); codes.count];
    for panel in 0..weight.panels() {
        let mut sums = vec![[0; PANEL]; kernel.rows().max(1)];
        for first in (0..codes.count).step_by(kernel.rows()) {
            let count = kernel.rows().min(codes.count - first);
            let block = Codes { codes: &codes.codes[first * codes.stride..], count, ..codes };
            kernel.sums(block, weight.panel(panel), weight.panels_from(panel + 1), &mut sums);
            for (row, sums) in sums[..count].iter().enumerate() {
                all[first + row].extend(sums);
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_kernel_gives_the_sums_of_the_portable_one(
        (inputs, outputs, rows) in (prop_oneof![1..300usize, Just(768)], 1..80usize, 1..40usize),
        (inputs_draw, weights_draw) in (draws(), draws()),
        seed in any::<u64>(),
    ) {
        let rounded = Rounded::of(&weights(weights_draw, seed, inputs * outputs), inputs);
        let weight = |kernel| Weight::new(&rounded, kernel);
        let stride = inputs.next_multiple_of(64) + 64;
        for kernel in Kernel::every() {
            // All codes that the kernel takes, and at least those of 7 bits.
            for code_max in [127, kernel.code_max()] {
                let mut lines = Lines::zeroed(rows * stride);
                let mut uniform = uniform(!seed);
                for code in lines.as_bytes_mut() {
                    let value = uniform() * f32::from(code_max);
                    *code = match inputs_draw {
                        Draw::Any => value.round() as u8,
                        Draw::Extreme => if value < f32::from(code_max) / 2.0 { 0 } else { code_max },
                        Draw::AllLargest => code_max,
                    };
                }
                let codes = Codes { codes: lines.as_bytes(), stride, count: rows };
                let expected = sums(Kernel::Portable, &weight(Kernel::Portable), codes);
                prop_assert_eq!(sums(kernel, &weight(kernel), codes), expected, "{:?} {}", kernel, code_max);
            }
        }
    }

    #[test]
    fn a_layer_is_near_its_exact_product(
        (inputs, outputs, rows, threads) in (1..200usize, 1..70usize, 1..50usize, 1..4usize),
        (is_gelu, is_added) in (any::<bool>(), any::<bool>()),
        seed in any::<u64>(),
    ) {
        let weight = normal(seed, inputs * outputs);
        let (bias, x) = (normal(seed ^ 1, outputs), normal(seed ^ 2, rows * inputs));
        let residual = normal(seed ^ 3, rows * outputs);
        let after = if is_gelu { After::Gelu } else { After::Nothing };
        for kernel in Kernel::every() {
            let layer = Linear8::with(kernel, &Rounded::of(&weight, inputs), &bias);
            let mut out = vec![f32::NAN; rows * outputs];
            layer.forward(&x, after, is_added.then_some(&residual), &mut out, threads);
            for (row, (x, out)) in x.chunks(inputs).zip(out.chunks(outputs)).enumerate() {
                for (output, found) in out.iter().enumerate() {
                    let products = x.iter().zip(&weight[output * inputs..]).map(|(x, w)| f64::from(x * w));
                    let exact = products.sum::<f64>() + f64::from(bias[output]);
                    let exact = if is_gelu { exact_gelu(exact) } else { exact };
                    let exact = exact + if is_added { f64::from(residual[row * outputs + output]) } else { 0.0 };
                    // Half a step of each factor times the other's magnitude, at most 3, at every input.
                    let steps = 6.0 / f64::from(kernel.code_max()) + 3.0 / 127.0;
                    let bound = 0.5 * 3.0 * steps * inputs as f64 * 1.13 + 1e-3;
                    prop_assert!((exact - f64::from(*found)).abs() <= bound, "{kernel:?} {row} {output}: {exact} {found}");
                }
            }
        }
    }
}

/// By the series of erf, which is exact enough where its terms do not cancel.
fn exact_gelu(x: f64) -> f64 {
    let z = x.abs().min(8.0) / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    // erf(z) = 2/sqrt(pi) exp(-z^2) sum of 2^n z^(2n+1) / (2n+1)!!, all of one sign.
    for n in 1..200 {
        term *= 2.0 * z * z / f64::from(2 * n + 1);
        sum += term;
    }
    let erf = 2.0 / std::f64::consts::PI.sqrt() * (-z * z).exp() * sum;
    0.5 * x * (1.0 + erf * x.signum())
}

/// A layer whose only weight is 1, so that its output is the activation of a rounded input.
fn activation(kernel: Kernel, xs: &[f32]) -> Vec<f32> {
    let layer = Linear8::with(kernel, &Rounded::of(&[1.0], 1), &[0.0]);
    let mut out = vec![0.0; xs.len()];
    layer.forward(xs, After::Gelu, None, &mut out, 1);
    out
}

#[test]
fn gelu_is_within_its_bound() {
    let xs: Vec<f32> =
        (-12_000..=12_000).map(|step| step as f32 * 1e-3).chain([-100.0, 100.0, -1e6, 1e6]).collect();
    for kernel in Kernel::every() {
        for (x, found) in xs.iter().zip(activation(kernel, &xs)) {
            let exact = exact_gelu(f64::from(*x));
            // A row of one input is exact but for the rounding of its scale.
            let bound = f64::from(finish::GELU_ERROR) + 3e-7 * f64::from(x.abs());
            assert!((exact - f64::from(found)).abs() <= bound, "{kernel:?} {x}: {exact} {found}");
        }
    }
}

#[test]
fn what_is_no_number_stays_none_and_spoils_no_other_row() {
    for kernel in Kernel::every() {
        let layer = Linear8::with(kernel, &Rounded::of(&[0.5; 40 * 70], 70), &[0.25; 40]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (after, at) in [(After::Nothing, 0), (After::Gelu, 69)] {
                let mut x = vec![1.0; 3 * 70];
                x[70 + at] = bad;
                let mut out = vec![0.0; 3 * 40];
                layer.forward(&x, after, None, &mut out, 1);
                let finite: Vec<bool> = out.chunks(40).map(|row| row.iter().all(|y| y.is_finite())).collect();
                assert_eq!(finite, [true, false, true], "{kernel:?} {bad}");
                assert!(out[40..80].iter().all(|y| y.is_nan()), "{kernel:?} {bad}");
            }
        }
        let mut zeros = vec![1.0; 40];
        layer.forward(&[0.0; 70], After::Nothing, None, &mut zeros, 1);
        assert_eq!(zeros, [0.25; 40], "{kernel:?}: an input of zeros leaves the bias");
    }
}

#[test]
fn a_row_is_rounded_to_its_own_range() {
    for kernel in Kernel::every() {
        let mut rows = Rows::default();
        let x = [vec![-1.0, 0.0, 3.0, 1.0], vec![2.0, 1.0, 0.5, 0.25], vec![-1e-30, -2e-30, -3e-30, 0.0]]
            .concat();
        rows.quantize(&x, 4, kernel);
        let max = f32::from(kernel.code_max());
        for (row, (x, scaling)) in x.chunks(4).zip(rows.scaling()).enumerate() {
            let codes = &rows.codes(row, 1).codes[..4];
            for (code, x) in codes.iter().zip(x) {
                let found = scaling.scale * (i32::from(*code) - scaling.zero) as f32;
                assert!((found - x).abs() <= 0.51 * scaling.scale, "{kernel:?} {x}: {found}");
                assert!(*x != 0.0 || found == 0.0, "0 stays 0");
            }
        }
        assert_eq!(rows.scaling()[0].scale, 4.0 / max);
        assert_eq!((rows.scaling()[1].scale, rows.scaling()[1].zero), (2.0 / max, 0));
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn most_weights_of_a_trained_layer_are_added_in_16_bits() {
    let (inputs, outputs) = (768, 64);
    let weight = Weight::new(&Rounded::of(&normal(1, inputs * outputs), inputs), Kernel::Avx2);
    let chains = || (0..weight.panels()).flat_map(|panel| weight.panel(panel).chains);
    let groups: usize = chains().map(|chains| chains.order.len()).sum();
    let long: usize = chains().map(|chains| chains.long * chain::LONG).sum();
    assert!(long * 10 >= groups * 7, "{long} of {groups}");
    for chains in chains() {
        let mut order = chains.order.clone();
        order.sort_unstable();
        assert_eq!(order, (0..(inputs / 4) as u16).collect::<Vec<_>>(), "every group once");
    }
}
