//! The origin of the weights of a run's model, for display.

use std::fmt;

use crate::evaluate::Summary;

/// The origin of the weights of a run's model.
#[derive(Clone, Debug, PartialEq)]
pub enum Delivered {
    /// The weights after the last epoch.
    Last { epoch: u32 },
    /// The weights of an earlier checkpoint with a better validation result; its evaluation is repeated here.
    Best { epoch: u32, steps: u64, summaries: Vec<Summary> },
}

impl fmt::Display for Delivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last { epoch } => write!(f, "delivers the last weights, those after epoch {epoch}"),
            Self::Best { epoch, steps, summaries } => {
                write!(
                    f,
                    "delivers the checkpoint after epoch {epoch} (step {steps}), the best by validation"
                )?;
                let map = summaries.first().map(|summary| summary.mean_average_precision);
                map.map_or(Ok(()), |map| write!(f, ": mAP {:.1} %", map * 100.0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_says_whose_weights_its_model_has() {
        let last = Delivered::Last { epoch: 5 }.to_string();
        assert_eq!(last, "delivers the last weights, those after epoch 5");
        let summary = Summary {
            protocol: "all",
            queries: 2,
            queries_with_a_match: 2,
            mean_average_precision: 0.6125,
            hit_within_1: 0.5,
            hit_within_5: 1.0,
            hit_within_10: 1.0,
        };
        let best = Delivered::Best { epoch: 3, steps: 12, summaries: vec![summary] }.to_string();
        assert_eq!(
            best,
            "delivers the checkpoint after epoch 3 (step 12), the best by validation: mAP 61.3 %"
        );
    }
}
