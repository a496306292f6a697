//! Weights of a linear layer as codes and scales, in the order in which they are stored.

use super::layout::{INPUTS_MAX, ROUND};

/// The largest magnitude of a code.
pub const CODE_MAX: i8 = 127;

/// `[outputs, inputs]`: the weight of output `n` is about `scales[n]` times its code. Every output has a code of
/// magnitude [`CODE_MAX`], or the scale 0 and no other code than 0, so that no two of these are the same weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounded {
    inputs: usize,
    /// Row by row.
    codes: Vec<i8>,
    scales: Vec<f32>,
}

/// Why codes and scales are not those of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoundedError {
    #[error("it has {inputs} inputs; the limit is {INPUTS_MAX}, and there must be one")]
    Inputs { inputs: usize },
    #[error("{codes} codes and {scales} scales are not those of outputs with {inputs} inputs")]
    Lengths { codes: usize, scales: usize, inputs: usize },
    #[error("the scale of output {output} is negative or not finite")]
    Scale { output: usize },
    #[error("the codes of output {output} do not use their range")]
    Range { output: usize },
}

impl Rounded {
    /// Rounds `weight`, `[outputs, inputs]`, with the largest magnitude of each output at [`CODE_MAX`].
    ///
    /// # Panics
    /// If there are other than 1 to `INPUTS_MAX` inputs, or `weight` is not made of whole rows of them.
    pub fn of(weight: &[f32], inputs: usize) -> Self {
        assert!((1..=INPUTS_MAX).contains(&inputs), "{inputs} inputs");
        assert_eq!(weight.len() % inputs, 0, "a weight for every output and input");
        let mut codes = Vec::with_capacity(weight.len());
        let mut scales = Vec::with_capacity(weight.len() / inputs);
        for row in weight.chunks_exact(inputs) {
            let largest = row.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
            // Weights so small that their scale loses precision count as 0.
            let scale = Some(largest / f32::from(CODE_MAX)).filter(|scale| scale.is_normal());
            let per_code = scale.map_or(0.0, |_| f32::from(CODE_MAX) / largest);
            scales.push(scale.unwrap_or(0.0));
            // The range holds, by the choice of the scale.
            codes.extend(row.iter().map(|weight| (weight * per_code + ROUND).to_bits() as i8));
        }
        Self { inputs, codes, scales }
    }

    /// `codes` row by row, a scale for every row.
    ///
    /// # Errors
    /// They are not those of any layer.
    pub fn new(inputs: usize, codes: Vec<i8>, scales: Vec<f32>) -> Result<Self, RoundedError> {
        if !(1..=INPUTS_MAX).contains(&inputs) {
            return Err(RoundedError::Inputs { inputs });
        }
        if scales.len().checked_mul(inputs) != Some(codes.len()) {
            return Err(RoundedError::Lengths { codes: codes.len(), scales: scales.len(), inputs });
        }
        for (output, (row, scale)) in codes.chunks_exact(inputs).zip(&scales).enumerate() {
            if !scale.is_finite() || scale.is_sign_negative() {
                return Err(RoundedError::Scale { output });
            }
            let largest = row.iter().fold(0, |largest, code| largest.max(code.unsigned_abs()));
            let used = if *scale > 0.0 { CODE_MAX.unsigned_abs() } else { 0 };
            if largest != used {
                return Err(RoundedError::Range { output });
            }
        }
        Ok(Self { inputs, codes, scales })
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub fn outputs(&self) -> usize {
        self.scales.len()
    }

    /// Row by row, `[outputs, inputs]`.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// Per output.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_rounded_is_within_half_a_code_and_is_accepted_as_it_is(
            inputs in 1_usize..40, row in prop::collection::vec(-1e3_f32..1e3, 40), exponent in -30_i32..30,
        ) {
            let factor = 2.0_f32.powi(exponent);
            let weight: Vec<f32> = row[..40 / inputs * inputs].iter().map(|weight| weight * factor).collect();
            let rounded = Rounded::of(&weight, inputs);
            let outputs = weight.chunks_exact(inputs).zip(rounded.codes().chunks_exact(inputs));
            for ((weights, codes), scale) in outputs.zip(rounded.scales()) {
                for (weight, code) in weights.iter().zip(codes) {
                    let error = (weight - f32::from(*code) * scale).abs();
                    prop_assert!(error <= 0.501 * scale, "{weight} is {code} times {scale}");
                }
            }
            let again = Rounded::new(inputs, rounded.codes.clone(), rounded.scales.clone());
            prop_assert_eq!(again, Ok(rounded));
        }
    }

    #[test]
    fn codes_that_nothing_rounds_to_are_refused() {
        let check = |inputs, codes: &[i8], scales: &[f32], expected| {
            assert_eq!(Rounded::new(inputs, codes.to_vec(), scales.to_vec()), Err(expected));
        };
        check(0, &[], &[], RoundedError::Inputs { inputs: 0 });
        check(INPUTS_MAX + 1, &[], &[], RoundedError::Inputs { inputs: INPUTS_MAX + 1 });
        check(2, &[127, 1, 2], &[1.0], RoundedError::Lengths { codes: 3, scales: 1, inputs: 2 });
        check(1, &[127, 127], &[1.0, f32::NAN], RoundedError::Scale { output: 1 });
        check(1, &[127], &[f32::INFINITY], RoundedError::Scale { output: 0 });
        check(1, &[127], &[-1.0], RoundedError::Scale { output: 0 });
        check(1, &[0], &[-0.0], RoundedError::Scale { output: 0 });
        check(2, &[127, 0, 126, -126], &[1.0; 2], RoundedError::Range { output: 1 });
        check(2, &[127, -128], &[1.0], RoundedError::Range { output: 0 });
        check(1, &[1], &[0.0], RoundedError::Range { output: 0 });
    }
}
