//! The page itself: the job's outcome, its curves, its evaluations, its configuration and its log.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use indicatif::HumanDuration;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use prost_types::Timestamp;

use super::chart::{Chart, Curve, Dots, Unit};
use super::history::{ACCURACY, Attempt, History, RATE, Rankings};
use crate::client::state_name;
use crate::wire::{CheckpointChoice, EvaluationResult, JobState, TrainingJob};

const STYLE: &str = include_str!("page.css");
/// Nothing is fetched and no script runs, whatever a name or a log line contains.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// The page of `job`, whose events are in `history`. Every text from a server or its user is escaped.
pub fn page(job: &TrainingJob, history: &History) -> String {
    let body = html! {
        (head(job))
        (outcome(job))
        (origin(job))
        (tiles(job, history))
        (charts(history))
        (evaluations(history))
        @if let Some(rankings) = &history.rankings { (sample_rankings(rankings)) }
        (attempts(history))
        h2 { "Configuration" }
        pre { (job.config_toml.trim_end()) }
        h2 { "Log" }
        (log(history))
        (foot(history))
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (name(job)) " – shipreid" }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}

fn name(job: &TrainingJob) -> &str {
    if job.display_name.is_empty() { &job.job_id } else { &job.display_name }
}

fn head(job: &TrainingJob) -> Markup {
    let told = [("created", job.created_at), ("started", job.started_at), ("ended", job.ended_at)];
    html! {
        header {
            h1 { (name(job)) }
            span class=(format!("state {}", mood(job.state()))) { (state_name(job.state())) }
        }
        p.quiet {
            "Training job " code { (job.job_id) } ", attempt " (job.attempt)
            @for (what, at) in told {
                @if let Some(at) = at { " · " (what) " " (time(at)) }
            }
            " (UTC)"
        }
    }
}

/// The colour of a state.
fn mood(state: JobState) -> &'static str {
    match state {
        JobState::Finished => "good",
        JobState::Failed => "bad",
        JobState::Queued | JobState::Running | JobState::Cancelling | JobState::Interrupted => "busy",
        JobState::Cancelled | JobState::Unspecified => "quiet",
    }
}

/// The outcome, and what to do next.
fn outcome(job: &TrainingJob) -> Markup {
    let (words, then, command) = match job.state() {
        JobState::Finished => ("It produced the model", "To activate it", "model activate"),
        JobState::Failed => ("It failed", "To resume from its last checkpoint", "jobs resume"),
        JobState::Cancelled => ("It was cancelled", "To resume from its last checkpoint", "jobs resume"),
        JobState::Interrupted => {
            ("The server stopped; the job resumes by itself", "To watch it", "jobs watch")
        }
        JobState::Queued | JobState::Running | JobState::Cancelling | JobState::Unspecified => {
            ("It has not ended yet", "To watch it", "jobs watch")
        }
    };
    let subject = if job.state() == JobState::Finished { &job.model } else { &job.job_id };
    html! {
        div class=(format!("outcome {}", mood(job.state()))) {
            p {
                (words)
                @if !job.model.is_empty() { " " code { (job.model) } }
                @if !job.failure_reason.is_empty() { ": " b { (job.failure_reason) } }
                @if !job.failure_message.is_empty() { ": " (job.failure_message) }
            }
            p.quiet { (then) ": " code { "shipreid " (command) " " (subject) } }
        }
    }
}

/// What the run started from, and which checkpoint its model has.
fn origin(job: &TrainingJob) -> Markup {
    html! {
        @if let Some(start) = &job.starting_point {
            p.quiet {
                "It started from " code { (start.path) } ": " (start.tensors_taken) " tensors taken, "
                (start.untaken_total) " of the file's not taken, " (start.tensors_kept) " kept as they were"
                @if !start.kept.is_empty() { " (" (start.kept.join(", "))
                    @if start.tensors_kept as usize > start.kept.len() { ", ..." } ")" }
                @if !start.warning.is_empty() { ". " b { "Warning: " } (start.warning) }
                "."
            }
        }
        @if let Some(delivered) = &job.delivered_checkpoint {
            p.quiet {
                "Its model has the checkpoint after epoch " (delivered.epoch) " (step " (delivered.step) ")"
                @match (delivered.choice(), &delivered.evaluation) {
                    (CheckpointChoice::Best, Some(evaluation)) => {
                        ", the best by validation: mAP (" (evaluation.protocol) ") " (percent(evaluation.map))
                    }
                    (CheckpointChoice::Best, None) => ", the best by validation",
                    (CheckpointChoice::Last, _) => ", the last one",
                    (CheckpointChoice::Unspecified, _) => "",
                }
                "."
            }
        }
    }
}

