//! Assigns distinct vessels to several queries, so that the joint likelihood is the largest.

use std::collections::HashMap;
use std::hash::Hash;

use pathfinding::kuhn_munkres::kuhn_munkres;
use pathfinding::matrix::Matrix;

/// Weights are compared in fixed point with this many steps per unit.
const STEPS: f64 = 1e9;
/// Above any sum of weights that matters.
const WEIGHT_MAX: f64 = 1e9;
/// The weight of leaving a query without a vessel where any vessel is better.
const LAST_RESORT: i128 = -(1 << 80);
/// The weight of an impossible assignment.
const FORBIDDEN: i128 = -(1 << 110);

/// The value of leaving a query without a vessel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Alternative {
    /// On the scale of the candidates' weights: the ship may be unknown.
    Weight(f64),
    /// Only if there are not enough vessels.
    LastResort,
}

/// A query's candidates, each vessel once with its weight, and the alternative to all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice<V> {
    pub candidates: Vec<(V, f64)>,
    pub alternative: Alternative,
}

/// The vessel of each query, or none, such that no vessel is assigned twice and the sum of weights is the largest.
///
/// For each query it suffices to consider as many candidates as there are queries: at least one of them is left
/// whatever the others get.
pub fn assign<V: Copy + Eq + Hash>(choices: &[Choice<V>]) -> Vec<Option<V>> {
    let Some(matrix) = weights(choices) else { return vec![] };
    let (_, columns) = kuhn_munkres(&matrix.weights);
    columns.into_iter().map(|column| matrix.vessels.get(column).copied()).collect()
}

struct Weights<V> {
    /// One column for each vessel, then one for each query that stands for no vessel.
    weights: Matrix<i128>,
    vessels: Vec<V>,
}

/// `None` without queries.
fn weights<V: Copy + Eq + Hash>(choices: &[Choice<V>]) -> Option<Weights<V>> {
    let mut columns: HashMap<V, usize> = HashMap::new();
    let mut vessels = Vec::new();
    let best: Vec<Vec<(V, f64)>> = choices.iter().map(|choice| best(choice, choices.len())).collect();
    for (vessel, _) in best.iter().flatten() {
        columns.entry(*vessel).or_insert_with(|| {
            vessels.push(*vessel);
            vessels.len() - 1
        });
    }
    let rows = choices.iter().zip(best).enumerate().map(|(row, (choice, best))| {
        let mut weights = vec![FORBIDDEN; vessels.len() + choices.len()];
        best.iter().for_each(|(vessel, weight)| weights[columns[vessel]] = fixed_point(*weight));
        weights[vessels.len() + row] = match choice.alternative {
            Alternative::Weight(weight) => fixed_point(weight),
            Alternative::LastResort => LAST_RESORT,
        };
        weights
    });
    let rows: Vec<Vec<i128>> = rows.collect();
    (!rows.is_empty())
        .then(|| Weights { weights: Matrix::from_rows(rows).expect("rows have one length"), vessels })
}

/// The `count` candidates of the largest weight; of equals, the first.
fn best<V: Copy>(choice: &Choice<V>, count: usize) -> Vec<(V, f64)> {
    let mut candidates = choice.candidates.clone();
    candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
    candidates.truncate(count);
    candidates
}

fn fixed_point(weight: f64) -> i128 {
    (weight.clamp(-WEIGHT_MAX, WEIGHT_MAX) * STEPS).round() as i128
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The best sum over all assignments: how many queries stay without a vessel as a last resort, and the weights.
    fn brute_force(choices: &[Choice<u8>], taken: &mut Vec<u8>) -> (i64, f64) {
        let Some((first, rest)) = choices.split_first() else { return (0, 0.0) };
        let (without, weight) = brute_force(rest, taken);
        let mut best = match first.alternative {
            Alternative::Weight(alternative) => (without, weight + alternative),
            Alternative::LastResort => (without - 1, weight),
        };
        for (vessel, own) in &first.candidates {
            if !taken.contains(vessel) {
                taken.push(*vessel);
                let (without, weight) = brute_force(rest, taken);
                taken.pop();
                if (without, weight + own) > best {
                    best = (without, weight + own);
                }
            }
        }
        best
    }

    fn worth(choices: &[Choice<u8>], assigned: &[Option<u8>]) -> (i64, f64) {
        let mut sum = (0, 0.0);
        for (choice, vessel) in choices.iter().zip(assigned) {
            match (vessel, choice.alternative) {
                (Some(vessel), _) => {
                    sum.1 += choice.candidates.iter().find(|(own, _)| own == vessel).expect("a candidate").1;
                }
                (None, Alternative::Weight(weight)) => sum.1 += weight,
                (None, Alternative::LastResort) => sum.0 -= 1,
            }
        }
        sum
    }

    #[test]
    fn a_vessel_goes_where_it_is_missed_most() {
        let choice =
            |candidates: &[(u8, f64)], alternative| Choice { candidates: candidates.to_vec(), alternative };
        let last = Alternative::LastResort;
        let first = choice(&[(1, 0.9), (2, 0.8)], last);
        assert_eq!(assign(&[first.clone(), choice(&[(1, 0.85), (2, 0.1)], last)]), [Some(2), Some(1)]);
        assert_eq!(assign(&[first.clone(), choice(&[(1, 0.95)], last)]), [Some(2), Some(1)]);
        assert_eq!(assign(&[choice(&[(1, 0.1)], last), choice(&[(1, 0.2)], last)]), [None, Some(1)]);
        assert_eq!(assign(&[choice(&[(1, -5.0)], Alternative::Weight(-1.0)), first]), [None, Some(1)]);
        assert_eq!(assign::<u8>(&[choice(&[], last)]), [None]);
        assert_eq!(assign::<u8>(&[]), []);
    }

    proptest! {
        #[test]
        fn no_other_way_to_share_out_is_worth_more(
            drawn in prop::collection::vec(
                (prop::collection::btree_map(0..5_u8, -3.0..3.0_f64, 0..5), prop::option::of(-3.0..3.0_f64)),
                0..5,
            ),
        ) {
            let choice = |(candidates, weight): (std::collections::BTreeMap<u8, f64>, Option<f64>)| Choice {
                candidates: candidates.into_iter().collect(),
                alternative: weight.map_or(Alternative::LastResort, Alternative::Weight),
            };
            let choices: Vec<Choice<u8>> = drawn.into_iter().map(choice).collect();
            let assigned = assign(&choices);
            let mut vessels: Vec<u8> = assigned.iter().copied().flatten().collect();
            vessels.sort_unstable();
            prop_assert!(vessels.windows(2).all(|pair| pair[0] != pair[1]), "each vessel once");
            let (found, best) = (worth(&choices, &assigned), brute_force(&choices, &mut vec![]));
            prop_assert_eq!(found.0, best.0);
            prop_assert!((found.1 - best.1).abs() < 1e-6, "{:?} {:?}", found, best);
        }
    }
}
