//! Groups of inputs whose products an AVX2 kernel may add in 16 bits.
//!
//! `vpmaddubsw` multiplies inputs of 7 bits by weights of 8 and adds pairs of products, which always fit 16 bits;
//! widening each of those sums to 32 bits costs as much again. Inputs are not negative, so a sum of several lies
//! between 127 times the negative weights' and 127 times the positive weights' sum. Where both fit 16 bits, for every
//! output, the sums are added first and widened once.

use super::layout::{GROUP, PANEL, STEP};

/// Outputs that are computed at a time: two vectors of eight.
pub const STRIP: usize = 16;
/// Strips of a panel.
pub const PER_PANEL: usize = PANEL / STRIP;
/// Groups of a long chain.
pub const LONG: usize = 4;
/// Groups of a short chain.
pub const SHORT: usize = 2;

/// The largest input.
const INPUT_MAX: i32 = 127;
/// The largest sum of weights of one sign whose products fit 16 bits.
const SUM_MAX: i32 = i16::MAX as i32 / INPUT_MAX;

/// The order in which a strip's groups are multiplied: every group once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chains {
    /// Numbers of groups: chains of [`LONG`], then of [`SHORT`], then single groups.
    pub order: Vec<u16>,
    /// Numbers of chains of those lengths.
    pub long: usize,
    pub short: usize,
}

/// The chains of each strip of a panel, `[groups, PANEL, GROUP]`.
pub fn of_panel(codes: &[i8]) -> [Chains; PER_PANEL] {
    std::array::from_fn(|strip| {
        let groups = codes.chunks_exact(STEP);
        of_strip(groups.map(|group| Reach::of(&group[strip * STRIP * GROUP..][..STRIP * GROUP])).collect())
    })
}

/// Joins groups that can be, first in long chains.
fn of_strip(groups: Vec<Reach>) -> Chains {
    let mut left: Vec<u16> = (0..groups.len() as u16).collect();
    let mut chains = Chains::default();
    let long = take(&groups, &mut left, LONG);
    let short = take(&groups, &mut left, SHORT);
    (chains.long, chains.short) = (long.len() / LONG, short.len() / SHORT);
    chains.order = [long, short, left].concat();
    chains
}

/// Takes chains of `length` out of the groups that are left: each group starts one, which the next ones that fit join.
fn take(groups: &[Reach], left: &mut Vec<u16>, length: usize) -> Vec<u16> {
    let mut taken = Vec::new();
    let mut is_taken = vec![false; left.len()];
    for first in 0..left.len() {
        if is_taken[first] {
            continue;
        }
        let (mut chain, mut reach) = (vec![first], groups[usize::from(left[first])].clone());
        for next in first + 1..left.len() {
            if chain.len() == length {
                break;
            }
            if is_taken[next] {
                continue;
            }
            if let Some(joined) = reach.joined(&groups[usize::from(left[next])]) {
                chain.push(next);
                reach = joined;
            }
        }
        if chain.len() == length {
            taken.extend(chain.iter().map(|place| left[*place]));
            chain.into_iter().for_each(|place| is_taken[place] = true);
        }
    }
    let mut place = 0..;
    left.retain(|_| !is_taken[place.next().expect("endless")]);
    taken
}

/// Sums of positive and of negative weights for each 16-bit lane.
#[derive(Clone, Debug)]
struct Reach([[i32; 2]; STRIP * GROUP / 2]);

impl Reach {
    /// Of the weights `[STRIP, GROUP]` of one group.
    fn of(codes: &[i8]) -> Self {
        let mut lanes = [[0; 2]; STRIP * GROUP / 2];
        for (lane, pair) in lanes.iter_mut().zip(codes.chunks_exact(2)) {
            for code in pair {
                lane[usize::from(*code < 0)] += i32::from(*code).abs();
            }
        }
        Self(lanes)
    }

    /// Of both groups in one chain, if the products of every lane fit.
    fn joined(&self, other: &Self) -> Option<Self> {
        let mut lanes = self.0;
        for (lane, other) in lanes.iter_mut().zip(&other.0) {
            for (sum, other) in lane.iter_mut().zip(other) {
                *sum += other;
                if *sum > SUM_MAX {
                    return None;
                }
            }
        }
        Some(Self(lanes))
    }
}
