//! Measures whether probabilities come true: log-loss, and predicted against observed shares.

use std::collections::BTreeMap;
use std::f64::consts::LN_10;

use serde::Serialize;

use super::logistic::softplus;

/// Bins for each factor of ten in odds: pairs of one vessel are so rare that with bins of equal probability nearly all
/// pairs would be in the first.
const BINS_A_DECADE: f64 = 2.0;
/// Probabilities beyond these odds, in decades, share one bin at either end.
const DECADES: f64 = 6.0;

/// How well log-likelihood ratios separate pairs of one vessel from pairs of two, at the share of the former among
/// them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reliability {
    pub same_pairs: u64,
    pub other_pairs: u64,
    /// Mean of -ln of the probability of the true outcome; less is better.
    pub log_loss: f64,
    /// The log-loss of always predicting the share of pairs of one vessel.
    pub log_loss_of_prior: f64,
    /// Non-empty bins, ordered by probability; of equal width in log-odds.
    pub bins: Vec<Bin>,
}

/// Pairs of similar probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Mean predicted probability of being one vessel.
    pub predicted: f64,
    /// Observed share of one vessel.
    pub observed: f64,
    pub pairs: u64,
}

/// Evaluates (log-likelihood ratio, is one vessel); `None` if pairs of one kind are missing.
///
/// The prior is the share of pairs of one vessel, so that correct ratios give probabilities that come true.
pub fn reliability(judged: &[(f64, bool)]) -> Option<Reliability> {
    let same = judged.iter().filter(|(_, same)| *same).count() as f64;
    let other = judged.len() as f64 - same;
    if same == 0.0 || other == 0.0 {
        return None;
    }
    let prior = (same / other).ln();
    let log_odds = || judged.iter().map(|(ratio, same)| (ratio + prior, *same));
    let loss: f64 = log_odds().map(|(odds, same)| softplus(if same { -odds } else { odds })).sum();
    let count = same + other;
    let entropy = |share: f64| -share * share.ln();
    Some(Reliability {
        same_pairs: same as u64,
        other_pairs: other as u64,
        log_loss: loss / count,
        log_loss_of_prior: entropy(same / count) + entropy(other / count),
        bins: bins(log_odds()),
    })
}

/// From (log-odds, is one vessel).
fn bins(judged: impl Iterator<Item = (f64, bool)>) -> Vec<Bin> {
    let mut sums: BTreeMap<i32, (f64, u64, u64)> = BTreeMap::new();
    for (odds, same) in judged {
        let decades = (odds / LN_10).clamp(-DECADES, DECADES);
        let place = (decades * BINS_A_DECADE).floor() as i32;
        let (predicted, observed, pairs) = sums.entry(place).or_default();
        *predicted += 1.0 / (1.0 + (-odds).exp());
        *observed += u64::from(same);
        *pairs += 1;
    }
    let bin = |(predicted, observed, pairs): (f64, u64, u64)| Bin {
        predicted: predicted / pairs as f64,
        observed: observed as f64 / pairs as f64,
        pairs,
    };
    sums.into_values().map(bin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_that_are_right_come_true() {
        // Of a score with p(1 | same) = 0.8 and p(1 | other) = 0.2, at a share of one in four.
        let (yes, no) = (4.0_f64.ln(), 0.25_f64.ln());
        let mut judged = Vec::new();
        for (ratio, same, count) in [(yes, true, 80), (no, true, 20), (yes, false, 60), (no, false, 240)] {
            judged.extend(std::iter::repeat_n((ratio, same), count));
        }
        let found = reliability(&judged).expect("both kinds");
        assert_eq!((found.same_pairs, found.other_pairs), (100, 300));
        assert_eq!(found.bins.iter().map(|bin| bin.pairs).collect::<Vec<_>>(), [260, 140]);
        for bin in &found.bins {
            assert!((bin.predicted - bin.observed).abs() < 1e-12, "{bin:?}");
        }
        // 80/140 and 20/260 are the probabilities.
        let expected = -(80.0 * (80.0_f64 / 140.0).ln()
            + 60.0 * (60.0_f64 / 140.0).ln()
            + 20.0 * (20.0_f64 / 260.0).ln()
            + 240.0 * (240.0_f64 / 260.0).ln())
            / 400.0;
        assert!((found.log_loss - expected).abs() < 1e-12);
        assert!(found.log_loss < found.log_loss_of_prior);
    }

    #[test]
    fn rare_pairs_of_one_vessel_are_told_apart_by_their_odds() {
        let judged: Vec<_> = (0..10_000).map(|n| (if n % 1_000 == 0 { 5.0 } else { -5.0 }, n < 10)).collect();
        let found = reliability(&judged).expect("both kinds");
        assert_eq!(found.bins.iter().map(|bin| bin.pairs).collect::<Vec<_>>(), [9_990, 10]);
        assert!(found.bins.iter().all(|bin| bin.predicted < 0.2), "{found:?}");
        let endless = reliability(&[(1e6, true), (-1e6, false)]).expect("both kinds");
        assert_eq!(endless.bins.iter().map(|bin| bin.observed).collect::<Vec<_>>(), [0.0, 1.0]);
    }

    #[test]
    fn ratios_that_say_nothing_are_worth_the_prior() {
        let judged: Vec<_> = (0..10).map(|n| (0.0, n < 3)).collect();
        let found = reliability(&judged).expect("both kinds");
        assert!((found.log_loss - found.log_loss_of_prior).abs() < 1e-12);
        let certain: Vec<_> = (0..10).map(|n| (if n < 3 { 1e6 } else { -1e6 }, n < 3)).collect();
        assert_eq!(reliability(&certain).expect("both kinds").log_loss, 0.0);
        assert_eq!(reliability(&[(0.0, true)]), None);
    }
}
