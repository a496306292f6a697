//! Corruption in the store's file: what is damaged is reported and kept, and everything else is unaffected.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use redb::ReadableTable;

use super::tables::{EVENTS, JOBS, META, NEXT_ID, REQUESTS};
use super::tests::{NOW, Place, add, eventful, known, order};
use super::*;
use crate::durable::Folder;
use crate::durable::faults::flip;
use crate::durable::faults::tally::{Tally, rounds};
use crate::jobs::state::{Change, Refused};

/// Changes the database of a place bypassing the store.
fn change(place: &Place, change: impl FnOnce(&redb::WriteTransaction)) {
    let state = place.store.lock();
    let database = state.database.as_ref().expect("open");
    let write = database.begin_write().expect("writable");
    change(&write);
    database.commit(write).expect("writable");
}

fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[2] ^= 4;
    bytes
}

/// Three jobs of one tenant; the record of the second one is damaged.
fn with_a_damaged_job() -> (Place, [JobKey; 3]) {
    let place = Place::new();
    let keys = ["a", "b", "c"].map(|request| add(&place.store, "t", order("x", Some(request))).key);
    change(&place, |write| {
        let mut jobs = write.open_table(JOBS).expect("there");
        let damaged = flipped(jobs.get(("t", 2)).expect("readable").expect("there").value());
        jobs.insert(("t", 2), &*damaged).expect("writable");
    });
    (place.reopened(), keys)
}

#[test]
fn a_damaged_job_is_named_and_kept_and_others_are_served() {
    let (place, [first, damaged, last]) = with_a_damaged_job();
    let Place { store, .. } = &place;
    for _ in 0..2 {
        let expected = "job-2 is damaged: its checksum is another one; what is left of it is kept";
        assert_eq!(store.get(&damaged).expect_err("damaged").to_string(), expected);
        assert_eq!(store.events(&damaged, 1, 9).expect_err("damaged").to_string(), expected);
        let update = store.update(&damaged, NOW, |edit| edit.change(Change::Cancel));
        assert!(matches!(update, Err(UpdateError::Store(StoreError::DamagedJob { .. }))));
    }
    let page = |before, limit| {
        let listing = Listing { before, limit, ..Listing::default() };
        let page = store.list(&"t".into(), &listing).expect("readable");
        (page.jobs.into_iter().map(|job| job.key.id).collect::<Vec<_>>(), page.damaged, page.more)
    };
    assert_eq!(page(None, 9), (vec![last.id, first.id], vec![damaged.id], false));
    assert_eq!(page(None, 1), (vec![last.id], vec![], true), "it is on the next page");
    assert_eq!(page(Some(last.id), 1), (vec![first.id], vec![damaged.id], false));
    let all = store.all().expect("readable");
    assert_eq!(all.damaged, [(damaged.clone(), "its checksum is another one".to_owned())]);
    store.update(&first, NOW, |edit| edit.change(Change::Cancel)).expect("legal");
    let again = store.add(&"t".into(), order("x", Some("b")), NOW);
    assert!(
        matches!(again, Err(AddError::Store(StoreError::DamagedJob { .. }))),
        "nobody knows whether it is the same: {again:?}"
    );

    store.delete(&damaged, |_| Err::<(), _>(Refused::Active)).expect("whoever names it may");
    assert_eq!(store.get(&damaged).expect("readable"), None);
    assert_eq!(page(None, 9), (vec![last.id, first.id], vec![], false));
    assert_eq!(add(store, "t", order("x", Some("b"))).key.id, JobId::new(4));
}

#[test]
fn a_job_of_which_events_alone_are_left_is_damaged_and_its_number_is_not_used_again() {
    let place = Place::new();
    let keys = [(); 2].map(|()| add(&place.store, "t", order("x", None)).key);
    change(&place, |write| {
        write.open_table(JOBS).expect("there").remove(("t", 2)).expect("writable");
        write.open_table(META).expect("there").insert(NEXT_ID, 1).expect("writable");
    });
    let Place { store, .. } = &place.reopened();
    let lost = store.get(&keys[1]).expect_err("damaged").to_string();
    assert_eq!(lost, "job-2 is damaged: its record is not there; what is left of it is kept");
    let page = store.list(&"t".into(), &Listing { limit: 9, ..Listing::default() }).expect("readable");
    assert_eq!((page.jobs.len(), page.damaged), (1, vec![keys[1].id]));
    assert_eq!(store.all().expect("readable").damaged.len(), 1);
    assert_eq!(add(store, "t", order("x", None)).key.id, JobId::new(3));
    store.reserve(JobId::new(7));
    assert_eq!(add(store, "u", order("x", None)).key.id, JobId::new(8));
}