fn tiles(job: &TrainingJob, history: &History) -> Markup {
    let progress = job.progress.clone().unwrap_or_default();
    let mut tiles = Vec::new();
    if let Some(best) = history.best() {
        tiles.push((percent(best.map), format!("best mAP ({}), epoch {}", best.protocol, best.epoch)));
        tiles.push((percent(best.rank1), format!("R1 ({}), epoch {}", best.protocol, best.epoch)));
    }
    if let Some(loss) = progress.losses.get("total") {
        tiles.push((Unit::Number.write(*loss), "last loss".into()));
    }
    if progress.steps_total > 0 {
        let steps = format!("{} / {}", progress.step, progress.steps_total);
        tiles.push((steps, format!("steps, epoch {} of {}", progress.epoch, progress.epochs_total)));
        tiles.push((format!("{:.0}", progress.images_per_second), "images per second, last".into()));
        if progress.processes > 1 {
            tiles.push((progress.processes.to_string(), "processes that train together".into()));
        }
        if let Some(all_reduce) = progress.all_reduce.and_then(|took| Duration::try_from(took).ok()) {
            let milliseconds = format!("{:.0} ms", all_reduce.as_secs_f64() * 1e3);
            tiles.push((milliseconds, "all-reduce of the last step".into()));
        }
    }
    if let Some(seconds) = seconds_between(job.started_at, job.ended_at.or(history.last_at)) {
        let words = format!("{}", HumanDuration(Duration::from_secs(seconds)));
        tiles.push((words, "since the first start".into()));
    }
    html! {
        div.tiles { @for (value, what) in tiles { div { b { (value) } span { (what) } } } }
    }
}

fn charts(history: &History) -> Markup {
    let steps = &history.steps;
    let lines = |names: &[&str], shown: fn(&str) -> String| -> Vec<Curve> {
        let curve = |name: &&str| Curve { name: shown(name), points: steps.curve(name), dots: Dots::None };
        names.iter().map(curve).filter(|curve| !curve.points.is_empty()).collect()
    };
    let again = history.attempts.iter().skip(1);
    let marks: Vec<(f64, String)> = again
        .filter_map(|(number, attempt)| Some((attempt.steps?.0 as f64, format!("attempt {number}"))))
        .collect();
    let x_label = match steps.width() {
        1 => "step".to_owned(),
        width => format!("step (a point is the mean of {width})"),
    };
    let over_steps = |title, width, unit, curves| {
        Chart { title, width, height: 240.0, x_label: &x_label, unit, curves, marks: marks.clone() }.render()
    };
    html! {
        h2 { "Curves" }
        div.charts {
            (over_steps("Loss", 1000.0, Unit::Number, lines(&steps.losses(), str::to_owned)))
            @if !history.evaluations.is_empty() {
                (evaluation_chart("mAP", history, |result| result.map))
                (evaluation_chart("R1", history, |result| result.rank1))
            }
            (over_steps("Learning rate", 490.0, Unit::Scientific, lines(&[RATE], |_| "rate".into())))
            @if !steps.curve(ACCURACY).is_empty() {
                (over_steps("Batch accuracy", 490.0, Unit::Percent, lines(&[ACCURACY], |_| "accuracy".into())))
            }
        }
    }
}

/// One value of the evaluations over epochs, one curve per protocol.
fn evaluation_chart(title: &str, history: &History, value: fn(&EvaluationResult) -> f64) -> Markup {
    let curve = |protocol: &str| {
        let of_protocol = history.evaluations.values().filter(|result| result.protocol == protocol);
        let points = of_protocol.map(|result| (f64::from(result.epoch), value(result)));
        let points = points.filter(|(_, value)| value.is_finite()).collect();
        Curve { name: protocol.to_owned(), points, dots: Dots::Shown }
    };
    let curves = history.protocols().into_iter().map(curve).collect();
    Chart {
        title,
        width: 490.0,
        height: 240.0,
        x_label: "epoch",
        unit: Unit::Percent,
        curves,
        marks: Vec::new(),
    }
    .render()
}

