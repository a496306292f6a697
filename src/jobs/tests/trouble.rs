//! Stops, ends and a failing store, at moments at which they are easily lost.

use std::sync::OnceLock;

use tokio::runtime::Handle;
use tokio::task::{spawn_blocking, yield_now};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::durable::faults::{Failure as Fault, FaultyDisk};
use crate::jobs::chips;
use crate::jobs::hold::{Claimed, Hold};
use crate::jobs::outcome::AttemptOutcome;
use crate::jobs::slot::Slot;
use crate::jobs::spawner::Spawner;
use crate::jobs::store::{StoreError, UpdateError};
use crate::postgres::Fence;
use crate::reason::FailureReason;

fn placed(folder: &tempfile::TempDir) {
    EmbeddedJobs::create(&Folder(folder.path().to_owned())).expect("writable");
}

#[tokio::test]
async fn a_stop_that_comes_too_late_for_the_copy_of_chips_still_keeps_the_process_from_starting() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    placed(&folder);
    let (repository, galleries) = (repository(&folder, 1000), Arc::new(catalog(&folder)));
    let gallery = Some(GalleryName::new("harbour").expect("a name"));
    let Ok(Added::New(job)) =
        repository.add("default".into(), JobSpec { gallery, ..JobSpec::default() }).await
    else {
        panic!("no new job")
    };
    // The copy finds that there is nothing to do.
    std::fs::create_dir_all(folder.path().join("job-1/chips")).expect("writable");
    let slot = Slot {
        number: 0,
        repository,
        settings: Arc::new(settings(folder.path(), &galleries)),
        spawner: Spawner::start().expect("a thread"),
        model_sink: Arc::new(()),
    };
    let stop = CancellationToken::new();
    stop.cancel();
    let claimed = Claimed { hold: Hold::alone(job.key.clone()), job };
    assert_eq!(chips::fetch(&slot, &claimed, &stop).await, Err(AttemptOutcome::Stopped));
    assert_eq!(chips::fetch(&slot, &claimed, &CancellationToken::new()).await, Ok(()));
}

/// Accepts every model, while another task ends the job.
#[derive(Debug, Default)]
struct Overtaken(OnceLock<Arc<JobRepository>>);

impl ModelSink for Overtaken {
    fn keep(&self, _: &Path, _: ModelDigest, _: Option<Fence>) -> Result<(), Failure> {
        let repository = self.0.get().expect("set before the job was submitted");
        let key = JobKey { tenant: "default".into(), id: crate::jobs::JobId::new(1) };
        let fail = |edit: &mut crate::jobs::edit::Edit| {
            edit.change(Change::Fail(Failure::new(FailureReason::Crashed, "overtaken")))
        };
        Handle::current().block_on(repository.update(&key, fail)).expect("legal");
        Ok(())
    }
}

#[tokio::test]
async fn chips_stay_until_the_end_of_their_job_is_stored() {
    let model = ModelDigest::new([1; 32]);
    let script = format!(r#"mkdir chips; echo '{{"finished":{{"model":"{model}"}}}}'"#);
    for overtaken in [true, false] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        placed(&folder);
        let model_sink = Arc::new(Overtaken::default());
        let taking: Arc<dyn ModelSink> = if overtaken { model_sink.clone() } else { Arc::new(()) };
        let stage = Stage::kept_by(taking, folder, &script, |_| {}).await;
        model_sink.0.set(Arc::clone(&stage.repository)).expect("once");
        let key = stage.order().await;
        let (job, _) = stage.ended(&key).await;
        assert_eq!(matches!(job.state, JobState::Failed(_)), overtaken);
        // After the last action of the slot.
        stage.supervisor.drain().await;
        assert_eq!(stage.folder.path().join("job-1/chips").exists(), overtaken);
    }
}

/// Jobs on a disk that can fail.
fn repository_on_a_disk() -> (FaultyDisk, Arc<JobRepository>) {
    let disk = FaultyDisk::new(1);
    EmbeddedJobs::create(&disk).expect("writable");
    let bounds = Bounds { jobs_max: 10, events_retained_max: 1000 };
    let store = EmbeddedJobs::open(Box::new(disk.clone()), bounds).expect("a store");
    (disk, Arc::new(JobRepository::new(store).expect("readable")))
}

