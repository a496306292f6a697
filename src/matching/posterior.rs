//! The posterior probability of each candidate, and that the ship is not in the gallery.

/// The prior.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prior {
    /// Prior probability that the ship is none of the vessels that take part; above 0, below 1.
    pub unknown: f64,
    /// Number of those vessels, all equally probable, including those that a gate removed.
    pub vessels: usize,
}

impl Prior {
    /// ln of the probability of any one vessel.
    pub fn log_vessel(&self) -> f64 {
        (1.0 - self.unknown).ln() - (self.vessels.max(1) as f64).ln()
    }

    pub fn log_unknown(&self) -> f64 {
        self.unknown.ln()
    }
}

/// Vessels that were not evaluated, each counted with this likelihood ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unjudged {
    pub vessels: usize,
    pub log_likelihood_ratio: f64,
}

/// The posterior. Together with the unjudged vessels it sums to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Posterior {
    /// In the order of the candidates.
    pub candidates: Vec<f64>,
    pub unknown: f64,
}

/// Bayes' rule over "the ship is candidate c", for vessels that differ, and "it is none of them".
///
/// With N vessels, p the prior of "none" and L the natural-log likelihood ratios, the probability of c is e^L(c) (1 -
/// p) / N over p + (1 - p) / N * (sum of e^L over all vessels); that of "none" is p over the same. A vessel that a gate
/// removed has likelihood 0.
pub fn posterior(log_likelihood_ratios: &[f64], unjudged: Unjudged, prior: Prior) -> Posterior {
    let rest = unjudged.log_likelihood_ratio + (unjudged.vessels as f64).ln() + prior.log_vessel();
    let weights = log_likelihood_ratios.iter().map(|ratio| ratio + prior.log_vessel());
    let weights: Vec<f64> = weights.collect();
    let unknown = prior.log_unknown();
    // Relative to the largest, so that no exponential overflows; `unknown` is finite, so there is one.
    let rest = if unjudged.vessels == 0 { f64::NEG_INFINITY } else { rest };
    let largest = weights.iter().copied().chain([unknown, rest]).fold(f64::NEG_INFINITY, f64::max);
    let share = |weight: f64| (weight - largest).exp();
    let sum = weights.iter().copied().map(share).sum::<f64>() + share(unknown) + share(rest);
    Posterior {
        candidates: weights.into_iter().map(|weight| share(weight) / sum).collect(),
        unknown: share(unknown) / sum,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL_JUDGED: Unjudged = Unjudged { vessels: 0, log_likelihood_ratio: 0.0 };

    #[test]
    fn known_odds_come_out() {
        // Prior: one half for "none", one eighth for each of four vessels, of which a gate removed one.
        let prior = Prior { unknown: 0.5, vessels: 4 };
        let found = posterior(&[8.0_f64.ln(), 0.0, 0.5_f64.ln()], ALL_JUDGED, prior);
        let sum = 0.5 + 1.0 + 0.125 + 0.0625;
        for (found, expected) in found.candidates.iter().zip([1.0, 0.125, 0.0625]) {
            assert!((found - expected / sum).abs() < 1e-12);
        }
        assert!((found.unknown - 0.5 / sum).abs() < 1e-12);
        let deeper = posterior(&[8.0_f64.ln()], Unjudged { vessels: 3, log_likelihood_ratio: 0.0 }, prior);
        assert!((deeper.unknown - 0.5 / (0.5 + 1.0 + 0.375)).abs() < 1e-12);
    }

    #[test]
    fn without_candidates_the_ship_is_unknown() {
        assert_eq!(posterior(&[], ALL_JUDGED, Prior { unknown: 0.1, vessels: 0 }).unknown, 1.0);
        assert_eq!(posterior(&[], ALL_JUDGED, Prior { unknown: 0.1, vessels: 3 }).unknown, 1.0);
    }

    proptest! {
        #[test]
        fn probabilities_sum_to_one_and_follow_the_evidence(
            mut ratios in prop::collection::vec(-800.0..800.0_f64, 0..20),
            removed in 0..10_usize,
            unknown in 1e-9..0.999_999_f64,
        ) {
            let prior = Prior { unknown, vessels: ratios.len() + removed };
            let found = posterior(&ratios, ALL_JUDGED, prior);
            let sum = found.candidates.iter().sum::<f64>() + found.unknown;
            prop_assert!((sum - 1.0).abs() < 1e-9);
            prop_assert!(found.candidates.iter().all(|value| (0.0..=1.0).contains(value)));

            let surer = posterior(&ratios, ALL_JUDGED, Prior { unknown: unknown / 2.0, ..prior });
            prop_assert!(surer.unknown <= found.unknown + 1e-12);
            if let Some(first) = ratios.first_mut() {
                *first += 1.0;
                let stronger = posterior(&ratios, ALL_JUDGED, prior);
                prop_assert!(stronger.candidates[0] >= found.candidates[0] - 1e-12);
                prop_assert!(stronger.unknown <= found.unknown + 1e-12);
            }
        }
    }
}
