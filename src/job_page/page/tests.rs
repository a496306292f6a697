//! The page of an invented job.

use std::collections::HashMap;

use super::*;
use crate::wire::train_event::Event;
use crate::wire::{DeliveredCheckpoint, SampleRankings, StartingPoint, TrainEvent, TrainProgress};

const START: i64 = 1_772_337_600;
const HOSTILE: &str = r#"</pre><script>alert("1")</script><img src=x onerror='x'>&"#;

/// A run that the server interrupted and resumed.
fn told() -> History {
    let mut history = History::default();
    let mut number = 0;
    let mut tell = |attempt, event| {
        number += 1;
        let occurred_at = Some(Timestamp { seconds: START + number as i64 * 2, nanos: 5 });
        history.add(&TrainEvent {
            number,
            attempt,
            occurred_at,
            event: Some(event),
            ..TrainEvent::default()
        });
    };
    tell(1, Event::Job(job(JobState::Running)));
    for step in 1..=60 {
        tell(1, Event::Progress(progress(step)));
    }
    tell(1, Event::Job(job(JobState::Interrupted)));
    for step in 41..=120 {
        tell(2, Event::Progress(progress(step)));
        if step % 20 == 0 {
            for (protocol, lead) in [("all", 0.0), ("o2s", 0.1), ("s2o", -0.05)] {
                tell(2, Event::Evaluation(evaluation(step as u32 / 20, protocol, lead)));
            }
            tell(2, Event::LogLine(format!("epoch {} is done", step / 20)));
        }
    }
    tell(2, Event::Rankings(SampleRankings { epoch: 6, png: b"\x89PNG".as_slice().into() }));
    tell(2, Event::Job(job(JobState::Finished)));
    history
}

fn job(state: JobState) -> TrainingJob {
    let at = |seconds| Some(Timestamp { seconds: START + seconds, nanos: 123 });
    TrainingJob {
        job_id: "job-17".into(),
        display_name: "Synthetic ships, small".into(),
        state: state.into(),
        attempt: 2,
        created_at: at(0),
        started_at: at(2),
        ended_at: (state == JobState::Finished).then(|| at(300)).flatten(),
        progress: Some(progress(120)),
        model: if state == JobState::Finished { "0123456789abcdef".repeat(4) } else { String::new() },
        config_toml: "seed = 1\n[schedule]\nepochs = 6\n".into(),
        starting_point: Some(StartingPoint {
            path: "vit.pth".into(),
            tensors_taken: 150,
            untaken_total: 2,
            tensors_kept: 3,
            kept: vec!["mie".into(), "bottleneck.weight".into()],
            ..StartingPoint::default()
        }),
        delivered_checkpoint: (state == JobState::Finished).then(|| DeliveredCheckpoint {
            epoch: 5,
            step: 100,
            choice: CheckpointChoice::Best.into(),
            metric: "map".into(),
            evaluation: Some(evaluation(5, "all", 0.0)),
        }),
        ..TrainingJob::default()
    }
}

fn progress(step: u64) -> TrainProgress {
    let id = 5.0 / (1.0 + step as f64 / 15.0) + 0.2 * (step as f64).sin();
    let losses = [("total", id + 0.4), ("id", id), ("triplet", 0.4)];
    let losses: HashMap<_, _> = losses.map(|(name, value)| (name.to_owned(), value)).into();
    TrainProgress {
        step,
        steps_total: 120,
        epoch: step.div_ceil(20) as u32,
        epochs_total: 6,
        losses,
        accuracy: Some(step as f64 / 150.0),
        learning_rate: 1e-3 * (1.0 - step as f64 / 130.0),
        images_per_second: 61.0,
        remaining: None,
        processes: 2,
        all_reduce: Some(prost_types::Duration { seconds: 0, nanos: 25_000_000 }),
    }
}

fn evaluation(epoch: u32, protocol: &str, lead: f64) -> EvaluationResult {
    let map = (0.1 * f64::from(epoch)).min(0.45) + lead;
    EvaluationResult {
        protocol: protocol.into(),
        epoch,
        map,
        rank1: map + 0.1,
        rank5: map + 0.2,
        rank10: map + 0.3,
        valid_queries: 50,
    }
}

