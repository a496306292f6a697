//! Why a training process ended: from its last message, its exit, and what was done to it.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use super::child::ExitReport;
use super::edit::Edit;
use super::failure::Failure;
use super::state::{Change, Refused};
use crate::embedding::ModelDigest;
use crate::reason::FailureReason;

const SIGKILL: i32 = 9;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    Finished {
        model: ModelDigest,
    },
    /// As requested.
    Stopped,
    Failed(Failure),
}

/// What is known about a process that has ended.
#[derive(Clone, Debug)]
pub struct Death {
    /// The last report of its end.
    pub words: Option<ExitReport>,
    /// The last meaningful line of its log.
    pub last_line: Option<String>,
    pub exit: ExitStatus,
    /// It was asked to stop, or killed because it did not.
    pub asked: bool,
    /// It was killed after this long a silence.
    pub silent: Option<Duration>,
    /// The kernel has killed a process for its memory in the meantime.
    pub memory_kill: bool,
}

impl Death {
    pub fn outcome(&self) -> AttemptOutcome {
        match &self.words {
            Some(ExitReport::Finished { model }) => match model.parse() {
                Ok(model) => AttemptOutcome::Finished { model },
                Err(_) => {
                    AttemptOutcome::Failed(Failure::new(FailureReason::Crashed, "the model has no digest"))
                }
            },
            _ if self.asked => AttemptOutcome::Stopped,
            Some(ExitReport::Failed(failure)) => AttemptOutcome::Failed(failure.clone()),
            words => AttemptOutcome::Failed(match self.silent {
                Some(silence) => {
                    let message = format!("nothing was heard of the process for {} s", silence.as_secs_f64());
                    Failure::new(FailureReason::Hung, message)
                }
                None => self.unsaid(*words == Some(ExitReport::Stopped)),
            }),
        }
    }

    /// The failure of a process that did not report why it ended.
    fn unsaid(&self, stopped: bool) -> Failure {
        let line = self.last_line.as_deref().unwrap_or("");
        match (self.exit.signal(), self.exit.code()) {
            (Some(SIGKILL), _) if self.memory_kill => {
                Failure::new(FailureReason::OutOfMemory, "the kernel killed the process for its memory")
            }
            _ if tells_of_memory(line) => Failure::new(FailureReason::OutOfMemory, line.to_owned()),
            (Some(signal), _) => Failure::new(
                FailureReason::KilledBySignal,
                format!("the process was killed by signal {signal}"),
            ),
            _ if stopped => Failure::new(
                FailureReason::KilledBySignal,
                "a signal that the server did not send stopped the process",
            ),
            (None, code) => {
                let code = code.map_or_else(String::new, |code| format!(" with exit code {code}"));
                let line = if line.is_empty() { String::new() } else { format!("; its last words: {line}") };
                Failure::new(FailureReason::Crashed, format!("the process ended{code}{line}"))
            }
        }
    }
}

/// Whether the last output of a process shows that it ran out of memory, in the wording of Rust, C++, libtorch and
/// libgomp. A thread that cannot be started lacks room for its stack.
pub fn tells_of_memory(words: &str) -> bool {
    let known = [
        "memory allocation of ",
        "bad_alloc",
        "not enough memory",
        "can't allocate memory",
        "failed to spawn thread",
        "Thread creation failed",
    ];
    known.iter().any(|text| words.contains(text))
}

/// Moves a job from the end of an attempt to its next state: its end, or another attempt.
///
/// # Errors
/// The job is in a state in which it has no process.
pub fn settle(edit: &mut Edit, outcome: AttemptOutcome, attempts_max: u32) -> Result<(), Refused> {
    let failure = match outcome {
        AttemptOutcome::Finished { model } => return edit.change(Change::Finish { model }),
        AttemptOutcome::Stopped => return edit.change(Change::Stop),
        AttemptOutcome::Failed(failure) => failure,
    };
    let attempt = edit.job().attempt;
    edit.log(format!("attempt {attempt} failed ({}): {failure}", failure.reason.name()));
    let fruitless = edit.count_attempt();
    if !failure.reason.is_passing() {
        return edit.change(Change::Fail(failure));
    }
    if fruitless < attempts_max {
        return edit.change(Change::Retry);
    }
    let gave_up = format!("{failure}; given up after {fruitless} attempts without a further checkpoint");
    edit.change(Change::Fail(Failure::new(failure.reason, gave_up)))
}

/// The processes that the kernel has killed for their memory, where that can be detected.
#[derive(Debug)]
pub struct MemoryKills {
    /// Of this control group if there is one, else of the whole machine.
    file: Option<String>,
    seen: u64,
}

impl MemoryKills {
    pub fn now() -> Self {
        let group = fs::read_to_string("/proc/self/cgroup").ok();
        let group = group.and_then(|text| Some(text.lines().find_map(|l| l.strip_prefix("0::"))?.to_owned()));
        let group = group.map(|path| format!("/sys/fs/cgroup{path}/memory.events"));
        let files = group.into_iter().chain(["/proc/vmstat".to_owned()]);
        let file = files.into_iter().find(|file| count(file).is_some());
        let seen = file.as_deref().and_then(count).unwrap_or(0);
        Self { file, seen }
    }

    /// Forgets the kills until now.
    pub fn look(&mut self) {
        self.seen = self.file.as_deref().and_then(count).unwrap_or(self.seen);
    }

