//! The events of a run, as a training process reports them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use super::child::ChildMessage;
use super::rankings;
use super::report::{DeliveredCheckpoint, Progress, Rankings, RunEvent, SavedCheckpoint, Start};
use crate::evaluate::Evaluation;
use crate::matching::Calibration;
use crate::train::{
    CalibrationReport, Checkpoints, Delivered, FitEvent, LossTerms, ObjectiveName, RankedLists, Uncalibrated,
    other_world_size,
};

/// Turns the events of a run into the messages that report them.
#[derive(Debug)]
pub struct EventMapper {
    objective: ObjectiveName,
    checkpoints: Checkpoints,
    /// The job's folder.
    folder: PathBuf,
    /// The starting point of the run, until it has been reported.
    start: Option<Start>,
    epochs: u32,
    /// Steps since the beginning of the run.
    steps: u64,
    last_step: Instant,
    /// The evaluations of the last evaluated epoch.
    evaluations: Vec<Evaluation>,
}

impl EventMapper {
    /// `start` is the starting point of the run; `None` for a run from scratch.
    pub fn new(
        objective: ObjectiveName,
        checkpoints: Checkpoints,
        folder: PathBuf,
        start: Option<Start>,
    ) -> Self {
        let (last_step, evaluations) = (Instant::now(), Vec::new());
        Self { objective, checkpoints, folder, start, epochs: 0, steps: 0, last_step, evaluations }
    }

    pub fn tell(&mut self, event: FitEvent) -> Vec<ChildMessage> {
        match event {
            FitEvent::PassedOver(checkpoint) => vec![RunEvent::Log(checkpoint.to_string()).into()],
            FitEvent::OtherWorldSize { before, now, .. } => {
                vec![RunEvent::Log(other_world_size(before, now)).into()]
            }
            FitEvent::Started { steps, epochs } => {
                (self.epochs, self.steps) = (epochs, steps);
                let begun = ChildMessage::Begun { steps };
                // A run that resumes from a checkpoint no longer contains anything of the starting point.
                let start = self.start.take().filter(|_| steps == 0);
                [begun].into_iter().chain(start.map(|start| RunEvent::Started(start).into())).collect()
            }
            FitEvent::Step {
                progress,
                steps_in_epoch,
                terms,
                rates,
                images_per_second,
                seconds_left,
                processes,
                all_reduce_seconds,
            } => {
                let step_seconds = self.last_step.elapsed().as_secs_f64();
                (self.last_step, self.steps) = (Instant::now(), progress.steps);
                let later = u64::from(self.epochs.saturating_sub(progress.epoch)) * steps_in_epoch;
                let left = later + steps_in_epoch.saturating_sub(progress.steps_of_epoch);
                let progress = Progress {
                    step: progress.steps,
                    // Epochs differ by a few steps, so that past steps are counted and remaining ones are estimated.
                    steps_total: progress.steps + left,
                    epoch: progress.epoch,
                    epochs_total: self.epochs,
                    losses: losses(self.objective, &terms),
                    accuracy: Some(terms.accuracy),
                    learning_rate: rates.weights,
                    images_per_second,
                    seconds_left,
                    step_seconds,
                    processes: u32::try_from(processes).unwrap_or(u32::MAX),
                    all_reduce_seconds,
                };
                vec![RunEvent::Progress(progress).into()]
            }
            FitEvent::EpochDone { .. } => vec![],
            FitEvent::Evaluated { epoch, summaries, sample, .. } => {
                self.evaluations =
                    summaries.iter().filter_map(|summary| Evaluation::after_epoch(epoch, summary)).collect();
                let evaluated = self.evaluations.iter().cloned().map(RunEvent::Evaluated);
                let rankings = sample.and_then(|sample| self.rankings(epoch, &sample));
                let messages = evaluated.chain(rankings).map(ChildMessage::from).collect();
                self.last_step = Instant::now();
                messages
            }
            FitEvent::CheckpointSaved { progress } => {
                self.last_step = Instant::now();
                let best = self.checkpoints.is_best(progress.steps);
                vec![RunEvent::Saved(SavedCheckpoint { step: progress.steps, best }).into()]
            }
        }
    }

    /// Reports whose weights the model has, and their scores if those differ from what was last reported.
    pub fn deliver(&mut self, delivered: &Delivered) -> Vec<ChildMessage> {
        let mut events = vec![RunEvent::Log(delivered.to_string())];
        let checkpoint = match delivered {
            Delivered::Last { epoch } => {
                DeliveredCheckpoint { epoch: *epoch, step: self.steps, best_by: None }
            }
            Delivered::Best { epoch, steps, summaries } => {
                self.evaluations =
                    summaries.iter().filter_map(|summary| Evaluation::after_epoch(*epoch, summary)).collect();
                events.extend(self.evaluations.iter().cloned().map(RunEvent::Evaluated));
                let best_by = self.evaluations.first().cloned();
                DeliveredCheckpoint { epoch: *epoch, step: *steps, best_by }
            }
        };
        events.push(RunEvent::Delivered(checkpoint));
        events.into_iter().map(ChildMessage::from).collect()
    }

    /// Reports the model's calibrator, or why it has none.
    pub fn calibrate(&self, calibration: &Result<Calibration, Uncalibrated>) -> Vec<ChildMessage> {
        let lines = CalibrationReport(calibration).lines().into_iter();
        lines.map(|line| RunEvent::Log(line).into()).collect()
    }

