//! A summary of a job's events, in bounded memory however long the job is.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use prost_types::Timestamp;

use crate::client::is_ended;
use crate::wire::train_event::Event;
use crate::wire::{EvaluationResult, JobState, SampleRankings, TrainEvent, TrainProgress, TrainingJob};

/// Maximum points of a curve; beyond that, neighbours are merged into their mean.
const POINTS_MAX: usize = 400;
/// Log lines that are kept.
const LOG_LINES: usize = 60;
/// The usual order of protocols.
const USUAL_ORDER: [&str; 4] = ["all", "o2s", "s2o", "o2o"];

/// A job's past, event by event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    pub(super) attempts: BTreeMap<u32, Attempt>,
    pub(super) steps: Steps,
    /// By epoch and protocol.
    pub(super) evaluations: BTreeMap<(u32, String), EvaluationResult>,
    /// Of the last epoch that has any.
    pub(super) rankings: Option<Rankings>,
    pub(super) log: VecDeque<String>,
    pub(super) first_event: u64,
    pub(super) last_event: u64,
    pub(super) last_at: Option<Timestamp>,
}

/// The known facts about one attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Attempt {
    pub began_at: Option<Timestamp>,
    /// The first and the last step that were reported.
    pub steps: Option<(u64, u64)>,
    /// How and when it ended.
    pub ended: Option<Ending>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ending {
    pub state: JobState,
    pub reason: String,
    pub at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rankings {
    pub epoch: u32,
    pub png: Bytes,
}

/// Curves over steps. A step that two attempts took counts as their mean, which equals each of them where runs are
/// reproducible.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Steps {
    /// The number of steps that share a point.
    width: u64,
    points: BTreeMap<u64, BTreeMap<String, Mean>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Mean {
    sum: f64,
    count: u32,
}

impl History {
    /// Adds the next event.
    pub fn add(&mut self, event: &TrainEvent) {
        if self.first_event == 0 {
            self.first_event = event.number;
        }
        self.last_event = event.number;
        self.last_at = event.occurred_at;
        let attempt = self.attempts.entry(event.attempt).or_default();
        attempt.began_at = attempt.began_at.or(event.occurred_at);
        match &event.event {
            Some(Event::Job(job)) => attempt.note_state(job, event.occurred_at),
            Some(Event::Progress(progress)) => {
                let (first, _) = attempt.steps.unwrap_or((progress.step, progress.step));
                attempt.steps = Some((first, progress.step));
                self.steps.add(progress);
            }
            Some(Event::Evaluation(result)) => {
                self.evaluations.insert((result.epoch, result.protocol.clone()), result.clone());
            }
            Some(Event::Rankings(SampleRankings { epoch, png })) => {
                self.rankings = Some(Rankings { epoch: *epoch, png: png.clone() });
            }
            Some(Event::LogLine(line)) => {
                self.log.push_back(line.clone());
                if self.log.len() > LOG_LINES {
                    self.log.pop_front();
                }
            }
            Some(Event::Checkpoint(_) | Event::StartingPoint(_) | Event::DeliveredCheckpoint(_)) | None => {}
        }
    }

    /// Protocols that were evaluated, in their usual order, followed by any others.
    pub(super) fn protocols(&self) -> Vec<&str> {
        let mut found: Vec<&str> = self.evaluations.keys().map(|(_, protocol)| protocol.as_str()).collect();
        let place = |protocol: &str| USUAL_ORDER.iter().position(|usual| *usual == protocol);
        found.sort_by_key(|protocol| (place(protocol).unwrap_or(USUAL_ORDER.len()), *protocol));
        found.dedup();
        found
    }

    /// The evaluation with the highest mAP in the first protocol.
    pub(super) fn best(&self) -> Option<&EvaluationResult> {
        let first = *self.protocols().first()?;
        let of_first = self.evaluations.values().filter(|result| result.protocol == first);
        of_first.max_by(|a, b| a.map.total_cmp(&b.map))
    }
}

impl Attempt {
    fn note_state(&mut self, job: &TrainingJob, at: Option<Timestamp>) {
        if is_ended(job.state()) || job.state() == JobState::Interrupted {
            let reason = [job.failure_reason.as_str(), job.failure_message.as_str()];
            let reason = reason.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": ");
            self.ended = Some(Ending { state: job.state(), reason, at });
        }
    }
}

/// Names of the curves that are not losses.
pub(super) const RATE: &str = "\u{0}rate";
pub(super) const ACCURACY: &str = "\u{0}accuracy";

