//! A place among the jobs that run at the same time.

use std::sync::Arc;

use super::desk::Desk;
use super::keeper::Keeper;
use super::settings::Settings;
use super::spawner::Spawner;

/// A place among the jobs that run at the same time, and what is known there.
#[derive(Clone, Debug)]
pub struct Slot {
    pub number: usize,
    pub desk: Arc<Desk>,
    pub settings: Arc<Settings>,
    pub spawner: Spawner,
    pub keeper: Arc<dyn Keeper>,
}