#[test]
fn an_event_that_is_damaged_or_lost_is_named_and_what_is_before_and_after_it_is_told() {
    for lost in [false, true] {
        let place = Place::new();
        let key = add(&place.store, "t", order("x", None)).key;
        let log = |edit: &mut Edit| {
            ["a", "b", "c"].into_iter().for_each(|line| edit.log(line));
            Ok::<(), Refused>(())
        };
        place.store.update(&key, NOW, log).expect("writable");
        change(&place, |write| {
            let mut events = write.open_table(EVENTS).expect("there");
            let event = events.remove(("t", 1, 3)).expect("writable").expect("there").value().to_vec();
            if !lost {
                events.insert(("t", 1, 3), &*flipped(&event)).expect("writable");
            }
        });
        let Place { store, .. } = &place.reopened();
        let numbers = |from| match store.events(&key, from, 9).map_err(|cause| cause.to_string()) {
            Ok(Some(Replay::Events { events, .. })) => Ok(events.iter().map(|event| event.number).collect()),
            Err(cause) => Err(cause),
            other => panic!("{other:?}"),
        };
        assert_eq!(numbers(1), Ok(vec![1, 2]));
        assert_eq!(numbers(4), Ok(vec![4]));
        let expected = if lost { "event 3: it is not there" } else { "event 3: its checksum is another one" };
        let found = numbers(3).expect_err("damaged");
        assert!(found.starts_with("job-1 is damaged: ") && found.contains(expected), "{found}");
    }
}

#[test]
fn what_request_ids_lead_to_is_put_right_from_the_jobs() {
    let place = Place::new();
    let keys = ["a", "b"].map(|request| add(&place.store, "t", order("x", Some(request))).key);
    change(&place, |write| {
        let mut requests = write.open_table(REQUESTS).expect("there");
        requests.remove(("t", "a")).expect("writable");
        requests.insert(("t", "q"), 1).expect("writable");
        requests.insert(("t", "b"), 1).expect("writable");
    });
    let Place { store, .. } = &place.reopened();
    for (request, key) in ["a", "b"].into_iter().zip(&keys) {
        match store.add(&"t".into(), order("x", Some(request)), NOW) {
            Ok(Added::Known(job)) => assert_eq!(job.key, *key),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(add(store, "t", order("x", Some("q"))).key.id, JobId::new(3));
}

#[test]
fn only_what_was_deleted_is_remembered_as_deleted() {
    let place = Place::new();
    let keys = [(); 2].map(|()| add(&place.store, "t", order("x", None)).key);
    place.store.delete(&keys[0], |_| Ok::<(), ()>(())).expect("deleted");
    let place = place.reopened();
    change(&place, |write| {
        // A number that was changed into another one.
        write.open_table(tables::DELETED).expect("there").insert(2, &[0; 4][..]).expect("writable");
    });
    assert_eq!(place.store.deleted().expect("readable"), [keys[0].id]);
    place.store.forget(keys[0].id).expect("writable");
    assert_eq!(place.reopened().store.deleted().expect("readable"), []);
}

#[test]
fn a_changed_letter_of_a_tenant_takes_no_job_from_anybody() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    EmbeddedJobs::create(&Folder(folder.path().to_owned())).expect("writable");
    let open = || EmbeddedJobs::open(Box::new(Folder(folder.path().to_owned())), BOUNDS);
    let orders = [("harbour", "first"), ("harbour", "second"), ("offshore", "third")];
    let store = open().expect("a store");
    let jobs = orders.map(|(tenant, request)| add(&store, tenant, order("x", Some(request))));
    drop(store);
    let path = folder.path().join(FILE);
    let whole = std::fs::read(&path).expect("readable");
    let mut places = 0;
    for tenant in ["harbour", "offshore"] {
        for at in 0..whole.len() {
            if !whole[at..].starts_with(tenant.as_bytes()) {
                continue;
            }
            for letter in at..at + tenant.len() {
                places += 1;
                let mut bytes = whole.clone();
                bytes[letter] ^= 1;
                std::fs::write(&path, bytes).expect("writable");
                let told = format!("letter {letter} of {tenant}");
                let store = open().unwrap_or_else(|cause| panic!("{told}: {cause}"));
                for (job, (tenant, request)) in jobs.iter().zip(orders) {
                    assert_eq!(store.get(&job.key).expect("readable").as_ref(), Some(job), "{told}");
                    let again = store.add(&tenant.into(), order("x", Some(request)), NOW).expect("known");
                    assert_eq!(again, Added::Known(job.clone()), "{told}");
                }
                assert_eq!(store.all().expect("readable").jobs.len(), jobs.len(), "{told}");
            }
        }
    }
    assert!(places > 0);
}

/// The outcome for a store with one flipped byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Refused,
    Named,
    Unaffected,
}

