//! The log of a run on this machine: one JSON object per line. A resumed run continues the same file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fit::FitEvent;

/// The open log of one run.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// Opens the log at `path`, creating it if necessary.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends an event. Where a run resumes from a checkpoint, the entries after that checkpoint are removed
    /// first, because those steps are repeated. Pace and time left are not logged, so that equal runs have
    /// equal logs.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, event: &FitEvent) -> io::Result<()> {
        match event {
            FitEvent::Started { steps, .. } => self.forget_after(*steps),
            FitEvent::Step { progress, terms, rates, .. } => self.append(&json!({
                "event": "step",
                "step": progress.steps,
                "epoch": progress.epoch,
                "loss": terms.total,
                "identity": terms.identity,
                "triplet": terms.triplet,
                "alignment": terms.alignment,
                "orthogonality": terms.orthogonality,
                "structure": terms.structure,
                "supcon": terms.supcon,
                "info_nce": terms.info_nce,
                "contrastive": terms.contrastive,
                "accuracy": terms.accuracy,
                "rate": rates.weights,
            })),
            FitEvent::OtherWorldSize { steps, before, now } => {
                self.append(&json!({"event": "world_size", "step": steps, "before": before, "now": now}))
            }
            FitEvent::PassedOver(_) | FitEvent::EpochDone { .. } | FitEvent::CheckpointSaved { .. } => Ok(()),
            FitEvent::Evaluated { epoch, steps, summaries, .. } => self.append(&json!({
                "event": "evaluated",
                "step": steps,
                "epoch": epoch,
                "protocols": summaries,
            })),
        }
    }

    /// One write per line, so that a killed run leaves at most its last line incomplete.
    fn append(&mut self, line: &Value) -> io::Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes())
    }

    fn forget_after(&mut self, steps: u64) -> io::Result<()> {
        let bytes = fs::read(&self.path)?;
        let happened = |line: &&[u8]| {
            let parsed: Option<Value> = serde_json::from_slice(line).ok();
            line.ends_with(b"\n")
                && parsed.is_some_and(|line| line["step"].as_u64().is_some_and(|step| step <= steps))
        };
        let lines = bytes.split_inclusive(|byte| *byte == b'\n');
        // A run that starts over repeats the evaluation before its first step.
        let kept = if steps == 0 { 0 } else { lines.take_while(happened).map(<[u8]>::len).sum() };
        self.file.set_len(kept as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::checkpoint::Progress;
    use crate::train::learn::LossTerms;
    use crate::train::schedule::Rates;

    fn step(steps: u64) -> FitEvent {
        FitEvent::Step {
            progress: Progress { epoch: 1, steps_of_epoch: steps, steps },
            steps_in_epoch: 9,
            terms: LossTerms { total: 0.1 * steps as f64, ..LossTerms::default() },
            rates: Rates { weights: 0.1, biases: 0.2 },
            images_per_second: 1.0,
            seconds_left: 1.0,
            processes: 1,
            all_reduce_seconds: 0.0,
        }
    }

    #[test]
    fn what_a_resumed_run_does_again_is_logged_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("events.jsonl");
        let evaluated = FitEvent::Evaluated { epoch: 0, steps: 0, summaries: vec![], sample: None };
        let run = |started: u64, steps: std::ops::RangeInclusive<u64>| {
            let mut log = EventLog::open(&path).expect("writable");
            log.add(&FitEvent::Started { steps: started, epochs: 2 }).expect("writable");
            if started == 0 {
                log.add(&evaluated).expect("writable");
            }
            steps.for_each(|number| log.add(&step(number)).expect("writable"));
            fs::read_to_string(&path).expect("text")
        };
        let whole = run(0, 1..=5);
        assert_eq!(whole.lines().count(), 6);
        assert_eq!(run(0, 1..=5), whole, "a run that starts anew");
        fs::write(&path, &whole.as_bytes()[..whole.len() - 7]).expect("writable");
        assert_eq!(run(2, 3..=5), whole, "a run that was killed as it wrote");
    }

    #[test]
    fn a_loss_is_logged_to_its_last_bit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("events.jsonl");
        EventLog::open(&path).expect("writable").add(&step(3)).expect("writable");
        let line: Value = serde_json::from_slice(&fs::read(&path).expect("text")).expect("JSON");
        assert_eq!(line["loss"].as_f64().map(f64::to_bits), Some((0.1 * 3.0_f64).to_bits()));
    }
}
