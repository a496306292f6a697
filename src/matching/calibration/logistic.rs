//! Logistic regression by Newton's method, and the log-likelihood ratio derived from it.

/// Penalty on the square of a standardised slope. It keeps slopes finite where the classes can be separated, and has
/// almost no effect where they cannot.
const RIDGE: f64 = 0.01;
const STEPS_MAX: usize = 100;
/// Newton's decrement at which the fit is done.
const DECREMENT_MIN: f64 = 1e-12;

/// Features of a pair of images, of which the first is 1, and whether they show the same vessel.
pub type Example<const N: usize> = ([f64; N], bool);

/// Weights for which the weighted sum of the features is the natural logarithm of p(features | same) / p(features |
/// other).
///
/// A logistic regression yields the odds among its examples. They are divided by the prior odds, so that the share of
/// pairs of one vessel among the examples cancels out.
///
/// Returns `None` if one of the classes has no examples.
pub fn fit<const N: usize>(examples: &[Example<N>]) -> Option<[f64; N]> {
    let same = examples.iter().filter(|(_, same)| *same).count() as f64;
    let other = examples.len() as f64 - same;
    if same == 0.0 || other == 0.0 {
        return None;
    }
    let scale = Standard::of(examples);
    let standardised: Vec<Example<N>> =
        examples.iter().map(|(features, same)| (scale.apply(features), *same)).collect();
    let mut weights = [0.0; N];
    weights[0] = (same / other).ln();
    for _ in 0..STEPS_MAX {
        let (gradient, hessian) = derivatives(&standardised, &weights);
        let step = solve(hessian, gradient);
        let decrement: f64 = step.iter().zip(gradient).map(|(step, slope)| step * slope).sum();
        if decrement < DECREMENT_MIN {
            break;
        }
        weights = descend(&standardised, &weights, &step);
    }
    let mut weights = scale.undo(&weights);
    weights[0] -= (same / other).ln();
    Some(weights)
}

/// Means and deviations of the features; the first feature stays 1.
struct Standard<const N: usize> {
    mean: [f64; N],
    deviation: [f64; N],
}

impl<const N: usize> Standard<N> {
    fn of(examples: &[Example<N>]) -> Self {
        let count = examples.len() as f64;
        let (mut mean, mut deviation) = ([0.0; N], [1.0; N]);
        for n in 1..N {
            let values = || examples.iter().map(|(features, _)| features[n]);
            mean[n] = values().sum::<f64>() / count;
            let variance = values().map(|value| (value - mean[n]).powi(2)).sum::<f64>() / count;
            // A constant feature gets no weight, whatever it is divided by.
            deviation[n] = if variance > 0.0 { variance.sqrt() } else { 1.0 };
        }
        Self { mean, deviation }
    }

    fn apply(&self, features: &[f64; N]) -> [f64; N] {
        std::array::from_fn(|n| (features[n] - self.mean[n]) / self.deviation[n])
    }

    /// Weights for the features on their original scale.
    fn undo(&self, weights: &[f64; N]) -> [f64; N] {
        let mut undone: [f64; N] = std::array::from_fn(|n| weights[n] / self.deviation[n]);
        undone[0] -= (1..N).map(|n| undone[n] * self.mean[n]).sum::<f64>();
        undone
    }
}

/// Gradient and Hessian of the penalised negative log-likelihood.
fn derivatives<const N: usize>(examples: &[Example<N>], weights: &[f64; N]) -> ([f64; N], [[f64; N]; N]) {
    let (mut gradient, mut hessian) = ([0.0; N], [[0.0; N]; N]);
    for n in 1..N {
        gradient[n] = RIDGE * weights[n];
        hessian[n][n] = RIDGE;
    }
    for (features, same) in examples {
        let probability = 1.0 / (1.0 + (-dot(features, weights)).exp());
        let error = probability - f64::from(u8::from(*same));
        let certainty = probability * (1.0 - probability);
        for row in 0..N {
            gradient[row] += error * features[row];
            for column in 0..N {
                hessian[row][column] += certainty * features[row] * features[column];
            }
        }
    }
    (gradient, hessian)
}

/// Moves along `step`, halving it until the loss falls.
fn descend<const N: usize>(examples: &[Example<N>], weights: &[f64; N], step: &[f64; N]) -> [f64; N] {
    let start = loss(examples, weights);
    let mut share = 1.0;
    loop {
        let next: [f64; N] = std::array::from_fn(|n| weights[n] - share * step[n]);
        // Near the minimum the loss is flat up to rounding, so any small step is accepted.
        if loss(examples, &next) <= start || share < 1e-6 {
            return next;
        }
        share /= 2.0;
    }
}

