//! A slot for one of the jobs that run at the same time.

use std::sync::Arc;

use super::model_sink::ModelSink;
use super::repository::JobRepository;
use super::settings::Settings;
use super::spawner::Spawner;

/// A slot for one of the jobs that run at the same time, with the state it needs.
#[derive(Clone, Debug)]
pub struct Slot {
    pub number: usize,
    pub repository: Arc<JobRepository>,
    pub settings: Arc<Settings>,
    pub spawner: Spawner,
    pub model_sink: Arc<dyn ModelSink>,
}
