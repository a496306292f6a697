//! A change to a job: its new state, and the events that record it.

use super::event::EventPayload;
use super::job::Job;
use super::report::RunEvent;
use super::state::{Change, JobState, Refused};
use crate::evaluate::Evaluation;
use crate::gallery::Time;

/// A job together with its new events: stored in one transaction, or not at all.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    job: Job,
    now: Time,
    happened: Vec<(u32, EventPayload)>,
}

impl Edit {
    pub fn new(job: Job, now: Time) -> Self {
        Self { job, now, happened: Vec::new() }
    }

    /// A new job, whose first event is that it waits.
    pub fn created(job: Job, now: Time) -> Self {
        let mut edit = Self::new(job, now);
        edit.push_state();
        edit
    }

    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Changes the state; a change without effect is not an event.
    ///
    /// # Errors
    /// The state does not allow the change; nothing has changed.
    pub fn change(&mut self, change: Change) -> Result<(), Refused> {
        let asked = change == Change::Resume;
        let starts = change == Change::Start;
        let after = self.job.state.after(change)?;
        if after == self.job.state {
            return Ok(());
        }
        let job = &mut self.job;
        if after == JobState::Queued {
            job.attempt += 1;
        }
        if asked {
            // Resuming a job implies that the cause of failure was fixed.
            job.fruitless = 0;
        }
        if starts {
            // An attempt that failed may have delivered a checkpoint, of which no model was made.
            job.delivered = None;
        }
        if starts && job.started_at.is_none() {
            job.started_at = Some(self.now);
        }
        job.ended_at = after.is_ended().then_some(self.now);
        job.state = after;
        self.push_state();
        Ok(())
    }

    /// The attempt begins after these steps, which a checkpoint contains.
    pub fn begin(&mut self, steps: u64) {
        self.gain(steps);
    }

    /// Adds a report of the run.
    pub fn report(&mut self, event: RunEvent) {
        match &event {
            RunEvent::Progress(progress) => self.job.progress = Some(progress.clone()),
            RunEvent::Evaluated(evaluation) => {
                let Evaluation { epoch, protocol, .. } = evaluation;
                let evaluations = &mut self.job.evaluations;
                evaluations.retain(|known| known.epoch == *epoch && known.protocol != *protocol);
                evaluations.push(evaluation.clone());
            }
            RunEvent::Saved(saved) => self.gain(saved.step),
            RunEvent::Started(start) => self.job.start = Some(start.clone()),
            RunEvent::Delivered(delivered) => self.job.delivered = Some(delivered.clone()),
            RunEvent::Rankings(_) | RunEvent::Log(_) => {}
        }
        self.job.last_event += 1;
        self.happened.push((self.job.attempt, EventPayload::Run(event)));
    }

    pub fn log(&mut self, line: impl Into<String>) {
        self.report(RunEvent::Log(line.into()));
    }

    /// Counts an attempt that ended early; returns the number of consecutive attempts without progress.
    pub fn count_attempt(&mut self) -> u32 {
        self.job.fruitless += 1;
        self.job.fruitless
    }

    pub fn into_job(self) -> Job {
        self.job
    }

    /// The job, and its events with their attempts, in order.
    pub fn into_parts(self) -> (Job, Vec<(u32, EventPayload)>, Time) {
        (self.job, self.happened, self.now)
    }

    /// An attempt counts as progress if it saves a checkpoint further than any before.
    fn gain(&mut self, steps: u64) {
        if steps > self.job.saved_steps {
            self.job.saved_steps = steps;
            self.job.fruitless = 0;
        }
    }

