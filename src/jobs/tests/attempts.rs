//! The outcome of an attempt, by the messages of its process and how it ends.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::jobs::report::Rankings;
use crate::postgres::Fence;
use crate::reason::FailureReason;

#[tokio::test]
async fn a_process_is_heard_out_to_its_end_whatever_else_it_writes() {
    let model = ModelDigest::new([0xab; 32]);
    let script = format!(
        r#"
        echo '{{"begun":{{"steps":0}}}}'
        echo 'not of the protocol'
        echo '{{"progress":{{"step":1,"steps_total":1,"epoch":1,"epochs_total":1,"losses":{{"total":0.5}},
            "accuracy":null,"learning_rate":0.1,"images_per_second":3.0,"seconds_left":0.0,"step_seconds":1.0}}}}' |
            tr -d '\n'
        echo
        echo 'for people' >&2
        echo '{{"sync":{{"number":7}}}}'
        read stored
        echo "stored $stored" >&2
        printf '{{"finished":{{"model":"{model}"}}}}\nlast'
        "#
    );
    let stage = Stage::new(&script).await;
    let (job, events) = stage.ended(&stage.order().await).await;
    assert_eq!(job.state, JobState::Finished { model });
    let mut lines = logged(&events);
    lines.sort_unstable();
    assert_eq!(lines, ["for people", "last", "not of the protocol", "stored 7"]);
    assert_eq!(job.progress.map(|progress| progress.step), Some(1));
    assert!(events.iter().map(|event| event.number).eq(1..=events.len() as u64));
    let log = std::fs::read_to_string(stage.folder.path().join("job-1/log.txt")).expect("a log");
    assert!(log.contains("for people\n") && log.contains("stored 7\n"), "{log}");
}

#[tokio::test]
async fn rankings_become_an_event_and_a_job_goes_on_without_those_that_cannot_be_read() {
    let model = ModelDigest::new([1; 32]);
    let script = format!(
        r#"
        echo '{{"rankings":{{"epoch":0}}}}'
        echo '{{"sync":{{"number":1}}}}'
        read stored
        printf 'a picture' > rankings.png
        echo '{{"rankings":{{"epoch":1}}}}'
        echo '{{"sync":{{"number":2}}}}'
        read stored
        head -c 2097153 /dev/zero > rankings.png
        echo '{{"rankings":{{"epoch":2}}}}'
        echo '{{"finished":{{"model":"{model}"}}}}'
        "#
    );
    let stage = Stage::new(&script).await;
    let (job, events) = stage.ended(&stage.order().await).await;
    assert_eq!(job.state, JobState::Finished { model });
    let shown = events.into_iter().filter_map(|event| match event.payload {
        EventPayload::Run(RunEvent::Rankings(rankings)) => Some(rankings),
        _ => None,
    });
    assert_eq!(shown.collect::<Vec<_>>(), [Rankings { epoch: 1, png: b"a picture".to_vec() }]);
}

#[tokio::test]
async fn a_killed_process_is_started_again_until_it_has_gained_nothing_too_often() {
    use StateName::{Failed, Queued, Running};
    let script = r#"
        grep -q 'attempt 1"' job.toml && echo '{"saved":{"step":5,"best":true}}'
        kill -9 $$
    "#;
    let stage = Stage::new(script).await;
    let (job, events) = stage.ended(&stage.order().await).await;
    assert_eq!(states(&events), [(1, Queued), (1, Running), (2, Queued), (2, Running), (2, Failed)]);
    let JobState::Failed(failure) = job.state else { panic!("{:?}", job.state) };
    assert_eq!(failure.reason, FailureReason::KilledBySignal);
    assert!(failure.message.contains("signal 9; given up after 2 attempts"), "{}", failure.message);
    assert_eq!(logged(&events)[0], "attempt 1 failed (KILLED_BY_SIGNAL): the process was killed by signal 9");
}

