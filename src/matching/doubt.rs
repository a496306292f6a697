//! Limits of an answer to a query.

use super::evidence::ModalityPair;
use crate::reason::Warning;

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
    pub fn code(self) -> Warning {
        match self {
            Self::ModalityUnknown => Warning::ModalityUnknown,
            Self::PairUncalibrated(_) => Warning::PairUncalibrated,
            Self::Unassigned => Warning::Unassigned,
        }
    }
}