fn evaluations(history: &History) -> Markup {
    let protocols = history.protocols();
    let mut epochs: Vec<u32> = history.evaluations.keys().map(|(epoch, _)| *epoch).collect();
    epochs.dedup();
    let best = history.best().map(|best| best.epoch);
    let result = |epoch: u32, protocol: &str| history.evaluations.get(&(epoch, protocol.to_owned()));
    let values = |found: Option<&EvaluationResult>| -> [String; 4] {
        let shares = found.map(|result| [result.map, result.rank1, result.rank5, result.rank10]);
        shares.map_or_else(Default::default, |shares| shares.map(|share| format!("{:.1}", share * 100.0)))
    };
    html! {
        h2 { "Evaluations" @if !epochs.is_empty() { span.quiet { " in percent" } } }
        @if epochs.is_empty() {
            p.nothing { "None yet." }
        } @else {
            div.wide { table {
                thead {
                    tr { th {} @for protocol in &protocols { th.group colspan="4" { (protocol) } } }
                    tr {
                        th { "epoch" }
                        @for _ in &protocols { th.first { "mAP" } th { "R1" } th { "R5" } th { "R10" } }
                    }
                }
                tbody {
                    @for epoch in epochs {
                        tr.best[best == Some(epoch)] {
                            td { (epoch) }
                            @for protocol in &protocols {
                                @for value in values(result(epoch, protocol)) { td { (value) } }
                            }
                        }
                    }
                }
            } }
        }
    }
}

fn sample_rankings(rankings: &Rankings) -> Markup {
    html! {
        h2 { "Sample rankings" }
        figure {
            img.sheet alt="Queries and the best of the gallery for each"
                src=(format!("data:image/png;base64,{}", BASE64_STANDARD.encode(&rankings.png)));
            figcaption {
                "After epoch " (rankings.epoch) ": a query a row, framed in white, then the best of the gallery; "
                "framed in green where it is the same ship, in red where it is another."
            }
        }
    }
}

fn attempts(history: &History) -> Markup {
    let row = |(number, attempt): (&u32, &Attempt)| {
        let steps = attempt.steps.map_or_else(String::new, |(first, last)| format!("{first} to {last}"));
        let ended = attempt.ended.as_ref();
        html! {
            tr {
                td { (number) }
                td.words { @if let Some(at) = attempt.began_at { (time(at)) } }
                td.words { @if let Some(at) = ended.and_then(|ended| ended.at) { (time(at)) } }
                td.words { (steps) }
                td.words { @if let Some(ended) = ended {
                    (state_name(ended.state)) @if !ended.reason.is_empty() { ", " (ended.reason) }
                } }
            }
        }
    };
    html! {
        h2 { "Attempts" }
        div.wide { table {
            thead { tr {
                th { "attempt" } th.words { "from" } th.words { "to" } th.words { "steps" } th.words { "end" }
            } }
            tbody { @for attempt in &history.attempts { (row(attempt)) } }
        } }
    }
}

fn log(history: &History) -> Markup {
    html! {
        @if history.log.is_empty() {
            p.nothing { "No lines." }
        } @else {
            pre { @for line in &history.log { (line) "\n" } }
        }
    }
}

fn foot(history: &History) -> Markup {
    html! {
        footer {
            "Made of the events " (history.first_event) " to " (history.last_event)
            @if let Some(at) = history.last_at { ", the last of which is of " (time(at)) }
            "."
            @if history.first_event > 1 { " The server has dropped those before." }
        }
    }
}

/// To the second.
fn time(at: Timestamp) -> String {
    Timestamp { nanos: 0, ..at }.to_string().replace('T', " ").replace('Z', "")
}

fn seconds_between(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<u64> {
    u64::try_from(to?.seconds - from?.seconds).ok()
}

fn percent(share: f64) -> String {
    Unit::Percent.write(share)
}

#[cfg(test)]
mod tests;
