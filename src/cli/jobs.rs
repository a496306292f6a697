//! `shipreid jobs`: the training jobs of a running server.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use shipreid::client::{Beginning, Client, Follower, state_name};
use shipreid::job_page::{History, page};
use shipreid::wire::train_event::Event;
use shipreid::wire::{JobState, TrainEvent, TrainingJob};

use super::confirm::ConfirmFlag;
use super::destination::ForceFlag;
use super::json::JsonFlag;
use super::live::{Notice, Until, Watched, line_of_delivered, lines_of_start, watch, watch_to_the_end};
use super::{Failure, ServerFlag, output};

#[derive(Subcommand)]
pub enum Jobs {
    /// Lists jobs, newest first.
    List {
        /// In this state only: queued, running, cancelling, cancelled, failed, finished or interrupted. May be repeated.
        #[arg(long = "state", value_name = "STATE", value_parser = state)]
        states: Vec<JobState>,
        #[command(flatten)]
        json: JsonFlag,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Shows one job, what it started from and which checkpoint its model has; with --json also its configuration and
    /// every evaluation.
    Show {
        /// Its id, as job-3.
        job: String,
        #[command(flatten)]
        json: JsonFlag,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Watches a job until it ends: exit code 0 when it has produced its model, 1 when it failed, 3 when it was
    /// cancelled. Ctrl-C leaves it running.
    Watch {
        /// Its id, as job-3.
        job: String,
        /// The first event to show; default: the oldest.
        #[arg(long, value_name = "N")]
        from: Option<u64>,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Asks a job to save a checkpoint and stop.
    Cancel(Named),
    /// Resumes a job from its last checkpoint.
    Resume(Named),
    /// Deletes a job that has ended, with its checkpoints. Final.
    Delete {
        /// Its id, as job-3.
        job: String,
        #[command(flatten)]
        confirm: ConfirmFlag,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Prints the log of a job.
    Logs {
        /// Its id, as job-3.
        job: String,
        /// Keeps printing until the job ends.
        #[arg(long)]
        follow: bool,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Writes a report of a job as one HTML page: curves, evaluations, sample rankings, configuration, log.
    Report {
        /// Its id, as job-3.
        job: String,
        /// File to write; default: JOB.html.
        #[arg(long, value_name = "FILE.html")]
        out: Option<PathBuf>,
        #[command(flatten)]
        force: ForceFlag,
        #[command(flatten)]
        server: ServerFlag,
    },
}

/// A job of a server.
#[derive(Args)]
pub struct Named {
    /// Its id, as job-3.
    job: String,
    #[command(flatten)]
    server: ServerFlag,
}

impl Jobs {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::List { states, json, server } => {
                json.print(&server.connect().await?.list_training_jobs(&states).await?, table);
            }
            Self::Show { job, json, server } => {
                let job = server.connect().await?.training_job(&job).await?;
                json.print(std::slice::from_ref(&job), table);
                if !json.is_given() {
                    let start = job.starting_point.iter().flat_map(lines_of_start);
                    start.chain(job.delivered_checkpoint.iter().map(line_of_delivered)).for_each(output::say);
                }
            }
            Self::Watch { job, from, server } => {
                let beginning = from.map_or(Beginning::Oldest, Beginning::Event);
                let follower = server.connect().await?.watch_training(&job, beginning);
                return watch_to_the_end(follower, &server.endpoint()?).await;
            }
            Self::Cancel(Named { job, server }) => {
                tell(&server.connect().await?.cancel_training(&job).await?);
            }
            Self::Resume(Named { job, server }) => {
                tell(&server.connect().await?.resume_training(&job).await?);
            }
            Self::Delete { job, confirm, server } => {
                confirm.confirm(&format!("delete {job} with its checkpoints"))?;
                server.connect().await?.delete_training(&job).await?;
                output::say(format_args!("{job} is deleted"));
            }
            Self::Logs { job, follow, server } => logs(&server.connect().await?, &job, follow).await?,
            Self::Report { job, out, force, server } => {
                let out = out.unwrap_or_else(|| PathBuf::from(format!("{job}.html")));
                force.check(&out)?;
                let page = report(&server.connect().await?, &job).await?;
                force.write_bytes(&out, page)?;
                output::say(out.display());
            }
        }
        Ok(())
    }
}

fn state(text: &str) -> Result<JobState, String> {
    let named = JobState::from_str_name(&format!("JOB_STATE_{}", text.to_uppercase()));
    named.filter(|state| *state != JobState::Unspecified).ok_or_else(|| {
        "expected queued, running, cancelling, cancelled, failed, finished or interrupted".into()
    })
}

fn tell(job: &TrainingJob) {
    output::say(format_args!("{} is {}", job.job_id, state_name(job.state())));
}

async fn logs(client: &Client, job: &str, follow: bool) -> anyhow::Result<()> {
    let until = if follow { Until::End } else { Until::Event(client.training_job(job).await?.last_event) };
    read(&mut client.watch_training(job, Beginning::Oldest), until, &mut |event| {
        if let Some(Event::LogLine(line)) = &event.event {
            output::say(line);
        }
    })
    .await?;
    Ok(())
}

async fn report(client: &Client, job: &str) -> anyhow::Result<String> {
    let known = client.training_job(job).await?;
    let mut history = History::default();
    let mut follower = client.watch_training(job, Beginning::Oldest);
    let ended = read(&mut follower, Until::Event(known.last_event), &mut |event| history.add(event)).await?;
    Ok(page(&ended.unwrap_or(known), &history))
}

/// Reads events without a live bar; returns the job if it has ended.
async fn read(
    follower: &mut Follower,
    until: Until,
    take: &mut dyn FnMut(&TrainEvent),
) -> anyhow::Result<Option<TrainingJob>> {
    let mut see = |seen: Notice| match seen {
        Notice::Event(event) => take(event),
        Notice::Lost { cause, wait } => {
            output::remark(format_args!("connection lost: {cause}; retrying in {:.1} s", wait.as_secs_f64()));
        }
        Notice::Back => output::remark("reconnected"),
    };
    match watch(follower, until, &mut see).await? {
        Watched::Ended(job) => Ok(Some(*job)),
        Watched::Read => Ok(None),
        Watched::Left => bail!("interrupted"),
    }
}

fn table(jobs: &[TrainingJob]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "job", "name", "state", "attempt", "epoch", "step", "loss", "mAP", "created", "outcome",
    ]);
    for job in jobs {
        let progress = job.progress.clone().unwrap_or_default();
        let all = job.evaluations.iter().find(|result| result.protocol == "all");
        let of = |done: u64, all: u64| if all == 0 { String::new() } else { format!("{done}/{all}") };
        let outcome = if job.failure_reason.is_empty() {
            job.model.chars().take(12).collect()
        } else {
            job.failure_reason.clone()
        };
        table.add_row([
            job.job_id.clone(),
            job.display_name.clone(),
            match job.state() {
                // Only its name is known.
                JobState::Unspecified => "damaged".to_owned(),
                state => state_name(state),
            },
            job.attempt.to_string(),
            of(progress.epoch.into(), progress.epochs_total.into()),
            of(progress.step, progress.steps_total),
            progress.losses.get("total").map_or_else(String::new, |loss| format!("{loss:.3}")),
            all.or(job.evaluations.first())
                .map_or_else(String::new, |result| format!("{:.1} %", result.map * 100.0)),
            job.created_at
                .map_or_else(String::new, |at| prost_types::Timestamp { nanos: 0, ..at }.to_string()),
            outcome,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_told_by_its_name() {
        assert_eq!(state("running"), Ok(JobState::Running));
        assert_eq!(state("Cancelled"), Ok(JobState::Cancelled));
        for text in ["", "unspecified", "done"] {
            assert!(state(text).is_err(), "{text}");
        }
    }
}