#[tokio::test]
async fn a_process_that_says_why_it_fails_is_believed_and_not_started_again() {
    let stage = Stage::new(r#"echo '{"failed":{"reason":"DISK_FULL","message":"no space"}}'; exit 1"#).await;
    assert_eq!(stage.failure().await, (FailureReason::DiskFull, "no space".into(), 1));
}

#[tokio::test]
async fn a_process_that_ends_without_a_word_has_crashed() {
    for (script, message) in [
        ("exit 0", "the process ended with exit code 0"),
        ("echo ouch >&2; exit 101", "the process ended with exit code 101; its last words: ouch"),
        ("echo '\"stopped\"'", "a signal that the server did not send stopped the process"),
    ] {
        let stage = Stage::with(script, |settings| settings.attempts_max = 1).await;
        let (_, found, _) = stage.failure().await;
        assert!(found.starts_with(message), "{found}");
    }
    let absent = Stage::with("", |settings| settings.program = "/nowhere/at/all".into()).await;
    let (reason, _, attempts) = absent.failure().await;
    assert_eq!((reason, attempts), (FailureReason::NotStarted, 2));
}

#[tokio::test]
async fn a_process_that_is_silent_for_too_long_is_killed() {
    let hung = |settings: &mut Settings| {
        settings.silence_max = Duration::from_millis(300);
        settings.attempts_max = 1;
    };
    let stage = Stage::with(&format!("{ALIVE}; exec sleep 100000"), hung).await;
    let (reason, message, _) = stage.failure().await;
    assert_eq!((reason, message.as_str()), (FailureReason::Hung, message.as_str()));
    assert!(message.starts_with("nothing was heard of the process for 0.3 s"), "{message}");
}

/// Has no space until a test frees some.
#[derive(Debug, Default)]
struct Full(AtomicBool);

impl ModelSink for Full {
    fn keep(&self, folder: &Path, model: ModelDigest, _: Option<Fence>) -> Result<(), Failure> {
        assert!(folder.ends_with("job-1/model") && model == ModelDigest::new([1; 32]));
        match self.0.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(Failure::new(FailureReason::ModelNotKept, "there are enough")),
        }
    }
}

#[tokio::test]
async fn a_job_whose_model_finds_no_room_fails_and_finishes_when_there_is_some() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    EmbeddedJobs::create(&Folder(folder.path().to_owned())).expect("writable");
    let (full, model) = (Arc::new(Full::default()), ModelDigest::new([1; 32]));
    let script = format!(r#"echo '{{"finished":{{"model":"{model}"}}}}'"#);
    let stage = Stage::kept_by(full.clone(), folder, &script, |_| {}).await;
    let key = stage.order().await;
    let (job, _) = stage.ended(&key).await;
    assert_eq!(job.state, JobState::Failed(Failure::new(FailureReason::ModelNotKept, "there are enough")));
    assert_eq!(job.attempt, 1, "trying again makes no room");

    full.0.store(true, Ordering::Relaxed);
    stage.repository.update(&key, |edit| edit.change(Change::Resume)).await.expect("legal");
    stage.supervisor.look().await;
    assert_eq!(stage.ended(&key).await.0.state, JobState::Finished { model });
}

#[tokio::test]
async fn the_chips_of_a_gallery_are_there_before_the_process_starts() {
    let script =
        r#"wc -l < chips/manifest.jsonl >&2; echo '{"failed":{"reason":"DIVERGED","message":"over"}}'"#;
    let stage = Stage::new(script).await;
    let name = GalleryName::new("harbour").expect("a name");
    let order = JobSpec { gallery: Some(name.clone()), ..JobSpec::default() };
    let ended = async || {
        let added = stage.repository.add("default".into(), order.clone()).await;
        let Ok(Added::New(job)) = added else { panic!("{added:?}") };
        stage.supervisor.look().await;
        let (job, events) = stage.ended(&job.key).await;
        let JobState::Failed(failure) = job.state else { panic!("{:?}", job.state) };
        (failure, logged(&events).into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let (failure, _) = ended().await;
    assert_eq!(failure.reason, FailureReason::DataMissing);
    let expected = "the gallery's chips cannot be copied: there is no gallery \"harbour\"";
    assert_eq!(failure.message, expected);
    let new =
        NewGallery { model: ModelDigest::new([7; 32]), dimension: 2, composition: None, keeps_chips: true };
    stage.galleries.create("default", &name, new).expect("made");
    let (failure, log) = ended().await;
    assert_eq!(failure.message, "over");
    let copied =
        "learning from 0 chips of the gallery; left out: 0 entries without a vessel id, 0 without a chip";
    assert_eq!(log[..2], [copied, "0"]);
}