    /// The job recorded in a state event counts that event.
    fn push_state(&mut self) {
        self.job.last_event += 1;
        let job = Box::new(self.job.clone());
        self.happened.push((self.job.attempt, EventPayload::State(job)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::failure::Failure;
    use super::super::job::{JobId, JobKey, JobSpec};
    use super::super::report::{DeliveredCheckpoint, SavedCheckpoint, Start};
    use super::*;
    use crate::reason::FailureReason;

    fn job() -> Job {
        let key = JobKey { tenant: "default".into(), id: JobId::new(7) };
        Job::new(key, JobSpec::default(), Time::from_nanos(1))
    }

    fn saved_at(step: u64) -> RunEvent {
        RunEvent::Saved(SavedCheckpoint { step, best: false })
    }

    #[test]
    fn every_resumption_is_a_new_attempt_and_events_carry_theirs() {
        let mut edit = Edit::created(job(), Time::from_nanos(2));
        for change in [Change::Start, Change::Retry, Change::Start, Change::Stop, Change::Resume] {
            edit.change(change).expect("legal");
        }
        let (job, happened, _) = edit.into_parts();
        assert_eq!((job.attempt, job.last_event, job.started_at), (3, 6, Some(Time::from_nanos(2))));
        let attempts: Vec<u32> = happened.iter().map(|(attempt, _)| *attempt).collect();
        assert_eq!(attempts, [1, 1, 2, 2, 2, 3]);
        let numbers = happened.iter().map(|(_, what)| match what {
            EventPayload::State(job) => job.last_event,
            other => panic!("{other:?}"),
        });
        assert_eq!(numbers.collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_job_ends_once_and_not_for_ever() {
        let mut edit = Edit::new(job(), Time::from_nanos(5));
        edit.change(Change::Cancel).expect("legal");
        edit.change(Change::Cancel).expect("again");
        assert_eq!((edit.job().last_event, edit.job().ended_at), (1, Some(Time::from_nanos(5))));
        edit.change(Change::Resume).expect("legal");
        assert_eq!(edit.job().ended_at, None);
    }

    #[test]
    fn only_a_further_checkpoint_makes_an_attempt_count() {
        let mut edit = Edit::new(Job { state: JobState::Running, ..job() }, Time::from_nanos(5));
        edit.report(saved_at(10));
        assert_eq!(edit.count_attempt(), 1);
        edit.begin(10);
        edit.report(saved_at(10));
        assert_eq!(edit.count_attempt(), 2);
        // The server was not notified of a checkpoint before it stopped, but the next attempt begins with it.
        edit.begin(20);
        assert_eq!(edit.count_attempt(), 1);
        edit.change(Change::Fail(Failure::new(FailureReason::Hung, "silent"))).expect("legal");
        edit.change(Change::Resume).expect("legal");
        assert_eq!(edit.job().fruitless, 0);
    }

    #[test]
    fn a_job_tells_its_last_start_and_what_the_attempt_delivered() {
        let mut edit = Edit::new(job(), Time::from_nanos(5));
        edit.change(Change::Start).expect("legal");
        let [first, second] = [7, 8].map(|tensors_taken| Start { tensors_taken, ..Start::default() });
        edit.report(RunEvent::Started(first));
        edit.report(RunEvent::Started(second.clone()));
        let delivered = DeliveredCheckpoint { epoch: 2, step: 8, best_by: None };
        edit.report(RunEvent::Delivered(delivered.clone()));
        assert_eq!((&edit.job().start, &edit.job().delivered), (&Some(second.clone()), &Some(delivered)));
        edit.change(Change::Fail(Failure::new(FailureReason::ModelNotKept, "full"))).expect("legal");
        edit.change(Change::Resume).expect("legal");
        edit.change(Change::Start).expect("legal");
        assert_eq!((&edit.job().start, &edit.job().delivered), (&Some(second), &None));
    }

    #[test]
    fn the_evaluations_of_a_job_are_those_of_its_last_epoch() {
        let mut edit = Edit::new(job(), Time::from_nanos(5));
        for (epoch, protocol, map) in [(1, "all", 0.1), (1, "o2s", 0.2), (2, "all", 0.3), (2, "all", 0.4)] {
            let protocol = protocol.into();
            let scores = Evaluation { protocol, epoch, mean_average_precision: map, ..Evaluation::default() };
            edit.report(RunEvent::Evaluated(scores));
        }
        let found: Vec<_> =
            edit.job().evaluations.iter().map(|e| (e.epoch, e.mean_average_precision)).collect();
        assert_eq!(found, [(2, 0.4)]);
    }
}
