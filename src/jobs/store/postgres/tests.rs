//! Jobs of several servers: who may run one, who may write, and what another server finds of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use futures_util::future::join_all;

use super::*;
use crate::jobs::event::EventPayload;
use crate::jobs::follow::followed;
use crate::jobs::hold::{Claimed, Hold};
use crate::jobs::report::RunEvent;
use crate::jobs::state::{Change, Refused};
use crate::postgres::files_in;
use crate::postgres::trial::Trial;

const BOUNDS: Bounds = Bounds { jobs_max: 100, events_retained_max: 1000 };
const NOW: Time = Time::from_nanos(1_000_000);

/// One more server of a database. A job is held for long: tests end a hold in the database.
async fn server(trial: &Trial) -> PostgresJobs {
    with_pauses(trial, Duration::ZERO).await
}

async fn with_pauses(trial: &Trial, pause: Duration) -> PostgresJobs {
    let (cluster, lease) = (trial.cluster().await, Duration::from_secs(3600));
    PostgresJobs::new(PostgresSettings { cluster, bounds: BOUNDS, lease, pauses: Pauses::new(pause) })
}

async fn add(jobs: &PostgresJobs) -> JobKey {
    match jobs.add("t".into(), JobSpec::default(), NOW).await {
        Ok(Added::New(job)) => job.key,
        other => panic!("{other:?}"),
    }
}

/// What a server is that says nothing for longer than it had promised.
async fn end_holds(trial: &Trial) {
    trial
        .execute(&format!(
            "update {}.jobs set held_until = clock_timestamp() - interval '1 second'",
            trial.schema
        ))
        .await;
}