    /// Leaves the image in the job's folder; a run continues without one.
    fn rankings(&self, epoch: u32, sample: &RankedLists) -> Option<RunEvent> {
        match rankings::leave(&self.folder, sample) {
            Ok(()) => Some(RunEvent::Rankings(Rankings { epoch, png: Vec::new() })),
            Err(cause) => {
                tracing::warn!(%cause, epoch, "there is no picture of the rankings");
                None
            }
        }
    }

    /// The scores of the weights when they were last evaluated, or those of the model's weights.
    pub fn evaluations(&self) -> &[Evaluation] {
        &self.evaluations
    }
}

/// The terms that the objective has. Those that few recipes enable are left out where they are zero.
fn losses(objective: ObjectiveName, terms: &LossTerms) -> BTreeMap<String, f64> {
    let mut named = match objective {
        ObjectiveName::FineTune => vec![
            ("total", terms.total),
            ("id", terms.identity),
            ("triplet", terms.triplet),
            ("alignment", terms.alignment),
        ],
        ObjectiveName::Contrastive => vec![("total", terms.total), ("contrastive", terms.contrastive)],
    };
    let rare = [
        ("orthogonality", terms.orthogonality),
        ("structure", terms.structure),
        ("supcon", terms.supcon),
        ("info_nce", terms.info_nce),
    ];
    named.extend(rare.into_iter().filter(|(_, loss)| *loss != 0.0));
    named.into_iter().map(|(name, loss)| (name.to_owned(), loss)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Summary;
    use crate::train::{LearnerState, Progress as RunProgress, Rates};

    #[test]
    fn a_run_is_told_with_its_totals_and_without_scores_of_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let checkpoints = Checkpoints::open(folder.path(), 3, false).expect("writable");
        let place = folder.path().to_owned();
        let start = Start { tensors_taken: 7, ..Start::default() };
        let event_mapper = |start| {
            EventMapper::new(ObjectiveName::Contrastive, checkpoints.clone(), place.clone(), Some(start))
        };
        let told = event_mapper(start.clone()).tell(FitEvent::Started { steps: 0, epochs: 3 });
        assert_eq!(told, [ChildMessage::Begun { steps: 0 }, RunEvent::Started(start.clone()).into()]);
        let mut event_mapper = event_mapper(start);
        assert_eq!(
            event_mapper.tell(FitEvent::Started { steps: 4, epochs: 3 }),
            [ChildMessage::Begun { steps: 4 }]
        );
        let progress = RunProgress { epoch: 2, steps_of_epoch: 1, steps: 5 };
        let terms = LossTerms { total: 0.5, contrastive: 0.5, identity: 9.0, ..LossTerms::default() };
        let step = FitEvent::Step {
            progress,
            steps_in_epoch: 4,
            terms,
            rates: Rates { weights: 0.1, biases: 0.2 },
            images_per_second: 7.0,
            seconds_left: 3.0,
            processes: 2,
            all_reduce_seconds: 0.25,
        };
        let said = event_mapper.tell(step);
        let [ChildMessage::Run(RunEvent::Progress(step))] = &said[..] else { panic!("{said:?}") };
        assert_eq!((step.step, step.steps_total, step.epoch, step.epochs_total), (5, 12, 2, 3));
        assert_eq!(step.losses, [("total".into(), 0.5), ("contrastive".into(), 0.5)].into());
        assert_eq!((step.processes, step.all_reduce_seconds), (2, 0.25));

        let summary = |protocol, matched, map| Summary {
            protocol,
            queries: 2,
            queries_with_a_match: matched,
            mean_average_precision: map,
            hit_within_1: map,
            hit_within_5: map,
            hit_within_10: map,
        };
        let summaries = vec![summary("all", 2, 0.5), summary("o2s", 0, f64::NAN)];
        let said = event_mapper.tell(FitEvent::Evaluated { epoch: 2, steps: 8, summaries, sample: None });
        assert_eq!(said, [RunEvent::Evaluated(event_mapper.evaluations()[0].clone()).into()]);

        let delivered = Delivered::Best { epoch: 1, steps: 4, summaries: vec![summary("all", 2, 0.75)] };
        let said = event_mapper.deliver(&delivered);
        let scores = event_mapper.evaluations()[0].clone();
        let checkpoint = DeliveredCheckpoint { epoch: 1, step: 4, best_by: Some(scores.clone()) };
        let told = [
            RunEvent::Log(delivered.to_string()),
            RunEvent::Evaluated(scores),
            RunEvent::Delivered(checkpoint),
        ];
        assert_eq!(said, told.map(ChildMessage::from));
        let last = Delivered::Last { epoch: 3 };
        let checkpoint = DeliveredCheckpoint { epoch: 3, step: 5, best_by: None };
        let told = [RunEvent::Log(last.to_string()), RunEvent::Delivered(checkpoint)];
        assert_eq!(event_mapper.deliver(&last), told.map(ChildMessage::from), "after the last step");
        let [own] = event_mapper.evaluations() else { panic!("one protocol") };
        assert_eq!(
            (own.epoch, own.mean_average_precision),
            (1, 0.75),
            "the model's own, not the last epoch's"
        );

        for (steps, metric, best) in [(8, 0.5, true), (12, 0.3, false), (16, 0.6, true)] {
            let progress = RunProgress { epoch: 3, steps_of_epoch: 0, steps };
            checkpoints.save(progress, Some(metric), &LearnerState::default()).expect("writable");
            let said = event_mapper.tell(FitEvent::CheckpointSaved { progress });
            assert_eq!(said, [RunEvent::Saved(SavedCheckpoint { step: steps, best }).into()]);
        }
    }
}