#[tokio::test]
async fn jobs_that_ran_come_back_when_a_disk_has_room_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = ModelDigest::new([1; 32]);
    let script = format!(r#"echo '{{"finished":{{"model":"{model}"}}}}'"#);
    let (disk, repository) = repository_on_a_disk();
    let key = add(&repository).await.key;
    repository.update(&key, |edit| edit.change(Change::Start)).await.expect("legal");
    disk.fail_after(0, Fault::NoRoom);
    let stage = Stage::of(repository, Arc::new(()), folder, &script, |_| {}).await;
    stage.supervisor.look().await;
    let job = stage.repository.get(&key).await.expect("readable").expect("known");
    assert_eq!(job.state, JobState::Running);
    disk.recover();
    stage.supervisor.look().await;
    assert_eq!(stage.ended(&key).await.0.state, JobState::Finished { model });
}

#[tokio::test]
async fn a_job_whose_cancellation_is_stored_late_is_stopped() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (disk, repository) = repository_on_a_disk();
    let stage = Stage::of(repository, Arc::new(()), folder, STOPS, |_| {}).await;
    let key = stage.order().await;
    stage.watch(&key, is_logged).await;
    disk.fail_after(0, Fault::Lasting);
    let cancelled = stage.repository.update(&key, |edit| edit.change(Change::Cancel)).await;
    assert!(matches!(cancelled, Err(UpdateError::Store(StoreError::Pending(_)))), "{cancelled:?}");
    disk.recover();
    stage.supervisor.look().await;
    assert_eq!(stage.ended(&key).await.0.state, JobState::Cancelled);
}

#[tokio::test]
async fn a_process_is_stopped_while_the_store_cannot_be_used() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = r#"
        trap 'echo asked > ../told; kill $!; exit 0' TERM
        echo ready >&2
        read go < ../go
        echo more >&2
        sleep 100000 >/dev/null 2>&1 & wait
    "#;
    for pipe in ["go", "told"] {
        let made = std::process::Command::new("mkfifo").arg(folder.path().join(pipe)).status();
        assert!(made.expect("mkfifo").success());
    }
    let (disk, repository) = repository_on_a_disk();
    let stage = Stage::of(repository, Arc::new(()), folder, script, |_| {}).await;
    let key = stage.order().await;
    stage.watch(&key, is_logged).await;

    disk.fail_after(0, Fault::Lasting);
    let go = stage.folder.path().join("go");
    spawn_blocking(move || std::fs::write(go, "go\n").expect("writable")).await.expect("no panic");
    while disk.refused() == 0 {
        yield_now().await;
    }
    let supervisor = stage.supervisor.clone();
    let draining = tokio::spawn(async move { supervisor.drain().await });
    let told = stage.folder.path().join("told");
    let told = spawn_blocking(move || std::fs::read_to_string(told)).await.expect("no panic");
    assert_eq!(told.expect("readable"), "asked\n");

    disk.restart_process();
    draining.await.expect("no panic");
    let job = stage.repository.get(&key).await.expect("readable").expect("known");
    assert_eq!(job.state, JobState::Interrupted);
}

#[tokio::test]
async fn a_disk_that_is_full_is_told_as_such_and_paths_begin_in_the_jobs_folder() {
    let stage = Stage::new("exit 0").await;
    let job = stage.folder.path().join("job-1");
    std::fs::create_dir(&job).expect("writable");
    std::os::unix::fs::symlink("/dev/full", job.join("job.toml")).expect("writable");
    let (reason, message, attempts) = stage.failure().await;
    assert_eq!((reason, attempts), (FailureReason::DiskFull, 1), "{message}");

    let said = r#"
        echo "$PWD/checkpoints/one is torn" >&2
        echo "{\"failed\":{\"reason\":\"DIVERGED\",\"message\":\"the last good checkpoint is $PWD/checkpoints/one\"}}"
    "#;
    let stage = Stage::new(said).await;
    let (job, events) = stage.ended(&stage.order().await).await;
    let JobState::Failed(failure) = job.state else { panic!("{:?}", job.state) };
    assert_eq!(failure.message, "the last good checkpoint is checkpoints/one");
    assert_eq!(logged(&events)[0], "checkpoints/one is torn");
}
