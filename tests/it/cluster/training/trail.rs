//! What training processes do, by their own words: every line that one says is noted in a file on its way to the server.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::torture::jobs::program;

/// In place of the training program, which it becomes. The order of lines in the file is that in which they were said.
const SCRIPT: &str = r#"#!/bin/bash
    folder=$3
    attempt=$(sed -n 's/^name = ".*, attempt \([0-9]*\)"$/\1/p' "$folder/job.toml")
    note() { printf '%s %s %s %s\n' "$folder" "$attempt" "$$" "$1" >>TRAIL; }
    note '"started"'
    exec PROGRAM "$@" > >(
        # Its server may be gone before it.
        trap '' PIPE
        while IFS= read -r line; do
            note "$line"
            printf '%s\n' "$line"
        done
        note '"ended"'
    )
"#;
const SUSPENDED: &str = "suspended ";
const WOKEN: &str = "woken ";

pub struct Trail {
    path: PathBuf,
    /// For `training.program`.
    pub program: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A server is stopped, and cannot end its processes until it is woken.
    Suspended {
        server: usize,
    },
    Woken {
        server: usize,
    },
    Process(Deed),
}

/// What a process has done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deed {
    pub job: u64,
    pub attempt: u32,
    pub server: usize,
    pub pid: i32,
    pub did: Did,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Did {
    Started,
    /// It goes on after so many steps.
    Begun(u64),
    Step(u64),
    /// A checkpoint after so many steps, in its own folder.
    Saved(u64),
    Ended,
    Other,
}

impl Trail {
    pub fn new(folder: &Path) -> Self {
        let path = folder.join("trail");
        let script = SCRIPT
            .replace("TRAIL", &path.display().to_string())
            .replace("PROGRAM", env!("CARGO_BIN_EXE_shipreid"));
        Self { path, program: program(folder.join("noted.sh"), &script) }
    }

    /// Forgets what was done, once no process is left.
    pub fn clear(&self) {
        std::fs::write(&self.path, "").unwrap();
    }

    /// Notes that a server is about to be stopped.
    pub fn suspend(&self, server: usize) {
        self.note(&format!("{SUSPENDED}{server}\n"));
    }

    /// Notes that a server goes on.
    pub fn wake(&self, server: usize) {
        self.note(&format!("{WOKEN}{server}\n"));
    }

    fn note(&self, line: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }

    /// All marks, in their order.
    pub fn marks(&self) -> Vec<Mark> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        // What follows the last end of a line is being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(mark).collect()
    }

    /// The processes that run, by the last that was heard of each job.
    pub fn running(&self) -> Vec<Deed> {
        let mut last: Vec<Deed> = vec![];
        for mark in self.marks() {
            let Mark::Process(deed) = mark else { continue };
            last.retain(|known| known.job != deed.job || known.attempt > deed.attempt);
            if last.iter().all(|known| known.job != deed.job) {
                last.push(deed);
            }
        }
        last.retain(|deed| !matches!(deed.did, Did::Started | Did::Ended));
        last
    }
}

fn mark(line: &str) -> Mark {
    if let Some(server) = line.strip_prefix(SUSPENDED) {
        return Mark::Suspended { server: server.parse().expect("a number") };
    }
    if let Some(server) = line.strip_prefix(WOKEN) {
        return Mark::Woken { server: server.parse().expect("a number") };
    }
    let words: Vec<&str> = line.splitn(4, ' ').collect();
    let [folder, attempt, pid, said] = words[..] else { panic!("{line:?}") };
    // SERVER/shared-jobs/job-NUMBER
    let mut folders = Path::new(folder).iter().rev().map(|name| name.to_str().unwrap());
    let (job, server) = (folders.next().unwrap(), folders.nth(1).unwrap());
    Mark::Process(Deed {
        job: job.trim_start_matches("job-").parse().expect("a number"),
        attempt: attempt.parse().expect("a number"),
        server: server.parse().expect("a number"),
        pid: pid.parse().expect("a number"),
        did: did(said),
    })
}

fn did(said: &str) -> Did {
    let Ok(said) = serde_json::from_str::<Value>(said) else { return Did::Other };
    let number = |what: &str, field: &str| said.get(what).and_then(|what| what.get(field)?.as_u64());
    match said.as_str() {
        Some("started") => return Did::Started,
        Some("ended") => return Did::Ended,
        _ => {}
    }
    let begun = number("begun", "steps").map(Did::Begun);
    let step = || number("progress", "step").map(Did::Step);
    let saved = || number("saved", "step").map(Did::Saved);
    begun.or_else(step).or_else(saved).unwrap_or(Did::Other)
}

#[test]
fn what_a_process_says_is_noted_with_its_number_and_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let job = folder.path().join("2/shared-jobs/job-7");
    std::fs::create_dir_all(&job).unwrap();
    std::fs::write(job.join("job.toml"), "name = \"job-7, attempt 3\"\nthreads = 1\n").unwrap();
    let said = concat!(
        "{\"begun\":{\"steps\":4}}\n",
        "{\"progress\":{\"step\":5,\"losses\":{\"total\":0.5}}}\n",
        "{\"saved\":{\"step\":5,\"best\":false}}\n",
        "\"alive\"\n",
    );
    let trail = Trail::new(folder.path());
    // Something that says what a training process would.
    let words = folder.path().join("words");
    std::fs::write(&words, said).unwrap();
    let speaker = program(folder.path().join("speaker.sh"), &format!("#!/bin/sh\ncat {}\n", words.display()));
    let script = std::fs::read_to_string(&trail.program).unwrap();
    let script = script.replace(env!("CARGO_BIN_EXE_shipreid"), &speaker.display().to_string());
    program(trail.program.clone(), &script);
    let mut command = std::process::Command::new(&trail.program);
    let output = command.args(["train", "--job"]).arg(&job).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), said);
    let marks = trail.marks();
    let deeds: Vec<Deed> = marks
        .into_iter()
        .map(|mark| match mark {
            Mark::Process(deed) => deed,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(deeds.iter().all(|deed| (deed.job, deed.attempt, deed.server) == (7, 3, 2)), "{deeds:?}");
    assert!(deeds.iter().all(|deed| deed.pid == deeds[0].pid), "{deeds:?}");
    let did: Vec<Did> = deeds.iter().map(|deed| deed.did).collect();
    assert_eq!(did, [Did::Started, Did::Begun(4), Did::Step(5), Did::Saved(5), Did::Other, Did::Ended]);
    assert_eq!(trail.running(), [], "it has ended");
}
