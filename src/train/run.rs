//! One run: the checked inputs before the first step, and the model at its end.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::calibration::{HeldOutShips, Uncalibrated};
use super::checkpoint::Checkpoints;
use super::config::TrainConfig;
use super::dataset::Image;
use super::delivered::Delivered;
use super::fit::{FitEvent, FitInputs, Plan, fit};
use super::fit_error::FitError;
use super::inputs::{DataSet, TrainingInputs};
use super::learn::{Learner, LearnerState};
use super::learner::{Teaching, TorchLearner};
use super::peers::{Alone, Peers};
use super::ranks::Ranks;
use super::validation::Validation;
use crate::embedding::ModelDigest;
use crate::matching::Calibration;
use crate::model::Device;
use crate::weights::family::Architecture;
use crate::weights::misfits::Misfits;
use crate::weights::open::OpenModel;
use crate::weights::rules::for_serving;

/// A run before its first step, or before the first step after its newest checkpoint.
pub struct Run {
    architecture: Architecture,
    plan: Plan,
    data: DataSet,
    validation: Option<Validation>,
    learner: TorchLearner,
    checkpoints: Checkpoints,
    /// The other processes.
    ranks: Option<Ranks>,
}

/// The result of a run, in the process that has rank 0.
pub struct Trained {
    pub model: OpenModel,
    pub delivered: Delivered,
    /// The model's calibrator and its quality, if there are ships to fit it on.
    pub calibration: Result<Calibration, Uncalibrated>,
}

/// Why a run produced no model.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Fit(#[from] FitError),
    /// The trained tensors do not form a model.
    #[error(transparent)]
    Weights(#[from] Misfits),
}

impl Run {
    /// `threads` read images if the configuration does not set a number.
    pub fn new(
        config: &TrainConfig,
        inputs: TrainingInputs,
        device: Device,
        checkpoints: Checkpoints,
        threads: usize,
    ) -> Self {
        let TrainingInputs { architecture, tensors, start: _, data, validation } = inputs;
        let plan = Plan {
            seed: config.seed,
            schedule: config.schedule.schedule(),
            checkpoint_epochs: config.checkpoint.epochs,
            validation_epochs: config.validation.epochs,
            loaders: if config.data.loader_threads == 0 { threads } else { config.data.loader_threads },
        };
        let learner = TorchLearner::new(&architecture, &tensors, device, Teaching::from(config));
        Self { architecture, plan, data, validation, learner, checkpoints, ranks: None }
    }

    /// The same run as one of several processes. If `gathers`, its loss is that of whole batches.
    #[must_use]
    pub fn among(self, ranks: Ranks, gathers: bool) -> Self {
        let checkpoints = self.checkpoints.of_world(ranks.world_size());
        let learner = self.learner.among(ranks.clone(), gathers);
        Self { learner, checkpoints, ranks: Some(ranks), ..self }
    }

    /// Trains to the end, or until `watch` breaks. If the checkpoints keep the best one, the model
    /// has its weights. `None` in processes other than that of rank 0.
    ///
    /// # Errors
    /// See [`RunError`]; the progress until then is in the checkpoints.
    pub fn train(
        self,
        watch: &mut dyn FnMut(FitEvent) -> ControlFlow<()>,
    ) -> Result<Option<Trained>, RunError> {
        let Self { architecture, data, mut learner, .. } = self;
        let (plan, validation, checkpoints) = (&self.plan, self.validation.as_ref(), &self.checkpoints);
        let peers: &dyn Peers = self.ranks.as_ref().map_or(&Alone, |ranks| ranks);
        let state = match &data {
            DataSet::Identities(source) => {
                fit(&FitInputs { plan, source, validation, checkpoints, peers }, &mut learner, watch)
            }
            DataSet::Pairs(source) => {
                fit(&FitInputs { plan, source, validation, checkpoints, peers }, &mut learner, watch)
            }
        };
        let state = state?;
        if !peers.leads() {
            return Ok(None);
        }
        let (state, delivered) = deliver(plan, validation, checkpoints, &mut learner, state)?;
        let tensors = for_serving(&architecture, state.weights)?;
        let model = OpenModel::new(architecture, architecture.feature_point(), tensors);
        let calibration = calibrate(model.digest, plan, validation, &data, &mut learner);
        Ok(Some(Trained { model, delivered, calibration }))
    }
}

/// Calibrates the model whose weights the learner has.
fn calibrate(
    model: ModelDigest,
    plan: &Plan,
    validation: Option<&Validation>,
    data: &DataSet,
    learner: &mut impl Learner,
) -> Result<Calibration, Uncalibrated> {
    let DataSet::Identities(source) = data else { return Err(Uncalibrated::Pairs) };
    let validation = validation.ok_or(Uncalibrated::NothingHeldOut)?;
    let learned: BTreeSet<i64> = source.images().iter().filter_map(Image::known_identity).collect();
    HeldOutShips { model, validation, learned: &learned, loaders: plan.loaders }.calibrate(learner)
}

/// The state that becomes the model. An earlier process may have evaluated it, so the evaluation is repeated.
fn deliver(
    plan: &Plan,
    validation: Option<&Validation>,
    checkpoints: &Checkpoints,
    learner: &mut impl Learner,
    last: LearnerState,
) -> Result<(LearnerState, Delivered), FitError> {
    let better = if validation.is_some() { checkpoints.better_than_last()? } else { None };
    let (Some((progress, best)), Some(validation)) = (better, validation) else {
        return Ok((last, Delivered::Last { epoch: plan.schedule.epochs }));
    };
    learner.restore(best.clone())?;
    let summaries = validation.evaluate(learner, plan.loaders)?.summaries;
    // It is at the start of the next epoch.
    let epoch = progress.epoch.saturating_sub(1);
    Ok((best, Delivered::Best { epoch, steps: progress.steps, summaries }))
}