fn log(line: &'static str) -> impl FnOnce(&mut Edit) -> Result<(), Refused> + Send + 'static {
    move |edit| {
        edit.log(line);
        Ok(())
    }
}

async fn lines(jobs: &PostgresJobs, key: &JobKey) -> Vec<String> {
    match jobs.events(key.clone(), 1, 1000).await {
        Ok(Some(Replay::Events { events, .. })) => events
            .into_iter()
            .filter_map(|event| match event.payload {
                EventPayload::Run(RunEvent::Log(line)) => Some(line),
                _ => None,
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

async fn taken_over(jobs: &PostgresJobs, key: &JobKey) -> Claimed {
    let resume = |edit: &mut Edit| {
        edit.change(Change::Stop)?;
        edit.change(Change::Retry)
    };
    jobs.take_over(key.clone(), NOW, resume).await.expect("it is abandoned");
    jobs.claim(key.clone(), NOW).await.expect("it waits")
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_claim_at_once_never_get_the_same_job() {
    let Some(trial) = Trial::new().await else { return };
    let servers = [server(&trial).await, server(&trial).await, server(&trial).await];
    let mut keys = BTreeSet::new();
    for _ in 0..20 {
        keys.insert(add(&servers[0]).await);
    }
    let claim = async |jobs: &PostgresJobs| {
        let mut claimed = Vec::new();
        for job in jobs.active(None).await.expect("reachable").jobs {
            claimed.extend(jobs.claim(job.key.clone(), NOW).await.ok().map(|claimed| claimed.job.key));
        }
        claimed
    };
    let claimed: Vec<JobKey> = join_all(servers.iter().map(claim)).await.concat();
    assert_eq!(claimed.len(), keys.len(), "none twice");
    assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>(), keys, "and none left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_lost_a_job_can_write_nothing_of_it_any_more() {
    let Some(trial) = Trial::new().await else { return };
    let [slow, other] = [server(&trial).await, server(&trial).await];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = add(&slow).await;
    let Claimed { hold, .. } = slow.claim(key.clone(), NOW).await.expect("it waits");
    slow.update_held(hold.write(), NOW, log("early")).await.expect("it is held");
    assert!(other.abandoned().await.expect("reachable").is_empty());
    let refused = other.take_over(key.clone(), NOW, |edit| edit.change(Change::Stop)).await;
    assert!(matches!(refused, Err(UpdateError::Unknown)), "it is held: {refused:?}");

    end_holds(&trial).await;
    assert!(slow.renew(hold.clone()).await.expect("reachable").is_some(), "nobody has taken it over");
    assert!(other.abandoned().await.expect("reachable").is_empty());
    end_holds(&trial).await;
    let abandoned = other.abandoned().await.expect("reachable");
    assert_eq!(abandoned.iter().map(|job| &job.key).collect::<Vec<_>>(), [&key]);
    let Claimed { job, hold: new } = taken_over(&other, &key).await;
    assert_eq!((job.attempt, new.term), (2, hold.term + 2));

    write_checkpoint(folder.path(), 4, b"late");
    let held = async |jobs: &PostgresJobs, hold: &Hold| {
        let line = if jobs.0.cluster.server == slow.0.cluster.server { "late" } else { "new" };
        [
            jobs.update_held(hold.write(), NOW, log(line)).await.is_ok(),
            jobs.renew(hold.clone()).await.expect("reachable").is_some(),
            jobs.keep_folder(hold.clone(), folder.path().to_owned(), vec![]).await.expect("reachable"),
        ]
    };
    assert_eq!(held(&slow, &hold).await, [false; 3]);
    assert_eq!(kept(&other, &new).await, Vec::<(String, Vec<u8>)>::new());
    assert_eq!(held(&other, &new).await, [true; 3]);
    assert_eq!(held(&slow, &hold).await, [false; 3], "not even to remove something");
    assert_eq!(lines(&slow, &key).await, ["early", "new"]);
    assert_eq!(other.get(key).await.expect("reachable").expect("known").state, JobState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_was_lost_happens_once() {
    let Some(trial) = Trial::new().await else { return };
    let jobs = server(&trial).await;
    let key = add(&jobs).await;
    let Claimed { hold, .. } = jobs.claim(key.clone(), NOW).await.expect("it waits");
    let (first, second) = (hold.write(), hold.write());
    for write in [&first, &first, &second, &second, &first] {
        jobs.update_held(write.clone(), NOW, log("a line")).await.expect("it is held");
    }
    assert_eq!(lines(&jobs, &key).await, ["a line"; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_in_use_cost_no_event_and_double_none() {
    let Some(trial) = Trial::new().await else { return };
    let jobs = server(&trial).await;
    let key = add(&jobs).await;
    let repository = followed(jobs.clone());
    let hold = repository.claim(&key).await.expect("it waits").hold;
    // Some of the rows end the connection that brings them.
    trial
        .execute(
            "create sequence rows_seen;
            create function end_in_use() returns trigger language plpgsql security definer as $$ begin
                if nextval('rows_seen') % 8 = 5 then perform pg_terminate_backend(pg_backend_pid()); end if;
                return new; end $$;
            create trigger end_in_use before insert on job_events for each row execute function end_in_use()",
        )
        .await;
    for line in 0..20 {
        let logged = move |edit: &mut Edit| {
            edit.log(line.to_string());
            Ok::<(), Refused>(())
        };
        repository.update_surely(&hold, logged).await.expect("it is held");
    }
    assert_eq!(
        trial.count("rows_seen where last_value >= 23").await,
        1,
        "three rows had to be brought again"
    );
    assert_eq!(lines(&jobs, &key).await, (0..20).map(|line| line.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_failed_waits_for_its_pause_on_every_server_unless_it_is_resumed() {
    let Some(trial) = Trial::new().await else { return };
    let servers = [with_pauses(&trial, Duration::from_secs(60)).await, server(&trial).await];
    let key = add(&servers[0]).await;
    let Claimed { hold, .. } = servers[0].claim(key.clone(), NOW).await.expect("it waits");
    let retry = |edit: &mut Edit| {
        edit.count_attempt();
        edit.change(Change::Retry)
    };
    servers[0].update_held(hold.write(), NOW, retry).await.expect("it is held");
    for jobs in &servers {
        assert!(jobs.active(None).await.expect("reachable").jobs.is_empty());
        assert!(jobs.claim(key.clone(), NOW).await.is_err());
    }
    for change in [Change::Cancel, Change::Resume] {
        servers[1].update(key.clone(), NOW, |edit| edit.change(change)).await.expect("legal");
    }
    servers[1].claim(key.clone(), NOW).await.expect("it waits for nothing any more");
}

/// A checkpoint as training leaves it, with a file of this content.
fn write_checkpoint(folder: &Path, steps: u32, content: &[u8]) {
    let place = folder.join(format!("checkpoints/checkpoint-{steps:010}"));
    fs::create_dir_all(&place).expect("writable");
    fs::write(place.join("weights.safetensors"), content).expect("writable");
}

/// The files that another server finds.
async fn kept(jobs: &PostgresJobs, hold: &Hold) -> Vec<(String, Vec<u8>)> {
    let place = tempfile::tempdir().expect("a temporary folder");
    // What was there of an earlier attempt does not count.
    write_checkpoint(place.path(), 99, b"stray");
    jobs.fetch_folder(hold.clone(), place.path().to_owned()).await.expect("reachable");
    let files = files_in(place.path()).expect("readable");
    files
        .into_iter()
        .map(|path| (path.clone(), fs::read(place.path().join(path)).expect("readable")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_finds_the_checkpoints_and_the_chips_of_a_job_as_they_were() {
    let Some(trial) = Trial::new().await else { return };
    let servers = [server(&trial).await, server(&trial).await];
    let key = add(&servers[0]).await;
    let Claimed { hold, .. } = servers[0].claim(key.clone(), NOW).await.expect("it waits");
    let place = tempfile::tempdir().expect("a temporary folder");
    // Longer than a row and than a statement, and not a multiple of either.
    let long: Vec<u8> = (0..9_500_001_u32).map(|number| (number % 251) as u8).collect();
    write_checkpoint(place.path(), 4, b"four");
    write_checkpoint(place.path(), 8, &long);
    for (path, content) in [("chips/1/a.png", "a"), ("chips/manifest.jsonl", ""), ("log.txt", "stays here")] {
        fs::create_dir_all(place.path().join("chips/1")).expect("writable");
        fs::write(place.path().join(path), content).expect("writable");
    }
    // What a killed writer leaves is no checkpoint.
    fs::create_dir_all(place.path().join("checkpoints/.partial-checkpoint-12-new-1-1")).expect("writable");
    let keep = async || servers[0].keep_folder(hold.clone(), place.path().to_owned(), vec![]).await;
    assert!(keep().await.expect("reachable"));
    let [four, eight] = [4, 8].map(|steps| format!("checkpoints/checkpoint-{steps:010}/weights.safetensors"));
    let file = |path: &str, content: &[u8]| (path.to_owned(), content.to_vec());
    let chips = [file("chips/1/a.png", b"a"), file("chips/manifest.jsonl", b"")];
    let found = kept(&servers[1], &hold).await;
    assert!(found == [&[file(&four, b"four"), file(&eight, &long)], &chips[..]].concat());

    // The oldest makes room for a new one, and chips stay even where the folder has none any more.
    fs::remove_dir_all(place.path().join("checkpoints/checkpoint-0000000004")).expect("there");
    fs::remove_dir_all(place.path().join("chips")).expect("there");
    write_checkpoint(place.path(), 12, b"twelve");
    assert!(keep().await.expect("reachable"));
    let twelve = file(&four.replace("0004", "0012"), b"twelve");
    assert!(kept(&servers[1], &hold).await == [&[file(&eight, &long), twelve], &chips[..]].concat());

    let finish =
        |edit: &mut Edit| edit.change(Change::Finish { model: crate::embedding::ModelDigest::new([1; 32]) });
    servers[0].update_held(hold.write(), NOW, finish).await.expect("it is held");
    assert_eq!(kept(&servers[1], &hold).await, [], "nobody continues it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_saved_again_replaces_that_of_an_earlier_attempt() {
    let Some(trial) = Trial::new().await else { return };
    let jobs = server(&trial).await;
    let key = add(&jobs).await;
    let Claimed { hold, .. } = jobs.claim(key.clone(), NOW).await.expect("it waits");
    let place = tempfile::tempdir().expect("a temporary folder");
    let keep = async |hold: &Hold, saved: &[u64]| {
        let kept = jobs.keep_folder(hold.clone(), place.path().to_owned(), saved.to_vec()).await;
        assert!(kept.expect("reachable"));
    };
    write_checkpoint(place.path(), 4, b"four");
    write_checkpoint(place.path(), 8, b"eight");
    keep(&hold, &[4, 8]).await;
    trial.execute(&format!("update {}.files set content = 'damaged'", trial.schema)).await;
    end_holds(&trial).await;
    let Claimed { hold, .. } = taken_over(&jobs, &key).await;
    let contents =
        async || kept(&jobs, &hold).await.into_iter().map(|(_, content)| content).collect::<Vec<_>>();
    keep(&hold, &[]).await;
    assert_eq!(contents().await, [b"damaged", b"damaged"], "what was fetched is not written again");
    keep(&hold, &[8]).await;
    assert_eq!(contents().await, [&b"damaged"[..], b"eight"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_counts_from_before_the_database_was_asked() {
    let Some(trial) = Trial::new().await else { return };
    let jobs = server(&trial).await;
    let key = add(&jobs).await;
    let operator = trial.connect().await;
    // The latest that a hold may last of which the database is asked while it does not answer.
    let meanwhile = async || {
        while trial.waiting().await == 0 {}
        let latest = Instant::now() + jobs.lease();
        operator.batch_execute("commit").await.expect("unlocked");
        latest
    };
    operator.batch_execute("begin; lock table jobs").await.expect("locked");
    let (claimed, latest) = tokio::join!(jobs.claim(key, NOW), meanwhile());
    let Claimed { hold, .. } = claimed.expect("it waits");
    let until = hold.until.expect("there are other servers");
    assert!(until <= latest);
    operator.batch_execute("begin; lock table jobs").await.expect("locked");
    let (renewed, latest) = tokio::join!(jobs.renew(hold), meanwhile());
    let renewed = renewed.expect("reachable").expect("it is held");
    assert!(until < renewed && renewed <= latest);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_do_not_count_any_more_hold_nobody_up_and_are_removed_afterwards() {
    let Some(trial) = Trial::new().await else { return };
    let jobs = server(&trial).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    // More files than one statement removes.
    for steps in 1..=100 {
        write_checkpoint(folder.path(), steps, b"a checkpoint");
    }
    let mut holds = Vec::new();
    for _ in 0..3 {
        let key = add(&jobs).await;
        let Claimed { hold, .. } = jobs.claim(key, NOW).await.expect("it waits");
        assert!(jobs.keep_folder(hold.clone(), folder.path().to_owned(), vec![]).await.expect("reachable"));
        holds.push(hold);
    }
    let files = async || trial.count("files").await;
    assert_eq!(files().await, 300);

    // As if removing them took long.
    let operator = trial.connect().await;
    operator.batch_execute("begin; select from files for update").await.expect("locked");
    let finish =
        |edit: &mut Edit| edit.change(Change::Finish { model: crate::embedding::ModelDigest::new([1; 32]) });
    jobs.update_held(holds[0].write(), NOW, finish).await.expect("it is held");
    jobs.update(holds[1].key.clone(), NOW, |edit| edit.change(Change::Cancel)).await.expect("legal");
    jobs.update_held(holds[1].write(), NOW, |edit| edit.change(Change::Stop)).await.expect("it is held");
    jobs.delete(holds[1].key.clone(), |_| Ok::<(), ()>(())).await.expect("it has ended");
    fs::remove_dir_all(folder.path().join("checkpoints")).expect("there");
    write_checkpoint(folder.path(), 100, b"a checkpoint");
    assert!(jobs.keep_folder(holds[2].clone(), folder.path().to_owned(), vec![]).await.expect("reachable"));
    jobs.sweep().await.expect("reachable");
    assert_eq!(files().await, 300, "others see to those that they have locked");

    operator.batch_execute("rollback").await.expect("unlocked");
    jobs.sweep().await.expect("reachable");
    assert_eq!(files().await, 1);
    assert_eq!(kept(&jobs, &holds[2]).await.len(), 1);
}
