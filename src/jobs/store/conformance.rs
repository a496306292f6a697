//! What every store of jobs keeps, lists, replays and refuses: one suite for the file and the database.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::durable::Folder;
use crate::embedding::ModelDigest;
use crate::jobs::failure::Failure;
use crate::jobs::report::{Rankings, RunEvent, SavedCheckpoint};
use crate::jobs::retries::Pauses;
use crate::jobs::state::JobState;
use crate::postgres::trial::Trial;
use crate::reason::FailureReason;

const BOUNDS: Bounds = Bounds { jobs_max: 3, events_retained_max: 5 };
const NOW: Time = Time::from_nanos(1_000_000);

/// An empty store, with what has to live as long as it.
struct Fresh {
    store: JobStore,
    _place: Box<dyn Any>,
}

async fn in_a_file(bounds: Bounds) -> Fresh {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let volume = Folder(folder.path().to_owned());
    EmbeddedJobs::create(&volume).expect("writable");
    let store = EmbeddedJobs::open(Box::new(volume), bounds).expect("a store");
    Fresh { store: JobStore::Embedded(Arc::new(store)), _place: Box::new(folder) }
}

async fn in_a_database(bounds: Bounds) -> Fresh {
    let trial = Trial::new().await.expect("it is installed");
    let (lease, pauses) = (Duration::from_secs(3600), Pauses::new(Duration::ZERO));
    let settings = PostgresSettings { cluster: trial.cluster().await, bounds, lease, pauses };
    Fresh { store: JobStore::Postgres(PostgresJobs::new(settings)), _place: Box::new(trial) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_does_what_every_store_does() {
    check(in_a_file).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_does_what_every_store_does() {
    if Trial::new().await.is_some() {
        check(in_a_database).await;
    }
}

async fn check(open: impl AsyncFn(Bounds) -> Fresh) {
    finds_jobs_again(&open(BOUNDS).await.store).await;
    starts_one_job_for_a_request_id(&open(BOUNDS).await.store).await;
    bounds_the_jobs_of_a_tenant(&open(BOUNDS).await.store).await;
    replays_events_from_any_number(&open(BOUNDS).await.store).await;
    changes_nothing_when_it_refuses(&open(BOUNDS).await.store).await;
    replays_large_events_few_at_a_time(&open(BOUNDS).await.store).await;
    starts_a_waiting_job_once(&open(BOUNDS).await.store).await;
    let bounds = Bounds { jobs_max: 6, events_retained_max: 9 };
    does_what_a_naive_model_does(&open(bounds).await.store, bounds).await;
}

fn order(config: &str, request_id: Option<&str>) -> JobSpec {
    let request_id = request_id.map(str::to_owned);
    JobSpec { config_toml: config.into(), request_id, ..JobSpec::default() }
}

async fn add(store: &JobStore, tenant: &str, order: JobSpec) -> Job {
    match store.add(tenant.into(), order, NOW).await {
        Ok(Added::New(job)) => job,
        other => panic!("a new job, not {other:?}"),
    }
}

async fn delete(store: &JobStore, key: &JobKey) {
    store.delete(key, |_| Ok::<(), ()>(())).await.expect("deleted");
}

async fn replay(store: &JobStore, key: &JobKey, from: u64) -> Replay {
    store.events(key, from, 3).await.expect("readable").expect("known")
}

/// The numbers of the events from one on, and whether no more will follow.
async fn numbers(store: &JobStore, key: &JobKey, from: u64) -> (Vec<u64>, bool) {
    match replay(store, key, from).await {
        Replay::Events { events, complete } => (events.iter().map(|event| event.number).collect(), complete),
        other => panic!("{other:?}"),
    }
}

async fn finds_jobs_again(store: &JobStore) {
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(add(store, "a", order("x", None)).await);
    }
    let other = add(store, "b", order("x", None)).await;
    let running = store.update(&jobs[1].key, NOW, |edit| edit.change(Change::Start)).await.expect("legal");
    let list = async |states: &[StateName], before: Option<JobId>, limit| {
        let listing = Listing { states: states.to_vec(), before, limit };
        let page = store.list("a".into(), listing).await.expect("readable");
        (page.jobs.iter().map(|job| job.key.id).collect::<Vec<_>>(), page.more)
    };
    let ids: Vec<JobId> = jobs.iter().map(|job| job.key.id).collect();
    assert_eq!(list(&[], None, 2).await, (vec![ids[2], ids[1]], true));
    assert_eq!(list(&[], Some(ids[1]), 2).await, (vec![ids[0]], false));
    assert_eq!(list(&[StateName::Queued], None, 9).await, (vec![ids[2], ids[0]], false));
    assert_eq!(store.get(&running.key).await.expect("readable"), Some(running));
    let foreign = JobKey { tenant: "a".into(), id: other.key.id };
    assert_eq!(store.get(&foreign).await.expect("readable"), None);
    assert_eq!(store.events(&foreign, 1, 3).await.expect("readable"), None);
}

async fn starts_one_job_for_a_request_id(store: &JobStore) {
    let first = add(store, "a", order("x", Some("r"))).await;
    let again = store.add("a".into(), order("x", Some("r")), NOW).await;
    assert_eq!(again.expect("known"), Added::Known(first.clone()));
    let other = store.add("a".into(), order("y", Some("r")), NOW).await;
    assert!(matches!(other, Err(AddError::OtherOrder(id)) if id == first.key.id));
    assert_ne!(add(store, "b", order("y", Some("r"))).await.key.id, first.key.id);
    delete(store, &first.key).await;
    let second = add(store, "a", order("y", Some("r"))).await;
    assert!(second.key.id > first.key.id, "numbers are never used again");
}

async fn bounds_the_jobs_of_a_tenant(store: &JobStore) {
    let first = add(store, "a", order("x", None)).await;
    add(store, "a", order("x", None)).await;
    add(store, "a", order("x", None)).await;
    assert!(matches!(store.add("a".into(), order("x", None), NOW).await, Err(AddError::Full { max: 3 })));
    add(store, "b", order("x", None)).await;
    delete(store, &first.key).await;
    add(store, "a", order("x", None)).await;
}

async fn replays_events_from_any_number(store: &JobStore) {
    let key = add(store, "a", order("x", None)).await.key;
    for line in ["2", "3", "4", "5", "6", "7"] {
        let logged = store.update(&key, NOW, move |edit| {
            edit.log(line);
            Ok::<(), Refused>(())
        });
        logged.await.expect("stored");
    }
    assert_eq!(replay(store, &key, 1).await, Replay::Gone { oldest: 3 });
    assert_eq!(replay(store, &key, 9).await, Replay::Future { next: 8 });
    assert_eq!(replay(store, &key, 8).await, Replay::Events { events: vec![], complete: false });
    assert_eq!(numbers(store, &key, 3).await, (vec![3, 4, 5], false));
    assert_eq!(numbers(store, &key, 6).await, (vec![6, 7], false));
    store.update(&key, NOW, |edit| edit.change(Change::Cancel)).await.expect("legal");
    assert_eq!(numbers(store, &key, 6).await, (vec![6, 7, 8], true));
    assert_eq!(numbers(store, &key, 9).await, (vec![], true));
    delete(store, &key).await;
    assert_eq!(store.events(&key, 1, 3).await.expect("readable"), None);
}

async fn changes_nothing_when_it_refuses(store: &JobStore) {
    let job = add(store, "a", order("x", None)).await;
    let refused = store.update(&job.key, NOW, |edit| {
        edit.log("lost");
        edit.change(Change::Finish { model: ModelDigest::new([1; 32]) })
    });
    assert!(matches!(refused.await, Err(UpdateError::Refused(Refused::Active))));
    let failure = || Failure::new(FailureReason::Crashed, "no");
    let deleted = store.delete(&job.key, move |_| Err(failure())).await;
    assert!(matches!(deleted, Err(UpdateError::Refused(_))));
    assert_eq!(store.get(&job.key).await.expect("readable"), Some(job.clone()));
    let unknown = JobKey { id: JobId::new(99), ..job.key };
    let updated = store.update(&unknown, NOW, |edit| edit.change(Change::Cancel)).await;
    assert!(matches!(updated, Err(UpdateError::Unknown)));
    let deleted = store.delete(&unknown, |_| Ok::<(), ()>(())).await;
    assert!(matches!(deleted, Err(UpdateError::Unknown)));
    assert!(matches!(store.claim(&unknown, NOW).await, Err(UpdateError::Unknown)));
}

async fn replays_large_events_few_at_a_time(store: &JobStore) {
    let key = add(store, "a", order("x", None)).await.key;
    let edit = |edit: &mut Edit| -> Result<(), Refused> {
        let rankings = |epoch| Rankings { epoch, png: vec![0; REPLAY_BYTES / 2] };
        (0..3).for_each(|epoch| edit.report(RunEvent::Rankings(rankings(epoch))));
        Ok(())
    };
    store.update(&key, NOW, edit).await.expect("writable");
    assert_eq!(numbers(store, &key, 1).await.0, [1, 2]);
    assert_eq!(numbers(store, &key, 3).await.0, [3]);
    assert_eq!(numbers(store, &key, 4).await.0, [4]);
}

async fn starts_a_waiting_job_once(store: &JobStore) {
    let key = add(store, "a", order("x", None)).await.key;
    let Claimed { job, hold } = store.claim(&key, NOW).await.expect("it waits");
    assert_eq!((&job.state, job.started_at), (&JobState::Running, Some(NOW)));
    assert!(store.claim(&key, NOW).await.is_err());
    let ids = |jobs: Vec<Job>| jobs.into_iter().map(|job| job.key.id).collect::<Vec<_>>();
    assert_eq!(ids(store.active(None).await.expect("readable").jobs), [key.id]);
    let written = store.update_held(&hold.write(), NOW, |edit| edit.change(Change::Stop)).await;
    assert_eq!(written.expect("it is held").state, JobState::Interrupted);
    assert_eq!(ids(store.abandoned().await.expect("readable")), [key.id]);
    let job = store.take_over(&key, NOW, |edit| edit.change(Change::Retry)).await.expect("it is abandoned");
    assert_eq!((&job.state, job.attempt), (&JobState::Queued, 2));
    assert_eq!(ids(store.abandoned().await.expect("readable")), []);
    assert_eq!(ids(store.active(None).await.expect("readable").jobs), [key.id]);
}

/// Jobs as they should be, with all their events.
type Model = BTreeMap<JobKey, (Job, Vec<JobEvent>)>;

async fn does_what_a_naive_model_does(store: &JobStore, bounds: Bounds) {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut model = Model::new();
    for step in 0..500 {
        let now = Time::from_nanos(1_000_000 * (step + 2));
        match random.random_range(0..10) {
            0..2 => add_both(store, &mut model, &mut random, bounds, now).await,
            2 => delete_both(store, &mut model, &mut random).await,
            3..8 => change_both(store, &mut model, &mut random, now).await,
            _ => compare(store, &model, &mut random, bounds).await,
        }
    }
}

async fn add_both(store: &JobStore, model: &mut Model, random: &mut ChaCha8Rng, bounds: Bounds, now: Time) {
    let tenant: Arc<str> = (*["a", "b"].choose(random).expect("two")).into();
    let request_id = [None, Some("r"), Some("s")].choose(random).copied().flatten();
    let order = order(["x", "y"].choose(random).expect("two"), request_id);
    let is_of_request = |job: &&Job| {
        job.key.tenant == tenant && request_id.is_some() && job.order.request_id.as_deref() == request_id
    };
    let known = model.values().map(|(job, _)| job).find(is_of_request).cloned();
    let count = model.keys().filter(|key| key.tenant == tenant).count();
    let added = store.add(Arc::clone(&tenant), order.clone(), now).await;
    match (known, added) {
        (Some(job), Ok(Added::Known(found))) => {
            assert_eq!((&found, &order.config_toml), (&job, &job.order.config_toml));
        }
        (Some(job), Err(AddError::OtherOrder(id))) => {
            assert_eq!(id, job.key.id);
            assert_ne!(order.config_toml, job.order.config_toml);
        }
        (None, Err(AddError::Full { max })) => assert_eq!((max, count), (bounds.jobs_max, max)),
        (None, Ok(Added::New(job))) => {
            assert!(count < bounds.jobs_max && model.keys().all(|key| key.id < job.key.id));
            let edit = Edit::created(Job::new(JobKey { tenant, id: job.key.id }, order, now), now);
            let expected = edit.job().clone();
            assert_eq!(job, expected);
            model.insert(job.key.clone(), (expected, events_of(edit)));
        }
        (known, added) => panic!("{known:?} {added:?}"),
    }
}

/// The events of an edit, as they are replayed.
fn events_of(edit: Edit) -> Vec<JobEvent> {
    let (job, happened, occurred_at) = edit.into_parts();
    let first = job.last_event + 1 - happened.len() as u64;
    let event = |(number, (attempt, payload))| JobEvent { number, attempt, occurred_at, payload };
    (first..).zip(happened).map(event).collect()
}

async fn delete_both(store: &JobStore, model: &mut Model, random: &mut ChaCha8Rng) {
    let Some(key) = model.keys().cloned().collect::<Vec<_>>().choose(random).cloned() else { return };
    let ended = |job: &Job| if job.state.is_ended() { Ok(()) } else { Err(job.state.refusal()) };
    let expected = ended(&model[&key].0);
    match (store.delete(&key, ended).await, expected) {
        (Ok(()), Ok(())) => drop(model.remove(&key)),
        (Err(UpdateError::Refused(refused)), Err(expected)) => assert_eq!(refused, expected),
        other => panic!("{other:?}"),
    }
}

async fn change_both(store: &JobStore, model: &mut Model, random: &mut ChaCha8Rng, now: Time) {
    let Some(key) = model.keys().cloned().collect::<Vec<_>>().choose(random).cloned() else { return };
    let failure = Failure::new(FailureReason::Hung, "silent");
    let changes = [
        Change::Start,
        Change::Cancel,
        Change::Resume,
        Change::Retry,
        Change::Stop,
        Change::Fail(failure),
        Change::Finish { model: ModelDigest::new([9; 32]) },
    ];
    let (change, lines) = (changes.choose(random).expect("some").clone(), random.random_range(0..4));
    let saved = random.random_bool(0.3).then(|| random.random_range(1..100));
    let work = move |edit: &mut Edit| {
        (0..lines).for_each(|line| edit.log(format!("line {line}")));
        saved
            .into_iter()
            .for_each(|step| edit.report(RunEvent::Saved(SavedCheckpoint { step, best: false })));
        if lines == 3 { Ok(()) } else { edit.change(change.clone()) }
    };
    let (job, events) = model.get_mut(&key).expect("it is one of them");
    let mut edit = Edit::new(job.clone(), now);
    let expected = work(&mut edit);
    match (store.update(&key, now, work).await, expected) {
        (Ok(found), Ok(())) => {
            assert_eq!(&found, edit.job());
            *job = found;
            events.extend(events_of(edit));
        }
        (Err(UpdateError::Refused(refused)), Err(expected)) => assert_eq!(refused, expected),
        other => panic!("{other:?}"),
    }
}

/// Compares a job, a page of jobs and the events from somewhere on.
async fn compare(store: &JobStore, model: &Model, random: &mut ChaCha8Rng, bounds: Bounds) {
    let states: Vec<StateName> = StateName::EVERY.into_iter().filter(|_| random.random_bool(0.3)).collect();
    let before = random.random_bool(0.5).then(|| JobId::new(random.random_range(1..60)));
    let listing = Listing { states: states.clone(), before, limit: random.random_range(1..4) };
    let page = store.list("a".into(), listing.clone()).await.expect("readable");
    let mut expected: Vec<&Job> = model
        .values()
        .map(|(job, _)| job)
        .filter(|job| &*job.key.tenant == "a" && before.is_none_or(|before| job.key.id < before))
        .filter(|job| states.is_empty() || states.contains(&job.state.name()))
        .collect();
    expected.sort_by_key(|job| std::cmp::Reverse(job.key.id));
    assert_eq!(page.more, expected.len() > listing.limit);
    assert_eq!(page.jobs.iter().collect::<Vec<_>>(), expected[..expected.len().min(listing.limit)]);

    let Some((key, (job, events))) = model.iter().collect::<Vec<_>>().choose(random).copied() else { return };
    assert_eq!(store.get(key).await.expect("readable").as_ref(), Some(job));
    let from = random.random_range(1..job.last_event + 3);
    let next = job.last_event + 1;
    // A bound holds from the last write on.
    let oldest = (next.saturating_sub(bounds.events_retained_max)).max(1);
    let expected = if from > next {
        Replay::Future { next }
    } else if from < oldest {
        Replay::Gone { oldest }
    } else {
        let some: Vec<JobEvent> = events[from as usize - 1..].iter().take(4).cloned().collect();
        let complete = job.state.is_ended() && from + some.len() as u64 == next;
        Replay::Events { events: some, complete }
    };
    assert_eq!(store.events(key, from, 4).await.expect("readable"), Some(expected));
}