fn loss<const N: usize>(examples: &[Example<N>], weights: &[f64; N]) -> f64 {
    let penalty: f64 = weights[1..].iter().map(|weight| RIDGE * weight * weight / 2.0).sum();
    let surprises = examples.iter().map(|(features, same)| {
        let log_odds = dot(features, weights);
        softplus(if *same { -log_odds } else { log_odds })
    });
    penalty + surprises.sum::<f64>()
}

/// ln(1 + e^x), for any x.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn dot<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Solves a positive definite system by elimination, which needs no pivoting.
fn solve<const N: usize>(mut matrix: [[f64; N]; N], mut right: [f64; N]) -> [f64; N] {
    for pivot in 0..N {
        // The intercept has no penalty, and no curvature if every example is certain.
        let above = matrix[pivot];
        let divisor = above[pivot].max(f64::MIN_POSITIVE);
        for row in pivot + 1..N {
            let factor = matrix[row][pivot] / divisor;
            matrix[row].iter_mut().zip(above).for_each(|(value, above)| *value -= factor * above);
            right[row] -= factor * right[pivot];
        }
    }
    for row in (0..N).rev() {
        let known: f64 = (row + 1..N).map(|column| matrix[row][column] * right[column]).sum();
        right[row] = (right[row] - known) / matrix[row][row].max(f64::MIN_POSITIVE);
    }
    right
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, Normal};

    use super::*;

    /// Normal features of equal deviation, whose log-likelihood ratio is linear by construction.
    fn examples(same: usize, other: usize, seed: u64) -> Vec<Example<3>> {
        let random = &mut ChaCha8Rng::seed_from_u64(seed);
        let mut draw =
            |mean: f64, deviation: f64| Normal::new(mean, deviation).expect("a distribution").sample(random);
        let mut examples = Vec::new();
        for n in 0..same + other {
            let (cosine, size) = if n < same { (0.7, 1.0) } else { (0.4, 0.0) };
            examples.push(([1.0, draw(cosine, 0.1), draw(size, 2.0)], n < same));
        }
        examples
    }

    #[test]
    fn the_generating_weights_come_back_whatever_the_share_of_each_class() {
        // (0.7 - 0.4) / 0.1^2 = 30 and (1 - 0) / 2^2 = 0.25; the ratio is 0 half way between the means.
        let expected = [-30.0 * 0.55 - 0.25 * 0.5, 30.0, 0.25];
        for (same, other) in [(40_000, 40_000), (4_000, 80_000), (80_000, 4_000)] {
            let found = fit(&examples(same, other, 1)).expect("two classes");
            for (found, (expected, tolerance)) in found.iter().zip(expected.iter().zip([0.8, 1.2, 0.05])) {
                assert!((found - expected).abs() < tolerance, "{found} {expected}");
            }
        }
    }

    #[test]
    fn a_fit_is_the_minimum_of_its_loss() {
        let examples: Vec<Example<3>> = examples(300, 2_000, 2);
        let scale = Standard::of(&examples);
        let standardised: Vec<_> =
            examples.iter().map(|(features, same)| (scale.apply(features), *same)).collect();
        let fitted = fit(&examples).expect("two classes");
        // Back to weights on standardised features and to odds.
        let mut weights: [f64; 3] = std::array::from_fn(|n| fitted[n] * scale.deviation[n]);
        weights[0] =
            fitted[0] + (300.0_f64 / 2_000.0).ln() + (1..3).map(|n| fitted[n] * scale.mean[n]).sum::<f64>();
        let (gradient, _) = derivatives(&standardised, &weights);
        assert!(gradient.iter().all(|slope| slope.abs() < 1e-5), "{gradient:?}");
    }

    #[test]
    fn classes_that_can_be_separated_get_finite_weights() {
        let examples: Vec<Example<2>> = (0..100).map(|n| ([1.0, f64::from(n) / 100.0], n >= 50)).collect();
        let weights = fit(&examples).expect("two classes");
        assert!(weights.iter().all(|weight| weight.is_finite()));
        assert!(weights[1] > 0.0 && (weights[0] + weights[1] * 0.495).abs() < 0.1, "{weights:?}");
    }

    #[test]
    fn a_feature_that_never_changes_gets_no_weight() {
        let examples: Vec<Example<2>> = (0..10).map(|n| ([1.0, 3.0], n < 4)).collect();
        let weights = fit(&examples).expect("two classes");
        assert!(weights.iter().all(|weight| weight.abs() < 1e-9), "{weights:?}");
        assert_eq!(fit::<1>(&[([1.0], true)]), None);
    }
}
