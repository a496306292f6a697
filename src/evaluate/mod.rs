//! Quality of rankings: distances, CMC and mAP as the reference program counts them, protocols, re-ranking.

mod distance;
mod evaluation;
#[cfg(test)]
mod golden;
mod protocol;
mod rerank;
mod score;

pub use distance::{Distances, angles, squared_distances};
pub use evaluation::Evaluation;
pub use protocol::{
    LabelledImage, Protocol, Ranked, Summary, UnknownProtocol, evaluate_by_size, rank, rank_by_distance,
};
pub use rerank::{RerankSettings, rerank};
pub use score::{Scores, score, score_rankings};
