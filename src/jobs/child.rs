//! The protocol with a training process: a file of instructions, then a line of JSON on its standard output for each
//! event. Its standard input receives how much of that is stored.
//!
//! A process saves no checkpoint before everything up to it is stored, so that a run resumed from the checkpoint has no
//! gaps.

use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::report::RunEvent;

/// Files and folders of a job.
pub const INSTRUCTIONS: &str = "job.toml";
pub const CHECKPOINTS: &str = "checkpoints";
pub const MODEL: &str = "model";
pub const CHIPS: &str = "chips";

/// `job.toml`: everything that a training process needs to know in addition to the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instructions {
    /// Of the job and the attempt, for people.
    pub name: String,
    /// The tenant that owns the job.
    pub tenant: String,
    /// "cpu" or "cuda:N".
    pub device: String,
    /// Threads that compute, and at most as many that read images; at least 1.
    pub threads: usize,
    /// Processes that train together, each with these threads and limits.
    pub processes: usize,
    /// Added to the priority of the server.
    pub nice: i32,
    /// 0: no limit.
    pub memory_bytes_max: u64,
    /// How often the process sends a heartbeat.
    pub heartbeat_seconds: f64,
    /// How long it waits for an earlier process to leave the folder.
    pub lock_seconds_max: f64,
    /// Folders that contain data and starting points.
    pub data_roots: Vec<PathBuf>,
    /// Whether the data are the chips in the job's folder.
    pub from_chips: bool,
    /// The configuration as submitted.
    pub config_toml: String,
}

/// One line from a training process: a report of its run, or a message about the process itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildMessage {
    /// The run begins, or resumes after the steps of a checkpoint.
    Begun { steps: u64 },
    /// Nothing has happened, but the process is working.
    Alive,
    /// The process waits until everything before this is stored and it reads this number.
    Sync { number: u64 },
    #[serde(untagged)]
    Exit(ExitReport),
    #[serde(untagged)]
    Run(RunEvent),
}

/// How a process reports its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReport {
    /// The model with this digest is in the job's folder.
    Finished {
        model: String,
    },
    /// It was asked to stop, and has saved a checkpoint of its progress.
    Stopped,
    Failed(Failure),
}

impl Instructions {
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        fs::write(folder.join(INSTRUCTIONS), text)
    }

    /// # Errors
    /// The file cannot be read, or belongs to another release.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(folder.join(INSTRUCTIONS))?;
        toml::from_str(&text).map_err(|cause| io::Error::other(cause.message().to_owned()))
    }
}

/// The process's side of the protocol. The process ends as soon as the other side is closed.
#[derive(Clone, Debug)]
pub struct ChildChannel(Arc<ChannelState>);

#[derive(Debug)]
struct ChannelState {
    out: Mutex<Output>,
    /// The last number that was read.
    stored: Mutex<u64>,
    changed: Condvar,
}

#[derive(Debug)]
struct Output {
    file: File,
    syncs: u64,
}

impl ChildChannel {
    /// Uses the standard output, which from now on carries only the protocol: what other code writes there goes to
    /// standard error. Ends the process when its standard input closes.
    ///
    /// # Errors
    /// The standard output cannot be redirected.
    pub fn start() -> io::Result<Self> {
        let file = File::from(rustix::io::dup(rustix::stdio::stdout())?);
        rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
        let shared = ChannelState {
            out: Mutex::new(Output { file, syncs: 0 }),
            stored: Mutex::new(0),
            changed: Condvar::new(),
        };
        let channel = Self(Arc::new(shared));
        let listener = channel.clone();
        thread::Builder::new().name("parent".into()).spawn(move || listener.listen())?;
        Ok(channel)
    }

    pub fn say(&self, message: &ChildMessage) {
        write(&mut lock(&self.0.out).file, message);
    }

    /// Waits until all output is stored.
    pub fn sync(&self) {
        let number = {
            let mut out = lock(&self.0.out);
            out.syncs += 1;
            let number = out.syncs;
            write(&mut out.file, &ChildMessage::Sync { number });
            number
        };
        let stored = lock(&self.0.stored);
        let waited = self.0.changed.wait_while(stored, |stored| *stored < number);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn listen(&self) {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if let Ok(number) = line.trim().parse() {
                *lock(&self.0.stored) = number;
                self.0.changed.notify_all();
            }
        }
        vanish();
    }
}

fn write(file: &mut File, message: &ChildMessage) {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    if file.write_all(&line).is_err() {
        vanish();
    }
}

/// Ends this process immediately: its parent is gone, and the state it resumes from later is already on disk. Exit
/// handlers of libraries cannot delay it.
fn vanish() {
    let _ = kill_process(getpid(), Signal::KILL);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<RunEvent> for ChildMessage {
    fn from(event: RunEvent) -> Self {
        Self::Run(event)
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{Progress, Rankings, SavedCheckpoint};
    use super::*;
    use crate::evaluate::Evaluation;
    use crate::reason::FailureReason;

    #[test]
    fn a_saying_is_one_line_and_keeps_every_bit_of_a_loss() {
        let losses = [("total".to_owned(), 0.1 + 0.2), ("id".to_owned(), f64::MIN_POSITIVE)].into();
        for message in [
            ChildMessage::Begun { steps: 7 },
            RunEvent::Progress(Progress { step: 3, losses, accuracy: Some(0.5), ..Progress::default() })
                .into(),
            RunEvent::Evaluated(Evaluation {
                protocol: "all".into(),
                mean_average_precision: 1.0 / 3.0,
                ..Evaluation::default()
            })
            .into(),
            RunEvent::Rankings(Rankings { epoch: 2, png: Vec::new() }).into(),
            RunEvent::Saved(SavedCheckpoint { step: 3, best: true }).into(),
            RunEvent::Log("two\nlines".into()).into(),
            ChildMessage::Alive,
            ChildMessage::Sync { number: 1 },
            ChildMessage::Exit(ExitReport::Finished { model: "ab".into() }),
            ChildMessage::Exit(ExitReport::Stopped),
            ChildMessage::Exit(ExitReport::Failed(Failure::new(FailureReason::DiskFull, "two\nlines"))),
        ] {
            let line = serde_json::to_string(&message).expect("a line");
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<ChildMessage>(&line).expect("read"), message);
        }
        assert_eq!(serde_json::to_string(&ChildMessage::Alive).expect("a line"), "\"alive\"");
        let rankings = Rankings { epoch: 2, png: vec![1] };
        let line = serde_json::to_string(&ChildMessage::from(RunEvent::Rankings(rankings))).expect("a line");
        assert_eq!(line, r#"{"rankings":{"epoch":2}}"#, "a picture is longer than a line may be");
    }

    #[test]
    fn instructions_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let instructions = Instructions {
            name: "job-7, attempt 2".into(),
            tenant: "default".into(),
            device: "cpu".into(),
            threads: 2,
            processes: 2,
            nice: 10,
            memory_bytes_max: 0,
            heartbeat_seconds: 5.0,
            lock_seconds_max: 30.0,
            data_roots: vec!["/data".into()],
            from_chips: false,
            config_toml: "seed = 1\n[data]\nroot = \"a \\\" b\"\n".into(),
        };
        instructions.write(folder.path()).expect("writable");
        assert_eq!(Instructions::read(folder.path()).expect("readable"), instructions);
        assert!(Instructions::read(&folder.path().join("nowhere")).is_err());
    }
}
