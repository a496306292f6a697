//! What every metric is: name, kind, unit, labels and meaning. `docs/metrics.md` is written from here.

mod calls;
mod chips;
mod galleries;
mod metric;
mod models;
mod shared;

pub use calls::*;
pub use chips::*;
pub use galleries::*;
pub use metric::{Group, Kind, Metric};
pub use models::*;
pub use shared::*;

/// Every metric of ours, by subject, in the order of a chip's way.
pub const TABLE: &[Group] = &[
    calls::CALLS_AND_CONNECTIONS,
    chips::CHIPS_AND_BATCHES,
    galleries::GALLERIES_GROUP,
    shared::SHARED_GROUP,
    galleries::UPLOADS_GROUP,
    calls::HEALTH_GROUP,
    models::MODELS_GROUP,
    models::TRAINING_GROUP,
];

/// Every metric of ours.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    TABLE.iter().flat_map(|group| group.metrics)
}

#[cfg(test)]
mod tests;
