//! What the answer to a query leaves open.

use super::evidence::ModalityPair;

/// What an answer leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    #[error("the query's modality is not known, so that nothing is calibrated for it")]
    ModalityUnknown,
    #[error("the calibrator does not know the pair {}, whose candidates have no probability", .0.name())]
    PairUncalibrated(ModalityPair),
    #[error("no vessel was assigned: the others' queries fit them better, or none fits")]
    Unassigned,
}

impl Doubt {
    /// Stable and fit for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::ModalityUnknown => "MODALITY_UNKNOWN",
            Self::PairUncalibrated(_) => "PAIR_UNCALIBRATED",
            Self::Unassigned => "UNASSIGNED",
        }
    }
}