impl Outcome {
    fn text(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Named => "named in use",
            Self::Unaffected => "unaffected or repaired",
        }
    }
}

#[test]
fn whichever_byte_of_the_file_is_flipped_nothing_is_silently_wrong() {
    let fresh = tempfile::tempdir().expect("a temporary folder");
    let (expected, keys) = eventful(fresh.path());
    let whole: Vec<_> = keys.iter().map(|key| known(&expected, key)).collect();
    drop(expected);
    let mut tally = Tally::new(format!("flip, {FILE}"));
    for seed in 0..10 * rounds(30) as u64 {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(FILE);
        std::fs::copy(fresh.path().join(FILE), &path).expect("a copy");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let told = flip(&path, &mut random);
        let outcome = match EmbeddedJobs::open(Box::new(Folder(folder.path().into())), BOUNDS) {
            Err(_) => Outcome::Refused,
            Ok(store) => judge(&store, &keys, &whole, &told),
        };
        tally.count(outcome.text());
        tally.round();
        // Pages that nothing was read from may still be refused on a write.
        if outcome == Outcome::Unaffected
            && random.random_bool(0.2)
            && let Ok(store) = EmbeddedJobs::open(Box::new(Folder(folder.path().into())), BOUNDS)
            && let Ok(added) = store.add(&"default".into(), order("y", None), NOW)
        {
            assert!(matches!(added, Added::New(job) if job.key.id == JobId::new(3)), "{told}");
        }
    }
    assert!(tally.counted(Outcome::Unaffected.text()) > 0, "{tally:?}");
    tally.tell();
}

const BOUNDS: Bounds = Bounds { jobs_max: 9, events_retained_max: 100 };

fn judge(
    store: &EmbeddedJobs,
    keys: &[JobKey],
    whole: &[(Option<Job>, Option<Replay>)],
    told: &str,
) -> Outcome {
    let mut outcome = Outcome::Unaffected;
    let named = |cause: &StoreError| matches!(cause, StoreError::Damaged(_) | StoreError::DamagedJob { .. });
    for (key, (job, events)) in keys.iter().zip(whole) {
        match store.get(key) {
            Ok(found) => assert_eq!(found, *job, "{told}"),
            Err(cause) => {
                assert!(named(&cause), "{told}: {cause}");
                outcome = Outcome::Named;
            }
        }
        match (store.events(key, 1, 100), events) {
            (Ok(Some(Replay::Events { events: found, .. })), Some(Replay::Events { events, .. })) => {
                // If it ends early, the next event is the one that is reported.
                assert_eq!(found, events[..found.len()], "{told}");
                if found.len() < events.len() {
                    let next = store.events(key, found.len() as u64 + 1, 100);
                    assert!(next.is_err_and(|cause| named(&cause)), "{told}");
                    outcome = Outcome::Named;
                }
            }
            (Err(cause), _) => {
                assert!(named(&cause), "{told}: {cause}");
                outcome = Outcome::Named;
            }
            (found, _) => panic!("{told}: {found:?}"),
        }
    }
    let listing = Listing { limit: 9, ..Listing::default() };
    if let Ok(page) = store.list(&"default".into(), &listing) {
        let named = page.jobs.iter().map(|job| job.key.id).chain(page.damaged);
        let named: Vec<JobId> = named.collect();
        assert!(keys.iter().all(|key| named.contains(&key.id)), "{told}: {named:?}");
    }
    match store.add(&"default".into(), order("seed = 1", Some("first")), NOW) {
        Ok(Added::Known(found)) => assert_eq!(Some(found), whole[0].0, "{told}"),
        Ok(Added::New(_)) => panic!("{told}: an order is carried out twice"),
        Err(_) => outcome = Outcome::Named,
    }
    outcome
}