impl Steps {
    fn add(&mut self, progress: &TrainProgress) {
        let losses = progress.losses.iter().map(|(name, value)| (name.as_str(), *value));
        let others = [(RATE, Some(progress.learning_rate)), (ACCURACY, progress.accuracy)];
        let others = others.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let point = self.points.entry(progress.step / self.width).or_default();
        // A loss that is not finite cannot be drawn; the failure is described in the text.
        for (name, value) in losses.chain(others).filter(|(_, value)| value.is_finite()) {
            point.entry(name.to_owned()).or_default().add(Mean { sum: value, count: 1 });
        }
        if self.points.len() > POINTS_MAX {
            self.halve();
        }
    }

    fn halve(&mut self) {
        self.width *= 2;
        for (place, point) in std::mem::take(&mut self.points) {
            let merged = self.points.entry(place / 2).or_default();
            for (name, mean) in point {
                merged.entry(name).or_default().add(mean);
            }
        }
    }

    /// The number of steps that a point averages.
    pub fn width(&self) -> u64 {
        self.width
    }

    /// Losses by name, "total" first.
    pub fn losses(&self) -> Vec<&str> {
        let names = self.points.values().flat_map(BTreeMap::keys).map(String::as_str);
        let mut found: Vec<&str> = names.filter(|name| ![RATE, ACCURACY].contains(name)).collect();
        found.sort_by_key(|name| (*name != "total", *name));
        found.dedup();
        found
    }

    /// Step and value, in order.
    pub fn curve(&self, name: &str) -> Vec<(f64, f64)> {
        // A point is placed at the middle of the steps that it averages.
        let middle = |place: u64| (place * self.width) as f64 + (self.width - 1) as f64 / 2.0;
        let point = |(place, point): (&u64, &BTreeMap<String, Mean>)| {
            let Mean { sum, count } = point.get(name)?;
            Some((middle(*place), sum / f64::from(*count)))
        };
        self.points.iter().filter_map(point).collect()
    }
}

impl Default for Steps {
    fn default() -> Self {
        Self { width: 1, points: BTreeMap::new() }
    }
}

impl Mean {
    fn add(&mut self, other: Self) {
        self.sum += other.sum;
        self.count += other.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64, attempt: u32, event: Event) -> TrainEvent {
        TrainEvent { number, attempt, event: Some(event), ..TrainEvent::default() }
    }

    fn step(step: u64, total: f64) -> Event {
        let losses = [("total".to_owned(), total), ("id".to_owned(), 1.0)].into();
        Event::Progress(TrainProgress { step, losses, learning_rate: 0.5, ..TrainProgress::default() })
    }

    #[test]
    fn steps_that_were_taken_again_count_once() {
        let mut history = History::default();
        for (number, (attempt, at)) in (1..).zip([(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (2, 4)]) {
            history.add(&event(number, attempt, step(at, at as f64)));
        }
        assert_eq!(history.steps.curve("total"), [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0)]);
        assert_eq!(history.steps.losses(), ["total", "id"]);
        let steps: Vec<_> = history.attempts.values().map(|attempt| attempt.steps).collect();
        assert_eq!(steps, [Some((1, 3)), Some((2, 4))]);
    }

    #[test]
    fn a_long_run_has_as_many_points_as_a_page_can_show() {
        let mut history = History::default();
        for number in 0..10 * POINTS_MAX as u64 {
            history.add(&event(number + 1, 1, step(number, (number % 2) as f64)));
        }
        let curve = history.steps.curve("total");
        assert!((POINTS_MAX / 2..=POINTS_MAX).contains(&curve.len()), "{}", curve.len());
        assert!(curve.iter().all(|(_, value)| (value - 0.5).abs() < 1e-9));
        assert!(curve.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn a_loss_that_is_no_number_is_in_no_curve() {
        let mut history = History::default();
        history.add(&event(1, 1, step(1, 2.0)));
        history.add(&event(2, 1, step(2, f64::NAN)));
        assert_eq!(history.steps.curve("total"), [(1.0, 2.0)]);
        assert_eq!(history.steps.curve(RATE).len(), 2);
    }

    #[test]
    fn the_log_keeps_its_last_lines_and_evaluations_their_best() {
        let mut history = History::default();
        for number in 1..=100_u64 {
            history.add(&event(number, 1, Event::LogLine(number.to_string())));
        }
        assert_eq!((history.log.len(), history.log[0].as_str()), (LOG_LINES, "41"));
        for (epoch, protocol, map) in [(1, "s2o", 0.9), (1, "all", 0.2), (2, "all", 0.3), (3, "all", 0.1)] {
            let result = EvaluationResult { protocol: protocol.into(), epoch, map, ..Default::default() };
            history.add(&event(100 + u64::from(epoch), 1, Event::Evaluation(result)));
        }
        assert_eq!(history.protocols(), ["all", "s2o"]);
        assert_eq!(history.best().map(|best| best.epoch), Some(2));
    }
}