    /// Whether there was one since the last look.
    pub fn happened(&self) -> bool {
        self.file.as_deref().and_then(count).is_some_and(|count| count > self.seen)
    }
}

fn count(file: &str) -> Option<u64> {
    kills(&fs::read_to_string(file).ok()?)
}

fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::job::{Job, JobId, JobKey, JobSpec};
    use super::super::state::JobState;
    use super::*;
    use crate::gallery::Time;

    fn exited(code: i32) -> Death {
        Death {
            words: None,
            last_line: None,
            exit: ExitStatus::from_raw(code << 8),
            asked: false,
            silent: None,
            memory_kill: false,
        }
    }

    fn killed(signal: i32) -> Death {
        Death { exit: ExitStatus::from_raw(signal), ..exited(0) }
    }

    #[test]
    fn every_death_has_its_reason() {
        let said = |reason| Some(ExitReport::Failed(Failure::new(reason, "x")));
        let line = |line: &str| Some(line.to_owned());
        for (death, expected, part) in [
            (exited(0), FailureReason::Crashed, "exit code 0"),
            (
                Death { last_line: line("panicked"), ..exited(101) },
                FailureReason::Crashed,
                "101; its last words: panicked",
            ),
            (killed(9), FailureReason::KilledBySignal, "signal 9"),
            (killed(11), FailureReason::KilledBySignal, "signal 11"),
            (Death { memory_kill: true, ..killed(9) }, FailureReason::OutOfMemory, "kernel"),
            (Death { memory_kill: true, ..killed(11) }, FailureReason::KilledBySignal, "signal 11"),
            (
                Death { last_line: line("memory allocation of 8 bytes failed"), ..killed(6) },
                FailureReason::OutOfMemory,
                "of 8 bytes",
            ),
            (
                Death { last_line: line("  what():  std::bad_alloc"), ..killed(6) },
                FailureReason::OutOfMemory,
                "bad_alloc",
            ),
            (
                Death { last_line: line("libgomp: Thread creation failed: x"), ..exited(1) },
                FailureReason::OutOfMemory,
                "libgomp",
            ),
            (Death { last_line: line("assertion"), ..killed(6) }, FailureReason::KilledBySignal, "signal 6"),
            (Death { silent: Some(Duration::from_secs(2)), ..killed(9) }, FailureReason::Hung, "for 2 s"),
            (Death { words: said(FailureReason::DiskFull), ..exited(1) }, FailureReason::DiskFull, "x"),
            (Death { words: said(FailureReason::Diverged), ..killed(9) }, FailureReason::Diverged, "x"),
            (
                Death { words: Some(ExitReport::Stopped), ..exited(0) },
                FailureReason::KilledBySignal,
                "did not send",
            ),
            (
                Death { words: Some(ExitReport::Finished { model: "?".into() }), ..exited(0) },
                FailureReason::Crashed,
                "digest",
            ),
        ] {
            match death.outcome() {
                AttemptOutcome::Failed(failure) => {
                    assert_eq!(failure.reason, expected, "{death:?}");
                    assert!(failure.message.contains(part), "{}", failure.message);
                }
                other => panic!("{death:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn whoever_was_asked_to_stop_has_stopped_unless_it_has_finished() {
        let model = ModelDigest::new([7; 32]);
        let finished = Some(ExitReport::Finished { model: model.to_string() });
        let asked = |death: Death| Death { asked: true, ..death }.outcome();
        assert_eq!(asked(killed(9)), AttemptOutcome::Stopped);
        assert_eq!(asked(Death { words: Some(ExitReport::Stopped), ..exited(0) }), AttemptOutcome::Stopped);
        assert_eq!(asked(Death { words: finished, ..killed(9) }), AttemptOutcome::Finished { model });
    }

    #[test]
    fn what_passes_is_tried_again_a_bounded_number_of_times() {
        let key = JobKey { tenant: "a".into(), id: JobId::new(1) };
        let job = Job { state: JobState::Running, ..Job::new(key, JobSpec::default(), Time::from_nanos(0)) };
        let mut edit = Edit::new(job.clone(), Time::from_nanos(1));
        let killed = || AttemptOutcome::Failed(Failure::new(FailureReason::KilledBySignal, "signal 9"));
        for attempt in 2..=3 {
            settle(&mut edit, killed(), 3).expect("legal");
            assert_eq!((&edit.job().state, edit.job().attempt), (&JobState::Queued, attempt));
            edit.change(Change::Start).expect("legal");
        }
        settle(&mut edit, killed(), 3).expect("legal");
        let JobState::Failed(failure) = &edit.job().state else { panic!("{:?}", edit.job().state) };
        assert_eq!(failure.reason, FailureReason::KilledBySignal);
        assert!(failure.message.ends_with("after 3 attempts without a further checkpoint"));

        let mut edit = Edit::new(job, Time::from_nanos(1));
        settle(&mut edit, AttemptOutcome::Failed(Failure::new(FailureReason::OutOfMemory, "x")), 3)
            .expect("legal");
        assert!(edit.job().state.is_ended());
    }

    #[test]
    fn the_kernels_count_is_read_wherever_it_stands() {
        assert_eq!(kills("low 0\noom 3\noom_kill 2\n"), Some(2));
        assert_eq!(kills("nr_free_pages 1\noom_kill 17\n"), Some(17));
        assert_eq!(kills("oom_group_kill 1\n"), None);
    }
}