#[test]
fn a_page_tells_what_became_of_the_job() {
    let page = page(&job(JobState::Finished), &told());
    for part in [
        "<title>Synthetic ships, small – shipreid</title>",
        "shipreid model activate 0123456789abcdef0123456789abcdef",
        "created 2026-03-01 04:00:00 ·",
        // The best in the first protocol, not in the easiest one.
        "<b>45.0 %</b><span>best mAP (all), epoch 6</span>",
        "<b>120 / 120</b>",
        "<b>2</b><span>processes that train together</span>",
        "<b>25 ms</b><span>all-reduce of the last step</span>",
        "1 to 60",
        "41 to 120",
        "attempt 2</text>",
        "data:image/png;base64,iVBORw==",
        "epochs = 6",
        "epoch 6 is done",
        r#"<tr class="best"><td>6</td><td>45.0</td>"#,
        "150 tensors taken, 2 of the file's not taken, 3 kept as they were (mie, bottleneck.weight, ...)",
        "after epoch 5 (step 100), the best by validation: mAP (all) 45.0 %.",
        "Made of the events 1 to",
    ] {
        assert!(page.contains(part), "{part} is missing in {page}");
    }
}

#[test]
fn a_job_that_failed_says_why_and_one_that_has_just_begun_says_little() {
    let failed = TrainingJob {
        failure_reason: "OUT_OF_MEMORY".into(),
        failure_message: "the kernel killed it at 2 GiB".into(),
        ..job(JobState::Failed)
    };
    let page_of = |job: &TrainingJob| page(job, &History::default());
    let page = page_of(&failed);
    assert!(page.contains("OUT_OF_MEMORY") && page.contains("the kernel killed it at 2 GiB"), "{page}");
    assert!(page.contains("shipreid jobs resume job-17"), "{page}");
    let page = page_of(&TrainingJob { job_id: "job-1".into(), ..TrainingJob::default() });
    assert!(
        page.contains("Nothing yet.") && page.contains("None yet.") && page.contains("No lines."),
        "{page}"
    );
}

#[test]
fn nothing_that_a_server_says_becomes_markup_and_nothing_is_fetched() {
    let hostile = || HOSTILE.to_owned();
    let mut history = told();
    let losses: HashMap<_, _> = [(hostile(), 1.0)].into();
    for event in [
        Event::LogLine(hostile()),
        Event::Evaluation(EvaluationResult { protocol: hostile(), ..evaluation(7, "", 0.0) }),
        Event::Progress(TrainProgress { step: 121, losses, ..TrainProgress::default() }),
        Event::Rankings(SampleRankings { epoch: 7, png: HOSTILE.as_bytes().into() }),
        Event::Job(TrainingJob { failure_message: hostile(), ..job(JobState::Failed) }),
    ] {
        history.add(&TrainEvent { number: 999, attempt: 3, event: Some(event), ..TrainEvent::default() });
    }
    let page = page(
        &TrainingJob {
            job_id: hostile(),
            display_name: hostile(),
            config_toml: hostile(),
            failure_reason: hostile(),
            failure_message: hostile(),
            model: hostile(),
            ..job(JobState::Failed)
        },
        &history,
    );
    assert!(page.matches("&lt;script&gt;").count() >= 8, "{page}");
    for part in ["<script", "<img src=x", "<link", "http:", "https:", "url(", "@import"] {
        assert!(!page.contains(part), "{part}");
    }
    // The style sheet and the page are complete.
    assert_eq!(page.matches("<style>").count(), 1);
    assert!(page.ends_with("</body></html>"));
}

#[test]
fn numbers_that_are_none_leave_the_pictures_whole() {
    let mut history = told();
    for value in [f64::NAN, f64::INFINITY, -0.0, 1e300] {
        let losses: HashMap<_, _> = [("total".to_owned(), value)].into();
        let event = Event::Progress(TrainProgress { step: 121, losses, ..progress(121) });
        history.add(&TrainEvent { number: 1000, attempt: 2, event: Some(event), ..TrainEvent::default() });
        let result = EvaluationResult { map: value, ..evaluation(8, "all", 0.0) };
        let event = Event::Evaluation(result);
        history.add(&TrainEvent { number: 1001, attempt: 2, event: Some(event), ..TrainEvent::default() });
    }
    let page = page(&job(JobState::Finished), &history);
    let pictures: Vec<&str> = page.match_indices("points=\"").map(|(at, _)| &page[at..at + 60]).collect();
    assert!(pictures.iter().all(|points| !points.contains("NaN") && !points.contains("inf")), "{pictures:?}");
}
